"""Sound in and out: patches of raw samples (section 4.3, tables 5 and 6).

Shape suffixes: B batch, S samples; others as in `perceivers.model.adapter`
"""

from torch import Tensor

from perceivers.adapters.array import ArrayOutput, with_positions
from perceivers.model.adapter import Encoded, InputAdapter, InputArray
from perceivers.model.errors import PerceiversError
from perceivers.model.positions import Positions


class AudioInput(InputAdapter):
    """A mono recording cut into patches of samples, each with its position.

    Args:
        patch: samples of a patch.
        positions: encodes the places of the patches in time.
    """

    def __init__(self, patch: int, positions: Positions) -> None:
        super().__init__()
        self.patch = patch
        self.positions = positions
        self.channels = patch + positions.channels

    def forward(self, data: Tensor) -> InputArray:
        """Takes samples [B, S] in [-1, 1]."""
        if data.dim() != 2 or data.shape[1] % self.patch:
            raise PerceiversError(
                f"sound of shape {tuple(data.shape)} was given, "
                f"but [batch, samples] is expected, with samples a multiple of {self.patch}."
            )
        patches = data.float().unflatten(1, (-1, self.patch))
        grid = (patches.shape[1],)
        return InputArray(with_positions(patches, self.positions, grid), grid=grid)


class AudioOutput(ArrayOutput):
    """The samples of every patch, asked for with its position.

    Args:
        patch: samples of a patch.
        positions: the queries, and by their grid the number of patches.
    """

    def __init__(self, patch: int, positions: Positions) -> None:
        super().__init__(patch, positions)
        self.patch = patch

    def read(self, y_BOE: Tensor, encoded: Encoded, points: Tensor | None = None) -> Tensor:
        """-> samples [B, S], or [B, P, patch] of some patches."""
        return y_BOE if points is not None else y_BOE.flatten(1)
