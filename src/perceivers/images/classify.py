"""Classification of image files: `perceivers classify-image`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from perceivers.adapters.image import ImageInput
from perceivers.data.image_files import evaluation_view, to_tensor
from perceivers.errors import PerceiversError
from perceivers.files import require_file
from perceivers.images.data import LabelledImages
from perceivers.inference import check_answers, class_names, get_device, load_for_inference, rank_classes
from perceivers.model.perceiver_io import PerceiverIO


def is_image_classifier(model: PerceiverIO) -> bool:
    """Returns whether a model reads one image and predicts its label."""
    adapters = list(model.inputs.values())
    return len(adapters) == 1 and isinstance(adapters[0], ImageInput) and list(model.outputs) == ["label"]


def get_image_input(model: PerceiverIO) -> ImageInput:
    """Returns the input adapter of an image classifier, or raises a PerceiversError for any other model."""
    adapter = next(iter(model.inputs.values()))
    if not is_image_classifier(model) or not isinstance(adapter, ImageInput):
        raise PerceiversError(
            f"this model does not classify images: it reads {', '.join(model.inputs)} "
            f"and predicts {', '.join(model.outputs)}, instead of an image and its label."
        )
    return adapter


@torch.no_grad()
def classify_image(
    model: PerceiverIO | str | Path,
    files: Sequence[str | Path],
    classes: Sequence[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[dict[str, float]]:
    """Returns the probabilities of the classes of each image file, most probable first.

    Args:
        model, device, dtype: as in `load_for_inference`.
        files: images in any format that Pillow reads.
        classes: names of the classes, in order; by default those saved with the model, or else their indices.

    Raises:
        PerceiversError: the model does not classify images, or a file is missing or cannot be decoded.
    """
    model = load_for_inference(model, device, dtype)
    adapter, names = get_image_input(model), class_names(model)
    if classes is not None:
        if len(classes) != len(names):
            raise PerceiversError(f"{len(classes)} names of classes were given, but the model has {len(names)}.")
        names = list(classes)
    for file in files:
        require_file(file)
    images = LabelledImages.from_files(files)
    predictions = []
    for index in range(len(files)):
        view = evaluation_view(images.read(index, adapter.in_channels), adapter.size, adapter.crop)
        image_BCYX = to_tensor(view)[None].to(get_device(model))
        logits_K = check_answers(model({"image": image_BCYX}))["label"][0]
        predictions.append(rank_classes(logits_K, names))
    return predictions
