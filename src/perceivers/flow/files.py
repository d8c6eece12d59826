"""Reads and writes files of optical flow, float32 [2, Y, X] in pixels, to the right and down; NaN where unknown.

Shape suffixes: Y rows, X columns, C colors (3)
"""

import io
import math
import re
import struct
from pathlib import Path
from typing import Any

import h5py
import kornia_rs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perceivers.data.tables import describe
from perceivers.errors import PerceiversError
from perceivers.files import check_count, require_file
from perceivers.model.saving import atomic_write

Array = np.ndarray[Any, Any]

FLO_MAGIC = b"PIEH"  # 202021.25 as a little-endian float
MAX_KNOWN = 1e9  # in pixels; Middlebury's files have more where the flow is unknown
UNKNOWN = 1e10
PFM_HEADER = re.compile(
    rb"PF\s+(\d{1,9})\s+(\d{1,9})\s+(-?)[\d.eE+-]+(?:\r\n|\s)"
)  # width, height, minus if little-endian
KITTI_ZERO, KITTI_STEPS = 2**15, 64  # level of zero flow; levels per pixel


def check_flow_path(path: str | Path) -> None:
    """Raises a PerceiversError unless the suffix is that of a flow file."""
    if Path(path).suffix.lower() not in READERS:
        raise PerceiversError(f"{path} does not have the suffix of a flow file: use one of {', '.join(READERS)}.")


def read_flow(path: str | Path) -> tuple[Tensor, Tensor]:
    """Reads a flow file in the format of its suffix.

    `.flo` is Middlebury's format, `.png` KITTI's (16-bit RGB), `.npy` an array [Y, X, 2] of floating point numbers,
    `.pfm` FlyingThings3D's, `.flo5` Spring's (HDF5).

    Returns:
        The flow, float32 [2, Y, X] in pixels, to the right and down, NaN where unknown; and bool [Y, X], True where it
        is known.

    Raises:
        PerceiversError: there is no such file, or it is damaged or of another format.
    """
    check_flow_path(path)
    path = require_file(path)
    flow_YX2 = np.asarray(READERS[path.suffix.lower()](path))
    if flow_YX2.ndim != 3 or flow_YX2.shape[2] != 2 or flow_YX2.dtype.kind != "f":
        found = f"{flow_YX2.dtype} {list(flow_YX2.shape)}"
        raise PerceiversError(f"{path} has {found}: floating point [height, width, 2] is expected.")
    if flow_YX2.size == 0:
        raise PerceiversError(f"{path} has no pixels: its shape is {list(flow_YX2.shape)}.")
    flow_2YX = invalidate(torch.from_numpy(flow_YX2.astype(np.float32)).permute(2, 0, 1).contiguous())
    return flow_2YX, ~flow_2YX[0].isnan()


def write_flow(path: str | Path, flow: Tensor, valid: Tensor | None = None) -> None:
    """Writes a file for `read_flow`, in the format of its suffix; an existing file is replaced.

    `.png` rounds to 1/64 pixel, the others keep float32 exactly.

    Args:
        flow: [2, Y, X] in pixels, to the right and down; NaN where unknown.
        valid: bool [Y, X], False where the flow is unknown, too.

    Raises:
        PerceiversError: the suffix is another, the path cannot be written to, the shapes are wrong, or the flow is too
            large for KITTI's format (-512 to 511.98 pixels).
    """
    check_flow_path(path)
    flow_YX2 = np.ascontiguousarray(invalidate(flow, valid).permute(1, 2, 0).numpy())
    WRITERS[Path(path).suffix.lower()](Path(path), flow_YX2)


def invalidate(flow: Tensor, valid: Tensor | None = None) -> Tensor:
    """Returns flow, float32 [2, Y, X] on the CPU, with NaN where `valid` is False or a component is NaN or huge."""
    if flow.ndim != 3 or flow.shape[0] != 2 or flow.numel() == 0:
        raise PerceiversError(f"flow has the shape {tuple(flow.shape)}: [2, height, width] is expected.")
    if valid is not None and valid.shape != flow.shape[1:]:
        raise PerceiversError(f"valid has the shape {tuple(valid.shape)}: {tuple(flow.shape[1:])} is expected.")
    flow_2YX = flow.detach().float().cpu()
    known_YX = (flow_2YX.abs() <= MAX_KNOWN).all(0)
    if valid is not None:
        known_YX &= valid.cpu().bool()
    return flow_2YX.masked_fill(~known_YX, math.nan)


def check_length(path: Path, width: int, height: int, channels: int, length: int) -> None:
    """Raises a PerceiversError unless `length` is the number of bytes of the float32 values that a header announces."""
    if width < 1 or height < 1 or length != 4 * channels * width * height:
        found = f"its header gives {width} x {height} pixels, but {length} bytes of flow follow"
        raise PerceiversError(f"{path} is truncated or damaged: {found}.")
    check_count(path, width * height, "pixels")


def read_flo(path: Path) -> Array:
    """Reads Middlebury's format as [Y, X, 2]."""
    with path.open("rb") as file:
        header = file.read(12)
        if header[:4] != FLO_MAGIC:
            raise PerceiversError(f"{path} is not a Middlebury flow file: it does not begin with {FLO_MAGIC.decode()}.")
        if len(header) < 12:
            raise PerceiversError(f"{path} is truncated: it ends before the size of the flow.")
        width, height = struct.unpack("<ii", header[4:])
        check_length(path, width, height, 2, path.stat().st_size - 12)
        return np.frombuffer(file.read(), "<f4").reshape(height, width, 2)


