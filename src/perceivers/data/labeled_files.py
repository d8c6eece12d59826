"""Finds examples with class labels: a folder of files for each class, a table, or a Hugging Face data set."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from perceivers.data.labeled import Files, L, Labeled, Rows, Splits, random_split
from perceivers.data.splits import EVALUATION_NAMES, TRAINING_NAMES, Part, choose_splits, find_splits
from perceivers.data.tables import (
    Table,
    check_labels,
    describe,
    format_label,
    hub_splits,
    is_missing,
    open_parquet,
    read_table,
)
from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.files import find_files, list_folder, list_folders, resolve_inside, warn

METADATA = ("metadata.csv", "metadata.jsonl")

S = TypeVar("S")


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
    if os.path.exists(root) and not os.path.isdir(root):
        raise PerceiversError(f"data.path = {path} is a file: give the folder that holds the {kind.noun}s.")
    if os.path.isdir(root) and not find_files(root, {".parquet"}):
        if validation_filter:
            raise PerceiversError(f"data.validation_filter is for data sets with columns, but {path} has only files.")
        splits = split_folder(root, partial(labeled_folder, kind), validation_fraction)
    else:
        import datasets

        tables = hub_splits(path)
        read = partial(labeled_rows, kind, path, column, label_column)
        if validation_filter:
            table = datasets.concatenate_datasets(list(tables.values()))
            splits = filter_rows(read(table), table, validation_filter, path)
        else:
            splits = read_splits(tables, next(iter(tables.values())), read, validation_fraction)
    if not splits.training.labels:
        raise PerceiversError(f"{path} has no {kind.noun}s with labels to train on.")
    if len(splits.training.classes) < 2:
        raise PerceiversError(f"{path} has only the class {splits.training.classes[0]!r}: a classifier needs two.")
    return splits


def read_splits(
    parts: Mapping[str, S], whole: S, read: Callable[[S, list[str] | None], L], validation_fraction: float
) -> Splits[L]:
    """Finds and reads the splits for training, by default `whole`, and evaluation, by default a random part of it.

    `read` is also given the classes of the training split, to read the evaluation split; one without labels is passed
    over.
    """
    parts = {name.lower(): part for name, part in parts.items()}
    training = next((parts[name] for name in TRAINING_NAMES if name in parts), None)
    examples = read(whole if training is None else training, None)
    if training is not None:
        for name in EVALUATION_NAMES:
            if name in parts:
                evaluation = read(parts[name], examples.classes)
                if len(evaluation):
                    return Splits(examples, evaluation)
                warn(f"The split {name!r} has no labels: it is not evaluated on.")
    return random_split(examples, validation_fraction)


def split_folder(root: Path, read: Callable[[Path, list[str] | None], L], validation_fraction: float) -> Splits[L]:
    """Reads the splits of a folder, see `read_splits`."""
    return read_splits(find_split_folders(root), root, read, validation_fraction)


def find_split_folders(root: Path) -> dict[str, Path]:
    """Returns the folders in a folder by name, in small letters; prints the names of those beside splits."""
    folders: dict[str, Path] = {}
    for folder in list_folders(root):
        if (name := folder.name.lower()) in (*TRAINING_NAMES, *EVALUATION_NAMES) and name in folders:
            raise PerceiversError(f"{folder} and {folders[name].name} are of the same split: keep one of them.")
        folders[name] = folder
    others = [folder.name for name, folder in folders.items() if name not in (*TRAINING_NAMES, *EVALUATION_NAMES)]
    if others and not folders.keys().isdisjoint(TRAINING_NAMES):
        warn(f"Left out of {root}: folders that are not splits, {', '.join(others)}.")
    return folders


def open_evaluation(
    kind: type[L],
    path: str,
    split: str | None = None,
    validation_fraction: float | None = None,
    column: str | None = None,
    label_column: str | None = None,
) -> tuple[L, Part]:
    """Finds the examples to evaluate a model on: those of a split, see `choose_splits`, or all.

    The classes are those of the examples themselves.

    Args:
        kind: as in `open_splits`.
        path: as in `open_splits`; or a table: parquet, or a file with the columns file_name and label.
        split: "train", "val" or "test".
        validation_fraction: without a split for evaluation, use only the fraction that training held out.
        column: as in `open_splits`.
        label_column: likewise.

    Raises:
        PerceiversError: there is no such split, or there are no examples with labels.
    """
    whole, parts = find_parts(path)
    splits = find_splits(parts)
    total = sum(count_examples(kind, parts[name]) for names in splits.values() for name in names)
    chosen: list[tuple[str | None, Any]] = [(name, parts[part]) for name, part in choose_splits(parts, split, path)]
    for name, part in chosen or [(None, whole)]:
        examples = read_part(kind, part, path, column, label_column)
        if len(examples):
            break
        warn(f"{path} has no labels{'' if name is None else f' in its split {name!r}'}: it is not evaluated on.")
    else:
        raise PerceiversError(f"{path} has no {kind.noun}s with labels to evaluate on.")
    if validation_fraction is not None and splits.keys() <= {"train"}:
        examples = random_split(examples, validation_fraction).evaluation
    return examples, Part(kind.noun, len(examples), total or count_examples(kind, whole), name)


def open_unlabeled(kind: type[L], path: str, split: str | None = None, column: str | None = None) -> tuple[L, Part]:
    """Finds the examples to predict: those of a split, see `choose_splits`, or all, with or without labels.

    Args:
        kind: as in `open_splits`.
        path: as in `open_evaluation`; the files of a folder may be anywhere below it, and it may be a single file.
        split: "train", "val" or "test".
        column: as in `open_splits`; of another table, that of the paths of files, by default file_name.

    Returns:
        The examples, and the part of the data that they are.

    Raises:
        PerceiversError: there is no such split, or no examples.
    """
    if os.path.isfile(path) and Path(path).suffix.lower() in kind.suffixes:
        whole: Any = Path(path)
        parts: Mapping[str, Any] = {}
    else:
        whole, parts = find_parts(path)
    total = sum(count_examples(kind, parts[name]) for names in find_splits(parts).values() for name in names)
    name, part = next(((name, parts[part]) for name, part in choose_splits(parts, split, path)), (None, whole))
    examples = read_unlabeled(kind, part, path, column)
    if not len(examples):
        raise PerceiversError(f"{path} has no {kind.noun}s.")
    return examples, Part(kind.noun, len(examples), total or len(examples), name)


def read_unlabeled(kind: type[L], part: Any, path: str, column: str | None = None) -> L:
    """Reads a part of a data set, see `find_parts`, or a single file, without its labels."""
    if isinstance(part, Path):
        return kind.from_files(find_files(part, kind.suffixes, report=True) if os.path.isdir(part) else [part])
    if isinstance(part, Table):
        check_column(part.columns, column := column or "file_name", f"{kind.noun}_column", part.name)
        root = Path(path).parent
        names = part.texts([column])
        return kind.from_files([resolve_inside(root, file, part.location(row)) for row, (file,) in enumerate(names)])
    return kind([], [0] * len(part), encoded_rows(kind, path, column, part), range(len(part)))


def find_parts(path: str) -> tuple[Any, Mapping[str, Any]]:
    """Returns a data set as a whole, and its parts by name: folders, rows of a Hugging Face data set, or a `Table`."""
    root = Path(path)
    if os.path.isfile(root):
        return open_parquet(root) if root.suffix.lower() == ".parquet" else read_table([root]), {}
    if os.path.isdir(root) and not find_files(root, {".parquet"}):
        return root, find_split_folders(root)
    parts = hub_splits(path)
    return next(iter(parts.values())), parts


def read_part(kind: type[L], part: Any, path: str, column: str | None, label_column: str | None) -> L:
    """Reads a part of a data set, see `find_parts`, with classes of its own; without labels, it has no examples."""
    if isinstance(part, Path):
        return labeled_folder(kind, part, [])
    if isinstance(part, Table):
        check_column(part.columns, "file_name", f"{kind.noun}_column", part.name)
        check_column(part.columns, "label", "label_column", part.name)
        return listed_files(kind, part, Path(path).parent, [])
    return labeled_rows(kind, path, column, label_column, part, [])


def count_examples(kind: type[Labeled], part: Any) -> int:
    """Returns the number of examples in a part of a data set, see `find_parts`, with or without labels."""
    if isinstance(part, Path):
        return len(find_files(part, kind.suffixes))
    return len(part.indices) if isinstance(part, Table) else len(part)


def labeled_folder(kind: type[L], root: Path, classes: list[str] | None = None) -> L:
    """Finds files in a folder for each class, named after the class, or those that metadata.csv or .jsonl lists.

    `classes` are those of the training split, for another split, which has no examples if its files have no labels.
    """
    for path in list_folder(root):
        if path.name.lower() in METADATA:
            table = read_table([path])
            if table.columns.keys() >= {"file_name", "label"}:
                return listed_files(kind, table, root, classes)
    found = find_files(root, kind.suffixes, report=True)
    files = [file for file in found if file.parent != root]
    if not files and (classes is None or not found):
        raise PerceiversError(
            f"{root} has no {kind.noun}s: a folder of {kind.noun}s for each class is expected in it, "
            f"or metadata.csv with the columns file_name and label."
        )
    if files and len(files) < len(found):
        beside = len(found) - len(files)
        warn(f"Left out of {root}: {beside} of {len(found)} {kind.noun}s, beside the folders of classes.")
    labels = [file.relative_to(root).parts[0] for file in files]
    empty = [folder.name for folder in list_folders(root) if folder.name not in set(labels)]
    if empty:
        warn(f"Left out of {root}: folders without {kind.noun}s, {', '.join(empty)}.")
    names, indices = index_labels(labels, classes, str(root))
    return kind(names, indices, Files(files), range(len(files)))


def listed_files(kind: type[L], table: Table, root: Path, classes: list[str] | None) -> L:
    """Returns the files of a table with the columns file_name and label; `classes` as in `labeled_folder`."""
    table = table.drop_missing(["file_name", "label"])
    files = []
    for index, (name,) in enumerate(table.texts(["file_name"])):
        files.append(resolve_inside(root, name, table.location(index)))
        if not os.path.isfile(files[-1]):
            raise PerceiversError(f"{table.location(index)} names the file {quote(name)}, which does not exist.")
    names, labels = index_labels(table.labels("label"), classes, table.name)
    return kind(names, labels, Files(files), range(len(files)))


def index_labels(labels: list[str], classes: list[str] | None, name: str) -> tuple[list[str], list[int]]:
    """Returns the classes, those of the training split if given, and the class index of each label."""
    indices = {label: index for index, label in enumerate(classes or sorted(set(labels)))}
    unknown = set(labels) - set(indices)
    if unknown:
        raise PerceiversError(f"{name} has the class {quote(min(unknown))}, which the training split does not have.")
    return list(indices), [indices[label] for label in labels]


def filter_rows(examples: L, table: Any, validation_filter: Mapping[str, Any], path: str) -> Splits[L]:
    """Holds out the examples whose rows in the table have the values of the filter."""
    for column in validation_filter:
        check_column(table.features, column, "validation_filter", path)
    columns = [[found == value for found in table[column]] for column, value in validation_filter.items()]
    is_held_out = [all(row) for row in zip(*columns, strict=True)]
    if all(is_held_out) or not any(is_held_out):
        which = "every row" if any(is_held_out) else "no row"
        raise PerceiversError(f"data.validation_filter = {dict(validation_filter)} holds for {which} of {path}.")
    training, evaluation = (
        [i for i, row in enumerate(examples.indices) if is_held_out[row] == part] for part in (False, True)
    )
    return Splits(examples.subset(training), examples.subset(evaluation))


def labeled_rows(
    kind: type[L], path: str, column: str | None, label_column: str | None, table: Any, classes: list[str] | None = None
) -> L:
    """Returns the rows of a split; `classes` are those of the training split, for another split."""
    import datasets
    import pyarrow.compute

    encoded = encoded_rows(kind, path, column, table)
    name, content = encoded.name, encoded.column
    label = label_column or find_column(table, (datasets.ClassLabel,), "label", name)
    check_column(table.features, label, "label_column", name)
    values, feature = list(table[label]), table.features[label]
    is_class = isinstance(feature, datasets.ClassLabel)
    files = encoded.table.data.column(content)
    has_file = pyarrow.compute.or_(
        *(pyarrow.compute.struct_field(files, part).is_valid() for part in ("bytes", "path"))
    )
    rows = [
        row
        for row, (value, is_there) in enumerate(zip(values, has_file.to_pylist(), strict=True))
        if is_there and not is_missing(value) and not (is_class and value < 0)
    ]
    if len(rows) < len(values):
        missing = len(values) - len(rows)
        warn(f"Left out of {name}: {missing} of {len(values)} rows, without a label or {kind.noun}.")
    if is_class:
        check_labels(values, feature, name)
        names, labels = list(feature.names), [values[row] for row in rows]
    else:
        names, labels = index_labels([format_label(values[row]) for row in rows], classes, name)
    return kind(names, labels, encoded, rows)


def encoded_rows(kind: type[Labeled], path: str, column: str | None, table: Any) -> Rows:
    """Returns the column with the encoded files of a split."""
    import datasets

    root, name = Path(path), path if table.split is None else f"{path} ({table.split})"
    types = tuple(getattr(datasets, feature) for feature in kind.features)
    content = column or find_column(table, types, kind.noun, name)
    check_column(table.features, content, f"{kind.noun}_column", name)
    encoding = table.features[content] if isinstance(table.features[content], types) else types[0]()
    try:
        encoded = table.cast_column(content, type(encoding)(decode=False))
    except Exception as error:  # the library raises many kinds
        raise PerceiversError(f"{name} has no {kind.noun}s in column {content!r}: {describe(error)}") from error
    return Rows(encoded, content, name, root if os.path.isdir(root) else root.parent if os.path.isfile(root) else None)


def check_column(columns: Iterable[str], column: str, field: str, name: str) -> None:
    """Raises a PerceiversError if a data set lacks the column that a field names."""
    if column not in columns:
        raise PerceiversError(f"data.{field}: {name} has no column {column!r}: {did_you_mean(column, columns)}")


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
