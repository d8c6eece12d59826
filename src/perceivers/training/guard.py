"""Guards a training run: checks its numbers, saves its state, and stops it on a signal, in all processes together."""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from perceivers.checkpoints.run import model_weights, open_checkpoint, verify_checkpoint
from perceivers.errors import PerceiversError
from perceivers.model.saving import atomic_write, describe_model, save_model
from perceivers.training.checkpoints import CONFIG, LAST, CheckpointFiles
from perceivers.training.learner import Learner, find_nan, without_infinity
from perceivers.training.sharding import gather_weights, local_part, release_weights

if TYPE_CHECKING:
    from perceivers.training.loop import Training

T = TypeVar("T")


class RunGuard(Callback):
    """Seeds each step, checks batches, losses and weights, logs throughput, and saves.

    The state is saved after each epoch, before an evaluation, every few minutes or steps, and when the run is to be
    stopped by Ctrl-C or SIGTERM.

    Args:
        config: settings of the run.
        run_config: the whole config.
        monitor: the metric that selects the best weights, and "min" or "max".
        files: writes the checkpoints.
        finish: adds files to a folder with a trained model.

    Attributes:
        signal: number of the signal that is to stop the run, or 0.
        saved_step: number of updates when the state was saved last; None: not by this process.
        evaluated_step: number of updates when the model was evaluated last; None: not by this process.
    """

    def __init__(
        self,
        config: "Training",
        run_config: Mapping[str, Any],
        monitor: tuple[str, str],
        files: CheckpointFiles,
        finish: Callable[[Path], None] | None = None,
    ) -> None:
        self.config, self.run_config, self.files, self.finish = config, run_config, files, finish
        self.metric, self.mode = monitor
        self.output = Path(config.output)
        self.last = self.output / "checkpoints" / LAST
        self.signal = 0
        self.saved_step: int | None = None
        self.evaluated_step: int | None = None
        self.best: float | None = None
        self.model_config: dict[str, Any] = {}
        self.common_batches = 0
        self.unreadable_samples: set[str] = set()
        self.unreadable_batches = 0
        self.last_step_time = time.perf_counter()
        self.compiled = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "config": dict(self.run_config),
            "model": self.model_config,
            "monitor": self.metric,
            "best_model_score": self.best,
        }

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.model_config = describe_model(cast(Learner, pl_module).model, self.run_config.get("experiment"))
        self.last_save_time = time.perf_counter()

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
            atomic_write(self.output / CONFIG, lambda file: file.write_text(text))
            if self.run_config.get("trainer", {}).get("logger"):
                for logger in trainer.loggers:
                    logger.log_hyperparams(dict(self.run_config))

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
        hint = "lower optimization.lr, or set trainer.gradient_clip_val."
        problem = f"step {trainer.global_step}: the loss is {loss.item()}: {hint}" if not loss.isfinite() else None
        raise_together(trainer, problem)
        now, steps = time.perf_counter(), trainer.accumulate_grad_batches
        seconds, self.last_step_time = now - self.last_step_time, now
        pl_module.log("examples_per_second", self.config.batch_size / steps / seconds, prog_bar=True)
        if self.config.compile and not self.compiled and trainer.is_global_zero:
            print(f"The first step, in which the model was compiled, took {seconds:.0f} s.", flush=True)
        self.compiled = True
        is_last = batch_idx + 1 == trainer.num_training_batches  # saved when the evaluation starts
        if (batch_idx + 1) % steps == 0 and not is_last:
            if self.is_to_stop(trainer):
                self.save(trainer)
                self.stop(trainer)
            if trainer.strategy.reduce_boolean_decision(self.is_to_save(trainer, now), all=False):
                self.save(trainer)
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True  # else Lightning would not evaluate after the last step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.saved_step != trainer.global_step:  # without an evaluation after the last step
            self.save(trainer)
            if self.is_to_stop(trainer):
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
        if trainer.state.fn == TrainerFn.FITTING:
            batches = torch.tensor(sum(trainer.num_val_batches), device=pl_module.device)
            self.common_batches = int(trainer.strategy.reduce(batches, reduce_op="min"))
            self.save(trainer)
            if self.is_to_stop(trainer):
                self.stop(trainer)
        gather_weights(pl_module)

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
        release_weights(pl_module)
        self.evaluated_step = trainer.global_step
        found = self.collect_metrics(trainer)
        raise_together(trainer, find_nan(found))
        if self.metric not in found:
            raise PerceiversError(f"there is no metric {self.metric!r} to choose the best weights by: {list(found)}.")
        value = found[self.metric]
        is_better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        problem = None
        if trainer.is_global_zero and (is_better or not (self.output / "best").exists()):
            try:
                self.write_model("best", trainer.global_step, found)
            except PerceiversError as error:
                problem = str(error)
        raise_together(trainer, problem)
        self.best = value if is_better else self.best

    def collect_metrics(self, trainer: Trainer) -> dict[str, float]:
        """Returns the metrics of the last evaluation."""
        return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}

    def write_model(self, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the model of the last checkpoint to a folder of the run; its config tells step and metrics, too."""
        config = {**self.model_config, "step": step, "metrics": without_infinity(metrics)}
        save_model(self.output / name, config, model_weights(open_checkpoint(self.last)))
        if self.finish is not None:
            self.finish(self.output / name)

    def is_to_save(self, trainer: Trainer, now: float) -> bool:
        """Returns whether the state is to be saved after this update, by the settings."""
        steps, seconds = self.config.save_every_n_steps, 60 * self.config.save_every_n_minutes
        return now - self.last_save_time >= seconds or (steps is not None and trainer.global_step % steps == 0)

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
        step, hint = trainer.global_step, "lower optimization.lr, or set trainer.gradient_clip_val."
        weights = {name: local_part(tensor) for name, tensor in trainer.lightning_module.state_dict().items()}
        bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
        raise_together(trainer, f"step {step}: {bad[0]} has NaN or infinite values: {hint}" if bad else None)
        trainer.save_checkpoint(self.last)
        raise_together(trainer, None if self.files.error is None else str(self.files.error))
        self.saved_step, self.last_save_time = step, time.perf_counter()

    def stop(self, trainer: Trainer) -> NoReturn:
        """Ends the run, whose state is saved, with the status of its signal."""
        if not trainer.is_global_zero:
            sys.exit(0)  # with another status, Lightning would kill the first process
        verify_checkpoint(self.last)
        print(
            f"\nStopped after step {trainer.global_step}; everything is saved. Resume with:\n"
            f"  {program_name()} fit {shlex.quote(str(self.output / CONFIG))} --training.resume=true",
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
