"""Clips and their classes, from folders, lists, data sets or one long clip, as batches of windows.

Shape suffixes: B batch, K classes
"""

import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from perceivers.checks import Checked, Count, ProperFraction, Range
from perceivers.clips.augmentation import SoundAugmentation
from perceivers.clips.lists import collect_classes, read_classes, read_list
from perceivers.clips.model import Window
from perceivers.clips.windows import ClipWindow, DecodedClip, decode_clip, read_window
from perceivers.data.labeled import Labeled, LabeledSamples, Splits, random_split
from perceivers.data.labeled_files import (
    find_parts,
    open_evaluation,
    open_splits,
    open_unlabeled,
    read_splits,
    read_unlabeled,
)
from perceivers.data.loader import SampleIndex
from perceivers.data.splits import Part, choose_splits
from perceivers.data.video import Content, Media, measure
from perceivers.errors import PerceiversError
from perceivers.files import find_files, require_file
from perceivers.inference import class_names
from perceivers.model.perceiver_io import PerceiverIO

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"})


@dataclass(frozen=True)
class LabeledClips(Labeled):
    """Clips with class labels; `multilabel`: several classes can apply to a clip at once."""

    noun, suffixes, features = "clip", AUDIO_SUFFIXES | VIDEO_SUFFIXES, ("Audio", "Video")
    multilabel: bool = False

    def media(self, index: int) -> Media:
        """Returns the file of a clip."""
        source = self.source.open(self.indices[index])
        return source if isinstance(source, str | Path) else Content(source.getvalue(), self.describe(index))

    def target(self, index: int) -> Tensor:
        """Returns the class index of a clip or, for several classes, [K] with 1 for each of them."""
        label = torch.tensor(self.labels[index], dtype=torch.long)
        return torch.zeros(len(self.classes)).index_fill_(0, label, 1) if self.multilabel else label


