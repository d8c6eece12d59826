"""The demo: trains a small Perceiver IO on handwritten digits and draws its predictions and attention.

Shape suffixes: B batch, C colors, Y rows, X columns, K classes, N latents, M pixels
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from perceivers.checkpoints import load
from perceivers.config_files import CONFIGS
from perceivers.data.loader import SampleIndex
from perceivers.images.classify import get_image_input
from perceivers.images.data import ImageDataset
from perceivers.images.training import ImageClassification
from perceivers.model.intermediates import record_attention
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import atomic_write
from perceivers.training.config import read_config, read_yaml
from perceivers.training.guard import program_name

DRAWN_DIGITS, EXPLAINED_DIGITS, DRAWN_LATENTS = 40, 8, 4
"""Number of digits in the picture, of those with attention maps, and of the latents in these."""


def digits_run(output: str) -> ImageClassification:
    """Returns the run of the shipped config image_classification/digits."""
    run = cast(ImageClassification, read_config(CONFIGS / "image_classification/digits.yaml"))
    run.training = replace(run.training, output=output)
    return run


def demo(output: Path, epochs: int | None = None) -> dict[str, Any]:
    """Trains and evaluates, and writes the model, `metrics.json` and `predictions.png`, over an earlier demo."""
    run = digits_run(str(output))
    if epochs is not None:
        run.trainer["max_epochs"] = epochs
    splits = run.data.open()
    if is_demo(output, run):
        shutil.rmtree(output)
    print(
        "A Perceiver IO learns to classify handwritten digits. 64 pixels in no order, each with Fourier features of\n"
        "its position, are read by 32 latents, and one learned query reads the label from the latents.\n"
        f"Training on {len(splits.training):,} digits for {run.trainer['max_epochs']} epochs; "
        f"{len(splits.evaluation)} others are held out for the test.\n"
    )
    run.run()

    model = load(output / "model")
    adapter, images = get_image_input(model), splits.evaluation
    dataset = ImageDataset(images, adapter.size, adapter.in_channels, adapter.crop)
    images_BCYX = torch.stack([dataset[SampleIndex(index, 0)]["image"] for index in range(len(dataset))])
    labels_B = torch.tensor(images.labels)
    with torch.inference_mode():
        predicted_B = model({"image": images_BCYX})["label"].argmax(-1)
    logged = json.loads((output / "metrics.json").read_text())
    metrics = {"test_accuracy": float((predicted_B == labels_B).float().mean())}
    metrics |= {name: logged[name] for name in ("seconds", "parameters", "seed")}
    atomic_write(output / "metrics.json", lambda file: file.write_text(json.dumps(metrics, indent=2) + "\n"))
    picture = draw_predictions(model, images_BCYX, labels_B, predicted_B)
    atomic_write(output / "predictions.png", lambda file: picture.savefig(file, format="png", dpi=110))
    classes = len(images.classes)
    confusion_KK = torch.bincount(labels_B * classes + predicted_B, minlength=classes**2).view(classes, classes)
    print(describe_results(metrics, confusion_KK, output))
    return metrics


def is_demo(output: Path, run: ImageClassification) -> bool:
    """Returns whether a folder holds a demo, finished or interrupted, that may be overwritten."""
    metrics, config = output / "metrics.json", output / "config.json"
    finished = metrics.is_file() and "test_accuracy" in read_yaml(metrics)
    return finished or (config.is_file() and read_yaml(config).get("model") == run.to_config()["model"])


def describe_results(metrics: dict[str, Any], confusion_KK: Tensor, output: Path) -> str:
    """Returns the text that the demo prints at the end."""
    rows = enumerate(confusion_KK.tolist())
    matrix = "\n".join(f"    {true}  " + "".join(f"{count or '.':>5}" for count in row) for true, row in rows)
    return f"""
Test accuracy {metrics["test_accuracy"]:.1%} on {int(confusion_KK.sum())} held-out digits, after \
{metrics["seconds"]:.0f} seconds; {metrics["parameters"]:,} parameters.

Confusion matrix (rows: true digit, columns: predicted):
       {"".join(f"{k:>5}" for k in range(len(confusion_KK)))}
{matrix}

Picture of predictions and attention: {output / "predictions.png"}

Try next:
  {program_name()} classify-image {output / "model"} YOUR_DIGIT.png    # white on black
  {program_name()} models
  {program_name()} fit configs/image_classification/cifar10.yaml --data.path=FOLDER"""


def draw_predictions(model: PerceiverIO, images_BCYX: Tensor, labels_B: Tensor, predicted_B: Tensor) -> Figure:
    """Draws test digits, wrong ones first, and attention maps of the latents that the query of the label reads most."""
    order = (predicted_B == labels_B).int().argsort(stable=True).tolist()
    wrong = int((predicted_B != labels_B).sum())
    explained = (order[: min(wrong, EXPLAINED_DIGITS // 2)] + order[wrong:])[:EXPLAINED_DIGITS]
    with torch.inference_mode(), record_attention(model) as maps:
        model({"image": images_BCYX[explained]})
    latents_BNM = maps["encoder.cross_attentions.0.attention"][0].mean(1)
    query_BN = maps["decoder.attention"][0].mean(1)[:, 0]

    def show(axis: Axes, index: int, title: str | None = None) -> None:
        predicted, true = int(predicted_B[index]), int(labels_B[index])
        axis.imshow(images_BCYX[index, 0], cmap="gray", vmax=320)
        color = "crimson" if title is None and predicted != true else "black"
        axis.set_title(title or f"{predicted} / {true}", fontsize=9, color=color)
        axis.axis("off")

    figure = Figure(figsize=(15, 8.6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[5, 5.4])[0]
    left.suptitle(f"Test digits: {wrong} of {len(labels_B)} wrong, shown first (predicted / true)", fontsize=12)
    for axis, index in zip(left.subplots(DRAWN_DIGITS // 5, 5).flat, order, strict=False):
        show(axis, index)

    right.suptitle(f"Attention of the {DRAWN_LATENTS} latents that the query of the label reads most", fontsize=12)
    axes = right.subplots(EXPLAINED_DIGITS, DRAWN_LATENTS + 2)
    for row, index in enumerate(explained):
        show(axes[row, 0], index)
        top = query_BN[row].topk(DRAWN_LATENTS).indices.tolist()
        titled = [(f"latent {latent}: {query_BN[row, latent]:.0%}", latents_BNM[row, latent]) for latent in top]
        titled.append(("all latents, weighted", query_BN[row] @ latents_BNM[row]))
        for axis, (title, attention_M) in zip(axes[row, 1:], titled, strict=True):
            show(axis, index, title)
            strength = (attention_M / attention_M.max()).view(images_BCYX.shape[-2:])
            axis.imshow(strength, cmap="autumn", alpha=0.9 * strength)
    return figure
