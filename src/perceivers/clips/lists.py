"""Lists of clips and their classes, as CSV files: those of Kinetics and AudioSet, and custom ones."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.files import find_files, read_lines, read_rows, read_text


@dataclass(frozen=True)
class Entry:
    """A line of a list: its number, the possible names of its file, and its classes as named in the list."""

    line: int
    names: tuple[str, ...]
    labels: list[str]


@dataclass(frozen=True)
class ClipList:
    """The contents of a list; `multilabel`: a clip can have several classes."""

    path: Path
    multilabel: bool
    entries: list[Entry]

    def class_indices(self, classes: Iterable[str]) -> list[tuple[int, ...]]:
        """Returns the class indices of each clip; raises a PerceiversError for an unknown class."""
        index = {name: index for index, name in enumerate(classes)}
        for entry in self.entries:
            for label in entry.labels:
                if label not in index:
                    problem = f"the class {quote(label)} is unknown: {did_you_mean(label, index)}"
                    raise PerceiversError(f"{self.path}, line {entry.line}: {problem}")
        return [tuple(index[label] for label in entry.labels) for entry in self.entries]

    def find_files(self, root: Path, suffixes: Collection[str], skip_missing: bool = True) -> list[Path | None]:
        """Returns the file of each clip, anywhere below a folder; None, or a PerceiversError, if it is missing."""
        known: dict[str, Path] = {}
        for file in find_files(root, suffixes):
            for name in (str(file.relative_to(root)), file.name, file.stem):
                known.setdefault(name, file)
        files = [next((known[name] for name in entry.names if name in known), None) for entry in self.entries]
        missing = [entry for entry, file in zip(self.entries, files, strict=True) if file is None]
        if missing and not skip_missing:
            raise PerceiversError(
                f"{self.path}, line {missing[0].line}: there is no clip {missing[0].names[0]} below {root} "
                f"({len(missing)} of {len(files)} are missing): add them, or skip them by data.skip_missing=true."
            )
        return files


def read_list(path: Path) -> ClipList:
    """Reads a list of clips.

    The header tells the format: `youtube_id` and `label` are columns of Kinetics, whose files are called
    ID_000010_000020; `# YTID` is one of AudioSet, whose files are called ID, YID, ID_30.000_40.000, ID_30_40 or
    ID_30000; `file` and `label`, or `file` and comma-separated `labels`, are those of a custom list.

    Raises:
        PerceiversError: the file cannot be read, has another format, or a line is incomplete.
    """
    lines = read_csv(path)
    while len(lines) > 1 and lines[0][1][0].startswith("#") and not lines[0][1][0].startswith("# YTID"):
        lines = lines[1:]  # lists of AudioSet begin with comments
    (_, first), *rows = lines or [(0, [""])]
    header = [column.strip().removeprefix("# ") for column in first]
    read_row = next((function for columns, function in FORMATS if columns <= set(header)), None)
    if read_row is None:
        raise PerceiversError(
            f"{path} is not a list of clips: it needs a header with youtube_id and label (Kinetics), with # YTID "
            f"(AudioSet), or with file and label, or file and labels."
        )
    entries = []
    for line, row in rows:
        if len(row) < len(header):
            raise PerceiversError(
                f"{path}, line {line} has {len(row)} columns, but {', '.join(header)} are expected: is it truncated?"
            )
        fields = dict(zip(header, (cell.strip() for cell in row), strict=False))
        try:
            entries.append(Entry(line, *read_row(fields)))
        except (ValueError, OverflowError) as error:  # not a number, or infinite
            raise PerceiversError(f"{path}, line {line}: {error}; expected a number of seconds.") from error
        if "label" in header and not entries[-1].labels[0]:
            raise PerceiversError(f"{path}, line {line} has no label: give the clip a class, or remove the line.")
    if not entries:
        raise PerceiversError(f"{path} names no clips.")
    return ClipList(path, "label" not in header, entries)


def read_csv(path: Path) -> list[tuple[int, list[str]]]:
    """Returns the nonempty rows of a CSV file with their line numbers."""
    return list(read_rows(read_text(path), path, skip_blanks=True))


def kinetics_row(fields: Mapping[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """Returns the possible names and the class of a clip of Kinetics."""
    name, start, end = fields["youtube_id"], fields.get("time_start"), fields.get("time_end")
    spans = () if start is None or end is None else (f"{name}_{int(float(start)):06d}_{int(float(end)):06d}",)
    return (*spans, name), [fields["label"]]


def audioset_row(fields: Mapping[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """Returns the possible names and the classes of a clip of AudioSet."""
    name, start, end = fields["YTID"], float(fields["start_seconds"]), float(fields["end_seconds"])
    spans = (f"{start:.3f}_{end:.3f}", f"{start:.0f}_{end:.0f}", f"{1000 * start:.0f}_{1000 * end:.0f}",
             f"{1000 * start:.0f}")  # fmt: skip
    names = (*(f"{prefix}{name}_{span}" for prefix in ("", "Y") for span in spans), name, f"Y{name}")
    return names, split_labels(fields["positive_labels"])


def custom_row(fields: Mapping[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """Returns the file and the classes of a clip of a custom list."""
    return (fields["file"],), [fields["label"]] if "label" in fields else split_labels(fields["labels"])


def split_labels(labels: str) -> list[str]:
    """Returns comma-separated classes."""
    return [label.strip() for label in labels.split(",") if label.strip()]


FORMATS = (
    ({"youtube_id", "label"}, kinetics_row),
    ({"YTID", "start_seconds", "end_seconds", "positive_labels"}, audioset_row),
    ({"file", "label"}, custom_row),
    ({"file", "labels"}, custom_row),
)
"""Columns of each format, and the function that reads a row."""


def read_classes(path: Path) -> dict[str, str]:
    """Returns the names of classes by their names in lists, in order, or raises a PerceiversError.

    The file is class_labels_indices.csv of AudioSet, with the columns index, mid and display_name, or has one class per
    line.
    """
    rows = read_csv(path)
    if rows and rows[0][1][:3] == ["index", "mid", "display_name"]:
        for line, row in rows:
            if len(row) < 3:
                raise PerceiversError(
                    f"{path}, line {line} has {len(row)} columns: index, mid, display_name are expected."
                )
        pairs = [(line, row[1], row[2]) for line, row in rows[1:]]
    else:
        lines = enumerate(read_lines(path), 1)
        pairs = [(line, name.strip(), name.strip()) for line, name in lines if name.strip()]
    classes: dict[str, str] = {}
    for line, key, name in pairs:
        if key in classes:
            raise PerceiversError(f"{path}, line {line}: the class {quote(key)} appears twice: remove one.")
        classes[key] = name
    return classes


def collect_classes(clips: ClipList) -> dict[str, str]:
    """Returns the classes of a list, sorted."""
    return {name: name for name in sorted({label for entry in clips.entries for label in entry.labels})}
