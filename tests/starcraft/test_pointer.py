from itertools import permutations

import pytest
import torch

from perceivers.starcraft.pointer import IndependentSelection, PointerNetwork
from tests.support.models import shaken


@pytest.fixture
def known():
    allowed = torch.tensor([[True, True, True, True], [True, False, True, False]])
    return torch.randn(2, 4, 6), torch.randn(2, 5), allowed


def pointer():
    return shaken(PointerNetwork(6, 5, key_channels=8))


def one(chooser, known, example, chosen):
    elements, context, allowed = (each[example : example + 1] for each in known)
    mask = torch.zeros(1, 4, dtype=torch.bool)
    mask[0, list(chosen)] = True
    return chooser.log_likelihood(elements, context, allowed, mask)


@torch.no_grad()
@pytest.mark.parametrize(("example", "free"), [(0, [0, 1, 2, 3]), (1, [0, 2])])
def test_probabilities_of_all_sequences_add_up_to_one(known, example, free):
    """Sequences in another order than the elements stand in are had by giving the elements in that order."""
    chooser, total = pointer(), 0.0
    for count in range(len(free) + 1):
        for sequence in permutations(free, count):
            order = [*sequence, *(place for place in range(4) if place not in sequence)]
            elements, context, allowed = (each[example : example + 1] for each in known)
            chosen = torch.arange(4)[None] < count
            log, steps = chooser.log_likelihood(elements[:, order], context, allowed[:, order], chosen)
            total += float(log.exp())
            assert int(steps) == count + 1
    assert total == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_probabilities_of_all_sets_add_up_to_one_where_each_is_chosen_by_itself(known):
    chooser = shaken(IndependentSelection(6, 5))
    for example, free in ((0, [0, 1, 2, 3]), (1, [0, 2])):
        subsets = [[place for bit, place in enumerate(free) if number >> bit & 1] for number in range(2 ** len(free))]
        total = sum(float(one(chooser, known, example, subset)[0].exp()) for subset in subsets)
        assert total == pytest.approx(1, abs=1e-5)
        assert [int(one(chooser, known, example, subset)[1]) for subset in ([], free)] == [len(free)] * 2


@torch.no_grad()
@pytest.mark.parametrize("chooser", [pointer, lambda: shaken(IndependentSelection(6, 5))])
def test_a_batch_is_its_examples_and_order_of_others_does_not_matter(known, chooser):
    chooser = chooser()
    elements, context, allowed = known
    chosen = torch.tensor([[True, False, True, True], [False, False, True, False]])
    log, steps = chooser.log_likelihood(elements, context, allowed, chosen)
    for example in range(2):
        alone, alone_steps = one(chooser, known, example, chosen[example].nonzero()[:, 0].tolist())
        torch.testing.assert_close(alone[0], log[example])
        assert alone_steps[0] == steps[example]
    order = [0, 2, 3, 1]  # those that are chosen keep theirs
    moved, _ = chooser.log_likelihood(elements[:, order], context, allowed[:, order], chosen[:, order])
    torch.testing.assert_close(moved, log)
    other = torch.where(allowed[..., None], elements, torch.randn_like(elements))
    torch.testing.assert_close(chooser.log_likelihood(other, context, allowed, chosen)[0], log)


@torch.no_grad()
def test_the_pointer_goes_to_the_best_at_each_step(known):
    chooser = pointer()
    elements, context, allowed = known
    found = chooser.greedy_select(elements, context, allowed)
    for example in range(2):
        sequence = [place for place in found[example].tolist() if place >= 0]
        assert sequence
        assert len(set(sequence)) == len(sequence)
        assert all(allowed[example, place] for place in sequence)
        for count in range(len(sequence)):  # no other next choice is more probable
            prefix, rest = sequence[:count], [p for p in range(4) if p not in sequence[:count]]
            order = [*prefix, *rest]
            view = [each[example : example + 1] for each in known]
            keys = chooser.compute_keys(view[0][:, order])
            before = torch.stack([keys[0, :done].mean(0) if done else torch.zeros(8) for done in range(count + 1)])
            logits = chooser.compute_logits(keys, view[1], before[None])[0, -1]
            free = [k for k, place in enumerate(order) if k >= count and allowed[example, place]]
            best = max(free, key=lambda k: float(logits[k]))
            assert order[best] == sequence[count]
            if count:
                assert logits[best] > logits[-1]
    nothing = chooser.greedy_select(elements, context, torch.zeros_like(allowed))
    assert nothing.shape == (2, 0)


