import shutil

import pytest
import torch
from PIL import Image
from torch import nan

from perceivers import PerceiversError
from perceivers.flow.datasets import FlowPair, open_all_layouts, open_pairs, write_pair
from perceivers.flow.files import write_flow
from perceivers.flow.layouts import LAYOUTS

SIZE = (6, 8)


class Known:
    """What was written to files, by their paths."""

    def __init__(self, root):
        self.root, self.frames, self.flows, self.masks = root, {}, {}, {}

    def frame(self, *paths, size=SIZE):
        for path in paths:
            pixels = torch.randint(256, (3, *size), dtype=torch.uint8)
            self.frames[path] = self.save(path, pixels)

    def mask(self, path):
        mask = torch.rand(SIZE) < 0.3
        self.save(path, mask.byte().mul(255).expand(3, -1, -1))
        self.masks[path] = mask

    def save(self, path, pixels):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(self.root / path)
        return pixels

    def flow(self, *paths, size=SIZE, unknown=0.2):
        for path in paths:
            flow = (64 * torch.randn(2, *size)).round() / 64
            flow[:, torch.rand(size) < unknown] = nan
            self.flows[path] = flow
            write_flow(self.root / path, flow)

    def pair(self, first, second, flow):
        return torch.stack([self.frames[first], self.frames[second]]), self.flows[flow]


def same(one, other):
    return torch.equal(one.nan_to_num(nan=-999), other.nan_to_num(nan=-999))


def holds(pairs, name, expected):
    """Whether a pair has these frames and this flow."""
    pair = pairs[pairs.names.index(name)]
    return torch.equal(pair.frames, expected[0]) and same(pair.flow, expected[1])


@pytest.fixture
def known(tmp_path):
    return Known(tmp_path / "data set")


def sintel(known, scenes=(("alley_1", 3), ("ambush_2", 2)), masks=True):
    for scene, count in scenes:
        names = [f"{scene}/frame_{number:04d}" for number in range(1, count + 1)]
        for kind in ("clean", "final"):
            known.frame(*(f"training/{kind}/{name}.png" for name in names))
        for name in names[:-1]:
            known.flow(f"training/flow/{name}.flo", unknown=0)
            if masks:
                known.mask(f"training/occlusions/{name}.png")
                known.mask(f"training/invalid/{name}.png")


def kitti(known, images="image_2", visible=True):
    for number in (0, 7):
        known.frame(f"training/{images}/{number:06d}_10.png", f"training/{images}/{number:06d}_11.png")
        path = f"training/flow_occ/{number:06d}_10.png"
        known.flow(path)
        if visible:
            flow = known.flows[path].clone()
            flow[:, :2] = nan
            known.flows[path.replace("occ", "noc")] = flow
            write_flow(known.root / path.replace("occ", "noc"), flow)


def middlebury(known, frames="other-data"):
    for name in ("Venus", "Urban2"):
        known.frame(f"{frames}/{name}/frame10.png", f"{frames}/{name}/frame11.png")
        known.flow(f"other-gt-flow/{name}/flow10.flo")
    known.frame(f"{frames}/Walking/frame10.png", f"{frames}/Walking/frame11.png")  # its flow is not published


def chairs(known, folder="data/", suffix="ppm", numbers=("00001", "00002", "00003")):
    for number in numbers:
        known.frame(f"{folder}{number}_img1.{suffix}", f"{folder}{number}_img2.{suffix}")
        known.flow(f"{folder}{number}_flow.flo")


def things(known):
    for part, scene in (("TRAIN", "A/0000"), ("TRAIN", "C/0012"), ("TEST", "B/0003")):
        for number in (6, 7, 8):  # flow is published even where the next frame is not
            for kind in ("cleanpass", "finalpass"):
                known.frame(f"frames_{kind}/{part}/{scene}/left/{number:04d}.png")
            flow = f"optical_flow/{part}/{scene}/into_future/left/OpticalFlowIntoFuture_{number:04d}_L.pfm"
            known.flow(flow, unknown=0)


def spring(known):
    for scene, count in (("0001", 3), ("0047", 2)):
        known.frame(*(f"train/{scene}/frame_left/frame_left_{number:04d}.png" for number in range(1, count + 1)))
        for number in range(1, count):
            known.flow(f"train/{scene}/flow_FW_left/flow_FW_left_{number:04d}.flo5", size=(12, 16))
    known.frame("test/0002/frame_left/frame_left_0001.png")


