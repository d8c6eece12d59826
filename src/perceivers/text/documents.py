"""Endless streams of documents, from text files or data sets, that can be resumed.

Documents are shared among readers, processes that load data on one or more machines. A reader's position in its share
is its `state`, a few numbers: continuing from a state gives the documents that would have come without interruption.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from perceivers.data.splits import EVALUATION_NAMES, TRAINING_NAMES, choose_splits
from perceivers.data.tables import hub_splits
from perceivers.errors import PerceiversError
from perceivers.files import find_files, read_text, require_file

SUFFIXES = (".txt", ".text", ".md")
BLANK_LINE = r"\n[ \t\r]*\n"
"""Separates documents in a text file."""

BLOCK = 2**20
"""Approximate bytes of text that are read and packed, and whose windows are shuffled, at a time."""

HELD_OUT_ROWS = 1000
"""Documents held out for evaluation from the start of a data set that has no split for it."""

State = dict[str, Any]
"""Plain values that say where to continue in a source of documents."""


def find_text_files(path: str, leave_out: Sequence[str] = ()) -> list[Path]:
    """Returns a text file, or the text files of a folder, sorted; none if there are none.

    Args:
        path: the file or folder.
        leave_out: patterns of names of files to leave out.

    Raises:
        PerceiversError: `leave_out` leaves no file, or a file is empty.
    """
    root = Path(path)
    files = [root] if os.path.isfile(root) else find_files(root, SUFFIXES) if os.path.isdir(root) else []
    if not files:
        return []
    if os.path.isdir(root):
        find_files(root, SUFFIXES, report=True)
    files = [file for file in files if not any(file.match(pattern) for pattern in leave_out)]
    if not files:
        raise PerceiversError(f"data.leave_out leaves no text file of {path}.")
    empty = [file for file in files if not file.stat().st_size]
    if empty:
        raise PerceiversError(f"{empty[0]} is empty: remove it, or leave it out with data.leave_out.")
    return files


class Source(Protocol):
    """A source of documents."""

    def blocks(self, state: State, reader: int, readers: int) -> Iterator[tuple[list[str], State]]:
        """Yields a reader's documents endlessly, about `BLOCK` bytes at a time, from `state` (empty: the start) on.

        With each block comes the state after it.
        """

    def all_documents(self) -> Iterator[list[str]]:
        """Yields the blocks of all training documents once, as they are stored."""

    def held_out_documents(self) -> Iterator[list[str]]:
        """Yields the blocks of documents for evaluation; no reader has them."""

    def split_documents(self, split: str | None) -> tuple[str | None, Iterator[list[str]]]:
        """Returns the split to evaluate a model on, see `choose_splits`, or None for all, and its documents."""


class TextFiles:
    """Text files, in which blank lines separate documents; read in pieces, in another order in each epoch.

    `validation_fraction` of the pieces are held out for evaluation; `seed` is that of the order.
    """

    def __init__(self, paths: list[Path], validation_fraction: float, seed: int) -> None:
        self.paths, self.seed = paths, seed
        sizes = [require_file(path).stat().st_size for path in paths]
        step = min(max(sum(sizes) // 64, 2**10), 2**16)  # short enough that even a small text has pieces to hold out
        pieces = [
            (path, start, min(start + step, size))
            for path, size in zip(paths, sizes, strict=True)
            for start in range(0, size, step)
        ]
        order = np.random.default_rng(0).permutation(len(pieces))  # held-out pieces do not depend on the seed
        count = max(1, round(validation_fraction * len(pieces)))
        self.held_out_pieces = [pieces[index] for index in sorted(order[:count])]
        self.pieces = [pieces[index] for index in sorted(order[count:])]
        self.per_block = max(1, BLOCK // step)

    def blocks(self, state: State, reader: int, readers: int) -> Iterator[tuple[list[str], State]]:
        count = state.get("pieces", 0)  # pieces that this reader has read
        while True:
            documents: list[str] = []
            for _ in range(self.per_block):
                epoch, index = divmod(count * readers + reader, len(self.pieces))
                order = np.random.default_rng((self.seed, epoch)).permutation(len(self.pieces))
                documents += read_documents(*self.pieces[order[index]])
                count += 1
            yield documents, {"pieces": count}

    def all_documents(self) -> Iterator[list[str]]:
        return (read_documents(*piece) for piece in self.pieces)

    def held_out_documents(self) -> Iterator[list[str]]:
        if not self.pieces:
            size = sum(end - start for _, start, end in self.held_out_pieces)
            raise PerceiversError(f"{self.paths[0]} has {size} bytes of text, too few to train on and evaluate.")
        return (read_documents(*piece) for piece in self.held_out_pieces)

    def split_documents(self, split: str | None) -> tuple[str | None, Iterator[list[str]]]:
        choose_splits((), split, self.paths[0])
        return None, (read_documents(*piece) for piece in sorted(self.pieces + self.held_out_pieces))


def read_documents(path: Path, start: int, end: int) -> list[str]:
    """Reads the documents that begin in a piece of a file, the last one to its end."""
    advice = "convert the file, or leave it out with data.leave_out"
    text = read_text(path, next_boundary(path, start), next_boundary(path, end), advice)
    return [document for part in re.split(BLANK_LINE, text) if (document := part.strip())]


def next_boundary(path: Path, offset: int) -> int:
    """Returns the first offset from `offset` on at which a file may be cut.

    It is after the next blank line; if there is none within a piece's length, after the next line, else after the next
    blank, else after the current character.
    """
    with path.open("rb") as file:
        if offset == 0 or offset >= path.stat().st_size:
            return offset
        file.seek(offset)
        ahead = file.read(2**16)
    for mark in (BLANK_LINE, "\n", " "):
        if found := re.search(mark.encode(), ahead):
            return offset + found.end()
    return offset + next((index for index, byte in enumerate(ahead[:4]) if byte & 0xC0 != 0x80), 0)


class TextRows:
    """The text column of a Hugging Face data set, see `hub_splits` for its name, read as a stream."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.splits = hub_splits(name, streaming=True)
        training, evaluation = (
            next((self.splits[split] for split in names if split in self.splits), None)
            for names in (TRAINING_NAMES, EVALUATION_NAMES)
        )
        if training is None:
            raise PerceiversError(f"{name} has no split 'train', but {', '.join(self.splits)}.")
        self.training = training if evaluation is not None else training.skip(HELD_OUT_ROWS)
        self.evaluation = training.take(HELD_OUT_ROWS) if evaluation is None else evaluation
        features = training.features or {}
        strings = [key for key, kind in features.items() if getattr(kind, "dtype", "") in ("string", "large_string")]
        found = ["text"] if "text" in strings else strings
        if len(found) != 1:
            raise PerceiversError(f"{name} has the columns {', '.join(features)}: one called 'text' is expected.")
        self.column = found[0]

    def blocks(self, state: State, reader: int, readers: int) -> Iterator[tuple[list[str], State]]:
        from datasets.distributed import split_dataset_by_node

        epoch = state.get("epoch", 0)
        while True:
            rows = split_dataset_by_node(self.training, reader, readers)
            rows.set_epoch(epoch)
            if "rows" in state:
                rows.load_state_dict(state["rows"])
            is_empty = "rows" not in state
            for documents in self.batched(rows):
                is_empty = False
                yield documents, {"epoch": epoch, "rows": rows.state_dict()}
            if is_empty:
                raise PerceiversError(
                    f"{self.name} has no text for reader {reader + 1} of {readers}: give more text, or fewer workers."
                )
            epoch, state = epoch + 1, {}

    def all_documents(self) -> Iterator[list[str]]:
        return self.batched(self.training)

    def held_out_documents(self) -> Iterator[list[str]]:
        return self.batched(self.evaluation)

    def split_documents(self, split: str | None) -> tuple[str | None, Iterator[list[str]]]:
        ((chosen, part), *_) = choose_splits(self.splits, split, self.name)
        return chosen, self.batched(self.splits[part])

    def batched(self, rows: Any) -> Iterator[list[str]]:
        """Yields the documents of rows, about `BLOCK` characters at a time."""
        documents, size = list[str](), 0
        for batch in rows.iter(batch_size=64):
            for document in batch[self.column]:
                if document and (document := document.strip()):
                    documents.append(document)
                    size += len(document)
            if size >= BLOCK:
                yield documents
                documents, size = [], 0
        if documents:
            yield documents
