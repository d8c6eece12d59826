"""Interrupting training runs, and what they leave."""

import json
import signal

import torch
from safetensors.torch import load_file

from perceivers.training.learner import Learner
from perceivers.training.loop import Training
from perceivers.training.trainer import get_parser


def run_settings(**settings):
    """Returns the sections `trainer` and `training` of a run on the CPU, from fields of either."""
    names = vars(get_parser().get_defaults().trainer)
    trainer = {"accelerator": "cpu"} | {name: value for name, value in settings.items() if name in names}
    training = {name: value for name, value in settings.items() if name not in names}
    return {"trainer": trainer, "training": Training(**training)}


def interrupt_at(step, monkeypatch):
    """Presses Ctrl-C once, before an update."""
    pressed = []

    def hook(self, batch, batch_idx):
        if self.trainer.global_step == step and not pressed:
            pressed.append(step)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Learner, "on_train_batch_start", hook)


def record_steps(monkeypatch):
    """Returns a list to which each training step from now on adds the number of updates before it."""
    steps = []
    monkeypatch.setattr(Learner, "on_train_batch_start", lambda self, *batch: steps.append(self.trainer.global_step))
    return steps


def without_times(figures):
    return {name: value for name, value in figures.items() if name != "seconds"}


def read_results(folder):
    """Reads figures, models and checkpoints of all runs below a folder, by file and name; times are left out."""
    results = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "metrics.json":
            values = json.loads(path.read_text(), object_hook=without_times)
        elif path.name == "model.safetensors":
            values = load_file(path)
        elif path.suffix == ".ckpt":
            values = torch.load(path, weights_only=True)["state_dict"]
        else:
            continue
        results |= {f"{path.relative_to(folder)}: {name}": value for name, value in values.items()}
    return results


def differences(found, expected):
    """Returns the names of results of two folders that are not the same bit for bit."""

    def same(one, other):
        return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other

    names = sorted(found.keys() | expected.keys())
    return [
        name for name in names if name not in found or name not in expected or not same(found[name], expected[name])
    ]


def assert_equal_results(found, expected):
    """Asserts that the results of two folders are the same bit for bit."""
    assert differences(found, expected) == []
