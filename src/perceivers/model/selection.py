"""Selected elements of outputs: integer indices, real coordinates, or either of a ragged batch.

Shape suffixes as in `perceivers.model.adapter`
"""

import torch
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, Indices, OutputAdapter
from perceivers.model.arguments import check_coordinates, check_indices
from perceivers.model.eager import is_concrete
from perceivers.model.ragged import Ragged, check_offsets, find_examples


def check_selection(name: str, adapter: OutputAdapter, encoded: Encoded, indices: Indices | None) -> None:
    """Raises a PerceiversError unless an output has these indices or coordinates."""
    batch_size = encoded.latents.shape[0]
    what = f"indices of output {name!r}"
    if isinstance(indices, Ragged):
        if not adapter.takes_ragged:
            raise PerceiversError(
                f"the output {name!r} takes no ragged batch: give {what} as [P] or [{batch_size}, P]."
            )
        check_offsets(what, indices.offsets, len(indices.values), batch_size)
    values = indices.values if isinstance(indices, Ragged) else indices
    is_real = isinstance(values, Tensor) and values.is_floating_point()
    if adapter.coordinate_dims is not None and adapter.num_queries(encoded) == 0 and not is_real:
        raise PerceiversError(f"the output {name!r} has no grid: give real coordinates.")
    if values is None:
        return
    if is_real:
        what = f"coordinates of output {name!r}"
        if adapter.coordinate_dims is None:
            raise PerceiversError(f"the output {name!r} has no real coordinates: give integer indices of its elements.")
        is_batch = values.dim() == 3 and not isinstance(indices, Ragged)
        shape = [*([1 if len(values) == 1 else batch_size] if is_batch else []), *values.shape[-2:-1]]
        check_coordinates(what, values, shape, adapter.coordinate_dims)
        return
    check_indices(what, values, adapter.num_queries(encoded), None if isinstance(indices, Ragged) else batch_size)
    offsets = adapter.query_offsets(encoded)
    if indices is not None and offsets is not None and offsets.device.type == "cpu" and is_concrete(offsets):
        check_own_length(what, indices, offsets.diff())


def check_own_length(what: str, indices: Indices, length_B: Tensor) -> None:
    """Raises a PerceiversError if an example of a ragged batch has no element of some index."""
    if isinstance(indices, Ragged):
        bad = indices.values >= length_B[indices.examples()]
    else:
        bad = indices >= (length_B.min() if indices.dim() == 1 else length_B[:, None])
    if bad.any():
        raise PerceiversError(f"{what} are beyond the last element of some example: give those that all have.")


def query_offsets(adapter: OutputAdapter, encoded: Encoded, indices: Indices | None) -> Tensor | None:
    """Returns the offsets of the selected queries, [B + 1], or None if all examples have as many."""
    if indices is None:
        return adapter.query_offsets(encoded)
    return indices.offsets if isinstance(indices, Ragged) else None


def count_selected(adapter: OutputAdapter, encoded: Encoded, indices: Indices | None) -> int:
    """Returns the number of queries of each example, or of all examples of a ragged batch."""
    if indices is None:
        return adapter.num_queries(encoded)
    if isinstance(indices, Ragged):
        return len(indices.values)
    return indices.shape[-2] if indices.is_floating_point() else indices.shape[-1]


def enumerate_queries(count: int, offsets: Tensor | None, device: torch.device) -> Indices:
    """Returns the indices of all queries, [P], or of all those of each example of a ragged batch."""
    index_T = torch.arange(count, device=device)
    return index_T if offsets is None else Ragged(index_T - offsets[find_examples(offsets, count)], offsets)


def slice_selected(indices: Indices, start: int, stop: int) -> Indices:
    """Returns some of the selected elements of each example, or of all elements of a ragged batch."""
    if isinstance(indices, Ragged):
        return indices.slice(start, stop)
    return indices.narrow(-2 if indices.is_floating_point() else -1, start, stop - start)