@dataclass
class ClipData(Checked):
    """The clips of a run.

    Attributes:
        path: a folder with a folder of clips for each class, directly or under train/ and val/; any folder of clips,
            if lists give their classes; a folder of parquet files; or the name of a data set on the Hub. Without
            classes: any folder of clips or of parquet files, or a single clip, some windows of which are held out.
        training_list: CSV file of clips and their classes, such as those of Kinetics and AudioSet (see `read_list`).
        evaluation_list: the same for evaluation; by default, a fraction of the training list is held out.
        class_list: the classes: class_labels_indices.csv of AudioSet, or a text file with one per line; by default
            those of the training list.
        skip_missing: skip clips of the lists that are not in the folder.
        validation_fraction: fraction of the clips, or of the windows of a single clip, to evaluate on if there is no
            evaluation split.
        validation_filter: evaluate on the rows of a data set whose columns have these values, such as
            {speaker: theo}, instead of on its evaluation split.
        clip_column: column of a Hugging Face data set that holds the sound or video; by default found by its type.
        label_column: column that holds the labels; by default found by its type.
        windows_per_epoch: number of windows at random positions of each clip in an epoch of training.
        windows: number of evenly spaced windows of each clip in evaluation; their predictions are averaged.
        cache_gb: gigabytes of decoded clips that each data-loading worker caches (first come, first kept).
    """

    section = "data."

    path: str = ""
    training_list: str | None = None
    evaluation_list: str | None = None
    class_list: str | None = None
    skip_missing: bool = False
    validation_fraction: ProperFraction = 0.1
    validation_filter: dict[str, Any] = field(default_factory=dict)
    clip_column: str | None = None
    label_column: str | None = None
    windows_per_epoch: Count = 1
    windows: Count = 1
    cache_gb: Annotated[float, Range(least=0)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training_list is None and (self.evaluation_list is not None or self.class_list is not None):
            raise PerceiversError("data.training_list is not given: the other lists need it.")
        if self.training_list is not None and self.validation_filter:
            raise PerceiversError(
                "data.validation_filter is for data sets with columns, but data.training_list is set."
            )

    def open(self, labeled: bool = True) -> Splits[LabeledClips]:
        """Finds the clips, or raises a PerceiversError; without labels, all have class 0."""
        root = Path(self.path)
        if not self.path:
            raise PerceiversError("data.path is not given: it is a folder of clips.")
        if not labeled:
            return split_unlabeled(root, self.validation_fraction, self.clip_column)
        if self.training_list is None:
            columns = (self.clip_column, self.label_column)
            return open_splits(LabeledClips, self.path, self.validation_fraction, *columns, self.validation_filter)
        training = Path(self.training_list)
        given = self.class_list
        classes = collect_classes(read_list(training)) if given is None else read_classes(Path(given))
        clips = listed_clips(training, root, classes, self.skip_missing)
        if self.evaluation_list is None:
            return random_split(clips, self.validation_fraction)
        return Splits(clips, listed_clips(Path(self.evaluation_list), root, classes, self.skip_missing))

    def datasets(
        self, splits: Splits[LabeledClips], window: Window, augmentation: SoundAugmentation | None = None
    ) -> tuple["ClipDataset", "ClipDataset"]:
        """Returns the windows for training, which are augmented, and for evaluation."""
        spans, positions = [(0.0, 1.0)], evenly_spaced(self.windows)
        if os.path.isfile(self.path):
            spans, positions = hold_out_windows(self.path, window, self.validation_fraction)
        per_clip, cache_bytes = self.windows_per_epoch, 1e9 * self.cache_gb
        training = ClipDataset(splits.training, window, None, per_clip, spans, cache_bytes, augmentation)
        return training, ClipDataset(splits.evaluation, window, positions)


def open_evaluation_clips(
    model: PerceiverIO, path: str, split: str | None = None, validation_fraction: float | None = None
) -> tuple[LabeledClips, Part]:
    """Finds the clips to evaluate a model on, see `open_evaluation`; they need no labels if it predicts none."""
    if "label" in model.outputs:
        return open_evaluation(LabeledClips, path, split, validation_fraction)
    return open_unlabeled(LabeledClips, path, split)


def open_listed_clips(
    model: PerceiverIO, root: Path, path: Path, classes: str | None, split: str | None
) -> tuple[LabeledClips, Part]:
    """Finds the clips of a list, see `listed_clips`, to evaluate a model on; `classes` is a file or None."""
    if "label" not in model.outputs:
        raise PerceiversError("--list gives the classes of clips, but this model has no label: omit it.")
    choose_splits((), split, path)
    known = {name: name for name in class_names(model)} if classes is None else read_classes(Path(classes))
    clips = listed_clips(path, root, known, skip_missing=False)
    return clips, Part("clip", len(clips), len(clips))


def listed_clips(path: Path, root: Path, classes: Mapping[str, str], skip_missing: bool) -> LabeledClips:
    """Finds the clips of a list, see `read_list`, in a folder; `classes` gives names of the classes in the list."""
    clips = read_list(path)
    if not os.path.isdir(root):
        raise PerceiversError(f"data.path = {root} is not a folder: give the one with the clips of the lists.")
    labels, files = clips.class_indices(classes), clips.find_files(root, LabeledClips.suffixes, skip_missing)
    pairs = [(file, label) for file, label in zip(files, labels, strict=True) if file is not None]
    if not pairs:
        raise PerceiversError(f"{root} has none of the clips of {path}.")
    found = [label if clips.multilabel else label[0] for _, label in pairs]
    unlabeled = LabeledClips.from_files([file for file, _ in pairs])
    return replace(unlabeled, classes=list(classes.values()), labels=found, multilabel=clips.multilabel)


def split_unlabeled(path: Path, validation_fraction: float, column: str | None = None) -> Splits[LabeledClips]:
    """Returns all clips of a folder, or of its parquet files, in splits, or a single clip as both splits."""
    if not os.path.isdir(path):
        return Splits(find_clips(path), find_clips(path))
    whole, parts = find_parts(str(path))

    def read(part: Any, _: list[str] | None) -> LabeledClips:
        return find_clips(part) if isinstance(part, Path) else read_unlabeled(LabeledClips, part, str(path), column)

    splits = read_splits(parts, whole, read, validation_fraction)
    if len(splits.training) + len(splits.evaluation) < 2:
        raise PerceiversError(f"{path} has only one clip: give its path, and some of its windows are held out.")
    return splits


def find_clips(path: Path) -> LabeledClips:
    """Returns all clips of a folder, or a single clip, without classes; raises a PerceiversError if there are none."""
    if not os.path.exists(path):
        raise PerceiversError(f"{path} is neither a folder of clips nor a clip.")
    files = find_files(path, LabeledClips.suffixes, report=True) if path.is_dir() else [require_file(path)]
    if not files:
        raise PerceiversError(f"{path} has no clips: files such as .mp4, .mkv and .wav are expected below it.")
    return LabeledClips.from_files(files)


def evenly_spaced(windows: int) -> list[float]:
    """Returns the positions of windows of a clip."""
    return [0.5] if windows == 1 else [number / (windows - 1) for number in range(windows)]


def hold_out_windows(path: str, window: Window, fraction: float) -> tuple[list[tuple[float, float]], list[float]]:
    """Divides a clip into adjacent windows and holds out every n-th, or raises a PerceiversError if it is too short.

    Returns the ranges of positions of windows that do not overlap those held out, and the positions of the latter.
    """
    count = int(measure(path, window.frames is not None, window.samples is not None).duration // window.seconds)
    step = max(2, round(1 / fraction))
    held_out = list(range(step // 2, count, step))
    between = [(before + 1, after - 1) for before, after in pairwise([-1, *held_out, count])]
    if count < 3 or not held_out:
        raise PerceiversError(
            f"{path} has {count} windows of {float(window.seconds):.2f} s, too few to hold out a fraction of "
            f"{fraction}: give a longer clip, or another data.validation_fraction."
        )
    spans = [(low / (count - 1), high / (count - 1)) for low, high in between if low <= high]
    return spans, [index / (count - 1) for index in held_out]


class ClipDataset(LabeledSamples):
    """Windows of clips, as batches of "label" [B] or [B, K], "clip" [B], its index, and the tensors of `ClipWindow`.

    Args:
        window: the part of a clip that the model reads.
        positions: of the windows of each clip, see `read_window`; None for random ones.
        windows_per_clip: number of windows of each clip, one after another, if positions are random.
        spans: ranges of random positions.
        cache_bytes: bytes of decoded clips to cache.
        augmentation: of training windows.
    """

    def __init__(
        self,
        clips: LabeledClips,
        window: Window,
        positions: Sequence[float] | None = None,
        windows_per_clip: int = 1,
        spans: Sequence[tuple[float, float]] = ((0.0, 1.0),),
        cache_bytes: float = 0,
        augmentation: SoundAugmentation | None = None,
    ) -> None:
        self.augmentation = augmentation
        self.clips, self.window, self.positions, self.spans = clips, window, positions, spans
        self.windows_per_clip = windows_per_clip if positions is None else len(positions)
        self.free_bytes, self.cache = cache_bytes, dict[int, DecodedClip]()

    def __len__(self) -> int:
        return len(self.clips) * self.windows_per_clip

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        clip, index = divmod(item.sample, self.windows_per_clip)
        generator = torch.Generator().manual_seed(item.seed)
        position = self.draw_position(generator) if self.positions is None else self.positions[index]
        window = self.window if self.augmentation is None else self.augmentation.draw_window(self.window, generator)
        try:
            seen = self.read_window(clip, window, position)
        except PerceiversError as error:
            return {"problem": str(error)}
        if self.augmentation is not None:
            seen = self.augmentation.augment_sound(seen, self.window, generator)
        tensors = {name: value for name, value in vars(seen).items() if value is not None}
        return {"label": self.clips.target(clip), "clip": clip, **tensors}

    def read_window(self, clip: int, window: Window, position: float) -> ClipWindow:
        """Reads a window of a clip, which is decoded as a whole and cached if there is room."""
        if clip not in self.cache and self.free_bytes > 0:
            decoded = decode_clip(self.clips.media(clip), self.window, self.free_bytes)
            if decoded is not None:
                self.cache[clip] = decoded
                self.free_bytes -= decoded.bytes
        if clip in self.cache:
            return self.cache[clip].window_at(window, position)
        return read_window(self.clips.media(clip), window, position)

    def draw_position(self, generator: torch.Generator) -> float:
        """Draws a position, uniformly over the spans."""
        ends = list(accumulate(high - low for low, high in self.spans))
        if not ends[-1]:  # each is a single position
            return self.spans[int(torch.randint(len(ends), (), generator=generator))][0]
        reached = float(torch.rand((), generator=generator)) * ends[-1]
        span = bisect_left(ends, reached)
        return self.spans[span][1] - (ends[span] - reached)
