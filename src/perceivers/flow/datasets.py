"""Data sets of frame pairs with known optical flow: opening, reading and writing them.

Shape suffixes: Y rows, X columns, C colors (3)
"""

import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from perceivers.data.image_files import read_frame
from perceivers.data.splits import Part, choose_splits
from perceivers.errors import PerceiversError
from perceivers.flow.files import read_flow, write_flow
from perceivers.flow.layouts import LAYOUTS, PairFiles
from perceivers.flow.pictures import to_image
from perceivers.model.saving import atomic_write


class FlowPair(NamedTuple):
    """Two frames and the flow from the first to the second.

    Attributes:
        frames: bytes [2, 3, Y, X].
        flow: float32 [2, Y, X] in pixels, to the right and down; NaN where unknown.
        occluded: bool [Y, X], where the second frame does not show the content of the first; None if unknown.
    """

    frames: Tensor
    flow: Tensor
    occluded: Tensor | None = None


class FlowPairs:
    """The pairs of one data set, read when they are indexed.

    Attributes:
        layout: name of the data set, one of `LAYOUTS`.
        split: name of its part.
        sequences: name of each pair's scene.
        names: unique name of each pair, usable as a file name.
    """

    def __init__(self, layout: str, split: str, files: Iterable[PairFiles]) -> None:
        self.layout, self.split = layout, split
        self.files = list(files)
        self.sequences = [pair.sequence for pair in self.files]
        self.names = [pair.name for pair in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> FlowPair:
        return read_pair(self.files[index])


def open_pairs(path: str | Path, layout: str | None = None, split: str = "training") -> FlowPairs:
    """Finds the pairs of a data set.

    Args:
        path: its folder, as published.
        layout: name of the data set, one of `LAYOUTS`; by default detected from the folder.
        split: "training", or another that the data set has.

    Raises:
        PerceiversError: no data set, or several, or no such split is found, or a pair's file is missing.
    """
    if layout is not None and layout not in LAYOUTS:
        raise PerceiversError(f"layout = {layout!r} is not allowed: use one of {', '.join(LAYOUTS)}.")
    root = Path(path)
    names = detect_layouts(root)
    if layout is None and len(names) > 1:
        raise PerceiversError(f"{root} has the layouts {' and '.join(names)}: choose one with layout.")
    layout = layout or names[0]
    if layout not in names:
        raise PerceiversError(f"{root} does not have the layout {layout}, but {' and '.join(names)}.")
    return open_split(root, layout, split)


def open_all_layouts(path: str | Path, split: str = "training") -> list[FlowPairs]:
    """Finds, as `open_pairs`, the pairs of all data sets that have the split, such as both renderings of Sintel."""
    root = Path(path)
    names = detect_layouts(root)
    with_split = [name for name in names if split in LAYOUTS[name].find_splits(root)]
    return [open_split(root, name, split) for name in with_split or names]  # if none has it, the first raises


def open_evaluation_pairs(path: str | Path, split: str | None = None) -> list[tuple[FlowPairs, Part]]:
    """Finds the pairs of a split, see `choose_splits`, to evaluate a model on; as `open_all_layouts`."""
    root = Path(path)
    splits = {layout: LAYOUTS[layout].find_splits(root) for layout in detect_layouts(root)}
    ((chosen, name), *_) = choose_splits(sorted({name for names in splits.values() for name in names}), split, root)
    found = []
    for pairs in open_all_layouts(root, name):
        find_pairs = LAYOUTS[pairs.layout].find_pairs
        total = sum(len(list(find_pairs(root, name))) for name in splits[pairs.layout])
        found.append((pairs, Part("pair", len(pairs), total, chosen)))
    return found


def detect_layouts(root: Path) -> list[str]:
    """Returns the names of the layouts that a folder has, at least one."""
    if not os.path.isdir(root):
        raise PerceiversError(f"{root} is not a folder: give the folder of an optical flow data set.")
    names = [name for name, layout in LAYOUTS.items() if layout.find_splits(root)]
    if not names:
        raise PerceiversError(f"{root} is not a supported optical flow data set: use one of {', '.join(LAYOUTS)}.")
    return names


def open_split(root: Path, layout: str, split: str) -> FlowPairs:
    """Returns the pairs of a split after checking that all files exist."""
    splits = LAYOUTS[layout].find_splits(root)
    if split not in splits:
        raise PerceiversError(f"{layout} in {root} has no split {split!r}: use {' or '.join(splits)}.")
    pairs = FlowPairs(layout, split, LAYOUTS[layout].find_pairs(root, split))
    if not len(pairs):
        raise PerceiversError(f"{root} has the layout {layout}, but no pairs of frames of the split {split!r}.")
    for files in pairs.files:
        for path in files:
            if isinstance(path, Path) and not path.is_file():
                raise PerceiversError(f"{path} is missing: the pair {files.name} of {layout} needs it; download it.")
    return pairs


def read_pair(files: PairFiles) -> FlowPair:
    """Reads all files of a pair.

    Raises:
        PerceiversError: a file is missing, damaged, or of another size than the first frame.
    """
    first_CYX = read_frame(files.first)

    def fit(image: Tensor, path: Path, scale: int = 1) -> Tensor:
        """Returns every `scale`-th row and column of a file's content, which is that much larger than the frames."""
        (height, width), (rows, columns) = image.shape[-2:], (scale * side for side in first_CYX.shape[-2:])
        if (height, width) != (rows, columns):
            size = f"{width} x {height} pixels, but {files.first} needs {columns} x {rows}"
            raise PerceiversError(f"{path} has {size}: one of them belongs to another pair.")
        return image[:, ::scale, ::scale].contiguous()

    second_CYX = fit(read_frame(files.second), files.second)
    flow_2YX = fit(read_flow(files.flow)[0], files.flow, files.flow_scale)
    if files.invalid is not None:
        flow_2YX = flow_2YX.masked_fill(fit(read_frame(files.invalid), files.invalid)[0] > 127, torch.nan)
    occluded_YX = None
    if files.occluded is not None:
        occluded_YX = fit(read_frame(files.occluded), files.occluded)[0] > 127
    elif files.visible is not None:
        visible_2YX = fit(read_flow(files.visible)[0], files.visible, files.flow_scale)
        occluded_YX = visible_2YX[0].isnan() & ~flow_2YX[0].isnan()
    return FlowPair(torch.stack([first_CYX, second_CYX]), flow_2YX, occluded_YX)


def write_pair(folder: str | Path, number: int, pair: FlowPair) -> None:
    """Writes a pair in the layout of FlyingChairs, frames as PNG, occlusions as in FlyingChairsOcc."""
    pictures = dict(zip(("img1", "img2"), pair.frames, strict=True))
    if pair.occluded is not None:
        pictures["occ1"] = pair.occluded.byte().mul(255).expand(3, -1, -1)
    for name, picture_CYX in pictures.items():
        atomic_write(Path(folder) / f"{number:05d}_{name}.png", partial(to_image(picture_CYX).save, format="PNG"))
    write_flow(Path(folder) / f"{number:05d}_flow.flo", pair.flow)
