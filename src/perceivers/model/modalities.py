"""Several modalities as one array: different channels are padded to common ones (sections 3.2 and 4.3)."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputArray, module_key
from perceivers.model.arguments import check_names, check_pair_mask
from perceivers.model.linear import trunc_normal_parameter
from perceivers.model.ragged import find_examples, regular_offsets


class ModalityPadding(nn.Module):
    """Pads the arrays of each modality to common channels with a learned vector, which also tells modalities apart.

    A single modality is not padded. Hidden elements are replaced, after padding, by their modality's mask token.

    Args:
        channels: channels of each modality, by name.
        min_channels: minimum channels of the learned vectors: the widest modality is padded by as many.
        maskable: modalities that have a mask token.

    Attributes:
        channels: channels of every array after padding.
    """

    def __init__(self, channels: Mapping[str, int], min_channels: int, maskable: Iterable[str] = ()) -> None:
        super().__init__()
        self.channels = max(channels.values()) + (min_channels if len(channels) > 1 else 0)
        missing = {module_key(name): self.channels - count for name, count in channels.items()}
        self.vectors = nn.ParameterDict({key: trunc_normal_parameter(count) for key, count in missing.items() if count})
        self.masks = nn.ParameterDict({module_key(name): trunc_normal_parameter(self.channels) for name in maskable})

    def index_names(self) -> dict[str, tuple[int, range]]:
        """Returns the indices of the common channels that each vector fills."""
        return {f"vectors.{key}": (0, range(self.channels - len(v), self.channels)) for key, v in self.vectors.items()}

    def forward(self, name: str, x_BMC: Tensor, hidden_BM: Tensor | None = None) -> Tensor:
        """[B, M, channels of this modality] -> [B, M, common channels]."""
        key = module_key(name)
        if key in self.vectors:
            vector_C = self.vectors[key].to(x_BMC.dtype)
            x_BMC = torch.cat([x_BMC, vector_C.expand(*x_BMC.shape[:-1], -1)], -1)
        if hidden_BM is not None:
            x_BMC = torch.where(hidden_BM[..., None], self.masks[key].to(x_BMC.dtype), x_BMC)
        return x_BMC


def concatenate(arrays: Sequence[InputArray]) -> InputArray:
    """Concatenates the elements of several arrays, with their masks if any has one, and coordinates if all have.

    Raises:
        PerceiversError: some are ragged and others padded.
    """
    if len(arrays) == 1:
        return arrays[0]
    coordinates_BMG = None
    if all(array.coordinates_BMG is not None for array in arrays):
        coordinates_BMG = [array.coordinates_BMG for array in arrays if array.coordinates_BMG is not None]
    if any(array.offsets is not None for array in arrays):
        return concatenate_ragged(arrays, coordinates_BMG)
    x_BMC = torch.cat([array.x_BMC for array in arrays], 1)
    masks_BM = None
    if any(array.mask_BM is not None for array in arrays):
        masks_BM = torch.cat([mask_or_ones(array) for array in arrays], 1)
    return InputArray(x_BMC, masks_BM, None, None if coordinates_BMG is None else torch.cat(coordinates_BMG, 1))


def mask_or_ones(array: InputArray) -> Tensor:
    """Returns the mask of an array, or one of ones."""
    x_BMC, mask_BM = array.x_BMC, array.mask_BM
    return torch.ones(x_BMC.shape[:2], dtype=torch.bool, device=x_BMC.device) if mask_BM is None else mask_BM


def concatenate_ragged(arrays: Sequence[InputArray], coordinates_BMG: list[Tensor] | None) -> InputArray:
    """Concatenates arrays, some of them ragged: the elements of each example lie behind another."""
    if any(array.mask_BM is not None for array in arrays):
        raise PerceiversError("some inputs are ragged and others padded: give all inputs without padding.")
    offsets = [offsets_of(array) for array in arrays]
    example_T = torch.cat(
        [find_examples(offset, array.x_BMC.shape[:2].numel()) for offset, array in zip(offsets, arrays, strict=True)]
    )
    order_T = example_T.argsort(stable=True)

    def gather(parts: Iterable[Tensor]) -> Tensor:
        return torch.cat([part.flatten(0, 1) for part in parts])[order_T][None]

    coordinates_1TG = None if coordinates_BMG is None else gather(coordinates_BMG)
    return InputArray(gather(array.x_BMC for array in arrays), None, None, coordinates_1TG, torch.stack(offsets).sum(0))


def offsets_of(array: InputArray) -> Tensor:
    """Returns the offsets of an array, [B + 1]; those of one that is not ragged are multiples of its length."""
    if array.offsets is not None:
        return array.offsets
    count, length, _ = array.x_BMC.shape
    return regular_offsets(count, length, array.x_BMC.device)


def concatenate_masks(
    inputs: Mapping[str, InputArray], masks: Mapping[str, Tensor] | None, num_latents: int
) -> Tensor | None:
    """Returns which latents may read which elements of all inputs, [B, N, M], from the masks of some inputs.

    Raises:
        PerceiversError: a mask belongs to no input or does not fit it, or an input is ragged.
    """
    if not masks:
        return None
    check_names("input", masks, inputs)
    parts = []
    for name, array in inputs.items():
        if array.offsets is not None:
            raise PerceiversError(f"input_masks are not defined for ragged inputs, such as {name!r}: pad them.")
        count, length, _ = array.x_BMC.shape
        mask = masks.get(name)
        if mask is None:
            mask = torch.ones(1, num_latents, length, dtype=torch.bool, device=array.x_BMC.device)
        check_pair_mask(f"the mask of input {name!r}", mask, count, num_latents, length)
        parts.append(mask.expand(count, -1, length))
    return torch.cat(parts, 2)
