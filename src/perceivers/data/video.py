"""Reads video: clips of a fixed frame rate and size with their sound, or all frames of a file.

Timestamps are exact fractions of a second on the clock of the file, which need not start at 0 and is the same for
frames and sound; times that users give count from the first frame.

Shape suffixes: T frames, C colors, Y rows, X columns, S samples
"""

import io
import math
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
import torch
from av.container import InputContainer
from av.stream import Disposition
from PIL import Image
from torch import Tensor

from perceivers.data.image_files import evaluation_view, to_tensor
from perceivers.errors import PerceiversError
from perceivers.files import check_count, require_file

BT709 = 1  # the colors that players assume; the code is the same for matrix, primaries and transfer
MILLISECOND = Fraction(1, 1000)  # tick of the coarsest clock that rounds; those of AVI and GIF are coarser, but exact
DECODER_WARMUP = Fraction(1, 10)  # seconds of sound to decode in advance: the first packets of a decoder can be wrong
GAP_THRESHOLD = 0.02  # seconds; a smaller difference of timestamps is rounding, a larger one a gap in the sound
MAX_MISSING_AUDIO = 0.1  # seconds of sound that may be missing at the end


@dataclass(frozen=True)
class Clip:
    """A part of a video: frames, bytes [T, 3, Y, X], RGB, and mono sound, [S] in [-1, 1], or None without sound."""

    video: Tensor
    audio: Tensor | None


@dataclass(frozen=True)
class Content:
    """The bytes of a file in memory, and its name in messages."""

    data: bytes
    name: str

    def __str__(self) -> str:
        return self.name


Media = str | Path | Content
"""A video or audio file: its path or its content."""


@dataclass(frozen=True)
class Frames:
    """All frames of a video, bytes [3, Y, X], RGB, to iterate over once; their average rate; their number, if known."""

    frames: Iterator[Tensor]
    rate: Fraction
    count: int | None


class ClipTimeline(NamedTuple):
    """The timing of a file in seconds on its clock, and whether it has video and sound, if these are read.

    `origin` is the time of the first frame, or else of the first sound; timestamps can be off by `rounding`.
    """

    origin: Fraction
    duration: Fraction
    frame_duration: Fraction
    rounding: Fraction
    has_video: bool
    has_audio: bool


def measure(media: Media, read_video: bool, read_audio: bool) -> ClipTimeline:
    """Returns the timing of a file; raises a PerceiversError if it has nothing to read."""
    with open_media(media) as container:
        videos = video_streams(container)[:1] if read_video else []
        sounds = list(container.streams.audio[:1]) if read_audio else []
        streams: list[av.VideoStream | av.AudioStream] = [*videos, *sounds]
        if not streams:
            needed = " or ".join(["video"] * read_video + ["sound"] * read_audio)
            raise PerceiversError(f"{media} has no {needed}: leave it out, or give another file.")
        frames = with_timestamps(container, streams[0])
        first = next(frames, None)
        if first is None:
            raise PerceiversError(f"{media} has no decodable frames with timestamps: leave it out, or repair it.")
        origin = timestamp(first)
        duration = Fraction(container.duration or 0, av.time_base)
        duration = duration or max(timestamp(frame) for frame in [first, *frames]) - origin
        frame_duration = 1 / frame_rate(videos[0]) if videos else Fraction(0)
        rounding = min((streams[0].time_base or 0) / Fraction(2), MILLISECOND / 2)
        return ClipTimeline(origin, duration, frame_duration, rounding, bool(videos), bool(sounds))


