"""Optical flow between frames of any size: `perceivers flow`.

The model sees frames of the size that it was trained on. Larger ones are cut into tiles of this size, whose flows are
averaged where they overlap (section 4.2 and appendix H of the paper).

Shape suffixes: T tiles, P points, Y rows, X columns
"""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from perceivers.data.image_files import read_frame
from perceivers.data.video import check_video_path, read_frames, write_video
from perceivers.errors import PerceiversError
from perceivers.flow.adapter import FlowOutput, FramePairInput
from perceivers.flow.pictures import check_largest, flow_picture
from perceivers.inference import check_folder, find_adapter, get_device, load_for_inference
from perceivers.model.perceiver_io import PerceiverIO

OVERLAP = 20
"""Fewest pixels by which neighbouring tiles overlap, as released."""

SHIPPED = Path(__file__).parent / "mini"
"""A small model that comes with the package, trained as configs/flow/mini.yaml says."""

log = logging.getLogger(__name__)


def flow(
    model: PerceiverIO | str | Path,
    frame1: Tensor | str | Path,
    frame2: Tensor | str | Path,
    points: Tensor | Sequence[Sequence[int]] | None = None,
    overlap: int = OVERLAP,
    batch_size: int = 1,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = False,
) -> Tensor:
    """How far the content of each pixel of a frame moves until the next.

    Args:
        model, device, dtype: as in `load_for_inference`.
        frame1, frame2: image files, or tensors [3, Y, X] of bytes in 0 ... 255 or floats in [0, 1].
        points: [P, 2], column and row of pixels of the first frame: only their flow is decoded, and tiles without any
            are left out. Any number, in any order; not for models that upsample.
        overlap: fewest pixels by which neighbouring tiles overlap.
        batch_size: tiles computed at a time.
        progress: show a bar.

    Returns:
        float32 [2, Y, X], on the CPU: pixels to the right, and down; of points, [P, 2].

    Raises:
        PerceiversError: a file cannot be read, the frames differ in size, a point lies outside of them, or the model is
            of another kind.
    """
    model = load_for_inference(model, device, dtype)
    _, adapter = find_adapter(model.inputs, FramePairInput, "flow")
    frames = [read(frame) for frame in (frame1, frame2)]
    (_, height, width), (_, height2, width2) = (frame.shape for frame in frames)
    if (height, width) != (height2, width2):
        raise PerceiversError(
            f"the frames differ in size: {describe(frame1)} has {width} x {height} pixels, "
            f"{describe(frame2)} has {width2} x {height2}; flow needs two of the same size."
        )
    notice_padding(height, width, adapter.size)
    if points is not None:
        return tracked(model, torch.stack(frames), torch.as_tensor(points), overlap)
    return tiled(model, torch.stack(frames), overlap, batch_size, progress)


def read(frame: Tensor | str | Path) -> Tensor:
    """-> [3, Y, X] in [0, 1]."""
    frame_CYX = frame if isinstance(frame, Tensor) else read_frame(frame)
    if frame_CYX.dim() != 3 or frame_CYX.shape[0] != 3:
        raise PerceiversError(
            f"a frame of shape {tuple(frame_CYX.shape)} was given, but [3 colors, height, width] is expected."
        )
    return frame_CYX / 255 if frame_CYX.dtype == torch.uint8 else frame_CYX


def describe(frame: Tensor | str | Path) -> str:
    """What to call a frame in an error."""
    return "a tensor" if isinstance(frame, Tensor) else str(frame)


def notice_padding(height: int, width: int, tile: tuple[int, int]) -> None:
    """Tells the user of frames smaller than a tile."""
    if height < tile[0] or width < tile[1]:
        log.warning(
            "The frames have %d x %d pixels, fewer than the %d x %d that the model was trained on: they are padded.",
            width, height, tile[1], tile[0],
        )  # fmt: skip


@torch.no_grad()
def tiled(model: PerceiverIO, pair: Tensor, overlap: int, batch_size: int, progress: bool) -> Tensor:
    """The flow [2, Y, X] between two frames [2, 3, Y, X] in [0, 1], which are cut into tiles; see `flow`."""
    if batch_size < 1:
        raise PerceiversError(f"batch_size = {batch_size} is not allowed: it must be at least 1.")
    name, adapter = find_adapter(model.inputs, FramePairInput, "flow")
    output, _ = find_adapter(model.outputs, FlowOutput, "flow")
    rows, columns = pair.shape[-2:]
    pair = pad_to(pair, adapter.size)
    height, width = pair.shape[-2:]
    corners = tile_corners(height, width, adapter.size, overlap)
    weight_YX = tile_weights(*adapter.size)
    total_2YX, weights_YX = torch.zeros(2, height, width), torch.zeros(height, width)
    groups = [corners[start : start + batch_size] for start in range(0, len(corners), batch_size)]
    for group in tqdm(groups, "tiles", disable=None if progress and len(groups) > 1 else True):
        places = [(..., slice(y, y + adapter.size[0]), slice(x, x + adapter.size[1])) for y, x in group]
        tiles = torch.stack([pair[place] for place in places]).to(get_device(model))
        flow_T2YX = model({name: tiles})[output].float().cpu()
        for place, flow_2YX in zip(places, flow_T2YX, strict=True):
            total_2YX[place] += weight_YX * flow_2YX
            weights_YX[place] += weight_YX
    return (total_2YX / weights_YX)[:, :rows, :columns]


