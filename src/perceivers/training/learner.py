"""A model with its loss and metrics, for training, validation and `perceivers evaluate`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils._pytree import tree_map_only
from torchmetrics import MeanMetric, MetricCollection

from perceivers.data.loader import Samples
from perceivers.errors import PerceiversError
from perceivers.files import warn
from perceivers.model.saving import Model
from perceivers.progress import track
from perceivers.training.optimization import Optimization
from perceivers.training.sharding import shard

Monitor = tuple[str, Literal["min", "max"]]
"""A logged metric, and whether "min" or "max" is best."""


class Learner(L.LightningModule, ABC):
    """Base of the learners of experiments: subclasses define `loss`, and `evaluate_batch` if they have other metrics.

    Args:
        model: the model.
        optimization: settings of the optimizer; evaluation needs none.

    Attributes:
        metrics: a submodule that `evaluate_batch` updates; its `compute` returns values by name, which are logged as
            "val_NAME", and its `reset` discards all batches. By default a `torchmetrics.MetricCollection` of "loss".
        monitor: the logged metric that selects the best weights, and whether "min" or "max" is best.
        progress_metrics: names of the metrics in the progress bar; None for all.
    """

    metrics: Any
    monitor: Monitor = ("val_loss", "min")
    progress_metrics: ClassVar[tuple[str, ...] | None] = None

    def __init__(self, model: Model, optimization: Optimization | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.optimization = optimization or Optimization()
        self.metrics = MetricCollection({"loss": MeanMetric()})
        self.has_gradients = False

    @abstractmethod
    def loss(self, batch: dict[str, Any]) -> Tensor:
        """Returns the loss of a training batch; may log its terms."""

    def evaluate_batch(self, batch: dict[str, Any]) -> None:
        """Adds a batch to the metrics. By default, adds its loss, weighted by the number of samples."""
        samples = next(len(value) for value in batch.values() if isinstance(value, Tensor))
        self.metrics["loss"].update(self.loss(batch), samples)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if set(batch) == {"problems"}:  # none of its samples could be read
            return sum((p.sum() * 0 for p in self.model.parameters()), torch.zeros((), device=self.device))
        self.has_gradients = True
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.has_gradients:
            optimizer.zero_grad()  # no weight changes if nothing could be read
        self.has_gradients = False

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        check_complete(batch)
        if set(batch) != {"problems"}:
            self.evaluate_batch(batch)

    def on_validation_epoch_end(self) -> None:
        for name, value in self.metrics.compute().items():
            on_bar = self.progress_metrics is None or name in self.progress_metrics
            self.log(f"val_{name}", value, prog_bar=on_bar, sync_dist=True)
        self.metrics.reset()

    def on_validation_end(self) -> None:
        if self.trainer.state.fn == TrainerFn.FITTING:
            for found in self.trainer.lr_scheduler_configs:
                if isinstance(found.scheduler, ReduceLROnPlateau):
                    found.scheduler.step(self.trainer.callback_metrics[self.monitor[0]].item())

    def configure_model(self) -> None:
        if self.device_mesh is not None and not isinstance(self, FSDPModule):
            shard(self, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        steps = self.trainer.estimated_stepping_batches
        if not 0 < steps < math.inf:
            steps = self.optimization.check_endless()
        elif self.trainer.is_global_zero and steps < (warmup := self.optimization.count_warmup(int(steps))):
            warn(f"The run has {steps} updates, but its warm-up {warmup}: lower optimization.warmup_steps.")
        return self.optimization.build(self.model, int(steps), self.monitor[1])


def check_complete(batch: Mapping[str, Any]) -> None:
    """Raises a PerceiversError if a sample of a batch could not be read."""
    for problem in batch.get("problems", ()):
        raise PerceiversError(problem)


@torch.inference_mode()
def evaluate(learner: Learner, samples: Samples, batch_size: int) -> dict[str, float]:
    """Returns the metrics of a model on samples, computed as in validation, on the device of the model.

    Raises:
        PerceiversError: a sample cannot be read, or a metric is NaN.
    """
    device = next(learner.model.parameters()).device
    learner.to(device).eval()
    learner.metrics.reset()
    for batch in track(samples.loader(batch_size), "batches"):
        check_complete(batch)
        learner.evaluate_batch(tree_map_only(Tensor, lambda tensor: tensor.to(device), batch))
    results = {name: float(value) for name, value in learner.metrics.compute().items()}
    if problem := find_nan(results):
        raise PerceiversError(problem)
    return results


def find_nan(metrics: Mapping[str, float]) -> str | None:
    """Returns a sentence about the first metric that is NaN, if any."""
    for name, value in metrics.items():
        if math.isnan(value):
            return f"{name} is NaN: the weights have diverged, or the evaluation data has nothing to measure it by."
    return None


def without_infinity(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Returns figures with null instead of those that JSON cannot hold, such as the PSNR of a perfect copy."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
