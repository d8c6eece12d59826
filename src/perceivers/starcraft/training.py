"""Behavioural cloning of StarCraft II players: their selections, commands and targets (section 4.5).

Shape suffixes: B batch, M units
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from perceivers.checks import check
from perceivers.data.loader import ResumableLoader
from perceivers.errors import PerceiversError
from perceivers.model.config import call
from perceivers.set_encoder import SetEncoding
from perceivers.starcraft.data import DecisionData, Decisions, collate
from perceivers.starcraft.metrics import (
    REFERENCES,
    SelectionScores,
    as_before,
    as_mask,
    at_random,
    most_frequent,
    own,
)
from perceivers.starcraft.policy import Situation, UnitPolicy
from perceivers.training.loop import Trained, Training, train
from perceivers.training.optimization import Optimization


@dataclass
class BehaviouralCloning:
    """A training run that learns to decide as players do.

    Attributes:
        model: settings of `UnitPolicy`; names of types, abilities and numbers come from the training decisions.
        data: the decisions.
        optimization: how weights are updated.
        training: how the run is done; it evaluates on the validation replays.
        ability_weight, target_weight: what commands and their targets count in the loss beside selections.
    """

    model: dict[str, Any] = field(default_factory=dict)
    data: DecisionData = field(default_factory=DecisionData)
    optimization: Optimization = field(default_factory=Optimization)
    training: Training = field(default_factory=Training)
    ability_weight: float = 0.5
    target_weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("ability_weight", "target_weight"):
            check(name, getattr(self, name), getattr(self, name) >= 0, "at least 0")
        for name in ("kinds", "abilities", "scalars"):
            check(f"model.{name}", self.model.get(name), name not in self.model, "left out: it comes from the data")
        with torch.device("meta"):  # a wrong setting shows before any data is read
            call(UnitPolicy, {"kinds": ["Probe"], "abilities": ["Attack"], "scalars": ["minerals"]} | self.model)

    def run(self) -> Path:
        """Trains; -> the run's folder."""
        L.seed_everything(self.training.seed, verbose=False)
        parts = self.data.open()
        kinds, abilities = parts["training"].names()
        names = {"kinds": kinds, "abilities": abilities, "scalars": parts["training"].vocabulary.scalars}
        module = PolicyLearner(call(UnitPolicy, names | self.model), parts["training"], self)
        batches = DecisionBatches(parts["training"], parts["validation"], self.training)
        return train(module, batches, self.training, "test_f1", {"experiment": "behavioural_cloning", **asdict(self)})


class DecisionBatches(L.LightningDataModule):
    """Batches of decisions with similar numbers of units."""

    def __init__(self, training: Decisions, evaluation: Decisions, config: Training) -> None:
        super().__init__()
        self.training, self.evaluation, self.config = training, evaluation, config

    def train_dataloader(self) -> ResumableLoader:
        return self.loader(self.training, self.config.seed)

    def val_dataloader(self) -> ResumableLoader:
        return self.loader(self.evaluation, None)

    def loader(self, decisions: Decisions, seed: int | None) -> ResumableLoader:
        assert self.trainer is not None
        world, rank = self.trainer.world_size, self.trainer.global_rank
        size, workers = self.config.batch_per_process(world), self.config.workers
        count, lengths = len(decisions), decisions.lengths
        return ResumableLoader(decisions, count, size, seed, workers, collate, rank, world, lengths)


class PolicyLearner(Trained):
    """Likelihood of what players selected, commanded and aimed at."""

    model: UnitPolicy

    def __init__(self, model: UnitPolicy, decisions: Decisions, config: BehaviouralCloning) -> None:
        super().__init__(model, config.optimization)
        self.config = config
        self.numbers = Numbers(model, decisions)
        self.scores = PolicyScores()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        batch = self.numbers(batch)
        losses = losses_of(self.model, batch)
        for name, loss in losses.items():
            self.log(f"train_{name}", loss, prog_bar=name == "selection")
        weights = {"selection": 1.0, "ability": self.config.ability_weight, "target": self.config.target_weight}
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.scores.update(self.model, self.numbers(batch))

    def on_validation_epoch_end(self) -> None:
        for name, value in self.scores.compute().items():
            self.log(f"test_{name}", value, prog_bar=name in ("f1", "exact"))
        self.scores.reset()