@torch.no_grad()
def tracked(model: PerceiverIO, pair: Tensor, points_P2: Tensor, overlap: int) -> Tensor:
    """The flow [P, 2] of some pixels of the first of two frames [2, 3, Y, X] in [0, 1]; see `flow`."""
    name, adapter = find_adapter(model.inputs, FramePairInput, "flow")
    output, flow_output = find_adapter(model.outputs, FlowOutput, "flow")
    if flow_output.upsampling is not None:
        raise PerceiversError("points need a model with a query for every pixel; this one upsamples: leave them out.")
    size = torch.tensor([pair.shape[-1], pair.shape[-2]])
    if points_P2.dim() != 2 or points_P2.shape[1] != 2 or points_P2.is_floating_point():
        raise PerceiversError(
            f"points of shape {tuple(points_P2.shape)} and {points_P2.dtype} were given, "
            "but whole numbers [points, 2] are expected: the column and row of each."
        )
    outside_P = ((points_P2 < 0) | (points_P2 >= size)).any(1)
    if outside_P.any():
        column, row = points_P2[outside_P][0].tolist()
        raise PerceiversError(f"the point ({column}, {row}) lies outside of frames of {size[0]} x {size[1]} pixels.")
    pair = pad_to(pair, adapter.size)
    weight_YX = tile_weights(*adapter.size)
    total_P2, weight_P1 = torch.zeros(len(points_P2), 2), torch.zeros(len(points_P2), 1)
    for y, x in tile_corners(pair.shape[-2], pair.shape[-1], adapter.size, overlap):
        column_P, row_P = (points_P2 - torch.tensor([x, y])).unbind(1)
        inside_P = (column_P >= 0) & (column_P < adapter.size[1]) & (row_P >= 0) & (row_P < adapter.size[0])
        if not inside_P.any():
            continue
        index_P = (row_P * adapter.size[1] + column_P)[inside_P]
        tile = pair[None, ..., y : y + adapter.size[0], x : x + adapter.size[1]].to(get_device(model))
        flow_P2 = model({name: tile}, {output: index_P.to(tile.device)})[output][0].float().cpu()
        tile_P1 = weight_YX.flatten()[index_P, None]
        total_P2[inside_P] += tile_P1 * flow_P2
        weight_P1[inside_P] += tile_P1
    return total_P2 / weight_P1


def tile_corners(height: int, width: int, tile: tuple[int, int], overlap: int) -> list[tuple[int, int]]:
    """Top and left of every tile."""
    return [(y, x) for y in starts(height, tile[0], overlap) for x in starts(width, tile[1], overlap)]


def pad_to(pair: Tensor, tile: tuple[int, int]) -> Tensor:
    """Frames at least as large as a tile: smaller ones are continued to the right and below by their last pixels."""
    height, width = pair.shape[-2:]
    below, right = max(tile[0] - height, 0), max(tile[1] - width, 0)
    return F.pad(pair, (0, right, 0, below), mode="replicate") if below or right else pair


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin so that they are evenly spaced, reach both borders, and overlap by `overlap` at least."""
    if not 0 <= overlap < tile:
        raise PerceiversError(
            f"overlap = {overlap} is not allowed: it must be from 0 to less than a tile's {tile} pixels."
        )
    count = max(1, math.ceil((size - overlap) / (tile - overlap)))
    return [round(index * (size - tile) / max(count - 1, 1)) for index in range(count)]


def tile_weights(height: int, width: int) -> Tensor:
    """Weights [Y, X] of a tile's pixels where tiles overlap: the distance to the nearest edge, 1 at the edge."""
    y = torch.arange(height)
    x = torch.arange(width)
    near_Y = torch.minimum(y + 1, height - y)
    near_X = torch.minimum(x + 1, width - x)
    return torch.minimum(near_Y[:, None], near_X[None]).float()


def flow_video(
    model: PerceiverIO | str | Path,
    video: str | Path,
    out: str | Path,
    overlap: int = OVERLAP,
    batch_size: int = 1,
    largest: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = False,
) -> int:
    """Draws the flow of a video: from every frame to the next, in colors, as a video.

    Args:
        model, overlap, batch_size, device, dtype, progress: as in `flow`.
        video: any file with video that PyAV reads.
        out: the video to write.
        largest: pixels of flow that have full color; those of the first pair's longest flow, if not given.

    Returns:
        The number of pairs.

    Raises:
        PerceiversError: the video cannot be read or has fewer than two frames, or `out` cannot be written.
    """
    check_video_path(out)
    check_folder(out)
    check_largest(largest)
    model = load_for_inference(model, device, dtype)
    _, adapter = find_adapter(model.inputs, FramePairInput, "flow")
    source = read_frames(video)
    pairs = 0

    def pictures() -> Iterator[Tensor]:
        nonlocal largest, pairs
        before = None
        count = None if source.count is None else source.count - 1
        with tqdm(total=count, desc="frames", disable=None if progress else True) as bar:
            for frame in map(read, source.frames):
                if before is None:
                    notice_padding(frame.shape[1], frame.shape[2], adapter.size)
                else:
                    flow_2YX = tiled(model, torch.stack([before, frame]), overlap, batch_size, progress=False)
                    largest = float(flow_2YX.norm(dim=0).max()) if largest is None else largest
                    pairs += 1
                    yield flow_picture(flow_2YX, largest)
                    bar.update()
                before = frame
        if not pairs:
            raise PerceiversError(f"{video} has fewer than two frames: flow needs two.")

    write_video(out, pictures(), source.rate)
    return pairs
