"""The commands of clips: `classify-clip`, `autoencode`, and `evaluate` for models of clips."""

from pathlib import Path
from typing import Annotated

from perceivers.checks import Count
from perceivers.command import (
    Device,
    Json,
    Metavar,
    ModelArgument,
    Precision,
    print_answers,
    print_classes,
    print_json,
)
from perceivers.data.splits import HeldOut, SplitOption
from perceivers.errors import PerceiversError
from perceivers.files import expand_folders

Windows = Annotated[Count, "evenly spaced windows of each clip, whose predictions are averaged"]

FORMATS = {
    "video_psnr": "PSNR of the video {:.2f} dB",
    "audio_psnr": "PSNR of the sound {:.2f} dB",
    "audio_snr": "signal-to-noise ratio {:.2f} dB",
    "audio_spectral_distance": "spectral distance {:.2f} dB",
    "top1": "top-1 {:.2%}",
    "map": "mean average precision {:.2%}",
    "d_prime": "d-prime {:.3f}",
}
"""The printed form of each metric."""


def classify_clip(
    model: ModelArgument,
    files: Annotated[list[str], "with the sound or video that the model reads, or folders of them", Metavar("FILE")],
    *,
    windows: Windows = 1,
    top: Annotated[Count, "number of classes to print for each file"] = 5,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Classifies clips by their video and sound."""
    from perceivers.clips.classify import ClipPredictor, classify_clips
    from perceivers.clips.data import LabeledClips

    paths = expand_folders(files, LabeledClips.suffixes)
    answers = classify_clips(ClipPredictor(model, device, dtype, windows=windows), paths)
    print_answers("file", paths, answers, top, json)


def autoencode(
    model: ModelArgument,
    clip: Annotated[str, "a file with video, or with sound for a model of sound alone"],
    *,
    out: Annotated[
        str,
        "video to write, the original beside its reconstruction; for sound, the reconstruction, .wav",
        Metavar("FILE"),
    ],
    start: Annotated[float, "seconds into the file (0)"] = 0.0,
    top: Annotated[Count, "number of classes to print"] = 5,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Encodes a clip with its sound to a few hundred latents and decodes it again."""
    from perceivers.clips.reconstruct import autoencode

    result = autoencode(model, clip, out, start, device, dtype)
    classes = dict(list(result.classes.items())[:top])
    metrics = {name: getattr(result, name) for name in ("video_psnr", "audio_psnr", "audio_snr")}
    if json:
        print_json({"out": out, **metrics, "classes": classes})
        return
    found = [FORMATS[name].format(value) for name, value in metrics.items() if value is not None]
    found += ["no sound"] if result.audio_psnr is None else []
    print(f"{out}: {', '.join(found)}.")
    print_classes(classes)


def evaluate(
    model: ModelArgument,
    *,
    data: Annotated[
        str,
        "folder of clips, a table with the columns file_name and label, or a data set on the Hub; for a model without "
        "a label, any folder of clips, or a single clip",
    ],
    split: SplitOption = None,
    validation_fraction: HeldOut = None,
    list: Annotated[str | None, "clips of --data and their classes (see docs/clips.md)", Metavar("CSV")] = None,
    classes: Annotated[str | None, "classes of --list: file of AudioSet, or one per line", Metavar("FILE")] = None,
    windows: Annotated[Count, "evenly spaced windows of each clip; results are averaged"] = 1,
    batch_size: Annotated[Count | None, "windows computed at a time; by default 16, for autoencoders 1"] = None,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures a model of clips: top-1 accuracy or mean average precision of classes, PSNR of reconstructions."""
    from perceivers.clips.data import open_evaluation_clips, open_listed_clips
    from perceivers.clips.reconstruct import is_autoencoder
    from perceivers.inference import load_for_inference

    if classes is not None and list is None:
        raise PerceiversError("--classes gives the classes of a --list: give both, or neither.")
    loaded = load_for_inference(model, device, dtype)
    if list is None:
        clips, part = open_evaluation_clips(loaded, data, split, validation_fraction)
    else:
        clips, part = open_listed_clips(loaded, Path(data), Path(list), classes, split)
    if is_autoencoder(loaded):
        from perceivers.clips import autoencoding

        results = autoencoding.evaluate(loaded, clips, windows, batch_size or 1)
    else:
        from perceivers.clips import classification

        results = classification.evaluate(loaded, clips, windows, batch_size or 16)
    if json:
        print_json(results | part.fields() | {"windows": windows})
        return
    counts = f"{part}, {windows} window{'s'[: windows > 1]} of each"
    print(f"{counts}: {', '.join(FORMATS[name].format(value) for name, value in results.items())}")
