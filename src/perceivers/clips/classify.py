"""Classification of clips by their video and sound: `perceivers classify-clip`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from perceivers.adapters.label import LabelOutput
from perceivers.clips.data import ClipDataset, LabelledClips, evenly_spaced
from perceivers.clips.model import get_inputs, get_window
from perceivers.data.loader import SampleIndex
from perceivers.errors import PerceiversError
from perceivers.inference import check_answers, get_device, load_for_inference, sort_classes
from perceivers.model.perceiver_io import PerceiverIO


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


@torch.no_grad()
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
    if windows < 1:
        raise PerceiversError(f"windows = {windows} is not allowed: it must be at least 1.")
    model = load_for_inference(model, device, dtype)
    output = get_label(model)
    samples = ClipDataset(LabelledClips.from_files(files), get_window(model), evenly_spaced(windows))
    predictions = []
    for clip in range(len(files)):
        batch = samples.collate([samples[SampleIndex(clip * windows + index, 0)] for index in range(windows)])
        if problems := batch.pop("problems"):
            raise PerceiversError(problems[0])
        batch = {name: value.to(get_device(model)) for name, value in batch.items()}
        logits_BK = check_answers(model(get_inputs(model, batch)))["label"].float()
        probability_K = (logits_BK.sigmoid() if output.multilabel else logits_BK.softmax(1)).mean(0)
        predictions.append(sort_classes(probability_K, output.class_names))
    return predictions
