"""The commands of clips: `classify-clip`, `autoencode`, and `evaluate` for models of clips."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from perceivers.clips.data import LabelledClips
    from perceivers.model.perceiver_io import PerceiverIO

Windows = Annotated[Count, "windows of each clip, evenly spaced, whose answers are averaged"]
ListOfClips = Annotated[str | None, "which clips below --data, and their classes (see docs/clips.md)", Metavar("CSV")]
ListOfClasses = Annotated[
    str | None, "what the classes of --list are: AudioSet's file, or one class a line", Metavar("FILE")
]

FIGURES = {
    "video_psnr": "PSNR of the video {:.2f} dB",
    "audio_psnr": "of the sound {:.2f} dB",
    "top1": "top-1 {:.2%}",
    "map": "mean average precision {:.2%}",
    "d_prime": "d-prime {:.3f}",
}
"""How each figure of an evaluation is printed."""


def classify_clip(
    model: ModelArgument,
    files: Annotated[list[str], "with sound or video, whichever the model reads", Metavar("FILE")],
    *,
    windows: Windows = 1,
    top: Annotated[Count, "how many classes to print for each file"] = 5,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Says what is seen and heard in clips."""
    from perceivers.clips.classify import classify_clip

    print_files_classes(files, classify_clip(model, files, windows, device, dtype), top, json)


def autoencode(
    model: ModelArgument,
    clip: Annotated[str, "a video file"],
    *,
    out: Annotated[str, "the video to write, the original beside its reconstruction", Metavar("FILE")],
    start: Annotated[float, "seconds into the file (0)"] = 0.0,
    top: Annotated[Count, "how many classes to print"] = 5,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Encodes a clip with its sound to a few hundred latents and decodes it again."""
    from perceivers.clips.reconstruct import autoencode

    result = autoencode(model, clip, out, start, device, dtype, progress=True)
    classes = dict(list(result.classes.items())[:top])
    if json:
        figures = {"video_psnr": result.video_psnr, "audio_psnr": result.audio_psnr, "classes": classes}
        print_json({"out": out} | figures)
        return
    sound = "no sound" if result.audio_psnr is None else f"sound {result.audio_psnr:.2f} dB"
    print(f"{out}: PSNR of the video {result.video_psnr:.2f} dB, {sound}.")
    print_classes(classes)


def evaluate_classifier(
    model: ModelArgument,
    *,
    data: Annotated[str, "a folder of clips, or a data set of the hub: its evaluation split, or the held-out part"],
    list: ListOfClips = None,
    classes: ListOfClasses = None,
    windows: Windows = 1,
    batch_size: Annotated[Count, "windows computed at a time"] = 16,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures a classifier of clips: top-1 accuracy, or mean average precision and d-prime."""
    from perceivers.clips.classification import evaluate
    from perceivers.inference import load_for_inference

    loaded = load_for_inference(model, device, dtype)
    clips = find_clips(loaded, data, list, classes)
    print_figures(evaluate(loaded, clips, windows, batch_size), len(clips), windows, json)


def evaluate_autoencoder(
    model: ModelArgument,
    *,
    data: Annotated[
        str,
        "a folder of clips, or a data set of the hub: its evaluation split, or the held-out part; all clips of a "
        "folder, or a single one, if the model has no label",
    ],
    list: ListOfClips = None,
    classes: ListOfClasses = None,
    windows: Annotated[Count, "windows of each clip, evenly spaced, over which figures are averaged"] = 1,
    batch_size: Annotated[Count, "windows computed at a time"] = 1,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures an autoencoder of clips: PSNR of video and sound, and top-1 accuracy."""
    from perceivers.clips.autoencoding import evaluate
    from perceivers.inference import load_for_inference

    loaded = load_for_inference(model, device, dtype)
    clips = find_clips(loaded, data, list, classes)
    print_figures(evaluate(loaded, clips, windows, batch_size), len(clips), windows, json)


def find_clips(model: "PerceiverIO", data: str, clip_list: str | None, class_list: str | None) -> "LabelledClips":
    """Returns the clips that a model is measured on, with their classes if it has a label.

    Raises:
        PerceiversError: there are none, or a list is wrong or not needed.
    """
    from perceivers.clips.data import ClipData, clips_below, listed_clips
    from perceivers.clips.lists import read_classes
    from perceivers.inference import class_names

    if class_list is not None and clip_list is None:
        raise PerceiversError("--classes says what the classes of a --list are: give both, or neither.")
    if "label" not in model.outputs:
        if clip_list is not None:
            raise PerceiversError("--list says the classes of clips, but this model has no label: leave it out.")
        return clips_below(Path(data))
    if clip_list is None:
        return ClipData(data).open().evaluation
    own = {name: name for name in class_names(model)}
    classes = own if class_list is None else read_classes(Path(class_list))
    return listed_clips(Path(clip_list), Path(data), classes, skip_missing=False)


def print_figures(figures: Mapping[str, float], clips: int, windows: int, json: bool) -> None:
    """Prints what was measured on some windows of each of some clips."""
    if json:
        print_json(dict(figures) | {"clips": clips, "windows": windows})
        return
    described = ", ".join(FIGURES[name].format(value) for name, value in figures.items())
    print(
        f"{clips} clip{'' if clips == 1 else 's'}, {windows} window{'' if windows == 1 else 's'} of each: {described}"
    )
