"""Video files: clips of a fixed rate and size with their sound, all frames of a file, and files written from frames.

Moments are exact fractions of a second on the clock of the file, which need not begin at 0 and is the same for
pictures and sound; what users ask for counts from the first frame.

Shape suffixes: T frames, C colors, Y rows, X columns, S samples
"""

import io
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal, NamedTuple

from perceivers.extras import require_extra

require_extra("vision")

import av
import numpy as np
import torch
from av.container import InputContainer, OutputContainer
from av.stream import Disposition
from PIL import Image
from torch import Tensor

from perceivers.data.image_files import evaluation_view, to_tensor
from perceivers.errors import PerceiversError
from perceivers.model.saving import atomic_write

CONTAINERS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
"""Suffixes of files that can be written, and what av calls them."""
QUALITY = {"libx264": {"crf": "18"}, "mpeg4": {"flags": "+qscale", "global_quality": "354"}}
"""Encoders and their options for little visible loss; the second is for builds of av without the first."""
BT709 = 1  # the colors that players assume; the code is the same for matrix, primaries and transfer
MILLISECOND = Fraction(1, 1000)  # tick of the coarsest clock that rounds; those of AVI and GIF are coarser, but exact
LEAD = Fraction(1, 10)  # seconds of sound to decode before the wanted, since decoders begin with a wrong packet or two
JUMP = 0.02  # seconds: a smaller difference of timestamps is rounding, a larger one a gap in the sound
MISSING = 0.1  # seconds of sound that may be missing at the end


@dataclass(frozen=True)
class Clip:
    """A piece of a video.

    Attributes:
        video: frames, bytes [T, 3, Y, X], RGB.
        audio: mono sound of the same time, [S] in [-1, 1]; None if the file has none.
    """

    video: Tensor
    audio: Tensor | None


@dataclass(frozen=True)
class Content:
    """A file that is in memory.

    Attributes:
        data: its bytes.
        name: what messages call it.
    """

    data: bytes
    name: str

    def __str__(self) -> str:
        return self.name


Media = str | Path | Content
"""A file with pictures or sound: its path or its content."""


@dataclass(frozen=True)
class Frames:
    """All frames of a video.

    Attributes:
        frames: bytes [3, Y, X], RGB, one after another, to go through once.
        rate: frames a second, on average.
        count: number of frames, if the file says it.
    """

    frames: Iterator[Tensor]
    rate: Fraction
    count: int | None


def read_clip(
    path: str | Path,
    start: float = 0.0,
    frames: int = 16,
    rate: float = 25.0,
    size: int | tuple[int, int] = 224,
    sample_rate: int = 48000,
) -> Clip:
    """Reads a piece of a video, whatever the frame rate, frame size and sound of the file.

    Args:
        path: a video file.
        start: seconds after the first frame of the file.
        frames: number of frames, each the one that the file shows at its moment.
        rate: frames a second.
        size: height and width, or both; frames are resized (bicubic) and the middle is cut out.
        sample_rate: samples a second of the sound, of which there are `round(frames / rate * sample_rate)`; the mean
            of the channels. Silence stands where the sound begins later than the clip.

    Raises:
        PerceiversError: the file does not exist, cannot be read or has no video, the clip does not lie in it, or its
            sound ends 0.1 s or more before the clip does.
    """
    if not 0 <= start < math.inf:
        raise PerceiversError(f"start = {start} is not allowed for {path}: it is 0 or more seconds.")
    if frames < 1 or not 0 < rate < math.inf:
        raise PerceiversError(f"{frames} frames at {rate} a second of {path} are not allowed: both are more than 0.")
    shape = (size, size) if isinstance(size, int) else size
    with opened(path) as container:
        stream = video_stream(container, path)
        first = next(timed(container, stream), None)
        if first is None:
            raise PerceiversError(
                f"{path} has no frames with times that can be decoded: it is damaged, or a stream without a container."
            )
        origin, usual = moment(first), 1 / frame_rate(stream)
        slack = min((stream.time_base or 0) / Fraction(2), MILLISECOND / 2)  # files round moments to ticks of a clock
    begin = origin + Fraction(start)
    moments = [begin + slack + k / Fraction(rate) for k in range(frames)]
    views, end = read_pictures(path, begin, origin, usual, moments, shape)
    if len(views) < frames:
        raise too_short(f"{path} lasts", float(end - origin), start, frames / rate)
    sound = read_sound(path, begin, origin, round(frames / rate * sample_rate), sample_rate)
    if sound is None:
        return Clip(torch.stack(views), None)
    length = sound.end / sample_rate
    if frames / rate - length >= MISSING:
        raise too_short(f"The sound of {path} lasts", start + length, start, frames / rate)
    return Clip(torch.stack(views), sound.samples)


def read_frames(path: str | Path) -> Frames:
    """Reads all frames of a video at their own size, one at a time.

    Raises:
        PerceiversError: the file does not exist, cannot be read or has no video; if only a later part of it is
            damaged, when the frames come there.
    """
    with opened(path) as container:
        stream = video_stream(container, path)
        return Frames(every_frame(path), frame_rate(stream), stream.frames or None)


