"""Samples of points, such as those that latents are drawn from.

Shape suffixes: B batch, M points, G dimensions of coordinates, N sampled points
"""

import torch
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.arguments import check_coordinates
from perceivers.model.eager import is_concrete
from perceivers.model.masks import to_bool_mask, zero_padding


def farthest_points(coordinates_BMG: Tensor, count: int, mask_BM: Tensor | None = None) -> Tensor:
    """Returns the indices of points that cover each cloud evenly; [B, M, G] -> [B, count].

    The first is the first point of the cloud; each further one is the point farthest from all before it, and of equally
    far points the first one (Gonzalez, 1985, "Clustering to minimize the maximum intercluster distance"). No point is
    sampled twice. Time is O(M count), memory is O(M).

    Args:
        coordinates_BMG: coordinates of the points.
        count: N, number of points to sample from each cloud.
        mask_BM: True or 1 for real points, False or 0 for padding, which is not sampled; all are real by default.

    Raises:
        PerceiversError: coordinates are not finite real numbers [B, M, G], or a cloud has fewer than `count` points.

    Examples:
        >>> import torch
        >>> farthest_points(torch.tensor([[[0.0], [0.1], [1.0], [0.5]]]), 3)
        tensor([[0, 2, 3]])
    """
    shape = coordinates_BMG.shape[:2] if isinstance(coordinates_BMG, Tensor) else ("batch", "points")
    mask_BM = to_bool_mask(mask_BM)
    if mask_BM is not None and mask_BM.shape != shape:
        raise PerceiversError(f"the mask of points has the shape {list(mask_BM.shape)}: {list(shape)} is expected.")
    x_BMG = zero_padding(coordinates_BMG, mask_BM)
    check_coordinates("the coordinates of points", x_BMG, shape)
    least = shape[1]
    if mask_BM is not None and mask_BM.device.type == "cpu" and is_concrete(mask_BM):
        least = int(mask_BM.sum(1).min())
    if not 1 <= count <= least:
        raise PerceiversError(f"{count} points cannot be sampled from a cloud of {least}: choose from 1 to {least}.")

    distance_BM = torch.full(shape, torch.inf, dtype=x_BMG.dtype, device=x_BMG.device)  # to the nearest sampled point
    distance_BM = distance_BM if mask_BM is None else distance_BM.masked_fill(~mask_BM, -1)
    indices = []
    for _ in range(count):
        index_B1 = distance_BM.argmax(1, keepdim=True)
        indices.append(index_B1)
        sampled_B1G = x_BMG.take_along_dim(index_B1[..., None], 1)
        distance_BM = distance_BM.minimum((x_BMG - sampled_B1G).square().sum(-1)).scatter(1, index_B1, -1)
    return torch.cat(indices, 1)
