"""The file layouts of the published data sets of optical flow."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from perceivers.errors import PerceiversError
from perceivers.files import is_visible, list_folder, read_text

MIDDLEBURY_FRAMES = ("other-data", "other-color-twoframes/other-data", "other-color-twoframes")
KITTI_2012 = ("colored_0", "image_0")
CHAIRS_SPLITS = "FlyingChairs_train_val.txt"
AUTOFLOW = "static_40k_png_*_of_4"


class PairFiles(NamedTuple):
    """The files of a pair.

    Attributes:
        sequence: name of the scene.
        name: unique in the data set.
        occluded, invalid: pictures, white where the content is occluded, and where the flow must not be used.
        visible: a flow file that has only the flow of visible content.
        flow_scale: rows (and columns) of the flow file for each of the frames.
    """

    sequence: str
    name: str
    first: Path
    second: Path
    flow: Path
    occluded: Path | None = None
    invalid: Path | None = None
    visible: Path | None = None
    flow_scale: int = 1


def find_numbers(template: Path) -> set[int]:
    """Returns the numbers of the existing files whose names have a number in place of "#"."""
    prefix, suffix = template.name.rsplit("#", 1)
    names = (file.name for file in list_folder(template.parent, f"{prefix}*{suffix}"))
    digits = (name[len(prefix) : len(name) - len(suffix)] for name in names)
    return {int(number) for number in digits if number.isdecimal()}


def consecutive_pairs(frames: Path, flow: Path, sequence: str, scale: int = 1) -> Iterator[PairFiles]:
    """Yields pairs of consecutive frames, named after their sequence and the first frame.

    If a number has a frame or a flow, it must have both; only the last number needs no flow.

    Args:
        frames, flow: paths with "#" in their names instead of a number of four digits.
        sequence, scale: as in `PairFiles`.
    """
    numbers = sorted(find_numbers(frames) | find_numbers(flow))
    step = min((after - before for before, after in pairwise(numbers)), default=1)
    for number in numbers[:-1]:
        first, second, motion = (
            path.with_name(f"{index:04d}".join(path.name.rsplit("#", 1)))
            for path, index in ((frames, number), (frames, number + step), (flow, number))
        )
        yield PairFiles(sequence, f"{sequence}_{number:04d}", first, second, motion, flow_scale=scale)


def find_visible(root: Path, pattern: str) -> list[Path]:
    """Returns the paths below a folder that match a pattern and no part of which is hidden, see `is_visible`."""
    return [path for path in root.glob(pattern) if all(map(is_visible, path.relative_to(root).parts))]


def find_scenes(pattern: str, *bases: Path) -> list[Path]:
    """Returns the folders that match the pattern in any of the base folders, relative to these."""
    return sorted(
        {folder.relative_to(base) for base in bases for folder in find_visible(base, pattern) if folder.is_dir()}
    )


def sintel(rendering: str, root: Path, split: str) -> Iterator[PairFiles]:
    """MPI Sintel: `training/{clean,final,flow,occlusions,invalid}/alley_1/frame_0001.*`; the last two are optional."""
    base = root / split
    masks = [base / kind if (base / kind).is_dir() else None for kind in ("occlusions", "invalid")]
    for scene in find_scenes("*", base / rendering, base / "flow"):
        frames, flow = base / rendering / scene / "frame_#.png", base / "flow" / scene / "frame_#.flo"
        for pair in consecutive_pairs(frames, flow, scene.name):
            occluded, invalid = (folder and folder / scene / pair.first.name for folder in masks)
            yield pair._replace(name=f"{scene}_{pair.first.stem}", occluded=occluded, invalid=invalid)


def kitti(images: tuple[str, ...], root: Path, split: str) -> Iterator[PairFiles]:
    """KITTI: `training/image_2/000000_10.png`, `..._11.png`, `training/flow_occ/000000_10.png`, `flow_noc` optional."""
    base = root / split
    frames = next(base / name for name in images if (base / name).is_dir())
    flow, visible = base / "flow_occ", base / "flow_noc"
    for name in sorted({file.name for folder in (frames, flow) for file in list_folder(folder, "*_10.png")}):
        second = frames / name.replace("_10.png", "_11.png")
        known_visible = visible / name if visible.is_dir() else None
        yield PairFiles(split, Path(name).stem, frames / name, second, flow / name, visible=known_visible)


def middlebury(root: Path, split: str) -> Iterator[PairFiles]:
    """Middlebury: `other-data/Venus/frame10.png`, `frame11.png` (or `other-color-twoframes`), `other-gt-flow/Venus`."""
    frames = next((root / name for name in MIDDLEBURY_FRAMES if (root / name).is_dir()), root / MIDDLEBURY_FRAMES[0])
    for scene in find_scenes("*", root / "other-gt-flow"):  # other frames are published without flow
        first, second = (frames / scene / f"frame{number}.png" for number in (10, 11))
        yield PairFiles(scene.name, scene.name, first, second, root / "other-gt-flow" / scene / "flow10.flo")


def flying_chairs(root: Path, split: str) -> Iterator[PairFiles]:
    """FlyingChairs: `00001_{img1.ppm,img2.ppm,flow.flo}`, in the folder or in `data`; frames may be PNG.

    `FlyingChairs_train_val.txt` has a line for each pair: 1 is training, 2 validation; without it, all are training.
    `..._occ1.png`, as in FlyingChairsOcc, is optional.
    """
    folder = root / "data" if (root / "data").is_dir() else root
    present = {file.name for file in list_folder(folder)}
    ends = ("_flow.flo", "_img1.ppm", "_img1.png")
    numbers = {name.removesuffix(end) for name in present for end in ends if name.endswith(end)}
    splits, path = ["1"] * len(numbers), root / CHAIRS_SPLITS
    if path.is_file():
        splits = read_text(path).split()
        if len(splits) != len(numbers) or set(splits) - {"1", "2"}:
            raise PerceiversError(f"{path} does not fit its {len(numbers)} pairs: it must have a 1 or 2 for each.")
    by_number = sorted(numbers, key=lambda number: (len(number), number))  # there may be more than 99,999
    for number, part in zip(by_number, splits, strict=True):
        if part == ("1" if split == "training" else "2"):
            kind = ".png" if f"{number}_img1.png" in present else ".ppm"
            names = f"img1{kind}", f"img2{kind}", "flow.flo", "occ1.png"
            first, second, flow, occluded = (folder / f"{number}_{name}" for name in names)
            yield PairFiles(split, number, first, second, flow, occluded if occluded.name in present else None)


def flying_things(rendering: str, root: Path, split: str) -> Iterator[PairFiles]:
    """FlyingThings3D, the left camera: `frames_cleanpass/TRAIN/A/0000/left`, `optical_flow/.../into_future/left`."""
    part = {"training": "TRAIN", "test": "TEST"}[split]
    frames, flow = (root / kind / part for kind in (f"frames_{rendering}pass", "optical_flow"))
    for scene in find_scenes("*/*", frames, flow):
        motions = flow / scene / "into_future/left/OpticalFlowIntoFuture_#_L.pfm"
        yield from consecutive_pairs(frames / scene / "left/#.png", motions, "_".join(scene.parts))


def spring(root: Path, split: str) -> Iterator[PairFiles]:
    """Spring, the left camera: `train/0001/frame_left/frame_left_0001.png`, `flow_FW_left/flow_FW_left_0001.flo5`.

    The flow is in pixels of the frames, but stored for twice their rows and columns.
    """
    for scene in find_scenes("*", root / "train"):
        frames, flow = "frame_left/frame_left_#.png", "flow_FW_left/flow_FW_left_#.flo5"
        yield from consecutive_pairs(root / "train" / scene / frames, root / "train" / scene / flow, scene.name, 2)


def hd1k(root: Path, split: str) -> Iterator[PairFiles]:
    """HD1K: `hd1k_input/image_2/000000_0010.png`, `hd1k_flow_gt/flow_occ/000000_0010.png`."""
    frames, flow = root / "hd1k_input" / "image_2", root / "hd1k_flow_gt" / "flow_occ"
    for sequence in sorted(
        {file.name.split("_")[0] for folder in (frames, flow) for file in list_folder(folder, "*_*.png")}
    ):
        yield from consecutive_pairs(frames / f"{sequence}_#.png", flow / f"{sequence}_#.png", sequence)


def autoflow(root: Path, split: str) -> Iterator[PairFiles]:
    """AutoFlow: `static_40k_png_1_of_4/table_0_batch_0/{im0.png,im1.png,forward.flo}`, any of the four parts."""
    files = (file for name in ("im0.png", "forward.flo") for file in find_visible(root, f"{AUTOFLOW}/**/{name}"))
    for folder in sorted({file.parent for file in files}):
        yield PairFiles(split, folder.name, folder / "im0.png", folder / "im1.png", folder / "forward.flo")


class Layout(NamedTuple):
    """The layout of a published data set.

    Attributes:
        find_pairs: yields the pairs of a split in a folder.
        splits: patterns of paths by split; one of them exists if the split does.
    """

    find_pairs: Callable[[Path, str], Iterator[PairFiles]]
    splits: Mapping[str, tuple[str, ...]]

    def find_splits(self, root: Path) -> list[str]:
        """Returns the names of the splits that a folder has."""
        return [name for name, signs in self.splits.items() if any(find_visible(root, sign) for sign in signs)]


LAYOUTS = {
    "sintel-clean": Layout(partial(sintel, "clean"), {"training": ("training/clean",)}),
    "sintel-final": Layout(partial(sintel, "final"), {"training": ("training/final",)}),
    "kitti15": Layout(partial(kitti, ("image_2",)), {"training": ("training/image_2",)}),
    "kitti12": Layout(partial(kitti, KITTI_2012), {"training": tuple(f"training/{images}" for images in KITTI_2012)}),
    "middlebury": Layout(middlebury, {"training": ("other-gt-flow",)}),
    "flyingchairs": Layout(
        flying_chairs, {"training": ("data/*_flow.flo", "*_flow.flo"), "validation": (CHAIRS_SPLITS,)}
    ),
    "flyingthings3d-clean": Layout(
        partial(flying_things, "clean"), {"training": ("frames_cleanpass/TRAIN",), "test": ("frames_cleanpass/TEST",)}
    ),
    "flyingthings3d-final": Layout(
        partial(flying_things, "final"), {"training": ("frames_finalpass/TRAIN",), "test": ("frames_finalpass/TEST",)}
    ),
    "spring": Layout(spring, {"training": ("train/*/frame_left",)}),
    "hd1k": Layout(hd1k, {"training": ("hd1k_input/image_2",)}),
    "autoflow": Layout(autoflow, {"training": (AUTOFLOW,)}),
}
