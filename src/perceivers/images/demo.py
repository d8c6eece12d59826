"""The demo: a small Perceiver IO learns handwritten digits from raw pixels, and shows what it learned."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from perceivers.checkpoints import load
from perceivers.data.loader import SampleIndex
from perceivers.images.augmentation import Augmentation
from perceivers.images.classify import image_input
from perceivers.images.data import ImageData, ImageDataset, LabelledImages
from perceivers.images.model import ImageClassifierConfig
from perceivers.images.training import ImageClassification
from perceivers.inference import class_names
from perceivers.model.intermediates import record_attention
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import atomic_write
from perceivers.training.config import read_yaml
from perceivers.training.loop import Training, program_name
from perceivers.training.optimization import Optimization

SHOWN, EXPLAINED, LATENTS = 40, 8, 4
"""How many digits the picture shows, how many of them with attention maps, and of how many latents."""


def digits_run(output: str) -> ImageClassification:
    """What the demo trains; the same as configs/image_classification/digits.yaml."""
    return ImageClassification(
        model=ImageClassifierConfig(
            image_size=8,
            mean=(0.3,),
            std=(0.38,),
            crop=1.0,
            bands=8,
            latents=32,
            channels=64,
            depth=2,
            num_blocks=1,
            heads=4,
            query_channels=64,
        ),
        data=ImageData("digits"),
        augmentation=Augmentation(shift=1),
        optimization=Optimization("adamw", 2e-3, 0.05, warmup_steps=50, beta2=0.98, clip_norm=1.0),
        training=Training(epochs=100, batch_size=32, devices=1, output=output),
    )


def demo(output: Path, epochs: int | None = None) -> dict[str, Any]:
    """Trains, tests on the held-out third, and writes the model, `metrics.json` and `predictions.png` to `output`.

    An earlier demo there is replaced.
    """
    run = digits_run(str(output))
    if epochs is not None:
        run.training = replace(run.training, epochs=epochs)
    splits = run.data.open()
    if is_demo(output, run):
        shutil.rmtree(output)
    print(
        "A Perceiver IO learns to read handwritten digits. It gets 64 pixels in no order, each with Fourier features\n"
        "of its position, reads them into 32 latents, and one learned query asks the latents for the label.\n"
        f"Training on {len(splits.training):,} digits for {run.training.epochs} epochs; "
        f"{len(splits.evaluation)} others are kept for the test.\n"
    )
    run.run()

    model = load(output / "model")
    images_BCYX, labels_B = test_tensors(model, splits.evaluation)
    with torch.inference_mode():
        predicted_B = model({"image": images_BCYX})["label"].argmax(-1)
    metrics = json.loads((output / "metrics.json").read_text())
    metrics = {
        "test_accuracy": float((predicted_B == labels_B).float().mean()),
        "seconds": metrics["seconds"],
        "parameters": metrics["parameters"],
        "seed": metrics["seed"],
    }
    atomic_write(output / "metrics.json", lambda file: file.write_text(json.dumps(metrics, indent=2) + "\n"))
    picture = draw(model, images_BCYX, labels_B, predicted_B)
    atomic_write(output / "predictions.png", lambda file: picture.savefig(file, format="png", dpi=110))
    print(report(metrics, confusion(labels_B, predicted_B, len(class_names(model))), output))
    return metrics


def is_demo(output: Path, run: ImageClassification) -> bool:
    """Whether a folder is a demo's, finished or interrupted, and so may be replaced."""
    metrics, config = output / "metrics.json", output / "config.json"
    finished = metrics.is_file() and "test_accuracy" in read_yaml(metrics)
    return finished or (config.is_file() and read_yaml(config).get("model") == run.to_config()["model"])


