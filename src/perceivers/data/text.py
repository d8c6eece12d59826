"""Text without end, for pretraining: documents -> windows of tokens with hidden words, resumable at any step.

Documents are read by one or several readers (processes that load data, on one or several machines), each of which has
its own share of them. A reader's place in its share is a few numbers, its `state`: what it goes on with after it is
what it would have gone on with without an interruption.

Shape suffixes: B batch, M tokens
"""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from perceivers.data.masking import Masked, mask_words
from perceivers.data.tokenizers import Tokenizer
from perceivers.model.errors import PerceiversError

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
        held_out: part of the pieces that is kept for evaluation.
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

    It is behind the next blank line, or line, or white space, or character, whichever of these comes first within a
    piece's length.
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


class Windows:
    """One reader's windows of one source: documents packed, cut, and put in random order block by block.

    Args:
        source: the documents.
        tokenizer: makes tokens of them.
        length: M, tokens of a window.
        documents: how many are packed at a time.
        seed, reader, readers: as in `Stream`.
        state: where to go on.
    """

    def __init__(
        self, source: Source, tokenizer: Tokenizer, length: int, documents: int, seed: int, reader: int, readers: int,
        state: State,
    ) -> None:  # fmt: skip
        self.tokenizer, self.length, self.documents = tokenizer, length, documents
        self.seed, self.reader = seed, reader
        self.before: State = state.get("before", {})
        self.block = state.get("block", 0)
        self.place = state.get("place", 0)
        self.blocks = source.blocks(self.before, reader, readers)
        self.windows_WM = np.empty((0, length), np.int32)
        self.after: State | None = None
        self.barren = 0

    @property
    def state(self) -> State:
        """Where the next window comes from."""
        return {"before": self.before, "block": self.block, "place": self.place}

    def take(self, count: int) -> NDArray[np.int32]:
        """The next windows; -> [count, M]."""
        parts: list[NDArray[np.int32]] = []
        while count:
            if self.after is None:
                documents, self.after = next(self.blocks)
                generator = np.random.default_rng((self.seed, self.reader, self.block))
                self.windows_WM = generator.permutation(
                    pack(documents, self.tokenizer, self.length, self.documents, generator)
                )
                self.barren = 0 if len(self.windows_WM) else self.barren + 1
                if self.barren == 10:
                    raise PerceiversError(
                        f"a stretch of the text holds no {self.length} tokens to make a window of: "
                        f"give more text, or a model of a smaller length."
                    )
            part = self.windows_WM[self.place : self.place + count]
            parts.append(part)
            count -= len(part)
            self.place += len(part)
            if self.place >= len(self.windows_WM):
                self.before, self.after, self.block, self.place = self.after, None, self.block + 1, 0
        return np.concatenate(parts)


def pack(
    documents: list[str], tokenizer: Tokenizer, length: int, count: int, generator: np.random.Generator
) -> NDArray[np.int32]:
    """Joins `count` documents at a time by the separator and cuts windows of `length` tokens from them; -> [W, length].

    More are joined where they are shorter than a window. The first window begins at random, the next ones follow
    without a gap, and what then is left at both ends is shorter than a window.
    """
    windows: list[NDArray[np.int32]] = []
    separator = np.array([tokenizer.sep], np.int32)
    packed: list[NDArray[np.int32]] = []
    joined = size = 0
    for index, document in enumerate(documents):
        tokens = tokenizer.encode(document)
        packed += [tokens, separator]
        size += len(tokens) + 1
        joined += 1
        if (joined >= count or index == len(documents) - 1) and size >= length:
            token_M = np.concatenate(packed)
            fitting, rest = divmod(size, length)
            start = int(generator.integers(rest + 1))
            windows.append(token_M[start : start + fitting * length].reshape(fitting, length))
            packed, joined, size = [], 0, 0
    return np.concatenate(windows) if windows else np.empty((0, length), np.int32)


Batch = dict[str, Any]
"""Of a batch of windows: "text", "places" and "labels" as in `Masked`, as tensors."""