def hd1k(known):
    for sequence, numbers in (("000000", (5, 10, 15)), ("000003", (0, 1))):
        for number in numbers:
            known.frame(f"hd1k_input/image_2/{sequence}_{number:04d}.png")
            known.flow(f"hd1k_flow_gt/flow_occ/{sequence}_{number:04d}.png")


def autoflow(known, inside=""):
    for part, name in ((1, "table_0_batch_0"), (1, "table_0_batch_1"), (3, "table_2_batch_0")):
        folder = f"static_40k_png_{part}_of_4/{inside}{name}"
        known.frame(f"{folder}/im0.png", f"{folder}/im1.png")
        known.flow(f"{folder}/forward.flo")


BUILDERS = {
    "sintel-clean": sintel,
    "kitti15": kitti,
    "middlebury": middlebury,
    "flyingchairs": chairs,
    "flyingthings3d-clean": things,
    "spring": spring,
    "hd1k": hd1k,
    "autoflow": autoflow,
    "kitti12": lambda known: kitti(known, "colored_0"),
}


@pytest.mark.parametrize("layout", BUILDERS)
def test_each_layout_is_recognized_alone(known, layout):
    BUILDERS[layout](known)
    renderings = [name for name in LAYOUTS if name.split("-")[0] == layout.split("-")[0]]
    opened = open_all_layouts(known.root)
    assert [pairs.layout for pairs in opened] == renderings
    for pairs in opened:
        assert len(set(pairs.names)) == len(pairs) == len(pairs.sequences)
        for pair in (pairs[index] for index in range(len(pairs))):
            assert (pair.frames.shape, pair.frames.dtype) == ((2, 3, *SIZE), torch.uint8)
            assert (pair.flow.shape, pair.flow.dtype) == ((2, *SIZE), torch.float32)


@pytest.mark.parametrize("layout", BUILDERS)
def test_what_is_hidden_is_no_part_of_a_data_set(known, layout):
    """Archives made by macOS have a file "._NAME" for each file; Jupyter makes folders beside those it shows."""
    BUILDERS[layout](known)
    before = [pairs.files for pairs in open_all_layouts(known.root)]
    for path in list(known.root.rglob("*")):
        if path.is_file():
            path.with_name(f"._{path.name}").write_bytes(b"x")
        else:
            (path / ".ipynb_checkpoints").mkdir()
    for folder in [known.root, *(path for path in known.root.iterdir() if path.is_dir())]:
        shutil.copytree(folder, folder.parent / "copy")
        shutil.move(folder.parent / "copy", folder / "__MACOSX")
    assert [pairs.files for pairs in open_all_layouts(known.root)] == before


@pytest.mark.parametrize("rendering", ["clean", "final"])
def test_sintel(known, rendering):
    sintel(known)
    pairs = open_pairs(known.root, f"sintel-{rendering}")
    assert pairs.names == ["alley_1_frame_0001", "alley_1_frame_0002", "ambush_2_frame_0001"]
    assert pairs.sequences == ["alley_1", "alley_1", "ambush_2"]
    frames, flow = known.pair(
        f"training/{rendering}/alley_1/frame_0002.png",
        f"training/{rendering}/alley_1/frame_0003.png",
        "training/flow/alley_1/frame_0002.flo",
    )
    invalid = known.masks["training/invalid/alley_1/frame_0002.png"]
    assert torch.equal(pairs[1].frames, frames)
    assert same(pairs[1].flow, flow.masked_fill(invalid, nan))
    assert torch.equal(pairs[1].occluded, known.masks["training/occlusions/alley_1/frame_0002.png"])


def test_sintel_without_its_masks(known):
    sintel(known, masks=False)
    pair = open_pairs(known.root, "sintel-clean")[2]
    assert pair.occluded is None
    assert torch.equal(pair.flow, known.flows["training/flow/ambush_2/frame_0001.flo"])


@pytest.mark.parametrize(
    ("layout", "images"), [("kitti15", "image_2"), ("kitti12", "colored_0"), ("kitti12", "image_0")]
)
def test_kitti(known, layout, images):
    kitti(known, images)
    pairs = open_pairs(known.root)
    assert (pairs.layout, pairs.names) == (layout, ["000000_10", "000007_10"])
    flow = "training/flow_occ/000007_10.png"
    files = f"training/{images}/000007_10.png", f"training/{images}/000007_11.png", flow
    assert holds(pairs, "000007_10", known.pair(*files))
    occluded = ~known.flows[flow][0].isnan()
    occluded[2:] = False
    assert torch.equal(pairs[1].occluded, occluded)
    shutil.rmtree(known.root / "training/flow_noc")
    assert open_pairs(known.root)[1].occluded is None


