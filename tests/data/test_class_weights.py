from collections import Counter

import pytest

from perceivers import PerceiversError
from perceivers.data.class_weights import weigh_examples
from tests.data.test_loader import Echo, epoch

LABELS = [0] * 18 + [1] * 2 + [2] * 4


def drawn(weights, epochs=200, lengths=None, **process):
    samples = Echo(24, lengths)
    samples.weights = weights
    loader = samples.loader(4, 3, **process)
    return [[index for batch in epoch(loader, number) for index, _ in batch] for number in range(epochs)]


def shares(weights):
    counts = Counter(LABELS[index] for order in drawn(weights) for index in order)
    return [counts[label] / (200 * 24) for label in range(3)]


def test_balanced_classes_are_drawn_equally_often():
    assert shares(weigh_examples("balanced", ["a", "b", "c"], LABELS)) == pytest.approx([1 / 3] * 3, abs=0.03)


def test_a_class_is_drawn_as_often_as_its_weight_says():
    weights = weigh_examples({"b": 9, "c": 0.5}, ["a", "b", "c"], LABELS)
    assert [weights[0], weights[18], weights[23]] == [1, 9, 0.5]
    assert shares(weights) == pytest.approx([18 / 38, 18 / 38, 2 / 38], abs=0.03)


def test_without_weights_every_example_is_drawn_once():
    assert weigh_examples(None, ["a", "b", "c"], LABELS) is None
    assert sorted(drawn(None, 1)[0]) == list(range(24))


def test_draws_depend_on_seed_and_epoch_and_are_shared_by_processes():
    weights = weigh_examples("balanced", ["a", "b", "c"], LABELS)
    first, second = drawn(weights, 2)
    assert first != second
    assert drawn(weights, 2) == [first, second]
    parts = [drawn(weights, 1, rank=rank, world_size=3)[0] for rank in range(3)]
    assert [index for step in zip(*parts, strict=True) for index in step] == first
    lengths = list(range(24))
    assert sorted(drawn(weights, 1, lengths=lengths)[0]) == sorted(first)


def test_a_resumed_loader_goes_on_with_the_same_draws():
    samples = Echo(24)
    samples.weights = weigh_examples("balanced", ["a", "b", "c"], LABELS)
    whole = epoch(samples.loader(4, 3), 0)
    interrupted = samples.loader(4, 3)
    batches = iter(interrupted)
    done = [next(batches) for _ in range(2)]
    resumed = samples.loader(4, 3)
    resumed.load_state_dict(interrupted.state_dict())
    assert done + list(resumed) == whole


def test_classes_that_do_not_exist_and_examples_of_several_classes_are_refused():
    with pytest.raises(PerceiversError, match="class_weights names the class 'dogs': did you mean 'dog'"):
        weigh_examples({"dogs": 2}, ["cat", "dog"], [0, 1])
    with pytest.raises(PerceiversError, match="is for examples of one class each"):
        weigh_examples("balanced", ["cat", "dog"], [(0, 1), (0,)])
