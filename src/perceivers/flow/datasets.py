"""Data sets of frame pairs whose optical flow is known: opening, reading and writing them.

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
from perceivers.model.saving import write


class FlowPair(NamedTuple):
    """Two frames and the flow from the first to the second.

    Attributes:
        frames: bytes [2, 3, Y, X].
        flow: float32 [2, Y, X] in pixels, to the right and downwards; NaN where it is not known.
        occluded: bool [Y, X], where the content of the first frame cannot be seen in the second; None if not known.
    """

    frames: Tensor
    flow: Tensor
    occluded: Tensor | None = None


class FlowPairs:
    """Pairs of one data set; files are read when a pair is asked for.

    Attributes:
        layout: name of the data set, one of `LAYOUTS`.
        split: the part of it that these are.
        sequences: name of each pair's scene.
        names: name of each pair, which no other has; usable as a file name.
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
        path: its folder, as it is published.
        layout: name of the data set, one of `LAYOUTS`; if not given, its folders say which it is.
        split: "training", or another that the data set has.

    Raises:
        PerceiversError: no data set, or several, or no such split is found, or a pair's file is missing.
    """
    if layout is not None and layout not in LAYOUTS:
        raise PerceiversError(f"layout = {layout!r} is not allowed: use one of {', '.join(LAYOUTS)}.")
    root = Path(path)
    names = recognised(root)
    if layout is None and len(names) > 1:
        raise PerceiversError(f"{root} holds {' and '.join(names)}: say which with the layout.")
    if layout is None:
        layout = names[0]
    elif layout not in names:
        raise PerceiversError(f"{root} is not laid out as {layout}, but as {' and '.join(names)}.")
    return find(root, layout, split)


def open_all(path: str | Path, split: str = "training") -> list[FlowPairs]:
    """Finds the pairs of all data sets that a folder holds the split of, such as both renderings of Sintel.

    Raises:
        PerceiversError: as in `open_pairs`.
    """
    root = Path(path)
    names = recognised(root)
    having = [name for name in names if split in LAYOUTS[name].present(root)]
    return [find(root, name, split) for name in having or names]  # if none has it, the first raises


def recognised(root: Path) -> list[str]:
    """Names of the layouts that a folder has, one at least."""
    if not root.is_dir():
        raise PerceiversError(f"{root} is no folder: give the folder of a data set of optical flow.")
    names = [name for name, layout in LAYOUTS.items() if layout.present(root)]
    if not names:
        raise PerceiversError(f"{root} is no data set of optical flow that is known: looked for {', '.join(LAYOUTS)}.")
    return names


def find(root: Path, layout: str, split: str) -> FlowPairs:
    """The pairs of a split, whose files are all there."""
    splits = LAYOUTS[layout].present(root)
    if split not in splits:
        raise PerceiversError(f"there is no split {split!r} of {layout} in {root}: it has {' and '.join(splits)}.")
    pairs = FlowPairs(layout, split, LAYOUTS[layout].pairs(root, split))
    if not len(pairs):
        raise PerceiversError(f"{root} is laid out as {layout}, but has no pairs of frames of the split {split!r}.")
    for files in pairs.files:
        for path in files.paths():
            if not path.is_file():
                raise PerceiversError(f"{path} is missing, which the pair {files.name} of {layout} needs: download it.")
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
    """-> [2, Y, X], of as many rows and columns as the first frame."""
    flow_2YX, _ = read_flow(path)
    check_size(flow_2YX, path, first_CYX, files, files.flow_scale)
    return flow_2YX[:, :: files.flow_scale, :: files.flow_scale].contiguous()


def read_mask(path: Path, first_CYX: Tensor, files: PairFiles) -> Tensor:
    """-> bool [Y, X], True where it is white."""
    mask_CYX = read_frame(path)
    check_size(mask_CYX, path, first_CYX, files)
    return mask_CYX[0] > 127


def check_size(image: Tensor, path: Path, first_CYX: Tensor, files: PairFiles, scale: int = 1) -> None:
    """Raises a PerceiversError unless `image`, from the file `path`, has `scale` times the first frame's size."""
    height, width = image.shape[-2:]
    rows, columns = scale * first_CYX.shape[-2], scale * first_CYX.shape[-1]
    if (height, width) != (rows, columns):
        raise PerceiversError(
            f"{path} has {width} x {height} pixels, but {files.first} needs {columns} x {rows}: "
            "one of them belongs to another pair."
        )


def write_pair(folder: str | Path, number: int, pair: FlowPair) -> None:
    """Writes a pair as one of FlyingChairs, its frames as PNG, and what is hidden as in FlyingChairsOcc.

    Raises:
        PerceiversError: the folder cannot be written to.
    """
    pictures = dict(zip(("img1", "img2"), pair.frames, strict=True))
    if pair.occluded is not None:
        pictures["occ1"] = pair.occluded.byte().mul(255).expand(3, -1, -1)
    for name, picture_CYX in pictures.items():
        image = to_image(picture_CYX)
        write(Path(folder) / f"{number:05d}_{name}.png", partial(image.save, format="PNG"))
    write_flow(Path(folder) / f"{number:05d}_flow.flo", pair.flow)