def write_flo(path: Path, flow_YX2: Array) -> None:
    """Writes flow [Y, X, 2], NaN where unknown, in Middlebury's format."""
    atomic_write(path, lambda file: file.write_bytes(encode_flo(flow_YX2)))


def encode_flo(flow_YX2: Array) -> bytes:
    """Returns flow [Y, X, 2], NaN where unknown, as a file of Middlebury's format."""
    height, width, _ = flow_YX2.shape
    content = np.nan_to_num(flow_YX2, nan=UNKNOWN).astype("<f4").tobytes()
    return FLO_MAGIC + struct.pack("<ii", width, height) + content


def read_kitti(path: Path) -> Array:
    """Reads KITTI's format as [Y, X, 2]."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            check_count(path, image.width * image.height, "pixels")
        levels_YXC = kornia_rs.io.read_image(str(path))
    except PerceiversError:
        raise
    except Exception as error:  # the library documents no class of errors
        raise PerceiversError(f"{path} cannot be decoded as a PNG image ({describe(error)}).") from error
    if levels_YXC.dtype != np.uint16 or levels_YXC.shape[-1] != 3:
        found = f"{levels_YXC.shape[-1]} colors of {8 * levels_YXC.itemsize} bits"
        raise PerceiversError(f"{path} is not a KITTI flow file: it has {found}, 3 of 16 bits are expected.")
    flow_YX2 = (levels_YXC[..., :2].astype(np.float32) - KITTI_ZERO) / KITTI_STEPS
    flow_YX2[levels_YXC[..., 2] == 0] = np.nan
    return flow_YX2


def write_kitti(path: Path, flow_YX2: Array) -> None:
    """Writes KITTI's format."""
    known_YX = ~np.isnan(flow_YX2[..., 0])
    levels_YX2 = np.rint(np.nan_to_num(flow_YX2) * KITTI_STEPS) + KITTI_ZERO
    if levels_YX2.min() < 0 or levels_YX2.max() >= 2**16:
        reach = f"its flow reaches {np.nanmax(np.abs(flow_YX2)):g} pixels"
        raise PerceiversError(f"cannot write {path}: {reach}, but KITTI's format -512 to 511.98: use .flo or .npy.")
    levels_YXC = np.dstack([levels_YX2 * known_YX[..., None], known_YX]).astype(np.uint16)
    atomic_write(path, lambda file: kornia_rs.io.write_image_png_u16(str(file), levels_YXC, "rgb"))


def read_array(path: Path) -> Array:
    """Reads NumPy's format."""
    problem = f"{path} cannot be read as a NumPy array: it is damaged or of another format."
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read_header(file)
            count = math.prod(shape)
            if dtype.hasobject or count * dtype.itemsize != path.stat().st_size - file.tell():
                raise PerceiversError(problem)
            check_count(path, count, "values")
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except PerceiversError:
        raise
    except Exception as error:  # headers are evaluated as Python literals, which raise many kinds
        raise PerceiversError(problem) from error


def write_array(path: Path, flow_YX2: Array) -> None:
    """Writes NumPy's format."""
    content = io.BytesIO()
    np.save(content, flow_YX2)
    atomic_write(path, lambda file: file.write_bytes(content.getvalue()))


def read_pfm(path: Path) -> Array:
    """Reads the first two of a PFM file's three colors."""
    with path.open("rb") as file:
        header = PFM_HEADER.match(file.read(100))
        if header is None:
            raise PerceiversError(
                f"{path} is not a PFM file of three colors: it does not begin with PF, size and scale."
            )
        width, height = int(header[1]), int(header[2])
        check_length(path, width, height, 3, path.stat().st_size - header.end())
        file.seek(header.end())
        levels = np.frombuffer(file.read(), "<f4" if header[3] else ">f4")
    return levels.reshape(height, width, 3)[::-1, :, :2]  # the bottom row comes first


def write_pfm(path: Path, flow_YX2: Array) -> None:
    """Writes a PFM file whose third color is 0."""
    height, width, _ = flow_YX2.shape
    levels_YXC = np.dstack([flow_YX2, np.zeros((height, width))])[::-1].astype("<f4")
    header = f"PF\n{width} {height}\n-1.0\n".encode()
    atomic_write(path, lambda file: file.write_bytes(header + levels_YXC.tobytes()))


def read_flo5(path: Path) -> Array:
    """Reads Spring's format; not data that is in other files."""
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("flow", getlink=True), h5py.HardLink):
                raise PerceiversError(f"{path} is not a Spring flow file: it has no data set 'flow' of its own.")
            flow = file["flow"]
            if not isinstance(flow, h5py.Dataset):
                raise PerceiversError(f"{path} is not a Spring flow file: it has no data set 'flow'.")
            if flow.is_virtual or flow.external:
                raise PerceiversError(
                    f"{path} refers to data in other files, which are not read: copy it into the file."
                )
            check_count(path, flow.size or 0, "values")
            return flow[()]
    except PerceiversError:
        raise
    except Exception as error:  # the library raises many kinds
        raise PerceiversError(f"{path} cannot be read as an HDF5 file: it is damaged or of another format.") from error


def write_flo5(path: Path, flow_YX2: Array) -> None:
    """Writes Spring's format."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset("flow", data=flow_YX2, compression="gzip")
    atomic_write(path, lambda file: file.write_bytes(content.getvalue()))


READERS = {".flo": read_flo, ".png": read_kitti, ".npy": read_array, ".pfm": read_pfm, ".flo5": read_flo5}
WRITERS = {".flo": write_flo, ".png": write_kitti, ".npy": write_array, ".pfm": write_pfm, ".flo5": write_flo5}
