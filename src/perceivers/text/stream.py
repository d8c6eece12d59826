"""Text for pretraining: documents -> windows of tokens with masked words, endless, resumable at any step.

Shape suffixes: B batch, M tokens, W windows
"""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from perceivers.checks import Checked, Count, ProperFraction
from perceivers.data.loader import SampleIndex, Samples, ignore_signals, raise_error
from perceivers.errors import PerceiversError
from perceivers.text.documents import Source, State, TextFiles, TextRows, find_text_files
from perceivers.text.masking import mask_words
from perceivers.text.tokenizers import Tokenizer

Batch = dict[str, Any]
"""A batch of windows: "text", "indices" and "labels" as in `Masked`, as tensors."""

Sources = Mapping[str, tuple[Source, float]]
"""Documents and their share of all tokens, by name."""


@dataclass
class TextData(Checked):
    """Text for pretraining, and how it is masked.

    Attributes:
        path: a text file, a folder of text files in which blank lines separate documents, a folder with a data set in
            parquet or JSON lines, or a data set on the Hub, optionally with a configuration after a colon, such as
            allenai/c4:en; or several of these, each with its share of all tokens.
        leave_out: patterns of names of text files that are not read.
        tokenizer: "bytes", or a SentencePiece model that `perceivers train-tokenizer` wrote; by default that of the
            pretrained model or, without one, "bytes".
        documents_per_pack: number of documents that are joined before windows are cut from them.
        mask_rate: probability with which a word is masked.
        max_masked_fraction: maximum fraction of a window's tokens that is masked.
        validation_fraction: fraction of text files held out for evaluation; of other data sets, their split for it, or
            else the first thousand documents are held out.
        eval_windows: maximum number of windows in an evaluation.
        steps_per_epoch: updates between evaluations; since the text is endless, these are called an epoch.
    """

    section = "data."

    path: str | dict[str, float] = ""
    leave_out: list[str] = field(default_factory=list)
    tokenizer: str | None = None
    documents_per_pack: Count = 10
    mask_rate: ProperFraction = 0.15
    max_masked_fraction: ProperFraction = 0.2
    validation_fraction: ProperFraction = 0.02
    eval_windows: Count = 1024
    steps_per_epoch: Count = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, share in self.shares.items():
            if not share > 0:
                raise PerceiversError(f"data.path: the share of {name} is {share}, but it must be larger than 0.")

    @property
    def shares(self) -> dict[str, float]:
        """The paths, with their shares."""
        return {self.path: 1.0} if isinstance(self.path, str) else self.path

    def open(self, seed: int) -> dict[str, tuple[Source, float]]:
        """Finds the text, see `Sources`, or raises a PerceiversError."""
        if not self.path:
            raise PerceiversError("data.path is missing: give a text file, a folder, or a data set of the Hub.")
        return {path: (self.find_source(path, seed), share) for path, share in self.shares.items()}

    def find_source(self, path: str, seed: int) -> Source:
        """Returns the documents of one path."""
        files = find_text_files(path, self.leave_out)
        return TextFiles(files, self.validation_fraction, seed) if files else TextRows(path)

    def all_documents(self) -> Iterator[str]:
        """Yields the training documents once, for a vocabulary."""
        for source, _ in self.open(0).values():
            yield from itertools.chain.from_iterable(source.all_documents())

    def mask(self, token_BM: NDArray[Any], tokenizer: Tokenizer, generator: np.random.Generator) -> Batch:
        """Returns windows with masked words."""
        max_masked = max(1, math.ceil(self.max_masked_fraction * token_BM.shape[1]))
        masked = mask_words(token_BM, tokenizer, self.mask_rate, max_masked, generator)
        return dict(zip(("text", "indices", "labels"), map(torch.from_numpy, masked), strict=True))


