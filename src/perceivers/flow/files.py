"""Optical flow, and the frames it belongs to, in files.

Flow is a tensor float32 [2, Y, X] in pixels: how far the content of each pixel moves to the right (first) and
downwards (second). Where it is not known it is NaN.

Shape suffixes: Y rows, X columns, C colors (3)
"""

import io
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from perceivers.extras import require_extra

require_extra("vision")

import h5py
import kornia_rs
import numpy as np
import torch
from torch import Tensor

from perceivers.data.image_files import existing
from perceivers.errors import PerceiversError
from perceivers.model.saving import write

Array = np.ndarray[Any, Any]

FLO_MAGIC = b"PIEH"  # 202021.25 as a little-endian float
LARGEST_KNOWN = 1e9  # in pixels; Middlebury writes more where the flow is not known
UNKNOWN = 1e10
PFM_HEADER = re.compile(rb"PF\s+(\d{1,9})\s+(\d{1,9})\s+(-?)[\d.eE+-]+\s")  # width, height, minus if little-endian
KITTI_ZERO, KITTI_STEPS = 2**15, 64  # the level of zero flow; levels a pixel


def check_flow_path(path: str | Path) -> None:
    """Raises a PerceiversError unless flow can be read from and written to a file of this suffix."""
    if Path(path).suffix.lower() not in FORMATS:
        raise PerceiversError(f"{path} is no flow file by its suffix: use one of {', '.join(FORMATS)}.")


def read_flow(path: str | Path) -> tuple[Tensor, Tensor]:
    """Reads a flow file; its suffix says which kind it is.

    `.flo` is Middlebury's format, `.png` KITTI's (16-bit RGB), `.npy` an array [Y, X, 2] of floating point numbers,
    `.pfm` FlyingThings3D's, `.flo5` Spring's (HDF5).

    Returns:
        The flow, float32 [2, Y, X] in pixels, to the right and downwards, NaN where it is not known; and where it is
        known, bool [Y, X].

    Raises:
        PerceiversError: there is no such file, or it is not such a flow file or damaged.
    """
    check_flow_path(path)
    path = existing(path)
    flow_YX2 = FORMATS[path.suffix.lower()].read(path).astype(np.float32)
    if flow_YX2.size == 0:
        raise PerceiversError(f"{path} holds no pixels: its shape is {list(flow_YX2.shape)}.")
    flow_2YX = masked(torch.from_numpy(flow_YX2).permute(2, 0, 1).contiguous())
    return flow_2YX, ~flow_2YX[0].isnan()


def write_flow(path: str | Path, flow: Tensor, valid: Tensor | None = None) -> None:
    """Writes a file that `read_flow` reads; its suffix says which kind.

    `.png` rounds to 1/64 pixel, the others keep float32 exactly.

    Args:
        path: where to; a file there is replaced.
        flow: [2, Y, X] in pixels, to the right and downwards; NaN where it is not known.
        valid: bool [Y, X], False where it is not known either.

    Raises:
        PerceiversError: the suffix is another, the path cannot be written to, the shapes are wrong, or the flow is too
            large for KITTI's format (-512 to 511.98 pixels).
    """
    check_flow_path(path)
    flow_YX2 = np.ascontiguousarray(masked(flow, valid).permute(1, 2, 0).numpy())
    FORMATS[Path(path).suffix.lower()].write(Path(path), flow_YX2)


def masked(flow: Tensor, valid: Tensor | None = None) -> Tensor:
    """-> float32 [2, Y, X] on the CPU, NaN where `valid` is False or either part is NaN or beyond all measure."""
    if flow.ndim != 3 or flow.shape[0] != 2 or flow.numel() == 0:
        raise PerceiversError(f"flow has the shape {tuple(flow.shape)}: [2, height, width] is expected.")
    if valid is not None and valid.shape != flow.shape[1:]:
        raise PerceiversError(f"valid has the shape {tuple(valid.shape)}: {tuple(flow.shape[1:])} is expected.")
    flow_2YX = flow.detach().float().cpu()
    known_YX = (flow_2YX.abs() <= LARGEST_KNOWN).all(0)
    if valid is not None:
        known_YX &= valid.cpu().bool()
    return flow_2YX.masked_fill(~known_YX, math.nan)


def read_flo(path: Path) -> Array:
    """-> [Y, X, 2]."""
    content = path.read_bytes()
    if content[:4] != FLO_MAGIC:
        raise PerceiversError(f"{path} is no Middlebury flow file: it does not begin with {FLO_MAGIC.decode()}.")
    if len(content) < 12:
        raise PerceiversError(f"{path} is truncated: it ends before the size of the flow.")
    width, height = struct.unpack("<ii", content[4:12])
    if width < 1 or height < 1 or len(content) != 12 + 8 * width * height:
        raise PerceiversError(
            f"{path} is truncated or damaged: it says that its flow is {width} x {height} pixels, "
            f"but has {len(content) - 12} bytes of flow."
        )
    return np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2)


def write_flo(path: Path, flow_YX2: Array) -> None:
    """From [Y, X, 2], NaN where not known."""
    height, width, _ = flow_YX2.shape
    content = np.nan_to_num(flow_YX2, nan=UNKNOWN).astype("<f4").tobytes()
    write(path, lambda file: file.write_bytes(FLO_MAGIC + struct.pack("<ii", width, height) + content))


