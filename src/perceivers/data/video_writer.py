"""Writes videos with their sound, and sound alone. Shape suffixes: T frames, C colors, Y rows, X columns, S samples."""

import math
import wave
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import chain, zip_longest
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.container import OutputContainer
from torch import Tensor

from perceivers.data.video import BT709
from perceivers.errors import PerceiversError
from perceivers.model.saving import atomic_write

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
"""Suffixes of files that can be written, and their formats in av."""
QUALITY = {"libx264": {"crf": "18"}, "mpeg4": {"flags": "+qscale", "global_quality": "354"}}
"""Encoders and their options for little visible loss; the second is for builds of av without the first."""


def write_sound(path: str | Path, audio_S: Tensor, sample_rate: int) -> None:
    """Writes mono sound, [S] in [-1, 1], as a .wav file of 16 bits, completely or not at all.

    Raises:
        PerceiversError: the path does not end in .wav.
    """
    check_sound_path(path)
    samples_S = audio_S.detach().cpu().float().clamp(-1, 1).mul(32767).round().numpy().astype("<i2")

    def write_to(file: Path) -> None:
        with wave.open(str(file), "wb") as output:
            output.setnchannels(1)
            output.setsampwidth(2)
            output.setframerate(sample_rate)
            output.writeframes(samples_S.tobytes())

    atomic_write(Path(path), write_to)


def check_sound_path(path: str | Path) -> None:
    """Raises a PerceiversError unless a path ends in .wav."""
    if Path(path).suffix.lower() != ".wav":
        raise PerceiversError(f"{path} cannot be written as sound: it must end in .wav.")


def check_video_path(path: str | Path) -> None:
    """Raises a PerceiversError unless videos can be written with the suffix of a path."""
    if Path(path).suffix.lower() not in CONTAINERS:
        raise PerceiversError(f"{path} cannot be written as a video: it must end in {', '.join(CONTAINERS)}.")


def write_video(
    path: str | Path,
    frames: Iterable[Tensor],
    rate: float | Fraction,
    audio: Tensor | None = None,
    sample_rate: int = 48000,
) -> None:
    """Writes a video, H.264 and AAC, completely or not at all, and overwrites an earlier one.

    Args:
        path: ends in .mp4, .mkv or .mov.
        frames: bytes [3, Y, X], RGB, of the same size; one is held at a time. Odd sizes grow by a row or column.
        rate: frames per second.
        audio: mono sound, [S] in [-1, 1].
        sample_rate: samples per second of the sound.

    Raises:
        PerceiversError: the suffix is unknown, the rate is 0, there are no frames or frames of different sizes, or the
            path cannot be written to.
    """
    path = Path(path)
    if not 0 < rate < math.inf:
        raise PerceiversError(f"rate = {rate} is not allowed for {path}: it must be above 0 frames per second.")
    check_video_path(path)

    def write_to(file: Path) -> None:
        try:
            with av.open(file, "w", format=CONTAINERS[path.suffix.lower()]) as container:
                encode(container, iter(frames), Fraction(rate).limit_denominator(1001), audio, sample_rate, path)
        except av.FFmpegError as error:
            raise PerceiversError(f"cannot write {path}: {error.strerror}; choose another path or rate.") from error

    atomic_write(path, write_to)


def encode(
    file: OutputContainer, frames: Iterator[Tensor], rate: Fraction, audio: Tensor | None, sample_rate: int, path: Path
) -> None:
    """Writes frames and sound to a container, interleaved, since players read both at once."""
    first = next(frames, None)
    if first is None:
        raise PerceiversError(f"there are no frames to write to {path}.")
    codec: Literal["libx264", "mpeg4"] = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    height, width = first.shape[-2:]
    video = file.add_stream(codec, rate, options=QUALITY[codec])
    video.width, video.height, video.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    video.colorspace = video.color_primaries = video.color_trc = BT709
    pieces: Sequence[Tensor] = []
    if audio is not None:
        sound = file.add_stream("aac", sample_rate, layout="mono")
        pieces = audio.detach().cpu().float().clamp(-1, 1).split(math.ceil(sample_rate / rate))
    samples_done = 0
    for index, (frame, piece_S) in enumerate(zip_longest(chain([first], frames), pieces)):
        if frame is not None:
            if frame.shape != first.shape:
                raise PerceiversError(
                    f"frame {index} for {path} has shape {list(frame.shape)}, but the first has {list(first.shape)}."
                )
            file.mux(video.encode(make_video_frame(frame, index, rate)))
        if piece_S is not None:
            file.mux(sound.encode(make_audio_frame(piece_S, samples_done, sample_rate)))
            samples_done += len(piece_S)
    file.mux(video.encode(None))
    if audio is not None:
        file.mux(sound.encode(None))


def make_video_frame(frame_CYX: Tensor, index: int, rate: Fraction) -> av.VideoFrame:
    """Returns a frame for the encoder, which needs even sizes."""
    pixels_YXC = frame_CYX.cpu().permute(1, 2, 0).numpy()
    height, width, _ = pixels_YXC.shape
    pixels_YXC = np.pad(pixels_YXC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_YXC), "rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, threads=1)
    frame.pts, frame.time_base = index, 1 / rate
    return frame


def make_audio_frame(wave_S: Tensor, index: int, sample_rate: int) -> av.AudioFrame:
    """Returns samples for the encoder; `index` is that of the first one."""
    frame = av.AudioFrame.from_ndarray(wave_S[None].numpy(), "fltp", "mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, index, Fraction(1, sample_rate)
    return frame
