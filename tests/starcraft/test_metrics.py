import pytest
import torch

from perceivers.starcraft.metrics import (
    SelectionScores,
    indices_to_mask,
    most_frequent_type,
    previous_selection,
    random_unit,
)


def test_figures_of_a_hand_made_case():
    scores = SelectionScores()
    found = torch.tensor([[True, True, False, False], [False, True, False, False], [False] * 4])
    chosen = torch.tensor([[True, False, True, True], [False, True, False, False], [True, False, False, False]])
    scores.update(found[:1], chosen[:1], torch.tensor([1]))
    scores.update(found[1:], chosen[1:], torch.tensor([1, -1]))
    figures = {name: float(value) for name, value in scores.compute().items()}
    assert figures == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 5, "f1": 2 * 2 / (3 + 5), "exact": 1 / 3, "first": 1 / 3}
    )
    assert float(scores.compute()["f1"]) == pytest.approx(2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))


def test_nothing_predicted_is_no_error():
    scores, none = SelectionScores(), torch.zeros(1, 3, dtype=torch.bool)
    scores.update(none, none, torch.tensor([-1]))
    assert float(scores.compute()["f1"]) == 0


def test_indices_as_masks():
    place = torch.tensor([[2, 0, -1], [-1, -1, -1]])
    assert indices_to_mask(place, 4).tolist() == [[True, False, True, False], [False] * 4]
    assert indices_to_mask(torch.zeros(2, 0, dtype=torch.long), 3).tolist() == [[False] * 3] * 2


def test_the_rules():
    batch = {
        "real": torch.tensor([[True] * 6, [True, True, True, False, False, False]]),
        "owner": torch.tensor([[0, 0, 0, 2, 0, 2], [2, 0, 0, 0, 0, 0]]),
        "kind": torch.tensor([[5, 7, 5, 5, 7, 7], [1, 1, 2, 0, 0, 0]]),
        "flags": torch.tensor([[4, 3, 7, 4, 0, 0], [4, 4, 0, 4, 4, 4]]),
    }
    assert previous_selection(batch).tolist() == [[True, False, True, False, False, False], [False, True] + [False] * 4]
    assert most_frequent_type(batch).tolist() == [[True, False, True, False, False, False], [False, True] + [False] * 4]
    assert not most_frequent_type(batch | {"owner": torch.full((2, 6), 2)}).any()
    seen = torch.zeros(2, 6, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        found = random_unit(batch, generator)
        assert found.sum(1).tolist() == [1, 1]
        seen |= found
    assert seen.tolist() == [[True, True, True, False, True, False], [False, True, True, False, False, False]]
