"""The flow of a pair of frames in reverse order.

Shape suffixes: B batch, Y rows, X columns, P pixels of all the batch
"""

import torch
from torch import Tensor

from perceivers.errors import PerceiversError


def inverse_flow(flow: Tensor) -> Tensor:
    """Approximates the flow from the second frame to the first: the negative mean of the flows that end in a pixel.

    See section 4.2. A flow ends in the pixel nearest to its end; unknown flow, and flow out of the frame, is ignored.

    Args:
        flow: [2, Y, X] or [B, 2, Y, X] in pixels, to the right and down; NaN where unknown.

    Returns:
        Flow of the same shape; NaN where no flow ends.

    Raises:
        PerceiversError: the shape is wrong.
    """
    if flow.ndim not in (3, 4) or flow.shape[-3] != 2:
        raise PerceiversError(f"flow has the shape {tuple(flow.shape)}: [2, height, width] or a batch is expected.")
    flow_B2YX = flow if flow.ndim == 4 else flow[None]
    batch, _, height, width = flow_B2YX.shape
    # round halves up: rounded to even, a constant flow of half a pixel would leave every other pixel empty
    x_BYX = (flow_B2YX[:, 0] + torch.arange(width, device=flow.device) + 0.5).floor()
    y_BYX = (flow_B2YX[:, 1] + torch.arange(height, device=flow.device)[:, None] + 0.5).floor()
    is_inside_BYX = (x_BYX >= 0) & (x_BYX < width) & (y_BYX >= 0) & (y_BYX < height)
    frame_B11 = torch.arange(batch, device=flow.device)[:, None, None]
    pixels = batch * height * width
    end_BYX = (frame_B11 * height + y_BYX.long()) * width + x_BYX.long()
    end_BYX = end_BYX.masked_fill(~is_inside_BYX, pixels)  # an extra entry, which is dropped
    ones_P1 = flow.new_ones(pixels, 1)
    sum_P2 = flow.new_zeros(pixels + 1, 2).index_add(0, end_BYX.flatten(), flow_B2YX.movedim(1, -1).reshape(-1, 2))
    count_P1 = flow.new_zeros(pixels + 1, 1).index_add(0, end_BYX.flatten(), ones_P1)
    mean_P2 = (sum_P2 / count_P1)[:-1]  # 0 / 0 is NaN
    return -mean_P2.view(batch, height, width, 2).movedim(-1, 1).reshape(flow.shape)
