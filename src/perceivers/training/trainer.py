"""Lightning's Trainer, whose arguments are the fields of `trainer` in a config."""

import inspect
import logging
import os
import re
import warnings
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser, Namespace
from lightning import Callback, Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint

from perceivers.checks import check_field, describe_type
from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.training import sharding

DEFAULTS: dict[str, Any] = {"precision": "32-true", "log_every_n_steps": 10}
"""Defaults that are not Lightning's."""

EPOCHS = 10
"""Default of `max_epochs`, unless steps or time are limited."""

RESERVED = {
    "barebones": "it would turn off checkpoints",
    "default_root_dir": "set training.output",
    "enable_checkpointing": "a run always saves its state, see training.save_every_n_minutes",
    "limit_predict_batches": "a run does not predict",
    "limit_test_batches": "a run evaluates on validation data, see trainer.limit_val_batches",
    "num_sanity_val_steps": "the samples are checked before the run",
    "overfit_batches": "set trainer.limit_train_batches",
    "reload_dataloaders_every_n_epochs": "each epoch has its own order",
    "sync_batchnorm": "batch normalization is always over all processes",
    "use_distributed_sampler": "samples are always distributed over processes",
}
"""Arguments that the library sets, and what to do instead."""


@cache
def get_parser() -> ArgumentParser:
    """Returns the parser of the arguments that a config may set."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Trainer, "trainer", skip={*RESERVED}, instantiate=False)
    parser.set_defaults({f"trainer.{name}": value for name, value in DEFAULTS.items()})
    return parser


def parse_trainer(values: Mapping[str, Any]) -> Namespace:
    """Checks arguments of the Trainer, where objects are given by class path; returns all, with defaults.

    Raises:
        PerceiversError: an argument is unknown, reserved or of the wrong type, or a class cannot be imported.
    """
    parser = get_parser()
    known = vars(parser.get_defaults().trainer)
    for name in values:
        if name in RESERVED:
            raise PerceiversError(f"trainer.{name} cannot be set: {RESERVED[name]}.")
        if name not in known:
            raise PerceiversError(f"there is no field 'trainer.{name}': {did_you_mean(str(name), known)}")
    epochs = values.get("max_epochs")
    is_allowed = not isinstance(epochs, int) or epochs == -1 or epochs >= 1
    check_field("trainer.max_epochs", epochs, is_allowed, "at least 1, or -1 for no limit")
    try:
        return parser.parse_object({"trainer": deepcopy(dict(values))})  # which it changes
    except Exception as error:  # a class that is named may raise anything when it is imported
        raise PerceiversError(explain(getattr(error, "message", None) or str(error), values)) from error


def explain(message: str, values: Mapping[str, Any]) -> str:
    """Returns the error of jsonargparse as one sentence."""
    found = re.search(r'Parser key "(trainer\.(\w+)[^"]*)"', message)
    field = found[1] if found else "trainer"
    if reason := re.search(r"Problem with given class_path ('[^']+'):\n\s*(?:- )?(.+)", message):
        return f"{field}: {reason[1]} cannot be used: {' '.join(reason[2].split()).rstrip('.')}."
    if reason := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", message):
        return f"{field}: {reason[1]} is no {reason[2]}."
    value = f" = {quote(values[found[2]])}" if found and found[2] in values else ""
    kind = inspect.signature(Trainer).parameters[found[2]].annotation if found else "another value"
    return f"{field}{value} is not allowed: it must be of type {describe_type(kind)}."


def count_max_epochs(values: Mapping[str, Any]) -> int:
    """Returns the largest number of epochs of a run, -1 for no limit."""
    if values.get("max_epochs") is not None:
        return int(values["max_epochs"])
    return EPOCHS if values.get("max_steps", -1) == -1 and values.get("max_time") is None else -1


def build_trainer(values: Mapping[str, Any], callbacks: list[Callback], plugins: list[Any], **ours: Any) -> Trainer:
    """Returns Lightning's Trainer.

    Args:
        values: the config's arguments.
        callbacks: those of the library, which come before those of the config.
        plugins: the same.
        ours: values of other arguments, which the config replaces.

    Raises:
        PerceiversError: the Trainer refuses its arguments, such as devices that are not there.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    noise = "does not have many workers|LeafSpec|smaller than the logging interval|is not empty|has `__len__` defined"
    noise += "|WeightAveraging doesn't support sharding"  # sharded runs refuse training.ema
    warnings.filterwarnings("ignore", f".*({noise})")
    try:
        parsed = get_parser().instantiate(parse_trainer(values)).trainer
        given = {name: getattr(parsed, name) for name in values if getattr(parsed, name) is not None}
        if given.get("strategy") == sharding.NAME:
            given["strategy"] = sharding.FullySharded()
        own, others = given.pop("callbacks", []), given.pop("plugins", [])
        own, others = (value if isinstance(value, list) else [value] for value in (own, others))
        trainer = Trainer(
            **DEFAULTS | ours | given | {"max_epochs": count_max_epochs(values)},
            callbacks=callbacks + own,
            plugins=plugins + others,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in own),
        )
        check_machines(trainer)
        return trainer
    except PerceiversError:
        raise
    except (MisconfigurationException, RuntimeError, ValueError, TypeError, ImportError) as error:
        raise PerceiversError(f"trainer = {quote(dict(values))} cannot be used: {join_lines(error)}") from error


def check_machines(trainer: Trainer) -> None:
    """Raises a PerceiversError for more processes than this machine has cores, and for machines that nobody starts."""
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        raise PerceiversError(
            f"trainer.devices = {trainer.num_devices} is not allowed: it must be at most {cores}, the number of cores."
        )
    if isinstance(trainer.strategy, sharding.FullySharded) and trainer.num_devices * trainer.num_nodes == 1:
        raise PerceiversError(
            "trainer.strategy = 'fsdp' shards weights over several processes: set trainer.devices to 2 or more, "
            "or leave it out."
        )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and "NODE_RANK" not in os.environ:
        raise PerceiversError(
            f"trainer.num_nodes = {trainer.num_nodes} needs a process on each machine: start the command by torchrun "
            f"or SLURM, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each."
        )


def join_lines(error: Exception) -> str:
    """Returns the message of an error in one line that ends like a sentence."""
    return f"{' '.join(str(error).split()).rstrip('.')}."


def describe_arguments() -> list[tuple[str, str, Any, str]]:
    """Returns name, type, default and documentation of each argument that a config may set."""
    parsed = docstring_parser.parse(Trainer.__init__.__doc__ or "")
    texts = {param.arg_name: " ".join((param.description or "").split()) for param in parsed.params}
    parameters = inspect.signature(Trainer).parameters
    defaults = vars(get_parser().get_defaults().trainer) | {"max_epochs": EPOCHS}
    return [
        (name, describe_type(parameters[name].annotation), default, texts.get(name, ""))
        for name, default in defaults.items()
    ]
