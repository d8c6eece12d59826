"""Examples with class labels, which are read one at a time, and their classes."""

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch.utils.data import default_collate

from perceivers.data.loader import Samples
from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.files import resolve_inside


class Source(Protocol):
    """A source of examples, one at a time, by index."""

    def open(self, index: int) -> Any:
        """Returns the path or the content of a file, or the example itself."""

    def describe(self, index: int) -> str:
        """Returns the name of the example in messages: its file, or its row."""

    def checksum(self) -> str:
        """Returns a checksum of all contents or, of files, of their paths, sizes and times of change."""


@dataclass(frozen=True)
class Files:
    """Files by their paths."""

    paths: list[Path]

    def open(self, index: int) -> Path:
        return self.paths[index]

    def describe(self, index: int) -> str:
        return str(self.paths[index])

    def checksum(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            status = os.stat(path) if os.path.exists(path) else None
            digest.update(repr((str(path), status and (status.st_size, status.st_mtime_ns))).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Rows:
    """Encoded files in a column of a Hugging Face data set; `root` is its folder, None on the Hub."""

    table: Any
    column: str
    name: str
    root: Path | None = None

    def open(self, index: int) -> Any:
        entry = self.table[index][self.column] or {"bytes": None, "path": None}
        if entry["bytes"] is entry["path"] is None:
            raise PerceiversError(f"{self.describe(index)} has no file in column {self.column!r}.")
        if entry["bytes"] is not None:
            return io.BytesIO(entry["bytes"])
        path = str(entry["path"])
        return Path(path) if self.root is None else resolve_inside(self.root, path, self.describe(index))

    def describe(self, index: int) -> str:
        return f"row {index} of {self.name}"

    def checksum(self) -> str:
        digest = hashlib.sha256()
        for chunk in self.table.data.column(self.column).chunks:
            for buffer in filter(None, chunk.buffers()):
                digest.update(buffer)
        return digest.hexdigest()


@dataclass(frozen=True)
class Labeled:
    """Examples with class labels; subclasses define what they hold and how they are read.

    Attributes:
        classes: names of the classes.
        labels: class index of each example, or a tuple of indices where several classes can apply at once.
        source: the source of the examples.
        indices: their indices in the source.
    """

    noun: ClassVar[str]
    suffixes: ClassVar[frozenset[str]]
    features: ClassVar[tuple[str, ...]]
    """Types of columns of a Hugging Face data set that can hold such examples."""

    classes: list[str]
    labels: Sequence[Any]
    source: Source
    indices: Sequence[int]

    @classmethod
    def from_files(cls, paths: Sequence[str | Path]) -> Self:
        """Returns examples without classes, all with label 0."""
        return cls([], [0] * len(paths), Files([Path(path) for path in paths]), range(len(paths)))

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self, index: int) -> str:
        """Returns the name of an example in messages."""
        return self.source.describe(self.indices[index])

    def subset(self, indices: Sequence[int]) -> Self:
        """Returns some of the examples."""
        return replace(self, labels=[self.labels[i] for i in indices], indices=[self.indices[i] for i in indices])


class LabeledSamples(Samples):
    """Base of samples that are dicts; one that cannot be read has only a "problem" and is left out of its batch."""

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        good = [sample for sample in samples if "problem" not in sample]
        problems = [sample["problem"] for sample in samples if "problem" in sample]
        return {"problems": problems, **(default_collate(good) if good else {})}


L = TypeVar("L", bound=Labeled)


@dataclass(frozen=True)
class Splits(Generic[L]):
    """Examples for training and for evaluation."""

    training: L
    evaluation: L


def random_split(examples: L, fraction: float) -> Splits[L]:
    """Holds out a random fraction of the examples, the same one in every run."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    count = min(max(1, round(fraction * len(examples))), len(examples) - 1)
    return Splits(examples.subset(order[count:]), examples.subset(order[:count]))


def match_classes(examples: L, names: Sequence[str]) -> L:
    """Returns examples with the classes of a model, which are found by name.

    The data may have a subset of them. If the model's classes are only numbered, others of the same number are theirs,
    in order.

    Raises:
        PerceiversError: the model does not know a class that examples have.
    """
    is_known = set(examples.classes) <= set(names) or examples.classes == list(names)
    if not is_known and list(names) == [str(index) for index in range(len(names))]:
        if len(examples.classes) != len(names):
            raise PerceiversError(f"the data has {len(examples.classes)} classes, but the model knows {len(names)}.")
        return replace(examples, classes=list(names))
    indices = {name: index for index, name in enumerate(names)}
    used = {k for label in examples.labels for k in (label if isinstance(label, tuple) else (label,))}
    for name in (examples.classes[k] for k in sorted(used)):
        if name not in indices:
            raise PerceiversError(
                f"the data has the class {quote(name)}, which the model does not know: {did_you_mean(name, names)}"
            )
    new = [indices.get(name) for name in examples.classes]
    if examples.classes == list(names):  # some of which may share a name
        new = list(range(len(names)))
    labels = [tuple(new[k] for k in label) if isinstance(label, tuple) else new[label] for label in examples.labels]
    return replace(examples, classes=list(names), labels=labels)
