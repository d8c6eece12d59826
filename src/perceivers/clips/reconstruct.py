"""A clip with sound through a few hundred latents and back: `perceivers autoencode`.

Shape suffixes: T frames, C colors, Y rows, X columns, S samples, K classes
"""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from perceivers.adapters.audio import AudioInput, AudioOutput
from perceivers.adapters.label import LabelInput, LabelOutput
from perceivers.adapters.video import VideoInput, VideoOutput
from perceivers.clips.model import FRAME_RATE
from perceivers.clips.model_window import window_of
from perceivers.data.video import check_video_path, read_clip, write_video
from perceivers.inference import check_folder, class_names, find_adapter, get_device, load_for_inference, rank_classes
from perceivers.model.perceiver_io import PerceiverIO

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Autoencoded:
    """What a model makes of a clip.

    Attributes:
        video: float [T, 3, Y, X] in [0, 1].
        audio: float [S] in [-1, 1]; None if the model has no sound.
        classes: probabilities of the classes, most probable first; none if the model has no label.
        video_psnr: peak signal-to-noise ratio of the video in dB, of colors in [0, 1].
        audio_psnr: the same of the sound, of samples in [-1, 1] with a peak of 1; None if there is none.
    """

    video: Tensor
    audio: Tensor | None
    classes: dict[str, float]
    video_psnr: float
    audio_psnr: float | None


def is_autoencoder(model: PerceiverIO) -> bool:
    """Returns whether a model reads and decodes a clip's video, alone or with its sound, its label or both."""
    names = set(model.outputs)
    return (
        "video" in names <= {"video", "audio", "label"}
        and names == set(model.inputs)
        and isinstance(model.outputs["video"], VideoOutput)
    )


@torch.no_grad()
def autoencode(
    model: PerceiverIO | str | Path,
    clip: str | Path,
    out: str | Path | None = None,
    start: float = 0.0,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = False,
) -> Autoencoded:
    """Encodes a clip once, its label masked, and decodes all of it from the latents (section 4.3).

    Args:
        model, device, dtype: as in `load_for_inference`.
        clip: any file with video that PyAV reads; as many frames as the model has, 25 a second, and their sound.
        out: a video to write: the clip on the left, what was decoded on the right, with the decoded sound.
        start: seconds into the file.
        progress: show a bar.

    Raises:
        PerceiversError: the file cannot be read or is too short, `out` cannot be written, or the model is of
            another kind.
    """
    if out is not None:
        check_video_path(out)
        check_folder(out)
    model = load_for_inference(model, device, dtype)
    video_in, _ = find_adapter(model.inputs, VideoInput, "autoencode")
    video_out, pixels = find_adapter(model.outputs, VideoOutput, "autoencode")
    window = window_of(model)
    frames, height, width = pixels.positions.grid
    audio_in, audio_out = (
        find_adapter(parts, kind, "autoencode")[0] if window.samples else None
        for parts, kind in ((model.inputs, AudioInput), (model.outputs, AudioOutput))
    )
    labels = [name for name, part in model.inputs.items() if isinstance(part, LabelInput)]
    label_out = find_adapter(model.outputs, LabelOutput, "autoencode")[0] if labels else None

    read = read_clip(clip, start, frames, FRAME_RATE, (height, width), window.sample_rate)
    if audio_in is not None and read.audio is None:
        log.warning("%s has no sound: silence takes its place.", clip)
    device_ = get_device(model)
    heard = torch.zeros(window.samples or 0) if read.audio is None else read.audio
    data = {name: torch.zeros(1, dtype=torch.long, device=device_) for name in labels}
    data[video_in] = read.video[None].to(device_)
    if audio_in is not None:
        data[audio_in] = heard[None].to(device_)
    encoded = model.encode(data, {name: torch.ones(1, 1, dtype=torch.bool, device=device_) for name in labels})
    answers = model.decode(encoded, dict.fromkeys(name for name in (audio_out, label_out) if name is not None))
    points = torch.arange(frames * height * width, device=device_).split(height * width)
    decoded = [
        model.decode(encoded, {video_out: frame})[video_out][0].float().cpu()
        for frame in tqdm(points, "frames", disable=None if progress else True)
    ]
    video = torch.stack(decoded).unflatten(1, (height, width)).movedim(-1, 1).clamp(0, 1)
    audio = None if audio_out is None else answers[audio_out][0].float().cpu().clamp(-1, 1)
    classes = {} if label_out is None else rank_classes(answers[label_out][0], class_names(model, label_out))
    original = read.video.float() / 255
    if out is not None:
        write_video(out, side_by_side(original, video), FRAME_RATE, audio, window.sample_rate)
    audio_psnr = None if audio is None or read.audio is None else psnr(audio, heard)
    return Autoencoded(video, audio, classes, psnr(video, original), audio_psnr)


def side_by_side(original_TCYX: Tensor, decoded_TCYX: Tensor) -> Tensor:
    """Frames with colors in [0, 1] beside those that were decoded; -> bytes [T, C, Y, 2 X]."""
    return torch.cat([original_TCYX, decoded_TCYX], -1).mul(255).round().byte()


def compression(model: PerceiverIO) -> float:
    """How many times larger the inputs are than the latents, as the paper counts (section 5).

    Its 88x are the 50,176 patches of video of 704 channels, positions and padding among them, over 784 latents of 512.
    """
    _, video = find_adapter(model.inputs, VideoInput, "autoencode")
    return math.prod(video.positions.grid) * model.input_padding.channels / model.encoder.latents.numel()


def psnr(decoded: Tensor, original: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, for a peak of 1; infinite if there is no difference."""
    return -10 * float((decoded - original).square().mean().log10())
