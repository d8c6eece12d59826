"""Shows the progress of a training run: a bar in a terminal, else lines."""

import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


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
        self.print_metrics(trainer, "evaluated", ("train", "val", "examples"))

    def print_metrics(self, trainer: Trainer, progress: str, prefixes: tuple[str, ...]) -> None:
        """Prints the metrics whose names have one of the prefixes."""
        if trainer.is_global_zero:
            metrics = {name: value for name, value in trainer.progress_bar_metrics.items() if name.startswith(prefixes)}
            figures = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            of = f"/{trainer.max_epochs}" if (trainer.max_epochs or 0) > 0 else ""
            print(f"epoch {trainer.current_epoch + 1}{of}  {progress}  {figures}", flush=True)
            self.last_print_time = time.perf_counter()
