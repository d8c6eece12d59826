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
    print_classes,
    print_files_classes,
    print_json,
)
from perceivers.errors import PerceiversError

FORMATS = {
    "video_psnr": "PSNR of the video {:.2f} dB",
    "audio_psnr": "of the sound {:.2f} dB",
    "top1": "top-1 {:.2%}",
    "map": "mean average precision {:.2%}",
    "d_prime": "d-prime {:.3f}",
}
"""The printed form of each metric."""


def classify_clip(
    model: ModelArgument,
    files: Annotated[list[str], "with the sound or video that the model reads", Metavar("FILE")],
    *,
    windows: Annotated[Count, "evenly spaced windows of each clip, whose predictions are averaged"] = 1,
    top: Annotated[Count, "number of classes to print for each file"] = 5,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Classifies clips by their video and sound."""
    from perceivers.clips.classify import classify_clip

    print_files_classes(files, classify_clip(model, files, windows, device, dtype), top, json)


def autoencode(
    model: ModelArgument,
    clip: Annotated[str, "a video file"],
    *,
    out: Annotated[str, "video to write: the original beside its reconstruction", Metavar("FILE")],
    start: Annotated[float, "seconds into the file (0)"] = 0.0,
    top: Annotated[Count, "number of classes to print"] = 5,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Encodes a clip with its sound to a few hundred latents and decodes it again."""
    from perceivers.clips.reconstruct import autoencode

    result = autoencode(model, clip, out, start, device, dtype, progress=True)
    classes = dict(list(result.classes.items())[:top])
    if json:
        print_json({"out": out, "video_psnr": result.video_psnr, "audio_psnr": result.audio_psnr, "classes": classes})
        return
    sound = "no sound" if result.audio_psnr is None else f"sound {result.audio_psnr:.2f} dB"
    print(f"{out}: PSNR of the video {result.video_psnr:.2f} dB, {sound}.")
    print_classes(classes)


def evaluate(
    model: ModelArgument,
    *,
    data: Annotated[
        str,
        "folder of clips, or a data set on the Hub; its evaluation split is used, or else a held-out part; for a model "
        "without a label, all clips of a folder, or a single clip",
    ],
    list: Annotated[str | None, "clips of --data and their classes (see docs/clips.md)", Metavar("CSV")] = None,
    classes: Annotated[str | None, "classes of --list: file of AudioSet, or one per line", Metavar("FILE")] = None,
    windows: Annotated[Count, "evenly spaced windows of each clip; results are averaged"] = 1,
    batch_size: Annotated[Count | None, "windows computed at a time; by default 16, for autoencoders 1"] = None,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures a model of clips: top-1 accuracy or mean average precision of classes, PSNR of reconstructions."""
    from perceivers.clips.data import ClipData, find_clips, listed_clips
    from perceivers.clips.lists import read_classes
    from perceivers.clips.reconstruct import is_autoencoder
    from perceivers.inference import class_names, load_for_inference

    if classes is not None and list is None:
        raise PerceiversError("--classes gives the classes of a --list: give both, or neither.")
    loaded = load_for_inference(model, device, dtype)
    if "label" not in loaded.outputs:
        if list is not None:
            raise PerceiversError("--list gives the classes of clips, but this model has no label: omit it.")
        clips = find_clips(Path(data))
    elif list is None:
        clips = ClipData(data).open().evaluation
    else:
        known = {name: name for name in class_names(loaded)} if classes is None else read_classes(Path(classes))
        clips = listed_clips(Path(list), Path(data), known, skip_missing=False)
    if is_autoencoder(loaded):
        from perceivers.clips import autoencoding

        results = autoencoding.evaluate(loaded, clips, windows, batch_size or 1)
    else:
        from perceivers.clips import classification

        results = classification.evaluate(loaded, clips, windows, batch_size or 16)
    if json:
        print_json(results | {"clips": len(clips), "windows": windows})
        return
    counts = f"{len(clips)} clip{'s'[: len(clips) > 1]}, {windows} window{'s'[: windows > 1]} of each"
    print(f"{counts}: {', '.join(FORMATS[name].format(value) for name, value in results.items())}")