@pytest.mark.parametrize("frames", ["other-data", "other-color-twoframes", "other-color-twoframes/other-data"])
def test_middlebury(known, frames):
    middlebury(known, frames)
    pairs = open_pairs(known.root)
    assert pairs.names == pairs.sequences == ["Urban2", "Venus"]
    files = f"{frames}/Venus/frame10.png", f"{frames}/Venus/frame11.png", "other-gt-flow/Venus/flow10.flo"
    assert holds(pairs, "Venus", known.pair(*files))


@pytest.mark.parametrize(("folder", "suffix"), [("data/", "ppm"), ("", "png")])
def test_flying_chairs(known, folder, suffix):
    chairs(known, folder, suffix, numbers=("99999", "00002", "100000"))
    pairs = open_pairs(known.root)
    assert pairs.names == ["00002", "99999", "100000"]
    files = f"{folder}99999_img1.{suffix}", f"{folder}99999_img2.{suffix}", f"{folder}99999_flow.flo"
    assert holds(pairs, "99999", known.pair(*files))
    assert pairs[0].occluded is None


def test_flying_chairs_are_split_as_their_file_says(known):
    chairs(known)
    (known.root / "FlyingChairs_train_val.txt").write_text("1\n2\n1\n")
    assert open_pairs(known.root).names == ["00001", "00003"]
    (pairs,) = open_all_layouts(known.root, "validation")
    assert (pairs.split, pairs.names) == ("validation", ["00002"])


@pytest.mark.parametrize("lines", ["1\n2\n", "1\n2\n3\n", ""])
def test_a_file_of_splits_that_does_not_fit_is_refused(known, lines):
    chairs(known)
    (known.root / "FlyingChairs_train_val.txt").write_text(lines)
    with pytest.raises(PerceiversError, match=r"train_val\.txt does not fit its 3 pairs: .* a 1 or 2 for each"):
        open_pairs(known.root)


@pytest.mark.parametrize("rendering", ["clean", "final"])
def test_flying_things(known, rendering):
    things(known)
    pairs = open_pairs(known.root, f"flyingthings3d-{rendering}")
    assert pairs.names == ["A_0000_0006", "A_0000_0007", "C_0012_0006", "C_0012_0007"]
    assert pairs.sequences == ["A_0000", "A_0000", "C_0012", "C_0012"]
    frames = f"frames_{rendering}pass/TRAIN/C/0012/left"
    flow = "optical_flow/TRAIN/C/0012/into_future/left/OpticalFlowIntoFuture_0007_L.pfm"
    assert holds(pairs, "C_0012_0007", known.pair(f"{frames}/0007.png", f"{frames}/0008.png", flow))
    assert open_pairs(known.root, f"flyingthings3d-{rendering}", "test").sequences == ["B_0003", "B_0003"]


def test_spring_stores_flow_in_pixels_of_the_frames_at_twice_their_size(known):
    spring(known)
    pairs = open_pairs(known.root)
    assert pairs.names == ["0001_0001", "0001_0002", "0047_0001"]
    folder = "train/0001"
    frames, flow = known.pair(
        f"{folder}/frame_left/frame_left_0002.png",
        f"{folder}/frame_left/frame_left_0003.png",
        f"{folder}/flow_FW_left/flow_FW_left_0002.flo5",
    )
    assert holds(pairs, "0001_0002", (frames, flow[:, 0::2, 0::2]))


def test_hd1k_pairs_neighbors_of_a_sequence(known):
    hd1k(known)
    pairs = open_pairs(known.root)
    assert pairs.names == ["000000_0005", "000000_0010", "000003_0000"]
    assert pairs.sequences == ["000000", "000000", "000003"]
    frames = "hd1k_input/image_2/000000_0010.png", "hd1k_input/image_2/000000_0015.png"
    assert holds(pairs, "000000_0010", known.pair(*frames, "hd1k_flow_gt/flow_occ/000000_0010.png"))


@pytest.mark.parametrize("inside", ["", "static_40k_png_1_of_4/"])
def test_autoflow(known, inside):
    autoflow(known, inside)
    pairs = open_pairs(known.root)
    assert pairs.names == ["table_0_batch_0", "table_0_batch_1", "table_2_batch_0"]
    folder = f"static_40k_png_3_of_4/{inside}table_2_batch_0"
    files = f"{folder}/im0.png", f"{folder}/im1.png", f"{folder}/forward.flo"
    assert holds(pairs, "table_2_batch_0", known.pair(*files))


