"""Transfers the weights of a pretrained model to another one, as far as they fit."""

import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.positions import Positions

SHOWN = 8
"""Number of weights that a summary names in each of its lines."""


@dataclass
class Transfer:
    """The weights of a model by where their values come from; each with a note on why, or "".

    Attributes:
        taken: those of the pretrained model.
        resized: interpolated from those of the pretrained model, which belong to another grid.
        partial: those of the pretrained model in part; the rest is fresh, or left over.
        fresh: of a new model.
        left_over: weights of the pretrained model that the model does not have.
    """

    taken: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    partial: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    left_over: dict[str, str] = field(default_factory=dict)

    def describe(self, shown: int | None = SHOWN) -> list[str]:
        """Returns a line on the weights of each kind, which names up to `shown` of them, or all."""
        lines = [f"taken: {len(self.taken)} weights"]
        for name in ("resized", "partial", "fresh", "left_over"):
            if weights := getattr(self, name):
                lines.append(f"{name.replace('_', ' ')}: {join_names(weights, shown)}")
        return lines

    def warn(self, source: object) -> None:
        """Warns of weights that are not those of the pretrained model, if there are any."""
        if self.partial or self.fresh or self.left_over:
            warnings.warn(f"{source}: {'; '.join(self.describe()[1:])}.", stacklevel=3)

    def check_complete(self, source: object) -> None:
        """Raises a PerceiversError that names all weights that were not transferred, if there are any."""
        if self.partial or self.fresh or self.left_over:
            found = "; ".join(self.describe(None)[1:])
            raise PerceiversError(
                f"{source} does not have exactly the weights of this model ({found}): leave out model.strict."
            )


def join_names(weights: Mapping[str, str], shown: int | None) -> str:
    """Joins the names of weights, those with the same note before it."""
    names = list(weights)[:shown]
    parts = []
    for note in dict.fromkeys(weights[name] for name in names):
        same = ", ".join(name for name in names if weights[name] == note)
        parts.append(f"{same} ({note})" if note else same)
    more = len(weights) - len(names)
    return ", ".join(parts) + (f", and {more} more" if more else "")


@torch.no_grad()
def transfer_weights(pretrained: nn.Module, model: nn.Module) -> Transfer:
    """Copies the weights of a pretrained model to those of the same name in a model, as far as they fit.

    Weights of the same shape are copied as they are. Those that have something for each class, task or other name go
    by these names. Learned positions on a grid of several dimensions are interpolated, and Fourier positions keep their
    frequencies. Of other weights of another shape, such as the vectors of a longer text, what is common is copied.

    Returns:
        The names of weights by where their values come from.
    """
    old, new = dict(pretrained.state_dict()), model.state_dict()
    old_names, new_names = collect_index_names(pretrained), collect_index_names(model)
    found = Transfer()
    parts = dict(pretrained.named_modules())
    for prefix, part in model.named_modules():
        other = parts.get(prefix)
        if isinstance(part, Positions) and isinstance(other, type(part)):
            for name, tensor in part.adopt(other).items():
                found.resized[f"{prefix}.{name}"] = f"{join(part.grid)} instead of {join(other.grid)}"
                old[f"{prefix}.{name}"] = tensor
    for name, tensor in new.items():
        source = old.get(name)
        if source is None or source.dim() != tensor.dim():
            found.fresh[name] = ""
            continue
        if name in new_names:
            dim, names = new_names[name]
            pairs = match_names(old_names.get(name, (dim, ()))[1], names)
            if len(pairs) < len(names):
                note = describe_names(old_names.get(name, (dim, ()))[1], names)
                if not pairs:
                    found.fresh[name] = note
                    continue
                found.partial[name] = note
            target_index, source_index = (torch.tensor(index, dtype=torch.long) for index in zip(*pairs, strict=True))
            rows = tensor.index_select(dim, target_index)
            copy_common(source.index_select(dim, source_index), rows)
            tensor.index_copy_(dim, target_index, rows)
            shape = [*source.shape[:dim], len(names), *source.shape[dim + 1 :]]
        else:
            copy_common(source, tensor)
            shape = list(source.shape)
        if shape != list(tensor.shape):
            found.partial.setdefault(name, f"{join(source.shape)} to {join(tensor.shape)}")
        elif name not in found.partial and name not in found.resized:
            found.taken[name] = ""
    found.left_over = {name: "" for name in old if name not in new}
    return found


def copy_common(source: Tensor, target: Tensor) -> None:
    """Copies the elements whose indices both tensors have."""
    common = tuple(slice(min(sizes)) for sizes in zip(source.shape, target.shape, strict=True))
    target[common] = source[common].to(target)


def collect_index_names(model: nn.Module) -> dict[str, tuple[int, Sequence[Hashable]]]:
    """Returns what modules say in `index_names`, by the full name of the weight: a dimension, and names along it."""
    return {
        f"{prefix}.{name}".lstrip("."): names
        for prefix, module in model.named_modules()
        if hasattr(module, "index_names")
        for name, names in module.index_names().items()
    }


def match_names(old: Sequence[Hashable], new: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Returns the indices in `new` and in `old` of the names that both have."""
    indices = {name: index for index, name in enumerate(number_repeated(old))}
    return [(index, indices[name]) for index, name in enumerate(number_repeated(new)) if name in indices]


def number_repeated(names: Iterable[Hashable]) -> list[tuple[Hashable, int]]:
    """Returns names with the number of the same ones before each: ImageNet has two classes "crane"."""
    counts: Counter[Hashable] = Counter()
    numbered = []
    for name in names:
        numbered.append((name, counts[name]))
        counts[name] += 1
    return numbered


def describe_names(old: Sequence[Hashable], new: Sequence[Hashable]) -> str:
    """Describes what differs between names."""
    known = len(match_names(old, new))
    return f"{known} of {len(new)} kept" if known else f"{len(new)} instead of {len(old)}"


def join(shape: Iterable[int]) -> str:
    """Returns a shape as text."""
    return " x ".join(map(str, shape)) or "1"
