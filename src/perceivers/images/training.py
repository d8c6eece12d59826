"""Image classification from pixels (section 4.4; configs/image_classification/imagenet_*.yaml are the paper's recipe).

Shape suffixes: B batch, C colours, Y rows, X columns, K classes
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from perceivers.adapters.image import ImageInput
from perceivers.data.labelled_files import Labelled, Splits
from perceivers.data.loader import ResumableLoader
from perceivers.errors import PerceiversError
from perceivers.images.augmentation import Augment, Augmentation
from perceivers.images.classify import class_names, image_input
from perceivers.images.data import (
    ImageData,
    ImageDataset,
    LabelledImages,
    collate,
)
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.presets import create_model
from perceivers.training.loop import Trained, Training, train
from perceivers.training.optimization import Optimization, check


@dataclass
class ImageClassification:
    """A training run of image classification.

    Attributes:
        model: `preset`, one of `perceivers models`, and whichever of its settings are to be others.
            The number and names of the classes come from the data.
        data: the images.
        augmentation: how training images are changed.
        optimization: how weights are updated.
        training: how the run is done.
        label_smoothing: part of a label's probability that is spread over all classes.
    """

    model: dict[str, Any]
    data: ImageData = field(default_factory=ImageData)
    augmentation: Augmentation = field(default_factory=Augmentation)
    optimization: Optimization = field(default_factory=Optimization)
    training: Training = field(default_factory=Training)
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "from 0 to less than 1")
        if "preset" not in self.model:
            raise PerceiversError("model.preset is missing: name one of `perceivers models`.")

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
        assert isinstance(model, PerceiverIO)  # no other has classes
        module = ImageClassifier(model, self.optimization, self.augmentation, self.label_smoothing)
        written = {"experiment": "image_classification", **asdict(self)}
        return train(module, ImageBatches(splits, image_input(model), self), self.training, "test_top1", written)


class ImageBatches(L.LightningDataModule):
    """Batches for training and evaluation."""

    def __init__(self, splits: Splits[LabelledImages], images: ImageInput, config: ImageClassification) -> None:
        super().__init__()
        self.splits, self.images, self.config = splits, images, config

    def train_dataloader(self) -> ResumableLoader:
        return self.loader(self.splits.training, self.config.augmentation.area, self.config.training.seed)

    def val_dataloader(self) -> ResumableLoader:
        return self.loader(self.splits.evaluation, None, None)

    def loader(self, images: LabelledImages, area: tuple[float, float] | None, seed: int | None) -> ResumableLoader:
        assert self.trainer is not None
        training, world = self.config.training, self.trainer.world_size
        return ResumableLoader(
            ImageDataset(images, self.images.size, self.images.colours, self.images.crop, area),
            len(images),
            training.batch_per_process(world),
            seed,
            training.workers,
            collate,
            self.trainer.global_rank,
            world,
        )


class ImageClassifier(Trained):
    """Cross-entropy of the label, with smoothing and mixed labels; top-1 and top-5 accuracy."""

    def __init__(
        self, model: PerceiverIO, optimization: Optimization, augmentation: Augmentation, label_smoothing: float
    ) -> None:
        super().__init__(model, optimization)
        classes = len(class_names(model))
        images = image_input(model)
        can = augmentation.layers == 0 or images.colours == 3
        check("augmentation.layers", augmentation.layers, can, "0 for grey images, since RandAugment changes colours")
        self.augment = Augment(augmentation, images.size, classes)
        self.label_smoothing = label_smoothing
        self.accuracy = Accuracy(classes)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        if "image" not in batch:
            return None  # nothing of it could be decoded
        images_BCYX, targets_BK = self.augment(batch["image"], batch["label"])
        logits_BK = self.model({"image": images_BCYX})["label"]
        loss = F.cross_entropy(logits_BK, targets_BK, label_smoothing=self.label_smoothing)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        check_complete(batch)
        self.accuracy.update(self.model({"image": batch["image"]})["label"], batch["label"])

    def on_validation_epoch_end(self) -> None:
        for name, value in self.accuracy.compute().items():
            self.log(f"test_{name}", value, prog_bar=True, sync_dist=True)
        self.accuracy.reset()


def check_complete(batch: dict[str, Any]) -> None:
    """Raises a PerceiversError if an image of an evaluation batch could not be decoded."""
    if batch["problems"]:
        raise PerceiversError(batch["problems"][0])


def check_classes(examples: Labelled, names: list[str]) -> None:
    """Raises a PerceiversError if the classes of data are others than those a model knows, by name or by number."""
    if len(examples.classes) != len(names):
        raise PerceiversError(f"the data has {len(examples.classes)} classes, but the model knows {len(names)}.")
    numbered = names == [str(index) for index in range(len(names))]
    for theirs, ours in zip(examples.classes, names, strict=True):
        if theirs != ours and not numbered:
            raise PerceiversError(f"the data has the class {theirs!r} where the model knows {ours!r}.")


class Accuracy(torch.nn.Module):
    """Top-1 and top-5 accuracy and cross-entropy over a data set."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.top1 = MulticlassAccuracy(classes, average="micro")
        self.top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro")
        self.loss = MeanMetric()

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        """Adds a batch."""
        logits_BK = logits_BK.float()
        self.top1.update(logits_BK, labels_B)
        self.top5.update(logits_BK, labels_B)
        self.loss.update(F.cross_entropy(logits_BK, labels_B), len(logits_BK))

    def compute(self) -> dict[str, Tensor]:
        """-> top1 and top5 in [0, 1], and loss in nats."""
        return {"top1": self.top1.compute(), "top5": self.top5.compute(), "loss": self.loss.compute()}

    def reset(self) -> None:
        """Starts anew."""
        for metric in (self.top1, self.top5, self.loss):
            metric.reset()


@torch.inference_mode()
def evaluate(model: PerceiverIO, images: LabelledImages, batch_size: int = 64, workers: int = 0) -> dict[str, float]:
    """Top-1 and top-5 accuracy and loss of a classifier on labelled images.

    Raises:
        PerceiversError: the classes are others than the model's, or an image cannot be decoded.
    """
    adapter, names = image_input(model), class_names(model)
    check_classes(images, names)
    device = next(model.parameters()).device
    dataset = ImageDataset(images, adapter.size, adapter.colours, adapter.crop)
    accuracy = Accuracy(len(names)).to(device)
    for batch in ResumableLoader(dataset, len(images), batch_size, None, workers, collate):
        check_complete(batch)
        accuracy.update(model({"image": batch["image"].to(device)})["label"], batch["label"].to(device))
    return {name: float(value) for name, value in accuracy.compute().items()} | {"images": len(images)}
