"""Batches in an order that depends on seed and epoch alone, so that training goes on exactly where it stopped."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from perceivers.errors import PerceiversError


class SampleIndex(NamedTuple):
    """Which sample to make, and the seed of whatever is random in making it."""

    sample: int
    seed: int


class Samples(Dataset[Any], ABC):
    """The samples of a data set, and how they become batches: what an experiment trains and is evaluated on.

    Attributes:
        lengths: of the samples, if batches are to hold samples of similar length.
    """

    lengths: Sequence[int] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of samples."""

    @abstractmethod
    def __getitem__(self, item: SampleIndex) -> Any:
        """Makes a sample; whatever is random in it comes from the seed of `item`."""

    def collate(self, samples: list[Any]) -> dict[str, Any]:
        """Makes a batch of samples: tensors by name. By default, samples are dicts of tensors or numbers.

        "problems", if there, says which samples could not be read; a batch of which nothing could be read has no more.
        """
        batch: dict[str, Any] = default_collate(samples)
        return batch

    def loader(
        self, batch_size: int, seed: int | None = None, workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Any]:
        """Returns a loader of batches, see `ResumableLoader`."""
        return ResumableLoader(self, batch_size, seed, workers, rank, world_size)


class EpochSampler(Sampler[SampleIndex]):
    """The samples of one process in one epoch.

    Args:
        count: number of samples of the data set.
        seed: of the order, which is another in each epoch; None for the data set's own order.
        rank, world: this process among those that train together; each takes every `world`-th sample.
        multiple: in training, samples are left out at the end until each process has a multiple of this many.
        lengths: of the samples, if batches are to hold samples of similar length.
    """

    def __init__(
        self,
        count: int,
        seed: int | None,
        rank: int,
        world_size: int,
        multiple: int,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.count, self.seed, self.rank, self.world_size = count, seed, rank, world_size
        self.batch = world_size * multiple
        self.lengths = None if lengths is None else torch.tensor(lengths)
        self.per_process = (
            len(range(rank, count, world_size)) if seed is None else count // (world_size * multiple) * multiple
        )
        self.epoch = 0
        self.samples_to_skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        if epoch != self.epoch:
            self.epoch, self.samples_to_skip = epoch, 0

    def skip(self, samples: int) -> None:
        """Leaves out the first samples of this epoch: they were trained on before an interruption."""
        self.samples_to_skip = samples

    def __len__(self) -> int:
        return self.per_process

    def __iter__(self) -> Iterator[SampleIndex]:
        if self.seed is None:
            order = torch.arange(self.count) if self.lengths is None else self.lengths.argsort(stable=True)
            yield from (SampleIndex(sample, 0) for sample in order[self.rank :: self.world_size].tolist())
            return
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        order = torch.randperm(self.count, generator=generator)
        if self.lengths is not None:
            order = bucket_by_length(order[: self.per_process * self.world_size], self.lengths, self.batch, generator)
        seeds = torch.randint(2**31, (self.count,), generator=generator)
        mine = slice(self.rank, self.per_process * self.world_size, self.world_size)
        pairs = zip(order[mine].tolist(), seeds[mine].tolist(), strict=True)
        for place, (sample, seed) in enumerate(pairs):
            if place >= self.samples_to_skip:
                yield SampleIndex(sample, seed)


def bucket_by_length(order: Tensor, lengths: Tensor, batch: int, generator: torch.Generator) -> Tensor:
    """Changes an order so that a batch has samples of similar length; which batch comes when remains random.

    Samples are sorted only among those of 50 batches, so that batches differ from epoch to epoch.
    """
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in order.split(50 * batch)]
    batches = torch.cat(pools).view(-1, batch)
    return batches[torch.randperm(len(batches), generator=generator)].flatten()


class ResumableLoader(DataLoader[Any]):
    """A DataLoader whose place in the epoch is part of a checkpoint (Lightning saves and loads its state).

    Training batches are all full; the evaluation's last one holds what is left.

    Args:
        samples: the data set.
        batch_size: samples of a batch of one process.
        seed: as in `EpochSampler`; None for evaluation.
        workers: processes that make samples.
        rank, world: as in `EpochSampler`.

    Raises:
        PerceiversError: there are fewer samples than one batch of all processes takes.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        seed: int | None = None,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.order = EpochSampler(len(samples), seed, rank, world_size, batch_size, samples.lengths)
        if seed is not None and not len(self.order):
            raise PerceiversError(
                f"training.batch_size is larger than the training set of {len(samples)} samples: choose a smaller one."
            )
        self.batches_done = 0
        super().__init__(
            samples,
            batch_size,
            sampler=self.order,
            num_workers=workers,
            collate_fn=samples.collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # the base class promises a private class
        assert self.batch_size is not None
        self.batches_done = self.order.samples_to_skip // self.batch_size
        for batch in super().__iter__():
            self.batches_done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.order.epoch, "batches": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert self.batch_size is not None
        self.order.set_epoch(state["epoch"])
        self.order.skip(state["batches"] * self.batch_size)
