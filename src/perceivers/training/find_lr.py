"""Searches a learning rate: trains with one that rises after each update, and watches the loss."""

import tempfile
from typing import NamedTuple

import lightning as L
from lightning.pytorch.tuner.tuning import Tuner

from perceivers.errors import PerceiversError
from perceivers.training.experiment import Experiment
from perceivers.training.loop import Batches
from perceivers.training.trainer import build_trainer

LEFT_OUT = ("callbacks", "logger", "max_epochs", "max_time", "min_epochs", "min_steps", "val_check_interval")
"""Arguments of the Trainer that a search does without."""


class Search(NamedTuple):
    """The learning rate at which the smoothed loss fell fastest, all that were tried, and their smoothed losses."""

    lr: float
    lrs: list[float]
    losses: list[float]


def find_lr(experiment: Experiment, lowest: float = 1e-6, highest: float = 1.0, steps: int = 100) -> Search:
    """Trains a fresh model of an experiment with learning rates that rise exponentially, and writes nothing.

    Args:
        experiment: the experiment.
        lowest: the first learning rate.
        highest: the last one, unless the loss rises to the fourfold of its minimum before.
        steps: number of updates.

    Raises:
        PerceiversError: the loss rose after so few updates that nothing can be said.
    """
    L.seed_everything(experiment.training.seed, verbose=False)
    setup = experiment.prepare()
    learner = experiment.learner(setup.build())
    arguments = {name: value for name, value in experiment.trainer.items() if name not in LEFT_OUT}
    arguments |= {"max_steps": steps, "check_val_every_n_epoch": steps}
    with tempfile.TemporaryDirectory() as folder:  # Lightning keeps the first weights there
        quiet = {"logger": False, "enable_model_summary": False, "enable_progress_bar": False}
        trainer = build_trainer(arguments, [], [], default_root_dir=folder, **quiet)
        batches = Batches(setup.training, setup.validation, experiment.training)
        finder = Tuner(trainer).lr_find(
            learner, datamodule=batches, min_lr=lowest, max_lr=highest, num_training=steps, update_attr=False
        )
        found = None if finder is None else finder.suggestion()
    if finder is None or found is None:
        raise PerceiversError(f"the loss rose at once, at a learning rate of {lowest:g}: check data and model.")
    return Search(found, finder.results["lr"], finder.results["loss"])


def format_search(search: Search, rows: int = 20) -> str:
    """Returns a table of learning rates and losses, and the suggestion."""
    lines = ["learning rate   loss"]
    for index in range(0, len(search.lrs), max(1, len(search.lrs) // rows)):
        lines.append(f"{search.lrs[index]:<16.2e}{search.losses[index]:.4g}")
    return "\n".join([*lines, "", f"The loss falls fastest at --optimization.lr={search.lr:.1e}"])
