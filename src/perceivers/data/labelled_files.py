"""Files or rows with class labels, whatever they hold: a folder for each class, or a Hugging Face data set."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch

from perceivers.errors import PerceiversError, did_you_mean

TRAINING_NAMES = ("train", "training")
EVALUATION_NAMES = ("validation", "val", "valid", "dev", "test")


class Source(Protocol):
    """Where examples come from, one at a time, by index."""

    def open(self, index: int) -> Any:
        """A file's path or content, or the example itself."""

    def describe(self, index: int) -> str:
        """Names the example in a message: its file, or its row."""


@dataclass(frozen=True)
class Files:
    """Files."""

    paths: list[Path]

    def open(self, index: int) -> Path:
        return self.paths[index]

    def describe(self, index: int) -> str:
        return str(self.paths[index])


@dataclass(frozen=True)
class Rows:
    """Encoded files in a column of a Hugging Face data set."""

    table: Any
    column: str
    name: str

    def open(self, index: int) -> Any:
        entry = self.table[index][self.column]
        return entry["path"] if entry["bytes"] is None else io.BytesIO(entry["bytes"])

    def describe(self, index: int) -> str:
        return f"row {index} of {self.name}"


@dataclass(frozen=True)
class Labelled:
    """Examples with class labels; what they hold and how they are read says the subclass.

    Attributes:
        classes: names of the classes.
        labels: class index of each example; where several can apply at once, a tuple of them.
        source: where the examples come from.
        indices: their indices there.
    """

    noun: ClassVar[str]
    suffixes: ClassVar[frozenset[str]]
    features: ClassVar[tuple[str, ...]]
    """Types of a Hugging Face data set's column that can hold such examples."""

    classes: list[str]
    labels: Sequence[Any]
    source: Source
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self, index: int) -> str:
        """Names an example in a message."""
        return self.source.describe(self.indices[index])

    def part(self, indices: Sequence[int]) -> Self:
        """Some of the examples."""
        return replace(self, labels=[self.labels[i] for i in indices], indices=[self.indices[i] for i in indices])


L = TypeVar("L", bound=Labelled)


@dataclass(frozen=True)
class Splits(Generic[L]):
    """The examples to train on and those to evaluate on."""

    training: L
    evaluation: L


def open_splits(
    kind: type[L],
    path: str,
    held_out: float,
    column: str | None = None,
    label_column: str | None = None,
    held_out_where: Mapping[str, Any] | None = None,
) -> Splits[L]:
    """Finds examples of a kind.

    Args:
        kind: of the examples.
        path: a folder with a folder for each class, directly or under train/ and val/; a folder of parquet files; or
            the name of a data set on the hub.
        held_out: part of the examples to evaluate on where there is no split for that.
        column: of a Hugging Face data set, that holds the examples; found by its type, if not given.
        label_column: that holds the labels; likewise.
        held_out_where: columns and their values of the rows to evaluate on, in place of its splits.

    Raises:
        PerceiversError: there are none, or only one class.
    """
    if Path(path).is_file():
        raise PerceiversError(f"data.path = {path} is a file: give the folder that holds the {kind.noun}s.")
    is_folder = Path(path).exists() and next(Path(path).rglob("*.parquet"), None) is None
    if is_folder and held_out_where:
        raise PerceiversError(f"data.held_out_where is for data sets with columns, but {path} is a folder of files.")
    if is_folder:
        splits = folder_splits(kind, Path(path), held_out)
    else:
        splits = hub_splits(kind, path, held_out, column, label_column, held_out_where)
    if len(splits.training.classes) < 2:
        raise PerceiversError(
            f"{path} has only the class {splits.training.classes[0]!r}: a classifier needs at least two."
        )
    return splits


