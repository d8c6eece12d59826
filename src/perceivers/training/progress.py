"""Shows the progress of a training run: a bar in a terminal, else lines; see `perceivers.progress`."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from tqdm import tqdm


class Clock:
    """Estimates the time that is left of a run, from the speed since it was started or resumed."""

    def __init__(self, trainer: Trainer) -> None:
        self.start, self.first_step = time.perf_counter(), trainer.global_step

    def time_left(self, trainer: Trainer) -> str:
        """Returns the time until the last update, such as "01:40", or "?" if it is not known."""
        done, steps = trainer.global_step - self.first_step, trainer.estimated_stepping_batches
        if done == 0 or steps == float("inf"):
            return "?"
        seconds = (time.perf_counter() - self.start) / done * (steps - trainer.global_step)
        return str(tqdm.format_interval(seconds))


class ProgressBar(TQDMProgressBar):
    """A bar for each epoch with the time that is left of the run, for a terminal."""

    clock: Clock | None = None

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        self.clock = Clock(self.trainer)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # the version of the logger's folder
        return metrics if self.clock is None else {"left": self.clock.time_left(trainer), **metrics}


class ProgressLines(Callback):
    """Progress as lines, for output that is not a terminal: every ten seconds, and after each evaluation."""

    def __init__(self) -> None:
        self.last_print_time = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock = Clock(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.perf_counter() - self.last_print_time > 10:
            self.print_metrics(trainer, f"step {batch_idx + 1}/{trainer.num_training_batches}", ("train", "examples"))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.print_metrics(trainer, "evaluated", ("train", "val", "examples"))

    def print_metrics(self, trainer: Trainer, progress: str, prefixes: tuple[str, ...]) -> None:
        """Prints the metrics whose names have one of the prefixes."""
        if trainer.is_global_zero:
            metrics = {name: value for name, value in trainer.progress_bar_metrics.items() if name.startswith(prefixes)}
            figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            epoch = f"{trainer.current_epoch + 1}"
            if trainer.max_epochs is not None and trainer.max_epochs > 0:  # after the last epoch, it is evaluated again
                epoch = f"{min(trainer.current_epoch + 1, trainer.max_epochs)}/{trainer.max_epochs}"
            print(f"epoch {epoch}  {progress}  {self.clock.time_left(trainer)} left  {figures}", flush=True)
            self.last_print_time = time.perf_counter()
