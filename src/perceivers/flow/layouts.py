"""In which files the published data sets of optical flow keep their pairs of frames."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from perceivers.errors import PerceiversError

MIDDLEBURY_FRAMES = ("other-data", "other-color-twoframes/other-data", "other-color-twoframes")
CHAIRS_SPLITS = "FlyingChairs_train_val.txt"
AUTOFLOW = "static_40k_png_*_of_4"


class PairFiles(NamedTuple):
    """Where a pair is.

    Attributes:
        sequence: the scene that it belongs to.
        name: of the pair, unique in its data set.
        first, second, flow: its files.
        occluded, invalid: pictures, white where the content is hidden, and where the flow is not to be used.
        visible: a flow file in which only the flow of content that is not hidden is known.
        flow_scale: rows, and columns, of the flow file for one of the frames.
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

    def paths(self) -> list[Path]:
        """All its files."""
        return [value for value in self if isinstance(value, Path)]


class Numbered(NamedTuple):
    """Files of a folder whose names differ in a number of four digits."""

    folder: Path
    before: str
    after: str

    def numbers(self) -> set[int]:
        """Those of the files that are there."""
        names = (file.name for file in self.folder.glob(f"{self.before}*{self.after}"))
        digits = (name[len(self.before) : len(name) - len(self.after)] for name in names)
        return {int(number) for number in digits if number.isdecimal()}

    def file(self, number: int) -> Path:
        return self.folder / f"{self.before}{number:04d}{self.after}"


def neighbours(frames: Numbered, flow: Numbered, sequence: str, scale: int = 1) -> Iterator[PairFiles]:
    """Pairs of neighbours in a sequence, named after it and the first frame.

    Files that are there for a number say that the others must be; only of the last number no flow is needed.
    """
    numbers = sorted(frames.numbers() | flow.numbers())
    step = min((after - before for before, after in pairwise(numbers)), default=1)
    for number in numbers[:-1]:
        first, second = frames.file(number), frames.file(number + step)
        yield PairFiles(sequence, f"{sequence}_{number:04d}", first, second, flow.file(number), flow_scale=scale)


def scenes(pattern: str, *bases: Path) -> list[Path]:
    """Folders that match the pattern below any of some others, relative to these."""
    found = {folder.relative_to(base) for base in bases for folder in base.glob(pattern) if folder.is_dir()}
    return sorted(found)


def sintel(rendering: str, root: Path, split: str) -> Iterator[PairFiles]:
    """MPI Sintel: `training/{clean,final,flow,occlusions,invalid}/alley_1/frame_0001.*`; the last two are optional."""
    base = root / split
    masks = [base / kind if (base / kind).is_dir() else None for kind in ("occlusions", "invalid")]
    for scene in scenes("*", base / rendering, base / "flow"):
        frames = Numbered(base / rendering / scene, "frame_", ".png")
        flow = Numbered(base / "flow" / scene, "frame_", ".flo")
        for pair in neighbours(frames, flow, scene.name):
            occluded, invalid = (folder and folder / scene / pair.first.name for folder in masks)
            yield pair._replace(name=f"{scene}_{pair.first.stem}", occluded=occluded, invalid=invalid)


def kitti(images: tuple[str, ...], root: Path, split: str) -> Iterator[PairFiles]:
    """KITTI: `training/image_2/000000_10.png`, `..._11.png`, `training/flow_occ/000000_10.png`, `flow_noc` optional."""
    base = root / split
    frames = next(base / name for name in images if (base / name).is_dir())
    flow, visible = base / "flow_occ", base / "flow_noc"
    for name in sorted({file.name for folder in (frames, flow) for file in folder.glob("*_10.png")}):
        yield PairFiles(
            split,
            Path(name).stem,
            frames / name,
            frames / name.replace("_10.png", "_11.png"),
            flow / name,
            visible=visible / name if visible.is_dir() else None,
        )


def middlebury(root: Path, split: str) -> Iterator[PairFiles]:
    """Middlebury: `other-data/Venus/frame10.png`, `frame11.png` (or `other-color-twoframes`), `other-gt-flow/Venus`."""
    frames = next((root / name for name in MIDDLEBURY_FRAMES if (root / name).is_dir()), root / MIDDLEBURY_FRAMES[0])
    for scene in scenes("*", root / "other-gt-flow"):  # some other frames are published without
        first, second = (frames / scene / f"frame{number}.png" for number in (10, 11))
        yield PairFiles(scene.name, scene.name, first, second, root / "other-gt-flow" / scene / "flow10.flo")


def flying_chairs(root: Path, split: str) -> Iterator[PairFiles]:
    """FlyingChairs: `00001_{img1.ppm,img2.ppm,flow.flo}`, in the folder or in `data`; frames may be PNG.

    `FlyingChairs_train_val.txt` has a line for each pair: 1 is training, 2 validation; without it all are training.
    `..._occ1.png`, as in FlyingChairsOcc, is optional.
    """
    folder = root / "data" if (root / "data").is_dir() else root
    present = {file.name for file in folder.iterdir()}
    ends = ("_flow.flo", "_img1.ppm", "_img1.png")
    numbers = sorted(
        {name.removesuffix(end) for name in present for end in ends if name.endswith(end)},
        key=lambda number: (len(number), number),  # there may be more than 99,999
    )
    parts = ["training"] * len(numbers)
    if (root / CHAIRS_SPLITS).is_file():
        parts = read_chairs_splits(root / CHAIRS_SPLITS, len(numbers))
    for number, part in zip(numbers, parts, strict=True):
        if part == split:
            kind = ".png" if f"{number}_img1.png" in present else ".ppm"
            first, second, flow, occluded = (
                folder / f"{number}_{end}" for end in (f"img1{kind}", f"img2{kind}", "flow.flo", "occ1.png")
            )
            yield PairFiles(split, number, first, second, flow, occluded if occluded.name in present else None)