class Stream(IterableDataset[Batch]):
    """Masked batches of a mixture of sources, without end.

    Args:
        sources: by name, the documents, and their share of all tokens.
        tokenizer, length, documents: as in `Windows`.
        rate, places: as in `mask_words`.
        batch_size: windows of a batch.
        seed: of everything that is random.
        rank, world: this process among those that train together.
        workers: processes that load data for this one; 0 loads in this one.
    """

    def __init__(
        self, sources: Mapping[str, tuple[Source, float]], tokenizer: Tokenizer, length: int, documents: int,
        rate: float, places: int, batch_size: int, seed: int, rank: int, world: int, workers: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.sources, self.tokenizer, self.length, self.documents = sources, tokenizer, length, documents
        self.rate, self.places, self.batch_size, self.seed = rate, places, batch_size, seed
        self.rank, self.world, self.workers = rank, world, max(1, workers)
        self.states: list[State] = [{} for _ in range(self.workers)]
        self.done = 0

    def __iter__(self) -> Iterator[Batch]:
        """In each worker, its batches from its state on; a batch holds the state behind it."""
        info = get_worker_info()
        # Batches are taken from worker 0, 1, ... in turn: the next one is due from the reader that follows the last.
        worker = (self.done + (info.id if info else 0)) % self.workers
        reader, readers = self.rank * self.workers + worker, self.world * self.workers
        state = self.states[worker]
        before = state.get("sources", {})
        windows = {
            name: Windows(
                source, self.tokenizer, self.length, self.documents, self.seed, reader, readers, before.get(name, {})
            )
            for name, (source, _) in self.sources.items()
        }
        shares = np.array([share for _, share in self.sources.values()])
        for batch in itertools.count(state.get("batches", 0)):
            generator = np.random.default_rng((self.seed, reader, batch, 1))
            counts = generator.multinomial(self.batch_size, shares / shares.sum())
            token_BM = np.concatenate(
                [w.take(count) for w, count in zip(windows.values(), counts, strict=True) if count]
            )
            after = {"batches": batch + 1, "sources": {name: w.state for name, w in windows.items()}}
            yield {
                **tensors(mask_words(token_BM, self.tokenizer, self.rate, self.places, generator)),
                "worker": worker,
                "state": after,
            }


def tensors(masked: Masked) -> Batch:
    """A batch as tensors."""
    return dict(zip(("text", "places", "labels"), map(torch.from_numpy, masked), strict=True))


class StreamLoader(DataLoader[Batch]):
    """Batches of a stream, of which each epoch has the same number; where it stands is part of a checkpoint.

    Args:
        stream: the batches.
        batches: how many an epoch has.
        workers: processes that load data.
    """

    def __init__(self, stream: Stream, batches: int, workers: int) -> None:
        self.stream, self.batches = stream, batches
        self.done = 0
        super().__init__(stream, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available())

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # the base class promises a private class
        self.done %= self.batches  # an epoch that was interrupted goes on
        for batch in itertools.islice(super().__iter__(), self.batches - self.done):
            self.stream.states[batch.pop("worker")] = batch.pop("state")
            self.stream.done += 1
            self.done += 1
            yield batch

    def state_dict(self) -> State:
        mine = {"done": self.done, "batches": self.stream.done, "workers": self.stream.states}
        return {"ranks": gathered(mine)}

    def load_state_dict(self, state: State) -> None:
        ranks = state["ranks"]
        for what, was, now in (
            ("devices and nodes", len(ranks), self.stream.world),
            ("training.workers", len(ranks[0]["workers"]), self.stream.workers),
        ):
            if was != now:
                raise PerceiversError(
                    f"{what}: the run was begun with {was}, not {now}: it can be resumed with as many."
                )
        mine = ranks[self.stream.rank]
        self.done, self.stream.done, self.stream.states = mine["done"], mine["batches"], mine["workers"]


def gathered(value: Any) -> list[Any]:
    """What each of the processes that train together has, by rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


@dataclass
class TextData:
    """Which text to pretrain on, and how it is masked.

    Attributes:
        path: a text file, a folder of text files in which blank lines separate documents, a folder with a data set in
            parquet or JSON lines, or the name of a data set on the hub, with a configuration after a colon, such as
            allenai/c4:en; or several of these, each with its share of all tokens.
        leave_out: patterns of names of text files that are not read.
        tokenizer: "bytes", or a SentencePiece model, as `perceivers train-tokenizer` writes.
        documents: how many are joined before windows are cut from them.
        masked: probability with which a word is hidden.
        decoded: largest part of a window's tokens that is hidden.
        held_out: part of text files that is kept for evaluation; other data sets have a split for it, or lose their
            first thousand documents.
        evaluated: most windows of an evaluation.
        steps: updates after which the model is evaluated and saved. Since text has no end, this is called an epoch.
    """

    path: str | dict[str, float] = ""
    leave_out: list[str] = field(default_factory=list)
    tokenizer: str = "bytes"
    documents: int = 10
    masked: float = 0.15
    decoded: float = 0.2
    held_out: float = 0.02
    evaluated: int = 1024
    steps: int = 1000

    def __post_init__(self) -> None:
        for name in ("masked", "decoded", "held_out"):
            if not 0 < getattr(self, name) < 1:
                raise PerceiversError(
                    f"data.{name} = {getattr(self, name)} is not allowed: it is a part between 0 and 1."
                )
        for name in ("documents", "evaluated", "steps"):
            if getattr(self, name) < 1:
                raise PerceiversError(f"data.{name} = {getattr(self, name)} is not allowed: it must be at least 1.")
        for name, share in self.shares.items():
            if not share > 0:
                raise PerceiversError(f"data.path: the share of {name} is {share}, but it must be larger than 0.")

    @property
    def shares(self) -> dict[str, float]:
        """The sources, by path, with their shares."""
        return {self.path: 1.0} if isinstance(self.path, str) else self.path

    def open(self, seed: int) -> dict[str, tuple[Source, float]]:
        """Finds the text: by path, its documents and its share.

        Raises:
            PerceiversError: there is none.
        """
        if not self.path:
            raise PerceiversError("data.path is missing: give a text file, a folder, or a data set of the hub.")
        return {path: (self.source(path, seed), share) for path, share in self.shares.items()}

    def source(self, path: str, seed: int) -> Source:
        """The documents of one path."""
        root = Path(path)
        if not root.exists():
            return TextRows(path)
        files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.suffix in SUFFIXES)
        if not files:
            return TextRows(path)
        files = [file for file in files if not any(file.match(pattern) for pattern in self.leave_out)]
        if not files:
            raise PerceiversError(f"data.leave_out leaves no text file of {path}.")
        empty = [file for file in files if not file.stat().st_size]
        if empty:
            raise PerceiversError(f"{empty[0]} is empty: remove it, or leave it out with data.leave_out.")
        return TextFiles(files, self.held_out, seed)

    def places(self, length: int) -> int:
        """How many places of a window are decoded."""
        return max(1, math.ceil(self.decoded * length))

    def evaluation(
        self, sources: Mapping[str, tuple[Source, float]], tokenizer: Tokenizer, length: int, batch_size: int
    ) -> list[Batch]:
        """Batches of the text that is held out, always with the same hidden words.

        Raises:
            PerceiversError: it is shorter than a window.
        """
        windows = [np.empty((0, length), np.int32)]
        generator = np.random.default_rng(0)
        for source, _ in sources.values():
            found = 0
            for documents in source.held_out():
                part = pack(documents, tokenizer, length, self.documents, generator)
                windows.append(part[: self.evaluated - found])
                found += len(part)
                if found >= self.evaluated:
                    break
        token_WM = np.concatenate(windows)
        if not len(token_WM):
            raise PerceiversError(
                f"the text held out for evaluation is shorter than a window of {length} tokens: "
                f"give more text, or raise data.held_out."
            )
        token_WM = generator.permutation(token_WM)[: self.evaluated]
        return [
            tensors(mask_words(token_BM, tokenizer, self.masked, self.places(length), generator))
            for token_BM in np.split(token_WM, range(batch_size, len(token_WM), batch_size))
        ]
