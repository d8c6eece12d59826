"""Files or rows of data sets with class labels: a folder for each class, or a Hugging Face data set."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch.utils.data import default_collate

from perceivers.data.loader import Samples
from perceivers.errors import PerceiversError, did_you_mean

TRAINING_NAMES = ("train", "training")
EVALUATION_NAMES = ("validation", "val", "valid", "dev", "test")


class Source(Protocol):
    """A source of examples, one at a time, by index."""

    def open(self, index: int) -> Any:
        """Returns the path or the content of a file, or the example itself."""

    def describe(self, index: int) -> str:
        """Returns the name of the example in messages: its file, or its row."""


@dataclass(frozen=True)
class Files:
    """Files by their paths."""

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


class LabelledSamples(Samples):
    """Base of samples that are dicts; one that cannot be read has only a "problem" and is left out of its batch."""

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        good = [sample for sample in samples if "problem" not in sample]
        problems = [sample["problem"] for sample in samples if "problem" in sample]
        return {"problems": problems, **(default_collate(good) if good else {})}


L = TypeVar("L", bound=Labelled)
S = TypeVar("S")


@dataclass(frozen=True)
class Splits(Generic[L]):
    """Examples for training and for evaluation."""

    training: L
    evaluation: L


def open_splits(
    kind: type[L],
    path: str,
    validation_fraction: float,
    column: str | None = None,
    label_column: str | None = None,
    validation_filter: Mapping[str, Any] | None = None,
) -> Splits[L]:
    """Finds examples; raises a PerceiversError if there are none, or only one class.

    Args:
        kind: class of the examples.
        path: a folder with a folder for each class, directly or under train/ and val/; a folder of parquet files; or
            the name of a data set on the Hub.
        validation_fraction: fraction of the examples to evaluate on if there is no evaluation split.
        column: of a Hugging Face data set; by default found by its type.
        label_column: likewise.
        validation_filter: columns and values of the rows to evaluate on, instead of the splits of the data set.
    """
    root = Path(path)
    if root.is_file():
        raise PerceiversError(f"data.path = {path} is a file: give the folder that holds the {kind.noun}s.")
    if root.exists() and next(root.rglob("*.parquet"), None) is None:
        if validation_filter:
            raise PerceiversError(f"data.validation_filter is for data sets with columns, but {path} has only files.")
        splits = split_folder(root, partial(labelled_folder, kind), validation_fraction)
    else:
        import datasets

        tables = load_tables(path)
        read = partial(labelled_rows, kind, path, column, label_column)
        if validation_filter:
            table = datasets.concatenate_datasets(list(tables.values()))
            splits = filter_rows(read(table), table, validation_filter, path)
        else:
            splits = choose_splits(tables, next(iter(tables.values())), read, validation_fraction)
    if len(splits.training.classes) < 2:
        raise PerceiversError(f"{path} has only the class {splits.training.classes[0]!r}: a classifier needs two.")
    return splits


def choose_splits(
    parts: Mapping[str, S], whole: S, read: Callable[[S, list[str] | None], L], validation_fraction: float
) -> Splits[L]:
    """Finds and reads the splits for training, by default `whole`, and evaluation, by default a random part of it.

    `read` is also given the classes of the training split, to read the evaluation split.
    """
    names = (TRAINING_NAMES, EVALUATION_NAMES)
    training, evaluation = (next((parts[name] for name in usual if name in parts), None) for usual in names)
    examples = read(whole if training is None else training, None)
    if training is None or evaluation is None:
        return random_split(examples, validation_fraction)
    return Splits(examples, read(evaluation, examples.classes))


def split_folder(root: Path, read: Callable[[Path, list[str] | None], L], validation_fraction: float) -> Splits[L]:
    """Reads the splits of a folder, see `choose_splits`."""
    return choose_splits({path.name: path for path in root.glob("*") if path.is_dir()}, root, read, validation_fraction)


def random_split(examples: L, fraction: float) -> Splits[L]:
    """Holds out a random fraction of the examples, the same one in every run."""
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    count = max(1, round(fraction * len(examples)))
    return Splits(examples.subset(order[count:]), examples.subset(order[:count]))


def labelled_folder(kind: type[L], root: Path, classes: list[str] | None = None) -> L:
    """Finds files in a folder for each class, named after the class; `classes` as in `index_labels`."""
    folders = [folder for folder in sorted(root.iterdir()) if folder.is_dir()]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix.lower() in kind.suffixes]
    if not files:
        raise PerceiversError(f"{root} has no {kind.noun}s: a folder of {kind.noun}s for each class is expected in it.")
    names, labels = index_labels([file.relative_to(root).parts[0] for file in files], classes, str(root))
    return kind(names, labels, Files(files), range(len(files)))


def index_labels(labels: list[str], classes: list[str] | None, name: str) -> tuple[list[str], list[int]]:
    """Returns the classes, those of the training split if given, and the class index of each label."""
    indices = {label: index for index, label in enumerate(classes or sorted(set(labels)))}
    unknown = set(labels) - set(indices)
    if unknown:
        raise PerceiversError(f"{name} has the class {min(unknown)!r}, which the training split does not have.")
    return list(indices), [indices[label] for label in labels]


def load_tables(path: str) -> dict[str, Any]:
    """Loads the splits of a Hugging Face data set, from the Hub or a local folder."""
    import datasets

    try:
        return dict(datasets.load_dataset(path))
    except Exception as error:  # the library raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        is_local = Path(path).exists()
        problem = "cannot be read as a data set" if is_local else "is neither a folder nor a data set on the Hub"
        raise PerceiversError(f"data.path = {path} {problem}: {reason}") from error


def filter_rows(examples: L, table: Any, validation_filter: Mapping[str, Any], path: str) -> Splits[L]:
    """Holds out the examples whose rows in the table have the values of the filter."""
    for column in validation_filter:
        check_column(table, column, "validation_filter", path)
    columns = [[found == value for found in table[column]] for column, value in validation_filter.items()]
    is_held_out = [all(row) for row in zip(*columns, strict=True)]
    if all(is_held_out) or not any(is_held_out):
        which = "every row" if any(is_held_out) else "no row"
        raise PerceiversError(f"data.validation_filter = {dict(validation_filter)} holds for {which} of {path}.")
    training, evaluation = ([i for i, held in enumerate(is_held_out) if held == part] for part in (False, True))
    return Splits(examples.subset(training), examples.subset(evaluation))


def labelled_rows(
    kind: type[L], path: str, column: str | None, label_column: str | None, table: Any, classes: list[str] | None = None
) -> L:
    """Returns the rows of a split; `classes` are those of the training split, for another split."""
    import datasets

    name = path if table.split is None else f"{path} ({table.split})"
    types = tuple(getattr(datasets, feature) for feature in kind.features)
    content = column or find_column(table, types, kind.noun, name)
    label = label_column or find_column(table, (datasets.ClassLabel,), "label", name)
    check_column(table, content, f"{kind.noun}_column", name)
    check_column(table, label, "label_column", name)
    feature = table.features[label]
    if isinstance(feature, datasets.ClassLabel):
        names, labels = list(feature.names), list(table[label])
    else:
        names, labels = index_labels([str(value) for value in table[label]], classes, name)
    encoding = table.features[content] if isinstance(table.features[content], types) else types[0]()
    encoded = table.cast_column(content, type(encoding)(decode=False))
    return kind(names, labels, Rows(encoded, content, name), range(len(labels)))


def check_column(table: Any, column: str, field: str, name: str) -> None:
    """Raises a PerceiversError if a data set lacks the column that a field names."""
    if column not in table.features:
        raise PerceiversError(f"data.{field}: {name} has no column {column!r}: {did_you_mean(column, table.features)}")


def find_column(table: Any, types: tuple[type, ...], usual: str, name: str) -> str:
    """Returns the column of a data set that has one of the types or, if there is none, the usual name."""
    found: list[str] = [field for field, feature in table.features.items() if isinstance(feature, types)]
    if not found and usual in table.features:
        found = [usual]
    if len(found) != 1:
        raise PerceiversError(
            f"{name} has the columns {', '.join(table.features)}: set data.{usual}_column to the one with the {usual}."
        )
    return found[0]


def check_classes(examples: Labelled, names: list[str]) -> None:
    """Raises a PerceiversError if the classes of data differ from those of a model, by name or by number."""
    if len(examples.classes) != len(names):
        raise PerceiversError(f"the data has {len(examples.classes)} classes, but the model knows {len(names)}.")
    numbered = names == [str(index) for index in range(len(names))]
    for theirs, ours in zip(examples.classes, names, strict=True):
        if theirs != ours and not numbered:
            raise PerceiversError(f"the data has the class {theirs!r} where the model knows {ours!r}.")
