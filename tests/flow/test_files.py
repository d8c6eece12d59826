import io
import pickle
import struct
import tracemalloc
import zlib
from math import inf, nan

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from perceivers import PerceiversError
from perceivers.data.image_files import read_frame
from perceivers.flow.files import check_flow_path, read_flow, write_flow


def flow_of(*vectors):
    """One row of vectors."""
    return torch.tensor(vectors, dtype=torch.float32).T[:, None]


def random_flow(height=5, width=7, scale=20.0):
    return scale * torch.randn(2, height, width)


def png(levels_YXC, depth):
    """A PNG file made by hand, its rows without a filter."""
    height, width, colors = np.shape(levels_YXC)
    pixels = np.array(levels_YXC, dtype=">u2" if depth == 16 else "u1")

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, {1: 0, 3: 2, 4: 6}[colors], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def npy(array, allow_pickle=False):
    content = io.BytesIO()
    np.save(content, array, allow_pickle=allow_pickle)
    return content.getvalue()


def zipped():
    content = io.BytesIO()
    np.savez(content, flow=np.zeros((2, 2, 2)))
    return content.getvalue()


# flow in files


def test_a_flo_file_made_by_hand(tmp_path):
    path = tmp_path / "a.flo"
    row = [1.5, -2, 0.25, 1e9, 3, 1.7e9, nan, 4, -inf, 0, 5, 6]
    path.write_bytes(struct.pack("<fii12f", 202021.25, 3, 2, *row))
    flow, valid = read_flow(path)
    assert (flow.dtype, valid.dtype) == (torch.float32, torch.bool)
    assert valid.tolist() == [[True, True, False], [False, False, True]]
    assert flow[:, 0, :2].tolist() == [[1.5, 0.25], [-2, 1e9]]
    assert flow[:, 1, 2].tolist() == [5, 6]
    assert flow[:, ~valid].isnan().all()
    write_flow(path, flow, valid)
    unknown = [1e10, 1e10]
    expected = row[:4] + unknown + unknown + unknown + [5, 6]
    assert path.read_bytes() == b"PIEH" + struct.pack("<ii12f", 3, 2, *expected)


@pytest.mark.parametrize("suffix", [".flo", ".npy", ".FLO", ".pfm", ".flo5"])
def test_float_formats_keep_every_bit(tmp_path, suffix):
    flow = random_flow()
    flow[:, 0, 0] = torch.tensor([1e-40, -600])
    valid = torch.rand(5, 7) > 0.3
    flow[1, 4, 6] = nan
    write_flow(tmp_path / f"a{suffix}", flow, valid)
    again, known = read_flow(str(tmp_path / f"a{suffix}"))
    valid[4, 6] = False
    assert torch.equal(known, valid)
    assert torch.equal(again[:, valid], flow[:, valid])
    assert again[:, ~valid].isnan().all()
    assert again.is_contiguous()


def test_npy_is_an_ordinary_array(tmp_path):
    flow = random_flow().double()
    write_flow(tmp_path / "a.npy", flow.requires_grad_())
    array = np.load(tmp_path / "a.npy")
    assert (array.dtype, array.shape) == (np.float32, (5, 7, 2))
    assert np.array_equal(array[3, 6], flow[:, 3, 6].detach().float())
    np.save(tmp_path / "b.npy", np.asfortranarray(array.astype(np.float64)))
    assert torch.equal(read_flow(tmp_path / "b.npy")[0], flow.float())


@pytest.mark.parametrize(("scale", "order"), [("-1.0", "<"), ("1", ">"), ("-0.00392157", "<"), ("2.5e-1", ">")])
def test_a_pfm_file_made_by_hand(tmp_path, scale, order):
    path = tmp_path / "a.pfm"
    bottom, top = [1, 2, 0, 3, 4, 0, 5, nan, 0], [-6, 7.25, 9, 8, -9, 9, 1e10, 0, 9]
    path.write_bytes(f"PF\n3 2\n{scale}\n".encode() + struct.pack(f"{order}18f", *bottom, *top))
    flow, valid = read_flow(path)
    assert flow[:, :, :2].tolist() == [[[-6, 8], [1, 3]], [[7.25, -9], [2, 4]]]
    assert valid.tolist() == [[True, True, False]] * 2
    assert flow[:, :, 2].isnan().all()