@dataclass(eq=False)
class StreamedText(Samples):
    """Masked windows of training text, endless; `windows` of them are an epoch.

    Args:
        length: M, tokens of a window.
        data: how windows are cut and masked.
        windows: number of windows of an epoch, over all processes.
    """

    sources: Sources
    tokenizer: Tokenizer
    length: int
    data: TextData
    windows: int

    def __len__(self) -> int:
        return self.windows

    def __getitem__(self, item: SampleIndex) -> Any:
        """Windows cannot be numbered: each depends on those before it."""
        raise TypeError("text without end has no numbered windows: iterate over its loader")

    def loader(
        self, batch_size: int, seed: int | None = None, workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Batch]:
        """Returns the batches of one process, see `StreamLoader`."""
        stream = Stream(self, batch_size, seed or 0, rank, world_size, workers)
        return StreamLoader(stream, self.windows // (batch_size * world_size), workers)


def read_windows(
    source: Source, text: StreamedText, seed: int, reader: int, readers: int, state: State
) -> Iterator[tuple[NDArray[np.int32], State]]:
    """Yields one reader's windows [M] of one source from `state` on, each with the state after it.

    Documents are packed and cut, and windows shuffled, block by block; `seed`, `reader`, `readers` are as in `Stream`
    and `Source.blocks`.
    """
    before, block, start = state.get("before", {}), state.get("block", 0), state.get("place", 0)
    empty_blocks = 0
    for documents, after in source.blocks(before, reader, readers):
        generator = np.random.default_rng((seed, reader, block))
        windows_WM = pack(documents, text.tokenizer, text.length, text.data.documents_per_pack, generator)
        for index, window_M in enumerate(generator.permutation(windows_WM)[start:], start + 1):
            yield window_M, {"before": before, "block": block, "place": index}
        empty_blocks = 0 if len(windows_WM) else empty_blocks + 1
        if empty_blocks == 10:
            raise PerceiversError(
                f"ten consecutive blocks of text were shorter than one window ({text.length} tokens): "
                f"add text, or use a model with a shorter length."
            )
        before, block, start = after, block + 1, 0


def pack(
    documents: list[str], tokenizer: Tokenizer, length: int, count: int, generator: np.random.Generator
) -> NDArray[np.int32]:
    """Joins `count` documents at a time by the separator and cuts windows of `length` tokens from them; -> [W, length].

    More are joined if they are shorter than a window. The first window begins at a random offset, the next ones follow
    without a gap, and the remainders at both ends are shorter than a window.
    """
    windows_WM, packed = [np.empty((0, length), np.int32)], list[NDArray[np.int32]]()
    joined = size = 0
    for index, document in enumerate(documents):
        packed += [tokenizer.encode(document), np.array([tokenizer.sep], np.int32)]
        size += len(packed[-2]) + 1
        joined += 1
        if (joined >= count or index == len(documents) - 1) and size >= length:
            fitting, rest = divmod(size, length)
            start = int(generator.integers(rest + 1))
            windows_WM.append(np.concatenate(packed)[start : start + fitting * length].reshape(fitting, length))
            packed, joined, size = [], 0, 0
    return np.concatenate(windows_WM)


@dataclass(eq=False)
class Stream(IterableDataset[Any]):
    """Masked batches of a mixture of sources, endless.

    Args:
        text: the sources, and how windows are cut and masked.
        batch_size: windows per batch.
        seed: seed of everything random.
        rank, world_size: this process among those that train together.
        workers: data-loading processes of this process; 0 loads in the process itself.
    """

    text: StreamedText
    batch_size: int
    seed: int
    rank: int
    world_size: int
    workers: int

    def __post_init__(self) -> None:
        self.workers = max(1, self.workers)
        self.states: list[State] = [{} for _ in range(self.workers)]
        self.batches_done = 0

    def __iter__(self) -> Iterator[Batch | PerceiversError]:
        """Yields each worker's batches from its state on, or the error that ends them."""
        try:
            yield from self.read_batches()
        except PerceiversError as error:
            yield error

    def read_batches(self) -> Iterator[Batch]:
        """Yields each worker's batches from its state on; a batch has the state after it."""
        info = get_worker_info()
        # Batches are taken from worker 0, 1, ... in turn: the next one is due from the reader after the last.
        worker = (self.batches_done + (info.id if info else 0)) % self.workers
        reader, readers = self.rank * self.workers + worker, self.world_size * self.workers
        state = self.states[worker]
        states = {name: state.get("sources", {}).get(name, {}) for name in self.text.sources}
        streams = {
            name: read_windows(source, self.text, self.seed, reader, readers, states[name])
            for name, (source, _) in self.text.sources.items()
        }
        shares = np.array([share for _, share in self.text.sources.values()])
        for index in itertools.count(state.get("batches", 0)):
            generator = np.random.default_rng((self.seed, reader, index, 1))
            counts = generator.multinomial(self.batch_size, shares / shares.sum())
            windows = []
            for name, count in zip(streams, counts, strict=True):
                for window_M, after in itertools.islice(streams[name], count):
                    windows.append(window_M)
                    states[name] = after
            batch = self.text.data.mask(np.stack(windows), self.text.tokenizer, generator)
            yield batch | {"worker": worker, "state": {"batches": index + 1, "sources": states.copy()}}


class StreamLoader(DataLoader[Batch]):
    """Batches of a stream, the same number in each epoch; its position is part of a checkpoint."""

    def __init__(self, stream: Stream, batches: int, workers: int) -> None:
        self.stream, self.batches = stream, batches
        self.done = 0
        super().__init__(
            stream,
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_signals,
        )

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # the base class promises a private class
        self.done %= self.batches  # an interrupted epoch continues
        for batch in map(raise_error, itertools.islice(super().__iter__(), self.batches - self.done)):
            self.stream.states[batch.pop("worker")] = batch.pop("state")
            self.stream.batches_done += 1
            self.done += 1
            yield batch

    def state_dict(self) -> State:
        ranks = [{"done": self.done, "batches": self.stream.batches_done, "workers": self.stream.states}]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            own, ranks = ranks[0], ranks * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(ranks, own)
        return {"ranks": ranks}

    def load_state_dict(self, state: State) -> None:
        ranks = state["ranks"]
        for name, before, now in (
            ("devices and nodes", len(ranks), self.stream.world_size),
            ("training.workers", len(ranks[0]["workers"]), self.stream.workers),
        ):
            if before != now:
                raise PerceiversError(f"{name}: the run was begun with {before}, not {now}: resume it with {before}.")
        own = ranks[self.stream.rank]
        self.done, self.stream.batches_done, self.stream.states = own["done"], own["batches"], own["workers"]


class HeldOutText(Samples):
    """Windows of text for evaluation; in batches of the same size, the same words are always masked.

    Args:
        sources, tokenizer, length: as in `StreamedText`.
        data: how windows are cut and masked, and their maximum number.
        documents: blocks of documents of each source; by default those that are held out.

    Raises:
        PerceiversError: the text is shorter than a window.
    """

    def __init__(
        self,
        sources: Sources,
        tokenizer: Tokenizer,
        length: int,
        data: TextData,
        documents: Iterable[Iterator[list[str]]] | None = None,
    ) -> None:
        self.tokenizer, self.data = tokenizer, data
        self.generator = np.random.default_rng(0)
        windows: list[NDArray[np.int32]] = []
        for blocks in documents or [source.held_out_documents() for source, _ in sources.values()]:
            parts = (pack(block, tokenizer, length, data.documents_per_pack, self.generator) for block in blocks)
            windows += itertools.islice(itertools.chain.from_iterable(parts), data.eval_windows)
        if not windows:
            raise PerceiversError(
                f"the text held out for evaluation is shorter than a window of {length} tokens: "
                f"give more text, or raise data.validation_fraction."
            )
        self.windows_WM = self.generator.permutation(np.stack(windows))[: data.eval_windows]

    def __len__(self) -> int:
        return len(self.windows_WM)

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        """Returns the "text" [M] of a window, without masked words: they are drawn batch by batch."""
        return {"text": torch.from_numpy(self.windows_WM[item.sample])}

    def batches(self, batch_size: int) -> list[Batch]:
        """Returns all windows with masked words, in batches; which words are masked depends on the batch size."""
        generator = copy.deepcopy(self.generator)
        parts = np.split(self.windows_WM, range(batch_size, len(self), batch_size))
        return [self.data.mask(token_BM, self.tokenizer, generator) for token_BM in parts]

    def loader(
        self, batch_size: int, seed: int | None = None, workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Batch]:
        """Returns the batches of one process: every `world_size`-th."""
        batches: Any = self.batches(batch_size)[rank::world_size]
        return DataLoader(batches, batch_size=None)
