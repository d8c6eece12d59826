"""Clips and their classes: from folders, lists or data sets, or one long clip by itself, to batches of windows.

Shape suffixes: B batch, T frames, Y rows, X columns, S samples, K classes
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from perceivers.checks import Checked, Count, ProperFraction, Range
from perceivers.clips.lists import check_found, classes_of, read_classes, read_list
from perceivers.clips.windows import Seen, Whole, Window, measure, read_whole, read_window
from perceivers.data.labelled_files import (
    EVALUATION_NAMES,
    TRAINING_NAMES,
    Files,
    Labelled,
    Splits,
    hold_out,
    open_splits,
)
from perceivers.data.loader import SampleIndex, Samples
from perceivers.data.video import Content, Media
from perceivers.errors import PerceiversError

SOUNDS = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"})
VIDEOS = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg"})


@dataclass(frozen=True)
class LabelledClips(Labelled):
    """Clips with class labels.

    Attributes:
        several: whether several classes can apply to a clip at once.
    """

    noun, suffixes, features = "clip", SOUNDS | VIDEOS, ("Audio", "Video")
    multilabel: bool = False

    def media(self, index: int) -> Media:
        """The file of a clip."""
        source = self.source.open(self.indices[index])
        return source if isinstance(source, str | Path) else Content(source.getvalue(), self.describe(index))

    def target(self, index: int) -> Tensor:
        """Class index of a clip; where there can be several, [K] with 1 for each."""
        label = torch.tensor(self.labels[index], dtype=torch.long)
        return torch.zeros(len(self.classes)).index_fill_(0, label, 1) if self.multilabel else label


@dataclass
class ClipData(Checked):
    """Which clips to use.

    Attributes:
        path: a folder with a folder of clips for each class, directly or under train/ and val/; a folder of clips in
            any order, whose classes lists tell; a folder of parquet files; or the name of a data set on the hub. To
            train without classes, any folder of clips, or a single one, of which some windows are held out.
        training_list, evaluation_list: CSV files that name clips and their classes, as Kinetics' and AudioSet's do (see
            `read_list`); without the second, a part of the first is held out.
        class_list: what the classes are: AudioSet's class_labels_indices.csv, or a text file with one a line; those of
            the training list, if not given.
        skip_missing: leave out what the lists name and the folder does not have.
        held_out: part of the clips, or of the windows of a single one, to evaluate on where nothing else says which.
        held_out_where: evaluate on those rows of a data set whose columns have these values, such as {speaker: theo},
            whatever its splits are.
        clip_column: column of a Hugging Face data set that holds the sound or video; found by its type, if not given.
        label_column: column that holds the labels; likewise.
        draws: windows at random places of each clip that an epoch of training has.
        windows: of each clip in evaluation, evenly spaced, whose answers are averaged.
        memory: gigabytes of decoded clips that each process which loads data keeps, the first ones that it comes to,
            instead of decoding windows of them again and again.
    """

    section = "data."

    path: str = ""
    training_list: str | None = None
    evaluation_list: str | None = None
    class_list: str | None = None
    skip_missing: bool = False
    held_out: ProperFraction = 0.1
    held_out_where: dict[str, Any] = field(default_factory=dict)
    clip_column: str | None = None
    label_column: str | None = None
    draws: Count = 1
    windows: Count = 1
    memory: Annotated[float, Range(least=0)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training_list is None and (self.evaluation_list is not None or self.class_list is not None):
            raise PerceiversError("data.training_list is not given, which the other lists belong to.")
        if self.training_list is not None and self.held_out_where:
            raise PerceiversError("data.held_out_where is for data sets with columns, but data.training_list is given.")

    def open(self, labelled: bool = True) -> Splits[LabelledClips]:
        """Finds the clips.

        Args:
            labelled: with their classes. Without, all have the class 0, and a single clip is both splits.

        Raises:
            PerceiversError: there are none, or only one class, or a list is wrong.
        """
        if not self.path:
            raise PerceiversError("data.path is not given: it is a folder of clips.")
        if not labelled:
            return unlabelled(Path(self.path), self.held_out)
        if self.training_list is not None:
            return self.open_lists(Path(self.training_list))
        return open_splits(
            LabelledClips, self.path, self.held_out, self.clip_column, self.label_column, self.held_out_where
        )

    def open_lists(self, training: Path) -> Splits[LabelledClips]:
        """Finds the clips that lists name."""
        classes = classes_of(read_list(training)) if self.class_list is None else read_classes(Path(self.class_list))
        listed = listed_clips(training, Path(self.path), classes, self.skip_missing)
        if self.evaluation_list is None:
            return hold_out(listed, self.held_out)
        return Splits(listed, listed_clips(Path(self.evaluation_list), Path(self.path), classes, self.skip_missing))

    def datasets(self, splits: Splits[LabelledClips], window: Window) -> tuple["ClipDataset", "ClipDataset"]:
        """Windows of the clips to train on and of those to evaluate on."""
        spans, places = [(0.0, 1.0)], evenly(self.windows)
        if Path(self.path).is_file():
            spans, places = divide(self.path, window, self.held_out)
        return (
            ClipDataset(splits.training, window, draws=self.draws, spans=spans, memory=1e9 * self.memory),
            ClipDataset(splits.evaluation, window, places),
        )


def listed_clips(path: Path, root: Path, classes: Mapping[str, str], skip_missing: bool) -> LabelledClips:
    """The clips that a list names, and their files below a folder.

    Args:
        path: the list, see `read_list`.
        root: the folder.
        classes: what the list calls the classes, and what they are called.
        skip_missing: leave out what is not there.

    Raises:
        PerceiversError: the list is wrong, or there is no file of what it names.
    """
    clips = read_list(path)
    if not root.is_dir():
        raise PerceiversError(f"data.path = {root} is not a folder: give the one with the clips of the lists.")
    labels, files = clips.indices(classes), clips.files(root, LabelledClips.suffixes)
    if not skip_missing:
        check_found(clips, files, root)
    pairs = [(file, label) for file, label in zip(files, labels, strict=True) if file is not None]
    if not pairs:
        raise PerceiversError(f"{root} has none of the clips of {path}.")
    found = [label if clips.multilabel else label[0] for _, label in pairs]
    source = Files([file for file, _ in pairs])
    return LabelledClips(list(classes.values()), found, source, range(len(pairs)), clips.multilabel)


def unlabelled(path: Path, held_out: float) -> Splits[LabelledClips]:
    """All clips of a folder, or a single one, which is both splits."""
    training = next((path / name for name in TRAINING_NAMES if (path / name).is_dir()), None)
    evaluation = next((path / name for name in EVALUATION_NAMES if (path / name).is_dir()), None)
    if training is not None and evaluation is not None:
        return Splits(clips_below(training), clips_below(evaluation))
    found = clips_below(training or path)
    if path.is_file():
        return Splits(found, found)
    if len(found) < 2:
        raise PerceiversError(f"{path} has only one clip: give its path, and some of its windows are held out.")
    return hold_out(found, held_out)


def clips_below(path: Path) -> LabelledClips:
    """All clips of a folder, or a single one, without classes.

    Raises:
        PerceiversError: there are none.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    found = [file for file in files if file == path or file.suffix.lower() in LabelledClips.suffixes]
    if not path.exists():
        raise PerceiversError(f"{path} is neither a folder of clips nor a clip.")
    if not found:
        raise PerceiversError(f"{path} has no clips: files such as .mp4, .mkv and .wav are expected below it.")
    return LabelledClips([], [0] * len(found), Files(found), range(len(found)))


