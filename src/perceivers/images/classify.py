"""What is in image files: `perceivers classify-image`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from perceivers.adapters.image import ImageInput
from perceivers.adapters.label import LabelOutput
from perceivers.data.labelled_files import Files
from perceivers.errors import PerceiversError
from perceivers.images.data import LabelledImages, evaluation_view, to_tensor
from perceivers.inference import device_of, prepare, rank
from perceivers.model.perceiver_io import PerceiverIO


def image_input(model: PerceiverIO) -> ImageInput:
    """The adapter of a classifier's images.

    Raises:
        PerceiversError: the model is of another kind.
    """
    adapters = list(model.inputs.values())
    if len(adapters) != 1 or not isinstance(adapters[0], ImageInput) or list(model.outputs) != ["label"]:
        raise PerceiversError(
            f"this model is no image classifier: it reads {', '.join(model.inputs)} "
            f"and predicts {', '.join(model.outputs)}, instead of an image and its label."
        )
    return adapters[0]


def class_names(model: PerceiverIO, name: str = "label") -> list[str]:
    """What the classes of a model's label, the output of that name, are called: their numbers, if it does not know."""
    output = model.outputs[name]
    assert isinstance(output, LabelOutput)
    return output.names or [str(index) for index in range(output.classes)]


@torch.no_grad()
def classify_image(
    model: PerceiverIO | str | Path,
    files: Sequence[str | Path],
    classes: Sequence[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[dict[str, float]]:
    """Probabilities of the classes for each image file, as `rank` names and sorts them.

    Args:
        model, device, dtype: as in `perceivers.inference`.
        files: images in any format that Pillow reads.
        classes: what the classes are called; as stored with the model, or else by number, if not given.

    Raises:
        PerceiversError: the model is no classifier, or a file is missing or cannot be decoded.
    """
    model = prepare(model, device, dtype)
    adapter, names = image_input(model), class_names(model)
    if classes is not None:
        if len(classes) != len(names):
            raise PerceiversError(f"{len(classes)} names of classes were given, but the model has {len(names)}.")
        names = list(classes)
    missing = [file for file in files if not Path(file).is_file()]
    if missing:
        raise PerceiversError(f"there is no file {missing[0]}.")
    images = LabelledImages(names, [0] * len(files), Files([Path(file) for file in files]), range(len(files)))
    answers = []
    for index in range(len(files)):
        view = evaluation_view(images.read(index, adapter.colours), adapter.size, adapter.crop)
        logits_K = model({"image": to_tensor(view)[None].to(device_of(model))})["label"][0]
        answers.append(rank(logits_K, names))
    return answers