class Numbers(torch.nn.Module):
    """From the numbers that tables have for types and abilities to those of a model."""

    def __init__(self, model: UnitPolicy, decisions: Decisions) -> None:
        super().__init__()
        names = decisions.vocabulary
        if names.scalars != model.scalars:
            raise PerceiversError(
                f"the tables have the numbers {', '.join(names.scalars)}, the model reads {', '.join(model.scalars)}."
            )
        abilities = {name: place for place, name in enumerate(model.abilities, 1)}
        self.kind: Tensor
        self.ability: Tensor
        self.register_buffer("kind", model.units.places(names.kinds), persistent=False)
        ability = [-1, *(abilities.get(name, 0) for name in names.abilities)]
        self.register_buffer("ability", torch.tensor(ability), persistent=False)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch of tables as the model knows it; the ability of a selection stays -1, an unknown one is 0."""
        return dict(batch) | {"kind": self.kind[batch["kind"]], "ability": self.ability[batch["ability"] + 1]}


def losses_of(model: UnitPolicy, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of selections, for each unit that is pointed at; of commands; and of their targets. What a batch lacks is 0."""
    situation, own_BM = model(batch), own(batch)
    selects_B, aims_B = batch["ability"] < 0, batch["target"] >= 0
    zero = situation.context_BC.sum() * 0
    losses = dict.fromkeys(("selection", "ability", "target"), zero)
    if selects_B.any():
        some = part(situation, selects_B)
        log_B, steps_B = model.selection.log_likelihood(
            some.encoding.elements_BME, some.context_BC, own_BM[selects_B], (batch["chosen"] & own_BM)[selects_B]
        )
        losses["selection"] = -log_B.sum() / steps_B.sum()
    if not selects_B.all():
        chosen_BM = batch["chosen"][~selects_B]
        logits_BA = model.ability_logits(part(situation, ~selects_B), chosen_BM)
        losses["ability"] = F.cross_entropy(logits_BA, batch["ability"][~selects_B])
    if aims_B.any():
        logits_BM = model.target_logits(part(situation, aims_B), batch["chosen"][aims_B], batch["ability"][aims_B])
        losses["target"] = F.cross_entropy(logits_BM, batch["target"][aims_B])
    return losses


def part(situation: Situation, which_B: Tensor) -> Situation:
    """Some of the decisions."""
    elements_BME, whole_BE = situation.encoding
    return Situation(
        SetEncoding(elements_BME[which_B], whole_BE[which_B]), situation.real_BM[which_B], situation.context_BC[which_B]
    )


class PolicyScores(torch.nn.Module):
    """Selections, see `SelectionScores`; and how often ability and target are right."""

    def __init__(self) -> None:
        super().__init__()
        self.selection, self.ability, self.target = SelectionScores(), MeanMetric(), MeanMetric()

    def update(self, model: UnitPolicy, batch: Mapping[str, Tensor]) -> None:
        """Adds decisions, whose types and abilities have the model's numbers."""
        situation, own_BM = model(batch), own(batch)
        selects_B, aims_B = batch["ability"] < 0, batch["target"] >= 0
        if selects_B.any():
            some = part(situation, selects_B)
            place_BT = model.selection.choose(some.encoding.elements_BME, some.context_BC, own_BM[selects_B])
            first_B = place_BT[:, 0] if place_BT.shape[1] else place_BT.new_full((len(place_BT),), -1)
            self.selection.update(as_mask(place_BT, own_BM.shape[1]), batch["chosen"][selects_B], first_B)
        if not selects_B.all():
            logits_BA = model.ability_logits(part(situation, ~selects_B), batch["chosen"][~selects_B])
            self.ability.update((logits_BA.argmax(1) == batch["ability"][~selects_B]).float())
        if aims_B.any():
            logits_BM = model.target_logits(part(situation, aims_B), batch["chosen"][aims_B], batch["ability"][aims_B])
            self.target.update((logits_BM.argmax(1) == batch["target"][aims_B]).float())

    def compute(self) -> dict[str, Tensor]:
        """-> figures of selections; "ability" and "target" in [0, 1], NaN if there are none."""
        return self.selection.compute() | {"ability": self.ability.compute(), "target": self.target.compute()}

    def reset(self) -> None:
        """Starts anew."""
        for metric in (self.selection, self.ability, self.target):
            metric.reset()


def references(decisions: Decisions, batch_size: int = 64) -> dict[str, dict[str, float]]:
    """Figures of simple rules on the selections, by `REFERENCES`."""
    scores = {name: SelectionScores() for name in REFERENCES}
    generator = torch.Generator().manual_seed(0)
    for batch in ResumableLoader(decisions, len(decisions), batch_size, None, 0, collate, lengths=decisions.lengths):
        some = {name: value[batch["ability"] < 0] for name, value in batch.items()}
        if not len(some["real"]):
            continue
        found = (as_before(some), most_frequent(some), at_random(some, generator))
        for name, found_BM in zip(REFERENCES, found, strict=True):
            first_B = found_BM.int().argmax(1).where(found_BM.any(1), -1)
            scores[name].update(found_BM, some["chosen"], first_B)
    return {name: {key: float(value) for key, value in score.compute().items()} for name, score in scores.items()}


@torch.inference_mode()
def evaluate(model: UnitPolicy, decisions: Decisions, batch_size: int = 64) -> dict[str, float]:
    """Figures of a policy, see `PolicyScores`.

    Raises:
        PerceiversError: the tables have other numbers of players than the model reads.
    """
    device = next(model.parameters()).device
    numbers, scores = Numbers(model, decisions).to(device), PolicyScores().to(device)
    for batch in ResumableLoader(decisions, len(decisions), batch_size, None, 0, collate, lengths=decisions.lengths):
        scores.update(model, numbers({name: value.to(device) for name, value in batch.items()}))
    return {name: float(value) for name, value in scores.compute().items()}
