"""Guesses the types of the columns of a table."""

import pickle
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from perceivers.data.image_files import SUFFIXES as IMAGES
from perceivers.data.tables import Table, format_label
from perceivers.errors import PerceiversError, did_you_mean, quote, shorten
from perceivers.tables.columns.category import NO, YES
from perceivers.tables.columns.date import Date
from perceivers.tables.columns.number import parse_number
from perceivers.tables.data import check_columns
from perceivers.tables.rows import is_missing

SOUNDS = frozenset((".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".aiff", ".aif"))
VIDEOS = frozenset((".mp4", ".mkv", ".avi", ".mov", ".webm", ".mpg", ".mpeg", ".m4v"))
FILES = {"image": IMAGES, "sound": SOUNDS, "video": VIDEOS, "array": frozenset((".npy",))}
"""The suffixes of files by the type of the column that names them."""

CONTENTS = {
    rb"RIFF....WAVE|fLaC|OggS|ID3|\xff[\xfb\xf3\xf2]": ".wav",
    rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ": ".mp4",
    rb"\x93NUMPY": ".npy",
}
"""The first bytes of files that are no pictures, and a suffix of such files."""

CODES = re.compile(r"(?i:zip|postal|postcode|code$|(\b|_)id$)|[a-z](Id|ID)$")
"""Names of columns whose whole numbers have no order."""

IDENTIFIERS = re.compile(r"(?i:^$|^unnamed|^index$|(\b|_)(id|uuid|guid|number|no|nr)$)|[a-z](Id|ID|Number|No|Nr)$")
"""Names of columns that may only number the rows."""

SAMPLE = 20_000
"""Rows that are looked at, the first ones."""

MOST_TARGETS = 10
"""Most different whole numbers of a column to predict that are taken for categories."""


@dataclass(frozen=True)
class Guess:
    """A column and its type.

    Attributes:
        name: the name of the column.
        type: the name of its type; None if it is to be left out.
        reason: why it is left out, or a cell of it.
    """

    name: str
    type: str | None
    reason: str


def guess_columns(table: Table, predict: Sequence[str] = (), ignore: Collection[str] = ()) -> list[Guess]:
    """Guesses the type of each column of a table.

    Args:
        table: the table.
        predict: the columns to predict.
        ignore: columns to leave out.

    Raises:
        PerceiversError: one of these does not exist, a column cannot be predicted, or there are too many.
    """
    check_columns(table)
    for name in (*predict, *ignore):
        if name not in table.columns:
            raise PerceiversError(f"{table.name} has no column {quote(name)}: {did_you_mean(name, table.columns)}")
    guesses = list[Guess]()
    for name in table.columns:
        cells = [cell for cell in table.columns[name][:SAMPLE] if not is_missing(cell)]
        guess = Guess(name, None, "ignored") if name in ignore else guess_column(name, cells, name in predict)
        if name in predict and guess.type in (None, "text", "date", "sound", "video"):
            why = (
                f"it is {guess.reason}" if guess.type is None else f"a column of type {guess.type} has no fixed answers"
            )
            raise PerceiversError(f"{table.name}: the column {quote(name)} cannot be predicted: {why}.")
        guesses.append(guess)
    return guesses


def guess_column(name: str, cells: Sequence[Any], is_target: bool) -> Guess:
    """Guesses the type of a column from the cells that are not missing."""
    if not cells:
        return Guess(name, None, "empty")
    labels = [format_label(cell) if isinstance(cell, str | int | float) else repr(cell)[:100] for cell in cells]
    example = shorten(labels[0], 40)
    if len(cells) > 1 and all(is_same(cells[0], cell) for cell in cells[1:]):
        return Guess(name, None, f"constant: {example}")
    kind = (
        guess_files(cells)
        or guess_lists(cells)
        or guess_numbers(name, cells, is_target)
        or ("date" if is_date(cells) else None)
        or guess_texts(name, labels)
    )
    return Guess(name, None, "an identifier of the rows") if kind == "identifier" else Guess(name, kind, example)


def is_same(cell: Any, other: Any) -> bool:
    """Returns whether two cells have the same content."""
    if isinstance(cell, str | int | float) and isinstance(other, str | int | float):
        return format_label(cell) == format_label(other)
    return type(cell) is type(other) and pickle.dumps(cell) == pickle.dumps(other)  # also of nested arrays


def guess_files(cells: Sequence[Any]) -> str | None:
    """Returns the type of files that cells name or contain, if they do."""
    if all(isinstance(cell, dict) and cell.keys() & {"bytes", "path"} for cell in cells):
        paths = [str(cell.get("path") or name_content(cell.get("bytes"))) for cell in cells]
    elif all(isinstance(cell, bytes) for cell in cells):
        paths = [name_content(cell) for cell in cells]
    elif all(isinstance(cell, str) and cell.startswith("data:image/") for cell in cells):
        return "image"
    elif all(isinstance(cell, str) for cell in cells):
        paths = list(cells)
    else:
        return None
    suffixes = [f".{path.rpartition('.')[2].lower()}" for path in paths]
    return next((kind for kind, known in FILES.items() if np.mean([end in known for end in suffixes]) > 0.9), None)


def name_content(content: Any) -> str:
    """Returns a suffix of the files that begin as a content does; that of a picture, if it is not known."""
    begin = content[:12] if isinstance(content, bytes) else b""
    return next((suffix for pattern, suffix in CONTENTS.items() if re.match(pattern, begin, re.DOTALL)), ".png")


def guess_lists(cells: Sequence[Any]) -> str | None:
    """Returns the type of lists, if cells are such, or arrays, or JSON of them."""
    import json

    lists = list[Any]()
    for cell in cells:
        if isinstance(cell, str) and cell.lstrip().startswith("["):
            try:
                cell = json.loads(cell)
            except (ValueError, RecursionError):
                return None
        if not isinstance(cell, list | tuple | np.ndarray):
            return None
        lists.append(cell)
    flat = [item for found in lists[:100] for item in found]
    if any(isinstance(item, str) for item in flat):
        return "categories"
    is_nested = any(isinstance(item, list | tuple | np.ndarray) for item in flat)
    return "array" if is_nested else "series" if len({len(found) for found in lists}) > 1 else "array"


def guess_numbers(name: str, cells: Sequence[Any], is_target: bool) -> str | None:
    """Returns the type of numbers, if all cells are such: number, category, yes_no, or "identifier"."""
    if all(isinstance(cell, bool) or format_label(cell).lower() in YES + NO for cell in cells):
        return "yes_no"
    numbers = [parse_number(cell) for cell in cells]
    if any(number is None for number in numbers):
        return None
    values = np.array(numbers, dtype=np.float64)
    distinct = len(np.unique(values))
    if not (values == np.floor(values)).all():
        return "number"
    is_counting = bool((np.diff(values) == 1).all())
    if distinct == len(values) > 10 and (is_counting or IDENTIFIERS.search(name)):
        return "identifier"
    if is_target:
        return "category" if distinct <= MOST_TARGETS and len(values) >= 5 * distinct else "number"
    return "category" if CODES.search(name) and len(values) >= 2 * distinct else "number"


def is_date(cells: Sequence[Any]) -> bool:
    """Returns whether all cells are dates."""
    some = cells[:: max(1, len(cells) // 200)]
    if any(isinstance(cell, str) and not re.search(r"\d", cell) for cell in some):
        return False
    try:
        Date().learn(some, None)  # type: ignore[arg-type]  # it reads no files
    except PerceiversError:
        return False
    return True


def guess_texts(name: str, labels: Sequence[str]) -> str:
    """Returns the type of texts: category, categories, text, or "identifier"."""
    count, distinct = len(labels), len(set(labels))
    if is_repeated(count, distinct):
        parts, separator = find_parts(labels)
        is_list = separator is not None and len(set(parts)) < distinct
        return "categories" if is_list else "category"
    parts, separator = find_parts(labels)
    if separator is not None and is_repeated(len(parts), len(set(parts))):
        return "categories"
    words = np.mean([len(label.split()) for label in labels])
    is_identifier = words < 1.2 and distinct > 0.95 * count and count > 10
    return "identifier" if is_identifier else "text"


def is_repeated(count: int, distinct: int) -> bool:
    """Returns whether so few of so many labels are different that they are categories."""
    return distinct <= 0.1 * count or (distinct <= 20 and distinct <= count / 2)


def find_parts(labels: Sequence[str]) -> tuple[list[str], str | None]:
    """Returns the parts between the separator that a tenth of the labels or more have, and the separator, if any."""
    for separator in ",;|":
        if np.mean([separator in label for label in labels]) >= 0.1:
            parts = [part.strip() for label in labels for part in label.split(separator)]
            if np.mean([len(part.split()) for part in parts]) <= 3:
                return parts, separator
    return [], None
