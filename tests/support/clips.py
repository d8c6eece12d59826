"""Small runs of the classification and the autoencoding of clips, and their data."""

import io
import wave

import numpy as np
import torch

from perceivers.clips.autoencoding import Autoencoding, Weights
from perceivers.clips.classification import ClipClassification
from perceivers.clips.data import ClipData
from perceivers.data.video_writer import write_video
from perceivers.presets import model_config
from perceivers.training.optimization import Optimization
from tests.support.runs import run_settings

SIZES = {"latents": 4, "channels": 16, "depth": 1, "heads": 2, "query_channels": 16, "audio_bands": 4}
SOUND = SIZES | {"frames": None, "samples": 800, "samples_per_patch": 16, "sample_rate": 8000}
MEL = SOUND | {"sound": "mel", "hop": 80, "window": 160, "mel_bands": 10, "mel_patch": (1, 10)}
CONV = SOUND | {"sound": "conv", "filters": 8}
BOTH = SIZES | {
    "frames": 4, "image_size": (8, 8), "video_patch": (2, 4, 4), "video_bands": 2, "samples": 7680,
    "samples_per_patch": 64,
}  # fmt: skip

AUTOENCODER = {
    "frames": 4, "image_size": [8, 8], "patch_size": 4, "video_bands": 3, "samples_per_frame": 320, "audio_bands": 4,
    "latents": 8, "channels": 32, "depth": 1, "heads": 2, "label_query_channels": 16, "output_channels": 24,
}  # fmt: skip


def wav(samples, sample_rate=8000):
    """The bytes of a recording of 16 bits."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((np.asarray(samples) * 32767).round().astype("<i2").tobytes())
    return content.getvalue()


def write_tones(folder):
    """High and low tones of random phase, some shorter than a window."""
    random = np.random.default_rng(0)
    for label, frequency in (("high", 1500), ("low", 300)):
        (folder / label).mkdir(parents=True)
        for number in range(30):
            count = random.integers(600, 1600)
            samples = 0.8 * np.sin(2 * np.pi * (frequency * np.arange(count) / 8000 + random.random()))
            (folder / label / f"{number}.wav").write_bytes(wav(samples))
    return folder


def write_clips(root):
    """Bright clips with a high tone and dark ones with a low."""
    time = np.arange(3200) / 8000
    for number, (name, gray, frequency) in enumerate((("bright", 200, 900), ("dark", 60, 200))):
        (root / name).mkdir(parents=True)
        for index in range(5):
            video = [torch.full((3, 8, 8), gray + 5 * index + k, dtype=torch.uint8) for k in range(10)]
            sound = torch.from_numpy(0.5 * np.sin(2 * np.pi * frequency * time + number)).float()
            write_video(root / name / f"{index}.mkv", video, 25, sound, 8000)
    return root


def classification_run(output, data, model, **training):
    training = {"max_epochs": 2, "batch_size": 4, "output": str(output)} | training
    return ClipClassification(
        model=model_config("audioset_raw", **model),
        data=ClipData(str(data), validation_fraction=0.2),
        optimization=Optimization(lr=3e-3),
        **run_settings(**training),
    )


def autoencoding_run(output, data, model=None, fields=None, **training):
    training = {"max_epochs": 2, "batch_size": 4, "output": str(output)} | training
    return Autoencoding(
        model=model_config("autoencoder_88x", **(AUTOENCODER | (model or {}))),
        data=ClipData(str(data), validation_fraction=0.2, cache_gb=0.1),
        weights=Weights(1.0, 1.0, 0.1),
        optimization=Optimization(lr=3e-3),
        **run_settings(**training),
        **({"points": 32} | (fields or {})),
    )
