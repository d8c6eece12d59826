"""Clips with pictures, sound or both: what a window shows of each, as tensors of one size.

A clip may lack one of the two, or be shorter than the window: masks say what is there.

Shape suffixes: T frames, Y rows, X columns, S samples
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import av
import torch
from torch import Tensor

from perceivers.data.video import (
    MILLISECOND,
    Media,
    Sound,
    frame_rate,
    frames_from,
    moment,
    opened,
    read_pictures,
    read_sound,
    spans,
    timed,
    video_streams,
    view,
)
from perceivers.errors import PerceiversError


@dataclass(frozen=True)
class Window:
    """What a model sees of a clip: frames and sound that begin at the same moment.

    Attributes:
        frames: how many; None: no video.
        size: their height and width in pixels; they are resized, and the middle is cut out.
        rate: frames a second.
        samples: of the sound, mono; None: no sound.
        sample_rate: samples a second.
    """

    frames: int | None = None
    size: tuple[int, int] = (224, 224)
    rate: float = 25.0
    samples: int | None = None
    sample_rate: int = 48000

    @property
    def seconds(self) -> Fraction:
        """How long the window is: the longer of both, if they differ."""
        video = Fraction(self.frames or 0) / Fraction(self.rate)
        return max(video, Fraction(self.samples or 0, self.sample_rate))


@dataclass(frozen=True)
class Seen:
    """What a window shows of a clip.

    Attributes:
        video: bytes [T, 3, Y, X]; black where `shown` is False. None if the window has no frames.
        shown: bool [T]: which frames the clip has.
        audio: [S] in [-1, 1]; 0 where `heard` is False. None if the window has no sound.
        heard: bool [S]: which samples the clip has.
    """

    video: Tensor | None
    shown: Tensor | None
    audio: Tensor | None
    heard: Tensor | None


class Extent(NamedTuple):
    """Where a clip lies on the clock of its file, and what of it a window can show.

    Attributes:
        origin: moment of its first frame, or of its first sound, if only that is to be shown.
        length: seconds.
        usual: seconds that a frame lasts, on average.
        slack: seconds by which moments in the file may be rounded.
        pictures, sound: whether it has what the window shows of these.
    """

    origin: Fraction
    length: Fraction
    usual: Fraction
    slack: Fraction
    pictures: bool
    sound: bool


def measure(media: Media, window: Window) -> Extent:
    """Finds out how long a clip is.

    Raises:
        PerceiversError: it cannot be read, or has nothing of what the window is to show.
    """
    with opened(media) as container:
        pictures = video_streams(container)[:1] if window.frames is not None else []
        sounds = list(container.streams.audio[:1]) if window.samples is not None else []
        streams: list[av.VideoStream | av.AudioStream] = [*pictures, *sounds]
        if not streams:
            wanted = " or ".join(
                ["moving pictures"] * (window.frames is not None) + ["sound"] * (window.samples is not None)
            )
            raise PerceiversError(f"{media} has no {wanted}: leave it out, or give another clip.")
        frames = timed(container, streams[0])
        first = next(frames, None)
        if first is None:
            raise PerceiversError(f"{media} is empty, or nothing of it can be decoded: leave it out.")
        origin = moment(first)
        usual = 1 / frame_rate(pictures[0]) if pictures else Fraction(0)
        slack = min((streams[0].time_base or 0) / Fraction(2), MILLISECOND / 2)
        if container.duration:
            length = Fraction(container.duration, av.time_base)
        else:
            length = max(moment(frame) for frame in [first, *frames]) - origin
    return Extent(origin, length, usual, slack, bool(pictures), bool(sounds))


def read_window(media: Media, window: Window, place: float) -> Seen:
    """Reads what a window shows of a clip.

    Args:
        media: the clip.
        window: what of it.
        place: where, from 0, at its beginning, to 1, at its end. A clip that is shorter than the window lies at the
            beginning of the window for 0, and at its end for 1.

    Raises:
        PerceiversError: the clip cannot be read, or has nothing of what the window is to show.
    """
    origin, length, usual, slack, pictures, has_sound = measure(media, window)
    begin = origin + Fraction(place) * (length - window.seconds)
    video = shown = audio = heard = None
    if window.frames is not None:
        video = torch.zeros(window.frames, 3, *window.size, dtype=torch.uint8)
        shown = torch.zeros(window.frames, dtype=torch.bool)
        if pictures:
            moments = [begin + slack + k / Fraction(window.rate) for k in range(window.frames)]
            before = sum(each < origin for each in moments)
            views, _ = read_pictures(media, max(begin, origin), origin, usual, moments[before:], window.size)
            if views:
                video[before : before + len(views)] = torch.stack(views)
            shown[before : before + len(views)] = True
    if window.samples is not None:
        audio, heard = torch.zeros(window.samples), torch.zeros(window.samples, dtype=torch.bool)
        sound = read_sound(media, begin, origin, window.samples, window.sample_rate) if has_sound else None
        check_sound(media, sound)
        if sound is not None:
            audio = sound.samples
            heard[sound.begin : max(sound.end, 0)] = True
    return Seen(video, shown, audio, heard)


@dataclass(frozen=True)
class Whole:
    """A clip decoded to what windows show of it, so that they are cut from memory.

    Attributes:
        extent: of the clip.
        window: what is cut.
        frames: bytes [N, 3, Y, X], all of the clip's, of the window's size.
        ends: the moments until which they are shown.
        sound: from the first frame on; None if there is none.
    """

    extent: Extent
    window: Window
    frames: Tensor
    ends: list[Fraction]
    sound: Sound | None

    @property
    def bytes(self) -> int:
        """What it takes of memory."""
        return self.frames.nbytes + (0 if self.sound is None else self.sound.samples.nbytes)

    def cut(self, place: float) -> Seen:
        """What `read_window` shows at a place; the same frames, and the same samples but for a part of one."""
        window, origin = self.window, self.extent.origin
        begin = origin + Fraction(place) * (self.extent.length - window.seconds)
        video = shown = audio = heard = None
        if window.frames is not None:
            video = torch.zeros(window.frames, 3, *window.size, dtype=torch.uint8)
            moments = [begin + self.extent.slack + k / Fraction(window.rate) for k in range(window.frames)]
            frame_T = torch.tensor([bisect_right(self.ends, each) for each in moments])
            shown = (frame_T < len(self.ends)) & torch.tensor([each >= origin for each in moments])
            video[shown] = self.frames[frame_T[shown]]
        if window.samples is not None:
            audio, heard = torch.zeros(window.samples), torch.zeros(window.samples, dtype=torch.bool)
            if self.sound is not None:
                first = round((begin - origin) * window.sample_rate)
                low = max(first, self.sound.begin, 0)
                high = min(first + window.samples, self.sound.end, len(self.sound.samples))
                if low < high:
                    audio[low - first : high - first] = self.sound.samples[low:high]
                    heard[low - first : high - first] = True
        return Seen(video, shown, audio, heard)


def read_whole(media: Media, window: Window, largest: float) -> Whole | None:
    """Decodes a clip whole, unless it takes more bytes than `largest`.

    Raises:
        PerceiversError: as in `read_window`.
    """
    extent = measure(media, window)
    count = math.ceil(extent.length * window.sample_rate)
    size = 3 * math.prod(window.size) * extent.length / extent.usual if extent.pictures else 0
    if size + (4 * count if extent.sound else 0) > largest:
        return None
    frames, ends = [], []
    if extent.pictures:
        for frame, end in spans(frames_from(media, "video", extent.origin, extent.origin), extent.usual):
            frames.append(view(frame, window.size))
            ends.append(end)
    sound = None
    if extent.sound:
        sound = read_sound(media, extent.origin, extent.origin, count, window.sample_rate)
        check_sound(media, sound)
    none = torch.empty(0, 3, *window.size, dtype=torch.uint8)
    return Whole(extent, window, torch.stack(frames) if frames else none, ends, sound)


def check_sound(media: Media, sound: Sound | None) -> None:
    """Raises a PerceiversError for samples that are no numbers."""
    if sound is not None and not sound.samples.isfinite().all():
        raise PerceiversError(f"the sound of {media} has NaN or infinite samples: leave it out.")
