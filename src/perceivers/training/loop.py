"""Training runs that can be interrupted and resumed, the same for all experiments."""

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

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from perceivers.checks import Checked, Count, ProperFraction, Range, check_field
from perceivers.data.loader import Samples
from perceivers.errors import PerceiversError
from perceivers.model.saving import atomic_write, describe_model
from perceivers.training.learner import Learner

CONFIG, LAST = "config.json", "last.ckpt"


@dataclass
class Training(Checked):
    """Settings of a training run.

    Attributes:
        epochs: passes over the training data.
        batch_size: examples per update, over all devices and accumulated steps.
        accumulate_grad_batches: steps whose gradients are summed for one update.
        precision: floating-point precision, as in Lightning.
        accelerator: type of device to train on.
        devices: number of devices per node, or "auto" for all.
        nodes: number of machines.
        ema: decay of an exponential moving average of the weights, which is evaluated and saved; none by default.
        compile: compile the model by `torch.compile` in the first step; the time it takes is printed.
        workers: data-loading processes per device.
        seed: seed of weights, order and augmentation.
        output: folder of the run.
        resume: continue the run in `output`.
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

    def batch_per_process(self, world_size: int) -> int:
        """Returns the examples per step of one process."""
        steps = world_size * self.accumulate_grad_batches
        size, rest = divmod(self.batch_size, steps)
        check_field("training.batch_size", self.batch_size, rest == 0, f"a multiple of {steps}")
        return size


class Batches(LightningDataModule):
    """Batches of samples for training and validation."""

    def __init__(self, training: Samples, validation: Samples, config: Training) -> None:
        super().__init__()
        self.training, self.validation, self.config = training, validation, config

    def train_dataloader(self) -> DataLoader[Any]:
        return self.make_loader(self.training, self.config.seed)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.make_loader(self.validation, None)

    def make_loader(self, samples: Samples, seed: int | None) -> DataLoader[Any]:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return samples.loader(self.config.batch_per_process(world_size), seed, self.config.workers, rank, world_size)


class RunGuard(Callback):
    """Seeds each step, checks batches and losses, logs throughput, and saves on Ctrl-C."""

    def __init__(self, config: Training, run_config: Mapping[str, Any]) -> None:
        self.config, self.run_config = config, run_config
        self.interrupted = False
        self.unreadable_samples: set[str] = set()
        self.last_step_time = time.perf_counter()
        self.compiled = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        owner = os.getpid()

        def interrupt(number: int, frame: object) -> None:
            if os.getpid() != owner:
                return  # a data-loading process
            self.interrupted = True
            print("\nFinishing this step, then saving. Press Ctrl-C again to stop at once.", file=sys.stderr)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        signal.signal(signal.SIGINT, interrupt)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            text = json.dumps(self.run_config, indent=2) + "\n"
            atomic_write(Path(self.config.output, CONFIG), lambda file: file.write_text(text))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step_time = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for field, value in batch.items():
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                step = trainer.global_step
                raise PerceiversError(f"step {step}: the batch's {field!r} has NaN or infinite values: check the data.")
        for problem in batch.get("problems", ()):
            if problem not in self.unreadable_samples:
                self.unreadable_samples.add(problem)
                print(f"\nSkipped: {problem}", file=sys.stderr)
        # Every step has its own random numbers, so that a resumed run draws the same ones as an uninterrupted run.
        torch.manual_seed(hash((self.config.seed, trainer.current_epoch, batch_idx, trainer.global_rank)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs is not None and not outputs["loss"].isfinite():
            step, loss = trainer.global_step, outputs["loss"].item()
            hint = "lower optimization.lr, or set optimization.clip_norm."
            raise PerceiversError(f"step {step}: the loss is {loss}: {hint}")
        now, steps = time.perf_counter(), self.config.accumulate_grad_batches
        seconds, self.last_step_time = now - self.last_step_time, now
        pl_module.log("examples_per_second", self.config.batch_size / steps / seconds, prog_bar=True)
        if self.config.compile and not self.compiled and trainer.is_global_zero:
            print(f"The first step, in which the model was compiled, took {seconds:.0f} s.", flush=True)
        self.compiled = True
        has_updated = (batch_idx + 1) % steps == 0 or batch_idx + 1 == trainer.num_training_batches
        if has_updated and trainer.strategy.reduce_boolean_decision(self.interrupted, all=False):
            output = Path(self.config.output)
            trainer.save_checkpoint(output / "checkpoints" / LAST)
            if trainer.is_global_zero:
                print(
                    f"\nStopped after step {trainer.global_step}; everything is saved. Resume with:\n"
                    f"  {program_name()} fit {shlex.quote(str(output / CONFIG))} --training.resume=true",
                    file=sys.stderr,
                )
            raise KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.unreadable_samples:
            print(f"\n{len(self.unreadable_samples)} samples could not be read and were skipped.", file=sys.stderr)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def program_name() -> str:
    """Returns the command as it was called, to be repeated in a command that the user is told to type."""
    path = Path(sys.argv[0])
    if path.name != "perceivers":
        return "perceivers"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


class ProgressBar(TQDMProgressBar):
    """A progress bar, for a terminal."""

    def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(*args, **kwargs)
        metrics.pop("v_num", None)  # the version of the logger's folder
        return metrics


class ProgressLines(Callback):
    """Progress as lines, for output that is not a terminal: one every ten seconds and one per evaluation."""

    def __init__(self) -> None:
        self.last_print_time = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.perf_counter() - self.last_print_time > 10:
            self.print_metrics(trainer, f"step {batch_idx + 1}/{trainer.num_training_batches}", ("train", "examples"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.print_metrics(trainer, "evaluated", ("train", "test", "examples"))

    def print_metrics(self, trainer: Trainer, progress: str, prefixes: tuple[str, ...]) -> None:
        """Prints the metrics whose names have one of the prefixes."""
        if trainer.is_global_zero:
            metrics = {name: value for name, value in trainer.progress_bar_metrics.items() if name.startswith(prefixes)}
            figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {progress}  {figures}", flush=True)
            self.last_print_time = time.perf_counter()


def train(
    learner: Learner,
    training: Samples,
    validation: Samples,
    config: Training,
    run_config: Mapping[str, Any],
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """Trains, evaluates after each epoch, and saves the model.

    `run_config` is the whole config, which is written to the run's folder; `finish` adds files to that of the model.

    Returns:
        The run's folder. In it: `model/`, the final weights (averaged, if `ema`); `checkpoints/`, the best weights and
        the last state, to resume from; `metrics.json`, the final metrics; `config.json`; `csv/` and `tensorboard/`.

    Raises:
        PerceiversError: the folder holds a run already, or cannot be written to.
    """
    output = Path(config.output)
    last = output / "checkpoints" / LAST
    check_output(config, last)
    describe_model(learner.model)  # fails before training, not after it, if the model cannot be saved
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
        atomic_write(output / "metrics.json", lambda file: file.write_text(json.dumps(results, indent=2) + "\n"))
    trainer.strategy.barrier()  # other processes may read these files
    return output


def check_output(config: Training, last: Path) -> None:
    """Raises a PerceiversError if the run's folder cannot be written to, or contradicts `config.resume`."""
    try:
        last.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PerceiversError(
            f"cannot write to {config.output}: {error.strerror}; choose another output path."
        ) from error
    if config.resume:
        if not last.is_file():
            raise PerceiversError(f"there is nothing to resume: {last} does not exist.")
        if (done := epochs_done(last)) >= config.epochs:
            raise PerceiversError(f"the run in {config.output} is finished: set training.epochs to more than {done}.")
    # SLURM starts the same command again after it requeued a job, and Lightning resumes it.
    elif last.exists() and not any(Path(config.output).glob("hpc_ckpt_*")):
        hint = "add --training.resume=true, or choose another training.output."
        raise PerceiversError(f"{config.output} holds a run already: {hint}")


