"""Several modalities as one: arrays of different channels padded to common channels (sections 3.2 and 4.3)."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from perceivers.errors import PerceiversError, did_you_mean
from perceivers.model.linear import trunc_normal_parameter


class Padding(nn.Module):
    """Pads the arrays of each modality to common channels with a learned vector, which also tells modalities apart.

    A single modality is left as it is. Elements that are to be kept from the model are replaced, after padding, by
    the mask vector of their modality.

    Args:
        channels: the channels of each modality, by name.
        minimum: the fewest channels of the learned vectors: the widest modality is padded by as many.
        maskable: modalities that have a mask vector.

    Attributes:
        common: the channels of every array after padding.
    """

    def __init__(self, channels: Mapping[str, int], minimum: int, maskable: Iterable[str] = ()) -> None:
        super().__init__()
        self.common = max(channels.values()) + (minimum if len(channels) > 1 else 0)
        self.vectors = nn.ParameterDict(
            {
                name: trunc_normal_parameter(self.common - count)
                for name, count in channels.items()
                if self.common > count
            }
        )
        self.masks = nn.ParameterDict({name: trunc_normal_parameter(self.common) for name in maskable})

    def forward(self, name: str, x_BMC: Tensor, masked_BM: Tensor | None = None) -> Tensor:
        """[B, M, channels of this modality] -> [B, M, common channels]."""
        if name in self.vectors:
            vector_C = self.vectors[name].to(x_BMC.dtype)
            x_BMC = torch.cat([x_BMC, vector_C.expand(*x_BMC.shape[:-1], -1)], -1)
        if masked_BM is not None:
            x_BMC = torch.where(masked_BM[..., None], self.masks[name].to(x_BMC.dtype), x_BMC)
        return x_BMC


def concatenate(arrays_BMC: list[Tensor], masks_BM: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """One array of the elements of all, and their mask if any has one."""
    if len(arrays_BMC) == 1:
        return arrays_BMC[0], masks_BM[0]
    if all(mask_BM is None for mask_BM in masks_BM):
        return torch.cat(arrays_BMC, 1), None
    masks_BM = [
        torch.ones(x_BMC.shape[:2], dtype=torch.bool, device=x_BMC.device) if mask_BM is None else mask_BM
        for x_BMC, mask_BM in zip(arrays_BMC, masks_BM, strict=True)
    ]
    return torch.cat(arrays_BMC, 1), torch.cat([mask_BM for mask_BM in masks_BM if mask_BM is not None], 1)


def check_new_names(names: Mapping[str, object]) -> None:
    """Raises a PerceiversError for a name that torch cannot give to a submodule."""
    for name in names:
        if not name or "." in name or hasattr(nn.ModuleDict, name) or hasattr(nn.ModuleDict(), name):
            raise PerceiversError(f"{name!r} cannot be the name of an input or output: torch uses it; choose another.")


def check_names(kind: str, given: Mapping[str, object], known: nn.ModuleDict, all_needed: bool) -> None:
    """Raises a PerceiversError if `given` names an input or output that is not known, or leaves one out."""
    for name in given:
        if name not in known:
            raise PerceiversError(f"the model has no {kind} {name!r}: {did_you_mean(name, known)}")
    for name in known:
        if all_needed and name not in given:
            raise PerceiversError(f"the {kind} {name!r} is missing: the model takes {', '.join(known)}.")


def check_masked(masked: Mapping[str, object], padding: Padding) -> None:
    """Raises a PerceiversError if `masked` names an input that has no mask vector."""
    for name in masked:
        if name not in padding.masks:
            can = ", ".join(padding.masks) or "none"
            raise PerceiversError(f"the input {name!r} cannot be masked: build the model with it in maskable ({can}).")
