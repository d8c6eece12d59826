"""Masks: which elements are padding, and which inputs a query may read.

Shape suffixes: B batch, O queries, M elements or inputs, C channels
"""

import math
from typing import NamedTuple, overload

import torch
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.eager import is_concrete
from perceivers.model.ragged import find_examples


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


class SameExample(NamedTuple):
    """The mask of a ragged batch: a query reads the inputs of its own example.

    Queries and inputs of all examples lie one behind another, in arrays with a batch of 1.

    Attributes:
        query_offsets: [B + 1], index of the first query of each example, and the number of all queries.
        offsets: the same of inputs.
    """

    query_offsets: Tensor
    offsets: Tensor

    def to_mask(self, queries: int, inputs: int) -> Tensor:
        """Returns the mask of all pairs, [1, O, M]."""
        return (find_examples(self.query_offsets, queries)[:, None] == find_examples(self.offsets, inputs))[None]


PairMask = Tensor | SameExample
"""True where a query may read an input; [B or 1, O, M]."""


def window_mask(query_time_BO: Tensor, time_BM: Tensor, before: float = math.inf, after: float = math.inf) -> Tensor:
    """Returns a mask of pairs by time: a query reads inputs from `before` it to `after` it; -> [B, O, M].

    With `after=0` it is causal.

    Examples:
        >>> import torch
        >>> time = torch.tensor([[0.0, 1.0, 2.0]])
        >>> window_mask(time, time, before=1, after=0).int()
        tensor([[[1, 0, 0],
                 [1, 1, 0],
                 [0, 1, 1]]], dtype=torch.int32)
    """
    distance_BOM = time_BM[:, None] - query_time_BO[..., None]
    return (distance_BOM >= -before) & (distance_BOM <= after)


def combine_masks(mask_BM: Tensor | None, pair_mask: PairMask | None, queries: int, inputs: int) -> Tensor | None:
    """Returns the mask of pairs that both masks leave, [B or 1, O or 1, M]; None if there are none."""
    if isinstance(pair_mask, SameExample):
        pair_mask = pair_mask.to_mask(queries, inputs)
    if mask_BM is None or pair_mask is None:
        return pair_mask if mask_BM is None else mask_BM[:, None]
    return pair_mask & mask_BM[:, None]


def can_read(queries: int, mask_BM: Tensor | None, pair_mask: PairMask | None) -> Tensor | None:
    """Returns which queries may read any input, [B or 1, O or 1]; None if nothing is masked."""
    if isinstance(pair_mask, SameExample):
        return (pair_mask.offsets.diff() > 0)[find_examples(pair_mask.query_offsets, queries)][None]
    mask_BOM = combine_masks(mask_BM, pair_mask, queries, 0)
    return None if mask_BOM is None else mask_BOM.any(-1)
