"""An experiment: what a config file describes and `perceivers fit` runs."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lightning as L
import torch
from torch import nn

from perceivers import plugins
from perceivers.checks import Checked, check_field
from perceivers.data.loader import Samples
from perceivers.model.saving import Model
from perceivers.training.learner import Learner
from perceivers.training.loop import Training, train
from perceivers.training.optimization import Optimization


class Setup(NamedTuple):
    """What an experiment has opened: how to build its model, and its samples for training and validation."""

    build: Callable[[], Model]
    training: Samples
    validation: Samples


@dataclass(kw_only=True)
class Experiment(Checked, ABC):
    """Base of experiments, dataclasses whose fields are those of a config file.

    A subclass annotates `model` with its model's config, adds `data` and what its loss needs, and defines `prepare` and
    `learner`. If its models can be measured by `perceivers evaluate`, it defines `evaluate` and `evaluates`.

    Attributes:
        model: the model's config: `preset`, one of `perceivers models`, and whichever of its fields are to be others.
        optimization: how weights are updated.
        training: how the run is done.
    """

    decided_by_data: ClassVar[tuple[str, ...]] = ()
    """Fields of the model's config that the data decides; a config may give them, as a check."""

    evaluate: ClassVar[Callable[..., None] | None] = None
    """The command `perceivers evaluate` for models of this experiment: a function whose first argument is the model, a
    path, and whose others are the command's; see `perceivers.command`."""

    model: Any
    optimization: Optimization = field(default_factory=Optimization)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.given: dict[str, Any] = {}
        """Values of `decided_by_data` that the config gives."""
        self.settled: set[str] = set()
        """Fields of the model's config that the data has decided."""

    @abstractmethod
    def prepare(self) -> Setup:
        """Opens the data. Builds the model on the meta device before, so that a wrong setting shows early."""

    @abstractmethod
    def learner(self, model: Any) -> Learner:
        """Returns the model with its loss and metrics."""

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        """Returns whether a model that does not say where it was trained is of the kind that is trained here."""
        return False

    def finish(self, folder: Path) -> None:
        """Adds to the folder of the trained model what it needs beside its weights, such as a tokenizer."""

    def run(self) -> Path:
        """Trains; -> the run's folder, see `train`."""
        L.seed_everything(self.training.seed, verbose=False)
        prepared = self.prepare()
        learner = self.learner(prepared.build())
        return train(learner, prepared.training, prepared.validation, self.training, self.to_config(), self.finish)

    def build_on_meta(self) -> Any:
        """Returns the model as the config has it, without weights."""
        with torch.device("meta"):
            return self.model.build()

    def settle(self, **values: Any) -> dict[str, Any]:
        """Returns the fields of the model's config that the data decides.

        Raises:
            PerceiversError: the config gives another value for one.
        """
        for name, value in values.items():
            given = self.given.get(name, value)
            check_field(f"model.{name}", given, given == value, f"{value}, as in the data, or left out")
        self.settled |= values.keys()
        return values

    @classmethod
    def name(cls) -> str:
        """Returns the name under which the experiment is declared, or its import path."""
        return plugins.find_name("experiments", cls)

    def to_config(self) -> dict[str, Any]:
        """Returns the config as a file holds it, such that the run can be resumed from it."""
        config: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        config["model"] = {
            name: value for name, value in config["model"].items() if name not in self.settled
        } | self.given
        folder = plugins.find_import_folder(type(self))
        return {"experiment": self.name(), **({} if folder is None else {"import_from": str(folder)}), **config}
