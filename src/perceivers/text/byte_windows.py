"""Windows of the bytes of text files, for causal models: nothing is left out of the text, and nothing is added.

Shape suffixes: B batch, M bytes that a model reads
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from perceivers.checks import Checked, Count, ProperFraction, check_field
from perceivers.data.loader import SampleIndex, Samples
from perceivers.errors import PerceiversError
from perceivers.files import require_file
from perceivers.text.documents import SUFFIXES, find_text_files


class ByteText:
    """The bytes of text files, one behind another, read from disk where they are needed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = [require_file(path) for path in paths]
        self.offsets = np.cumsum([0, *(path.stat().st_size for path in self.paths)])

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def read(self, start: int, end: int) -> NDArray[np.uint8]:
        """Returns the bytes from `start` to `end`."""
        parts = []
        first, last = np.searchsorted(self.offsets, (start, end - 1), "right") - 1
        for index in range(first, last + 1):
            offset = max(start - self.offsets[index], 0)
            count = min(end, self.offsets[index + 1]) - self.offsets[index] - offset
            parts.append(np.fromfile(self.paths[index], np.uint8, count, offset=offset))
            if len(parts[-1]) < count:
                raise PerceiversError(f"{self.paths[index]} is shorter than before: do not change it while it is read.")
        return np.concatenate(parts)


@dataclass
class ByteData(Checked):
    """Text for a causal model of bytes.

    Attributes:
        path: a text file, or a folder of text files, which are read in the order of their names.
        leave_out: patterns of names of text files that are not read.
        validation_fraction: fraction of all bytes, the last ones, that is held out for evaluation.
        stride: number of bytes that each window of an evaluation predicts, the last ones, while those before them are
            context; half of the latents by default.
        steps_per_epoch: updates between evaluations; since windows are drawn at random, these are called an epoch.
    """

    section = "data."

    path: str = ""
    leave_out: list[str] = field(default_factory=list)
    validation_fraction: ProperFraction = 0.1
    stride: Count | None = None
    steps_per_epoch: Count = 1000

    def open(self) -> ByteText:
        """Finds the text, or raises a PerceiversError."""
        if not self.path:
            raise PerceiversError("data.path is missing: give a text file, or a folder of text files.")
        files = find_text_files(self.path, self.leave_out)
        if not files:
            raise PerceiversError(
                f"{self.path} is neither a file nor a folder with text files ({', '.join(SUFFIXES)}): give one."
            )
        return ByteText(files)

    def split(self, text: ByteText) -> int:
        """Returns the number of bytes to train on; those after them are held out."""
        return int((1 - self.validation_fraction) * len(text))


@dataclass(eq=False)
class RandomWindows(Samples):
    """Windows from random places of a text; `windows` of them are an epoch.

    Args:
        text: the text.
        end: number of its bytes to train on, the first ones.
        length: M, number of bytes that the model reads; a window has one more, to predict.
        windows: number of windows of an epoch.

    Raises:
        PerceiversError: the text is shorter than a window.
    """

    text: ByteText
    end: int
    length: int
    windows: int

    def __post_init__(self) -> None:
        if self.end <= self.length:
            raise PerceiversError(
                f"the text to train on has {self.end} bytes, fewer than a window of {self.length + 1}: "
                f"give more text, or lower model.length."
            )

    def __len__(self) -> int:
        return self.windows

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        start = int(np.random.default_rng(item.seed).integers(self.end - self.length))
        return {"text": torch.from_numpy(self.text.read(start, start + self.length + 1))}


class Window(NamedTuple):
    """A window of a text: its first byte, the end, and how many of its last bytes are predicted."""

    start: int
    end: int
    predicted: int


class AllWindows(Samples):
    """The windows that predict every byte of a text but the first, each once.

    The first window predicts as many bytes as there are latents, and each further one the next `stride` bytes. So a
    byte is predicted from `length - stride + 1` to `length` bytes before it, of which `latents - stride + 1` to
    `latents` are latents, or from all there are near the beginning. The last window ends with the text.

    Args:
        text: the text.
        start: first byte of the part to predict; nothing before it is read.
        length, latents: of the model.
        stride: number of bytes to predict with a window.

    Raises:
        PerceiversError: the stride is larger than the number of latents, or the text has fewer than two bytes.
    """

    def __init__(self, text: ByteText, start: int, length: int, latents: int, stride: int) -> None:
        check_field("data.stride", stride, stride <= latents, f"at most {latents}, as many as the model has latents")
        self.text, total = text, len(text)
        if total - start < 2:
            raise PerceiversError(
                f"the text to evaluate has {total - start} bytes: give more text, or raise data.validation_fraction."
            )
        ends = [start + 1, *range(start + 1 + latents, total, stride), total]
        self.windows = [Window(max(start, end - 1 - length), end, end - last) for last, end in pairwise(ends)]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        return self.read([self.windows[item.sample]])

    def read(self, windows: Sequence[Window]) -> dict[str, Any]:
        """Returns "text" [B, M + 1] of windows of the same size, and "predicted", how many last bytes they predict."""
        text_BM = np.stack([self.text.read(window.start, window.end) for window in windows])
        return {"text": torch.from_numpy(text_BM), "predicted": windows[0].predicted}

    def loader(
        self, batch_size: int, seed: int | None = None, workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Any]:
        """Returns the batches of one process, each of windows of the same size: every `world_size`-th."""
        groups = [
            list(group) for _, group in groupby(self.windows, lambda each: (each.end - each.start, each.predicted))
        ]
        batches: Any = [
            group[index : index + batch_size] for group in groups for index in range(0, len(group), batch_size)
        ]
        return DataLoader(batches[rank::world_size], batch_size=None, collate_fn=self.read)
