"""How good answers about clips are, and reconstructions of them.

Shape suffixes: B batch, K classes, L clips
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision

from perceivers.errors import PerceiversError


class ClipScores(Metric):
    """Top-1 accuracy of the mean over each clip's windows; or mean average precision and d-prime of it.

    Args:
        clips: number of clips.
        classes: number of classes.
        several: whether several classes can apply at once.
    """

    score_LK: Tensor
    target_LK: Tensor

    def __init__(self, clips: int, classes: int, multilabel: bool) -> None:
        super().__init__()
        self.multilabel = multilabel
        self.add_state("score_LK", torch.zeros(clips, classes), "sum")
        self.add_state("target_LK", torch.zeros(clips, classes), "sum")

    def update(self, logits_BK: Tensor, label: Tensor, clip_B: Tensor) -> None:
        """Adds windows.

        Args:
            logits_BK: answers.
            label: classes [B], or [B, K] of 0 and 1.
            clip_B: the number of each window's clip.
        """
        if self.multilabel:
            self.score_LK.index_add_(0, clip_B, logits_BK.float().sigmoid())
            self.target_LK.index_add_(0, clip_B, label.float())
        else:
            self.score_LK.index_add_(0, clip_B, logits_BK.float().softmax(1))
            self.target_LK[clip_B, label] += 1

    def compute(self) -> dict[str, Tensor]:
        """-> "top1" in [0, 1]; or "map" in [0, 1] and "d_prime"."""
        if not self.multilabel:
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


class ReconstructionErrors(nn.Module):
    """PSNR of video and sound in dB, for a peak of 1, averaged over windows; and top-1 accuracy.

    Args:
        outputs: names of the model's outputs, of "video", "audio" and "label".
    """

    def __init__(self, outputs: Iterable[str]) -> None:
        super().__init__()
        self.outputs = list(outputs)
        self.video, self.audio, self.label = MeanMetric(), MeanMetric(), MeanMetric()

    def update(self, answers: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Adds windows.

        Args:
            answers: what the model decoded of each of its outputs, all of it.
            batch: as `ClipDataset.collate` makes it.
        """
        for name in self.outputs:
            answer = answers[name].float()
            if name == "video":
                add_psnr(self.video, answer.clamp(0, 1), batch["video"].float() / 255, batch["shown"])
            elif name == "audio":
                add_psnr(self.audio, answer.clamp(-1, 1), batch["audio"], batch["heard"])
            else:
                self.label.update((answer.argmax(1) == batch["label"]).float())

    def compute(self) -> dict[str, Tensor]:
        """-> of its outputs "video_psnr" and "audio_psnr" in dB, and "top1" in [0, 1].

        Raises:
            PerceiversError: no window has one of them.
        """
        metrics = {
            "video": ("video_psnr", self.video),
            "audio": ("audio_psnr", self.audio),
            "label": ("top1", self.label),
        }
        found = {}
        for output in self.outputs:
            name, metric = metrics[output]
            found[name] = metric.compute()
            if found[name].isnan():
                raise PerceiversError(
                    f"no clip of the evaluation has {output}: take others, or a model without {output}."
                )
        return found

    def reset(self) -> None:
        """Starts anew."""
        for metric in (self.video, self.audio, self.label):
            metric.reset()


def add_psnr(metric: MeanMetric, decoded: Tensor, original: Tensor, known: Tensor) -> None:
    """Adds the PSNR of what is known of each window."""
    for ours, theirs, there in zip(decoded, original, known, strict=True):
        if there.any():
            metric.update(-10 * (ours - theirs)[there].square().mean().log10())
