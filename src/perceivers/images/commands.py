"""The commands of image classification: `demo`, `classify-image`, and `evaluate` for its models."""

from pathlib import Path
from typing import Annotated

from perceivers.checks import Count
from perceivers.command import (
    ClassNames,
    Device,
    Json,
    Metavar,
    ModelArgument,
    Precision,
    print_answers,
    print_aside,
    print_json,
)
from perceivers.data.splits import HeldOut, SplitOption
from perceivers.extras import require_extra
from perceivers.files import expand_folders


def demo(
    *,
    output: Annotated[Path, "folder to write", Metavar("FOLDER")] = Path("runs/demo"),
    epochs: Annotated[Count | None, "passes over the training digits (100)"] = None,
    json: Json = False,
) -> None:
    """Trains a small Perceiver IO on handwritten digits, and shows its predictions and attention."""
    require_extra("demo")
    from perceivers.images.demo import demo

    with print_aside(json):
        metrics = demo(output, epochs)
    if json:
        print_json({"output": str(output)} | metrics)


def classify_image(
    model: ModelArgument,
    files: Annotated[list[str], "images, or folders of them", Metavar("FILE")],
    *,
    classes: ClassNames = None,
    top: Annotated[Count, "number of classes to print for each file"] = 5,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Classifies image files."""
    from perceivers.data.image_files import SUFFIXES
    from perceivers.images.classify import ImagePredictor, classify_images

    paths = expand_folders(files, SUFFIXES)
    answers = classify_images(ImagePredictor(model, device, dtype, classes=classes), paths)
    print_answers("file", paths, answers, top, json)


def evaluate(
    model: ModelArgument,
    *,
    data: Annotated[str, "'digits', a folder, a table with the columns file_name and label, or a data set on the Hub"],
    split: SplitOption = None,
    validation_fraction: HeldOut = None,
    batch_size: Annotated[Count, "images computed at a time"] = 64,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures an image classifier: top-1 and top-5 accuracy, and loss."""
    from perceivers.images.data import open_evaluation_images
    from perceivers.images.training import evaluate
    from perceivers.inference import load_for_inference

    images, part = open_evaluation_images(data, split, validation_fraction)
    results = evaluate(load_for_inference(model, device, dtype), images, batch_size)
    if json:
        print_json(results | part.fields())
        return
    accuracy = f"top-1 {results['top1']:.2%}, top-5 {results['top5']:.2%}"
    print(f"{part}: {accuracy}, loss {results['loss']:.4f}")
