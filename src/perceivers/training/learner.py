"""A model being trained: its loss and its metrics, the same in training, validation and `perceivers evaluate`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from tqdm import tqdm

from perceivers.data.loader import Samples
from perceivers.errors import PerceiversError
from perceivers.model.saving import Model, check_tensors
from perceivers.training.optimization import Optimization


class Metrics(Protocol):
    """Figures over a data set: a `torchmetrics.MetricCollection`, or any module with these methods."""

    def compute(self) -> Mapping[str, Tensor]:
        """Returns the figures, by name."""

    def reset(self) -> None:
        """Starts anew."""


class Learner(L.LightningModule):
    """Base of what an experiment trains: subclasses define `loss`, and `evaluate_batch` if they measure anything else.

    Args:
        model: the model.
        optimization: how weights are updated; the defaults, if not given, as for evaluation alone.

    Attributes:
        metrics: what `evaluate_batch` updates, a submodule; its figures are logged as "test_NAME". By default "loss".
        monitor: the logged figure that says which weights are the best, and whether its smallest value ("min") or its
            largest ("max") is the best.
        shown: figures that the progress bar shows; all, if None.
    """

    metrics: Any
    monitor: tuple[str, Literal["min", "max"]] = ("test_loss", "min")
    shown: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, model: Model, optimization: Optimization | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.optimization = optimization or Optimization()
        self.metrics = MetricCollection({"loss": MeanMetric()})

    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Returns the loss of a training batch; may log what it consists of."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def evaluate_batch(self, batch: dict[str, Any]) -> None:
        """Adds a batch to the metrics. By default, adds its loss, weighted by the number of samples."""
        samples = next(len(value) for value in batch.values() if isinstance(value, Tensor))
        self.metrics["loss"].update(self.loss(batch), samples)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        if set(batch) == {"problems"}:
            return None  # nothing of it could be read
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        check_complete(batch)
        self.evaluate_batch(batch)

    def on_validation_epoch_end(self) -> None:
        for name, value in self.metrics.compute().items():
            self.log(f"test_{name}", value, prog_bar=self.shown is None or name in self.shown, sync_dist=True)
        self.metrics.reset()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_tensors(checkpoint["state_dict"], self, Path("last.ckpt"))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # Not trainer.estimated_stepping_batches: it makes Lightning forget to restore the loader when resuming.
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        epochs, accumulate_grad_batches = self.trainer.max_epochs or 1, self.trainer.accumulate_grad_batches
        return self.optimization.build(self.model, epochs * math.ceil(batches / accumulate_grad_batches))


def check_complete(batch: Mapping[str, Any]) -> None:
    """Raises a PerceiversError if a sample of an evaluation batch could not be read."""
    for problem in batch.get("problems", ()):
        raise PerceiversError(problem)


@torch.inference_mode()
def evaluate(learner: Learner, samples: Samples, batch_size: int, progress: bool = False) -> dict[str, float]:
    """Returns the figures of a model on samples, where the model is, as validation computes them.

    Args:
        learner: the model, its loss and metrics.
        samples: what it is evaluated on.
        batch_size: samples of a batch.
        progress: show a bar.

    Raises:
        PerceiversError: a sample cannot be read.
    """
    device = next(learner.model.parameters()).device
    learner.to(device).eval()
    learner.metrics.reset()
    for batch in tqdm(samples.loader(batch_size), "batches", disable=None if progress else True):
        check_complete(batch)
        learner.evaluate_batch(
            {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        )
    return {name: float(value) for name, value in learner.metrics.compute().items()}
