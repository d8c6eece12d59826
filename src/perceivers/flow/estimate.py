"""Estimates optical flow between frames of any size: `perceivers flow`.

The model sees frames of its training size. Larger frames are cut into tiles of this size, whose flows are averaged
where they overlap (section 4.2 and appendix H of the paper).

Shape suffixes: T tiles, P points, Y rows, X columns
"""

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers.adapters.image import scale_colors
from perceivers.data.image_files import read_frame
from perceivers.data.video import read_frames
from perceivers.data.video_writer import check_video_path, write_video
from perceivers.errors import PerceiversError
from perceivers.flow.adapter import FlowOutput, FramePairInput
from perceivers.flow.pictures import check_max_flow, draw_flow
from perceivers.inference import check_answers, check_folder, find_adapter, get_device, load_for_inference
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.progress import Progress, track

OVERLAP = 20  # minimum overlap of neighboring tiles in pixels, as released
BUNDLED_MODEL = Path(__file__).parent / "mini"  # a small model, trained with configs/flow/mini.yaml

log = logging.getLogger(__name__)


def estimate_flow(
    model: PerceiverIO | str | Path,
    frame1: Tensor | str | Path,
    frame2: Tensor | str | Path,
    points: Tensor | Sequence[Sequence[int]] | None = None,
    overlap: int = OVERLAP,
    batch_size: int = 1,
    device: str | None = None,
    dtype: str | None = None,
) -> Tensor:
    """Estimates the motion of each pixel's content from one frame to the next.

    Args:
        model, device, dtype: as in `load_for_inference`.
        frame1, frame2: image files, or tensors [3, Y, X] of bytes in 0 ... 255 or floats in [0, 1].
        points: [P, 2], columns and rows of pixels of the first frame, in any order: only their flow is decoded, and
            tiles without points are skipped. Not for models that upsample.
        overlap: minimum overlap of neighboring tiles in pixels.
        batch_size: tiles computed at a time.

    Returns:
        float32 [2, Y, X] on the CPU: pixels to the right, and down; for points, [P, 2].

    Raises:
        PerceiversError: a file cannot be read, the frames differ in size, a point lies outside the frames, or the model
            is not an optical flow model.
    """
    model = load_for_inference(model, device, dtype)
    frames = [to_floats(frame) for frame in (frame1, frame2)]
    if frames[0].shape != frames[1].shape:
        names = ("a tensor" if isinstance(frame, Tensor) else frame for frame in (frame1, frame2))
        first, second = (f"{name} has {x.shape[2]} x {x.shape[1]}" for name, x in zip(names, frames, strict=True))
        raise PerceiversError(f"the frames differ in size: {first} pixels, {second}; flow needs two of the same size.")
    pair = torch.stack(frames)
    warn_if_padded(model, pair)
    if points is not None:
        return estimate_at_points(model, pair, torch.as_tensor(points), overlap)
    return estimate_tiled(model, pair, overlap, batch_size)


def to_floats(frame: Tensor | str | Path) -> Tensor:
    """Returns a frame [3, Y, X] in [0, 1]."""
    frame_CYX = frame if isinstance(frame, Tensor) else read_frame(frame)
    if frame_CYX.dim() != 3 or frame_CYX.shape[0] != 3:
        shape = tuple(frame_CYX.shape)
        raise PerceiversError(f"a frame of shape {shape} was given, but [3 colors, height, width] is expected.")
    return scale_colors(frame_CYX)


def warn_if_padded(model: PerceiverIO, frames: Tensor) -> None:
    """Logs a warning if frames [..., Y, X] are smaller than those of the model's training."""
    (height, width), (rows, columns) = frames.shape[-2:], find_adapter(model.inputs, FramePairInput, "flow")[1].size
    if height < rows or width < columns:
        message = "The frames have %d x %d pixels, fewer than the %d x %d of the model's training: they are padded."
        log.warning(message, width, height, columns, rows)


@torch.no_grad()
def estimate_tiled(model: PerceiverIO, pair: Tensor, overlap: int, batch_size: int) -> Tensor:
    """Estimates the flow [2, Y, X] between two frames [2, 3, Y, X] in [0, 1] in tiles; see `estimate_flow`."""
    if batch_size < 1:
        raise PerceiversError(f"batch_size = {batch_size} is not allowed: it must be at least 1.")
    name, adapter = find_adapter(model.inputs, FramePairInput, "flow")
    output, _ = find_adapter(model.outputs, FlowOutput, "flow")
    rows, columns = pair.shape[-2:]
    pair, tiles = find_tiles(pair, adapter.size, overlap)
    weight_YX = make_tile_weights(*adapter.size)
    total_2YX, weights_YX = torch.zeros(2, *pair.shape[-2:]), torch.zeros(pair.shape[-2:])
    groups = [tiles[start : start + batch_size] for start in range(0, len(tiles), batch_size)]
    for group in track(groups, "tiles"):
        frames = torch.stack([pair[..., y, x] for y, x in group]).to(get_device(model))
        flow_T2YX = check_answers(model({name: frames}))[output].float().cpu()
        for (y, x), flow_2YX in zip(group, flow_T2YX, strict=True):
            total_2YX[:, y, x] += weight_YX * flow_2YX
            weights_YX[y, x] += weight_YX
    return (total_2YX / weights_YX)[:, :rows, :columns]