def test_pfm_as_another_library_writes_and_reads_it(tmp_path):
    cv2 = pytest.importorskip("cv2")
    levels_YXC = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
    cv2.imwrite(str(tmp_path / "a.pfm"), levels_YXC[..., ::-1])  # blue first
    flow, _ = read_flow(tmp_path / "a.pfm")
    assert np.array_equal(flow.permute(1, 2, 0), levels_YXC[..., :2])
    write_flow(tmp_path / "b.pfm", flow)
    again = cv2.imread(str(tmp_path / "b.pfm"), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert np.array_equal(again[..., :2], levels_YXC[..., :2])
    assert (again[..., 2] == 0).all()


def test_flo5_is_compressed_hdf5(tmp_path):
    flow = random_flow(50, 70).round()
    flow[:, 2, 3] = nan
    write_flow(tmp_path / "a.flo5", flow)
    with h5py.File(tmp_path / "a.flo5") as file:
        assert list(file) == ["flow"]
        assert (file["flow"].shape, file["flow"].dtype, file["flow"].compression) == ((50, 70, 2), np.float32, "gzip")
        assert np.array_equal(file["flow"][4], flow[:, 4].T)
        assert np.isnan(file["flow"][2, 3]).all()
    with h5py.File(tmp_path / "b.flo5", "w") as file:
        file["flow"] = flow.permute(1, 2, 0).double()
    assert torch.equal(read_flow(tmp_path / "b.flo5")[0].nan_to_num(), flow.nan_to_num())


def test_a_kitti_file_made_by_hand(tmp_path):
    path = tmp_path / "a.PNG"
    path.write_bytes(png([[[32768, 32832, 1], [32769, 0, 7], [65535, 32767, 0]]], 16))
    flow, valid = read_flow(path)
    assert valid.tolist() == [[True, True, False]]
    assert flow[:, 0, :2].tolist() == [[0, 1 / 64], [1, -512]]
    assert flow[:, 0, 2].isnan().all()


def test_kitti_rounds_to_a_64th_of_a_pixel(tmp_path):
    path = tmp_path / "a.png"
    flow = random_flow(scale=100)
    flow[:, 0, :4] = torch.tensor([[-512, 511.984375, 0.008, 0], [1.5, -1.5, 0.0077, 0]])
    valid = torch.ones(5, 7, dtype=torch.bool)
    valid[0, 3] = False
    flow[0, 2, 2] = nan
    write_flow(path, flow, valid)
    again, known = read_flow(path)
    valid[2, 2] = False
    assert torch.equal(known, valid)
    assert torch.equal(again[:, valid], (flow[:, valid] * 64).round() / 64)
    assert again[:, 0, :3].tolist() == [[-512, 511.984375, 1 / 64], [1.5, -1.5, 0]]
    assert path.read_bytes()[16:26] == struct.pack(">IIBB", 7, 5, 16, 2)  # 16-bit RGB
    with Image.open(path) as image:  # the high bytes: right is red, down green, known blue
        assert image.getpixel((0, 0)) == (0, (32768 + 96) >> 8, 0)
        assert image.getpixel((1, 0)) == (255, (32768 - 96) >> 8, 0)
        assert image.getpixel((3, 0)) == (0, 0, 0)


def test_a_real_kitti_file_against_another_decoder(shared_data):
    av = pytest.importorskip("av")
    path = shared_data / "flow/kitti15/training/flow_occ/000000_10.png"
    raw = next(av.open(str(path)).decode(video=0)).to_ndarray().astype(np.int64)
    flow, valid = read_flow(path)
    assert flow.shape == (2, 375, 1242)
    assert np.array_equal(valid, raw[..., 2] == 1)
    assert np.array_equal(flow[0][valid], (raw[..., 0] - 2**15)[valid] / 64)
    assert np.array_equal(flow[1][valid], (raw[..., 1] - 2**15)[valid] / 64)


@pytest.mark.parametrize("suffix", [".flo", ".npy", ".png", ".pfm", ".flo5"])
def test_real_files_survive(shared_data, tmp_path, suffix):
    folder = shared_data / "flow"
    truth = folder / ("kitti15/training/flow_occ/000000_10.png" if suffix == ".png" else "middlebury/other-gt-flow")
    flow, valid = read_flow(truth if suffix == ".png" else truth / "RubberWhale/flow10.flo")
    assert 0 < valid.float().mean() < 1
    write_flow(tmp_path / f"a{suffix}", flow, valid)
    again, known = read_flow(tmp_path / f"a{suffix}")
    assert torch.equal(known, valid)
    assert torch.equal(again[:, valid], flow[:, valid])


def hdf5(**arrays):
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **({"compression": "gzip"} if array.size > 100 else {}))
        file.create_group("group")
    return content.getvalue()


