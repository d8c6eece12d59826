"""Training of classifiers of clips from their sound, their video or both (AudioSet, section 4.6).

Shape suffixes: B batch, K classes
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.checks import Range, check_field
from perceivers.clips import commands
from perceivers.clips.augmentation import SoundAugmentation
from perceivers.clips.classify import ClipPredictor, get_label, is_clip_classifier
from perceivers.clips.data import ClipData, ClipDataset, LabeledClips, evenly_spaced
from perceivers.clips.metrics import ClipScores
from perceivers.clips.model import ClipClassifierConfig, get_inputs, get_window
from perceivers.data.class_weights import ClassWeights, weigh_examples
from perceivers.data.labeled import match_classes
from perceivers.errors import PerceiversError
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.training import learner
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization


@dataclass(kw_only=True)
class ClipClassification(Experiment):
    """A training run of a classifier of clips.

    Attributes:
        model: `preset`, one of `perceivers models`, or `init`, a saved model, and the fields that differ from it;
            `frames: null` leaves out the video, `sound: null` the sound. The data decides the number and names of the
            classes, and whether several can apply at once.
        data: the clips.
        augmentation: of training clips.
        label_smoothing: fraction of the probability of a label that is spread over all classes, where a clip has one.
        class_weights: how often training draws the examples of a class: "balanced", all classes equally often; or
            {name: weight}, with 1 for the other classes; by default, every example once in an epoch.
    """

    decided_by_data = ("classes", "class_names", "multilabel")
    evaluate = staticmethod(commands.evaluate)
    predictor = ClipPredictor
    evaluation_clips = 0  # their number, once the data is open

    model: ClipClassifierConfig
    data: ClipData = field(default_factory=ClipData)
    augmentation: SoundAugmentation = field(default_factory=SoundAugmentation)
    label_smoothing: Annotated[float, Range(least=0, below=1)] = 0.0
    class_weights: ClassWeights = None

    def prepare(self) -> Setup:
        window = get_window(self.build_on_meta())
        splits = self.data.open()
        names, multilabel = splits.training.classes, splits.training.multilabel
        config = replace(self.model, **self.settle(classes=len(names), class_names=names, multilabel=multilabel))
        smooth = self.label_smoothing
        check_field("label_smoothing", smooth, not (multilabel and smooth), "0 where clips have several classes")
        self.evaluation_clips = len(splits.evaluation)
        training, validation = self.data.datasets(splits, window, self.augmentation)
        labels = [label for label in splits.training.labels for _ in range(self.data.windows_per_epoch)]
        training.weights = weigh_examples(self.class_weights, names, labels)
        return Setup(config.build, training, validation)

    def learner(self, model: PerceiverIO) -> "ClipClassifier":
        return ClipClassifier(model, self.evaluation_clips, self.optimization, self.label_smoothing)

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return isinstance(model, PerceiverIO) and is_clip_classifier(model)


class ClipClassifier(Learner):
    """Trains with the cross-entropy of the class, or of each class separately where several can apply.

    `clips` is the number of clips to evaluate on; the other arguments are the fields of `ClipClassification`.
    """

    def __init__(
        self, model: PerceiverIO, clips: int, optimization: Optimization | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(model, optimization)
        output = get_label(model)
        self.label_smoothing = label_smoothing
        self.metrics = ClipScores(clips, output.classes, output.multilabel)
        self.monitor = ("val_map" if output.multilabel else "val_top1", "max")

    def predict(self, batch: dict[str, Any]) -> Tensor:
        """Returns logits [B, K]."""
        logits_BK: Tensor = self.model(get_inputs(self.model, batch))["label"].float()
        return logits_BK

    def loss(self, batch: dict[str, Any]) -> Tensor:
        logits_BK, label = self.predict(batch), batch["label"]
        if self.metrics.multilabel:
            return F.binary_cross_entropy_with_logits(logits_BK, label)
        return F.cross_entropy(logits_BK, label, label_smoothing=self.label_smoothing)

    def evaluate_batch(self, batch: dict[str, Any]) -> None:
        self.metrics.update(self.predict(batch), batch["label"], batch["clip"])


def evaluate(model: PerceiverIO, clips: LabeledClips, windows: int = 1, batch_size: int = 16) -> dict[str, float]:
    """Returns `ClipScores` on evenly spaced windows of clips, whose classes are found by name."""
    output = get_label(model)
    clips = match_classes(clips, output.class_names)
    if clips.multilabel != output.multilabel:
        kinds = ("one class per clip", "several classes per clip")
        raise PerceiversError(f"the data has {kinds[clips.multilabel]}, but the model {kinds[output.multilabel]}.")
    samples = ClipDataset(clips, get_window(model), evenly_spaced(windows))
    return learner.evaluate(ClipClassifier(model, len(clips)), samples, batch_size)
