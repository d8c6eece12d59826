"""Clips with pictures, sound or both, and their classes: what a model sees of each, as tensors of one size.

A clip may lack one of the two, or be shorter than what the model sees: masks say what is there.

Shape suffixes: B batch, T frames, C colours, Y rows, X columns, S samples
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor
from torch.utils.data import Dataset

from perceivers.data.labelled_files import Labelled, Splits, open_splits
from perceivers.data.loader import Item
from perceivers.data.video import (
    MILLISECOND,
    Content,
    Media,
    frame_rate,
    moment,
    opened,
    read_pictures,
    read_sound,
    timed,
    video_streams,
)
from perceivers.model.errors import PerceiversError

SOUNDS = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"})
VIDEOS = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"})


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
    with opened(media) as container:
        pictures = video_streams(container)[:1] if window.frames is not None else []
        sounds = list(container.streams.audio[:1]) if window.samples is not None else []
        streams: list[av.VideoStream | av.AudioStream] = [*pictures, *sounds]
        if not streams:
            wanted = " or ".join(
                ["moving pictures"] * (window.frames is not None) + ["sound"] * (window.samples is not None)
            )
            raise PerceiversError(f"{media} has no {wanted}: leave it out, or give another clip.")
        leading = streams[0]
        frames = timed(container, leading)
        first = next(frames, None)
        if first is None:
            raise PerceiversError(f"{media} is empty, or nothing of it can be decoded: leave it out.")
        origin = moment(first)
        length = Fraction(container.duration, av.time_base) if container.duration else None
        usual = 1 / frame_rate(pictures[0]) if pictures else Fraction(0)
        slack = min((leading.time_base or 0) / Fraction(2), MILLISECOND / 2)
        if length is None:
            length = max(moment(frame) for frame in [first, *frames]) - origin
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
        sound = read_sound(media, begin, origin, window.samples, window.sample_rate) if sounds else None
        if sound is not None:
            audio = sound.samples
            heard[sound.begin : max(sound.end, 0)] = True
            if not audio.isfinite().all():
                raise PerceiversError(f"the sound of {media} has NaN or infinite samples: leave it out.")
    return Seen(video, shown, audio, heard)


@dataclass(frozen=True)
class LabelledClips(Labelled):
    """Clips with class labels."""

    noun, suffixes, features = "clip", SOUNDS | VIDEOS, ("Audio", "Video")

    def read(self, index: int, window: Window, place: float) -> Seen:
        """What a window shows of a clip, see `read_window`."""
        source = self.source.open(self.indices[index])
        media = source if isinstance(source, str | Path) else Content(source.getvalue(), self.describe(index))
        return read_window(media, window, place)


@dataclass
class ClipData:
    """Which labelled clips to use.

    Attributes:
        path: a folder with a folder of clips for each class, directly or under train/ and val/; a folder of parquet
            files; or the name of a data set on the hub.
        held_out: part of the clips to evaluate on where the data set has no split of its own for that.
        clip_column: column of a Hugging Face data set that holds the sound or video; found by its type, if not given.
        label_column: column that holds the labels; likewise.
        windows: of a clip in evaluation, evenly spaced, whose answers are averaged.
    """

    path: str = ""
    held_out: float = 0.1
    clip_column: str | None = None
    label_column: str | None = None
    windows: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1:
            raise PerceiversError(f"data.held_out = {self.held_out} is not allowed: it is a part between 0 and 1.")
        if self.windows < 1:
            raise PerceiversError(f"data.windows = {self.windows} is not allowed: it must be at least 1.")

    def open(self) -> Splits[LabelledClips]:
        """Finds the clips.

        Raises:
            PerceiversError: there are none, or only one class.
        """
        if not self.path:
            raise PerceiversError("data.path is not given: it is a folder of clips.")
        return open_splits(LabelledClips, self.path, self.held_out, self.clip_column, self.label_column)


class ClipDataset(Dataset[dict[str, Any]]):
    """Windows of labelled clips.

    Args:
        clips: the clips.
        window: what the model sees.
        windows: of each clip, evenly spaced, one after another; None for one at a random place, in training.
    """

    def __init__(self, clips: LabelledClips, window: Window, windows: int | None) -> None:
        self.clips, self.window, self.windows = clips, window, windows

    def __len__(self) -> int:
        return len(self.clips) * (self.windows or 1)

    def __getitem__(self, item: Item) -> dict[str, Any]:
        """A clip that cannot be read gives a "problem" instead."""
        clip, number = divmod(item.sample, self.windows or 1)
        if self.windows is None:
            place = float(torch.rand((), generator=torch.Generator().manual_seed(item.seed)))
        else:
            place = 0.5 if self.windows == 1 else number / (self.windows - 1)
        try:
            seen = self.clips.read(clip, self.window, place)
        except PerceiversError as error:
            return {"problem": str(error)}
        return {"seen": seen, "label": self.clips.labels[clip], "clip": clip}


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """-> "label" [B], "clip" [B], the number of each; "video", "shown", "audio", "heard" as in `Seen`; "problems".

    What a window does not have is left out, and so are clips that cannot be read: "problems" says which. A batch of
    which nothing could be read has "problems" alone.
    """
    good = [sample for sample in samples if "seen" in sample]
    batch: dict[str, Any] = {"problems": [sample["problem"] for sample in samples if "problem" in sample]}
    if good:
        for field in ("label", "clip"):
            batch[field] = torch.tensor([sample[field] for sample in good])
        for field in ("video", "shown", "audio", "heard"):
            if getattr(good[0]["seen"], field) is not None:
                batch[field] = torch.stack([getattr(sample["seen"], field) for sample in good])
    return batch
