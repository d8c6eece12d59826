"""Series of numbers, in and out: patches of a normalized history, and the steps that follow it.

Shape suffixes: B batch, S steps, M patches; others as in `perceivers.model.adapter`
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from perceivers.adapters.set import select_elements
from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, InputAdapter, InputArray, OutputAdapter, read_array
from perceivers.model.linear import Linear
from perceivers.model.positions import FourierPositions, LearnedPositions

LEAST_SPREAD = 1e-2
"""Least standard deviation by which a history is divided."""


class SeriesInput(InputAdapter):
    """A series cut into patches of steps, each with its position, and with the level and spread of the whole series.

    The series is normalized by its own last value, the level, and its own standard deviation, the spread (Kim et al.,
    2022, "Reversible Instance Normalization").

    Args:
        length: number of steps, a multiple of `patch`.
        patch: steps in a patch.
        bands: number of frequencies of the Fourier positions.
        mean: by which the steps were standardized, for an output that is standardized by others.
        std: the same of the standard deviation.

    Examples:
        >>> import torch
        >>> SeriesInput(96, patch=8)(torch.randn(2, 96)).x_BMC.shape  # 8 steps, 17 of the position, level and spread
        torch.Size([2, 12, 27])
    """

    def __init__(self, length: int, patch: int, bands: int = 8, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        if length % patch:
            raise PerceiversError(
                f"a series of {length} steps cannot be cut into patches of {patch}: choose a divisor."
            )
        self.length, self.patch, self.mean, self.std = length, patch, mean, std
        self.positions = FourierPositions([length // patch], bands)
        self.channels = patch + self.positions.channels + 2

    def forward(self, data: Tensor | InputArray) -> InputArray:
        """Takes steps [B, S], or `InputArray(steps, mask)` for series that begin later."""
        step_BS, mask_BS = read_array(data)
        if step_BS.dim() != 2 or step_BS.shape[1] != self.length:
            raise PerceiversError(
                f"series of shape {tuple(step_BS.shape)} were given: [batch, {self.length}] is expected."
            )
        step_BS = step_BS.float()
        real_BS = torch.ones_like(step_BS) if mask_BS is None else mask_BS.float()
        level_B1 = step_BS[:, -1:]
        count_B1 = real_BS.sum(1, keepdim=True).clamp_min(1)
        mean_B1 = (step_BS * real_BS).sum(1, keepdim=True) / count_B1
        spread_B1 = (((step_BS - mean_B1) * real_BS).square().sum(1, keepdim=True) / count_B1).sqrt() + LEAST_SPREAD
        patches_BMP = ((step_BS - level_B1) * real_BS / spread_B1).unflatten(1, (-1, self.patch))
        position_MF = self.positions(device=step_BS.device)
        parts = [patches_BMP, position_MF.expand(len(step_BS), -1, -1)]
        parts += [value_B1[:, None].expand(-1, patches_BMP.shape[1], -1) for value_B1 in (level_B1, spread_B1)]
        mask_BM = None if mask_BS is None else mask_BS.unflatten(1, (-1, self.patch)).any(-1)
        return InputArray(torch.cat(parts, -1), mask_BM)


class SeriesOutput(OutputAdapter):
    """The steps that follow an input series, queried in patches by their position and by the history.

    The query of a patch is a learned vector plus a linear map of the normalized history; with it, the model has the
    linear forecast as a special case, and attention adds to it.

    Args:
        input: name of the input that is a `SeriesInput`.
        length: number of steps, a multiple of `patch`.
        patch: steps in a patch.
        channels: Q of the queries.
        mean: by which the steps to predict are standardized.
        std: the same of the standard deviation.

    Examples:
        >>> import torch
        >>> from perceivers import PerceiverIO
        >>> from perceivers.adapters import SeriesInput
        >>> inputs, outputs = {"past": SeriesInput(96, 8)}, {"next": SeriesOutput("past", 24, 8, channels=16)}
        >>> model = PerceiverIO(inputs, outputs, latents=4, channels=16, depth=1)
        >>> model({"past": torch.randn(2, 96)})["next"].shape
        torch.Size([2, 24])
    """

    def __init__(self, input: str, length: int, patch: int, channels: int, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        if length % patch:
            raise PerceiversError(f"{length} steps cannot be predicted in patches of {patch}: choose a divisor.")
        self.input, self.length, self.patch, self.mean, self.std = input, length, patch, mean, std
        self.channels: int = patch
        self.query_channels: int = channels

    def bind_inputs(self, inputs: Mapping[str, InputAdapter]) -> None:
        history = inputs.get(self.input)
        if not isinstance(history, SeriesInput):
            raise PerceiversError(f"a series output needs an input {self.input!r} that is a series: name that one.")
        self.history_patch = history.patch
        self.scale, self.shift = history.std / self.std, (history.mean - self.mean) / self.std
        patches = self.length // self.patch
        self.positions = LearnedPositions([patches], self.query_channels)
        self.linear = Linear(history.length, patches * self.query_channels)

    def context(self, inputs: Mapping[str, InputArray]) -> Tensor:
        """Keeps the patches of the history."""
        return inputs[self.input].x_BMC

    def num_queries(self, encoded: Encoded) -> int:
        return self.length // self.patch

    def queries(self, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        history_BS = encoded.context[..., : self.history_patch].flatten(1).to(self.linear.weight.dtype)
        query_BOQ = self.linear(history_BS).unflatten(1, (self.num_queries(encoded), -1)) + self.positions.table_SF
        return select_elements(query_BOQ, indices)

    def postprocess(self, y_BOE: Tensor, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        """Returns the steps [B, S], or those of patches [B, P, patch] at indices, standardized by `mean` and `std`."""
        level_B11, spread_B11 = encoded.context[:, -1:, -2:].float().split(1, -1)  # the first patch may be padding
        step_BOE = (y_BOE.float() * spread_B11 + level_B11) * self.scale + self.shift
        return step_BOE.flatten(1) if indices is None else step_BOE