def lively():
    """A pointer network in whose steps much depends on what came before."""
    chooser = pointer()
    for parameter in chooser.parameters():
        parameter.data *= 4
    return chooser


def step_by_step(chooser, elements, context, allowed, sequence):
    """Logarithms of the probabilities of what comes after a sequence, as the formula has them; the end's is behind."""
    keys = chooser.compute_keys(elements)[0]
    means = [keys[sequence[:count]].mean(0) if count else torch.zeros(8) for count in range(len(sequence) + 1)]
    logits = chooser.compute_logits(keys[None], context, torch.stack(means)[None])[0, -1]
    closed = ~torch.cat([allowed[0], torch.ones(1, dtype=torch.bool)])
    closed[sequence] = True
    return logits.masked_fill(closed, -torch.inf).log_softmax(0)


@torch.no_grad()
def test_long_sequences_are_those_of_the_formula():
    lengths = set()
    for _ in range(20):
        chooser, elements, context = lively(), torch.randn(1, 12, 6), torch.randn(1, 5)
        allowed = torch.rand(1, 12) < 0.8
        found = [place for place in chooser.greedy_select(elements, context, allowed)[0].tolist() if place >= 0]
        for count, place in enumerate([*found, 12]):
            log = step_by_step(chooser, elements, context, allowed, found[:count])
            assert int((log if count else log[:-1]).argmax()) == place  # at least one is chosen
        lengths.add(len(found))
        chosen = allowed & (torch.rand(1, 12) < 0.7)
        sequence = [*chosen[0].nonzero()[:, 0].tolist(), 12]
        steps = [step_by_step(chooser, elements, context, allowed, sequence[:k])[sequence[k]] for k in
                 range(len(sequence))]  # fmt: skip
        log, count = chooser.log_likelihood(elements, context, allowed, chosen)
        torch.testing.assert_close(log[0], torch.stack(steps).sum(), rtol=1e-4, atol=1e-4)
        assert int(count) == len(sequence)
    assert max(lengths) > 3


def test_gradients_are_finite_if_all_are_chosen_and_others_take_more_steps(known):
    elements, context, _ = known
    allowed = torch.tensor([[True, True, True, True], [True, False, False, False]])
    chooser = pointer()
    log, _ = chooser.log_likelihood(elements, context, allowed, allowed)
    log.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in chooser.parameters())


@torch.no_grad()
def test_each_by_itself_if_more_probable_than_not(known):
    chooser = shaken(IndependentSelection(6, 5))
    elements, context, allowed = torch.randn(2, 40, 6), known[1], torch.rand(2, 40) < 0.8
    allowed[1] = torch.arange(40) < 2
    found, logits = chooser.greedy_select(elements, context, allowed), chooser.compute_logits(elements, context)
    for example in range(2):
        expected = {p for p in range(40) if allowed[example, p] and logits[example, p] > 0}
        best = max((p for p in range(40) if allowed[example, p]), key=lambda p: float(logits[example, p]))
        assert {place for place in found[example].tolist() if place >= 0} == expected | {best}
        assert found[example, 0] == best


def test_the_pointer_learns_a_rule():
    """Elements whose first number is positive are chosen."""
    torch.manual_seed(0)
    chooser = PointerNetwork(3, 2, key_channels=16)
    optimizer = torch.optim.AdamW(chooser.parameters(), lr=3e-3)

    def batch(count):
        elements = torch.randn(count, 6, 3)
        return elements, torch.zeros(count, 2), torch.ones(count, 6, dtype=torch.bool), elements[..., 0] > 0

    for _ in range(150):
        log, steps = chooser.log_likelihood(*batch(64))
        (-log.sum() / steps.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    elements, context, allowed, chosen = batch(200)
    found = torch.zeros(200, 7, dtype=torch.bool).scatter_(
        1, chooser.greedy_select(elements, context, allowed) % 7, True
    )
    assert (found[:, :6] == chosen)[chosen.any(1)].float().mean() > 0.9
