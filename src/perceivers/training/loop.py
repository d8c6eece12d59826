"""What all experiments share: a training run that can be interrupted and resumed."""

import json
import logging
import os
import pickle
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from perceivers.checks import Checked, Count, ProperFraction, Range, check_field
from perceivers.data.loader import Samples
from perceivers.errors import PerceiversError
from perceivers.model.saving import describe, write
from perceivers.training.learner import Learner

CONFIG, LAST = "config.json", "last.ckpt"


@dataclass
class Training(Checked):
    """How a training run is done.

    Attributes:
        epochs: passes over the training data.
        batch_size: examples of one update, over all devices and accumulated steps.
        accumulate_grad_batches: steps whose gradients one update adds up.
        precision: of the arithmetic, as in Lightning.
        accelerator: what to train on.
        devices: how many of them on each node, or "auto" for all.
        nodes: number of machines.
        ema: decay of an average of the weights, which is then evaluated and saved; none, if not given.
        compile: compile the model by `torch.compile`, in the first step; it says how long that took.
        workers: processes that load data, for each device.
        seed: of weights, order and augmentation.
        output: folder of the run.
        resume: go on with the run in `output`.
    """

    section = "training."

    epochs: Count = 10
    batch_size: Count = 64
    accumulate_grad_batches: Count = 1
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"] = "32-true"
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int | Literal["auto"] = "auto"
    nodes: Count = 1
    ema: ProperFraction | None = None
    compile: bool = False
    workers: Annotated[int, Range(least=0)] = 0
    seed: Annotated[int, Range(least=0)] = 0
    output: str = "runs/run"
    resume: bool = False

    def batch_per_process(self, world: int) -> int:
        """Examples of one step of one process."""
        steps = world * self.accumulate_grad_batches
        size, rest = divmod(self.batch_size, steps)
        check_field("training.batch_size", self.batch_size, rest == 0, f"a multiple of {steps}")
        return size


class Batches(L.LightningDataModule):
    """Batches of samples for training and validation."""

    def __init__(self, training: Samples, validation: Samples, config: Training) -> None:
        super().__init__()
        self.training, self.validation, self.config = training, validation, config

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.training, self.config.seed)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader(self.validation, None)

    def loader(self, samples: Samples, seed: int | None) -> DataLoader[Any]:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return samples.loader(self.config.batch_per_process(world), seed, self.config.workers, rank, world)


class Steps(Callback):
    """Looks after the steps of a run: their random numbers, their input, their speed, and an interruption."""

    def __init__(self, config: Training, run_config: Mapping[str, Any]) -> None:
        self.config = config
        self.run_config = run_config
        self.interrupted = False
        self.problems: set[str] = set()
        self.ended = time.perf_counter()
        self.compiled = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        owner = os.getpid()

        def interrupt(number: int, frame: object) -> None:
            if os.getpid() != owner:
                return  # a process that loads data for this one
            self.interrupted = True
            print("\nFinishing this step, then saving. Press Ctrl-C again to stop at once.", file=sys.stderr)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        signal.signal(signal.SIGINT, interrupt)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            text = json.dumps(self.run_config, indent=2) + "\n"
            write(Path(self.config.output, CONFIG), lambda file: file.write_text(text))

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.ended = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        for field, value in batch.items():
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                raise PerceiversError(
                    f"step {trainer.global_step}: the batch's {field!r} has NaN or infinite values: check the data."
                )
        for problem in batch.get("problems", ()):
            if problem not in self.problems:
                self.problems.add(problem)
                print(f"\nSkipped: {problem}", file=sys.stderr)
        # Every step has random numbers of its own, so that a resumed run draws what an uninterrupted one does.
        torch.manual_seed(hash((self.config.seed, trainer.current_epoch, batch_idx, trainer.global_rank)))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs is not None and not outputs["loss"].isfinite():
            raise PerceiversError(
                f"step {trainer.global_step}: the loss is {outputs['loss'].item()}: lower optimization.lr, "
                f"or set optimization.clip_norm."
            )
        now = time.perf_counter()
        size = self.config.batch_size / self.config.accumulate_grad_batches
        pl_module.log("examples_per_second", size / (now - self.ended), prog_bar=True)
        if self.config.compile and not self.compiled and trainer.is_global_zero:
            print(f"The first step, in which the model was compiled, took {now - self.ended:.0f} s.", flush=True)
        self.compiled = True
        self.ended = now
        updated = (
            batch_idx + 1
        ) % self.config.accumulate_grad_batches == 0 or batch_idx + 1 == trainer.num_training_batches
        if updated and trainer.strategy.reduce_boolean_decision(self.interrupted, all=False):
            output = Path(self.config.output)
            trainer.save_checkpoint(output / "checkpoints" / LAST)
            if trainer.is_global_zero:
                print(
                    f"\nStopped after step {trainer.global_step}; everything is saved. Go on with:\n"
                    f"  {program()} fit {shlex.quote(str(output / CONFIG))} --training.resume=true",
                    file=sys.stderr,
                )
            raise KeyboardInterrupt

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.problems:
            print(f"\n{len(self.problems)} samples could not be read and were skipped.", file=sys.stderr)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def program() -> str:
    """The command as it was called, to be repeated in what the user is told to type."""
    path = Path(sys.argv[0])
    if path.name != "perceivers":
        return "perceivers"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class ProgressBar(TQDMProgressBar):
    """Progress as a bar, on a terminal."""

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # the logger's, of no use here
        return metrics