def read_clip(
    path: str | Path,
    start: float = 0.0,
    frames: int = 16,
    rate: float = 25.0,
    size: int | tuple[int, int] = 224,
    sample_rate: int = 48000,
) -> Clip:
    """Reads a part of a video, resampled to a fixed frame rate, frame size and sample rate.

    Args:
        path: a video file.
        start: seconds after the first frame of the file.
        frames: number of frames, each the one that the file shows at that time.
        rate: frames per second.
        size: height and width, or one number for both; frames are resized (bicubic) and center-cropped.
        sample_rate: samples per second of the sound, `round(frames / rate * sample_rate)` in all; the mean of the
            channels, and silence before the sound of the file begins.

    Raises:
        PerceiversError: the file does not exist, cannot be read or has no video, the clip exceeds it, or its sound
            ends 0.1 s or more before the clip does.
    """
    if not 0 <= start < math.inf:
        raise PerceiversError(f"start = {start} is not allowed for {path}: it must be 0 or more seconds.")
    if frames < 1 or not 0 < rate < math.inf:
        raise PerceiversError(f"{frames} frames at {rate} per second of {path} are not allowed: both must be above 0.")
    shape = (size, size) if isinstance(size, int) else size
    timeline = measure(path, read_video=True, read_audio=False)
    begin = timeline.origin + Fraction(start)
    times = [begin + timeline.rounding + k / Fraction(rate) for k in range(frames)]
    video, end = read_frames_at(path, timeline, begin, times, shape)
    if len(video) < frames:
        raise clip_too_short_error(f"{path} lasts", float(end - timeline.origin), start, frames / rate)
    sound = read_sound(path, begin, timeline.origin, round(frames / rate * sample_rate), sample_rate)
    if sound is None:
        return Clip(torch.stack(video), None)
    duration = sound.end / sample_rate
    if frames / rate - duration >= MAX_MISSING_AUDIO:
        raise clip_too_short_error(f"The sound of {path} lasts", start + duration, start, frames / rate)
    return Clip(torch.stack(video), sound.samples)


def read_frames(path: str | Path) -> Frames:
    """Reads all frames of a video in their original size, one at a time, or raises a PerceiversError.

    Damage in a later part of the file is reported when the iteration reaches it.
    """

    def decode_all() -> Iterator[Tensor]:
        with open_media(path) as container:
            size: torch.Size | None = None
            for frame in container.decode(video_stream(container, path)):
                picture_CYX = to_tensor(Image.fromarray(to_rgb(frame)))
                if size not in (None, picture_CYX.shape):
                    raise PerceiversError(f"{path} has frames of different sizes: convert it to one size.")
                size = picture_CYX.shape
                yield picture_CYX

    with open_media(path) as container:
        stream = video_stream(container, path)
        return Frames(decode_all(), frame_rate(stream), stream.frames or None)


@contextmanager
def open_media(media: Media) -> Iterator[InputContainer]:
    """Opens a file for decoding, and turns errors of av into one sentence."""
    if not isinstance(media, Content):
        require_file(media)
    try:
        source = io.BytesIO(media.data) if isinstance(media, Content) else media
        with av.open(source, "r", metadata_errors="ignore") as container:
            yield container
    except av.FFmpegError as error:
        raise PerceiversError(
            f"{media} cannot be read as a video ({error.strerror}): it is truncated, damaged or not a video."
        ) from error


def video_streams(container: InputContainer) -> list[av.VideoStream]:
    """Returns the video streams of a known codec, without cover art, which is stored as a video."""
    found = (stream for stream in container.streams.video if stream.codec_context is not None)
    streams = [stream for stream in found if not stream.disposition & Disposition.attached_pic]
    for stream in streams:
        check_count(container.name or "the video", stream.width * stream.height, "pixels in a frame")
    return streams


def video_stream(container: InputContainer, media: Media) -> av.VideoStream:
    """Returns the first video stream."""
    streams = video_streams(container)
    if not streams:
        raise PerceiversError(f"{media} has no video: give a file with a video stream.")
    return streams[0]


