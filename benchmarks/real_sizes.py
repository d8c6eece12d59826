"""The first steps of the paper's recipes at their real sizes, on generated data in the layout of the real data, on CPU.

What fails in the first minute on a cluster fails here. Batches are small; nothing else of a recipe is changed. Time and
memory go into docs/training.md.

    python benchmarks/real_sizes.py [--only NAME ...] [--steps 50]

Runs are kept in `runs/real_sizes` and skipped when the same command is called again.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from perceivers.data.video_writer import write_video

ROOT = Path(__file__).parents[1]
START, END = "<!-- measured by benchmarks/real_sizes.py -->\n", "<!-- end -->\n"


@dataclass(frozen=True)
class Recipe:
    """A config, the data that it gets here, and the size of its batches here."""

    config: str
    data: str = ""
    batch_size: int = 2
    changes: tuple[str, ...] = field(default=())


LISTS = (
    "--data.class_list={data}/class_labels_indices.csv",
    "--data.training_list={data}/unbalanced_train_segments.csv",
    "--data.evaluation_list={data}/eval_segments.csv",
)
RECIPES = {
    "ImageNet, Fourier": Recipe("image_classification/imagenet_fourier.yaml", "imagenet"),
    "ImageNet, learned": Recipe("image_classification/imagenet_learned.yaml", "imagenet"),
    "ImageNet, conv": Recipe("image_classification/imagenet_conv.yaml", "imagenet"),
    "CIFAR-10, GPU": Recipe("image_classification/cifar10_gpu.yaml", "cifar", 16),
    "AudioSet, raw": Recipe("clips/audioset_raw.yaml", "audioset", 2, LISTS),
    "AudioSet, mel": Recipe("clips/audioset_mel.yaml", "audioset", 2, LISTS),
    "Kinetics, 88x": Recipe(
        "autoencoding/paper_88x.yaml",
        "kinetics",
        1,
        ("--data.training_list={data}/train.csv", "--data.evaluation_list={data}/validate.csv"),
    ),
    "flow, light": Recipe("flow/light_gpu.yaml", "", 2, ("--data.pairs=200", "--data.validation_pairs=4")),
    "flow, paper": Recipe("flow/paper.yaml", "", 1, ("--data.pairs=200", "--data.validation_pairs=2")),
    "masked bytes": Recipe("language/mlm_bytes_paper.yaml", "text", 2),
}


def write_images(folder: Path, classes: int, size: tuple[int, int], count: int) -> None:
    """Writes `train/<class>/*.JPEG` and a few images below `val/`, of random pixels."""
    generator = np.random.default_rng(0)
    for split, number in (("train", count), ("val", 1)):
        for label in range(classes if split == "train" else 8):
            path = folder / split / f"n{label:08d}"
            path.mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(0, 256, (size[1] // 20 + 1, size[0] // 20 + 1, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize(size).save(path / f"{index}.JPEG")


def write_clips(folder: Path, names: list[str], seconds: float = 10.0) -> None:
    """Writes videos of 320 x 240 pixels with sound."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    for name in names:
        frames = torch.randint(256, (round(25 * seconds), 3, 15, 20), dtype=torch.uint8, generator=generator)
        sound = 0.1 * torch.randn(round(48000 * seconds), generator=generator)
        write_video(
            folder / name, [frame.repeat_interleave(16, 1).repeat_interleave(16, 2) for frame in frames], 25, sound
        )


def write_audioset(folder: Path) -> None:
    """Writes clips and the three lists of AudioSet, with its 527 classes."""
    names = [f"clip{index:07d}" for index in range(12)]
    write_clips(folder, [f"{name}_30000.mp4" for name in names])
    classes = [f"{index},/m/{index:05d},Class {index}" for index in range(527)]
    (folder / "class_labels_indices.csv").write_text("index,mid,display_name\n" + "\n".join(classes) + "\n")
    for file, some in (("unbalanced_train_segments.csv", names[:8]), ("eval_segments.csv", names[8:])):
        rows = [f'{name}, 30.000, 40.000, "/m/{index:05d},/m/{index + 9:05d}"' for index, name in enumerate(some)]
        (folder / file).write_text("# YTID, start_seconds, end_seconds, positive_labels\n" + "\n".join(rows) + "\n")


