"""Optical flow at mini scale: with and without the curriculum's first phase, and the lengths of flow.

What is measured goes into docs/optical_flow.md.

    python benchmarks/flow.py --data FOLDER [--data FOLDER]    # benchmark folders: Middlebury, KITTI, Sintel ...

The runs of the ablation are kept in `runs/flow` and skipped when the same command is called again; what was interrupted
goes on. As many are trained side by side as there are cores.
"""

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.side_by_side import cores, curve, side_by_side
from perceivers.errors import PerceiversError
from perceivers.flow.data import VALIDATION_SEED
from perceivers.flow.datasets import open_all_layouts
from perceivers.flow.generator import FlowGenerator
from perceivers.flow.pictures import draw_flow, to_image
from perceivers.flow.scenes import SceneConfig
from perceivers.training.checkpoints import LAST
from perceivers.training.config import read_config

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/flow/mini.yaml"
MINI = ROOT / "runs/flow_mini"
"""What `perceivers fit configs/flow/mini.yaml` writes."""

ABLATION = {
    "as in mini.yaml": [],
    "no first phase": ["--curriculum.warmup_fraction=0", "--curriculum.ramp_fraction=0.9"],
}
"""What is changed in each run."""

SCENES = {
    "generated, motion 3": SceneConfig(motion=3.0),
    "generated, motion 10": SceneConfig(motion=10.0),
    "generated, motion 10, tail 2": SceneConfig(motion=10.0, motion_exponent=2.0),
    "generated, motion 40": SceneConfig(motion=40.0),
}
"""Whose lengths of flow are compared with those of real pairs."""

EDGES = torch.tensor([0, 1, 2, 4, 8, 16, 32, 64, torch.inf])
"""Bounds of the histogram, in pixels."""

LENGTHS = (
    "Parts of all pixels by the length of their flow in pixels, of 100 generated pairs each and of the real pairs at "
    "hand:"
)

START, END = "<!-- measured by benchmarks/flow.py -->\n", "<!-- end -->\n"


def train(name: str, runs: Path, epochs: int) -> None:
    """Trains a run of the ablation, or goes on with it, unless it is done."""
    output = runs / name.replace(" ", "_")
    if not (output / "metrics.json").is_file():
        resume = str((output / "checkpoints" / LAST).is_file()).lower()
        own = [f"--trainer.max_epochs={epochs}", f"--training.output={output}", f"--training.resume={resume}"]
        read_config(CONFIG, [*ABLATION[name], *own]).run()


def parts(lengths: Tensor) -> list[float]:
    """Which part of lengths of flow lies between each two bounds."""
    known = lengths[~lengths.isnan()]
    return [float(((known >= low) & (known < high)).float().mean()) for low, high in pairwise(EDGES)]


def histogram(folders: list[Path]) -> str:
    """Lengths of generated and of real flow, as a table."""
    bounds = [f"{low:g} to {high:g}" for low, high in pairwise(EDGES[:-1])]
    rows = [
        "| pixels | mean | " + " | ".join([*bounds, f"{EDGES[-2]:g} or more"]) + " |",
        "| --- |" + " --- |" * len(EDGES),
    ]
    lengths = {name: FlowGenerator(scenes).generate(range(100)).forward.norm(dim=1) for name, scenes in SCENES.items()}
    for folder in folders:
        for pairs in open_all_layouts(folder):
            flows = [pairs[index].flow.norm(dim=0).flatten() for index in range(len(pairs))]
            lengths[f"{pairs.layout}, {len(pairs)} pair{'s' if len(pairs) > 1 else ''}"] = torch.cat(flows)
    for name, found in lengths.items():
        figures = " | ".join(f"{part:.1%}" for part in parts(found))
        rows.append(f"| {name} | {found.nanmean():.1f} | {figures} |")
    return "\n".join(rows)


def draw_scenes(file: Path, count: int = 4) -> None:
    """Frames, flow and hidden content of some held-out scenes."""
    pairs = FlowGenerator(SceneConfig(size=(240, 320))).generate(range(VALIDATION_SEED, VALIDATION_SEED + count))
    rows = []
    for frames, flow, occluded in zip(pairs.frames, pairs.forward, pairs.occluded, strict=True):
        first, second = (255 * frames).round().byte()
        rows.append(torch.cat([first, second, draw_flow(flow), 255 * occluded.byte().expand(3, -1, -1)], -1))
    to_image(torch.cat(rows, -2)).resize((960, 720 * count // 4), Image.Resampling.LANCZOS).save(file)


def draw_curves(runs: dict[str, Path], file: Path) -> None:
    """Error on held-out generated pairs by step."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    for name, folder in runs.items():
        steps, errors = zip(*curve(folder, "val_epe"), strict=True)
        (_, zero), *_ = curve(folder, "val_zero")
        axis.plot(steps, [error / zero for error in errors], label=name)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.axhline(1 / 3, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel="step", ylabel="error, of that of zero flow", ylim=(0, None))
    axis.legend()
    figure.savefig(file, dpi=110)


def ablation(runs: dict[str, Path]) -> str:
    """Results of the runs, as a table."""
    rows = ["| run | steps | pairs | minutes | error | zero flow | ratio |", "| --- |" + " --- |" * 6]
    for name, folder in runs.items():
        found, config = (json.loads((folder / file).read_text()) for file in ("metrics.json", "config.json"))
        steps, _ = curve(folder, "val_epe")[-1]
        pairs = config["data"]["pairs"] * config["trainer"]["max_epochs"]
        error, zero = found["val_epe"], found["val_zero"]
        rows.append(
            f"| {name} | {steps:,} | {pairs:,} | {found['seconds'] / 60:.0f} | {error:.2f} | {zero:.2f} | "
            f"{error / zero:.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Runs what is not done yet and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[], help="a folder of real pairs with their flow")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/flow", help="where runs are kept")
    parser.add_argument("--epochs", type=int, default=4, help="of the ablation's runs (4)")
    parser.add_argument("--only", choices=list(ABLATION), help="run one of the ablation, in this process")
    parser.add_argument("--jobs", type=int, default=1 if torch.cuda.is_available() else min(cores(), len(ABLATION)))
    arguments = parser.parse_args()
    try:
        if arguments.only:
            train(arguments.only, arguments.runs, arguments.epochs)
            return
        arguments.runs.mkdir(parents=True, exist_ok=True)
        own = [sys.executable, __file__, "--runs", str(arguments.runs), "--epochs", str(arguments.epochs)]
        failed = side_by_side({name: [*own, "--only", name] for name in ABLATION}, arguments.runs, arguments.jobs)
        if failed:
            sys.exit(f"flow.py: not finished: {', '.join(failed)}; see the ends of their logs in {arguments.runs}.")
        lengths = histogram(arguments.data)
    except PerceiversError as error:
        sys.exit(f"flow.py: {error}")
    runs = {name: arguments.runs / name.replace(" ", "_") for name in ABLATION}
    whole = {"mini.yaml, whole": MINI} if (MINI / "metrics.json").is_file() else {}
    draw_scenes(ROOT / "docs/flow_scenes.png")
    draw_curves(runs | whole, ROOT / "docs/flow_mini.png")
    tables = f"{ablation(whole | runs)}\n\n### Lengths of flow\n\n{LENGTHS}\n\n{lengths}\n"
    page = ROOT / "docs/optical_flow.md"
    before, _, rest = page.read_text().partition(START)
    page.write_text(before + START + tables + END + rest.partition(END)[2])
    print("\n" + tables)


if __name__ == "__main__":
    main()
