"""The elements of an output that are decoded: all, or those at integer indices or real coordinates, ragged or not.

Shape suffixes as in `perceivers.model.adapter`
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, Indices, OutputAdapter
from perceivers.model.arguments import check_coordinates, check_indices, check_pair_mask
from perceivers.model.eager import is_concrete
from perceivers.model.ragged import Ragged, check_offsets, find_examples, to_ragged


class Selection(NamedTuple):
    """Elements of an output to decode.

    Attributes:
        indices: indices or coordinates; None for all elements.
        num_queries: number of elements of each example, or of all examples of a ragged batch.
        offsets: [B + 1] if they are ragged.
        mask: which latents each query may read, [B or 1, P, N]; None for all.
    """

    indices: Indices | None
    num_queries: int
    offsets: Tensor | None = None
    mask: Tensor | None = None

    def split(self, size: int, device: torch.device) -> list["Selection"]:
        """Splits the elements into chunks."""
        indices = self.indices
        if indices is None:
            indices = torch.arange(self.num_queries, device=device)
            if self.offsets is not None:
                indices = Ragged(indices - self.offsets[find_examples(self.offsets, self.num_queries)], self.offsets)
        chunks = []
        for start in range(0, self.num_queries, size):
            stop = min(start + size, self.num_queries)
            mask = None if self.mask is None else self.mask[:, start:stop]
            if isinstance(indices, Ragged):
                part: Indices = indices.slice(start, stop)
            else:
                part = indices.narrow(-2 if indices.is_floating_point() else -1, start, stop - start)
            chunks.append(Selection(part, stop - start, part.offsets if isinstance(part, Ragged) else None, mask))
        return chunks


def select(name: str, adapter: OutputAdapter, encoded: Encoded, indices: Any, mask: Any) -> Selection:
    """Checks what is to be decoded of an output.

    Raises:
        PerceiversError: the output has no such elements, or the mask does not fit them.
    """
    indices, batch_size, what = to_ragged(indices), encoded.latents.shape[0], f"indices of output {name!r}"
    total, offsets = adapter.num_queries(encoded), adapter.query_offsets(encoded)
    values = indices.values if isinstance(indices, Ragged) else indices
    is_real = isinstance(values, Tensor) and values.is_floating_point()
    if isinstance(indices, Ragged):
        if not adapter.takes_ragged:
            raise PerceiversError(f"the output {name!r} takes no ragged batch: give indices [P] or [{batch_size}, P].")
        check_offsets(what, indices.offsets, len(indices.values), batch_size)
    if adapter.coordinate_dims is not None and total == 0 and not is_real:
        raise PerceiversError(f"the output {name!r} has no grid: give real coordinates.")
    if is_real:
        if adapter.coordinate_dims is None:
            raise PerceiversError(f"the output {name!r} has no real coordinates: give integer indices of its elements.")
        is_batch = values.dim() == 3 and not isinstance(indices, Ragged)
        shape = [*([1 if len(values) == 1 else batch_size] if is_batch else []), *values.shape[-2:-1]]
        check_coordinates(f"coordinates of output {name!r}", values, shape, adapter.coordinate_dims)
    elif values is not None:
        check_indices(what, values, total, None if isinstance(indices, Ragged) else batch_size)
        if offsets is not None:
            check_own_length(what, indices, offsets)
    if values is not None:
        total = values.shape[-2 if is_real else -1]
        offsets = indices.offsets if isinstance(indices, Ragged) else None
    if mask is not None:
        if offsets is not None:
            raise PerceiversError(f"masks are not defined for a ragged output, such as {name!r}: pad its queries.")
        check_pair_mask(f"the mask of output {name!r}", mask, batch_size, total, encoded.latents.shape[1])
    return Selection(indices, total, offsets, mask)


def check_own_length(what: str, indices: Indices, offsets: Tensor) -> None:
    """Raises a PerceiversError if an example of a ragged batch has no element of some index."""
    if offsets.device.type != "cpu" or not is_concrete(offsets):
        return
    length_B = offsets.diff()
    if isinstance(indices, Ragged):
        bad = indices.values >= length_B[indices.examples()]
    else:
        bad = indices >= (length_B.min() if indices.dim() == 1 else length_B[:, None])
    if bad.any():
        raise PerceiversError(f"{what} are beyond the last element of some example: give those that all have.")
