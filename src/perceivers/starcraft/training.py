"""Behavioral cloning of StarCraft II players: their selections, commands and targets (section 4.5).

Shape suffixes: B batch, M units, A abilities; S selections and C commands of a batch
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.checks import Range, check_field
from perceivers.starcraft import commands
from perceivers.starcraft.data import DecisionData, Decisions, PolicyDecisions
from perceivers.starcraft.metrics import (
    PolicyScores,
    SelectionScores,
    has_target,
    is_selection,
    most_frequent_type,
    own_units,
    previous_selection,
    random_unit,
)
from perceivers.starcraft.policy import EncodedObservation, PolicyConfig, UnitPolicy
from perceivers.training import learner
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization


@dataclass(kw_only=True)
class BehavioralCloning(Experiment):
    """A training run that imitates the decisions of players.

    Attributes:
        model: fields of `UnitPolicy`; names of types, abilities and statistics come from the training decisions.
        data: the decisions; the validation replays are used for evaluation after each epoch.
        ability_weight: weight of the loss of abilities; that of selections is 1.
        target_weight: weight of the loss of targets.
    """

    decided_by_data = ("kinds", "abilities", "scalars")
    evaluate = staticmethod(commands.evaluate)

    model: PolicyConfig = field(default_factory=PolicyConfig)
    data: DecisionData = field(default_factory=DecisionData)
    ability_weight: Annotated[float, Range(least=0)] = 0.5
    target_weight: Annotated[float, Range(least=0)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.decided_by_data:
            value = getattr(self.model, name)
            check_field(f"model.{name}", value, not value, "left out: it comes from the data")

    def prepare(self) -> Setup:
        self.build_on_meta()
        parts = self.data.open()
        kinds, abilities = parts["training"].list_names()
        names = self.settle(kinds=kinds, abilities=abilities, scalars=parts["training"].vocabulary.scalars)
        config = replace(self.model, **names)
        training, validation = (PolicyDecisions(parts[part], config) for part in ("training", "validation"))
        return Setup(config.build, training, validation)

    def learner(self, model: UnitPolicy) -> "PolicyLearner":
        return PolicyLearner(model, self.optimization, self.ability_weight, self.target_weight)

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return isinstance(model, UnitPolicy)


class PolicyLearner(Learner):
    """Maximizes the likelihood of the selections, abilities and targets of players."""

    monitor = ("val_f1", "max")
    progress_metrics = ("f1", "exact")

    def __init__(
        self,
        model: UnitPolicy,
        optimization: Optimization | None = None,
        ability_weight: float = 0.5,
        target_weight: float = 0.5,
    ) -> None:
        super().__init__(model, optimization)
        self.weights = {"selection": 1.0, "ability": ability_weight, "target": target_weight}
        self.metrics = PolicyScores()

    def loss(self, batch: dict[str, Any]) -> Tensor:
        losses = compute_losses(self.model, batch)
        for name, loss in losses.items():
            self.log(f"train_{name}", loss)
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()

    def evaluate_batch(self, batch: dict[str, Any]) -> None:
        self.metrics.update(predict(self.model, batch), batch)


def compute_losses(model: UnitPolicy, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the mean losses of selections (per step), abilities and targets; 0 if the batch has none."""
    observation, is_selection_B, has_target_B = model(batch), is_selection(batch), has_target(batch)
    losses = dict.fromkeys(("selection", "ability", "target"), observation.context_BC.sum() * 0)
    if is_selection_B.any():
        chosen_SM = (batch["chosen"] & own_units(batch))[is_selection_B]
        log_S, steps_S = model.selection.log_likelihood(*selection_inputs(observation, batch), chosen_SM)
        losses["selection"] = -log_S.sum() / steps_S.sum()
    if not is_selection_B.all():
        logits_CA = ability_logits(model, observation, batch)
        losses["ability"] = F.cross_entropy(logits_CA, batch["ability"][~is_selection_B])
    if has_target_B.any():
        losses["target"] = F.cross_entropy(target_logits(model, observation, batch), batch["target"][has_target_B])
    return losses


def predict(model: UnitPolicy, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns predictions for `PolicyScores`: abilities given the player's selections, targets given the abilities."""
    observation, predictions = model(batch), {}
    if is_selection(batch).any():
        predictions["selection"] = model.selection.greedy_select(*selection_inputs(observation, batch))
    if not is_selection(batch).all():
        predictions["ability"] = ability_logits(model, observation, batch).argmax(1)
    if has_target(batch).any():
        predictions["target"] = target_logits(model, observation, batch).argmax(1)
    return predictions


def selection_inputs(observation: EncodedObservation, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns units, context and the mask of the player's own units of the selections in a batch."""
    selections = observation.index_batch(is_selection(batch))
    return selections.encoding.elements_BME, selections.context_BC, own_units(batch)[is_selection(batch)]


def ability_logits(model: UnitPolicy, observation: EncodedObservation, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns logits of the abilities of the commands in a batch."""
    mask_B = ~is_selection(batch)
    return model.ability_logits(observation.index_batch(mask_B), batch["chosen"][mask_B])


def target_logits(model: UnitPolicy, observation: EncodedObservation, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns logits of the targets of the commands in a batch that aim at a unit."""
    mask_B = has_target(batch)
    return model.target_logits(observation.index_batch(mask_B), batch["chosen"][mask_B], batch["ability"][mask_B])


def evaluate(model: UnitPolicy, decisions: Decisions, batch_size: int = 64) -> dict[str, float]:
    """Returns `PolicyScores`; statistics of players other than those that the model reads are an error."""
    return learner.evaluate(PolicyLearner(model), PolicyDecisions(decisions, model), batch_size)


def evaluate_references(decisions: Decisions, batch_size: int = 64) -> dict[str, dict[str, float]]:
    """Returns the metrics of `SelectionScores` of simple rules, by name."""
    rules: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
        "as before": previous_selection,
        "most frequent type": most_frequent_type,
        "one at random": partial(random_unit, generator=torch.Generator().manual_seed(0)),
    }
    scores = {name: SelectionScores() for name in rules}
    for batch in decisions.loader(batch_size):
        batch = {name: value[is_selection(batch)] for name, value in batch.items()}
        for name, predict_units in rules.items():
            predicted_BM = predict_units(batch)
            first_B = predicted_BM.int().argmax(1).where(predicted_BM.any(1), -1)
            scores[name].update(predicted_BM, batch["chosen"], first_B)
    return {name: {key: float(value) for key, value in score.compute().items()} for name, score in scores.items()}