def frame_rate(stream: av.VideoStream) -> Fraction:
    """Returns the average frames per second."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def timestamp(frame: av.VideoFrame | av.AudioFrame) -> Fraction:
    """Returns the time in seconds at which a frame begins."""
    assert frame.pts is not None
    assert frame.time_base is not None
    return frame.pts * frame.time_base


def with_timestamps(container: InputContainer, stream: av.VideoStream | av.AudioStream) -> Iterator[Any]:
    """Decodes the frames that have a timestamp."""
    return (frame for frame in container.decode(stream) if frame.pts is not None)


def decode_from(media: Media, kind: Literal["video", "audio"], begin: Fraction, origin: Fraction) -> Iterator[Any]:
    """Decodes frames, starting at or before a time, or at the first frame of the file if that is later."""
    for earlier in (0, 10, None) if begin > origin else (None,):  # seconds: a seek can land later than requested
        with open_media(media) as container:
            if kind == "audio" and not container.streams.audio:
                return
            stream = video_stream(container, media) if kind == "video" else container.streams.audio[0]
            if earlier is not None:
                with suppress(av.FFmpegError):  # then decoding starts at the beginning
                    container.seek(round((begin - earlier) / (stream.time_base or 1)), stream=stream)
            frames = with_timestamps(container, stream)
            first = next(frames, None)
            if first is not None and (earlier is None or timestamp(first) <= begin):
                yield first
                yield from frames
                return


def frame_intervals(frames: Iterator[av.VideoFrame], duration: Fraction) -> Iterator[tuple[av.VideoFrame, Fraction]]:
    """Yields each frame with the time until which it is shown; `duration` is for a last frame without its own."""
    frame = next(frames)
    for following in frames:
        yield frame, timestamp(following)
        frame = following
    yield frame, timestamp(frame) + (frame.duration * (frame.time_base or 0) or duration)


def to_rgb(frame: av.VideoFrame) -> np.ndarray[Any, Any]:
    """Returns upright RGB bytes [Y, X, 3]."""
    pixels_YXC = frame.to_ndarray(format="rgb24", threads=1)
    return np.ascontiguousarray(np.rot90(pixels_YXC, round(frame.rotation / 90)))


def resize_frame(frame: av.VideoFrame, size: tuple[int, int]) -> Tensor:
    """Returns a resized and center-cropped frame, bytes [3, Y, X]."""
    return to_tensor(evaluation_view(Image.fromarray(to_rgb(frame)), size, 1.0))


def clip_too_short_error(subject: str, duration: float, start: float, requested: float) -> PerceiversError:
    """Returns the error for a clip that ends after its file."""
    latest = math.floor((duration - requested) * 100) / 100
    advice = f"start at {latest:.2f} s or before" if latest >= 0 else "ask for fewer frames, or more per second"
    clip = f"the clip is from {start:.2f} s to {start + requested:.2f} s"
    return PerceiversError(f"{subject} {duration:.2f} s, but {clip}: {advice}.")


def read_frames_at(
    media: Media, timeline: ClipTimeline, begin: Fraction, times: list[Fraction], size: tuple[int, int]
) -> tuple[list[Tensor], Fraction]:
    """Returns the frames [C, Y, X] shown at some times, up to the end of the file, and the end of the last one."""
    video: list[Tensor] = []
    end = timeline.origin
    frames = decode_from(media, "video", begin, timeline.origin)
    for frame, end in frame_intervals(frames, timeline.frame_duration):
        repeats = bisect_left(times, end) - len(video)
        if repeats > 0:
            video += [resize_frame(frame, size)] * repeats
        if len(video) == len(times):
            break
    return video, end


def read_all_frames(media: Media, timeline: ClipTimeline, size: tuple[int, int]) -> tuple[list[Tensor], list[Fraction]]:
    """Returns all frames [C, Y, X] of a file, and the times until which they are shown."""
    decoded = decode_from(media, "video", timeline.origin, timeline.origin)
    pairs = [(resize_frame(frame, size), end) for frame, end in frame_intervals(decoded, timeline.frame_duration)]
    return [frame for frame, _ in pairs], [end for _, end in pairs]


class Sound(NamedTuple):
    """Samples [S], silent outside the range from `begin` to `end` (exclusive), which may exceed the last sample."""

    samples: Tensor
    begin: int
    end: int


def read_sound(media: Media, begin: Fraction, origin: Fraction, count: int, sample_rate: int) -> Sound | None:
    """Returns `count` samples of sound that start at a time; None if the file has no sound from then on."""
    sound_S = np.zeros(count, dtype=np.float32)
    resampler = av.AudioResampler("fltp", rate=sample_rate)
    first: int | None = None
    index: int | None = None
    for frame in chain(decode_from(media, "audio", begin - DECODER_WARMUP, origin), [None]):
        for chunk in filter(None, resampler.resample(frame)):  # flushing with None can return [None]
            wave_S = chunk.to_ndarray().mean(axis=0)  # av's own mix of stereo to mono is louder than its parts
            stated = round((timestamp(chunk) - begin) * sample_rate)
            if index is None or abs(stated - index) > GAP_THRESHOLD * sample_rate:
                index = stated
            first = index if first is None else first
            low, high = max(index, 0), min(index + len(wave_S), count)
            if low < high:
                sound_S[low:high] = wave_S[low - index : high - index]
            index += len(wave_S)
        if index is not None and index >= count:
            break
    if first is None or index is None:
        return None
    if np.isnan(sound_S).any():
        raise PerceiversError(f"the sound of {media} has NaN samples: use another file.")
    return Sound(torch.from_numpy(sound_S.clip(-1, 1)), max(first, 0), index)