def every_frame(path: str | Path) -> Iterator[Tensor]:
    """The frames of `read_frames`."""
    with opened(path) as container:
        for frame in container.decode(video_stream(container, path)):
            yield to_tensor(Image.fromarray(pixels(frame)))


def check_video_path(path: str | Path) -> None:
    """Raises a PerceiversError unless a video can be written to a file of this suffix."""
    if Path(path).suffix.lower() not in CONTAINERS:
        raise PerceiversError(f"{path} is no name for a video: it has to end in {', '.join(CONTAINERS)}.")


def write_video(
    path: str | Path,
    frames: Iterable[Tensor],
    rate: float | Fraction,
    audio: Tensor | None = None,
    sample_rate: int = 48000,
) -> None:
    """Writes a video, H.264 and AAC, whole or not at all; what is there of an earlier one is replaced.

    Args:
        path: ends in .mp4, .mkv or .mov.
        frames: bytes [3, Y, X], RGB, of one size; only one at a time is held. Odd sizes grow by a row or column.
        rate: frames a second.
        audio: mono sound, [S] in [-1, 1].
        sample_rate: samples a second of the sound.

    Raises:
        PerceiversError: another suffix, a rate of 0, no frames, frames of different sizes, or the path cannot be
            written to.
    """
    path = Path(path)
    if not 0 < rate < math.inf:
        raise PerceiversError(f"rate = {rate} is not allowed for {path}: it is more than 0 frames a second.")
    check_video_path(path)

    def fill(file: Path) -> None:
        try:
            with av.open(file, "w", format=CONTAINERS[path.suffix.lower()]) as container:
                encode(container, iter(frames), Fraction(rate).limit_denominator(1001), audio, sample_rate, path)
        except av.FFmpegError as error:
            raise PerceiversError(f"cannot write {path}: {error.strerror}; choose another path or rate.") from error

    atomic_write(path, fill)


@contextmanager
def opened(media: Media) -> Iterator[InputContainer]:
    """A file to decode; what av finds wrong with it becomes one sentence."""
    if not isinstance(media, Content) and not Path(media).is_file():
        raise PerceiversError(f"{media} is not a file: give the path of a video.")
    try:
        with av.open(
            io.BytesIO(media.data) if isinstance(media, Content) else media, "r", metadata_errors="ignore"
        ) as container:
            yield container
    except av.FFmpegError as error:
        raise PerceiversError(
            f"{media} cannot be read as a video ({error.strerror}): it is truncated, damaged or something else."
        ) from error


def video_streams(container: InputContainer) -> list[av.VideoStream]:
    """Those with moving pictures; the cover of a record comes as a video too."""
    return [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]


def video_stream(container: InputContainer, media: Media) -> av.VideoStream:
    """The first with moving pictures."""
    streams = video_streams(container)
    if not streams:
        raise PerceiversError(f"{media} has no video: give a file with moving pictures.")
    return streams[0]


def frame_rate(stream: av.VideoStream) -> Fraction:
    """Frames a second, on average."""
    return stream.average_rate or stream.guessed_rate or Fraction(25)


def moment(frame: av.VideoFrame | av.AudioFrame) -> Fraction:
    """When a frame begins."""
    assert frame.pts is not None
    assert frame.time_base is not None
    return frame.pts * frame.time_base


def timed(container: InputContainer, stream: av.VideoStream | av.AudioStream) -> Iterator[Any]:
    """The frames that have a moment."""
    return (frame for frame in container.decode(stream) if frame.pts is not None)


def frames_from(media: Media, kind: Literal["video", "audio"], begin: Fraction, origin: Fraction) -> Iterator[Any]:
    """The frames from one at or before a moment on; from the first of the file, if that is later."""
    for earlier in (0, 10, None) if begin > origin else (None,):  # seconds: a seek can land later than it was told
        with opened(media) as container:
            if kind == "audio" and not container.streams.audio:
                return
            stream = video_stream(container, media) if kind == "video" else container.streams.audio[0]
            if earlier is not None:
                with suppress(av.FFmpegError):  # then it stays at the beginning
                    container.seek(round((begin - earlier) / (stream.time_base or 1)), stream=stream)
            frames = timed(container, stream)
            first = next(frames, None)
            if first is not None and (earlier is None or moment(first) <= begin):
                yield first
                yield from frames
                return


def spans(frames: Iterator[av.VideoFrame], usual: Fraction) -> Iterator[tuple[av.VideoFrame, Fraction]]:
    """Each frame with the moment until which it is shown; the last for its own time, or the usual if unknown."""
    frame = next(frames)
    for following in frames:
        yield frame, moment(following)
        frame = following
    yield frame, moment(frame) + (frame.duration * (frame.time_base or 0) or usual)


def pixels(frame: av.VideoFrame) -> np.ndarray[Any, Any]:
    """-> upright RGB bytes [Y, X, 3]."""
    pixels_YXC = frame.to_ndarray(format="rgb24", threads=1)
    return np.ascontiguousarray(np.rot90(pixels_YXC, round(frame.rotation / 90)))


