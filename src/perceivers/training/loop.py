"""Training runs that can be interrupted and resumed, the same for all experiments."""

import json
import logging
import math
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from perceivers.checks import Checked, Count, ProperFraction, Range, check_field
from perceivers.data.loader import Samples
from perceivers.errors import PerceiversError
from perceivers.model import saving
from perceivers.model.saving import PART, atomic_write, check_tensors, describe_model
from perceivers.training.checkpoints import (
    BEST,
    LAST,
    CheckpointFiles,
    check_settings,
    count_epochs,
    hold_folder,
    open_checkpoint,
    verify_checkpoint,
)
from perceivers.training.learner import Learner, find_nan

CONFIG, METRICS = "config.json", "metrics.json"

T = TypeVar("T")


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
    """Batches of samples for training and validation; the position in those for training is part of a checkpoint."""

    def __init__(self, training: Samples, validation: Samples, config: Training) -> None:
        super().__init__()
        self.training, self.validation, self.config = training, validation, config
        self.loader: Any = None
        self.position: dict[str, Any] | None = None

    def train_dataloader(self) -> Any:
        self.loader = self.make_loader(self.training, self.config.seed)
        if self.position is not None:
            self.loader.load_state_dict(self.position)
        return self.loader

    def val_dataloader(self) -> Iterable[Any]:
        loader = self.make_loader(self.validation, None)
        # A process without samples takes part in the evaluation, as all add up their metrics.
        return loader if len(loader) else [{"problems": []}]

    def make_loader(self, samples: Samples, seed: int | None) -> DataLoader[Any]:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return samples.loader(self.config.batch_per_process(world_size), seed, self.config.workers, rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.loader.state_dict()} if hasattr(self.loader, "state_dict") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]


