"""Lists of clips and their classes, as CSV: those of Kinetics and of AudioSet, and one's own."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perceivers.errors import PerceiversError, did_you_mean


@dataclass(frozen=True)
class Entry:
    """A line of a list.

    Attributes:
        line: its number, from 1.
        names: what its file may be called, without suffix, or with it.
        labels: its classes, as the list names them.
    """

    line: int
    names: tuple[str, ...]
    labels: list[str]


@dataclass(frozen=True)
class ClipList:
    """What a list says.

    Attributes:
        path: its file.
        several: whether a clip can be of several classes.
        entries: its clips.
    """

    path: Path
    multilabel: bool
    entries: list[Entry]

    def indices(self, classes: Mapping[str, str]) -> list[tuple[int, ...]]:
        """Class indices of each clip; `classes` is what the list's names stand for, as in `read_classes`.

        Raises:
            PerceiversError: a class is unknown; says in which line.
        """
        place = {name: index for index, name in enumerate(classes)}
        found = []
        for entry in self.entries:
            for label in entry.labels:
                if label not in place:
                    raise PerceiversError(
                        f"{self.path}, line {entry.line}: the class {label!r} is unknown: {did_you_mean(label, place)}"
                    )
            found.append(tuple(place[label] for label in entry.labels))
        return found

    def files(self, root: Path, suffixes: Iterable[str]) -> list[Path | None]:
        """The file of each clip, anywhere below a folder; None where there is none."""
        known: dict[str, Path] = {}
        for file in sorted(root.rglob("*")):
            if file.suffix.lower() in suffixes:
                for name in (str(file.relative_to(root)), file.name, file.stem):
                    known.setdefault(name, file)
        return [next((known[name] for name in entry.names if name in known), None) for entry in self.entries]


def read_list(path: Path) -> ClipList:
    """Reads a list of clips.

    Its header tells which it is: `youtube_id` and `label` are columns of Kinetics, whose files are called
    ID_000010_000020; `# YTID` is AudioSet's, whose files are called ID, YID, ID_30.000_40.000, ID_30_40 or ID_30000;
    `file` and `label`, or `file` and `labels`, several with commas between, are one's own.

    Raises:
        PerceiversError: it cannot be read, is none of these, or a line is incomplete.
    """
    lines = read_rows(path)
    while len(lines) > 1 and lines[0][1][0].startswith("#") and not lines[0][1][0].startswith("# YTID"):
        lines = lines[1:]  # AudioSet's says first when it was made, and of how many clips
    (_, first), *rows = lines or [(0, [""])]
    header = [column.strip().removeprefix("# ") for column in first]
    kind = next((layout for columns, layout in LAYOUTS if columns <= set(header)), None)
    if kind is None:
        raise PerceiversError(
            f"{path} is no list of clips: it needs a header with youtube_id and label (Kinetics), with # YTID "
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
            entries.append(Entry(line, *kind(fields)))
        except ValueError as error:
            raise PerceiversError(f"{path}, line {line}: {error}; it should be a number of seconds.") from error
        if "label" in header and not entries[-1].labels[0]:
            raise PerceiversError(f"{path}, line {line} has no label: give the clip a class, or take the line out.")
    if not entries:
        raise PerceiversError(f"{path} names no clips.")
    return ClipList(path, "label" not in header, entries)


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a CSV file that are not empty, with the numbers of their lines."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            return [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PerceiversError(f"{path} cannot be read as a CSV file ({error}).") from error


def kinetics(fields: Mapping[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """Names and class of a clip of Kinetics."""
    name, start, end = fields["youtube_id"], fields.get("time_start"), fields.get("time_end")
    spans = () if start is None or end is None else (f"{name}_{int(float(start)):06d}_{int(float(end)):06d}",)
    return (*spans, name), [fields["label"]]


def audioset(fields: Mapping[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """Names and classes of a clip of AudioSet."""
    name, start, end = fields["YTID"], float(fields["start_seconds"]), float(fields["end_seconds"])
    spans = (f"{start:.3f}_{end:.3f}", f"{start:.0f}_{end:.0f}", f"{1000 * start:.0f}_{1000 * end:.0f}",
             f"{1000 * start:.0f}")  # fmt: skip
    names = (*(f"{prefix}{name}_{span}" for prefix in ("", "Y") for span in spans), name, f"Y{name}")
    return names, split(fields["positive_labels"])


def own(fields: Mapping[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """File and classes of a clip of a list of one's own."""
    labels = [fields["label"]] if "label" in fields else split(fields["labels"])
    return (fields["file"],), labels


def split(labels: str) -> list[str]:
    """Classes with commas between."""
    return [label.strip() for label in labels.split(",") if label.strip()]


LAYOUTS = (
    ({"youtube_id", "label"}, kinetics),
    ({"YTID", "start_seconds", "end_seconds", "positive_labels"}, audioset),
    ({"file", "label"}, own),
    ({"file", "labels"}, own),
)
"""Columns that a list has, and how a line of it is read."""


def read_classes(path: Path) -> dict[str, str]:
    """What classes are called in lists, and what to people; in order.

    Args:
        path: AudioSet's class_labels_indices.csv, with the columns index, mid and display_name; or a text file with
            one class a line.

    Raises:
        PerceiversError: it cannot be read, or a class is there twice.
    """
    rows = read_rows(path)
    if rows and rows[0][1][:3] == ["index", "mid", "display_name"]:
        pairs = [(line, row[1], row[2]) for line, row in rows[1:]]
    else:
        lines = enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1)
        pairs = [(line, name.strip(), name.strip()) for line, name in lines if name.strip()]
    classes: dict[str, str] = {}
    for line, key, name in pairs:
        if key in classes:
            raise PerceiversError(f"{path}, line {line}: the class {key!r} was there before: leave one out.")
        classes[key] = name
    return classes


def classes_of(clips: ClipList) -> dict[str, str]:
    """The classes that a list names, sorted."""
    names = sorted({label for entry in clips.entries for label in entry.labels})
    return dict(zip(names, names, strict=True))


def check_found(clips: ClipList, files: Sequence[Path | None], root: Path) -> None:
    """Raises a PerceiversError for the first clip that has no file."""
    missing = [entry for entry, file in zip(clips.entries, files, strict=True) if file is None]
    if missing:
        raise PerceiversError(
            f"{clips.path}, line {missing[0].line}: there is no clip {missing[0].names[0]} below {root} "
            f"({len(missing)} of {len(files)} are missing): leave them out by data.skip_missing=true, or add them."
        )