def view(frame: av.VideoFrame, size: tuple[int, int]) -> Tensor:
    """A frame, resized and the middle cut out; -> bytes [3, Y, X]."""
    return to_tensor(evaluation_view(Image.fromarray(pixels(frame)), size, 1.0))


def too_short(what: str, length: float, start: float, wanted: float) -> PerceiversError:
    """The error for a clip that ends after the file."""
    latest = math.floor((length - wanted) * 100) / 100
    advice = f"start at {latest:.2f} s or before" if latest >= 0 else "ask for fewer frames, or more a second"
    return PerceiversError(
        f"{what} {length:.2f} s, but the clip is to go from {start:.2f} s to {start + wanted:.2f} s: {advice}."
    )


def read_pictures(
    media: Media, begin: Fraction, origin: Fraction, usual: Fraction, moments: list[Fraction], size: tuple[int, int]
) -> tuple[list[Tensor], Fraction]:
    """The frames [C, Y, X] that a file shows at some moments, as many as it has, and until when it shows the last."""
    views: list[Tensor] = []
    end = origin
    for frame, end in spans(frames_from(media, "video", begin, origin), usual):
        shown = bisect_left(moments, end) - len(views)
        if shown > 0:
            views += [view(frame, size)] * shown
        if len(views) == len(moments):
            break
    return views, end


class Sound(NamedTuple):
    """Samples [S] from a moment on, silence where the file has no sound; it has some from `begin` to before `end`.

    Both are numbers of samples, and may lie beyond the last.
    """

    samples: Tensor
    begin: int
    end: int


def read_sound(media: Media, begin: Fraction, origin: Fraction, count: int, sample_rate: int) -> Sound | None:
    """The sound of a file from a moment on; None if there is none."""
    sound_S = np.zeros(count, dtype=np.float32)
    resampler = av.AudioResampler("fltp", rate=sample_rate)
    first: int | None = None
    place: int | None = None
    for frame in chain(frames_from(media, "audio", begin - LEAD, origin), [None]):
        for chunk in filter(None, resampler.resample(frame)):  # it can answer [None] to the None that ends the sound
            wave_S = chunk.to_ndarray().mean(axis=0)  # its own mix of stereo to mono is louder than its parts
            stated = round((moment(chunk) - begin) * sample_rate)
            if place is None or abs(stated - place) > JUMP * sample_rate:
                place = stated
            first = place if first is None else first
            low, high = max(place, 0), min(place + len(wave_S), count)
            if low < high:
                sound_S[low:high] = wave_S[low - place : high - place]
            place += len(wave_S)
        if place is not None and place >= count:
            break
    if first is None or place is None:
        return None
    return Sound(torch.from_numpy(sound_S.clip(-1, 1)), max(first, 0), place)


def encode(
    container: OutputContainer,
    frames: Iterator[Tensor],
    rate: Fraction,
    audio: Tensor | None,
    sample_rate: int,
    path: Path,
) -> None:
    """Fills a container, the sound in step with the pictures, since players read both at once."""
    first = next(frames, None)
    if first is None:
        raise PerceiversError(f"There are no frames to write to {path}.")
    codec: Literal["libx264", "mpeg4"] = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    height, width = first.shape[-2:]
    picture = container.add_stream(codec, rate, options=QUALITY[codec])
    picture.width, picture.height, picture.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
    picture.colorspace = picture.color_primaries = picture.color_trc = BT709
    pieces: Sequence[Tensor] = []
    if audio is not None:
        sound = container.add_stream("aac", sample_rate, layout="mono")
        pieces = audio.detach().cpu().float().clamp(-1, 1).split(math.ceil(sample_rate / rate))
    done = 0
    for index, (frame, piece_S) in enumerate(zip_longest(chain([first], frames), pieces)):
        if frame is not None:
            if frame.shape != first.shape:
                raise PerceiversError(
                    f"Frame {index} for {path} has shape {list(frame.shape)}, but the first has {list(first.shape)}."
                )
            container.mux(picture.encode(picture_frame(frame, index, rate)))
        if piece_S is not None:
            container.mux(sound.encode(sound_frame(piece_S, done, sample_rate)))
            done += len(piece_S)
    container.mux(picture.encode(None))
    if audio is not None:
        container.mux(sound.encode(None))


def picture_frame(frame_CYX: Tensor, index: int, rate: Fraction) -> av.VideoFrame:
    """A frame for the encoder, which wants even sizes."""
    pixels_YXC = frame_CYX.cpu().permute(1, 2, 0).numpy()
    height, width, _ = pixels_YXC.shape
    pixels_YXC = np.pad(pixels_YXC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_YXC), "rgb24")
    frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, threads=1)
    frame.pts, frame.time_base = index, 1 / rate
    return frame


def sound_frame(wave_S: Tensor, done: int, sample_rate: int) -> av.AudioFrame:
    """Samples for the encoder, the first of them number `done`."""
    frame = av.AudioFrame.from_ndarray(wave_S[None].numpy(), "fltp", "mono")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, done, Fraction(1, sample_rate)
    return frame
