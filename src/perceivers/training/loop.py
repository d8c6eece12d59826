"""Training runs that can be interrupted and resumed, the same for all experiments."""

import json
import logging
import math
import re
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from lightning import Callback, LightningDataModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

from perceivers.checks import Checked, Count, ProperFraction, Range, check_field
from perceivers.data.loader import Samples
from perceivers.errors import PerceiversError
from perceivers.model import saving
from perceivers.model.saving import PART, atomic_write, check_tensors, describe_model
from perceivers.training.checkpoints import (
    LAST,
    METRICS,
    CheckpointFiles,
    check_settings,
    count_epochs,
    hold_folder,
    verify_checkpoint,
)
from perceivers.training.guard import RunGuard
from perceivers.training.learner import Learner
from perceivers.training.progress import ProgressBar, ProgressLines

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
    size = config.batch_per_process(trainer.world_size)
    training.loader(size, config.seed, world_size=trainer.world_size)  # fails before anything is written
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