def read_chairs_splits(path: Path, count: int) -> list[str]:
    """The split of each of `count` pairs."""
    words = path.read_text(errors="replace").split()
    if len(words) != count or set(words) - {"1", "2"}:
        raise PerceiversError(f"{path} does not fit the {count} pairs beside it: it must have a 1 or 2 for each.")
    return ["training" if word == "1" else "validation" for word in words]


def flying_things(rendering: str, root: Path, split: str) -> Iterator[PairFiles]:
    """FlyingThings3D, the left camera: `frames_cleanpass/TRAIN/A/0000/left`, `optical_flow/.../into_future/left`."""
    part = {"training": "TRAIN", "test": "TEST"}[split]
    frames, flow = (root / kind / part for kind in (f"frames_{rendering}", "optical_flow"))
    for scene in scenes("*/*", frames, flow):
        yield from neighbours(
            Numbered(frames / scene / "left", "", ".png"),
            Numbered(flow / scene / "into_future" / "left", "OpticalFlowIntoFuture_", "_L.pfm"),
            "_".join(scene.parts),
        )


def spring(root: Path, split: str) -> Iterator[PairFiles]:
    """Spring, the left camera: `train/0001/frame_left/frame_left_0001.png`, `flow_FW_left/flow_FW_left_0001.flo5`.

    The flow is in pixels of the frames, but stored for twice their rows and columns.
    """
    for scene in scenes("*", root / "train"):
        frames = Numbered(root / "train" / scene / "frame_left", "frame_left_", ".png")
        flow = Numbered(root / "train" / scene / "flow_FW_left", "flow_FW_left_", ".flo5")
        yield from neighbours(frames, flow, scene.name, scale=2)


def hd1k(root: Path, split: str) -> Iterator[PairFiles]:
    """HD1K: `hd1k_input/image_2/000000_0010.png`, `hd1k_flow_gt/flow_occ/000000_0010.png`."""
    frames, flow = root / "hd1k_input" / "image_2", root / "hd1k_flow_gt" / "flow_occ"
    for sequence in sorted({file.name.split("_")[0] for folder in (frames, flow) for file in folder.glob("*_*.png")}):
        names = f"{sequence}_", ".png"
        yield from neighbours(Numbered(frames, *names), Numbered(flow, *names), sequence)


def autoflow(root: Path, split: str) -> Iterator[PairFiles]:
    """AutoFlow: `static_40k_png_1_of_4/table_0_batch_0/{im0.png,im1.png,forward.flo}`, any of the four parts."""
    files = (file for name in ("im0.png", "forward.flo") for file in root.glob(f"{AUTOFLOW}/**/{name}"))
    for folder in sorted({file.parent for file in files}):
        yield PairFiles(split, folder.name, folder / "im0.png", folder / "im1.png", folder / "forward.flo")


class Layout(NamedTuple):
    """How a data set is published.

    Attributes:
        pairs: finds the pairs of a split below a folder.
        splits: by name, what is there if the split is: one of some patterns of paths.
    """

    pairs: Callable[[Path, str], Iterator[PairFiles]]
    splits: Mapping[str, tuple[str, ...]]

    def present(self, root: Path) -> list[str]:
        """Names of the splits that are below a folder."""
        return [name for name, signs in self.splits.items() if any(any(root.glob(sign)) for sign in signs)]


LAYOUTS = {
    "sintel-clean": Layout(partial(sintel, "clean"), {"training": ("training/clean",)}),
    "sintel-final": Layout(partial(sintel, "final"), {"training": ("training/final",)}),
    "kitti15": Layout(partial(kitti, ("image_2",)), {"training": ("training/image_2",)}),
    "kitti12": Layout(
        partial(kitti, ("colored_0", "image_0")), {"training": ("training/colored_0", "training/image_0")}
    ),
    "middlebury": Layout(middlebury, {"training": ("other-gt-flow",)}),
    "flyingchairs": Layout(
        flying_chairs, {"training": ("data/*_flow.flo", "*_flow.flo"), "validation": (CHAIRS_SPLITS,)}
    ),
    "flyingthings3d-clean": Layout(
        partial(flying_things, "cleanpass"),
        {"training": ("frames_cleanpass/TRAIN",), "test": ("frames_cleanpass/TEST",)},
    ),
    "flyingthings3d-final": Layout(
        partial(flying_things, "finalpass"),
        {"training": ("frames_finalpass/TRAIN",), "test": ("frames_finalpass/TEST",)},
    ),
    "spring": Layout(spring, {"training": ("train/*/frame_left",)}),
    "hd1k": Layout(hd1k, {"training": ("hd1k_input/image_2",)}),
    "autoflow": Layout(autoflow, {"training": (AUTOFLOW,)}),
}
