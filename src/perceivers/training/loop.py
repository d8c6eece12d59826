"""Training runs that can be interrupted and resumed, the same for all experiments."""

import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from perceivers.checkpoints.run import describe_run, verify_checkpoint
from perceivers.checks import Checked, Count, ProperFraction, Range, check_field
from perceivers.data.loader import Samples
from perceivers.errors import PerceiversError
from perceivers.model import saving
from perceivers.model.memory import KEEP_ALL, keep_freed_memory
from perceivers.model.saving import PART, atomic_write, check_tensors, describe_model
from perceivers.progress import Shown, show_progress
from perceivers.training import sharding
from perceivers.training.checkpoints import (
    LAST,
    METRICS,
    CheckpointFiles,
    check_settings,
    count_epochs,
    have_same_limits,
    hold_folder,
)
from perceivers.training.guard import RunGuard
from perceivers.training.learner import Learner, without_infinity
from perceivers.training.progress import ProgressBar, ProgressLines
from perceivers.training.trainer import build_trainer

T = TypeVar("T")


@dataclass
class Training(Checked):
    """Settings of a training run.

    Attributes:
        batch_size: examples per update, over all devices and accumulated steps.
        ema: decay of an exponential moving average of the weights, which is evaluated and saved; none by default. It
            is smaller in the first updates, see `average_weights`.
        compile: compile the model by `torch.compile` in the first step; the time it takes is printed.
        workers: data-loading processes per device.
        seed: seed of weights, order and augmentation.
        output: folder of the run.
        resume: continue the run in `output`; "auto": if there is one, or else begin it.
        save_every_n_minutes: the state of the run is saved after so many minutes, and after each epoch.
        save_every_n_steps: it is also saved after so many updates.
    """

    section = "training."

    batch_size: Count = 64
    ema: ProperFraction | None = None
    compile: bool = False
    workers: Annotated[int, Range(least=0)] = 0
    seed: Annotated[int, Range(least=0)] = 0
    output: str = "runs/run"
    resume: bool | Literal["auto"] = False
    save_every_n_minutes: Annotated[float, Range(above=0)] = 10
    save_every_n_steps: Count | None = None

    def continues(self) -> bool:
        """Returns whether the run goes on from a state in its folder."""
        return bool(self.resume) and (Path(self.output) / "checkpoints" / LAST).is_file()

    def batch_per_process(self, trainer: Trainer) -> int:
        """Returns the examples per step of one process."""
        steps = trainer.world_size * trainer.accumulate_grad_batches
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
        return samples.loader(self.config.batch_per_process(self.trainer), seed, self.config.workers, rank, world_size)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.loader.state_dict()} if hasattr(self.loader, "state_dict") else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]