def epochs_done(last: Path) -> int:
    """Returns the number of epochs that the run of a checkpoint has finished."""
    try:
        checkpoint = torch.load(last, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise PerceiversError(f"{last} is truncated or damaged: start again with another training.output.") from error
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def build_trainer(config: Training, learner: Learner, run_config: Mapping[str, Any]) -> Trainer:
    """Returns Lightning's trainer for a run; raises a PerceiversError if there are no such devices."""
    output, on_terminal = Path(config.output), sys.stderr.isatty()
    metric, mode = learner.monitor
    callbacks: list[Callback] = [
        RunGuard(config, run_config),
        ModelCheckpoint(output / "checkpoints", "best", metric, mode=mode, enable_version_counter=False),
        ModelCheckpoint(output / "checkpoints", Path(LAST).stem, enable_version_counter=False),
        LearningRateMonitor("step"),
        ProgressBar(refresh_rate=10, leave=True) if on_terminal else ProgressLines(),
    ]
    if config.ema is not None:  # comes first: it must have seen a step before RunGuard may save it
        callbacks.insert(0, EMAWeightAveraging(decay=config.ema))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    noise = "does not have many workers|LeafSpec|smaller than the logging interval|is not empty|has `__len__` defined"
    warnings.filterwarnings("ignore", f".*({noise})")
    try:
        return Trainer(
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
            enable_progress_bar=on_terminal,
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        devices = f"training.accelerator={config.accelerator}, training.devices={config.devices}"
        raise PerceiversError(f"{devices} is not available on this machine: {' '.join(str(error).split())}") from error
