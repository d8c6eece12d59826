"""Parts of a model as modules that take and return tensors by name, which torch can trace.

Shape suffixes: B batch, N latents, D latent channels
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from perceivers.adapters.label import LabelOutput
from perceivers.errors import PerceiversError
from perceivers.export.arguments import (
    BATCH,
    CHECKED,
    TRACED,
    Argument,
    InputArguments,
    Size,
    choose_sizes,
    describe_input,
    draw_arguments,
    find_sizes,
    variable,
    with_mask,
)
from perceivers.model.adapter import Encoded
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text.task_output import TaskOutput

Part = Literal["model", "encode", "decode"]
LATENTS = "latents"


class Graph(nn.Module):
    """A part of a model that takes and returns tensors by name; this one is the base of all parts.

    Attributes:
        arguments: the tensors that it takes.
        points: of those, the indices or coordinates at which outputs are decoded, by output.
        columns: the columns that a model of a table predicts.
    """

    def __init__(self, model: PerceiverIO) -> None:
        super().__init__()
        self.model = model
        self.inputs = {name: describe(model, name) for name in model.inputs}
        self.arguments: list[Argument] = [argument for own in self.inputs.values() for argument in own.arguments]
        self.arguments += [Argument(f"{name}_hidden", (BATCH,), torch.bool) for name in model.maskable]
        self.points: dict[str, Argument] = {}
        self.columns = getattr(model, "output_columns", {})

    def draw(self, trial: int) -> dict[str, Tensor]:
        """Draws random arguments in the sizes of a trial, see `choose_sizes`."""
        return draw_arguments(self.arguments, choose_sizes(self.arguments, trial), trial)

    def encode(self, tensors: Mapping[str, Tensor]) -> Encoded:
        """Encodes the tensors of all inputs; those that `NAME_hidden` marks are replaced by the mask token."""
        data = {
            name: own.combine(*[tensors[argument.name] for argument in own.arguments])
            for name, own in self.inputs.items()
        }
        return self.model.encode(data, {name: tensors[f"{name}_hidden"][:, None] for name in self.model.maskable})

    def decode(self, encoded: Encoded, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Decodes all outputs, some of them at points; classes as probabilities, columns of tables in their units."""
        elements = {name: tensors[f"{name}_points"] if name in self.points else None for name in self.model.outputs}
        found: dict[str, Tensor] = {}
        for name, predicted in self.model.decode(encoded, elements, max_memory=None).items():
            adapter = self.model.outputs[name]
            if name in self.columns and name not in self.points:
                found[name] = self.columns[name].answer(predicted)
            elif isinstance(adapter, LabelOutput):
                found[name] = predicted.sigmoid() if adapter.multilabel else predicted.softmax(-1)
            elif isinstance(adapter, TaskOutput):
                for task, values in predicted.items():
                    found[f"{name}.{task}"] = values.softmax(-1) if values.shape[-1] > 1 else values
            else:
                found[name] = predicted
        return {f"{name}_output" if name in self.inputs else name: value for name, value in found.items()}


class ModelGraph(Graph):
    """A whole model: inputs -> outputs."""

    def __init__(self, model: PerceiverIO) -> None:
        super().__init__(model)
        encoded = self.encode(self.draw(TRACED))
        points = find_points(model, encoded)
        self.points = {name: point for name, point in points.items() if point.dtype.is_floating_point}
        self.arguments += self.points.values()

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Computes all elements of all outputs; those that have no grid, at points."""
        return self.decode(self.encode(tensors), tensors)


class EncodeGraph(Graph):
    """The encoder: inputs -> latents, and what outputs keep of the inputs."""

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns `latents`, and as `OUTPUT_context` the tensors that a `DecodeGraph` needs beside them."""
        encoded = self.encode(tensors)
        return {LATENTS: encoded.latents} | split_context(encoded.context)


