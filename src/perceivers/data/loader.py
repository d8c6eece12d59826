"""Batches in an order that depends only on seed and epoch, so that training resumes exactly where it stopped."""

import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from perceivers.errors import PerceiversError


class SampleIndex(NamedTuple):
    """The index of a sample, and the seed of its random augmentation."""

    sample: int
    seed: int


class Samples(Dataset[Any], ABC):
    """The samples of a data set, and how they are collated into batches.

    Attributes:
        lengths: lengths of the samples, if a batch should hold samples of similar length.
        weights: the relative frequency of each sample in training; None: every sample once in an epoch.
    """

    lengths: Sequence[int] | None = None
    weights: Sequence[float] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of samples."""

    @abstractmethod
    def __getitem__(self, item: SampleIndex) -> Any:
        """Makes a sample, with random numbers from the seed of `item` alone."""

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        """Collates samples, by default dicts of tensors or numbers, into tensors by name.

        An optional "problems" lists the samples that could not be read. If none could be, the batch has no other key.
        """
        batch: dict[str, Any] = default_collate(samples)
        return batch

    def loader(
        self, batch_size: int, seed: int | None = None, workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Any]:
        """Returns a loader of batches, whose position in the epoch Lightning saves in checkpoints and restores.

        Training batches are all full; the last batch of an evaluation may be smaller.

        Args:
            batch_size: samples per batch of one process.
            seed: seed of the order, which differs between epochs; None for evaluation, in the order of the data set or,
                if there are `lengths`, by length.
            workers: data-loading processes.
            rank: index of the training process, which takes every `world_size`-th sample.
            world_size: number of training processes.

        Raises:
            PerceiversError: there are fewer samples than one training batch of all processes takes.
        """
        order = EpochSampler(self, batch_size, seed, rank, world_size)
        if seed is not None and not len(order):
            raise PerceiversError(
                f"training.batch_size is larger than the training set of {len(self)} samples: lower it."
            )
        return ResumableLoader(self, order, batch_size, workers)


class EpochSampler(Sampler[SampleIndex]):
    """The order of the samples of one process in one epoch; the arguments are those of `Samples.loader`."""

    def __init__(self, samples: Samples, batch_size: int, seed: int | None, rank: int, world_size: int) -> None:
        self.count, self.seed, self.rank, self.world_size = len(samples), seed, rank, world_size
        self.lengths = None if samples.lengths is None else torch.tensor(samples.lengths)
        self.weights = None if samples.weights is None else torch.tensor(samples.weights, dtype=torch.float64)
        self.batch_size = world_size * batch_size  # of all processes
        training, evaluation = self.count // self.batch_size * batch_size, len(range(rank, self.count, world_size))
        self.per_process = evaluation if seed is None else training
        self.epoch = 0
        self.batches_to_skip = 0  # of this epoch, because they were trained on before an interruption

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.batches_to_skip = epoch, 0

    def __len__(self) -> int:
        return self.per_process

    def __iter__(self) -> Iterator[SampleIndex]:
        if self.seed is None:
            order = torch.arange(self.count) if self.lengths is None else self.lengths.argsort(stable=True)
            yield from (SampleIndex(sample, 0) for sample in order[self.rank :: self.world_size].tolist())
            return
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = self.draw_order(generator)
        if self.lengths is not None:
            order = order[: self.per_process * self.world_size]
            order = bucket_by_length(order, self.lengths, self.batch_size, generator)
        seeds = torch.randint(2**31, (self.count,), generator=generator)
        first = self.rank + self.batches_to_skip * self.batch_size
        mine = slice(first, self.per_process * self.world_size, self.world_size)
        yield from map(SampleIndex, order[mine].tolist(), seeds[mine].tolist())

    def draw_order(self, generator: torch.Generator) -> Tensor:
        """Returns the samples of an epoch: each once, or, with weights, as many draws with replacement."""
        if self.weights is None:
            return torch.randperm(self.count, generator=generator)
        ends = self.weights.cumsum(0)
        drawn = torch.rand(self.count, dtype=torch.float64, generator=generator) * ends[-1]
        return torch.searchsorted(ends, drawn, right=True).clamp_max(self.count - 1)


def bucket_by_length(order: Tensor, lengths: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
    """Reorders samples so that a batch holds samples of similar length; the order of the batches remains random.

    Samples are sorted only within pools of 50 batches, so that batches differ from epoch to epoch.
    """
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in order.split(50 * batch_size)]
    batches = torch.cat(pools).view(-1, batch_size)
    return batches[torch.randperm(len(batches), generator=generator)].flatten()


@dataclass(eq=False)
class BatchReader(Dataset[Any]):
    """Reads a batch at a time; an error of a data-loading process is handed on to the process that trains."""

    samples: Samples

    def __getitems__(self, items: list[SampleIndex]) -> dict[str, Any] | PerceiversError:
        try:
            return self.samples.collate([self.samples[item] for item in items])
        except PerceiversError as error:
            return error


def unchanged(batch: Any) -> Any:
    """Returns a batch that `BatchReader` has collated."""
    return batch


def raise_error(batch: Any) -> Any:
    """Returns a batch, or raises the error that was handed on instead."""
    if isinstance(batch, PerceiversError):
        raise batch
    return batch


def ignore_signals(worker: int) -> None:
    """Makes a data-loading process survive the signals that its whole group gets, so that what was trained is saved.

    Only the SIGTERM of the process that trains ends it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def wait() -> None:
        while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose position in the epoch is part of a checkpoint."""

    def __init__(self, samples: Samples, order: EpochSampler, batch_size: int, workers: int) -> None:
        self.order, self.batches_done = order, 0
        super().__init__(
            BatchReader(samples),
            batch_size,
            sampler=order,
            num_workers=workers,
            collate_fn=unchanged,
            worker_init_fn=ignore_signals,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # the base class returns a private class
        self.batches_done = self.order.batches_to_skip
        for batch in super().__iter__():
            self.batches_done += 1
            yield raise_error(batch)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.order.epoch, "batches": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.order.set_epoch(state["epoch"])
        self.order.batches_to_skip = state["batches"]
