import pytest
import torch

from perceivers import PerceiversError
from perceivers.data.loader import Samples


class Echo(Samples):
    def __init__(self, count, lengths=None):
        self.count, self.lengths = count, lengths

    def __len__(self):
        return self.count

    def __getitem__(self, item):
        return item.sample, item.seed

    def collate(self, samples):
        return samples


def loader(count=23, batch_size=4, seed=3, workers=0, lengths=None, **process):
    return Echo(count, lengths).loader(batch_size, seed, workers, **process)


def epoch(loader, number):
    loader.order.set_epoch(number)
    return list(loader)


def test_each_epoch_has_its_own_order_and_only_full_batches():
    first, second = epoch(loader(), 0), epoch(loader(), 1)
    assert [len(batch) for batch in first] == [4] * 5
    assert first != second
    assert first == epoch(loader(), 0) != epoch(loader(seed=4), 0)
    indices = [index for batch in first for index, _ in batch]
    assert len(set(indices)) == 20


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_resumed_loader_goes_on_where_it_stopped(stop, workers):
    want = epoch(loader(), 0) + epoch(loader(), 1)
    interrupted = loader(workers=workers)
    batches = iter(interrupted)
    done = [next(batches) for _ in range(stop)]
    resumed = loader(workers=workers)
    resumed.load_state_dict(interrupted.state_dict())
    assert done + list(resumed) + epoch(resumed, 1) == want
    assert resumed.state_dict() == {"epoch": 1, "batches": 5}


def test_processes_share_an_epoch_without_overlap():
    parts = [
        [index for batch in epoch(loader(rank=rank, world_size=3, batch_size=2), 5) for index, _ in batch]
        for rank in range(3)
    ]
    assert [len(part) for part in parts] == [6, 6, 6]
    assert len({index for part in parts for index in part}) == 18


def test_evaluation_is_in_order_and_complete():
    assert [item.sample for item in loader(7, seed=None).order] == list(range(7))
    orders = [loader(7, seed=None, rank=rank, world_size=2).order for rank in range(2)]
    assert sorted(item.sample for order in orders for item in order) == list(range(7))
    assert [len(batch) for batch in loader(7, seed=None)] == [4, 3]


def test_too_large_a_batch_is_refused():
    with pytest.raises(PerceiversError, match="batch_size is larger than the training set of 3"):
        loader(3)


def test_seeds_differ():
    seeds = torch.tensor([seed for batch in epoch(loader(), 0) for _, seed in batch])
    assert len(seeds.unique()) == 20


LENGTHS = [(37 * index) % 101 + 1 for index in range(423)]


def indices(batches):
    return [[sample for sample, _ in batch] for batch in batches]


def grouped(**settings):
    return loader(len(LENGTHS), lengths=LENGTHS, **settings)


def test_batches_hold_samples_of_similar_length():
    spreads = {}
    for name, make in (("grouped", grouped), ("plain", lambda: loader(len(LENGTHS)))):
        batches = indices(epoch(make(), 0))
        assert [len(batch) for batch in batches] == [4] * 105
        assert len({index for batch in batches for index in batch}) == 420
        spreads[name] = [max(parts) - min(parts) for batch in batches if (parts := [LENGTHS[i] for i in batch])]
    assert sum(spreads["plain"]) > 8 * sum(spreads["grouped"])
    assert max(spreads["grouped"][:50]) < 30


def test_short_and_long_batches_come_in_any_order_and_differ_from_epoch_to_epoch():
    epochs = [indices(epoch(grouped(), number)) for number in range(2)]
    means = torch.tensor([[sum(LENGTHS[i] for i in batch) / 4 for batch in batches] for batches in epochs])
    assert means.diff(dim=1).gt(0).float().mean(1).sub(0.5).abs().max() < 0.2
    together = [{frozenset((a, b)) for batch in batches for a in batch for b in batch if a < b} for batches in epochs]
    assert len(together[0] & together[1]) < 0.5 * len(together[0])


def test_processes_share_batches_of_similar_length():
    parts = [indices(epoch(grouped(rank=rank, world_size=3, batch_size=4), 5)) for rank in range(3)]
    assert [len(part) for part in parts] == [35, 35, 35]
    assert len({index for part in parts for batch in part for index in batch}) == 420
    means = torch.tensor([[sum(LENGTHS[i] for i in batch) / 4 for batch in part] for part in parts])
    assert (means.max(0).values - means.min(0).values).median() < 5, "none waits for another's longer batch"


@pytest.mark.parametrize("stop", [1, 60, 105])
def test_a_resumed_loader_of_similar_lengths_goes_on_where_it_stopped(stop):
    want = epoch(grouped(), 0) + epoch(grouped(), 1)
    interrupted = grouped()
    batches = iter(interrupted)
    done = [next(batches) for _ in range(stop)]
    resumed = grouped()
    resumed.load_state_dict(interrupted.state_dict())
    assert done + list(resumed) + epoch(resumed, 1) == want


def test_evaluation_by_length_is_sorted_and_complete():
    batches = [indices(loader(7, seed=None, lengths=[5, 1, 4, 1, 9, 2, 6], rank=r, world_size=2)) for r in range(2)]
    assert batches == [[[1, 5, 0, 4]], [[3, 2, 6]]]
