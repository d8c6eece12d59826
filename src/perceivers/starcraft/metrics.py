"""Metrics of policies, and simple rules to compare them with.

Shape suffixes: B batch, M units, L units and none, T steps; S selections, C commands and A aimed commands of a batch
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from perceivers.starcraft.replays import SELECTED, SELF


class SelectionScores(Metric):
    """Precision, recall and F1 over all units; fractions of exactly right selections and of right first units."""

    true_positives: Tensor
    predicted: Tensor
    target: Tensor
    exact: Tensor
    first: Tensor
    decisions: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("true_positives", "predicted", "target", "exact", "first", "decisions"):
            self.add_state(name, torch.zeros((), dtype=torch.long), "sum")

    def update(self, predicted_BM: Tensor, chosen_BM: Tensor, first_B: Tensor) -> None:
        """Adds decisions.

        Args:
            predicted_BM: mask of the predicted units.
            chosen_BM: mask of the units that the player selected.
            first_B: index of the unit that is predicted first; -1 for none.
        """
        self.true_positives += (predicted_BM & chosen_BM).sum()
        self.predicted += predicted_BM.sum()
        self.target += chosen_BM.sum()
        self.exact += (predicted_BM == chosen_BM).all(1).sum()
        self.first += (chosen_BM.gather(1, first_B.clamp_min(0)[:, None])[:, 0] & (first_B >= 0)).sum()
        self.decisions += len(predicted_BM)

    def compute(self) -> dict[str, Tensor]:
        """Returns "precision", "recall", "f1", "exact" and "first", all in [0, 1]."""
        return {
            "precision": self.true_positives / self.predicted.clamp_min(1),
            "recall": self.true_positives / self.target.clamp_min(1),
            "f1": 2 * self.true_positives / (self.predicted + self.target).clamp_min(1),
            "exact": self.exact / self.decisions.clamp_min(1),
            "first": self.first / self.decisions.clamp_min(1),
        }


class PolicyScores(nn.Module):
    """The metrics of `SelectionScores`, and the accuracy of abilities and targets."""

    def __init__(self) -> None:
        super().__init__()
        self.selection, self.ability, self.target = SelectionScores(), MeanMetric(), MeanMetric()

    def update(self, predictions: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Adds decisions.

        Args:
            predictions: "selection" [S, T], indices of units in order of selection, padded with -1; "ability" [C] and
                "target" [A], indices. Each is left out if the batch has no such decision.
            batch: the decisions of players, with the policy's indices of abilities.
        """
        if "selection" in predictions:
            chosen_SM, index_ST = batch["chosen"][is_selection(batch)], predictions["selection"]
            first_S = index_ST[:, 0] if index_ST.shape[1] else index_ST.new_full((len(index_ST),), -1)
            self.selection.update(indices_to_mask(index_ST, chosen_SM.shape[1]), chosen_SM, first_S)
        if "ability" in predictions:
            self.ability.update((predictions["ability"] == batch["ability"][~is_selection(batch)]).float())
        if "target" in predictions:
            self.target.update((predictions["target"] == batch["target"][has_target(batch)]).float())

    def compute(self) -> dict[str, Tensor]:
        """Returns the metrics of selections; "ability" and "target" in [0, 1], NaN if there are none."""
        return self.selection.compute() | {"ability": self.ability.compute(), "target": self.target.compute()}

    def reset(self) -> None:
        """Clears all metrics."""
        for metric in (self.selection, self.ability, self.target):
            metric.reset()


def is_selection(batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the mask of selections, [B]; the other decisions are commands."""
    return batch["ability"] < 0


def has_target(batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the mask of commands that aim at a unit, [B]."""
    return batch["target"] >= 0


def indices_to_mask(index_BT: Tensor, units: int) -> Tensor:
    """Converts indices of units to a mask, [B, M]; -1 is no unit."""
    mask_BL = torch.zeros(len(index_BT), units + 1, dtype=torch.bool, device=index_BT.device)
    return mask_BL.scatter(1, index_BT.where(index_BT >= 0, units), True)[:, :units]


def own_units(batch: Mapping[str, Tensor]) -> Tensor:
    """Returns the mask of the player's own units, [B, M]."""
    return batch["real"] & (batch["owner"] == SELF)


def previous_selection(batch: Mapping[str, Tensor]) -> Tensor:
    """Predicts the current selection."""
    return own_units(batch) & (batch["flags"] & SELECTED).bool()


def most_frequent_type(batch: Mapping[str, Tensor]) -> Tensor:
    """Predicts all units of the player's most frequent type; of several such types, that of the first unit."""
    own_BM = own_units(batch)
    same_BMM = (batch["kind"][:, :, None] == batch["kind"][:, None]) & own_BM[:, None]
    count_BM = same_BMM.sum(2) * own_BM
    kind_B1 = batch["kind"].gather(1, count_BM.argmax(1, keepdim=True))
    return (count_BM == count_BM.amax(1, keepdim=True)) & (count_BM > 0) & (batch["kind"] == kind_B1)


def random_unit(batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """Predicts one of the player's units, with equal probabilities."""
    own_BM = own_units(batch)
    noise_BM = torch.rand(own_BM.shape, generator=generator).to(own_BM.device).masked_fill(~own_BM, -1)
    return torch.zeros_like(own_BM).scatter(1, noise_BM.argmax(1, keepdim=True), True) & own_BM


REFERENCES = ("as before", "most frequent type", "one at random")
"""Names of the rules `previous_selection`, `most_frequent_type` and `random_unit`."""
