"""Files in cells: paths, contents, and data URIs."""

import base64
import binascii
import io
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from perceivers.errors import PerceiversError, quote
from perceivers.files import require_file

T = TypeVar("T")


def read_some(cells: Iterable[Any], read: Callable[[Any], T], count: int | None = None) -> Iterator[T]:
    """Yields what a function reads of the first cells, without those that it refuses, which training counts.

    Raises:
        PerceiversError: it refuses all of them.
    """
    is_read = False
    for cell in islice(cells, count):
        try:
            value = read(cell)
        except PerceiversError:
            continue
        is_read = True
        yield value
    if not is_read:
        for cell in islice(cells, count):
            read(cell)  # raises the error of the first cell


def open_cell(cell: Any, root: Path) -> Path | io.BytesIO:
    """Returns the path of the file that a cell names, or the content that it holds.

    Args:
        cell: a path, bytes, a data URI, or a dict with "bytes" or "path", as in data sets of Hugging Face.
        root: folder that relative paths start from.

    Raises:
        PerceiversError: there is no such file, or the cell is none of these.
    """
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes):
        return io.BytesIO(cell)
    if isinstance(cell, str) and cell.startswith("data:"):
        try:
            return io.BytesIO(base64.b64decode(cell.partition(",")[2], validate=True))
        except binascii.Error as error:
            raise PerceiversError("a data URI is damaged: its content is not base64") from error
    if not isinstance(cell, str | os.PathLike):
        raise PerceiversError(f"{quote(cell)} is not the path of a file")
    return require_file(root / os.path.expanduser(cell))
