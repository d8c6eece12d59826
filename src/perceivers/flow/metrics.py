"""What optical flow is judged by: end-point error and outliers.

The parts of pixels are of all known pixels of a data set. For the average end-point error there are two conventions:

- of all known pixels of all pairs, as for Sintel and FlyingChairs;
- the mean of the pairs' means, as for KITTI in RAFT's evaluation, which the papers since report, and for Middlebury,
  whose pairs differ in size and in how many pixels are known.

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
    """Distance in pixels between the ends of two flows, float32; [..., 2, Y, X] -> [..., Y, X], NaN where unknown.

    Raises:
        PerceiversError: the shapes differ or are others, or the flow is NaN or infinite where the truth is known.
    """
    if flow.shape != truth.shape or flow.dim() < 3 or flow.shape[-3] != 2:
        raise PerceiversError(
            f"flow of shape {tuple(flow.shape)} is to be compared with a truth of {tuple(truth.shape)}: "
            "both must be [2, height, width], or batches of these."
        )
    flow, truth = flow.float(), truth.float()
    wrong = ~flow.isfinite() & ~truth.isnan().any(-3, keepdim=True)
    if wrong.any():
        raise PerceiversError(
            f"the flow is NaN or infinite at {int(wrong.any(-3).sum())} pixels whose true flow is known: "
            "the model's weights are damaged, or its numbers too large for its dtype."
        )
    return (flow - truth).norm(dim=-3)


class FlowErrors(Metric):
    """Errors of flow over a data set: in batches, on any device, in any number of processes.

    Args:
        average: whether the end-point error is the average of all pixels, or of the pairs' averages.
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
            flow: [2, Y, X] or [B, 2, Y, X] in pixels, to the right and downwards.
            truth: the same, NaN where it is not known.
            occluded: bool [Y, X] or [B, Y, X]: where the content cannot be seen in the second frame, if known.

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
        if occluded is None:
            region_RBYX = known_BYX[None]  # nothing to add to the other regions
        else:
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
        """The results by name, NaN if nothing is known.

        `epe` is the average end-point error in pixels; `over1px`, `over3px` and `over5px` are the parts of pixels whose
        error is larger; `fl_all` that of pixels whose error is larger than 3 pixels and than 5% of the true length.
        If occlusions are known there are the same of visible and occluded pixels: `epe_visible`, `epe_occluded`, ...
        """
        of_pixels = self.average == "pixels"
        epe_R = self.errors_R / self.pixels_R if of_pixels else self.means_R / self.pairs_R
        part_RK = self.outliers_RK / self.pixels_R[:, None]
        return {
            name + region: value
            for region, epe, part_K, pixels in zip(REGIONS, epe_R, part_RK, self.pixels_R, strict=True)
            if region == "" or pixels > 0
            for name, value in zip(("epe", *OUTLIERS), (epe, *part_K), strict=True)
        }
