"""Examples a second of the mini experiments from end to end (data, step and logging), of two versions in turn.

    git worktree add ../before COMMIT
    python benchmarks/throughput.py --data FOLDER --before ../before

FOLDER is that of benchmarks/results.py. Figures are kept in benchmarks/throughput.json, from which docs/training.md is
rendered. Both get the configs of this version and make the same updates of the same examples: their losses must agree.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image

from benchmarks.machine import describe, versions
from benchmarks.simple import prepare_units

ROOT = Path(__file__).parents[1]
FIGURES, PAGE = ROOT / "benchmarks/throughput.json", ROOT / "docs/training.md"
START, END = "<!-- rendered by benchmarks/throughput.py -->\n", "<!-- end -->\n"
STOPWATCH = str(ROOT / "benchmarks/stopwatch.py")


COMMANDS = {
    "help": "`perceivers --help`",
    "class": "`perceivers classify-image` of one picture, by the model of digits",
    "first_update": "`perceivers fit digits`, to the end of its first update",
}
"""Commands whose first answer is timed."""


class Run(NamedTuple):
    """The first updates of a mini experiment."""

    config: str
    data: str | None
    steps: int


RUNS = {
    "masked bytes": Run("language/mlm_bytes_mini.yaml", "text/english", 300),
    "CIFAR-10": Run("image_classification/cifar10.yaml", "cifar10", 160),
    "optical flow": Run("flow/mini.yaml", None, 220),
    "StarCraft II": Run("starcraft/perceiver.yaml", "replays", 100),
    "digits": Run("image_classification/digits.yaml", None, 1000),
}


def call(version: Path, arguments: Sequence[str], folder: str) -> tuple[float, str]:
    """Runs Python with a version of the library; returns the seconds that it took, and the last line of its output."""
    # The choices of kernels are kept in the folder, so that no version makes them for the other.
    variables = {"PYTHONPATH": str(version / "src"), "XDG_CACHE_HOME": folder}
    command, started = [sys.executable, *arguments], time.time()
    done = subprocess.run(command, cwd=version, env=os.environ | variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return time.time() - started, done.stdout.splitlines()[-1]


def measure(run: Run, data: Path, version: Path) -> dict[str, float]:
    """Returns updates a second and the loss of a run by a version, see `stopwatch.train`."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [STOPWATCH, str(ROOT / "configs" / run.config), f"--training.output={folder}/run"]
        arguments += [f"--trainer.max_steps={run.steps}", "--trainer.max_epochs=-1", "--trainer.limit_val_batches=0"]
        if run.data is not None:
            arguments.append(f"--data.path={prepare_units(data) if run.data == 'replays' else data / run.data}")
        found: dict[str, float] = json.loads(call(version, arguments, folder)[1])
    return found


def measure_start(version: Path) -> dict[str, float]:
    """Returns the seconds that commands of a version take to their first answer."""
    with tempfile.TemporaryDirectory() as folder:
        picture, output = f"{folder}/picture.png", f"{folder}/run"
        Image.new("RGB", (64, 64)).save(picture)
        digits = str(version / "configs/image_classification/digits.yaml")
        one_update = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", f"--training.output={output}"]
        to_help, _ = call(version, ["-m", "perceivers", "--help"], folder)
        started = time.time()
        first_update = json.loads(call(version, [STOPWATCH, digits, *one_update], folder)[1])["first_update"]
        to_class, _ = call(version, ["-m", "perceivers", "classify-image", f"{output}/model", picture], folder)
    return {"help": to_help, "first_update": first_update - started, "class": to_class}


def compare(measure: Callable[[Path], dict[str, float]], before: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Measures both versions in turn; returns the medians of each."""
    found: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    for _ in range(rounds):
        for name, version in (("before", before), ("after", ROOT)):
            found[name].append(measure(version))
    return {
        name: {key: statistics.median(each[key] for each in measured) for key in measured[0]}
        for name, measured in found.items()
    }


def render(figures: dict[str, Any]) -> str:
    """Returns the tables of the page."""
    machine = figures["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}; before: {figures['before']}.",
        "",
        "| updates | a second before | after | ratio | loss before | after |",
        "| --- |" + " --- |" * 5,
    ]
    for name, found in figures["runs"].items():
        speeds, losses = ([found[side][key] for side in ("before", "after")] for key in ("updates_per_second", "loss"))
        cells = [f"{RUNS[name].steps:,} of {name}", *(f"{speed:.1f}" for speed in speeds)]
        cells += [f"**{speeds[1] / speeds[0]:.2f}**", *(f"{loss:.3f}" for loss in losses)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| command | seconds before | after |", "| --- | --- | --- |"]
    for key, command in COMMANDS.items():
        lines.append(f"| {command} | {figures['start']['before'][key]:.2f} | {figures['start']['after'][key]:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, if a checkout is given to compare with, and renders the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with cifar10, text and replays")
    parser.add_argument("--before", type=Path, help="a checkout of the version to compare with")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.before is not None:
        before, data = arguments.before.resolve(), arguments.data.resolve()
        git = ["git", "log", "-1", "--format=%h of %cs"]
        commit = subprocess.run(git, cwd=before, capture_output=True, text=True, check=True).stdout.strip()
        figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {"runs": {}}
        figures |= {"machine": {**describe("cpu"), "torch": versions()["torch"]}, "before": commit}
        figures["start"] = compare(measure_start, before, arguments.rounds)
        for name in arguments.only:
            print(name, flush=True)
            figures["runs"][name] = compare(partial(measure, RUNS[name], data), before, arguments.rounds)
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    head, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(head + START + render(json.loads(FIGURES.read_text())) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
