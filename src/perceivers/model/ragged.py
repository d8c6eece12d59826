"""Ragged batches: examples of different lengths one behind another, without padding.

Shape suffixes: B batch, T elements of all examples
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.eager import is_concrete


class Ragged(NamedTuple):
    """The arrays of a batch of examples, of different lengths, one behind another.

    A torch jagged tensor (`torch.nested.nested_tensor(..., layout=torch.jagged)`) can be given to a model instead.

    Attributes:
        values: [T, ...], the elements of all examples.
        offsets: [B + 1], integers: index of the first element of each example, and T.

    Examples:
        >>> import torch
        >>> batch = Ragged.stack([torch.zeros(2, 3), torch.ones(4, 3)])
        >>> batch.values.shape, batch.offsets
        (torch.Size([6, 3]), tensor([0, 2, 6]))
    """

    values: Tensor
    offsets: Tensor

    @classmethod
    def stack(cls, arrays: Sequence[Tensor]) -> "Ragged":
        """Makes a ragged batch of one array [M, ...] for each example."""
        lengths = torch.tensor([0, *map(len, arrays)], device=arrays[0].device)
        return cls(torch.cat(list(arrays)), lengths.cumsum(0))

    def unbind(self) -> list[Tensor]:
        """Returns the array of each example."""
        return list(self.values.split(self.offsets.diff().tolist()))

    def examples(self) -> Tensor:
        """Returns the example of each element, [T]."""
        return find_examples(self.offsets, self.values.shape[0])

    def slice(self, start: int, stop: int) -> "Ragged":
        """Returns some elements, which may be of several examples; the other examples are empty."""
        return Ragged(self.values[start:stop], self.offsets.clamp(start, stop) - start)


def find_examples(offsets: Tensor, count: int) -> Tensor:
    """Returns the example of each of the `count` elements of a ragged batch, [T]."""
    return torch.bucketize(torch.arange(count, device=offsets.device), offsets[1:], right=True)


def regular_offsets(batch_size: int, length: int, device: torch.device) -> Tensor:
    """Returns the offsets of examples of equal length one behind another, [B + 1]."""
    return torch.arange(batch_size + 1, device=device) * length


def to_ragged(data: Any) -> Any:
    """Returns a jagged tensor of torch as `Ragged`, and other data as it is."""
    if isinstance(data, Tensor) and data.is_nested and data.layout == torch.jagged:
        return Ragged(data.values(), data.offsets())  # type: ignore[attr-defined]
    return data


def check_offsets(what: str, offsets: Any, total: int, batch_size: int | None = None) -> None:
    """Raises a PerceiversError unless offsets increase from 0 to `total`, with one more than there are examples."""
    if not isinstance(offsets, Tensor) or offsets.is_floating_point() or offsets.dim() != 1 or len(offsets) < 2:
        found = f"of shape {list(offsets.shape)} and type {offsets.dtype}" if isinstance(offsets, Tensor) else offsets
        raise PerceiversError(f"the offsets of {what} are {found}: integers of shape [batch + 1] are expected.")
    if batch_size is not None and len(offsets) != batch_size + 1:
        raise PerceiversError(
            f"the offsets of {what} are of {len(offsets) - 1} examples, but the batch has {batch_size}."
        )
    if offsets.device.type == "cpu" and is_concrete(offsets):
        first, last = int(offsets[0]), int(offsets[-1])
        if first != 0 or last != total or bool((offsets.diff() < 0).any()):
            raise PerceiversError(
                f"the offsets of {what} go from {first} to {last}, but must increase from 0 to its {total} elements."
            )
