"""A small run of image classification."""

from dataclasses import replace

from perceivers.images.demo import digits_run
from tests.support.runs import run_settings


def small_run(output, **training):
    """Digits: two epochs of nine updates."""
    run = digits_run(str(output))
    sizes = {"latents": 4, "channels": 8, "depth": 1, "heads": 1, "query_channels": 8, "bands": 2, "dropout": 0.1}
    run.model = replace(run.model, **sizes)
    settings = run_settings(**{"max_epochs": 2, "batch_size": 128, "output": str(output)} | training)
    run.trainer, run.training = settings["trainer"], settings["training"]
    return run
