"""Simple methods on the data of the mini experiments, which a model has to beat, and the flow model in the package."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.multimodal import recordings, without_model
from perceivers.adapters import MelInput
from perceivers.clips.data import ClipData, LabeledClips
from perceivers.data.image_files import to_tensor
from perceivers.images.data import ImageData, LabeledImages
from perceivers.model.positions import FourierPositions
from perceivers.starcraft.data import DecisionData
from perceivers.starcraft.training import evaluate_references

ROOT = Path(__file__).parents[1]
Examples = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def fit_linear(training: Examples, evaluation: Examples) -> dict[str, float]:
    """Returns the accuracy of logistic regression on features of equal scale."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
    return {"val_top1": float(model.fit(*training).score(*evaluation))}


def read_pixels(images: LabeledImages, limit: int = 20_000) -> Examples:
    """Returns the pixels of at most so many images, and their classes."""
    chosen = np.random.default_rng(0).permutation(len(images))[:limit]
    pixels = [to_tensor(images.read(int(index), 3)).flatten().numpy() for index in chosen]
    return np.stack(pixels).astype(np.float32), np.array([images.labels[index] for index in chosen])


def read_spectra(clips: LabeledClips) -> Examples:
    """Returns means and deviations of mel bands in four parts of each recording, and its class."""
    mel = MelInput((1, 40), FourierPositions((100, 1), 1), bands=40, hop=80, window=256, sample_rate=8000)
    features, labels = [], []
    for label, sound_S in recordings(clips):
        sound_S = sound_S[: len(sound_S) // 80 * 80]
        x_TK = mel(sound_S[None]).x_BMC[0, :, :40]
        features.append(torch.cat([f(part_TK) for part_TK in x_TK.chunk(4) for f in (mean, deviation)]).numpy())
        labels.append(label)
    return np.stack(features), np.array(labels)


def mean(x_TK: torch.Tensor) -> torch.Tensor:
    """Returns the mean over time."""
    return x_TK.mean(0)


def deviation(x_TK: torch.Tensor) -> torch.Tensor:
    """Returns the standard deviation over time."""
    return x_TK.std(0, correction=0)


def linear_digits(_: Path) -> dict[str, Any]:
    """Returns the accuracy of logistic regression on the pixels of the handwritten digits."""
    splits = ImageData("digits").open()
    return fit_linear(read_pixels(splits.training), read_pixels(splits.evaluation))


def linear_cifar10(data: Path) -> dict[str, Any]:
    """Returns the accuracy of logistic regression on pixels, trained on 20,000 images."""
    splits = ImageData(str(data / "cifar10")).open()
    return fit_linear(read_pixels(splits.training), read_pixels(splits.evaluation))


def linear_spoken_digits(data: Path) -> dict[str, Any]:
    """Returns the accuracy of logistic regression on means and deviations of mel bands."""
    splits = ClipData(str(data / "spoken_digits")).open()
    return fit_linear(read_spectra(splits.training), read_spectra(splits.evaluation))


def mean_frame(data: Path) -> dict[str, Any]:
    """Returns the PSNR of the mean frame of the training windows, and of silence."""
    video, audio = without_model(data / "video/flipping_a_pancake.mkv")
    return {"val_video_psnr": video, "val_audio_psnr": audio}


def prepare_units(data: Path) -> Path:
    """Returns the folder of tables that `perceivers prepare-replays` writes, without those that it has."""
    tables = ROOT / "runs/tables"
    subprocess.run([sys.executable, "-m", "perceivers", "prepare-replays", data / "replays", tables], check=True)
    return tables


def units_rules(data: Path) -> dict[str, Any]:
    """Returns the metrics of simple rules on the validation replays."""
    splits = DecisionData(str(prepare_units(data)), str(ROOT / "configs/starcraft/split.json")).open()
    return evaluate_references(splits["validation"])


def flow_included(data: Path) -> dict[str, Any]:
    """Returns the errors of the flow model in the package and of OpenCV's methods on Middlebury."""
    command = [
        "perceivers",
        "evaluate",
        str(ROOT / "src/perceivers/flow/mini"),
        "--data",
        str(data / "flow/middlebury"),
    ]
    answer = subprocess.run([sys.executable, "-m", *command, "--json"], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(answer.stdout)
    return found


def silence(_: Path) -> dict[str, Any]:
    """Returns the signal-to-noise ratio of silence in dB, which is 0 by definition."""
    return {"val_audio_snr": 0.0}


SIMPLE: dict[str, Callable[[Path], dict[str, Any]]] = {
    function.__name__: function
    for function in (
        linear_digits,
        linear_cifar10,
        linear_spoken_digits,
        mean_frame,
        units_rules,
        flow_included,
        silence,
    )
}
"""Methods without training, or with a training of minutes, by the name of their result."""