FLO = struct.pack("<fii8f", 202021.25, 2, 2, *range(8))
KITTI = png([[[1, 2, 3]] * 9] * 9, 16)
PFM = b"PF\n2 2\n-1\n" + struct.pack("<12f", *range(12))
HDF5 = hdf5(flow=np.random.default_rng(0).normal(size=(40, 50, 2)))
MIDDLE = len(HDF5) // 2  # of the compressed numbers


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.flo", b"", "does not begin with PIEH"),
        ("a.flo", b"PEIH" + FLO[4:], "does not begin with PIEH"),
        ("a.flo", FLO[:9], "is truncated: it ends before the size"),
        ("a.flo", FLO[:-1], "its header gives 2 x 2 pixels, but 31 bytes of flow follow"),
        ("a.flo", FLO + b"\0", "its header gives 2 x 2 pixels, but 33 bytes of flow follow"),
        ("a.flo", FLO[:4] + struct.pack("<ii", -2, -2) + FLO[12:], "its header gives -2 x -2 pixels"),
        ("a.flo", FLO[:4] + struct.pack("<ii", 0, 2), "its header gives 0 x 2 pixels"),
        ("a.png", KITTI[: len(KITTI) // 2], "cannot be decoded as a PNG image"),
        ("a.png", b"", "cannot be decoded as a PNG image"),
        ("a.png", KITTI[:50] + b"\1" + KITTI[51:], "cannot be decoded as a PNG image"),
        ("a.png", png([[[1, 2, 3]]], 8), "3 colors of 8 bits, 3 of 16 bits are expected"),
        ("a.png", png([[[1]]], 16), "1 colors of 16 bits, 3 of 16 bits are expected"),
        ("a.png", png([[[1, 2, 3, 4]]], 16), "4 colors of 16 bits, 3 of 16 bits are expected"),
        ("a.npy", npy(np.zeros((4, 5, 2)))[:-1], "cannot be read as a NumPy array"),
        ("a.npy", npy(np.zeros((4, 5, 2)))[:30], "cannot be read as a NumPy array"),
        ("a.npy", b"", "cannot be read as a NumPy array"),
        ("a.npy", zipped(), "cannot be read as a NumPy array"),
        ("a.npy", pickle.dumps([1]), "cannot be read as a NumPy array"),
        ("a.npy", npy(np.array([{}]), allow_pickle=True), "cannot be read as a NumPy array"),
        ("a.npy", npy(np.zeros((2, 4, 5))), r"has float64 \[2, 4, 5\]: floating point \[height, width, 2\]"),
        ("a.npy", npy(np.zeros((4, 2))), r"has float64 \[4, 2\]"),
        ("a.npy", npy(np.zeros((4, 5, 2), dtype=np.uint16)), r"has uint16 \[4, 5, 2\]: floating point"),
        ("a.npy", npy(np.zeros((0, 5, 2))), "has no pixels"),
        ("a.npy", None, "is not a readable file"),
        ("a.pfm", b"", "is not a PFM file of three colors: it does not begin with PF"),
        ("a.pfm", b"Pf" + PFM[2:], "is not a PFM file of three colors"),
        ("a.pfm", PFM[:6], "is not a PFM file of three colors"),
        ("a.pfm", PFM[:-1], "its header gives 2 x 2 pixels, but 47 bytes of flow follow"),
        ("a.pfm", PFM + b"\n", "its header gives 2 x 2 pixels, but 49 bytes of flow follow"),
        ("a.pfm", PFM.replace(b"2 2", b"0 2"), "its header gives 0 x 2 pixels"),
        ("a.flo5", b"", "cannot be read as an HDF5 file"),
        ("a.flo5", FLO, "cannot be read as an HDF5 file"),
        ("a.flo5", HDF5[:MIDDLE], "cannot be read as an HDF5 file"),
        ("a.flo5", HDF5[:MIDDLE] + bytes(99) + HDF5[MIDDLE + 99 :], "cannot be read as an HDF5 file"),
        ("a.flo5", hdf5(disparity=np.zeros((4, 5, 2))), "is not a Spring flow file: it has no data set 'flow'"),
        ("a.flo5", hdf5(flow=np.zeros((2, 4, 5))), r"has float64 \[2, 4, 5\]: floating point \[height, width, 2\]"),
        ("a.flo5", hdf5(flow=np.zeros((4, 5, 2), dtype=np.int16)), r"has int16 \[4, 5, 2\]: floating point"),
        ("a.flo5", hdf5(flow=np.zeros((4, 0, 2))), "has no pixels"),
        ("a.txt", b"", r"does not have the suffix of a flow file: use one of .flo, .png, .npy, .pfm, .flo5"),
        ("a", b"", r"does not have the suffix of a flow file"),
    ],
)
def test_what_is_no_flow_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(PerceiversError, match=f"^{tmp_path / name} .*{message}"):
        read_flow(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "flow", "valid", "message"),
    [
        ("a.png", flow_of((0, 512)), None, r"a.png: its flow reaches 512 pixels, but KITTI's .* use .flo or .npy"),
        ("a.png", flow_of((600, 0), (nan, 0)), None, "its flow reaches 600 pixels"),
        ("a.png", flow_of((-512.01, 0)), None, "its flow reaches 512.01 pixels"),
        ("a.tiff", flow_of((0, 0)), None, "a.tiff does not have the suffix of a flow file"),
        ("a.flo", torch.zeros(4, 5, 2), None, r"flow has the shape \(4, 5, 2\): \[2, height, width\]"),
        ("a.flo", torch.zeros(2, 0, 2), None, r"flow has the shape \(2, 0, 2\)"),
        ("a.flo", torch.zeros(2, 4, 5), torch.ones(5, 4), r"valid has the shape \(5, 4\): \(4, 5\) is expected"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(tmp_path, name, flow, valid, message):
    (tmp_path / name).write_text("as it was")
    with pytest.raises(PerceiversError, match=message):
        write_flow(tmp_path / name, flow, valid)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, "as it was")]


