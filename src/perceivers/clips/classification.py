"""Classes of clips from their sound, their pictures or both (AudioSet, section 4.6).

Shape suffixes: B batch, K classes
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers.checks import check
from perceivers.clips.classify import label_of
from perceivers.clips.data import ClipData, ClipDataset, LabelledClips, collate, evenly
from perceivers.clips.metrics import ClipScores
from perceivers.clips.model_window import masked_inputs, window_of
from perceivers.data.loader import ResumableLoader
from perceivers.errors import PerceiversError
from perceivers.images.training import check_classes, check_complete
from perceivers.inference import class_names, device_of
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.presets import create_model, preset
from perceivers.training.loop import Trained, Training, train
from perceivers.training.optimization import Optimization


@dataclass
class ClipClassification:
    """A training run that learns the classes of clips.

    Attributes:
        model: `preset`, one of `perceivers models`, and whichever of its settings are to be others: `frames: null`
            leaves the video out, `sound: null` the sound. Number and names of the classes come from the data, and
            whether several can apply at once.
        data: the clips.
        optimization: how weights are updated.
        training: how the run is done.
        label_smoothing: part of a label's probability that is spread over all classes, where a clip has one.
    """

    model: dict[str, Any]
    data: ClipData = field(default_factory=ClipData)
    optimization: Optimization = field(default_factory=Optimization)
    training: Training = field(default_factory=Training)
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "from 0 to less than 1")
        if "preset" not in self.model:
            raise PerceiversError("model.preset is missing: name one of `perceivers models`.")
        experiment = preset(self.model["preset"]).experiment
        if experiment != "clip_classification":
            raise PerceiversError(
                f"model.preset = {self.model['preset']} is of {experiment}: a classifier of clips is needed."
            )

    def run(self) -> Path:
        """Trains; -> the run's folder."""
        L.seed_everything(self.training.seed, verbose=False)
        settings = {name: value for name, value in self.model.items() if name != "preset"}
        with torch.device("meta"):  # a wrong setting shows before any data is read
            create_model(self.model["preset"], **settings)
        splits = self.data.open()
        names, several = splits.training.classes, splits.training.several
        classes = settings.get("classes", len(names))
        check("model.classes", classes, classes == len(names), f"{len(names)}, as in the data, or left out")
        smooth = self.label_smoothing
        check("label_smoothing", smooth, not (several and smooth), "0 where clips have several classes")
        own = {"classes": len(names), "class_names": names, "several": several}
        model = create_model(self.model["preset"], **(settings | own))
        assert isinstance(model, PerceiverIO)
        module = ClipClassifier(model, self.optimization, smooth, len(splits.evaluation))
        batches = ClipBatches(*self.data.datasets(splits, window_of(model)), self.training)
        written = {"experiment": "clip_classification", **asdict(self)}
        return train(module, batches, self.training, "test_map" if several else "test_top1", written)


class ClipBatches(L.LightningDataModule):
    """Batches of windows for training and evaluation."""

    def __init__(self, training: ClipDataset, evaluation: ClipDataset, config: Training) -> None:
        super().__init__()
        self.training, self.evaluation, self.config = training, evaluation, config

    def train_dataloader(self) -> ResumableLoader:
        return self.loader(self.training, self.config.seed)

    def val_dataloader(self) -> ResumableLoader:
        return self.loader(self.evaluation, None)

    def loader(self, clips: ClipDataset, seed: int | None) -> ResumableLoader:
        assert self.trainer is not None
        world, rank = self.trainer.world_size, self.trainer.global_rank
        size = self.config.batch_per_process(world)
        return ResumableLoader(clips, len(clips), size, seed, self.config.workers, collate, rank, world)


class ClipClassifier(Trained):
    """Cross-entropy of the class, or of each class by itself where several can apply."""

    model: PerceiverIO

    def __init__(self, model: PerceiverIO, optimization: Optimization, label_smoothing: float, clips: int) -> None:
        super().__init__(model, optimization)
        output = label_of(model)
        self.label_smoothing = label_smoothing
        self.scores = ClipScores(clips, output.classes, output.several)

    def predict(self, batch: dict[str, Any]) -> Tensor:
        """Logits [B, K]."""
        logits_BK: Tensor = self.model(masked_inputs(self.model, batch))["label"].float()
        return logits_BK

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        if "label" not in batch:
            return None  # nothing of it could be read
        logits_BK, label = self.predict(batch), batch["label"]
        if self.scores.several:
            loss = F.binary_cross_entropy_with_logits(logits_BK, label)
        else:
            loss = F.cross_entropy(logits_BK, label, label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        check_complete(batch)
        self.scores.update(self.predict(batch), batch["label"], batch["clip"])

    def on_validation_epoch_end(self) -> None:
        for name, value in self.scores.compute().items():
            self.log(f"test_{name}", value, prog_bar=True)
        self.scores.reset()


@torch.inference_mode()
def evaluate(model: PerceiverIO, clips: LabelledClips, windows: int = 1, batch_size: int = 16) -> dict[str, float]:
    """Figures of a classifier on labelled clips, see `ClipScores`; windows are evenly spaced in each.

    Raises:
        PerceiversError: the classes are others than the model's, or a clip cannot be read.
    """
    output = label_of(model)
    check_classes(clips, class_names(model))
    if clips.several != output.several:
        kinds = ("one class a clip", "several classes a clip")
        raise PerceiversError(f"the data has {kinds[clips.several]}, but the model knows {kinds[output.several]}.")
    scores = ClipScores(len(clips), output.classes, output.several).to(device_of(model))
    for batch in windows_of(model, clips, windows, batch_size):
        scores.update(model(masked_inputs(model, batch))["label"], batch["label"], batch["clip"])
    return {name: float(value) for name, value in scores.compute().items()}


def windows_of(model: PerceiverIO, clips: LabelledClips, windows: int, batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Batches of what a model sees of clips, where the model is.

    Raises:
        PerceiversError: a clip cannot be read.
    """
    dataset = ClipDataset(clips, window_of(model), evenly(windows))
    for batch in ResumableLoader(dataset, len(dataset), batch_size, None, 0, collate):
        check_complete(batch)
        yield {name: value.to(device_of(model)) for name, value in batch.items() if name != "problems"}
