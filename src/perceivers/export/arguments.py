"""The inputs of an exported graph: tensors by name, some of whose sizes are variable.

`describe_input` finds them by the class of an input adapter; `describe_input.register` adds adapters of other packages.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perceivers.adapters.array import ArrayInput
from perceivers.adapters.audio import AudioInput, ConvAudioInput, MelInput
from perceivers.adapters.category import CategoryInput
from perceivers.adapters.image import ImageInput
from perceivers.adapters.label import LabelInput
from perceivers.adapters.number import NumberInput
from perceivers.adapters.series import SeriesInput
from perceivers.adapters.text import TextInput
from perceivers.adapters.video import VideoInput
from perceivers.adapters.words import WordInput
from perceivers.errors import PerceiversError
from perceivers.flow.adapter import FramePairInput
from perceivers.model.adapter import InputArray

TRACED, CHECKED, LARGEST = 0, (1, 2), 3
"""Trials: the sizes with which a graph is traced, those with which its file is checked, and those to measure speed."""

BATCHES, ELEMENTS = (3, 1, 2, 1), (5, 7, 67, 2048)
"""Batch size, and least number of elements, of each trial."""


class Size(NamedTuple):
    """A variable size of an argument, at most `most`."""

    name: str
    most: int | None = None


BATCH = Size("batch")


@dataclass(frozen=True)
class Argument:
    """An input of a graph.

    Attributes:
        name: its name.
        shape: its sizes.
        dtype: integers are from 0, real numbers random from -1 to 1.
        below: what integers are below.
    """

    name: str
    shape: tuple[int | Size, ...]
    dtype: torch.dtype = torch.float32
    below: int = 2

    def draw(self, sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
        """Draws a random example; in masks, the first element is True."""
        shape = [size if isinstance(size, int) else sizes[size.name] for size in self.shape]
        if self.dtype.is_floating_point:
            return torch.rand(shape, generator=generator, dtype=self.dtype) * 2 - 1
        values = torch.randint(self.below, shape, generator=generator).to(self.dtype)
        if self.dtype == torch.bool and len(shape) > 1:
            values[:, 0] = True
        return values


class InputArguments(NamedTuple):
    """The arguments of an input, and the function that makes of their tensors what the input's adapter takes."""

    arguments: Sequence[Argument]
    combine: Callable[..., Any] = lambda tensor: tensor


@singledispatch
def describe_input(adapter: Any, name: str) -> InputArguments:
    """Returns the arguments of an input by its adapter; raises a PerceiversError for adapters of unknown classes."""
    raise PerceiversError(
        f"the input {name!r} cannot be exported: nothing tells the shape of what a {type(adapter).__name__} takes; "
        f"register it with perceivers.export.arguments.describe_input."
    )


def variable(name: str, kind: str, most: int | None = None) -> Size | int:
    """Returns the variable number of elements of an input or output; 1 if there can be only one."""
    return 1 if most == 1 else Size(re.sub(r"\W", "_", f"{name}_{kind}"), most)


def with_mask(array: Argument, mask_dims: int = 2) -> InputArguments:
    """Returns the arguments of an array and of its mask, `NAME_mask`: True for real elements."""
    mask = Argument(f"{array.name}_mask", array.shape[:mask_dims], torch.bool)
    return InputArguments([array, mask], InputArray)


@describe_input.register
def _(adapter: ImageInput, name: str) -> InputArguments:
    return InputArguments([Argument(name, (BATCH, adapter.in_channels, *adapter.size), torch.uint8, 256)])


@describe_input.register
def _(adapter: FramePairInput, name: str) -> InputArguments:
    return InputArguments([Argument(name, (BATCH, 2, 3, *adapter.size), torch.uint8, 256)])


@describe_input.register
def _(adapter: VideoInput, name: str) -> InputArguments:
    time, *sides = (count * size for count, size in zip(adapter.positions.grid, adapter.patch, strict=True))
    return InputArguments([Argument(name, (BATCH, time, adapter.in_channels, *sides), torch.uint8, 256)])


@describe_input.register(AudioInput)
@describe_input.register(ConvAudioInput)
def _(adapter: AudioInput | ConvAudioInput, name: str) -> InputArguments:
    return InputArguments([Argument(name, (BATCH, adapter.positions.grid[0] * adapter.patch))])


@describe_input.register
def _(adapter: MelInput, name: str) -> InputArguments:
    return InputArguments([Argument(name, (BATCH, adapter.positions.grid[0] * adapter.patch[0] * adapter.hop))])


@describe_input.register
def _(adapter: LabelInput, name: str) -> InputArguments:
    return InputArguments([Argument(name, (BATCH,), torch.int64, adapter.channels)])


@describe_input.register
def _(adapter: CategoryInput, name: str) -> InputArguments:
    return InputArguments([Argument(name, (BATCH,), torch.int64, adapter.embedding.num_embeddings)])


@describe_input.register
def _(adapter: NumberInput, name: str) -> InputArguments:
    return InputArguments([Argument(name, (BATCH,))])


@describe_input.register
def _(adapter: SeriesInput, name: str) -> InputArguments:
    return with_mask(Argument(name, (BATCH, adapter.length)))


@describe_input.register
def _(adapter: TextInput, name: str) -> InputArguments:
    tokens = variable(name, "tokens", adapter.length)
    return with_mask(Argument(name, (BATCH, tokens), torch.int64, adapter.embedding.num_embeddings))


@describe_input.register
def _(adapter: WordInput, name: str) -> InputArguments:
    shape = (BATCH, variable(name, "words", adapter.length), variable(name, "hashes"))
    return with_mask(Argument(name, shape, torch.int64, adapter.embedding.num_embeddings))


@describe_input.register
def _(adapter: ArrayInput, name: str) -> InputArguments:
    positions, channels = adapter.positions, adapter.data_channels
    if positions is not None and positions.grid:
        return InputArguments([Argument(name, (BATCH, *positions.grid, channels))])
    array, mask = with_mask(Argument(name, (BATCH, variable(name, "elements"), channels))).arguments
    if positions is None:
        return InputArguments([array, mask], InputArray)
    coordinates = Argument(f"{name}_coordinates", (*array.shape[:2], positions.dimensions or 0))
    return InputArguments([array, mask, coordinates], lambda x, real, where: InputArray(x, real, None, where))


def find_sizes(arguments: Iterable[Argument]) -> list[Size]:
    """Returns the variable sizes of arguments, each once."""
    return list(dict.fromkeys(size for argument in arguments for size in argument.shape if isinstance(size, Size)))


def choose_sizes(arguments: Iterable[Argument], trial: int) -> dict[str, int]:
    """Returns values of all variable sizes in a trial, different from each other unless their maximum is lower."""
    sizes = {BATCH.name: BATCHES[trial]}
    for index, size in enumerate(size for size in find_sizes(arguments) if size != BATCH):
        sizes[size.name] = int(min(ELEMENTS[trial] + 2 * index, size.most or math.inf))
    return sizes


def draw_arguments(arguments: Iterable[Argument], sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
    """Draws random values of all arguments, by name."""
    generator = torch.Generator().manual_seed(seed)
    return {argument.name: argument.draw(sizes, generator) for argument in arguments}