@pytest.mark.parametrize("suffix", [".flo", ".npy", ".png", ".pfm", ".flo5"])
def test_a_failing_disk_leaves_nothing(tmp_path, monkeypatch, suffix):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("perceivers.model.saving.os.replace", full)
    with pytest.raises(PerceiversError, match="no space left on device; choose another output path"):
        write_flow(tmp_path / f"a{suffix}", flow_of((1, 2)))
    assert list(tmp_path.iterdir()) == []


def test_flow_outside_kittis_range_may_be_unknown(tmp_path):
    write_flow(tmp_path / "a.png", flow_of((600, 0), (1, 2)), torch.tensor([[False, True]]))
    assert read_flow(tmp_path / "a.png")[0][:, 0, 1].tolist() == [1, 2]


def test_paths_can_be_checked_beforehand(tmp_path):
    for name in ("a.flo", "b.PNG", "c.npy", "d.pfm", "e.flo5"):
        check_flow_path(tmp_path / name)
    with pytest.raises(PerceiversError, match=r"a\.mp3 does not have the suffix of a flow file"):
        check_flow_path("a.mp3")


# frames


def saved(path, image, **options):
    image.save(path, **options)
    return read_frame(path)


def test_colors_and_their_order(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    frame = saved(tmp_path / "a.png", Image.fromarray(pixels))
    assert frame.dtype == torch.uint8
    assert torch.equal(frame, torch.from_numpy(pixels).permute(2, 0, 1))
    gray = saved(tmp_path / "b.png", Image.fromarray(pixels[..., 0]))
    assert torch.equal(gray, torch.from_numpy(pixels[..., 0]).expand(3, 4, 5))


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "expected"),
    [
        ("1", 1, ".png", (255, 255, 255)),
        ("L", 90, ".png", (90, 90, 90)),
        ("LA", (90, 0), ".png", (255, 255, 255)),
        ("LA", (90, 255), ".png", (90, 90, 90)),
        ("RGBA", (10, 20, 30, 255), ".png", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), ".png", (255, 255, 255)),
        ("RGBA", (0, 100, 255, 51), ".png", (204, 224, 255)),  # a fifth
        ("CMYK", (255, 0, 0, 0), ".tif", (0, 255, 255)),
        ("YCbCr", (90, 128, 128), ".tif", (90, 90, 90)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, color, suffix, expected):
    frame = saved(tmp_path / f"a{suffix}", Image.new(mode, (3, 2), color))
    assert frame.shape == (3, 2, 3)
    assert tuple(frame[:, 1, 2].tolist()) == expected


