"""Metrics of optical flow: end-point error and outliers.

Outliers are counted among all known pixels of a data set. The average end-point error has two conventions: the mean of
all known pixels of all pairs, as for Sintel and FlyingChairs; or the mean of the pairs' means, as for KITTI in RAFT's
evaluation and in later papers, and for Middlebury, whose pairs differ in size and in their number of known pixels.

Shape suffixes: B batch, Y rows, X columns, R regions (all pixels, visible, occluded), K kinds of outliers
"""

from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from perceivers.errors import PerceiversError

REGIONS = ("", "_visible", "_occluded")
OUTLIERS = ("over1px", "over3px", "over5px", "fl_all")


def end_point_error(flow: Tensor, truth: Tensor) -> Tensor:
    """Returns the distance in pixels, float32 [..., Y, X], between two flows [..., 2, Y, X]; NaN where unknown.

    Raises:
        PerceiversError: the shapes are wrong, or the flow is NaN or infinite where the truth is known.
    """
    if flow.shape != truth.shape or flow.dim() < 3 or flow.shape[-3] != 2:
        shapes = f"flow of shape {tuple(flow.shape)} cannot be compared with a truth of shape {tuple(truth.shape)}"
        raise PerceiversError(f"{shapes}: both must be [2, height, width], or batches of these.")
    flow, truth = flow.float(), truth.float()
    wrong = ~flow.isfinite() & ~truth.isnan().any(-3, keepdim=True)
    if wrong.any():
        found = f"the flow is NaN or infinite at {int(wrong.any(-3).sum())} pixels whose true flow is known"
        raise PerceiversError(f"{found}: the model's weights are damaged, or its numbers too large for its dtype.")
    return (flow - truth).norm(dim=-3)


class FlowErrors(Metric):
    """Errors of flow over a data set, accumulated in batches, on any device and any number of processes.

    Args:
        average: "pixels": the end-point error is the mean of all pixels; "pairs": it is the mean of the pairs' means.
    """

    full_state_update = False
    errors_R: Tensor
    pixels_R: Tensor
    outliers_RK: Tensor
    means_R: Tensor
    pairs_R: Tensor

    def __init__(self, average: Literal["pixels", "pairs"] = "pixels") -> None:
        super().__init__()
        self.average = average
        regions, kinds = len(REGIONS), len(OUTLIERS)
        self.add_state("errors_R", torch.zeros(regions), "sum")
        self.add_state("pixels_R", torch.zeros(regions, dtype=torch.long), "sum")
        self.add_state("outliers_RK", torch.zeros(regions, kinds, dtype=torch.long), "sum")
        self.add_state("means_R", torch.zeros(regions), "sum")
        self.add_state("pairs_R", torch.zeros(regions, dtype=torch.long), "sum")

    def update(self, flow: Tensor, truth: Tensor, occluded: Tensor | None = None) -> None:
        """Adds a pair or a batch.

        Args:
            flow: [2, Y, X] or [B, 2, Y, X] in pixels, to the right and down.
            truth: of the same shape, NaN where unknown.
            occluded: bool [Y, X] or [B, Y, X], True where the second frame does not show the content, if known.

        Raises:
            PerceiversError: as in `end_point_error`.
        """
        error_BYX = end_point_error(flow, truth)
        length_BYX = truth.float().norm(dim=-3)
        if error_BYX.dim() == 2:
            error_BYX, length_BYX = error_BYX[None], length_BYX[None]
        known_BYX = ~error_BYX.isnan()
        error_BYX = error_BYX.nan_to_num()
        fl_BYX = (error_BYX > 3) & (error_BYX > 0.05 * length_BYX)
        outlier_KBYX = torch.stack([error_BYX > 1, error_BYX > 3, error_BYX > 5, fl_BYX])
        region_RBYX = known_BYX[None]  # if occlusions are unknown, nothing is added to the other regions
        if occluded is not None:
            occluded_BYX = occluded.view_as(known_BYX)
            region_RBYX = torch.stack([known_BYX, known_BYX & ~occluded_BYX, known_BYX & occluded_BYX])
        count = len(region_RBYX)
        error_RB, pixels_RB = (error_BYX * region_RBYX).sum((-2, -1)), region_RBYX.sum((-2, -1))
        self.errors_R[:count] += error_RB.sum(1)
        self.pixels_R[:count] += pixels_RB.sum(1)
        self.outliers_RK[:count] += torch.stack([(outlier_KBYX & part).sum((1, 2, 3)) for part in region_RBYX])
        self.means_R[:count] += (error_RB / pixels_RB.clamp_min(1)).sum(1)
        self.pairs_R[:count] += (pixels_RB > 0).sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Returns the results by name, NaN if no flow is known.

        `epe` is the average end-point error in pixels; `over1px`, `over3px` and `over5px` are the fractions of pixels
        with larger errors; `fl_all` that of errors above both 3 pixels and 5% of the true length. If occlusions are
        known, the same names with `_visible` and `_occluded` are the results of these pixels.
        """
        by_pixels = self.average == "pixels"
        epe_R = self.errors_R / self.pixels_R if by_pixels else self.means_R / self.pairs_R
        fraction_RK = self.outliers_RK / self.pixels_R[:, None]
        return {
            name + region: value
            for region, epe, fraction_K, pixels in zip(REGIONS, epe_R, fraction_RK, self.pixels_R, strict=True)
            if region == "" or pixels > 0
            for name, value in zip(("epe", *OUTLIERS), (epe, *fraction_K), strict=True)
        }
