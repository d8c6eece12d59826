"""Sounds and video clips. Their files are read with the extra "vision", which other columns do not need.

Shape suffixes: B batch, S samples, T frames, C colors, Y rows, X columns
"""

import base64
import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import torch
from PIL import Image as PillowImage
from torch import Tensor

from perceivers.adapters.audio import MelInput
from perceivers.adapters.video import VideoInput
from perceivers.checks import Count, Range, check_field
from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputAdapter, InputArray
from perceivers.model.positions import FourierPositions
from perceivers.tables.columns.column import Column
from perceivers.tables.columns.drawing import draw_lines, relative, split_bands
from perceivers.tables.columns.files import open_cell, read_some
from perceivers.tables.columns.image import above_mean, overlay, to_data_uri, to_pillow

if TYPE_CHECKING:
    from perceivers.data.video import Media

LONGEST = 10.0
"""Most seconds that are learned."""

LARGEST_PLAYED = 2**19
"""Most bytes of a sound file that a drawn cell holds to be played."""

MARKS = {"wav": (8, b"WAVE"), "flac": (0, b"fLaC"), "ogg": (0, b"OggS"), "mpeg": (0, b"ID3"), "mp4": (4, b"ftyp")}
"""The formats that browsers play, and the bytes by which a file is told to be of one, and where they are."""

SAMPLE = 200
"""Sounds whose duration is measured to learn how many seconds to read."""


class Sound(Column):
    """A sound file, read from its beginning, as a mel spectrogram in patches (section 4.6).

    Args:
        seconds: seconds that are read; learned: the longest of some training cells, at most 10.
        sample_rate: samples per second; others are resampled.
        bands: number of mel bands, a multiple of 16.
    """

    kind = "sound"
    is_raw = True

    def __init__(
        self,
        seconds: Annotated[float, Range(above=0)] | None = None,
        sample_rate: Annotated[int, Range(least=1000)] = 16000,
        bands: Count = 64,
    ) -> None:
        check_field("sound: bands", bands, bands % 16 == 0, "a multiple of 16")
        self.seconds, self.sample_rate, self.bands = seconds, sample_rate, bands
        self.hop = round(sample_rate / 100)  # ten milliseconds
        self.patches = max(1, -(-round((seconds or 1) * sample_rate) // (4 * self.hop)))

    def learn(self, cells: Iterable[Any], root: Path) -> Self:
        from perceivers.data.video import measure

        durations = read_some(cells, lambda cell: measure(open_media(cell, root), False, True).duration, SAMPLE)
        return self.change(seconds=self.seconds or min(LONGEST, float(max(durations))))

    def read(self, cell: Any, root: Path) -> Tensor:
        """Returns samples and which of them are real, [2, S]."""
        from perceivers.data.video import measure, read_sound

        media = open_media(cell, root)
        count = self.patches * 4 * self.hop
        origin = measure(media, False, True).origin
        sound = read_sound(media, origin, origin, count, self.sample_rate)
        if sound is None:
            raise PerceiversError(f"{media} has no sound")
        index_S = torch.arange(count)
        return torch.stack([sound.samples, ((index_S >= sound.begin) & (index_S < sound.end)).float()])

    def blank(self, is_target: bool = False) -> Tensor:
        silence_S = torch.zeros(self.patches * 4 * self.hop)
        return torch.stack([silence_S, torch.ones_like(silence_S)])  # real, so that the mask token takes its place

    def collate(self, values: Sequence[Tensor]) -> InputArray:
        sound_BS, mask_BS = torch.stack(list(values), 1)
        return InputArray(sound_BS, mask_BS.bool())

    def input_adapter(self, channels: int) -> InputAdapter:
        positions = FourierPositions((self.patches, self.bands // 16), bands=4)
        return MelInput((4, 16), positions, self.bands, self.hop, 4 * self.hop, self.sample_rate)

    def draw(self, cell: Any, root: Path, weights: Tensor | None = None) -> str:
        """Returns the waveform, with the weights of all bands of a patch of time as its background, and a player."""
        sound_S, is_real_S = self.read(cell, root)
        patch_T = None if weights is None else weights.reshape(self.patches, -1).sum(1)
        samples = sound_S[is_real_S.bool()].tolist() or [0.0]
        bands = split_bands(relative(patch_T, self.patches), 4 * self.hop)
        seconds = len(samples) / self.sample_rate
        return draw_lines([("front", 0, samples)], bands, f"sound of {seconds:.1f} s") + draw_player(cell, root)


class Video(Column):
    """A video clip: frames at even distances, cut into patches of space and time (section 4.3).

    Args:
        frames: number of frames, a multiple of 2.
        size: side in pixels to which frames are resized and cropped, a multiple of 8.
    """

    kind = "video"
    is_raw = True

    def __init__(self, frames: Count = 8, size: Count = 64) -> None:
        check_field("video: frames", frames, frames % 2 == 0, "a multiple of 2")
        check_field("video: size", size, size % 8 == 0, "a multiple of 8")
        self.frames, self.size = frames, size
        self.grid = (frames // 2, size // 8, size // 8)

    def read(self, cell: Any, root: Path) -> Tensor:
        """Returns bytes [T, C, Y, X]."""
        from perceivers.data.video import measure, read_frames_at

        media = open_media(cell, root)
        timeline = measure(media, True, False)
        begin, step = timeline.origin, timeline.duration / self.frames
        times = [begin + timeline.rounding + (index + Fraction(1, 2)) * step for index in range(self.frames)]
        found, _ = read_frames_at(media, timeline, begin, times, (self.size, self.size))
        if not found:
            raise PerceiversError(f"{media} has no frames")
        return torch.stack(found + [found[-1]] * (self.frames - len(found)))

    def blank(self, is_target: bool = False) -> Tensor:
        return torch.zeros(self.frames, 3, self.size, self.size, dtype=torch.uint8)

    def input_adapter(self, channels: int) -> InputAdapter:
        return VideoInput((2, 8, 8), FourierPositions(self.grid, bands=4))

    def draw(self, cell: Any, root: Path, weights: Tensor | None = None) -> str:
        """Returns a strip of the frames, red where weights are above their mean."""
        frames = [to_pillow(frame.movedim(0, -1) / 255) for frame in self.read(cell, root)]
        if weights is not None:
            heat_TYX = above_mean(weights).reshape(self.grid)
            frames = [overlay(frame, heat_TYX[index // 2]) for index, frame in enumerate(frames)]
        strip = PillowImage.new("RGB", (self.size * len(frames), self.size))
        for index, frame in enumerate(frames):
            strip.paste(frame, (self.size * index, 0))
        return f'<img class="strip" width="{max(640, strip.width)}" alt="" src="{to_data_uri(strip)}">'


def draw_player(cell: Any, root: Path) -> str:
    """Returns a player with the content of a sound file; nothing for a large file, or of an unknown format."""
    file = open_cell(cell, root)
    if (file.stat().st_size if isinstance(file, Path) else file.getbuffer().nbytes) > LARGEST_PLAYED:
        return ""
    content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
    kind = next((kind for kind, (at, mark) in MARKS.items() if content[at:].startswith(mark)), None)
    if kind is None:
        return ""
    return f'<audio controls src="data:audio/{kind};base64,{base64.b64encode(content).decode()}"></audio>'


def open_media(cell: Any, root: Path) -> "Media":
    """Returns the path or the content of the video or sound of a cell; errors are as in `open_cell`."""
    from perceivers.data.video import Content

    found = open_cell(cell, root)
    return Content(found.getvalue(), "the cell") if isinstance(found, io.BytesIO) else found
