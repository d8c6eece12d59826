"""Video in and out: patches of space and time, and single pixels (section 4.3, tables 5 and 6).

Shape suffixes: B batch, C colors, T frames, Y rows, X columns; others as in `perceivers.model.adapter`
"""

from collections.abc import Sequence

from torch import Tensor

from perceivers.adapters.array import ArrayOutput, with_positions
from perceivers.adapters.image import scale_colors
from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, InputAdapter, InputArray, read_array
from perceivers.model.positions import Positions


class VideoInput(InputAdapter):
    """Frames cut into patches that span time and space, each with its position.

    Args:
        patch: frames, rows and columns of a patch.
        positions: position encoding of the patches.
        in_channels: C.

    Examples:
        >>> import torch
        >>> from perceivers import FourierPositions
        >>> video = VideoInput((1, 4, 4), FourierPositions((16, 56, 56), bands=32))  # 48 colors, 195 of the position
        >>> video(torch.rand(1, 16, 3, 224, 224)).x_BMC.shape
        torch.Size([1, 50176, 243])
    """

    def __init__(self, patch: Sequence[int], positions: Positions, in_channels: int = 3) -> None:
        super().__init__()
        self.patch = (patch[0], patch[1], patch[2])
        self.positions = positions
        self.in_channels = in_channels
        self.channels = in_channels * patch[0] * patch[1] * patch[2] + positions.channels

    def forward(self, data: Tensor | InputArray) -> InputArray:
        """Takes frames [B, T, C, Y, X] in [0, 1], or bytes in 0 ... 255; or `InputArray(frames, mask)`.

        The mask [B, T] says which frames are real; a patch with any of them is real.
        """
        data, mask_BT = read_array(data, channel_dims=3)
        if data.dim() != 5 or data.shape[2] != self.in_channels:
            raise PerceiversError(
                f"video of shape {tuple(data.shape)} was given, "
                f"but [batch, frames, {self.in_channels} colors, height, width] is expected."
            )
        time, height, width = self.patch
        if data.shape[1] % time or data.shape[3] % height or data.shape[4] % width:
            raise PerceiversError(
                f"a video of {data.shape[1]} frames of {data.shape[3]} x {data.shape[4]} pixels cannot be cut into "
                f"patches of {time} x {height} x {width}: cut or resize it to multiples of these."
            )
        video = scale_colors(data)
        patches = video.unflatten(4, (-1, width)).unflatten(3, (-1, height)).unflatten(1, (-1, time))
        patches = patches.permute(0, 1, 4, 6, 2, 5, 7, 3)  # B T Y X, and within a patch: time, height, width, C
        grid = tuple(patches.shape[1:4])
        mask_BM = None
        if mask_BT is not None:
            mask_BM = mask_BT.unflatten(1, (-1, time)).any(-1).repeat_interleave(grid[1] * grid[2], 1)
        return InputArray(with_positions(patches.flatten(4).flatten(1, 3), self.positions, grid), mask_BM, grid)


class VideoOutput(ArrayOutput):
    """The colors of every pixel of every frame, queried by its position.

    Args:
        positions: the queries, and by their grid the number of frames, rows and columns.
        in_channels: C.

    Examples:
        >>> import torch
        >>> from perceivers import FourierPositions, PerceiverIO
        >>> from perceivers.adapters import ArrayInput
        >>> output = VideoOutput(FourierPositions((4, 8, 8), bands=2))
        >>> model = PerceiverIO({"points": ArrayInput(2)}, {"video": output}, latents=4, channels=16, depth=1)
        >>> model({"points": torch.randn(1, 7, 2)})["video"].shape
        torch.Size([1, 4, 3, 8, 8])
    """

    def __init__(self, positions: Positions, in_channels: int = 3) -> None:
        super().__init__(in_channels, positions)

    def postprocess(self, y_BOE: Tensor, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        """Returns [B, T, C, Y, X], or [B, P, C] of some pixels."""
        video: Tensor = super().postprocess(y_BOE, encoded, indices)
        return video if indices is not None else video.movedim(-1, 2)
