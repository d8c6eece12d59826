"""Finds and reads files that users name: regular files only, text in UTF-8, and sizes that memory can hold."""

import csv
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Literal

from perceivers.errors import PerceiversError, printable

LIMIT = "PERCEIVERS_MAX_VALUES"
"""Environment variable: limit on the pixels of an image, or the values of an array or table, that a file announces."""

DEFAULT_LIMIT = 2**26


def require_file(path: str | Path) -> Path:
    """Returns the path of a file, with ~ replaced; a PerceiversError for all but regular files that can be read."""
    path = Path(os.path.expanduser(path))
    if not os.path.isfile(path) or not os.access(path, os.R_OK):  # Path.is_file raises for a name that is too long
        raise PerceiversError(f"{path} is not a readable file: give the path of one.")
    return path


def check_count(path: object, count: int, unit: str) -> None:
    """Raises a PerceiversError if a file announces more pixels or values than are allowed."""
    if count > (limit := get_limit()):
        raise PerceiversError(f"{path} has {count:,} {unit}, more than {limit:,}: set {LIMIT} to allow it.")


def get_limit() -> int:
    """Returns the limit that the environment sets."""
    given = os.environ.get(LIMIT, str(DEFAULT_LIMIT))
    if not re.fullmatch("[0-9]{1,18}", given):
        raise PerceiversError(f"{LIMIT} = {given} is not allowed: it must be a whole number.")
    return int(given)


def is_visible(name: str) -> bool:
    """Returns whether a name is that of a file or folder of the user: not hidden, nor added to archives by macOS."""
    return not name.startswith(".") and name != "__MACOSX"


def list_folder(folder: Path, pattern: str = "*") -> list[Path]:
    """Returns the visible files and folders in a folder that match a pattern, sorted; none if it does not exist."""
    paths = folder.glob(pattern) if os.path.isdir(folder) else ()
    return sorted(path for path in paths if is_visible(path.name))


def list_folders(folder: Path) -> list[Path]:
    """Returns the visible folders in a folder, sorted."""
    return [path for path in list_folder(folder) if path.is_dir()]


def find_files(folder: Path, suffixes: Collection[str], report: bool = False) -> list[Path]:
    """Returns the visible files below a folder whose names end in one of some suffixes, in any case of letters, sorted.

    Links are followed, except those to a folder that they are in. `report` prints how many files are left out.
    """
    found, left_out = list[Path](), Counter[str]()
    for entry in walk(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix not in suffixes:
            left_out[suffix or "without a suffix"] += 1
        elif not entry.is_file():
            left_out["that cannot be read"] += 1
        else:
            found.append(Path(entry.path))
    if report and left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in left_out.most_common(10))
        warn(f"Left out of {folder}: {left_out.total()} of {left_out.total() + len(found)} files, {kinds}.")
    return found


def expand_folders(paths: Iterable[str], suffixes: Collection[str]) -> list[str]:
    """Replaces folders by the files below them, see `find_files`; raises a PerceiversError for one without any."""
    found: list[str] = []
    for path in paths:
        files = [str(file) for file in find_files(Path(path), suffixes, report=True)] if os.path.isdir(path) else [path]
        if not files:
            raise PerceiversError(f"{path} has no files to classify: {', '.join(sorted(suffixes))} are expected.")
        found += files
    return found


def walk(folder: str | Path, parents: tuple[tuple[int, int], ...] = ()) -> Iterator[os.DirEntry[str]]:
    """Yields all that is visible below a folder, but no folders; `parents` are the device and inode of those above."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            visible = sorted((entry for entry in entries if is_visible(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise PerceiversError(f"the folder {folder} cannot be read: {error.strerror}.") from error
    identity = (status.st_dev, status.st_ino)
    if identity not in parents:
        for entry in visible:
            if entry.is_dir():
                yield from walk(entry.path, (*parents, identity))
            else:
                yield entry


def warn(message: str) -> None:
    """Prints a line about data that is passed over."""
    print(printable(message), file=sys.stderr)


def resolve_inside(root: Path, name: str, source: object) -> Path:
    """Returns the path of a file that a data set names; a PerceiversError if it is outside of the data set's folder."""
    path = root / name
    if "\0" in name or not path.resolve().is_relative_to(root.resolve()):
        raise PerceiversError(f"{source} names the file {name}, which is outside of {root}: it is not read.")
    return path


def read_text(path: str | Path, start: int = 0, end: int | None = None, advice: str = "save it as UTF-8") -> str:
    """Reads the bytes from `start` to `end` of a text file, without a byte order mark.

    Raises:
        PerceiversError: the file cannot be read, or is not UTF-8; names the byte.
    """
    try:
        with require_file(path).open("rb") as file:
            file.seek(start)
            content = file.read(-1 if end is None else end - start)
    except OSError as error:
        raise PerceiversError(f"{path} cannot be read: {error.strerror}.") from error
    return decode(content, path, start, advice)


def decode(content: bytes, name: object, start: int = 0, advice: str = "save it as UTF-8") -> str:
    """Returns the text of bytes that begin at `start` in a file, without a byte order mark; errors as `read_text`."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        byte = f"byte {start + error.start} is {content[error.start]:#04x}"
        raise PerceiversError(f"{name} is not UTF-8 text: {byte}; {advice}.") from error
    return text.removeprefix("\ufeff") if start == 0 else text


def read_lines(path: str | Path) -> list[str]:
    """Returns the lines of a text file, without blank ones at its end."""
    return split_lines(read_text(path))


def split_lines(text: str) -> list[str]:
    """Returns the lines of a text, without blank ones at its end; only line feeds, and not form feeds, end a line."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def read_rows(
    text: str, name: object, delimiter: str = ",", quotes: bool = True, skip_blanks: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of CSV or TSV that are not empty, with the line in which each begins, from 1.

    Args:
        text: the content of a file.
        name: its name in errors.
        delimiter: what separates fields.
        quotes: whether fields may be quoted; otherwise a quote is a character like any other.
        skip_blanks: whether blanks before a field do not belong to it.

    Raises:
        PerceiversError: quotes are wrong; names the line.
    """
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # documents can exceed the default limit
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True, skipinitialspace=skip_blanks
    )
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise PerceiversError(
            f"line {line} of {name} cannot be read ({error}): "
            f"a field that begins with a quote has to end with one, and quotes inside it are doubled."
        ) from error
