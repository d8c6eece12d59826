"""Guards a training run: checks its numbers, saves its state, and stops it on a signal, in all processes together."""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.saving import atomic_write
from perceivers.training.checkpoints import BEST, CONFIG, LAST, CheckpointFiles, open_checkpoint, verify_checkpoint
from perceivers.training.learner import find_nan

if TYPE_CHECKING:
    from perceivers.training.loop import Training

T = TypeVar("T")


class RunGuard(Callback):
    """Seeds each step, checks batches, losses and weights, logs throughput, and saves: after the last update of each
    epoch, and when the run is to be stopped by Ctrl-C or SIGTERM.

    Attributes:
        signal: number of the signal that is to stop the run, or 0.
    """

    def __init__(
        self, config: "Training", run_config: Mapping[str, Any], monitor: tuple[str, str], files: CheckpointFiles
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
