"""Masks of padding, and what they hide.

Shape suffixes: B batch, M elements, C channels
"""

from typing import overload

import torch
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.eager import is_concrete


@overload
def to_bool_mask(mask: Tensor) -> Tensor: ...
@overload
def to_bool_mask(mask: Tensor | None) -> Tensor | None: ...


def to_bool_mask(mask: Tensor | None) -> Tensor | None:
    """Returns a mask as bool; 1 and 0, of any type, are True and False, as in the masks of tokenizers.

    Raises:
        PerceiversError: there are other numbers, such as those of a mask that is added to scores.
    """
    if mask is None or mask.dtype == torch.bool:
        return mask
    if is_concrete(mask) and not ((mask == 0) | (mask == 1)).all():
        found = f"a mask of {mask.dtype} has values other than 0 and 1"
        raise PerceiversError(f"{found}: give True or 1 for real elements, False or 0 for padding.")
    return mask.bool()


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Sets padded elements to 0; [B, M, ...], [B, M] -> [B, M, ...].

    Whatever padding holds, NaN included, then reaches neither a result nor a gradient.
    """
    return x if mask is None else x.masked_fill(~mask.view(*mask.shape, *[1] * (x.dim() - mask.dim())), 0)


def drop_trivial_mask(mask_BM: Tensor | None) -> Tensor | None:
    """Returns a mask, or None if it hides nothing."""
    return None if mask_BM is None or (is_concrete(mask_BM) and mask_BM.all()) else mask_BM