def test_palettes(tmp_path):
    image = Image.new("P", (3, 2), 1)
    image.putpalette([255, 0, 0, 10, 200, 30])
    assert saved(tmp_path / "a.png", image)[:, 0, 0].tolist() == [10, 200, 30]
    assert saved(tmp_path / "b.gif", image)[:, 0, 0].tolist() == [10, 200, 30]
    assert saved(tmp_path / "c.png", image, transparency=1)[:, 0, 0].tolist() == [255, 255, 255]


LEVELS = np.array([[0, 128, 257 * 90, 40000, 65535]], dtype=np.uint16)
BYTES = [0, 0, 90, 156, 255]


@pytest.mark.parametrize(
    ("name", "values", "mode"),
    [
        ("a.png", LEVELS, "I;16"),
        ("a.tif", LEVELS, "I;16"),
        ("a.pgm", LEVELS, "I"),
        ("a.tif", LEVELS.astype(np.int32), "I"),
        ("a.tif", (LEVELS / 65535).astype(np.float32), "F"),
        ("a.pfm", (LEVELS / 65535).astype(np.float32), "F"),
    ],
)
def test_16_bit_and_float_grays_are_scaled(tmp_path, name, values, mode):
    frame = saved(tmp_path / name, Image.fromarray(values))
    with Image.open(tmp_path / name) as image:
        assert image.mode == mode
    assert frame.tolist() == [[BYTES]] * 3


def test_16_bit_colors_are_scaled(tmp_path):
    (tmp_path / "a.png").write_bytes(png([[[257 * 90, 65535, 0], [40000, 255, 256]]], 16))
    assert read_frame(tmp_path / "a.png")[:, 0].T.tolist() == [[90, 255, 0], [156, 0, 1]]


def test_exif_orientation_is_respected(tmp_path):
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    frame = saved(tmp_path / "a.png", image, exif=exif)
    assert frame.shape == (3, 4, 2)
    assert frame.nonzero().tolist() == [[color, 0, 1] for color in range(3)]


def test_real_frames(shared_data):
    assert read_frame(shared_data / "flow/sintel_frames/ambush_1/frame_0001.png").shape == (3, 436, 1024)
    frame = read_frame(shared_data / "flow/middlebury/other-data/RubberWhale/frame10.png")
    assert frame.shape == (3, 388, 584)