class DecodeGraph(Graph):
    """The decoder: latents, context, and points of outputs that have many elements -> outputs."""

    def __init__(self, model: PerceiverIO) -> None:
        super().__init__(model)
        self.encoder_arguments = self.arguments
        known = find_sizes(self.arguments)
        trials = [choose_sizes(self.arguments, trial) for trial in CHECKED]
        encoded, other = (self.encode(draw_arguments(self.arguments, sizes)) for sizes in trials)
        first, second = split_context(encoded.context), split_context(other.context)
        self.context = {name: match(own, other.context[name], first, second) for name, own in encoded.context.items()}
        self.points = find_points(model, encoded)
        self.arguments = [Argument(LATENTS, (BATCH, *model.encoder.latents.shape))]
        for name, tensor in first.items():
            sizes = zip(tensor.shape, second[name].shape, strict=True)
            shape = tuple(find_size(f"{name}_{dim}", pair, known, trials) for dim, pair in enumerate(sizes))
            self.arguments.append(Argument(name, shape, tensor.dtype))
        self.arguments += self.points.values()

    def draw(self, trial: int) -> dict[str, Tensor]:
        sizes = choose_sizes([*self.encoder_arguments, *self.arguments], trial)
        encoded = self.encode(draw_arguments(self.encoder_arguments, sizes, trial))
        points = draw_arguments(find_points(self.model, encoded).values(), sizes, trial)
        return {LATENTS: encoded.latents} | split_context(encoded.context) | points

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Decodes outputs from what an `EncodeGraph` returns."""
        context = {
            name: tree_unflatten([read(tensors) for read in leaves], spec)
            for name, (leaves, spec) in self.context.items()
        }
        return self.decode(Encoded(tensors[LATENTS], context), tensors)


PARTS = {"model": ModelGraph, "encode": EncodeGraph, "decode": DecodeGraph}


def describe(model: PerceiverIO, name: str) -> InputArguments:
    """Returns the arguments of an input of a model; numbers of tables are standardized in the graph."""
    adapter = model.inputs[name]
    column = getattr(model, "input_columns", {}).get(name)  # of a TableModel, whose module needs the extra train
    if column is not None and column.kind == "number":
        return InputArguments([Argument(name, (BATCH,), torch.float64)], column.standardize)
    if column is not None and column.kind == "categories":
        indices = (BATCH, variable(name, "elements"))
        return with_mask(Argument(name, indices, torch.int64, len(column.names) + 1))
    return describe_input(adapter, name)


def split_context(context: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the tensors in `Encoded.context` by name: `OUTPUT_context`, with a number if an output has several."""
    found = {}
    for output, own in context.items():
        tensors = [leaf for leaf in tree_leaves(own) if isinstance(leaf, Tensor)]
        for number, tensor in enumerate(tensors, 1):
            found[f"{output}_context" + (f"_{number}" if len(tensors) > 1 else "")] = tensor
    return found


Reader = Callable[[Mapping[str, Tensor]], Any]


def match(
    own: Any, other: Any, first: Mapping[str, Tensor], second: Mapping[str, Tensor]
) -> tuple[list[Reader], TreeSpec]:
    """Returns the functions that make the leaves of an output's context from tensors by name, and its structure.

    A number that differs in another context is the size of some tensor of both.

    Args:
        own: the context of an output.
        other: the same for inputs of other sizes.
        first: the tensors in the whole of the one context, see `split_context`.
        second: those in the whole of the other.
    """
    (leaves, spec), others = tree_flatten(own), tree_leaves(other)
    names = {id(tensor): name for name, tensor in first.items()}
    readers: list[Reader] = []
    for leaf, value in zip(leaves, others, strict=True):
        if isinstance(leaf, Tensor):
            readers.append(partial(get_tensor, names[id(leaf)]))
        elif leaf == value:
            readers.append(partial(get_constant, leaf))
        else:
            sizes = ((name, dim) for name in first for dim in range(first[name].dim()))
            same = [(n, d) for n, d in sizes if (first[n].shape[d], second[n].shape[d]) == (leaf, value)]
            if not same:
                raise PerceiversError(f"decode cannot be exported: its context has {leaf!r}, the size of no tensor.")
            readers.append(partial(get_size, *same[0]))
    return readers, spec


def get_tensor(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns a tensor by its name."""
    return tensors[name]


def get_constant(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Returns a value, whatever the tensors are."""
    return value


def get_size(name: str, dim: int, tensors: Mapping[str, Tensor]) -> int:
    """Returns a size of a tensor."""
    return tensors[name].shape[dim]


def find_size(
    name: str, pair: tuple[int, int], known: Iterable[Size], trials: Sequence[Mapping[str, int]]
) -> int | Size:
    """Returns the number if both are equal; or the size that has these values in two trials, or a new one."""
    if pair[0] == pair[1]:
        return pair[0]
    same = (size for size in known if tuple(trial[size.name] for trial in trials) == pair)
    return next(same, Size(name))


def find_points(model: PerceiverIO, encoded: Encoded) -> dict[str, Argument]:
    """Returns the argument `OUTPUT_points` of each output that can be decoded at some of its elements.

    Points are indices of elements or, for an output without a grid, coordinates from -1 to 1.
    """
    found = {}
    for name, adapter in model.outputs.items():
        count = adapter.num_queries(encoded._replace(context=encoded.context[name]))
        shape = (BATCH, variable(name, "points"))
        if count == 0 and adapter.coordinate_dims is not None:
            found[name] = Argument(f"{name}_points", (*shape, adapter.coordinate_dims))
        elif count > 1 and not isinstance(adapter, TaskOutput) and not getattr(adapter, "upsampling", None):
            found[name] = Argument(f"{name}_points", shape, torch.int64, count)
    return found
