"""How good answers about clips are: each clip's is the mean over its windows.

Shape suffixes: B batch, K classes, L clips
"""

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision


class ClipScores(Metric):
    """Top-1 accuracy; or, where several classes can apply at once, mean average precision and d-prime.

    Args:
        clips: number of clips.
        classes: number of classes.
        several: whether several classes can apply at once.
    """

    score_LK: Tensor
    target_LK: Tensor

    def __init__(self, clips: int, classes: int, several: bool) -> None:
        super().__init__()
        self.several = several
        self.add_state("score_LK", torch.zeros(clips, classes), "sum")
        self.add_state("target_LK", torch.zeros(clips, classes), "sum")

    def update(self, logits_BK: Tensor, label: Tensor, clip_B: Tensor) -> None:
        """Adds windows.

        Args:
            logits_BK: answers.
            label: classes [B], or [B, K] of 0 and 1.
            clip_B: the number of each window's clip.
        """
        if self.several:
            self.score_LK.index_add_(0, clip_B, logits_BK.float().sigmoid())
            self.target_LK.index_add_(0, clip_B, label.float())
        else:
            self.score_LK.index_add_(0, clip_B, logits_BK.float().softmax(1))
            self.target_LK[clip_B, label] += 1

    def compute(self) -> dict[str, Tensor]:
        """-> "top1" in [0, 1]; or "map" in [0, 1] and "d_prime"."""
        if not self.several:
            return {"top1": (self.score_LK.argmax(1) == self.target_LK.argmax(1)).float().mean()}
        return several_figures(self.score_LK, self.target_LK > 0)


def several_figures(score_LK: Tensor, target_LK: Tensor) -> dict[str, Tensor]:
    """Mean average precision and d-prime (section 4.6), over the classes that some clips have and some do not.

    d-prime is how far apart, in standard deviations, two normal distributions are whose area under the ROC curve is
    the mean over the classes: sqrt(2) times the normal quantile of the area.
    """
    known_K = target_LK.any(0) & ~target_LK.all(0)
    score_LK, target_LK = score_LK[:, known_K], target_LK[:, known_K].long()
    if not score_LK.shape[1]:
        return dict.fromkeys(("map", "d_prime"), torch.full((), math.nan))
    score_LK = score_LK / score_LK.max().clamp_min(1)  # else they would be taken for logits
    precision = multilabel_average_precision(score_LK, target_LK, score_LK.shape[1])
    area = multilabel_auroc(score_LK, target_LK, score_LK.shape[1])
    assert isinstance(precision, Tensor)
    assert isinstance(area, Tensor)
    return {"map": precision, "d_prime": math.sqrt(2) * torch.special.ndtri(area)}
