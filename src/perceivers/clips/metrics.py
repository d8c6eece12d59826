"""Metrics of classifiers and autoencoders of clips.

Shape suffixes: B batch, K classes, L clips, S samples
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision

from perceivers.clips.distances import log_spectral_distance, psnr, snr
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
    """Metrics of autoencoders, averaged over windows: of "video", "audio" and "label".

    "video_psnr" and "audio_psnr" are in dB, for a peak of 1; "audio_snr" in dB, which silence has 0 of; and
    "audio_spectral_distance" in dB, see `log_spectral_distance`. Windows of silence have only the PSNR. "top1" is the
    accuracy of the label.
    """

    def __init__(self, outputs: Iterable[str]) -> None:
        super().__init__()
        self.outputs = list(outputs)
        names = [name for output in self.outputs for name in METRICS[output]]
        self.means = MetricCollection({name: MeanMetric() for name in names}, compute_groups=False)

    def update(self, predicted: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Adds the complete outputs for a batch of `ClipDataset`."""
        for name in self.outputs:
            output = predicted[name].float()
            if name == "video":
                target = batch["video"].float() / 255
                for ours, theirs, is_real in zip(output.clamp(0, 1), target, batch["video_mask"], strict=True):
                    if is_real.any():
                        self.means["video_psnr"].update(psnr(ours[is_real], theirs[is_real]))
            elif name == "audio":
                for ours, theirs, is_real in zip(output.clamp(-1, 1), batch["audio"], batch["audio_mask"], strict=True):
                    if is_real.any():
                        self.update_audio(ours[is_real], theirs[is_real])
            else:
                self.means["top1"].update((output.argmax(1) == batch["label"]).float())

    def update_audio(self, decoded_S: Tensor, original_S: Tensor) -> None:
        """Adds the real part of a window of sound."""
        self.means["audio_psnr"].update(psnr(decoded_S, original_S))
        if original_S.any():
            self.means["audio_snr"].update(snr(decoded_S, original_S))
            self.means["audio_spectral_distance"].update(log_spectral_distance(decoded_S, original_S))

    def compute(self) -> dict[str, Tensor]:
        """Returns the metrics by name; no window with one of the outputs is an error."""
        results: dict[str, Tensor] = {}
        for output in self.outputs:
            found = {name: self.means[name].compute() for name in METRICS[output]}
            if found[METRICS[output][0]].isnan():
                raise PerceiversError(f"no clip of the evaluation has {output}: use others, or a model without.")
            results |= {name: value for name, value in found.items() if not value.isnan()}
        return results

    def reset(self) -> None:
        self.means.reset()


METRICS = {
    "video": ("video_psnr",),
    "audio": ("audio_psnr", "audio_snr", "audio_spectral_distance"),
    "label": ("top1",),
}
"""The metrics of each output of an autoencoder."""