@torch.no_grad()
def estimate_at_points(model: PerceiverIO, pair: Tensor, points_P2: Tensor, overlap: int) -> Tensor:
    """Estimates the flow [P, 2] at pixels of the first of two frames [2, 3, Y, X] in [0, 1]; see `estimate_flow`."""
    name, adapter = find_adapter(model.inputs, FramePairInput, "flow")
    output, flow_output = find_adapter(model.outputs, FlowOutput, "flow")
    if flow_output.upsampling is not None:
        raise PerceiversError("points need a model with a query for every pixel; this one upsamples: leave them out.")
    size = torch.tensor(pair.shape[:-3:-1])
    if points_P2.dim() != 2 or points_P2.shape[1] != 2 or points_P2.is_floating_point():
        found = f"points of shape {tuple(points_P2.shape)} and {points_P2.dtype} were given"
        raise PerceiversError(f"{found}, but whole numbers [points, 2] are expected: the column and row of each.")
    outside_P = ((points_P2 < 0) | (points_P2 >= size)).any(1)
    if outside_P.any():
        column, row = points_P2[outside_P][0].tolist()
        raise PerceiversError(f"the point ({column}, {row}) lies outside the frames of {size[0]} x {size[1]} pixels.")
    height, width = adapter.size
    weight_YX = make_tile_weights(height, width)
    total_P2, weights_P1 = torch.zeros(len(points_P2), 2), torch.zeros(len(points_P2), 1)
    pair, tiles = find_tiles(pair, adapter.size, overlap)
    for y, x in tiles:
        column_P, row_P = (points_P2 - torch.tensor([x.start, y.start])).unbind(1)
        inside_P = (column_P >= 0) & (column_P < width) & (row_P >= 0) & (row_P < height)
        if not inside_P.any():
            continue
        index_P = (row_P * width + column_P)[inside_P]
        tile = pair[None, ..., y, x].to(get_device(model))
        answers = model({name: tile}, {output: index_P.to(tile.device)})
        flow_P2 = check_answers(answers)[output][0].float().cpu()
        weight_P1 = weight_YX.flatten()[index_P, None]
        total_P2[inside_P] += weight_P1 * flow_P2
        weights_P1[inside_P] += weight_P1
    return total_P2 / weights_P1


def find_tiles(pair: Tensor, tile: tuple[int, int], overlap: int) -> tuple[Tensor, list[tuple[slice, slice]]]:
    """Extends frames smaller than a tile by their last pixels; returns them, and rows and columns of every tile."""
    height, width = (max(sides) for sides in zip(pair.shape[-2:], tile, strict=True))
    pair = F.pad(pair, (0, width - pair.shape[-1], 0, height - pair.shape[-2]), mode="replicate")
    tops, lefts = tile_offsets(height, tile[0], overlap), tile_offsets(width, tile[1], overlap)
    return pair, [(slice(top, top + tile[0]), slice(left, left + tile[1])) for top in tops for left in lefts]


def tile_offsets(size: int, tile: int, overlap: int) -> list[int]:
    """Returns the starts of evenly spaced tiles that reach both borders and overlap by `overlap` or more."""
    if not 0 <= overlap < tile:
        raise PerceiversError(f"overlap = {overlap} is not allowed: it must be from 0 to less than the tile's {tile}.")
    count = max(1, math.ceil((size - overlap) / (tile - overlap)))
    return [round(index * (size - tile) / max(count - 1, 1)) for index in range(count)]


def make_tile_weights(height: int, width: int) -> Tensor:
    """Returns the weights [Y, X] of a tile's pixels: the distance to the nearest edge, 1 at the edge."""
    y, x = torch.arange(height), torch.arange(width)
    near_Y, near_X = torch.minimum(y + 1, height - y), torch.minimum(x + 1, width - x)
    return torch.minimum(near_Y[:, None], near_X[None]).float()


def draw_video_flow(
    model: PerceiverIO | str | Path,
    video: str | Path,
    out: str | Path,
    overlap: int = OVERLAP,
    batch_size: int = 1,
    max_flow: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> int:
    """Draws the flow of a video, from every frame to the next, as a video in colors.

    Args:
        model, overlap, batch_size, device, dtype: as in `estimate_flow`.
        video, out: the video to read, any that PyAV reads, and the one to write.
        max_flow: length in pixels that has full color, by default the longest of the first pair.

    Returns:
        The number of pairs.

    Raises:
        PerceiversError: the video cannot be read or has fewer than two frames, or `out` cannot be written.
    """
    check_video_path(out)
    check_folder(out)
    check_max_flow(max_flow)
    model = load_for_inference(model, device, dtype)
    source = read_frames(video)
    pairs = 0

    def draw_pictures() -> Iterator[Tensor]:
        nonlocal max_flow, pairs
        count = None if source.count is None else source.count - 1
        with Progress("frames", count) as progress:
            for pairs, pair in enumerate(pairwise(map(to_floats, source.frames)), 1):
                if pairs == 1:
                    warn_if_padded(model, pair[0])
                flow_2YX = estimate_tiled(model, torch.stack(pair), overlap, batch_size)
                max_flow = float(flow_2YX.norm(dim=0).max()) if max_flow is None else max_flow
                yield draw_flow(flow_2YX, max_flow)
                progress.update()
        if not pairs:
            raise PerceiversError(f"{video} has fewer than two frames: flow needs two.")

    write_video(out, draw_pictures(), source.rate)
    return pairs