class RunGuard(Callback):
    """Seeds each step, checks batches, losses and weights, logs throughput, and saves: after the last update of each
    epoch, and when the run is to be stopped by Ctrl-C or SIGTERM.

    Attributes:
        signal: number of the signal that is to stop the run, or 0.
    """

    def __init__(
        self, config: Training, run_config: Mapping[str, Any], monitor: tuple[str, str], files: CheckpointFiles
    ) -> None:
        self.config, self.run_config, self.files = config, run_config, files
        self.metric, self.mode = monitor
        self.folder = Path(config.output) / "checkpoints"
        self.signal = 0
        self.best: float | None = None
        self.common_batches = 0
        self.unreadable_samples: set[str] = set()
        self.unreadable_batches = 0
        self.last_step_time = time.perf_counter()
        self.compiled = False

    def state_dict(self) -> dict[str, Any]:
        return {"config": dict(self.run_config), "monitor": self.metric, "best_model_score": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best_model_score"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        owner = os.getpid()

        def stop(number: int, frame: object) -> None:
            if os.getpid() != owner:
                return  # a data-loading process that has just begun
            if self.signal and number == signal.SIGINT:
                raise KeyboardInterrupt
            if not self.signal and trainer.is_global_zero:
                print("\nFinishing this step, then saving. Press Ctrl-C again to stop at once.", file=sys.stderr)
            self.signal = self.signal or number

        def report_stopped(number: int, frame: object) -> None:
            with suppress(ChildProcessError):
                while found := os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG):
                    process = found.si_pid
                    print(
                        f"\nProcess {process}, which loads data, was stopped: run `kill -CONT {process}` to go on, "
                        f"or press Ctrl-C twice.",
                        file=sys.stderr,
                    )

        # Lightning has set its own before, and restores those that were set at first.
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        if hasattr(os, "waitid"):
            signal.signal(signal.SIGCHLD, report_stopped)
        if trainer.is_global_zero:
            text = json.dumps(self.run_config, indent=2) + "\n"
            atomic_write(Path(self.config.output, CONFIG), lambda file: file.write_text(text))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step_time = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        bad = [
            field
            for field, value in batch.items()
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all()
        ]
        step = trainer.global_step
        problem = f"step {step}: the batch's {bad[0]!r} has NaN or infinite values: check the data." if bad else None
        raise_together(trainer, problem)
        for problem in batch.get("problems", ()):
            if problem not in self.unreadable_samples:
                self.unreadable_samples.add(problem)
                print(f"\nSkipped: {problem}", file=sys.stderr)
        if trainer.strategy.reduce_boolean_decision(set(batch) == {"problems"}, all=False):
            self.unreadable_batches += 1
            for name in batch.keys() - {"problems"}:  # all processes pass over a batch together
                del batch[name]
        # Every step has its own random numbers, so that a resumed run draws the same ones as an uninterrupted run.
        torch.manual_seed(hash((self.config.seed, trainer.current_epoch, batch_idx, trainer.global_rank)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"]
        hint = "lower optimization.lr, or set optimization.clip_norm."
        problem = f"step {trainer.global_step}: the loss is {loss.item()}: {hint}" if not loss.isfinite() else None
        raise_together(trainer, problem)
        now, steps = time.perf_counter(), self.config.accumulate_grad_batches
        seconds, self.last_step_time = now - self.last_step_time, now
        pl_module.log("examples_per_second", self.config.batch_size / steps / seconds, prog_bar=True)
        if self.config.compile and not self.compiled and trainer.is_global_zero:
            print(f"The first step, in which the model was compiled, took {seconds:.0f} s.", flush=True)
        self.compiled = True
        is_last = batch_idx + 1 == trainer.num_training_batches  # saved when the evaluation starts
        if (batch_idx + 1) % steps == 0 and not is_last and self.is_to_stop(trainer):
            self.save(trainer)
            self.stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        samples = set().union(*gather(trainer, self.unreadable_samples))
        if samples and trainer.is_global_zero:
            print(
                f"\n{len(samples)} samples could not be read and were skipped, and with them "
                f"{self.unreadable_batches} batches of which nothing could be read.",
                file=sys.stderr,
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        batches = torch.tensor(sum(trainer.num_val_batches), device=pl_module.device)
        self.common_batches = int(trainer.strategy.reduce(batches, reduce_op="min"))
        self.save(trainer)
        if self.is_to_stop(trainer):
            self.stop(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Processes may have different numbers of batches, but can only decide together.
        if trainer.state.fn == TrainerFn.FITTING and batch_idx < self.common_batches and self.is_to_stop(trainer):
            self.stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the weights with the best metric: they are those saved when the evaluation started."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test")}
        raise_together(trainer, find_nan(found))
        if self.metric not in found:
            raise PerceiversError(f"there is no metric {self.metric!r} to choose the best weights by: {list(found)}.")
        value, file = found[self.metric], self.folder / BEST
        is_better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        if trainer.is_global_zero and (is_better or not file.exists()):
            checkpoint = open_checkpoint(self.folder / LAST)
            checkpoint["callbacks"][self.state_key]["best_model_score"] = value
            self.files.save_checkpoint(checkpoint, file)
        self.best = value if is_better else self.best
        self.raise_write_error(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.validating:  # Lightning evaluates again only if a batch of the evaluation has been started
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for part in ("total", "current"):
                progress[part] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}

    def is_to_stop(self, trainer: Trainer) -> bool:
        """Returns whether any process has received a signal to stop."""
        is_to_stop = trainer.strategy.reduce_boolean_decision(self.signal > 0, all=False)
        if is_to_stop:
            self.signal = max(gather(trainer, self.signal))
        return is_to_stop

    def save(self, trainer: Trainer) -> None:
        """Saves the state of the run, unless the weights are not finite.

        Raises:
            PerceiversError: they are not, or the checkpoint cannot be written.
        """
        step, hint = trainer.global_step, "lower optimization.lr, or set optimization.clip_norm."
        weights = trainer.lightning_module.state_dict().items()
        bad = [name for name, tensor in weights if tensor.is_floating_point() and not tensor.isfinite().all()]
        raise_together(trainer, f"step {step}: {bad[0]} has NaN or infinite values: {hint}" if bad else None)
        trainer.save_checkpoint(self.folder / LAST)
        self.raise_write_error(trainer)

    def raise_write_error(self, trainer: Trainer) -> None:
        """Raises the PerceiversError of a checkpoint that could not be written."""
        raise_together(trainer, None if self.files.error is None else str(self.files.error))

    def stop(self, trainer: Trainer) -> NoReturn:
        """Ends the run, whose state is saved, with the status of its signal."""
        if not trainer.is_global_zero:
            sys.exit(0)  # with another status, Lightning would kill the first process
        verify_checkpoint(self.folder / LAST)
        print(
            f"\nStopped after step {trainer.global_step}; everything is saved. Resume with:\n"
            f"  {program_name()} fit {shlex.quote(str(Path(self.config.output, CONFIG)))} --training.resume=true",
            file=sys.stderr,
        )
        sys.exit(128 + self.signal)


def gather(trainer: Trainer, value: T) -> list[T]:
    """Returns a value of each process."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def raise_together(trainer: Trainer, problem: str | None) -> None:
    """Raises a PerceiversError in the first process if any has a problem, and ends the others.

    All processes must call it; else those without a problem would wait for the others.
    """
    if trainer.strategy.reduce_boolean_decision(problem is not None, all=False):
        problems = [found for found in gather(trainer, problem) if found is not None]
        if not trainer.is_global_zero:
            sys.exit(0)
        raise PerceiversError(problems[0])


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
    describe_model(learner.model)  # fails before training, not after it, if the model cannot be saved
    trainer = build_trainer(config, learner, run_config)
    with hold_folder(output) if trainer.is_global_zero else nullcontext():
        check_output(config, learner, run_config)
        if config.compile:
            learner.model.compile()
        started = time.perf_counter()
        fit(trainer, learner, Batches(training, validation, config), config)
        if trainer.is_global_zero:
            parameters = sum(parameter.numel() for parameter in learner.model.parameters())
            results = {
                name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test")
            }
            results |= {"seconds": time.perf_counter() - started, "parameters": parameters, "seed": config.seed}
            learner.model.save(output / "model", run_config.get("experiment"))
            if finish is not None:
                finish(output / "model")
            text = json.dumps(without_infinity(results), indent=2, allow_nan=False) + "\n"
            atomic_write(output / METRICS, lambda file: file.write_text(text))
        trainer.strategy.barrier()  # other processes may read these files
    return output


def fit(trainer: Trainer, learner: Learner, batches: Batches, config: Training) -> None:
    """Runs the training; what ends it from outside is raised as a PerceiversError."""
    guard = next(callback for callback in trainer.callbacks if isinstance(callback, RunGuard))  # type: ignore[attr-defined]
    last = guard.folder / LAST if config.resume else None
    try:
        try:
            trainer.fit(learner, datamodule=batches, ckpt_path=last, weights_only=True)
        except Exception:
            if trainer.strategy.launcher is not None:
                trainer.strategy.launcher.kill(signal.SIGKILL)  # other processes would wait for this one
            raise
    except SystemExit as stop:  # Lightning's status for Ctrl-C is that of an error
        raise SystemExit(128 + guard.signal if guard.signal and stop.code else stop.code) from None
    except OSError as error:
        raise PerceiversError(f"the run in {config.output} cannot go on: {error}.") from error
    except RuntimeError as error:
        if found := re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error)):
            raise PerceiversError(
                f"process {found[1]}, which loads data, was killed, perhaps for lack of memory: "
                f"lower training.workers, and resume with --training.resume=true."
            ) from error
        if trainer.world_size > 1 and re.search(r"gloo|NCCL|[Cc]onnection", str(error)):
            raise PerceiversError("another process of the run has ended, so that this one cannot go on.") from error
        raise


def without_infinity(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Returns figures with null instead of those that JSON cannot hold, such as the PSNR of a perfect copy."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def check_output(config: Training, learner: Learner, run_config: Mapping[str, Any]) -> None:
    """Raises a PerceiversError if the run's folder cannot be written to, or contradicts `config.resume`."""
    output = Path(config.output)
    last = output / "checkpoints" / LAST
    try:
        last.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=last.parent).close()
        for left in (*output.glob(f".*{PART}"), *output.glob(f"*/.*{PART}")):  # by a run that was killed
            left.unlink()
    except OSError as error:
        raise PerceiversError(
            f"cannot write to {error.filename}: {error.strerror}; choose another output path."
        ) from error
    is_finished = (output / METRICS).is_file()
    if not config.resume:
        # SLURM starts the same command again after it requeued a job, and Lightning resumes it.
        if (last.exists() or is_finished) and not any(output.glob("hpc_ckpt_*")):
            hint = "add --training.resume=true, or choose another training.output."
            raise PerceiversError(f"{config.output} holds a run already: {hint}")
        return
    if not last.is_file():
        raise PerceiversError(
            f"there is nothing to resume: {last} does not exist; start again without training.resume."
        )
    checkpoint = verify_checkpoint(last)
    done, is_finished = count_epochs(checkpoint), is_finished and has_model(output / "model")
    if done > config.epochs or (done == config.epochs and is_finished):
        raise PerceiversError(f"the run in {config.output} is finished: set training.epochs to more than {done}.")
    check_tensors(checkpoint["state_dict"], learner, last)
    check_settings(checkpoint["callbacks"][RunGuard.__qualname__]["config"], run_config)
    (output / METRICS).unlink(missing_ok=True)  # until the run is finished again


def has_model(folder: Path) -> bool:
    """Returns whether a folder holds a saved model."""
    return all((folder / name).is_file() for name in (saving.CONFIG, saving.WEIGHTS))


def build_trainer(config: Training, learner: Learner, run_config: Mapping[str, Any]) -> Trainer:
    """Returns Lightning's trainer for a run; raises a PerceiversError if there are no such devices."""
    output, on_terminal, files = Path(config.output), sys.stderr.isatty(), CheckpointFiles()
    callbacks: list[Callback] = [
        RunGuard(config, run_config, learner.monitor, files),
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
            enable_checkpointing=False,  # RunGuard saves
            plugins=[files],
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        devices = f"training.accelerator={config.accelerator}, training.devices={config.devices}"
        raise PerceiversError(f"{devices} is not available on this machine: {' '.join(str(error).split())}") from error
