"""Several modalities as one array: different channels are padded to common ones (sections 3.2 and 4.3)."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from perceivers.model.adapter import module_key
from perceivers.model.linear import trunc_normal_parameter


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


def concatenate(arrays_BMC: list[Tensor], masks_BM: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Concatenates the elements of several arrays, and their masks if any has one."""
    if len(arrays_BMC) == 1:
        return arrays_BMC[0], masks_BM[0]
    if all(mask_BM is None for mask_BM in masks_BM):
        return torch.cat(arrays_BMC, 1), None
    masks_BM = [
        torch.ones(x_BMC.shape[:2], dtype=torch.bool, device=x_BMC.device) if mask_BM is None else mask_BM
        for x_BMC, mask_BM in zip(arrays_BMC, masks_BM, strict=True)
    ]
    return torch.cat(arrays_BMC, 1), torch.cat([mask_BM for mask_BM in masks_BM if mask_BM is not None], 1)
