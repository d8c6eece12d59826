"""Data sets of frame pairs with known optical flow: opening, reading and writing them.

Shape suffixes: Y rows, X columns, C colors (3)
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from perceivers.data.image_files import read_frame
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
    if layout is not None and layout not in names:
        raise PerceiversError(f"{root} does not have the layout {layout}, but {' and '.join(names)}.")
    return open_split(root, layout or names[0], split)


def open_all_layouts(path: str | Path, split: str = "training") -> list[FlowPairs]:
    """Finds the pairs of all data sets in a folder that have the split, such as both renderings of Sintel.

    Raises:
        PerceiversError: as in `open_pairs`.
    """
    root = Path(path)
    names = detect_layouts(root)
    with_split = [name for name in names if split in LAYOUTS[name].find_splits(root)]
    return [open_split(root, name, split) for name in with_split or names]  # if none has it, the first raises


def detect_layouts(root: Path) -> list[str]:
    """Returns the names of the layouts that a folder has, at least one."""
    if not root.is_dir():
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
    first_CYX, second_CYX = read_frame(files.first), read_frame(files.second)
    check_size(second_CYX, files.second, first_CYX, files)
    flow_2YX = read_sized_flow(files.flow, first_CYX, files)
    if files.invalid is not None:
        flow_2YX = flow_2YX.masked_fill(read_mask(files.invalid, first_CYX, files), torch.nan)
    occluded_YX = None
    if files.occluded is not None:
        occluded_YX = read_mask(files.occluded, first_CYX, files)
    elif files.visible is not None:
        visible_2YX = read_sized_flow(files.visible, first_CYX, files)
        occluded_YX = visible_2YX[0].isnan() & ~flow_2YX[0].isnan()
    return FlowPair(torch.stack([first_CYX, second_CYX]), flow_2YX, occluded_YX)


def read_sized_flow(path: Path, first_CYX: Tensor, files: PairFiles) -> Tensor:
    """Reads flow [2, Y, X] with the first frame's rows and columns."""
    flow_2YX, _ = read_flow(path)
    check_size(flow_2YX, path, first_CYX, files, files.flow_scale)
    return flow_2YX[:, :: files.flow_scale, :: files.flow_scale].contiguous()


def read_mask(path: Path, first_CYX: Tensor, files: PairFiles) -> Tensor:
    """Reads a mask, bool [Y, X], True where the picture is white."""
    mask_CYX = read_frame(path)
    check_size(mask_CYX, path, first_CYX, files)
    return mask_CYX[0] > 127


def check_size(image: Tensor, path: Path, first_CYX: Tensor, files: PairFiles, scale: int = 1) -> None:
    """Raises a PerceiversError unless `image`, from the file `path`, has `scale` times the first frame's size."""
    (height, width), (rows, columns) = image.shape[-2:], (scale * side for side in first_CYX.shape[-2:])
    if (height, width) != (rows, columns):
        size = f"{width} x {height} pixels, but {files.first} needs {columns} x {rows}"
        raise PerceiversError(f"{path} has {size}: one of them belongs to another pair.")


def write_pair(folder: str | Path, number: int, pair: FlowPair) -> None:
    """Writes a pair in the layout of FlyingChairs, frames as PNG, occlusions as in FlyingChairsOcc.

    Raises:
        PerceiversError: the folder cannot be written to.
    """
    pictures = dict(zip(("img1", "img2"), pair.frames, strict=True))
    if pair.occluded is not None:
        pictures["occ1"] = pair.occluded.byte().mul(255).expand(3, -1, -1)
    for name, picture_CYX in pictures.items():
        atomic_write(Path(folder) / f"{number:05d}_{name}.png", partial(to_image(picture_CYX).save, format="PNG"))
    write_flow(Path(folder) / f"{number:05d}_flow.flo", pair.flow)
