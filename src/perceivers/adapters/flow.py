"""Optical flow: two frames in, how far each pixel of the first moves out (section 4.2, tables 5 and 6).

Shape suffixes: B batch, Y rows, X columns; others as in `perceivers.model.adapter`
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from perceivers.adapters.image import ImageInput, Patches
from perceivers.model.adapter import Encoded, InputAdapter, InputArray, OutputAdapter
from perceivers.model.errors import PerceiversError
from perceivers.model.positions import Positions


class FramePairInput(InputAdapter):
    """Two frames as one image of six colours: at every pixel the patches of both around it, and its position.

    Args:
        size: height and width of the frames in training, in pixels.
        positions: encodes the places of the pixels.
        patch: side of the patch around a pixel.
        channels: to how many channels both patches are projected.
    """

    def __init__(self, size: Sequence[int], positions: Positions, patch: int = 3, channels: int = 64) -> None:
        super().__init__()
        self.size = (size[0], size[1])
        features = Patches(patch, colours=6, channels=channels, overlapping=True)
        self.image = ImageInput(size, features, positions, mean=[0.5] * 6, std=[0.5] * 6)
        self.channels = self.image.channels

    def forward(self, data: Tensor) -> InputArray:
        """Takes frames [B, 2, 3, Y, X] in [0, 1], or bytes in 0 ... 255; they may be of any size."""
        if data.dim() != 5 or data.shape[1:3] != (2, 3):
            raise PerceiversError(
                f"frames of shape {tuple(data.shape)} were given, "
                f"but [batch, 2 frames, 3 colours, height, width] is expected."
            )
        return self.image(data.flatten(1, 2))


class FlowOutput(OutputAdapter):
    """The flow of every pixel, in pixels, asked for with what was read there: the input's own elements are the queries.

    Args:
        input: name of the input whose grid the flow has.
        scale: pixels of flow for a 1 of the last layer; 20 / 100 in the released model.
    """

    channels = 2

    def __init__(self, input: str, scale: float = 0.2) -> None:
        super().__init__()
        self.input = input
        self.scale = scale

    def connect(self, inputs: Mapping[str, InputAdapter]) -> None:
        if self.input not in inputs:
            raise PerceiversError(f"the flow is that of an input {self.input!r}, which the model does not have.")
        self.query_channels = inputs[self.input].channels

    def count(self, encoded: Encoded) -> int:
        return encoded.inputs[self.input].x_BMC.shape[1]

    def queries(self, encoded: Encoded, points: Tensor | None = None) -> Tensor:
        x_BMC = encoded.inputs[self.input].x_BMC
        if points is None:
            return x_BMC
        if points.dim() == 1:
            return x_BMC[:, points]
        return x_BMC.take_along_dim(points[..., None], 1)

    def read(self, y_BOE: Tensor, encoded: Encoded, points: Tensor | None = None) -> Tensor:
        """-> [B, 2, Y, X], or [B, P, 2] of some pixels: first to the right, then down."""
        flow_BO2 = y_BOE * self.scale
        grid = encoded.inputs[self.input].grid
        if points is not None or grid is None:
            return flow_BO2
        return flow_BO2.unflatten(1, grid).movedim(-1, 1)