def train(
    learner: Learner,
    training: Samples,
    validation: Samples,
    config: Training,
    trainer_arguments: Mapping[str, Any],
    run_config: Mapping[str, Any],
    finish: Callable[[Path], None] | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Trains, evaluates after each epoch, and saves the model.

    Args:
        learner: the model with its loss and metrics.
        training: samples to train on.
        validation: samples to evaluate on.
        config: settings of the run.
        trainer_arguments: arguments of Lightning's Trainer, see `training.trainer`.
        run_config: the whole config, which is written to the run's folder.
        finish: adds files to a folder with a trained model, such as a tokenizer.
        callbacks: other callbacks than those of the Trainer's arguments.

    Returns:
        The run's folder. In it: `model/`, the final weights (averaged, if `ema`); `best/`, those of the evaluation with
        the best metric; `metrics.json`, the final metrics; `config.json`; `checkpoints/`, the last state, to resume
        from; `csv/` and `tensorboard/`.

    Raises:
        PerceiversError: the folder holds a run already, or cannot be written to.
    """
    output = Path(config.output)
    describe_model(learner.model)  # fails before training, not after it, if the model cannot be saved
    guard = RunGuard(config, run_config, learner.monitor, CheckpointFiles(), finish)
    trainer = make_trainer(config, trainer_arguments, guard, callbacks)
    size = config.batch_per_process(trainer)
    training.loader(size, config.seed, world_size=trainer.world_size)  # fails before anything is written
    with hold_folder(output) if trainer.is_global_zero else nullcontext():
        try:
            checkpoint = find_checkpoint(config, trainer, learner, run_config)
        except RunFinishedError as finished:
            if config.resume != "auto":
                raise
            rank_zero_only(print)(f"Nothing to do: {finished}")
            return output
        if config.compile:
            learner.model.compile()
        keep_freed_memory(KEEP_ALL)
        started = time.perf_counter()
        batches = Batches(training, validation, config)
        with explain_end(trainer, guard, config), show_progress(loops=False, runs=Shown.runs):
            trainer.fit(learner, datamodule=batches, ckpt_path=checkpoint, weights_only=True)
            if guard.evaluated_step != trainer.global_step and trainer.limit_val_batches != 0:
                trainer.validate(learner, datamodule=batches, verbose=False)
        if trainer.is_global_zero:
            results = guard.collect_metrics(trainer)
            guard.write_model("model", trainer.global_step, results)
            parameters = sum(parameter.numel() for parameter in learner.model.parameters())
            results |= {"seconds": time.perf_counter() - started, "parameters": parameters, "seed": config.seed}
            text = json.dumps(without_infinity(results), indent=2, allow_nan=False) + "\n"
            atomic_write(output / METRICS, lambda file: file.write_text(text))
        trainer.strategy.barrier()  # other processes may read these files
    return output


@contextmanager
def explain_end(trainer: Trainer, guard: RunGuard, config: Training) -> Iterator[None]:
    """Raises what ends a run from outside as a PerceiversError, and ends other processes."""
    try:
        try:
            yield
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


class RunFinishedError(PerceiversError):
    """The error of a run that cannot be resumed, since it has come to its end."""


def find_checkpoint(config: Training, trainer: Trainer, learner: Learner, run_config: Mapping[str, Any]) -> Path | None:
    """Returns the checkpoint to resume from, or None for a new run.

    Raises:
        PerceiversError: the run's folder cannot be written to, or contradicts `config.resume` or the settings.
    """
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
    has_results = (output / METRICS).is_file()
    if not config.resume:
        # SLURM starts the same command again after it requeued a job, and Lightning resumes it.
        if (last.exists() or has_results) and not any(output.glob("hpc_ckpt_*")):
            hint = "add --training.resume=true, or choose another training.output."
            raise PerceiversError(f"{config.output} holds a run already: {hint}")
        return None
    if not config.continues():
        if config.resume == "auto":
            return None
        raise PerceiversError(
            f"there is nothing to resume: {last} does not exist; start again without training.resume."
        )
    checkpoint = verify_checkpoint(last)
    before = describe_run(checkpoint)["config"]
    has_results = has_results and has_model(output / "model")
    epochs, steps = count_epochs(checkpoint), checkpoint["global_step"]
    is_over = 0 <= (trainer.max_epochs or 0) < epochs or 0 <= trainer.max_steps < steps
    if is_over or (has_results and (trainer.max_epochs == epochs or have_same_limits(before, run_config))):
        most = f"max_epochs to more than {max(epochs, trainer.max_epochs or 0)}"
        hint = f"max_steps to more than {steps}" if trainer.max_steps >= 0 else most
        raise RunFinishedError(f"the run in {config.output} is finished: set trainer.{hint}.")
    check_tensors(checkpoint["state_dict"], learner, last)
    check_settings(before, run_config)
    (output / METRICS).unlink(missing_ok=True)  # until the run is finished again
    return last


def has_model(folder: Path) -> bool:
    """Returns whether a folder holds a saved model."""
    return all((folder / name).is_file() for name in (saving.CONFIG, saving.WEIGHTS))


def make_trainer(
    config: Training, arguments: Mapping[str, Any], guard: RunGuard, others: Sequence[Callback] = ()
) -> Trainer:
    """Returns Lightning's trainer for a run; raises a PerceiversError if it refuses its arguments."""
    output, on_terminal = Path(config.output), Shown.runs and sys.stderr.isatty()
    callbacks: list[Callback] = [
        guard,
        *([ProgressBar(refresh_rate=10, leave=True) if on_terminal else ProgressLines()] if Shown.runs else []),
        *others,
    ]
    if arguments.get("logger") is not False:
        callbacks.append(LearningRateMonitor("step"))
    is_sharded = config.ema is not None and arguments.get("strategy") == sharding.NAME
    check_field("training.ema", config.ema, not is_sharded, "left out where trainer.strategy is 'fsdp'")
    if config.ema is not None:  # comes first: it must have seen a step before RunGuard may save it
        callbacks.insert(0, WeightAveraging(multi_avg_fn=partial(average_weights, config.ema)))
    return build_trainer(
        arguments,
        callbacks,
        [guard.files],
        default_root_dir=output,
        logger=[CSVLogger(output, name="csv"), TensorBoardLogger(output, name="tensorboard", version="")],
        enable_model_summary=False,
        enable_progress_bar=on_terminal,
    )


def average_weights(decay: float, averages: list[Tensor], weights: list[Tensor], updates: Tensor | int) -> None:
    """Updates moving averages of weights of the same type, which have been updated `updates` times before.

    The decay is at most (1 + updates) / (10 + updates), so that the first weights are soon forgotten. Of counts, such
    as those of batch normalization, there is no average but the last value.
    """
    if not averages[0].is_floating_point():
        torch._foreach_copy_(averages, weights)
        return
    decay = min(decay, (1 + int(updates)) / (10 + int(updates)))
    torch._foreach_lerp_(averages, weights, 1 - decay)  # exactly the same for weights that do not change
