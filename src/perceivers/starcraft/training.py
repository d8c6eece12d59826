"""Behavioral cloning of StarCraft II players: their selections, commands and targets (section 4.5).

Shape suffixes: B batch, M units, T steps; S selections, C commands and A commands that aim at a unit, of a batch
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.checks import Range, check_field
from perceivers.set_encoder import SetEncoding
from perceivers.starcraft import commands
from perceivers.starcraft.data import DecisionData, Decisions, PolicyDecisions
from perceivers.starcraft.metrics import (
    REFERENCES,
    Answers,
    PolicyScores,
    SelectionScores,
    aims,
    as_before,
    at_random,
    most_frequent,
    own,
    selects,
)
from perceivers.starcraft.policy import PolicyConfig, Situation, UnitPolicy
from perceivers.training import learner
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization


@dataclass(kw_only=True)
class BehavioralCloning(Experiment):
    """A training run that learns to decide as players do.

    Attributes:
        model: fields of `UnitPolicy`; the names of types, abilities and numbers come from the training decisions.
        data: the decisions; those of the validation replays are evaluated on after each epoch.
        ability_weight: what commands count in the loss, where selections count 1.
        target_weight: what the targets of commands count.
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
        kinds, abilities = parts["training"].names()
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
    """Likelihood of what players selected, commanded and aimed at."""

    monitor = ("test_f1", "max")
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
        losses = losses_of(self.model, batch)
        for name, loss in losses.items():
            self.log(f"train_{name}", loss)
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()

    def evaluate_batch(self, batch: dict[str, Any]) -> None:
        self.metrics.update(answers_of(self.model, batch), batch)


def losses_of(model: UnitPolicy, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns losses of selections, for each unit that is pointed at; of commands; and of their targets.

    What a batch lacks is 0.
    """
    situation, own_BM = model(batch), own(batch)
    selects_B, aims_B = selects(batch), aims(batch)
    zero = situation.context_BC.sum() * 0
    losses = dict.fromkeys(("selection", "ability", "target"), zero)
    if selects_B.any():
        some = part(situation, selects_B)
        log_S, steps_S = model.selection.log_likelihood(
            some.encoding.elements_BME, some.context_BC, own_BM[selects_B], (batch["chosen"] & own_BM)[selects_B]
        )
        losses["selection"] = -log_S.sum() / steps_S.sum()
    if not selects_B.all():
        losses["ability"] = F.cross_entropy(ability_logits(model, situation, batch), batch["ability"][~selects_B])
    if aims_B.any():
        losses["target"] = F.cross_entropy(target_logits(model, situation, batch), batch["target"][aims_B])
    return losses


def answers_of(model: UnitPolicy, batch: Mapping[str, Tensor]) -> Answers:
    """Returns what a policy decides: abilities for the units that players selected, targets for their abilities."""
    situation, own_BM = model(batch), own(batch)
    selects_B, aims_B = selects(batch), aims(batch)
    place_ST = ability_C = target_A = None
    if selects_B.any():
        some = part(situation, selects_B)
        place_ST = model.selection.choose(some.encoding.elements_BME, some.context_BC, own_BM[selects_B])
    if not selects_B.all():
        ability_C = ability_logits(model, situation, batch).argmax(1)
    if aims_B.any():
        target_A = target_logits(model, situation, batch).argmax(1)
    return Answers(place_ST, ability_C, target_A)


def ability_logits(model: UnitPolicy, situation: Situation, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns logits of the abilities of a batch's commands."""
    commands_B = ~selects(batch)
    return model.ability_logits(part(situation, commands_B), batch["chosen"][commands_B])


def target_logits(model: UnitPolicy, situation: Situation, batch: Mapping[str, Tensor]) -> Tensor:
    """Returns logits of the units that a batch's commands aim at, if they aim at one."""
    aims_B = aims(batch)
    return model.target_logits(part(situation, aims_B), batch["chosen"][aims_B], batch["ability"][aims_B])


def part(situation: Situation, which_B: Tensor) -> Situation:
    """Returns some of the decisions."""
    elements_BME, whole_BE = situation.encoding
    return Situation(
        SetEncoding(elements_BME[which_B], whole_BE[which_B]), situation.real_BM[which_B], situation.context_BC[which_B]
    )


def evaluate(model: UnitPolicy, decisions: Decisions, batch_size: int = 64) -> dict[str, float]:
    """Returns figures of a policy, see `PolicyScores`.

    Raises:
        PerceiversError: the tables have other numbers of players than the model reads.
    """
    return learner.evaluate(PolicyLearner(model), PolicyDecisions(decisions, model), batch_size)


def references(decisions: Decisions, batch_size: int = 64) -> dict[str, dict[str, float]]:
    """Returns figures of simple rules on the selections, by `REFERENCES`."""
    scores = {name: SelectionScores() for name in REFERENCES}
    generator = torch.Generator().manual_seed(0)
    for batch in decisions.loader(batch_size):
        some = {name: value[selects(batch)] for name, value in batch.items()}
        if not len(some["real"]):
            continue
        found = (as_before(some), most_frequent(some), at_random(some, generator))
        for name, found_BM in zip(REFERENCES, found, strict=True):
            first_B = found_BM.int().argmax(1).where(found_BM.any(1), -1)
            scores[name].update(found_BM, some["chosen"], first_B)
    return {name: {key: float(value) for key, value in score.compute().items()} for name, score in scores.items()}
