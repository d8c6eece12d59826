"""Metrics of classifiers and autoencoders of clips.

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
    """Top-1 accuracy, or mean average precision and d-prime, of predictions averaged over the windows of each clip."""

    score_LK: Tensor
    target_LK: Tensor

    def __init__(self, clips: int, classes: int, multilabel: bool) -> None:
        super().__init__()
        self.multilabel = multilabel
        self.add_state("score_LK", torch.zeros(clips, classes), "sum")
        self.add_state("target_LK", torch.zeros(clips, classes), "sum")

    def update(self, logits_BK: Tensor, label: Tensor, clip_B: Tensor) -> None:
        """Adds windows with labels [B], or [B, K] of 0 and 1, and the indices of their clips."""
        logits_BK = logits_BK.float()
        self.score_LK.index_add_(0, clip_B, logits_BK.sigmoid() if self.multilabel else logits_BK.softmax(1))
        if self.multilabel:
            self.target_LK.index_add_(0, clip_B, label.float())
        else:
            self.target_LK[clip_B, label] += 1

    def compute(self) -> dict[str, Tensor]:
        """Returns "top1" in [0, 1], or "map" in [0, 1] and "d_prime"."""
        if not self.multilabel:
            return {"top1": (self.score_LK.argmax(1) == self.target_LK.argmax(1)).float().mean()}
        return compute_multilabel_metrics(self.score_LK, self.target_LK > 0)


def compute_multilabel_metrics(score_LK: Tensor, target_LK: Tensor) -> dict[str, Tensor]:
    """Returns mean average precision and d-prime (section 4.6) over the classes with positive and negative clips.

    d-prime is the distance, in standard deviations, between two normal distributions with the same area under the ROC
    curve as the mean over the classes: sqrt(2) times the normal quantile of the area.
    """
    known_K = target_LK.any(0) & ~target_LK.all(0)
    score_LK, target_LK = score_LK[:, known_K], target_LK[:, known_K].long()
    if not score_LK.shape[1]:
        return dict.fromkeys(("map", "d_prime"), torch.full((), math.nan))
    score_LK = score_LK / score_LK.max().clamp_min(1)  # torchmetrics takes values above 1 for logits
    precision = multilabel_average_precision(score_LK, target_LK, score_LK.shape[1])
    area = multilabel_auroc(score_LK, target_LK, score_LK.shape[1])
    return {"map": precision, "d_prime": math.sqrt(2) * torch.special.ndtri(area)}


class ReconstructionErrors(nn.Module):
    """PSNR of "video" and "audio" in dB, for a peak of 1, and top-1 accuracy of "label", averaged over windows."""

    def __init__(self, outputs: Iterable[str]) -> None:
        super().__init__()
        self.outputs = list(outputs)
        self.video, self.audio, self.label = MeanMetric(), MeanMetric(), MeanMetric()

    def update(self, predicted: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Adds the complete outputs for a batch of `ClipDataset`."""
        for name in self.outputs:
            output = predicted[name].float()
            if name == "video":
                add_psnr(self.video, output.clamp(0, 1), batch["video"].float() / 255, batch["video_mask"])
            elif name == "audio":
                add_psnr(self.audio, output.clamp(-1, 1), batch["audio"], batch["audio_mask"])
            else:
                self.label.update((output.argmax(1) == batch["label"]).float())

    def compute(self) -> dict[str, Tensor]:
        """Returns "video_psnr" and "audio_psnr" in dB, and "top1" in [0, 1]; no window with one of them is an error."""
        names = {"video": "video_psnr", "audio": "audio_psnr", "label": "top1"}
        results = {}
        for output in self.outputs:
            results[names[output]] = value = getattr(self, output).compute()
            if value.isnan():
                raise PerceiversError(f"no clip of the evaluation has {output}: use others, or a model without.")
        return results

    def reset(self) -> None:
        for metric in (self.video, self.audio, self.label):
            metric.reset()


def add_psnr(metric: MeanMetric, decoded: Tensor, original: Tensor, mask: Tensor) -> None:
    """Adds the PSNR of the real part of each window."""
    for ours, theirs, is_real in zip(decoded, original, mask, strict=True):
        if is_real.any():
            metric.update(-10 * (ours - theirs)[is_real].square().mean().log10())
