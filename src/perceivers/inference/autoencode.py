"""A clip with sound through a few hundred latents and back: `perceivers autoencode`.

Shape suffixes: T frames, C colours, Y rows, X columns, S samples, K classes
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from perceivers.adapters.audio import AudioInput, AudioOutput
from perceivers.adapters.label import LabelInput, LabelOutput
from perceivers.adapters.video import VideoInput, VideoOutput
from perceivers.data.video import check_video_path, read_clip, write_video
from perceivers.inference.classify_image import class_names
from perceivers.inference.prepare import check_folder, device_of, only, prepare, rank
from perceivers.model.perceiver_io import PerceiverIO

RATE = 25
"""Frames a second (section 4.3)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Autoencoded:
    """What a model makes of a clip.

    Attributes:
        video: float [T, 3, Y, X] in [0, 1].
        audio: float [S] in [-1, 1].
        classes: probabilities of the classes, most probable first.
        video_psnr: peak signal-to-noise ratio of the video in dB, of colours in [0, 1].
        audio_psnr: the same of the sound, of samples in [-1, 1] with a peak of 1; None if the clip has no sound.
    """

    video: Tensor
    audio: Tensor
    classes: dict[str, float]
    video_psnr: float
    audio_psnr: float | None


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
        model, device, dtype: as in `perceivers.inference.prepare`.
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
    model = prepare(model, device, dtype)
    video_in, audio_in, label_in = (
        only(model.inputs, kind, "autoencode")[0] for kind in (VideoInput, AudioInput, LabelInput)
    )
    video_out, pixels = only(model.outputs, VideoOutput, "autoencode")
    audio_out, sound = only(model.outputs, AudioOutput, "autoencode")
    label_out, _ = only(model.outputs, LabelOutput, "autoencode")
    frames, height, width = pixels.positions.grid
    samples = sound.patch * sound.positions.grid[0]
    sample_rate = samples * RATE // frames

    read = read_clip(clip, start, frames, RATE, (height, width), sample_rate)
    if read.audio is None:
        log.warning("%s has no sound: silence takes its place.", clip)
    original = read.video.float() / 255
    device_ = device_of(model)
    heard = torch.zeros(samples) if read.audio is None else read.audio
    encoded = model.encode(
        {
            video_in: read.video[None].to(device_),
            audio_in: heard[None].to(device_),
            label_in: torch.zeros(1, dtype=torch.long, device=device_),
        },
        masked={label_in: torch.ones(1, 1, dtype=torch.bool, device=device_)},
    )
    answers = model.decode(encoded, {audio_out: None, label_out: None})
    points = torch.arange(frames * height * width, device=device_).split(height * width)
    decoded = [
        model.decode(encoded, {video_out: frame})[video_out][0].float().cpu()
        for frame in tqdm(points, "frames", disable=None if progress else True)
    ]
    video = torch.stack(decoded).unflatten(1, (height, width)).movedim(-1, 1).clamp(0, 1)
    audio = answers[audio_out][0].float().cpu().clamp(-1, 1)
    classes = rank(answers[label_out][0], class_names(model, label_out))
    if out is not None:
        both = torch.cat([original, video], -1).mul(255).round().byte()
        write_video(out, both, RATE, audio, sample_rate)
    audio_psnr = None if read.audio is None else psnr(audio, heard)
    return Autoencoded(video, audio, classes, psnr(video, original), audio_psnr)


def psnr(decoded: Tensor, original: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, for a peak of 1; infinite if there is no difference."""
    return -10 * float((decoded - original).square().mean().log10())