class ProgressLines(Callback):
    """Progress as lines, for output that is not a terminal: one every ten seconds and one an evaluation."""

    def __init__(self) -> None:
        self.printed = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_global_zero and time.perf_counter() - self.printed > 10:
            self.print(trainer, f"step {batch_idx + 1}/{trainer.num_training_batches}", ("train", "examples"))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.print(trainer, "evaluated", ("train", "test", "examples"))

    def print(self, trainer: L.Trainer, place: str, kinds: tuple[str, ...]) -> None:
        """Prints the metrics whose names start with one of `kinds`."""
        metrics = {name: value for name, value in trainer.progress_bar_metrics.items() if name.startswith(kinds)}
        figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {place}  {figures}", flush=True)
        self.printed = time.perf_counter()


def train(
    learner: Learner,
    training: Samples,
    validation: Samples,
    config: Training,
    run_config: Mapping[str, Any],
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Trains, evaluating after each epoch, and saves the model.

    Args:
        learner: the model, its loss and its metrics.
        training: the samples to train on.
        validation: those to evaluate on after each epoch.
        config: how to train.
        run_config: the whole config of the run, as it is written to the run's folder.
        finish: adds files to the folder of the trained model.

    Returns:
        The run's folder. In it: `model/`, the final weights (averaged, if `ema`); `checkpoints/`, the best and the
        last to resume from; `metrics.json`, the final figures; `config.json`; `csv/` and `tensorboard/`, the curves.

    Raises:
        PerceiversError: the folder holds a run already, or cannot be written to.
    """
    output = Path(config.output)
    last = output / "checkpoints" / LAST
    check_output(config, last)
    describe(learner.model)  # before training, not after it, is the time to learn that a model cannot be saved
    if config.compile:
        learner.model.compile()
    batches = Batches(training, validation, config)
    trainer = build_trainer(config, learner, run_config)
    started = time.perf_counter()
    trainer.fit(learner, datamodule=batches, ckpt_path=last if config.resume else None, weights_only=True)
    if not any(name.startswith("test") for name in trainer.callback_metrics):
        trainer.validate(learner, datamodule=batches, verbose=False)  # it was stopped between last step and evaluation
    if trainer.is_global_zero:
        parameters = sum(parameter.numel() for parameter in learner.model.parameters())
        results = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test")}
        results |= {"seconds": time.perf_counter() - started, "parameters": parameters, "seed": config.seed}
        learner.model.save(output / "model", run_config.get("experiment"))
        if finish is not None:
            finish(output / "model")
        write(output / "metrics.json", lambda file: file.write_text(json.dumps(results, indent=2) + "\n"))
    trainer.strategy.barrier()  # other processes may read what this one wrote
    return output


def check_output(config: Training, last: Path) -> None:
    """Raises a PerceiversError if the run's folder cannot be written to, or does not fit `config.resume`."""
    try:
        last.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PerceiversError(
            f"cannot write to {config.output}: {error.strerror}; choose another output path."
        ) from error
    requeued = any(Path(config.output).glob("hpc_ckpt_*"))  # SLURM starts the same command again; Lightning resumes it
    if not config.resume:
        if last.exists() and not requeued:
            raise PerceiversError(
                f"{config.output} holds a run already: go on with it by --training.resume=true, "
                f"or choose another training.output."
            )
        return
    if not last.is_file():
        raise PerceiversError(f"there is nothing to resume: {last} does not exist.")
    done = epochs_done(last)
    if done >= config.epochs:
        raise PerceiversError(
            f"the run in {config.output} is finished: set training.epochs to more than {done} to go on."
        )


def epochs_done(last: Path) -> int:
    """How many epochs a checkpoint's run had finished.

    Raises:
        PerceiversError: it cannot be read.
    """
    try:
        checkpoint = torch.load(last, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise PerceiversError(f"{last} is truncated or damaged: start again with another training.output.") from error
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def build_trainer(config: Training, learner: Learner, run_config: Mapping[str, Any]) -> L.Trainer:
    """Lightning's trainer for a run.

    Raises:
        PerceiversError: there are no such devices.
    """
    output = Path(config.output)
    figure, mode = learner.monitor
    # The average comes first: it must have seen a step before Steps may save it.
    average: list[Callback] = [] if config.ema is None else [EMAWeightAveraging(decay=config.ema)]
    callbacks: list[Callback] = [
        *average,
        Steps(config, run_config),
        ModelCheckpoint(output / "checkpoints", "best", figure, mode=mode, enable_version_counter=False),
        ModelCheckpoint(output / "checkpoints", Path(LAST).stem, enable_version_counter=False),
        LearningRateMonitor("step"),
        ProgressBar(refresh_rate=10, leave=True) if sys.stderr.isatty() else ProgressLines(),
    ]
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for noise in (
        "does not have many workers",
        "LeafSpec",
        "smaller than the logging interval",
        "is not empty",
        "has `__len__` defined",
    ):
        warnings.filterwarnings("ignore", f".*{noise}")
    try:
        return L.Trainer(
            default_root_dir=output,
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            precision=config.precision,
            max_epochs=config.epochs,
            accumulate_grad_batches=config.accumulate_grad_batches,
            gradient_clip_val=learner.optimization.clip_norm,
            callbacks=callbacks,
            logger=[CSVLogger(output, name="csv"), TensorBoardLogger(output, name="tensorboard", version="")],
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_model_summary=False,
            enable_progress_bar=sys.stderr.isatty(),
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        devices = f"training.accelerator={config.accelerator}, training.devices={config.devices}"
        raise PerceiversError(f"{devices} cannot be had here: {' '.join(str(error).split())}") from error
