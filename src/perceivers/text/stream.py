"""Text for pretraining: documents -> windows of tokens with hidden words, without end, resumable at any step.

Shape suffixes: B batch, M tokens, W windows
"""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from perceivers.checks import Checked, Count, ProperFraction
from perceivers.data.loader import SampleIndex, Samples
from perceivers.errors import PerceiversError
from perceivers.text.documents import SUFFIXES, Source, State, TextFiles, TextRows
from perceivers.text.masking import Masked, mask_words
from perceivers.text.tokenizers import Tokenizer


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
class TextData(Checked):
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

    section = "data."

    path: str | dict[str, float] = ""
    leave_out: list[str] = field(default_factory=list)
    tokenizer: str = "bytes"
    documents: Count = 10
    masked: ProperFraction = 0.15
    decoded: ProperFraction = 0.2
    held_out: ProperFraction = 0.02
    evaluated: Count = 1024
    steps: Count = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
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
        """Returns the documents of one path."""
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

    def documents_once(self) -> Iterator[str]:
        """Yields the documents to train on, once, for a vocabulary."""
        for source, _ in self.open(0).values():
            for documents in source.once():
                yield from documents

    def places(self, length: int) -> int:
        """Returns how many places of a window are decoded."""
        return max(1, math.ceil(self.decoded * length))


class StreamedText(Samples):
    """Masked windows of the text to train on, without end; an epoch is as many of them as `data.steps` updates take.

    Args:
        sources: as in `Stream`.
        tokenizer, length: as in `Windows`.
        data: how windows are cut and masked.
        windows: how many an epoch has.
    """

    def __init__(
        self,
        sources: Mapping[str, tuple[Source, float]],
        tokenizer: Tokenizer,
        length: int,
        data: TextData,
        windows: int,
    ) -> None:
        self.sources, self.tokenizer, self.length, self.data, self.windows = sources, tokenizer, length, data, windows

    def __len__(self) -> int:
        return self.windows

    def __getitem__(self, item: SampleIndex) -> Any:
        """Windows have no numbers: which one comes next depends on those before it."""
        raise TypeError("text without end has no numbered windows: iterate over its loader")

    def loader(
        self, batch_size: int, seed: int | None = None, workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Batch]:
        """Returns the batches of one process, see `StreamLoader`."""
        stream = Stream(
            self.sources,
            self.tokenizer,
            self.length,
            self.data.documents,
            self.data.masked,
            self.data.places(self.length),
            batch_size,
            seed or 0,
            rank,
            world_size,
            workers,
        )
        return StreamLoader(stream, self.windows // (batch_size * world_size), workers)


class HeldOutText(Samples):
    """Windows of the text that is held out; in batches of the same size, they always have the same hidden words.

    Args:
        sources: by name, the documents and their share, as `TextData.open` returns them.
        tokenizer, length: as in `Windows`.
        data: how windows are cut and masked, and how many there are at most.

    Raises:
        PerceiversError: the text is shorter than a window.
    """

    def __init__(
        self, sources: Mapping[str, tuple[Source, float]], tokenizer: Tokenizer, length: int, data: TextData
    ) -> None:
        self.tokenizer, self.masked, self.places = tokenizer, data.masked, data.places(length)
        windows = [np.empty((0, length), np.int32)]
        generator = np.random.default_rng(0)
        for source, _ in sources.values():
            found = 0
            for documents in source.held_out():
                part = pack(documents, tokenizer, length, data.documents, generator)
                windows.append(part[: data.evaluated - found])
                found += len(part)
                if found >= data.evaluated:
                    break
        token_WM = np.concatenate(windows)
        if not len(token_WM):
            raise PerceiversError(
                f"the text held out for evaluation is shorter than a window of {length} tokens: "
                f"give more text, or raise data.held_out."
            )
        self.windows_WM = generator.permutation(token_WM)[: data.evaluated]
        self.generator = generator

    def __len__(self) -> int:
        return len(self.windows_WM)

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        """Returns the "text" [M] of a window, without hidden words, which are drawn batch by batch."""
        return {"text": torch.from_numpy(self.windows_WM[item.sample])}

    def batches(self, batch_size: int) -> list[Batch]:
        """Returns all windows with hidden words, in batches; which words are hidden depends on the size of these."""
        generator = copy.deepcopy(self.generator)
        return [
            tensors(mask_words(token_BM, self.tokenizer, self.masked, self.places, generator))
            for token_BM in np.split(self.windows_WM, range(batch_size, len(self), batch_size))
        ]

    def loader(
        self, batch_size: int, seed: int | None = None, workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Batch]:
        """Returns the batches of one process: every `world_size`-th of them."""
        mine: Any = self.batches(batch_size)[rank::world_size]
        return DataLoader(mine, batch_size=None)
