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

    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(6, dtype=torch.long), "sum")

    def update(self, predicted_BM: Tensor, chosen_BM: Tensor, first_B: Tensor) -> None:
        """Adds masks of predicted and of selected units, and the index of the unit predicted first; -1 for none."""
        is_exact_B = (predicted_BM == chosen_BM).all(1)
        is_first_B = chosen_BM.gather(1, first_B.clamp_min(0)[:, None])[:, 0] & (first_B >= 0)
        masks = (predicted_BM & chosen_BM, predicted_BM, chosen_BM, is_exact_B, is_first_B, torch.ones_like(is_exact_B))
        self.counts += torch.stack([mask.sum() for mask in masks])

    def compute(self) -> dict[str, Tensor]:
        """Returns "precision", "recall", "f1", "exact" and "first", all in [0, 1]."""
        true_positives, predicted, chosen, exact, first, decisions = self.counts
        return {
            "precision": true_positives / predicted.clamp_min(1),
            "recall": true_positives / chosen.clamp_min(1),
            "f1": 2 * true_positives / (predicted + chosen).clamp_min(1),
            "exact": exact / decisions.clamp_min(1),
            "first": first / decisions.clamp_min(1),
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