def read_kitti(path: Path) -> Array:
    """-> [Y, X, 2]."""
    try:
        levels_YXC = kornia_rs.io.read_image(str(path))
    except Exception as error:  # no narrower kind is promised
        raise PerceiversError(f"{path} cannot be decoded as a PNG image ({str(error).strip('.')}).") from error
    if levels_YXC.dtype != np.uint16 or levels_YXC.shape[-1] != 3:
        raise PerceiversError(
            f"{path} is no KITTI flow file: it has {levels_YXC.shape[-1]} colors of {8 * levels_YXC.itemsize} bits, "
            "3 of 16 bits are expected."
        )
    flow_YX2 = (levels_YXC[..., :2].astype(np.float32) - KITTI_ZERO) / KITTI_STEPS
    flow_YX2[levels_YXC[..., 2] == 0] = np.nan
    return flow_YX2


def write_kitti(path: Path, flow_YX2: Array) -> None:
    """From [Y, X, 2], NaN where not known."""
    known_YX = ~np.isnan(flow_YX2[..., 0])
    levels_YX2 = np.rint(np.nan_to_num(flow_YX2) * KITTI_STEPS) + KITTI_ZERO
    if levels_YX2.min() < 0 or levels_YX2.max() >= 2**16:
        raise PerceiversError(
            f"cannot write {path}: its flow reaches {np.nanmax(np.abs(flow_YX2)):g} pixels, "
            "but KITTI's format ends at -512 and 511.98: use .flo or .npy."
        )
    levels_YXC = np.dstack([levels_YX2 * known_YX[..., None], known_YX]).astype(np.uint16)
    write(path, lambda file: kornia_rs.io.write_image_png_u16(str(file), levels_YXC, "rgb"))


def read_array(path: Path) -> Array:
    """-> [Y, X, 2]."""
    try:
        with path.open("rb") as file:
            flow_YX2: Array = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, MemoryError) as error:
        raise PerceiversError(f"{path} cannot be read as a NumPy array: it is truncated, damaged or none.") from error
    check_array(flow_YX2, path)
    return flow_YX2


def write_array(path: Path, flow_YX2: Array) -> None:
    """From [Y, X, 2], NaN where not known."""
    content = io.BytesIO()
    np.save(content, flow_YX2)
    write(path, lambda file: file.write_bytes(content.getvalue()))


def read_pfm(path: Path) -> Array:
    """-> [Y, X, 2], the first two of its three colors."""
    content = path.read_bytes()
    header = PFM_HEADER.match(content)
    if header is None:
        raise PerceiversError(f"{path} is no PFM file of three colors: it does not begin with PF, its size and scale.")
    width, height = int(header[1]), int(header[2])
    have = len(content) - header.end()
    if width < 1 or height < 1 or have != 12 * width * height:
        raise PerceiversError(
            f"{path} is truncated or damaged: it says that its flow is {width} x {height} pixels, "
            f"but has {have} bytes of flow."
        )
    levels = np.frombuffer(content, "<f4" if header[3] else ">f4", offset=header.end())
    return levels.reshape(height, width, 3)[::-1, :, :2]  # the bottom row comes first


def write_pfm(path: Path, flow_YX2: Array) -> None:
    """From [Y, X, 2], NaN where not known."""
    height, width, _ = flow_YX2.shape
    levels_YXC = np.dstack([flow_YX2, np.zeros((height, width))])[::-1].astype("<f4")
    header = f"PF\n{width} {height}\n-1.0\n".encode()
    write(path, lambda file: file.write_bytes(header + levels_YXC.tobytes()))


def read_flo5(path: Path) -> Array:
    """-> [Y, X, 2]."""
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("flow"), h5py.Dataset):
                raise PerceiversError(f"{path} is no Spring flow file: it has no data set 'flow'.")
            check_array(file["flow"], path)
            flow_YX2: Array = file["flow"][()]
    except (OSError, RuntimeError) as error:
        raise PerceiversError(f"{path} cannot be read as an HDF5 file: it is truncated, damaged or none.") from error
    return flow_YX2


def write_flo5(path: Path, flow_YX2: Array) -> None:
    """From [Y, X, 2], NaN where not known."""

    def fill(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            file.create_dataset("flow", data=flow_YX2, compression="gzip")

    write(path, fill)


def check_array(array: Any, path: Path) -> None:
    """Raises a PerceiversError unless an array of NumPy or HDF5 can be flow."""
    if array.ndim != 3 or array.shape[2] != 2 or array.dtype.kind != "f":
        raise PerceiversError(
            f"{path} holds {array.dtype} {list(array.shape)}: floating point [height, width, 2] is expected."
        )


class Format(NamedTuple):
    """How one kind of flow file is read and written; not known is NaN or beyond all measure in [Y, X, 2]."""

    read: Callable[[Path], Array]
    write: Callable[[Path, Array], None]


FORMATS = {
    ".flo": Format(read_flo, write_flo),
    ".png": Format(read_kitti, write_kitti),
    ".npy": Format(read_array, write_array),
    ".pfm": Format(read_pfm, write_pfm),
    ".flo5": Format(read_flo5, write_flo5),
}
