"""Classification of image files: `perceivers classify-image`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from perceivers.adapters.image import ImageInput
from perceivers.command import ClassNames, TopClasses
from perceivers.data.labeled_files import open_unlabeled
from perceivers.data.splits import Part
from perceivers.errors import PerceiversError
from perceivers.files import read_lines
from perceivers.images.data import ImageDataset, LabeledImages, choose_digits
from perceivers.inference import class_names, load_for_inference
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.prediction import Inputs, Predictor, classify, require_answers


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


class ImagePredictor(Predictor):
    """An image classifier."""

    def __init__(
        self,
        model: PerceiverIO | str | Path,
        device: str | None = None,
        dtype: str | None = None,
        *,
        classes: ClassNames = None,
        column: Annotated[str | None, "column of a data set, or of a table, with the images or their paths"] = None,
        top: TopClasses = 1,
    ) -> None:
        self.model = load_for_inference(model, device, dtype)
        self.adapter, self.outputs = get_image_input(self.model), {"label": None}
        self.names, self.column, self.top = class_names(self.model), column, top
        if classes is not None:
            self.rename(read_lines(classes))

    def rename(self, classes: Sequence[str]) -> None:
        """Sets the names of the classes; raises a PerceiversError for another number of them."""
        if len(classes) != len(expected := class_names(self.model)):
            raise PerceiversError(f"{len(classes)} names of classes were given, but the model has {len(expected)}.")
        self.names = list(classes)

    def open(self, data: str, split: str | None = None) -> Inputs:
        if data == "digits":
            images, part = choose_digits(split)
        else:
            images, part = open_unlabeled(LabeledImages, data, split, self.column)
        return self.take(images, part)

    def take(self, images: LabeledImages, part: Part) -> Inputs:
        """Returns images as the rows to predict."""
        view = (self.adapter.size, self.adapter.in_channels, self.adapter.crop)
        return Inputs.of(images, ImageDataset(images, *view), part)

    def inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"image": batch["image"]}


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
    predictor = ImagePredictor(model, device, dtype)
    if classes is not None:
        predictor.rename(classes)
    return require_answers(classify_images(predictor, files))


def classify_images(predictor: ImagePredictor, files: Sequence[str | Path]) -> list[dict[str, float] | PerceiversError]:
    """Returns what `classify_image` does, or why a file has no answer."""
    images = LabeledImages.from_files(files)
    return classify(predictor, predictor.take(images, Part("image", len(files), len(files))))
