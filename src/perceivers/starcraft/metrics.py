"""How well the units that a player selects are predicted, and simple rules to compare with.

Shape suffixes: B batch, M units, T steps; S selections, C commands and A commands that aim at a unit, of a batch
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from perceivers.starcraft.replays import SELECTED, SELF


class SelectionScores(Metric):
    """Precision, recall and F1 over all units, exactly right sets, and how often the first choice is right."""

    right: Tensor
    predicted: Tensor
    wanted: Tensor
    exact: Tensor
    first: Tensor
    decisions: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("right", "predicted", "wanted", "exact", "first", "decisions"):
            self.add_state(name, torch.zeros((), dtype=torch.long), "sum")

    def update(self, found_BM: Tensor, chosen_BM: Tensor, first_B: Tensor) -> None:
        """Adds decisions.

        Args:
            found_BM: which units are predicted.
            chosen_BM: which were selected.
            first_B: the place that is predicted first; -1 for none.
        """
        self.right += (found_BM & chosen_BM).sum()
        self.predicted += found_BM.sum()
        self.wanted += chosen_BM.sum()
        self.exact += (found_BM == chosen_BM).all(1).sum()
        hit_B = chosen_BM.gather(1, first_B.clamp_min(0)[:, None])[:, 0] & (first_B >= 0)
        self.first += hit_B.sum()
        self.decisions += len(found_BM)

    def compute(self) -> dict[str, Tensor]:
        """-> "precision", "recall", "f1", "exact" and "first", all in [0, 1]."""
        precision, recall = self.right / self.predicted.clamp_min(1), self.right / self.wanted.clamp_min(1)
        f1 = 2 * self.right / (self.predicted + self.wanted).clamp_min(1)
        decisions = self.decisions.clamp_min(1)
        return {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "exact": self.exact / decisions,
            "first": self.first / decisions,
        }


class Answers(NamedTuple):
    """What a policy decides where players did: each is None if there is no such decision.

    Attributes:
        place_ST: places of the units that it selects, in order of choice, -1 behind; where players selected some.
        ability_C: numbers of the abilities that it commands; where players commanded something.
        target_A: places of the units that it aims at; where players aimed at one.
    """

    place_ST: Tensor | None
    ability_C: Tensor | None
    target_A: Tensor | None


class PolicyScores(nn.Module):
    """Selections, see `SelectionScores`; and how often ability and target are right."""

    def __init__(self) -> None:
        super().__init__()
        self.selection, self.ability, self.target = SelectionScores(), MeanMetric(), MeanMetric()

    def update(self, answers: Answers, batch: Mapping[str, Tensor]) -> None:
        """Adds decisions, with what players decided; `batch` has the policy's numbers for abilities."""
        place_ST, ability_C, target_A = answers
        if place_ST is not None:
            chosen_SM = batch["chosen"][selects(batch)]
            first_S = place_ST[:, 0] if place_ST.shape[1] else place_ST.new_full((len(place_ST),), -1)
            self.selection.update(as_mask(place_ST, chosen_SM.shape[1]), chosen_SM, first_S)
        if ability_C is not None:
            self.ability.update((ability_C == batch["ability"][~selects(batch)]).float())
        if target_A is not None:
            self.target.update((target_A == batch["target"][aims(batch)]).float())

    def compute(self) -> dict[str, Tensor]:
        """-> figures of selections; "ability" and "target" in [0, 1], NaN if there are none."""
        return self.selection.compute() | {"ability": self.ability.compute(), "target": self.target.compute()}

    def reset(self) -> None:
        """Starts anew."""
        for metric in (self.selection, self.ability, self.target):
            metric.reset()


def selects(batch: Mapping[str, Tensor]) -> Tensor:
    """Returns which decisions are selections, [B]; the others are commands."""
    return batch["ability"] < 0


def aims(batch: Mapping[str, Tensor]) -> Tensor:
    """Returns which decisions are commands that aim at a unit, [B]."""
    return batch["target"] >= 0


def as_mask(place_BT: Tensor, units: int) -> Tensor:
    """Returns which units places are of, [B, M]; -1 is none."""
    found_BL = torch.zeros(len(place_BT), units + 1, dtype=torch.bool, device=place_BT.device)
    return found_BL.scatter(1, place_BT.where(place_BT >= 0, units), True)[:, :units]


def own(batch: Mapping[str, Tensor]) -> Tensor:
    """Returns which units are the player's own, [B, M]."""
    return batch["real"] & (batch["owner"] == SELF)


def as_before(batch: Mapping[str, Tensor]) -> Tensor:
    """Predicts what is selected already."""
    return own(batch) & (batch["flags"] & SELECTED).bool()


def most_frequent(batch: Mapping[str, Tensor]) -> Tensor:
    """Predicts all units of the type of which the player has most."""
    own_BM = own(batch)
    same_BMM = (batch["kind"][:, :, None] == batch["kind"][:, None]) & own_BM[:, None]
    count_BM = same_BMM.sum(2) * own_BM
    return (count_BM == count_BM.amax(1, keepdim=True)) & (count_BM > 0) & same_kind_as_first(batch, count_BM)


def same_kind_as_first(batch: Mapping[str, Tensor], count_BM: Tensor) -> Tensor:
    """Returns which units are of the type of the first one of the most frequent, which decides between types."""
    first_B1 = count_BM.argmax(1, keepdim=True)
    return batch["kind"] == batch["kind"].gather(1, first_B1)


def at_random(batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Predicts one of the player's units, all equally probable."""
    own_BM = own(batch)
    noise_BM = torch.rand(own_BM.shape, generator=generator).to(own_BM.device).masked_fill(~own_BM, -1)
    return torch.zeros_like(own_BM).scatter(1, noise_BM.argmax(1, keepdim=True), True) & own_BM


REFERENCES = ("as before", "most frequent type", "one at random")
"""Rules that a trained model is compared with."""