def test_tensors(model: PerceiverIO, images: LabelledImages) -> tuple[Tensor, Tensor]:
    """All test images as the model wants them, and their labels."""
    adapter = image_input(model)
    dataset = ImageDataset(images, adapter.size, adapter.in_channels, adapter.crop)
    pixels = torch.stack([dataset[SampleIndex(index, 0)]["image"] for index in range(len(images))])
    return pixels, torch.tensor(images.labels)


def confusion(labels_B: Tensor, predicted_B: Tensor, classes: int) -> Tensor:
    """How often each class (row) was taken for each (column)."""
    return torch.bincount(labels_B * classes + predicted_B, minlength=classes**2).view(classes, classes)


def report(metrics: dict[str, Any], confusion_KK: Tensor, output: Path) -> str:
    """What the demo says at the end."""
    classes = len(confusion_KK)
    rows = [
        f"    {true}  " + "".join(f"{count or '.':>5}" for count in row)
        for true, row in enumerate(confusion_KK.tolist())
    ]
    return "\n".join(
        [
            f"\nTest accuracy {metrics['test_accuracy']:.1%} on {int(confusion_KK.sum())} digits it had not seen, "
            f"after {metrics['seconds']:.0f} seconds; {metrics['parameters']:,} parameters.\n",
            "Confusion matrix (rows: true digit, columns: predicted):",
            "       " + "".join(f"{k:>5}" for k in range(classes)),
            *rows,
            f"\nPicture of predictions and attention: {output / 'predictions.png'}",
            "\nTry next:",
            f"  {program_name()} classify-image {output / 'model'} YOUR_DIGIT.png    # white on black",
            f"  {program_name()} models",
            f"  {program_name()} fit configs/image_classification/cifar10.yaml --data.path=FOLDER",
        ]
    )


def draw(model: PerceiverIO, images_BCYX: Tensor, labels_B: Tensor, predicted_B: Tensor) -> Figure:
    """Test digits, wrong ones first; beside some, where those latents looked that the label's query read most."""
    order = (predicted_B == labels_B).int().argsort(stable=True).tolist()
    wrong = int((predicted_B != labels_B).sum())
    explained = order[: min(wrong, EXPLAINED // 2)] + order[wrong:]
    with torch.inference_mode(), record_attention(model) as maps:
        model({"image": images_BCYX[explained[:EXPLAINED]]})
    looked_BNM = maps["encoder.cross_attentions.0.attention"][0].mean(1)
    read_BN = maps["decoder.attention"][0].mean(1)[:, 0]

    def show(axis: Axes, index: int, title: str | None = None) -> None:
        predicted, true = int(predicted_B[index]), int(labels_B[index])
        axis.imshow(images_BCYX[index, 0], cmap="gray", vmax=320)
        color = "crimson" if title is None and predicted != true else "black"
        axis.set_title(title or f"{predicted} / {true}", fontsize=9, color=color)
        axis.axis("off")

    figure = Figure(figsize=(15, 8.6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[5, 5.4])[0]
    left.suptitle(f"Test digits: {wrong} of {len(labels_B)} wrong, shown first (predicted / true)", fontsize=12)
    for axis, index in zip(left.subplots(SHOWN // 5, 5).flat, order, strict=False):
        show(axis, index)

    right.suptitle(f"Where the {LATENTS} latents looked that the label's query read most", fontsize=12)
    axes = right.subplots(EXPLAINED, LATENTS + 2)
    for row, index in enumerate(explained[:EXPLAINED]):
        show(axes[row, 0], index)
        top = read_BN[row].topk(LATENTS).indices.tolist()
        looks = [(f"latent {latent}: {read_BN[row, latent]:.0%}", looked_BNM[row, latent]) for latent in top]
        looks.append(("all latents, as read", read_BN[row] @ looked_BNM[row]))
        for axis, (title, look_M) in zip(axes[row, 1:], looks, strict=True):
            show(axis, index, title)
            strength = (look_M / look_M.max()).view(images_BCYX.shape[-2:])
            axis.imshow(strength, cmap="autumn", alpha=0.9 * strength)
    return figure
