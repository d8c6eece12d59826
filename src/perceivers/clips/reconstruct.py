"""Encodes a clip with sound to a few hundred latents and decodes it: `perceivers autoencode`.

Shape suffixes: B windows, T frames, C colors, Y rows, X columns, S samples
"""

import logging
import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers.adapters.audio import AudioInput, AudioOutput
from perceivers.adapters.label import LabelInput, LabelOutput
from perceivers.adapters.video import VideoInput, VideoOutput
from perceivers.clips.distances import psnr, snr
from perceivers.clips.model import FRAME_RATE, get_window
from perceivers.data.video import measure, read_clip, read_sound
from perceivers.data.video_writer import check_sound_path, check_video_path, write_sound, write_video
from perceivers.errors import PerceiversError
from perceivers.inference import (
    check_answers,
    check_folder,
    class_names,
    find_adapter,
    get_device,
    load_for_inference,
    rank_classes,
)
from perceivers.model.adapter import InputArray
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.progress import track

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Autoencoded:
    """The reconstruction of a clip.

    Attributes:
        video: float [T, 3, Y, X] in [0, 1]; None if the model has no video.
        audio: float [S] in [-1, 1]; None if the model has no sound.
        classes: probabilities of the classes, most probable first; empty if the model has no label.
        video_psnr: peak signal-to-noise ratio in dB, of colors in [0, 1]; None without video.
        audio_psnr: the same of samples in [-1, 1], for a peak of 1; None without sound.
        audio_snr: signal-to-noise ratio of the sound in dB; None without sound.
    """

    video: Tensor | None
    audio: Tensor | None
    classes: dict[str, float]
    video_psnr: float | None
    audio_psnr: float | None
    audio_snr: float | None


def is_autoencoder(model: PerceiverIO) -> bool:
    """Returns whether a model reads and decodes video, sound or both, and possibly a label."""
    kinds = {"video": VideoOutput, "audio": AudioOutput, "label": LabelOutput}
    names = set(model.outputs)
    is_known = all(isinstance(output, kinds.get(name, ())) for name, output in model.outputs.items())
    return is_known and set(model.inputs) == names and not names.isdisjoint({"video", "audio"})


@torch.no_grad()
def autoencode(
    model: PerceiverIO | str | Path,
    clip: str | Path,
    out: str | Path | None = None,
    start: float = 0.0,
    device: str | None = None,
    dtype: str | None = None,
) -> Autoencoded:
    """Encodes a clip once, with the label hidden, and decodes all of it from the latents (section 4.3).

    A model of sound alone encodes and decodes all of a file, window after window.

    Args:
        model, device, dtype: as in `load_for_inference`.
        clip: any file that PyAV can read; video is resampled to the number of frames of the model at 25 per second.
        out: a video to write: the clip on the left, the decoded one on the right, with the decoded sound; for a model
            of sound alone, the decoded sound as .wav.
        start: seconds into the file.

    Raises:
        PerceiversError: the file cannot be read or is too short, `out` cannot be written, or the model is no
            autoencoder.
    """
    is_sound = out is not None and Path(out).suffix.lower() == ".wav"
    if out is not None:
        (check_sound_path if is_sound else check_video_path)(out)
        check_folder(out)
    model = load_for_inference(model, device, dtype)
    if is_autoencoder(model) and "video" not in model.outputs:
        if out is not None:
            check_sound_path(out)
        return autoencode_sound(model, clip, out, start)
    if is_sound and "video" in model.outputs:
        raise PerceiversError(f"{out} is for sound, but the model decodes video: name a file such as out.mp4.")
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
        for indices in track(pixels_of_frames, "frames")
    ]
    video = torch.stack(decoded).unflatten(1, (height, width)).movedim(-1, 1).clamp(0, 1)
    audio = None if audio_out is None else predicted[audio_out][0].float().cpu().clamp(-1, 1)
    classes = {} if label_out is None else rank_classes(predicted[label_out][0], class_names(model, label_out))
    target = original.video.float() / 255
    if out is not None:
        write_video(out, hstack_frames(target, video), FRAME_RATE, audio, window.sample_rate)
    video_psnr = float(psnr(video, target))
    if audio is None or original.audio is None:
        return Autoencoded(video, audio, classes, video_psnr, None, None)
    return Autoencoded(video, audio, classes, video_psnr, float(psnr(audio, sound)), float(snr(audio, sound)))


def autoencode_sound(model: PerceiverIO, clip: str | Path, out: str | Path | None, start: float) -> Autoencoded:
    """Reconstructs the sound of a file from a time on, window after window; arguments as in `autoencode`."""
    if not 0 <= start < math.inf:
        raise PerceiversError(f"start = {start} is not allowed for {clip}: it must be 0 or more seconds.")
    window, device = get_window(model), get_device(model)
    length = window.samples or 0
    timeline = measure(clip, read_video=False, read_audio=True)
    count = round((timeline.duration - Fraction(start)) * window.sample_rate)
    sound = (
        None
        if count < 1
        else read_sound(clip, timeline.origin + Fraction(start), timeline.origin, count, window.sample_rate)
    )
    if sound is None or sound.end < 1:
        raise PerceiversError(f"{clip} has no sound after {start} s: choose an earlier --start.")
    original_S = sound.samples[: sound.end]
    padding = -len(original_S) % length
    sound_BS = F.pad(original_S, (0, padding)).unflatten(0, (-1, length))
    mask_BS = F.pad(torch.ones_like(original_S, dtype=torch.bool), (0, padding)).unflatten(0, (-1, length))
    hidden = {name: torch.ones(1, 1, dtype=torch.bool, device=device) for name in model.inputs if name == "label"}
    labels = {name: torch.zeros(1, dtype=torch.long, device=device) for name in hidden}
    decoded: list[Tensor] = []
    for sound_1S, mask_1S in track(list(zip(sound_BS.split(1), mask_BS.split(1), strict=True)), "windows"):
        encoded = model.encode({"audio": InputArray(sound_1S.to(device), mask_1S.to(device)), **labels}, hidden)
        decoded.append(check_answers(model.decode(encoded, {"audio": None}))["audio"][0].float().cpu())
    audio_S = torch.cat(decoded)[: len(original_S)].clamp(-1, 1)
    if out is not None:
        write_sound(out, audio_S, window.sample_rate)
    scores = (float(score(audio_S, original_S)) for score in (psnr, snr))
    return Autoencoded(None, audio_S, {}, None, *scores)


def hstack_frames(original_TCYX: Tensor, decoded_TCYX: Tensor) -> Tensor:
    """Puts original and decoded frames in [0, 1] side by side; returns bytes [T, C, Y, 2 X]."""
    return torch.cat([original_TCYX, decoded_TCYX], -1).mul(255).round().byte()


def compression(model: PerceiverIO) -> float:
    """Returns the ratio of the size of the input to that of the latents.

    For video, as the paper counts (section 5): its 88x is the ratio of 50,176 patches of 704 channels, including
    positions and padding, to 784 latents of 512. For sound alone, the ratio of samples to numbers in the latents.
    """
    size = get_window(model).samples or 0
    if "video" in model.inputs:
        _, video = find_adapter(model.inputs, VideoInput, "autoencode")
        size = math.prod(video.positions.grid) * model.input_padding.channels
    return size / model.encoder.latents.numel()
