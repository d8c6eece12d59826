"""The base of experiments, which config files describe and `perceivers fit` runs."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lightning as L
from torch import nn

from perceivers import plugins
from perceivers.checks import Checked, check_field
from perceivers.data.loader import Samples
from perceivers.model.meta import check_memory
from perceivers.model.saving import Model
from perceivers.model.sizes import ModelConfig
from perceivers.prediction import Predictor
from perceivers.training.initialization import initialize
from perceivers.training.learner import Learner, Monitor
from perceivers.training.loop import Training, train
from perceivers.training.optimization import Optimization
from perceivers.training.trainer import parse_trainer


class Setup(NamedTuple):
    """A function that builds the model of an experiment, and its samples for training and validation."""

    build: Callable[[], Model]
    training: Samples
    validation: Samples


class TrialResult(NamedTuple):
    """A finished trial of a sweep: its number, the values of the fields that the sweep varies, its value, the final
    metrics, and its folder.
    """

    number: int
    values: dict[str, Any]
    value: float
    metrics: dict[str, Any]
    folder: Path


@dataclass(kw_only=True)
class Experiment(Checked, ABC):
    """Base of experiments: dataclasses whose fields are those of a config file.

    A subclass annotates `model` with its model's config, adds `data` and the settings of its loss, and defines
    `prepare` and `learner`. To support `perceivers evaluate`, it defines `evaluate` and `evaluates`.

    Attributes:
        model: config of the model: `preset`, one of `perceivers models`, or `init`, a saved model to start from, and
            fields that override those of that model.
        optimization: settings of the optimizer.
        trainer: arguments of Lightning's Trainer by name; objects, such as callbacks and loggers, by `class_path` and
            `init_args`.
        training: settings of the training run.
    """

    decided_by_data: ClassVar[tuple[str, ...]] = ()
    """Fields of the model's config that the data decides; if a config gives them, they are checked."""

    evaluate: ClassVar[Callable[..., None] | None] = None
    """The command `perceivers evaluate` for models of this experiment: a function whose first argument is the path of
    the model, and whose other arguments are options of the command; see `perceivers.command`."""

    predictor: ClassVar[type[Predictor] | None] = None
    """The class that predicts the rows of a table by models of this experiment, for `perceivers predict`."""

    command: ClassVar[str | None] = None
    """The command of models whose outputs are no rows of a table."""

    model: Any
    optimization: Optimization = field(default_factory=Optimization)
    trainer: dict[str, Any] = field(default_factory=dict)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_trainer(self.trainer)
        self.given: dict[str, Any] = {}
        """Values of `decided_by_data` that the config gives."""
        self.settled: set[str] = set()
        """Fields of the model's config that the data has decided."""

    @abstractmethod
    def prepare(self) -> Setup:
        """Opens the data; builds the model on the meta device before that, so that a wrong setting is found early."""

    @abstractmethod
    def learner(self, model: Any) -> Learner:
        """Returns the model with its loss and metrics."""

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        """Returns whether `evaluate` takes a model that was saved without the name of its experiment."""
        return False

    def finish(self, folder: Path) -> None:
        """Adds files to the folder of the trained model, such as a tokenizer."""

    def run(self, callbacks: Sequence[L.Callback] = (), monitor: Monitor | None = None) -> Path:
        """Trains and returns the folder of the run, see `train`.

        Args:
            callbacks: more callbacks than those of `trainer`.
            monitor: replaces the learner's.
        """
        L.seed_everything(self.training.seed, verbose=False)
        setup = self.prepare()
        model = setup.build()
        adapter = None
        if isinstance(self.model, ModelConfig):
            adapter = initialize(model, self.model, is_resumed=self.training.continues())

        def finish(folder: Path) -> None:
            self.finish(folder)
            if adapter is not None:
                adapter.write(folder)

        learner = self.learner(model)
        learner.monitor = monitor or learner.monitor
        samples = (setup.training, setup.validation)
        return train(learner, *samples, self.training, self.trainer, self.to_config(), finish, callbacks)

    def summarize_sweep(self, results: Sequence[TrialResult]) -> list[Path]:
        """Returns the folders of the best models of a sweep, by default that of the first of its results.

        An experiment may choose them in another way, and print a table. `results` are sorted by value, best first.
        """
        return [result.folder / "best" for result in results[:1]]

    def build_on_meta(self) -> Any:
        """Builds the model of the config on the meta device, without weights."""
        return check_memory(self.model.build, "the config")

    def settle(self, **values: Any) -> dict[str, Any]:
        """Returns the fields that the data decides; raises a PerceiversError if the config gives another value."""
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
        """Returns the config as in a file, from which the run can be resumed."""
        config: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        model = {name: value for name, value in config["model"].items() if name not in self.settled}
        config["model"] = model | self.given
        folder = plugins.find_import_folder(type(self))
        return {"experiment": self.name(), **({} if folder is None else {"import_from": str(folder)}), **config}
