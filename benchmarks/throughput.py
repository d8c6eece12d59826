"""Examples a second of the mini experiments from end to end (data, step and logging), of two versions in turn.

    git worktree add ../before COMMIT
    python benchmarks/throughput.py --data FOLDER --before ../before

FOLDER is that of benchmarks/results.py. Figures are kept in benchmarks/throughput.json, from which docs/training.md is
rendered. Both versions make the same updates of the same examples, so that their losses must agree.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import describe, versions
from benchmarks.simple import prepare_units

ROOT = Path(__file__).parents[1]
FIGURES, PAGE = ROOT / "benchmarks/throughput.json", ROOT / "docs/training.md"
START, END = "<!-- rendered by benchmarks/throughput.py -->\n", "<!-- end -->\n"
STOPWATCH = ROOT / "benchmarks/stopwatch.py"


class Run(NamedTuple):
    """The first updates of a mini experiment."""

    config: str
    data: str | None
    steps: int


RUNS = {
    "masked bytes": Run("language/mlm_bytes_mini.yaml", "text/english", 320),
    "CIFAR-10": Run("image_classification/cifar10.yaml", "cifar10", 160),
    "optical flow": Run("flow/mini.yaml", None, 220),
    "StarCraft II": Run("starcraft/perceiver.yaml", "replays", 160),
    "digits": Run("image_classification/digits.yaml", None, 1000),
}


def measure(run: Run, version: Path, data: Path) -> dict[str, float]:
    """Returns updates a second and the loss of a run by a version, see `stopwatch.train`."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"--trainer.max_steps={run.steps}", "--trainer.max_epochs=-1", "--trainer.limit_val_batches=0"]
        overrides.append(f"--training.output={folder}/run")
        if run.data is not None:
            overrides.append(f"--data.path={prepare_units(data) if run.data == 'replays' else data / run.data}")
        command = [sys.executable, STOPWATCH, str(version / "configs" / run.config), *overrides]
        # The choices of kernels are kept in the run's folder, so that no version makes them for the other.
        variables = {"PYTHONPATH": str(version / "src"), "XDG_CACHE_HOME": folder}
        done = subprocess.run(
            command, cwd=version, env=os.environ | variables, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(run: Run, before: Path, data: Path, rounds: int) -> dict[str, Any]:
    """Returns updates a second and losses of both versions, measured in turn."""
    found: dict[str, Any] = {"before": [], "after": []}
    for _ in range(rounds):
        for name, version in (("before", before), ("after", ROOT)):
            found[name].append(measure(run, version, data))
    pairs = zip(found["before"], found["after"], strict=True)
    ratios = [after["updates_per_second"] / before["updates_per_second"] for before, after in pairs]
    return {"config": run.config, "updates": run.steps, **found, "ratio": statistics.median(ratios)}


def render(figures: dict[str, Any]) -> str:
    """Returns the table of the page."""
    machine = figures["machine"]
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}; before: {figures['before']}.",
        "",
        "| experiment | updates a second before | after | ratio | loss before | after |",
        "| --- |" + " --- |" * 5,
    ]
    for name, found in figures["runs"].items():
        speeds, losses = (
            [statistics.median(each[key] for each in found[version]) for version in ("before", "after")]
            for key in ("updates_per_second", "loss")
        )
        cells = [
            *(f"{speed:.2f}" for speed in speeds),
            f"**{found['ratio']:.2f}**",
            *(f"{loss:.4f}" for loss in losses),
        ]
        lines.append(f"| {name}, {found['updates']:,} updates | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, if a checkout is given to compare with, and renders the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with cifar10, text and replays")
    parser.add_argument("--before", type=Path, help="a checkout of the version to compare with")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.before is not None:
        before, data = arguments.before.resolve(), arguments.data.resolve()
        git = ["git", "log", "-1", "--format=%h of %cs"]
        commit = subprocess.run(git, cwd=before, capture_output=True, text=True, check=True).stdout.strip()
        figures = json.loads(FIGURES.read_text()) if FIGURES.is_file() else {"runs": {}}
        figures |= {"machine": {**describe("cpu"), "torch": versions()["torch"]}, "before": commit}
        for name in arguments.only:
            figures["runs"][name] = found = compare(RUNS[name], before, data, arguments.rounds)
            print(f"{name}: {found['ratio']:.2f} times the updates a second", flush=True)
            FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    text = PAGE.read_text()
    head, _, rest = text.partition(START)
    PAGE.write_text(head + START + render(json.loads(FIGURES.read_text())) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
