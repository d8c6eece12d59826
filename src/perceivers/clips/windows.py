"""Windows of clips with video, sound or both, as tensors of a fixed size.

A clip may lack video or sound, or be shorter than the window: masks tell what is real.

Shape suffixes: T frames, Y rows, X columns, S samples
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from perceivers.clips.model import Window
from perceivers.data.video import ClipTimeline, Media, Sound, measure, read_all_frames, read_frames_at, read_sound


@dataclass(frozen=True)
class ClipWindow:
    """The contents of a window of a clip.

    Attributes:
        video: bytes [T, 3, Y, X]; black where masked. None if the window has no frames.
        video_mask: bool [T]: True for frames that the clip has.
        audio: [S] in [-1, 1]; 0 where masked. None if the window has no sound.
        audio_mask: bool [S]: True for samples that the clip has.
    """

    video: Tensor | None
    video_mask: Tensor | None
    audio: Tensor | None
    audio_mask: Tensor | None


def read_window(media: Media, window: Window, position: float) -> ClipWindow:
    """Reads a window of a clip.

    `position` goes from 0, at the beginning of the clip, to 1, at its end. A clip shorter than the window lies at
    the beginning of the window for 0, and at its end for 1.

    Raises:
        PerceiversError: the clip cannot be read, or has neither the video nor the sound of the window.
    """
    timeline = measure(media, window.frames is not None, window.samples is not None)
    origin = timeline.origin
    begin, times = locate(window, timeline, position)
    before = sum(time < origin for time in times)
    frames: list[Tensor] = []
    if timeline.has_video:
        frames, _ = read_frames_at(media, timeline, max(begin, origin), times[before:], window.size)
    index_T = torch.arange(len(times))
    video_mask = (index_T >= before) & (index_T < before + len(frames))
    count = window.samples or 0
    sound = read_sound(media, begin, origin, count, window.sample_rate) if timeline.has_audio else None
    return assemble_window(window, stack_frames(frames, window), video_mask, sound, 0)


@dataclass(frozen=True)
class DecodedClip:
    """A decoded clip: its frames, bytes [N, 3, Y, X], the times until which they are shown, and its sound, if any."""

    timeline: ClipTimeline
    frames: Tensor
    ends: list[Fraction]
    sound: Sound | None

    @property
    def bytes(self) -> int:
        """Memory of the frames and the sound."""
        return self.frames.nbytes + (0 if self.sound is None else self.sound.samples.nbytes)

    def window_at(self, window: Window, position: float) -> ClipWindow:
        """Returns the same frames as `read_window`, and the same samples up to a shift of less than one sample.

        The size of the frames and the sample rate of the window must be those that were decoded.
        """
        origin = self.timeline.origin
        begin, times = locate(window, self.timeline, position)
        frame_T = torch.tensor([bisect_right(self.ends, time) for time in times], dtype=torch.long)
        is_after_origin = torch.tensor([time >= origin for time in times], dtype=torch.bool)
        video_mask = (frame_T < len(self.ends)) & is_after_origin
        first = round((begin - origin) * window.sample_rate)
        return assemble_window(window, self.frames[frame_T[video_mask]], video_mask, self.sound, first)


def decode_clip(media: Media, window: Window, max_bytes: float) -> DecodedClip | None:
    """Decodes a whole clip, unless it needs more than `max_bytes`; raises the errors of `read_window`."""
    timeline = measure(media, window.frames is not None, window.samples is not None)
    origin, frame_duration = timeline.origin, timeline.frame_duration
    count = math.ceil(timeline.duration * window.sample_rate)
    size = 3 * math.prod(window.size) * timeline.duration / frame_duration if timeline.has_video else 0
    if size + (4 * count if timeline.has_audio else 0) > max_bytes:
        return None
    frames, ends = read_all_frames(media, timeline, window.size) if timeline.has_video else ([], [])
    sound = read_sound(media, origin, origin, count, window.sample_rate) if timeline.has_audio else None
    return DecodedClip(timeline, stack_frames(frames, window), ends, sound)


def locate(window: Window, timeline: ClipTimeline, position: float) -> tuple[Fraction, list[Fraction]]:
    """Returns the time at which a window begins, and the times of its frames; `position` as in `read_window`."""
    begin = timeline.origin + Fraction(position) * (timeline.duration - window.seconds)
    return begin, [begin + timeline.rounding + k / Fraction(window.rate) for k in range(window.frames or 0)]


def assemble_window(window: Window, frames: Tensor, video_mask: Tensor, sound: Sound | None, first: int) -> ClipWindow:
    """Puts frames where the mask is True, and sound, whose sample `first` is the first one of the window."""
    video, audio, audio_mask = None, None, None
    if window.frames is not None:
        video = torch.zeros(window.frames, 3, *window.size, dtype=torch.uint8)
        video[video_mask] = frames
    if window.samples is not None:
        audio, audio_mask = torch.zeros(window.samples), torch.zeros(window.samples, dtype=torch.bool)
        if sound is not None:
            low = max(first, sound.begin, 0)
            high = min(first + window.samples, sound.end, len(sound.samples))
            if low < high:
                audio[low - first : high - first] = sound.samples[low:high]
                audio_mask[low - first : high - first] = True
    return ClipWindow(video, None if video is None else video_mask, audio, audio_mask)


def stack_frames(frames: list[Tensor], window: Window) -> Tensor:
    """Returns frames as one tensor [N, 3, Y, X], also if there are none."""
    return torch.stack(frames) if frames else torch.empty(0, 3, *window.size, dtype=torch.uint8)
