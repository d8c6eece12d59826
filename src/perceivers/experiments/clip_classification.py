"""Classes of clips from their sound, their pictures or both (AudioSet, section 4.6).

Shape suffixes: B batch, K classes, L clips
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers.adapters.audio import AudioInput, MelInput
from perceivers.adapters.video import VideoInput
from perceivers.data.clips import ClipData, ClipDataset, LabelledClips, Window, collate
from perceivers.data.labelled_files import Splits
from perceivers.data.loader import ResumableLoader
from perceivers.experiments.image_classification import check_complete
from perceivers.experiments.optimization import Optimization, check
from perceivers.experiments.training import Trained, Training, train
from perceivers.model.adapter import InputArray
from perceivers.model.errors import PerceiversError
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.presets import create_model, preset


@dataclass
class ClipClassification:
    """A training run that learns the classes of clips.

    Attributes:
        model: `preset`, one of `perceivers models`, and whichever of its settings are to be others: `frames: null`
            leaves the video out, `sound: null` the sound. Number and names of the classes come from the data.
        data: the clips.
        optimization: how weights are updated.
        training: how the run is done.
        label_smoothing: part of a label's probability that is spread over all classes.
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
        names = splits.training.classes
        classes = settings.get("classes", len(names))
        check("model.classes", classes, classes == len(names), f"{len(names)}, as in the data, or left out")
        model = create_model(self.model["preset"], **(settings | {"classes": len(names), "class_names": names}))
        assert isinstance(model, PerceiverIO)
        module = ClipClassifier(model, self.optimization, self.label_smoothing, len(splits.evaluation), len(names))
        written = {"experiment": "clip_classification", **asdict(self)}
        return train(module, ClipBatches(splits, window_of(model), self), self.training, "test_top1", written)


def window_of(model: PerceiverIO) -> Window:
    """What a model sees of a clip."""
    frames = samples = None
    size, sample_rate = (0, 0), 48000
    for adapter in model.inputs.values():
        if isinstance(adapter, VideoInput):
            frames, height, width = (a * b for a, b in zip(adapter.patch, adapter.positions.grid, strict=True))
            size = (height, width)
        elif isinstance(adapter, AudioInput):
            samples, sample_rate = adapter.patch * adapter.positions.grid[0], adapter.sample_rate
        elif isinstance(adapter, MelInput):
            samples = adapter.hop * adapter.patch[0] * adapter.positions.grid[0]
            sample_rate = adapter.sample_rate
    return Window(frames, size, samples=samples, sample_rate=sample_rate)


class ClipBatches(L.LightningDataModule):
    """Batches for training and evaluation."""

    def __init__(self, splits: Splits[LabelledClips], window: Window, config: ClipClassification) -> None:
        super().__init__()
        self.splits, self.window, self.config = splits, window, config

    def train_dataloader(self) -> ResumableLoader:
        return self.loader(ClipDataset(self.splits.training, self.window, None), self.config.training.seed)

    def val_dataloader(self) -> ResumableLoader:
        return self.loader(ClipDataset(self.splits.evaluation, self.window, self.config.data.windows), None)

    def loader(self, clips: ClipDataset, seed: int | None) -> ResumableLoader:
        assert self.trainer is not None
        training, world = self.config.training, self.trainer.world_size
        size, rank = training.batch_per_process(world), self.trainer.global_rank
        return ResumableLoader(clips, len(clips), size, seed, training.workers, collate, rank, world)


class ClipClassifier(Trained):
    """Cross-entropy of the class; top-1 accuracy of the mean over a clip's windows."""

    def __init__(
        self, model: PerceiverIO, optimization: Optimization, label_smoothing: float, clips: int, classes: int
    ) -> None:
        super().__init__(model, optimization)
        self.label_smoothing = label_smoothing
        self.probability_LK: Tensor
        self.label_L: Tensor
        self.register_buffer("probability_LK", torch.zeros(clips, classes), persistent=False)
        self.register_buffer("label_L", torch.zeros(clips, dtype=torch.long), persistent=False)

    def predict(self, batch: dict[str, Any]) -> Tensor:
        """Logits [B, K]."""
        data = {}
        for name, there in (("video", "shown"), ("audio", "heard")):
            if name in self.model.inputs:
                data[name] = InputArray(batch[name], batch[there])
        logits_BK: Tensor = self.model(data)["label"].float()
        return logits_BK

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        if "label" not in batch:
            return None  # nothing of it could be read
        loss = F.cross_entropy(self.predict(batch), batch["label"], label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.probability_LK.zero_()
        self.label_L.zero_()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        check_complete(batch)
        self.probability_LK.index_add_(0, batch["clip"], self.predict(batch).softmax(1))
        self.label_L[batch["clip"]] = batch["label"]

    def on_validation_epoch_end(self) -> None:
        probability_LK = self.trainer.strategy.reduce(self.probability_LK, reduce_op="sum")
        label_L = self.trainer.strategy.reduce(self.label_L, reduce_op="max")
        assert isinstance(probability_LK, Tensor)
        self.log("test_top1", (probability_LK.argmax(1) == label_L).float().mean(), prog_bar=True)