def write_kinetics(folder: Path) -> None:
    """Writes clips and two lists of Kinetics."""
    names = [f"clip{index:07d}" for index in range(12)]
    write_clips(folder, [f"{name}_000010_000020.mp4" for name in names])
    for file, some in (("train.csv", names[:8]), ("validate.csv", names[8:])):
        rows = [f"class {index % 2},{name},10,20,{file[:-4]}" for index, name in enumerate(some)]
        (folder / file).write_text("label,youtube_id,time_start,time_end,split\n" + "\n".join(rows) + "\n")


def write_text(folder: Path) -> None:
    """Writes documents of random words."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    words = ["".join(generator.choice(list("etaoinshrdlu"), generator.integers(2, 9))) for _ in range(3000)]
    for index in range(20):
        (folder / f"{index}.txt").write_text(" ".join(generator.choice(words, 20_000)))


WRITE = {
    "imagenet": lambda folder: write_images(folder, 1000, (500, 375), 1),
    "cifar": lambda folder: write_images(folder, 10, (32, 32), 100),
    "audioset": write_audioset,
    "kinetics": write_kinetics,
    "text": write_text,
}


def run(name: str, steps: int, runs: Path) -> None:
    """Takes the first steps of a recipe, unless it is done, and writes what they took."""
    recipe, output = RECIPES[name], runs / name.replace(", ", "_").replace(" ", "_")
    if (output / "cost.json").is_file():
        return
    data = runs / "data" / recipe.data
    if recipe.data and not data.exists():
        WRITE[recipe.data](data)
    command = [sys.executable, "-m", "perceivers", "fit", str(ROOT / "configs" / recipe.config)]
    command += [f"--data.path={data}"] if recipe.data else []
    command += [change.format(data=data) for change in recipe.changes]
    command += [f"--training.batch_size={recipe.batch_size}", "--training.workers=1", f"--training.output={output}"]
    command += [f"--trainer.max_steps={steps}", "--trainer.log_every_n_steps=5", "--trainer.limit_val_batches=2"]
    print(f"{name}: tail -f {output}.log", flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{output}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"real_sizes.py: {name} failed: the end of {output}.log says why.")
    gigabytes = usage.ru_maxrss / (2**20 if sys.platform == "linux" else 2**30)
    (output / "cost.json").write_text(json.dumps({"steps": steps, "gigabytes": gigabytes}))


def describe(name: str, runs: Path) -> str:
    """Returns the row of a recipe that is done."""
    output = runs / name.replace(", ", "_").replace(" ", "_")
    cost, found = (json.loads((output / file).read_text()) for file in ("cost.json", "metrics.json"))
    rows = [row for file in output.glob("csv/version_*/metrics.csv") for row in csv.DictReader(file.open())]
    speed = statistics.median(float(row["examples_per_second"]) for row in rows if row.get("examples_per_second"))
    losses = [float(row["train_loss"]) for row in rows if row.get("train_loss")]
    recipe = RECIPES[name]
    return (
        f"| {name} | `{recipe.config}` | {found['parameters'] / 1e6:.1f}M | {recipe.batch_size} | {cost['steps']} | "
        f"{recipe.batch_size / speed:.1f} s | {cost['gigabytes']:.1f} GB | {losses[0]:.2f}, {losses[-1]:.2f} |"
    )


def main() -> None:
    """Runs what is not done yet and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(RECIPES), metavar="NAME", default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=50, help="steps of each (50)")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/real_sizes", help="folder of the runs")
    arguments = parser.parse_args()
    for name in arguments.only:
        run(name, arguments.steps, arguments.runs)
    rows = [
        "| recipe | config | parameters | batch | steps | a step | memory | first and last loss |",
        "| --- |" + " --- |" * 7,
    ]
    rows += [
        describe(name, arguments.runs)
        for name in RECIPES
        if (arguments.runs / name.replace(", ", "_").replace(" ", "_") / "cost.json").is_file()
    ]
    page = ROOT / "docs/training.md"
    before, _, rest = page.read_text().partition(START)
    page.write_text(before + START + "\n".join(rows) + "\n" + END + rest.partition(END)[2])
    print("\n".join(rows))


if __name__ == "__main__":
    main()