@pytest.mark.parametrize(
    ("layout", "gone"),
    [
        ("sintel-clean", "training/clean/alley_1/frame_0002.png"),
        ("sintel-clean", "training/clean/alley_1/frame_0001.png"),
        ("sintel-clean", "training/flow/alley_1/frame_0002.flo"),
        ("sintel-clean", "training/occlusions/alley_1/frame_0001.png"),
        ("sintel-clean", "training/invalid/ambush_2/frame_0001.png"),
        ("sintel-clean", "training/clean/alley_1"),
        ("kitti15", "training/image_2/000007_10.png"),
        ("kitti15", "training/image_2/000000_11.png"),
        ("kitti15", "training/flow_occ/000007_10.png"),
        ("kitti15", "training/flow_noc/000000_10.png"),
        ("middlebury", "other-data/Venus/frame11.png"),
        ("middlebury", "other-gt-flow/Venus/flow10.flo"),
        ("middlebury", "other-data"),
        ("flyingchairs", "data/00002_img1.ppm"),
        ("flyingchairs", "data/00002_img2.ppm"),
        ("flyingchairs", "data/00001_flow.flo"),
        ("flyingthings3d-clean", "frames_cleanpass/TRAIN/A/0000/left/0007.png"),
        ("flyingthings3d-clean", "frames_cleanpass/TRAIN/A"),
        ("flyingthings3d-clean", "optical_flow/TRAIN/A/0000/into_future/left/OpticalFlowIntoFuture_0006_L.pfm"),
        ("spring", "train/0001/frame_left/frame_left_0002.png"),
        ("spring", "train/0047/flow_FW_left"),
        ("hd1k", "hd1k_input/image_2/000000_0005.png"),
        ("hd1k", "hd1k_flow_gt/flow_occ/000003_0000.png"),
        ("autoflow", "static_40k_png_1_of_4/table_0_batch_1/im0.png"),
        ("autoflow", "static_40k_png_3_of_4/table_2_batch_0/forward.flo"),
    ],
)
def test_a_missing_file_is_named(known, layout, gone):
    BUILDERS[layout](known)
    path = known.root / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(PerceiversError, match=f"^{path}.* is missing: the pair .* of {layout} needs it; download it"):
        open_pairs(known.root, layout)


def test_a_gap_in_a_sequence_is_no_pair(known):
    sintel(known, scenes=[("alley_1", 6)], masks=False)
    for path in ("clean/alley_1/frame_0003.png", "flow/alley_1/frame_0003.flo"):
        (known.root / "training" / path).unlink()
    with pytest.raises(PerceiversError, match=r"frame_0003\.png is missing"):
        open_pairs(known.root, "sintel-clean")


@pytest.mark.parametrize(
    ("layout", "path", "other", "needs"),
    [
        ("kitti15", "training/image_2/000000_11.png", "training/image_2/000000_10.png", "8 x 6"),
        ("kitti15", "training/flow_occ/000000_10.png", "training/image_2/000000_10.png", "8 x 6"),
        ("kitti15", "training/flow_noc/000000_10.png", "training/image_2/000000_10.png", "8 x 6"),
        ("sintel-clean", "training/invalid/alley_1/frame_0001.png", "training/clean/alley_1/frame_0001.png", "8 x 6"),
        ("spring", "train/0001/flow_FW_left/flow_FW_left_0001.flo5", "train/0001/frame_left/", "16 x 12"),
    ],
)
def test_files_of_other_sizes_are_refused(known, layout, path, other, needs):
    BUILDERS[layout](known)
    if "flow" in path:
        known.flow(path, size=(9, 5))
    else:
        known.frame(path, size=(9, 5))
    pairs = open_pairs(known.root, layout)
    message = f"^{known.root / path} has 5 x 9 pixels, but {known.root / other}.* needs {needs}: one of them belongs"
    with pytest.raises(PerceiversError, match=message):
        pairs[0]


