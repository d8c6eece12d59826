"""Documents of text without end, from files or data sets, which a reader can go on reading where it stopped.

They are read by one or several readers (processes that load data, on one or several machines), each of which has its
own share of them. A reader's place in its share is a few numbers, its `state`: what it goes on with after it is what it
would have gone on with without an interruption.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from perceivers.errors import PerceiversError

SUFFIXES = (".txt", ".text", ".md")
BLANK_LINE = r"\n[ \t\r]*\n"
"""What separates documents in a text file."""

BLOCK = 2**20
"""About so many bytes of text are read, packed, and their windows put in random order, at a time."""

HELD_OUT_ROWS = 1000
"""Documents kept for evaluation from the start of a data set that has no split for it."""

State = dict[str, Any]
"""Plain values that say where a source of documents stands."""


class Source(Protocol):
    """Where documents come from."""

    def blocks(self, state: State, reader: int, readers: int) -> Iterator[tuple[list[str], State]]:
        """A reader's documents without end, about `BLOCK` bytes at a time, from `state` (empty: the start) on.

        With each block comes the state from which the next one is read.
        """

    def once(self) -> Iterator[list[str]]:
        """The blocks of all documents that readers have, once, as they are stored."""

    def held_out(self) -> Iterator[list[str]]:
        """The blocks of documents kept for evaluation; no reader has them."""


def read_text(path: Path, start: int = 0, end: int | None = None) -> str:
    """A part of a UTF-8 file, in bytes.

    Raises:
        PerceiversError: it is not UTF-8; names file and offset.
    """
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(-1 if end is None else end - start)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise PerceiversError(
            f"{path} is not UTF-8 text: byte {start + error.start} is {content[error.start]:#04x}; "
            f"convert the file, or leave it out with data.leave_out."
        ) from error


@dataclass
class TextFiles:
    """Text files, in which blank lines separate documents; read in pieces, in another order in each epoch.

    Args:
        paths: the files.
        held_out_part: of the pieces, is kept for evaluation.
        seed: of the order.
    """

    paths: list[Path]
    held_out_part: float
    seed: int
    pieces: list[tuple[Path, int, int]] = field(init=False)

    def __post_init__(self) -> None:
        sizes = [path.stat().st_size for path in self.paths]
        step = min(max(sum(sizes) // 64, 2**10), 2**16)  # short enough that even a small text has pieces to hold out
        pieces = [
            (path, start, min(start + step, size))
            for path, size in zip(self.paths, sizes, strict=True)
            for start in range(0, size, step)
        ]
        order = np.random.default_rng(0).permutation(len(pieces))  # what is held out depends on no seed
        count = max(1, round(self.held_out_part * len(pieces)))
        if len(pieces) < 2:
            raise PerceiversError(f"{self.paths[0]} has {sum(sizes)} bytes of text, too few to train on and evaluate.")
        self.held_out_pieces = [pieces[index] for index in sorted(order[:count])]
        self.pieces = [pieces[index] for index in sorted(order[count:])]
        self.per_block = max(1, BLOCK // step)

    def blocks(self, state: State, reader: int, readers: int) -> Iterator[tuple[list[str], State]]:
        place = state.get("pieces", 0)  # how many pieces this reader has read
        while True:
            documents: list[str] = []
            for _ in range(self.per_block):
                epoch, index = divmod(place * readers + reader, len(self.pieces))
                order = np.random.default_rng((self.seed, epoch)).permutation(len(self.pieces))
                documents += self.documents(self.pieces[order[index]])
                place += 1
            yield documents, {"pieces": place}

    def once(self) -> Iterator[list[str]]:
        for piece in self.pieces:
            yield self.documents(piece)

    def held_out(self) -> Iterator[list[str]]:
        for piece in self.held_out_pieces:
            yield self.documents(piece)

    def documents(self, piece: tuple[Path, int, int]) -> list[str]:
        """The documents that begin in a piece of a file, the last one to its end."""
        path, start, end = piece
        text = read_text(path, bound(path, start), bound(path, end))
        return [document for part in re.split(BLANK_LINE, text) if (document := part.strip())]


def bound(path: Path, offset: int) -> int:
    """The first place from an offset on where a file may be cut.

    It is behind the next blank line; if there is none within a piece's length, behind the next line, else the next
    blank, else the character that is cut.
    """
    with path.open("rb") as file:
        if offset == 0 or offset >= path.stat().st_size:
            return offset
        file.seek(offset)
        ahead = file.read(2**16)
    for mark in (BLANK_LINE, "\n", " "):
        if found := re.search(mark.encode(), ahead):
            return offset + found.end()
    return offset + next((place for place, byte in enumerate(ahead[:4]) if byte & 0xC0 != 0x80), 0)


@dataclass
class TextRows:
    """The text column of a Hugging Face data set, from the hub or a local folder, read as a stream.

    Args:
        name: of the data set, or a folder; a configuration of it may follow after a colon, as in "allenai/c4:en".
    """

    name: str

    def __post_init__(self) -> None:
        splits = self.open()
        training = next((splits[name] for name in ("train", "training") if name in splits), None)
        self.evaluation = next(
            (splits[name] for name in ("validation", "valid", "dev", "test") if name in splits), None
        )
        if training is None:
            raise PerceiversError(f"{self.name} has no split 'train', but {', '.join(splits)}.")
        self.training = training if self.evaluation is not None else training.skip(HELD_OUT_ROWS)
        if self.evaluation is None:
            self.evaluation = training.take(HELD_OUT_ROWS)
        features = training.features or {}
        strings = [
            name for name, feature in features.items() if getattr(feature, "dtype", "") in ("string", "large_string")
        ]
        found = ["text"] if "text" in strings else strings
        if len(found) != 1:
            raise PerceiversError(f"{self.name} has the columns {', '.join(features)}: one called 'text' is expected.")
        self.column = found[0]

    def open(self) -> Mapping[str, Any]:
        """The data set's splits, as streams."""
        import datasets

        path, _, configuration = self.name.partition(":")
        try:
            splits: Mapping[str, Any] = datasets.load_dataset(path, configuration or None, streaming=True)
        except Exception as error:  # the library raises many kinds; each means that it cannot be had
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            kind = "cannot be read as a data set" if Path(path).exists() else "is neither here nor on the hub"
            raise PerceiversError(f"data.path: {self.name} {kind}: {reason}") from error
        return splits

    def blocks(self, state: State, reader: int, readers: int) -> Iterator[tuple[list[str], State]]:
        from datasets.distributed import split_dataset_by_node

        epoch = state.get("epoch", 0)
        rows = split_dataset_by_node(self.training, reader, readers)
        rows.set_epoch(epoch)
        if "rows" in state:
            rows.load_state_dict(state["rows"])
        while True:
            empty = True
            for documents in self.gather(rows):
                empty = False
                yield documents, {"epoch": epoch, "rows": rows.state_dict()}
            if empty and "rows" not in state:
                raise PerceiversError(
                    f"{self.name} has no text for reader {reader + 1} of {readers}: "
                    f"give more text, or use fewer workers."
                )
            epoch, state = epoch + 1, {}
            rows = split_dataset_by_node(self.training, reader, readers)
            rows.set_epoch(epoch)

    def once(self) -> Iterator[list[str]]:
        yield from self.gather(self.training)

    def held_out(self) -> Iterator[list[str]]:
        yield from self.gather(self.evaluation)

    def gather(self, rows: Any) -> Iterator[list[str]]:
        """Documents of rows, about `BLOCK` characters at a time."""
        documents: list[str] = []
        size = 0
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
