"""What is seen and heard in clips: `perceivers classify-clip`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from perceivers.adapters.label import LabelOutput
from perceivers.clips.data import ClipDataset, LabelledClips, evenly
from perceivers.clips.model_window import masked_inputs, window_of
from perceivers.data.labelled_files import Files
from perceivers.data.loader import SampleIndex
from perceivers.errors import PerceiversError
from perceivers.inference import class_names, get_device, load_for_inference, sort_classes
from perceivers.model.perceiver_io import PerceiverIO


def is_clip_classifier(model: PerceiverIO) -> bool:
    """Returns whether a model reads video, sound or both, and predicts a label alone."""
    predicts_label = list(model.outputs) == ["label"] and isinstance(model.outputs["label"], LabelOutput)
    return predicts_label and set(model.inputs) <= {"video", "audio"}


def label_of(model: PerceiverIO) -> LabelOutput:
    """The label of a classifier of clips.

    Raises:
        PerceiversError: the model is of another kind.
    """
    output = model.outputs["label"] if is_clip_classifier(model) else None
    if not isinstance(output, LabelOutput):
        raise PerceiversError(
            f"this model is no classifier of clips: it reads {', '.join(model.inputs)} and predicts "
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
    """Probabilities of the classes for each file, most probable first.

    Args:
        model, device, dtype: as in `load_for_inference`.
        files: with sound or video, whichever the model reads; what a clip does not have, or is shorter than the model
            sees, is masked.
        windows: evenly spaced in each clip, over which probabilities are averaged (16 for AudioSet, section 8).

    Raises:
        PerceiversError: the model is no classifier of clips, or a file cannot be read.
    """
    if windows < 1:
        raise PerceiversError(f"windows = {windows} is not allowed: it must be at least 1.")
    model = load_for_inference(model, device, dtype)
    output, names = label_of(model), class_names(model)
    clips = LabelledClips(names, [0] * len(files), Files([Path(file) for file in files]), range(len(files)))
    seen = ClipDataset(clips, window_of(model), evenly(windows))
    answers = []
    for clip in range(len(files)):
        batch = seen.collate([seen[SampleIndex(clip * windows + number, 0)] for number in range(windows)])
        if batch["problems"]:
            raise PerceiversError(batch["problems"][0])
        there = {name: value.to(get_device(model)) for name, value in batch.items() if name != "problems"}
        logits = model(masked_inputs(model, there))["label"].float()
        probability_K = (logits.sigmoid() if output.multilabel else logits.softmax(1)).mean(0)
        answers.append(sort_classes(probability_K, names))
    return answers
