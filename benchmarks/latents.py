"""Fewer latents at run time: accuracy against time on handwritten digits, trained with nested latents and without.

    python benchmarks/latents.py [--seeds 3]

The models are those of `perceivers fit digits` with 128 latents. Runs are kept in `runs/latents` and skipped when the
command is called again. The table goes into docs/recipes.md.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from perceivers import PerceiverIO, load
from perceivers.data.loader import SampleIndex
from perceivers.images.data import ImageDataset, load_digit_images
from perceivers.training.checkpoints import METRICS

ROOT = Path(__file__).parents[1]
START, END = "<!-- latents: start -->\n", "<!-- latents: end -->"
CONFIG = ROOT / "configs/image_classification/digits.yaml"
LATENTS, COUNTS = 128, (1, 2, 4, 8, 16, 32, 64, 128)
KINDS = {"nested": "true", "plain": "false"}
REPEATS = 9


def train(output: Path, nested: str, seed: int) -> PerceiverIO:
    """Trains a model, or loads it if that was done before."""
    if not (output / METRICS).is_file():
        command = [sys.executable, "-m", "perceivers", "fit", str(CONFIG), f"--training.output={output}"]
        command += [f"--model.latents={LATENTS}", f"--model.nested_latents={nested}", f"--training.seed={seed}"]
        subprocess.run(command, check=True)
    return load(output / "model").eval()


@torch.inference_mode()
def measure(model: PerceiverIO, images_BCYX: torch.Tensor, labels_B: torch.Tensor) -> dict[int, tuple[float, float]]:
    """Returns the accuracy and the median seconds of a batch by the number of latents; counts take turns."""
    seconds: dict[int, list[float]] = {count: [] for count in COUNTS}
    accuracy = {}
    for _ in range(REPEATS):
        for count in COUNTS:
            started = time.perf_counter()
            encoded = model.encode({"image": images_BCYX}, num_latents=count)
            logits_BK = model.decode(encoded)["label"]
            seconds[count].append(time.perf_counter() - started)
            accuracy[count] = (logits_BK.argmax(-1) == labels_B).float().mean().item()
    return {count: (accuracy[count], statistics.median(seconds[count])) for count in COUNTS}


def main() -> None:
    """Trains, measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/latents", help="folder of the runs")
    parser.add_argument(
        "--document", type=Path, default=ROOT / "docs/recipes.md", help="document to write the table to"
    )
    arguments = parser.parse_args()
    images = load_digit_images().evaluation
    dataset = ImageDataset(images, (8, 8), 1, 1.0)
    images_BCYX = torch.stack([dataset[SampleIndex(index, 0)]["image"] for index in range(len(dataset))])
    labels_B = torch.tensor(images.labels)
    found = {
        kind: [
            measure(train(arguments.output / f"{kind}_{seed}", nested, seed), images_BCYX, labels_B)
            for seed in range(arguments.seeds)
        ]
        for kind, nested in KINDS.items()
    }
    lines = ["| latents | nested | plain | milliseconds a batch of 599 |", "| --- | --- | --- | --- |"]
    for count in COUNTS:
        cells = []
        for kind in KINDS:
            values = [100 * run[count][0] for run in found[kind]]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        milliseconds = 1000 * statistics.median(run[count][1] for run in found["nested"])
        lines.append(f"| {count} | {' | '.join(cells)} | {milliseconds:.0f} |")
    table = "\n".join(lines) + "\n"
    text = arguments.document.read_text()
    before, rest = text.split(START)
    arguments.document.write_text(f"{before}{START}{table}{END}{rest.split(END)[1]}")
    print(table)


if __name__ == "__main__":
    main()