def evenly(windows: int) -> list[float]:
    """Places of windows of a clip."""
    return [0.5] if windows == 1 else [number / (windows - 1) for number in range(windows)]


def divide(path: str, window: Window, held_out: float) -> tuple[list[tuple[float, float]], list[float]]:
    """Divides a clip into windows side by side, of which every so many is held out.

    Returns:
        Between which places windows begin that share nothing with those that are held out; and the places of these.

    Raises:
        PerceiversError: it is too short.
    """
    count = int(measure(path, window).length // window.seconds)
    step = max(2, round(1 / held_out))
    held = list(range(step // 2, count, step))
    between = [(before + 1, after - 1) for before, after in pairwise([-1, *held, count])]
    if count < 3 or not held:
        raise PerceiversError(
            f"{path} has {count} windows of {float(window.seconds):.2f} s: that is too few to hold out a part of "
            f"{held_out}; give a longer clip, or another data.held_out."
        )
    spans = [(low / (count - 1), high / (count - 1)) for low, high in between if low <= high]
    return spans, [place / (count - 1) for place in held]


class ClipDataset(Samples):
    """Windows of clips.

    Args:
        clips: the clips.
        window: what the model sees.
        places: of the windows of each clip, in evaluation, see `read_window`; None for random ones, in training.
        draws: in training, windows of each clip, one after another.
        spans: in training, between which places they are.
        memory: bytes of decoded clips that are kept.
    """

    def __init__(
        self,
        clips: LabelledClips,
        window: Window,
        places: Sequence[float] | None = None,
        draws: int = 1,
        spans: Sequence[tuple[float, float]] = ((0.0, 1.0),),
        memory: float = 0,
    ) -> None:
        self.clips, self.window, self.places, self.draws, self.spans = clips, window, places, draws, spans
        self.free = memory
        self.kept: dict[int, Whole] = {}

    def __len__(self) -> int:
        return len(self.clips) * (self.draws if self.places is None else len(self.places))

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        """A clip that cannot be read gives a "problem" instead."""
        if self.places is None:
            clip, place = item.sample // self.draws, self.draw(item.seed)
        else:
            clip, number = divmod(item.sample, len(self.places))
            place = self.places[number]
        try:
            seen = self.read(clip, place)
        except PerceiversError as error:
            return {"problem": str(error)}
        return {"seen": seen, "label": self.clips.target(clip), "clip": clip}

    def read(self, clip: int, place: float) -> Seen:
        """What a window shows of a clip, which is kept as a whole if there is room."""
        if clip not in self.kept and self.free > 0:
            whole = read_whole(self.clips.media(clip), self.window, self.free)
            if whole is not None:
                self.kept[clip] = whole
                self.free -= whole.bytes
        if clip in self.kept:
            return self.kept[clip].cut(place)
        return read_window(self.clips.media(clip), self.window, place)

    def draw(self, seed: int) -> float:
        """A place at random: all places of the spans are equally probable."""
        generator = torch.Generator().manual_seed(seed)
        ends = list(accumulate(high - low for low, high in self.spans))
        if not ends[-1]:  # each is a single place
            return self.spans[int(torch.randint(len(ends), (), generator=generator))][0]
        reached = float(torch.rand((), generator=generator)) * ends[-1]
        span = bisect_left(ends, reached)
        return self.spans[span][1] - (ends[span] - reached)

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """-> "label" [B] or [B, K], "clip" [B], the number of each; "video", "shown", "audio", "heard" as in `Seen`.

        What a window does not have is left out, and so are clips that cannot be read: "problems" says which. A batch of
        which nothing could be read has "problems" alone.
        """
        good = [sample for sample in samples if "seen" in sample]
        batch: dict[str, Any] = {"problems": [sample["problem"] for sample in samples if "problem" in sample]}
        if good:
            batch["label"] = torch.stack([sample["label"] for sample in good])
            batch["clip"] = torch.tensor([sample["clip"] for sample in good])
            for name in ("video", "shown", "audio", "heard"):
                if getattr(good[0]["seen"], name) is not None:
                    batch[name] = torch.stack([getattr(sample["seen"], name) for sample in good])
        return batch