def hold_out(examples: L, part: float) -> Splits[L]:
    """Divides examples at random, always the same way."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    count = max(1, round(part * len(examples)))
    return Splits(examples.part(order[count:]), examples.part(order[:count]))


def folder_splits(kind: type[L], root: Path, held_out: float) -> Splits[L]:
    """Splits of a folder of files."""
    training = next((root / name for name in TRAINING_NAMES if (root / name).is_dir()), None)
    evaluation = next((root / name for name in EVALUATION_NAMES if (root / name).is_dir()), None)
    if training is None:
        return hold_out(labelled_folder(kind, root), held_out)
    examples = labelled_folder(kind, training)
    if evaluation is None:
        return hold_out(examples, held_out)
    return Splits(examples, labelled_folder(kind, evaluation, examples.classes))


def labelled_folder(kind: type[L], root: Path, classes: list[str] | None = None) -> L:
    """A folder of files for each class, its name the class.

    Raises:
        PerceiversError: there are no files, or a class that is not among `classes`.
    """
    found = {
        folder.name: sorted(file for file in folder.rglob("*") if file.suffix.lower() in kind.suffixes)
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }
    found = {name: files for name, files in found.items() if files}
    if not found:
        raise PerceiversError(f"{root} has no {kind.noun}s: a folder of {kind.noun}s for each class is expected in it.")
    names = list(found) if classes is None else classes
    unknown = [name for name in found if name not in names]
    if unknown:
        raise PerceiversError(f"{root / unknown[0]} is a class that the training {kind.noun}s do not have.")
    files = [file for paths in found.values() for file in paths]
    labels = [names.index(name) for name, paths in found.items() for _ in paths]
    return kind(names, labels, Files(files), range(len(files)))


def hub_splits(
    kind: type[L],
    name: str,
    held_out: float,
    column: str | None,
    label_column: str | None,
    held_out_where: Mapping[str, Any] | None,
) -> Splits[L]:
    """Splits of a Hugging Face data set, from the hub or a local folder."""
    import datasets

    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # the library raises many kinds; each means that it cannot be had
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        known = (
            "cannot be read as a data set" if Path(name).exists() else "is neither a folder nor a data set of the hub"
        )
        raise PerceiversError(f"data.path = {name} {known}: {reason}") from error
    if held_out_where:
        rows = labelled_rows(kind, datasets.concatenate_datasets(list(splits.values())), name, column, label_column)
        return divide_rows(rows, held_out_where, name)
    training = next((splits[split] for split in TRAINING_NAMES if split in splits), None)
    evaluation = next((splits[split] for split in EVALUATION_NAMES if split in splits), None)
    if training is None:
        only = next(iter(splits.values()))
        return hold_out(labelled_rows(kind, only, name, column, label_column), held_out)
    examples = labelled_rows(kind, training, f"{name} (train)", column, label_column)
    if evaluation is None:
        return hold_out(examples, held_out)
    other = f"{name} ({evaluation.split})"
    return Splits(examples, labelled_rows(kind, evaluation, other, column, label_column, examples.classes))


def divide_rows(examples: L, held_out_where: Mapping[str, Any], name: str) -> Splits[L]:
    """Holds out the rows whose columns have some values."""
    assert isinstance(examples.source, Rows)
    table = examples.source.table
    for column in held_out_where:
        if column not in table.features:
            raise PerceiversError(
                f"data.held_out_where: {name} has no column {column!r}: {did_you_mean(column, table.features)}"
            )
    columns = [[found == value for found in table[column]] for column, value in held_out_where.items()]
    chosen = [all(row) for row in zip(*columns, strict=True)]
    if all(chosen) or not any(chosen):
        which = "every row" if any(chosen) else "no row"
        raise PerceiversError(
            f"data.held_out_where = {dict(held_out_where)} holds for {which} of {name}: choose others."
        )
    training, evaluation = ([place for place, held in enumerate(chosen) if held == part] for part in (False, True))
    return Splits(examples.part(training), examples.part(evaluation))


def labelled_rows(
    kind: type[L],
    table: Any,
    name: str,
    column: str | None = None,
    label_column: str | None = None,
    classes: list[str] | None = None,
) -> L:
    """The rows of one split; `classes` are those of the training split, if that is another."""
    import datasets

    types = tuple(getattr(datasets, feature) for feature in kind.features)
    content = column or find_column(table, types, kind.noun, name)
    label = label_column or find_column(table, (datasets.ClassLabel,), "label", name)
    for field, value in ((f"{kind.noun}_column", content), ("label_column", label)):
        if value not in table.features:
            raise PerceiversError(
                f"data.{field}: {name} has no column {value!r}: {did_you_mean(value, table.features)}"
            )
    feature = table.features[label]
    labels: list[Any] = list(table[label])
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
    else:
        labels = [str(value) for value in labels]
        names = sorted(set(labels)) if classes is None else classes
        unknown = set(labels) - set(names)
        if unknown:
            raise PerceiversError(
                f"{name} has the class {min(unknown)!r}, which the training {kind.noun}s do not have."
            )
        labels = [names.index(value) for value in labels]
    encoding = table.features[content] if isinstance(table.features[content], types) else types[0]()
    encoded = table.cast_column(content, type(encoding)(decode=False))
    return kind(names, labels, Rows(encoded, content, name), range(len(labels)))


def find_column(table: Any, types: tuple[type, ...], usual: str, name: str) -> str:
    """The column of a data set that is of one of these types, or has the usual name."""
    found: list[str] = [field for field, feature in table.features.items() if isinstance(feature, types)]
    if not found and usual in table.features:
        found = [usual]
    if len(found) != 1:
        raise PerceiversError(
            f"{name} has the columns {', '.join(table.features)}: say with data.{usual}_column which holds the {usual}."
        )
    return found[0]


def check_classes(examples: Labelled, names: list[str]) -> None:
    """Raises a PerceiversError if the classes of data are others than those a model knows, by name or by number."""
    if len(examples.classes) != len(names):
        raise PerceiversError(f"the data has {len(examples.classes)} classes, but the model knows {len(names)}.")
    numbered = names == [str(index) for index in range(len(names))]
    for theirs, ours in zip(examples.classes, names, strict=True):
        if theirs != ours and not numbered:
            raise PerceiversError(f"the data has the class {theirs!r} where the model knows {ours!r}.")
