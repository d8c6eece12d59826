"""Training of image classifiers (section 4.4; configs/image_classification/imagenet_*.yaml are the paper's recipe).

Shape suffixes: B batch, C colors, Y rows, X columns, K classes
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from perceivers.checks import Range, check_field
from perceivers.data.class_weights import ClassWeights, weigh_examples
from perceivers.data.labeled import match_classes
from perceivers.images import commands
from perceivers.images.augmentation import Augment, Augmentation
from perceivers.images.classify import ImagePredictor, get_image_input, is_image_classifier
from perceivers.images.data import ImageData, ImageDataset, LabeledImages
from perceivers.images.model import ImageClassifierConfig
from perceivers.inference import class_names
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.training import learner
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization


@dataclass(kw_only=True)
class ImageClassification(Experiment):
    """A training run of image classification.

    Attributes:
        model: `preset`, one of `perceivers models`, or `init`, a saved model, and the fields that differ from it. The
            data decides the number and names of the classes.
        data: the images.
        augmentation: of training images.
        label_smoothing: fraction of the probability of a label that is spread over all classes.
        class_weights: how often training draws the examples of a class: "balanced", all classes equally often; or
            {name: weight}, with 1 for the other classes; by default, every example once in an epoch.
    """

    decided_by_data = ("classes", "class_names")
    evaluate = staticmethod(commands.evaluate)
    predictor = ImagePredictor

    model: ImageClassifierConfig
    data: ImageData = field(default_factory=ImageData)
    augmentation: Augmentation = field(default_factory=Augmentation)
    label_smoothing: Annotated[float, Range(least=0, below=1)] = 0.0
    class_weights: ClassWeights = None

    def prepare(self) -> Setup:
        images = get_image_input(self.build_on_meta())
        splits = self.data.open()
        names = splits.training.classes
        config = replace(self.model, **self.settle(classes=len(names), class_names=names))
        view = (images.size, images.in_channels, images.crop)
        training = ImageDataset(splits.training, *view, self.augmentation.area)
        training.weights = weigh_examples(self.class_weights, names, splits.training.labels)
        return Setup(config.build, training, ImageDataset(splits.evaluation, *view))

    def learner(self, model: PerceiverIO) -> "ImageClassifier":
        return ImageClassifier(model, self.optimization, self.augmentation, self.label_smoothing)

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return isinstance(model, PerceiverIO) and is_image_classifier(model)


class ImageClassifier(Learner):
    """Trains with the cross-entropy of smoothed and mixed labels; measures top-1 and top-5 accuracy."""

    monitor = ("val_top1", "max")

    def __init__(
        self,
        model: PerceiverIO,
        optimization: Optimization | None = None,
        augmentation: Augmentation | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, optimization)
        augmentation = augmentation or Augmentation()
        images, classes = get_image_input(model), len(class_names(model))
        layers, is_allowed = augmentation.layers, augmentation.layers == 0 or images.in_channels == 3
        check_field("augmentation.layers", layers, is_allowed, "0 for gray images, since RandAugment changes colors")
        self.augment = Augment(augmentation, images.size, classes)
        self.label_smoothing = label_smoothing
        self.metrics = Accuracy(classes)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        images_BCYX, targets_BK = self.augment(batch["image"], batch["label"])
        logits_BK = self.model({"image": images_BCYX})["label"]
        return F.cross_entropy(logits_BK, targets_BK, label_smoothing=self.label_smoothing)

    def evaluate_batch(self, batch: dict[str, Any]) -> None:
        self.metrics.update(self.model({"image": batch["image"]})["label"], batch["label"])


class Accuracy(nn.Module):
    """Top-1 and top-5 accuracy and cross-entropy over a data set."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.top1 = MulticlassAccuracy(classes, average="micro")
        self.top5 = MulticlassAccuracy(classes, top_k=min(5, classes), average="micro")
        self.loss = MeanMetric()

    def update(self, logits_BK: Tensor, labels_B: Tensor) -> None:
        logits_BK = logits_BK.float()
        self.top1.update(logits_BK, labels_B)
        self.top5.update(logits_BK, labels_B)
        self.loss.update(F.cross_entropy(logits_BK, labels_B), len(logits_BK))

    def compute(self) -> dict[str, Tensor]:
        """Returns top1 and top5 in [0, 1], and loss in nats."""
        return {"top1": self.top1.compute(), "top5": self.top5.compute(), "loss": self.loss.compute()}

    def reset(self) -> None:
        for metric in (self.top1, self.top5, self.loss):
            metric.reset()


def evaluate(model: PerceiverIO, images: LabeledImages, batch_size: int = 64) -> dict[str, float]:
    """Returns top-1 and top-5 accuracy and loss on labeled images, whose classes are found by name."""
    adapter = get_image_input(model)
    images = match_classes(images, class_names(model))
    samples = ImageDataset(images, adapter.size, adapter.in_channels, adapter.crop)
    return learner.evaluate(ImageClassifier(model), samples, batch_size)
