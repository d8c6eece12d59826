"""Trains the small runs of `tests.training.test_processes`, in each of the processes that `torchrun` starts."""

import sys
from dataclasses import replace
from pathlib import Path

from perceivers.flow.training import Curriculum
from perceivers.images.augmentation import Augmentation
from perceivers.training.optimization import Optimization
from tests.support import flow
from tests.support.experiments import RUNS

EXPERIMENTS = ("image_classification", "text_classification", "optical_flow", "clip_classification")


def train(folder, output, experiment, **settings):
    """Trains without what is random in each process: dropout and augmentation."""
    run = RUNS[experiment](folder / experiment, output=output / experiment, **settings)
    run.trainer["max_epochs"] = 1
    run.optimization = Optimization(optimizer="SGD", lr=0.1, weight_decay=0, schedule="constant")
    if experiment == "image_classification":
        run.model, run.augmentation = replace(run.model, dropout=0.0), Augmentation()
    if experiment == "optical_flow":
        run.curriculum = Curriculum(1.0, 0.0)
    run.run()


if __name__ == "__main__":
    flow.use_few_textures(__import__("pytest").MonkeyPatch())
    for strategy in sys.argv[2:]:
        for name in EXPERIMENTS:
            root = Path(sys.argv[1])
            train(root, root / strategy, name, strategy=strategy, devices=2)
