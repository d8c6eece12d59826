"""Optical flow: two frames in, how far each pixel of the first moves out (section 4.2, tables 5 and 6).

Shape suffixes:
    B batch, Y rows, X columns, y, x rows and columns of coarse flow, f fine rows or columns for each of these;
    others as in `perceivers.model.adapter`
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers.adapters.array import with_positions
from perceivers.adapters.image import ConvStem, ImageInput, Patches
from perceivers.adapters.set import select_elements
from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, InputAdapter, InputArray, OutputAdapter, read_array
from perceivers.model.positions import Positions

UPSAMPLING_MASK_SCALE = 0.25  # of the scores, as in RAFT: they begin near 0, and the weights near 1/9 each


class FramePairInput(InputAdapter):
    """Two frames, as one image of six colors, or as two images, with the elements of the first before the second's.

    Args:
        size: height and width of the frames in training, in pixels.
        features: of six colors, those of both frames, or of three.
        positions: encodes the places of the features by row and column, or by frame, row and column.
        frames: whether the colors of both frames are "concatenated" or the frames "separate".

    Raises:
        PerceiversError: `frames` is something else, or the features are not of as many colors.
    """

    def __init__(
        self,
        size: Sequence[int],
        features: Patches | ConvStem,
        positions: Positions,
        frames: Literal["concatenated", "separate"] = "concatenated",
    ) -> None:
        super().__init__()
        if frames not in ("concatenated", "separate"):
            raise PerceiversError(f"frames = {frames!r} is not allowed: it must be 'concatenated' or 'separate'.")
        self.size = (size[0], size[1])
        self.separate = frames == "separate"
        colors = 3 if self.separate else 6
        if features.in_channels != colors:
            found = f"features of {features.in_channels} colors"
            raise PerceiversError(f"{found} do not fit frames that are {frames}: build them for {colors}.")
        self.image = ImageInput(size, features, positions, mean=[0.5] * colors, std=[0.5] * colors)
        self.channels = self.image.channels

    def forward(self, data: Tensor) -> InputArray:
        """Takes frames [B, 2, 3, Y, X] of any size in [0, 1], or bytes; the grid is the flow's, not the elements'."""
        data, _ = read_array(data)
        if data.dim() != 5 or data.shape[1:3] != (2, 3):
            found = f"frames of shape {tuple(data.shape)} were given"
            raise PerceiversError(f"{found}, but [batch, 2 frames, 3 colors, height, width] is expected.")
        if self.separate:  # through the features together: a batch normalization sees both
            features = self.image.extract_features(data.flatten(0, 1)).unflatten(0, data.shape[:2])
        else:
            features = self.image.extract_features(data.flatten(1, 2))
        x_BMC = with_positions(features.flatten(1, -2), self.image.positions, tuple(features.shape[1:-1]))
        return InputArray(x_BMC, grid=tuple(data.shape[3:]))


class FlowOutput(OutputAdapter):
    """The flow of every pixel of the first frame, in pixels, asked for with what was read there.

    The queries are the input's own elements: all of them, or the first frame's. Where these are fewer than the pixels,
    each is asked for coarse flow and how to mix it, see `upsample`; such flow is decoded as a whole only.

    Args:
        input: name of the input whose grid the flow has.
        scale: pixels of flow for a 1 of the last layer; 20 / 100 in the released model.
        upsampling: rows, and columns, of pixels for one of elements; None if there is an element at every pixel.

    Raises:
        PerceiversError: `upsampling` is below 1.
    """

    def __init__(self, input: str, scale: float = 0.2, upsampling: int | None = None) -> None:
        super().__init__()
        if upsampling is not None and upsampling < 1:
            raise PerceiversError(f"upsampling = {upsampling} is not allowed: it must be at least 1, or None.")
        self.input = input
        self.scale = scale
        self.upsampling = upsampling
        self.channels = 2 if upsampling is None else 2 + 9 * upsampling**2

    def bind_inputs(self, inputs: Mapping[str, InputAdapter]) -> None:
        if self.input not in inputs:
            raise PerceiversError(f"the flow is that of an input {self.input!r}, which the model does not have.")
        adapter = inputs[self.input]
        self.query_channels = adapter.channels
        if isinstance(adapter, FramePairInput):
            have, want = adapter.image.features.grid(*adapter.size), self.coarse_size(*adapter.size)
            if have != want:
                sizes = f"{want[0]} x {want[1]} elements of a frame, but the input makes {have[0]} x {have[1]}"
                field = f"upsampling = {self.upsampling} does not fit the input {self.input!r}"
                raise PerceiversError(f"{field}: it needs {sizes}.")

    def context(self, inputs: Mapping[str, InputArray]) -> InputArray:
        return inputs[self.input]

    def coarse_size(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of queries for a frame of this size."""
        factor = self.upsampling or 1
        return -(-height // factor), -(-width // factor)

    def size(self, encoded: Encoded) -> tuple[int, int]:
        """Returns height and width of the flow."""
        grid = encoded.context.grid
        if grid is None or len(grid) != 2:
            raise PerceiversError(f"the input {self.input!r} has no rows and columns, as flow has: its grid is {grid}.")
        return grid[0], grid[1]

    def num_queries(self, encoded: Encoded) -> int:
        rows, columns = self.coarse_size(*self.size(encoded))
        return rows * columns

    def queries(self, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        x_BMC: Tensor = encoded.context.x_BMC
        return x_BMC[:, : self.num_queries(encoded)] if indices is None else select_elements(x_BMC, indices)

    def postprocess(self, y_BOE: Tensor, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        """-> [B, 2, Y, X], or [B, P, 2] of some pixels: first to the right, then down.

        Raises:
            PerceiversError: some pixels are wanted of flow that is upsampled.
        """
        if self.upsampling is not None and indices is not None:
            reason = "a pixel mixes the results of nine queries"
            raise PerceiversError(f"upsampled flow cannot be decoded at indices: {reason}. Decode all.")
        flow_BO2 = y_BOE[..., :2] * self.scale
        if indices is not None:
            return flow_BO2
        height, width = self.size(encoded)
        coarse_size = self.coarse_size(height, width)
        flow_B2yx = flow_BO2.unflatten(1, coarse_size).movedim(-1, 1).contiguous()
        if self.upsampling is None:
            return flow_B2yx
        scores_Byx9ff = y_BOE[..., 2:].unflatten(1, coarse_size).unflatten(-1, (9, self.upsampling, self.upsampling))
        return upsample(flow_B2yx, UPSAMPLING_MASK_SCALE * scores_Byx9ff)[..., :height, :width]


def upsample(flow_B2yx: Tensor, scores_Byx9ff: Tensor) -> Tensor:
    """Mixes every fine pixel's flow from the 3x3 coarse ones around it (Teed & Deng, 2020, section 3.3).

    The softmax of a pixel's scores weighs the nine, row by row. Coarse flow is already in fine pixels, so that, other
    than in RAFT, nothing is multiplied by the factor. Beyond the border the nearest flow is repeated; RAFT has zeros
    there, which draw the flow along the border towards standing still. Returns [B, 2, y * f, x * f].
    """
    padded = F.pad(flow_B2yx, (1, 1, 1, 1), mode="replicate")
    near_B2yx9 = padded.unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
    fine_B2yfxf = torch.einsum("bcyxn,byxnij->bcyixj", near_B2yx9, scores_Byx9ff.softmax(3))
    return fine_B2yfxf.flatten(4).flatten(2, 3)
