"""Encodes a clip with sound to a few hundred latents and decodes it: `perceivers autoencode`.

Shape suffixes: T frames, C colors, Y rows, X columns, S samples
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
from perceivers.clips.model import FRAME_RATE, get_window
from perceivers.data.video import read_clip
from perceivers.data.video_writer import check_video_path, write_video
from perceivers.inference import (
    check_answers,
    check_folder,
    class_names,
    find_adapter,
    get_device,
    load_for_inference,
    rank_classes,
)
from perceivers.model.perceiver_io import PerceiverIO

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Autoencoded:
    """The reconstruction of a clip.

    Attributes:
        video: float [T, 3, Y, X] in [0, 1].
        audio: float [S] in [-1, 1]; None if the model has no sound.
        classes: probabilities of the classes, most probable first; empty if the model has no label.
        video_psnr: peak signal-to-noise ratio in dB, of colors in [0, 1].
        audio_psnr: the same of samples in [-1, 1], for a peak of 1; None without sound.
    """

    video: Tensor
    audio: Tensor | None
    classes: dict[str, float]
    video_psnr: float
    audio_psnr: float | None


def is_autoencoder(model: PerceiverIO) -> bool:
    """Returns whether a model reads and decodes video, alone or with sound, a label or both."""
    names = set(model.outputs)
    has_video = "video" in names and isinstance(model.outputs["video"], VideoOutput)
    return has_video and set(model.inputs) == names <= {"video", "audio", "label"}


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
    """Encodes a clip once, with the label hidden, and decodes all of it from the latents (section 4.3).

    Args:
        model, device, dtype: as in `load_for_inference`.
        clip: any video file that PyAV can read; resampled to the number of frames of the model at 25 per second.
        out: a video to write: the clip on the left, the decoded one on the right, with the decoded sound.
        start: seconds into the file.
        progress: show a bar.

    Raises:
        PerceiversError: the file cannot be read or is too short, `out` cannot be written, or the model is no
            autoencoder.
    """
    if out is not None:
        check_video_path(out)
        check_folder(out)
    model = load_for_inference(model, device, dtype)
    video_in, _ = find_adapter(model.inputs, VideoInput, "autoencode")
    video_out, pixels = find_adapter(model.outputs, VideoOutput, "autoencode")
    window = get_window(model)
    frames, height, width = pixels.positions.grid
    audio_in = find_adapter(model.inputs, AudioInput, "autoencode")[0] if window.samples else None
    audio_out = find_adapter(model.outputs, AudioOutput, "autoencode")[0] if window.samples else None
    labels = [name for name, part in model.inputs.items() if isinstance(part, LabelInput)]
    label_out = find_adapter(model.outputs, LabelOutput, "autoencode")[0] if labels else None

    original = read_clip(clip, start, frames, FRAME_RATE, (height, width), window.sample_rate)
    if audio_in is not None and original.audio is None:
        log.warning("%s has no sound: silence is used instead.", clip)
    device_ = get_device(model)
    sound = torch.zeros(window.samples or 0) if original.audio is None else original.audio
    data = {name: torch.zeros(1, dtype=torch.long, device=device_) for name in labels}
    data[video_in] = original.video[None].to(device_)
    if audio_in is not None:
        data[audio_in] = sound[None].to(device_)
    encoded = model.encode(data, {name: torch.ones(1, 1, dtype=torch.bool, device=device_) for name in labels})
    others = [name for name in (audio_out, label_out) if name is not None]
    predicted = check_answers(model.decode(encoded, dict.fromkeys(others)))
    pixels_of_frames = torch.arange(frames * height * width, device=device_).split(height * width)
    decoded = [
        check_answers(model.decode(encoded, {video_out: indices}))[video_out][0].float().cpu()
        for indices in tqdm(pixels_of_frames, "frames", disable=None if progress else True)
    ]
    video = torch.stack(decoded).unflatten(1, (height, width)).movedim(-1, 1).clamp(0, 1)
    audio = None if audio_out is None else predicted[audio_out][0].float().cpu().clamp(-1, 1)
    classes = {} if label_out is None else rank_classes(predicted[label_out][0], class_names(model, label_out))
    target = original.video.float() / 255
    if out is not None:
        write_video(out, hstack_frames(target, video), FRAME_RATE, audio, window.sample_rate)
    audio_psnr = None if audio is None or original.audio is None else psnr(audio, sound)
    return Autoencoded(video, audio, classes, psnr(video, target), audio_psnr)


def hstack_frames(original_TCYX: Tensor, decoded_TCYX: Tensor) -> Tensor:
    """Puts original and decoded frames in [0, 1] side by side; returns bytes [T, C, Y, 2 X]."""
    return torch.cat([original_TCYX, decoded_TCYX], -1).mul(255).round().byte()


def compression(model: PerceiverIO) -> float:
    """Returns the ratio of the size of the video input to that of the latents, as the paper counts (section 5).

    Its 88x is the ratio of 50,176 patches of 704 channels, including positions and padding, to 784 latents of 512.
    """
    _, video = find_adapter(model.inputs, VideoInput, "autoencode")
    return math.prod(video.positions.grid) * model.input_padding.channels / model.encoder.latents.numel()


def psnr(decoded: Tensor, original: Tensor) -> float:
    """Returns the peak signal-to-noise ratio in dB, for a peak of 1; infinite if there is no difference."""
    return -10 * float((decoded - original).square().mean().log10())