def test_undecodable_frames_are_refused(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(PerceiversError, match=f"^{path} is not a readable file"):
        read_frame(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not an image"):
        path.write_bytes(content)
        with pytest.raises(PerceiversError, match=f"^{path} cannot be decoded as an image"):
            read_frame(path)
    for name, values, top in (("b.tif", np.float32([[0, 200]]), 1), ("c.tif", np.int32([[0, 65536]]), 65535)):
        Image.fromarray(values).save(tmp_path / name)
        with pytest.raises(PerceiversError, match=f"{name} has values outside 0 to {top}: save it with 8 or 16 bits"):
            read_frame(tmp_path / name)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b" "])
def test_pfm_has_any_line_ends(tmp_path, end):
    values = np.arange(18, dtype="<f4").reshape(2, 3, 3)
    (tmp_path / "a.pfm").write_bytes(b"PF" + end + b"3 2" + end + b"-1.0" + end + values[::-1].tobytes())
    flow_2YX, _ = read_flow(tmp_path / "a.pfm")
    assert flow_2YX.tolist() == values[..., :2].transpose(2, 0, 1).tolist()


def npy_header(shape, dtype="<f4"):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": dtype, "fortran_order": False, "shape": shape})
    return content.getvalue()


def png_header(width, height):
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


PROMISES = {
    "a.flo": b"PIEH" + struct.pack("<ii", 2**20, 2**20),
    "a.pfm": b"PF\n100000 100000\n-1.0\n",
    "a.npy": npy_header((10**6, 10**6, 2)),
    "b.npy": npy_header((10**30, 10**30, 2)),
    "c.npy": npy_header((2, 2, 2), "|O"),
    "a.png": png_header(100_000, 100_000),
}


@pytest.mark.parametrize("name", PROMISES)
def test_headers_that_promise_more_than_the_file_holds_are_refused_before_memory_is_taken(tmp_path, name):
    (tmp_path / name).write_bytes(PROMISES[name])
    tracemalloc.start()
    with pytest.raises(PerceiversError, match=name):
        read_flow(tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()


def test_large_flow_is_refused_unless_the_limit_is_raised(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.flo5", "w") as file:
        file.create_dataset("flow", (2**14, 2**14, 2), "f4", chunks=(1024, 1024, 2), compression="gzip")
    with pytest.raises(
        PerceiversError, match=r"a\.flo5 has 536,870,912 values, more than 67,108,864: set PERCEIVERS_M"
    ):
        read_flow(tmp_path / "a.flo5")
    monkeypatch.setenv("PERCEIVERS_MAX_VALUES", "11")
    for suffix in (".flo", ".png", ".pfm", ".npy"):
        write_flow(tmp_path / f"b{suffix}", torch.zeros(2, 3, 4))
        with pytest.raises(PerceiversError, match=rf"b\{suffix} has (12 pixels|24 values), more than 11"):
            read_flow(tmp_path / f"b{suffix}")


def test_flow_of_spring_is_not_read_from_other_files(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["flow"] = np.zeros((2, 3, 2), np.float32)
    (tmp_path / "secret").write_bytes(bytes(48))
    with h5py.File(tmp_path / "link.flo5", "w") as file:
        file["flow"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "flow")
    with h5py.File(tmp_path / "soft.flo5", "w") as file:
        file["flow"] = h5py.SoftLink("/other")
    with h5py.File(tmp_path / "storage.flo5", "w") as file:
        file.create_dataset("flow", (2, 3, 2), "f4", external=[(str(tmp_path / "secret"), 0, 48)])
    with h5py.File(tmp_path / "virtual.flo5", "w") as file:
        layout = h5py.VirtualLayout((2, 3, 2), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "flow", (2, 3, 2))
        file.create_virtual_dataset("flow", layout)
    for name in ("link", "soft", "storage", "virtual"):
        with pytest.raises(
            PerceiversError, match=rf"{name}\.flo5 (is not a Spring flow file|refers to data in other files)"
        ):
            read_flow(tmp_path / f"{name}.flo5")
