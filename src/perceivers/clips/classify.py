"""Classification of clips by their video and sound: `perceivers classify-clip`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from perceivers.adapters.label import LabelOutput
from perceivers.clips.commands import Windows
from perceivers.clips.data import ClipDataset, LabeledClips, evenly_spaced
from perceivers.clips.model import Window, get_inputs, get_window
from perceivers.command import TopClasses
from perceivers.data.labeled import LabeledSamples
from perceivers.data.labeled_files import open_unlabeled
from perceivers.data.loader import SampleIndex
from perceivers.data.splits import Part
from perceivers.errors import PerceiversError
from perceivers.inference import load_for_inference
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.prediction import Inputs, Predictor, classify, require_answers


def is_clip_classifier(model: PerceiverIO) -> bool:
    """Returns whether a model reads video, sound or both, and predicts only a label."""
    predicts_label = list(model.outputs) == ["label"] and isinstance(model.outputs["label"], LabelOutput)
    return predicts_label and set(model.inputs) <= {"video", "audio"}


def get_label(model: PerceiverIO) -> LabelOutput:
    """Returns the output adapter of a classifier of clips, or raises a PerceiversError for any other model."""
    output = model.outputs["label"] if is_clip_classifier(model) else None
    if not isinstance(output, LabelOutput):
        raise PerceiversError(
            f"this model does not classify clips: it reads {', '.join(model.inputs)} and predicts "
            f"{', '.join(model.outputs)}, instead of video, audio or both, and a label."
        )
    return output


class ClipWindows(LabeledSamples):
    """The evenly spaced windows of each clip, as one sample."""

    def __init__(self, clips: LabeledClips, window: Window, windows: int) -> None:
        self.clips, self.windows = ClipDataset(clips, window, evenly_spaced(windows)), windows

    def __len__(self) -> int:
        return len(self.clips) // self.windows

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        first = item.sample * self.windows
        samples = [self.clips[SampleIndex(first + index, 0)] for index in range(self.windows)]
        problem = next((sample for sample in samples if "problem" in sample), None)
        return problem or {"windows": samples}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return self.clips.collate([window for sample in samples for window in sample["windows"]])


class ClipEncoder(Predictor):
    """A model of clips, whose latents are averaged over the windows of a clip."""

    batch_size = 16

    def __init__(
        self,
        model: PerceiverIO | str | Path,
        device: str | None = None,
        dtype: str | None = None,
        *,
        windows: Windows = 1,
        column: Annotated[str | None, "column of a data set, or of a table, with the clips or their paths"] = None,
    ) -> None:
        if windows < 1:
            raise PerceiversError(f"windows = {windows} is not allowed: it must be at least 1.")
        self.model = load_for_inference(model, device, dtype)
        self.windows, self.column = windows, column

    def open(self, data: str, split: str | None = None) -> Inputs:
        return self.take(*open_unlabeled(LabeledClips, data, split, self.column))

    def take(self, clips: LabeledClips, part: Part) -> Inputs:
        """Returns clips as the rows to predict."""
        return Inputs.of(clips, ClipWindows(clips, get_window(self.model), self.windows), part)

    def inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return get_inputs(self.model, batch)

    def compute(self, batch: Mapping[str, Any]) -> tuple[Mapping[str, Any], Tensor | None]:
        hidden = {}
        data = dict(self.inputs(batch))
        if "label" in self.model.inputs:  # an autoencoder's, which is hidden
            data["label"] = torch.zeros_like(batch["label"])
            hidden["label"] = torch.ones_like(batch["label"], dtype=torch.bool)[:, None]
        encoded = self.model.encode(data, hidden)
        return self.model.decode(encoded, self.outputs), encoded.latents.unflatten(0, (-1, self.windows)).mean(1)


class ClipPredictor(ClipEncoder):
    """A classifier of clips, whose probabilities are averaged over the windows of a clip."""

    def __init__(
        self,
        model: PerceiverIO | str | Path,
        device: str | None = None,
        dtype: str | None = None,
        *,
        windows: Windows = 1,
        column: Annotated[str | None, "column of a data set, or of a table, with the clips or their paths"] = None,
        top: TopClasses = 1,
    ) -> None:
        super().__init__(model, device, dtype, windows=windows, column=column)
        self.names, self.top, self.outputs = get_label(self.model).class_names, top, {"label": None}

    def values(self, outputs: Mapping[str, Any]) -> Tensor:
        logits_BK = outputs["label"].float()
        probability_BK: Tensor = logits_BK.sigmoid() if get_label(self.model).multilabel else logits_BK.softmax(1)
        return probability_BK.unflatten(0, (-1, self.windows)).mean(1)


def classify_clip(
    model: PerceiverIO | str | Path,
    files: Sequence[str | Path],
    windows: int = 1,
    device: str | None = None,
    dtype: str | None = None,
) -> list[dict[str, float]]:
    """Returns the probabilities of the classes of each file, most probable first.

    Args:
        model, device, dtype: as in `load_for_inference`.
        files: with the sound or video that the model reads; what a clip lacks is masked.
        windows: number of evenly spaced windows of each clip, whose probabilities are averaged (16 for AudioSet,
            section 8).

    Raises:
        PerceiversError: the model does not classify clips, or a file cannot be read.
    """
    return require_answers(classify_clips(ClipPredictor(model, device, dtype, windows=windows), files))


def classify_clips(predictor: ClipPredictor, files: Sequence[str | Path]) -> list[dict[str, float] | PerceiversError]:
    """Returns what `classify_clip` does, or why a file has no answer."""
    inputs = predictor.take(LabeledClips.from_files(files), Part("clip", len(files), len(files)))
    return classify(predictor, inputs, max(1, 16 // predictor.windows))