def test_what_cannot_be_opened_is_said(known, tmp_path):
    sintel(known)
    kitti(known)
    root = known.root
    for arguments, message in {
        (tmp_path / "nowhere",): "nowhere is not a folder: give the folder of an optical flow data set",
        (root / "training",): "training is not a supported optical flow data set: use one of sintel-clean, sintel-",
        (root,): "has the layouts sintel-clean and sintel-final and kitti15: choose one with layout",
        (root, "sintel"): "layout = 'sintel' is not allowed: use one of sintel-clean, sintel-final, kitti15,",
        (root, "spring"): "does not have the layout spring, but sintel-clean and sintel-final and kitti15",
        (root, "sintel-clean", "test"): "sintel-clean in .* has no split 'test': use training",
    }.items():
        with pytest.raises(PerceiversError, match=message):
            open_pairs(*arguments)
    with pytest.raises(PerceiversError, match=r"sintel-clean in .* has no split 'test'"):
        open_all_layouts(root, "test")
    (tmp_path / "empty/hd1k_input/image_2").mkdir(parents=True)
    with pytest.raises(PerceiversError, match="empty has the layout hd1k, but no pairs of frames of the split"):
        open_pairs(tmp_path / "empty")


@pytest.mark.parametrize(("gone", "left"), [("clean", "final"), ("final", "clean")])
def test_one_rendering_of_sintel_may_be_alone(known, gone, left):
    sintel(known)
    shutil.rmtree(known.root / "training" / gone)
    assert open_pairs(known.root).layout == f"sintel-{left}"


def test_all_that_have_the_split_are_opened(known):
    things(known)
    shutil.rmtree(known.root / "frames_finalpass/TEST")
    assert [pairs.layout for pairs in open_all_layouts(known.root, "test")] == ["flyingthings3d-clean"]


def test_written_pairs_are_flying_chairs(tmp_path):
    written = []
    for number, occluded in ((1, torch.rand(SIZE) < 0.5), (2, None), (100000, torch.rand(SIZE) < 0.5)):
        flow = torch.randn(2, *SIZE)
        flow[:, 1, 2] = nan
        written.append(FlowPair(torch.randint(256, (2, 3, *SIZE), dtype=torch.uint8), flow, occluded))
        write_pair(tmp_path / "new", number, written[-1])
    assert sorted(file.name for file in (tmp_path / "new").glob("00001*")) == [
        "00001_flow.flo",
        "00001_img1.png",
        "00001_img2.png",
        "00001_occ1.png",
    ]
    pairs = open_pairs(tmp_path / "new")
    assert pairs.names == ["00001", "00002", "100000"]
    for index, expected in enumerate(written):
        assert torch.equal(pairs[index].frames, expected.frames)
        assert same(pairs[index].flow, expected.flow)
    assert pairs[1].occluded is None
    assert torch.equal(pairs[2].occluded, written[2].occluded)


def test_flow_is_written_last_so_that_no_half_pair_is_found(tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("perceivers.flow.datasets.write_flow", full)
    pair = FlowPair(torch.zeros(2, 3, *SIZE, dtype=torch.uint8), torch.zeros(2, *SIZE))
    with pytest.raises(OSError, match="no space left"):
        write_pair(tmp_path, 1, pair)
    with pytest.raises(PerceiversError, match="is not a supported optical flow data set"):
        open_pairs(tmp_path)


def test_the_real_middlebury_pairs(shared_data):
    (pairs,) = open_all_layouts(shared_data / "flow/middlebury")
    assert pairs.names == ["Dimetrodon", "Grove2", "RubberWhale", "Urban3", "Venus"]
    lengths = [pairs[index].flow.norm(dim=0).nanmean().item() for index in range(5)]
    assert sum(lengths) / 5 == pytest.approx(3.50, abs=0.005)


def test_a_real_kitti_pair(shared_data):
    pairs = open_pairs(shared_data / "flow/kitti15")
    assert (pairs.layout, len(pairs)) == ("kitti15", 1)
    frames, flow, occluded = pairs[0]
    assert (frames.shape, flow.shape, occluded) == ((2, 3, 375, 1242), (2, 375, 1242), None)
    assert 0.1 < 1 - flow[0].isnan().float().mean() < 0.3
    matching, still = (error(frames, flow * scale) for scale in (1, 0))
    assert matching < 0.5 * still


def error(frames, flow):
    """Mean difference of the first frame to the second where the flow ends, in gray levels."""
    y, x = (~flow[0].isnan()).nonzero().T
    end_x, end_y = (x + flow[0, y, x]).round().long(), (y + flow[1, y, x]).round().long()
    inside = (end_x >= 0) & (end_x < frames.shape[-1]) & (end_y >= 0) & (end_y < frames.shape[-2])
    moved = frames[1][:, end_y[inside], end_x[inside]].float()
    return (moved - frames[0][:, y[inside], x[inside]]).abs().mean()
