"""The mini experiment of each row of the paper, beside a baseline and simple methods.

Results are kept in results/*.json; docs/results.md and the table of the README are rendered from them.

    python benchmarks/results.py --data FOLDER [--only NAME ...] [--seed 0]    # make results DATA=FOLDER
    python benchmarks/results.py                                               # renders the page from results/*.json

A run is kept in `runs/results` and skipped when the same command is called again; what was interrupted goes on.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.claims import CLAIMS, UNTESTED, Claim, Method
from benchmarks.machine import describe, find_commit, versions
from benchmarks.simple import SIMPLE, prepare_units

ROOT = Path(__file__).parents[1]
FOLDER, PAGE, README = ROOT / "results", ROOT / "docs/results.md", ROOT / "README.md"
START, END = "<!-- rendered by benchmarks/results.py -->\n", "<!-- end -->\n"
LOG_LINES = 30
Results = dict[str, list[dict[str, Any]]]
"""The results of each run, of all seeds."""


@dataclass(frozen=True)
class Run:
    """A training run of a config, and what is evaluated afterwards.

    Attributes:
        config: the config, below configs/.
        data: the data, below the folder of data; None if it needs none.
        changes: fields that differ from the config's.
        evaluate: arguments of `perceivers evaluate`, whose figures are added to the run's; `{data}` is the folder.
    """

    config: str
    data: str | None = None
    changes: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ()


UNITS = "replays"
"""Data that is converted first."""

RUNS = {
    "digits": Run("image_classification/digits.yaml"),
    "cifar10": Run("image_classification/cifar10.yaml", "cifar10"),
    "masked_bytes": Run("language/mlm_bytes_mini.yaml", "text/english"),
    "masked_bytes_bert": Run("language/mlm_bytes_bert_mini.yaml", "text/english"),
    "sentiment": Run("language/classify.yaml", "glue/SST-2", ("--trainer.val_check_interval=0.1",)),
    "next_byte": Run("language/perceiver_ar_mini.yaml", "text/tinyshakespeare"),
    "next_byte_transformer": Run("language/causal_transformer_mini.yaml", "text/tinyshakespeare"),
    "flow": Run("flow/mini.yaml", evaluate=("--data", "{data}/flow/middlebury")),
    "clip": Run("autoencoding/mini.yaml", "video/flipping_a_pancake.mkv"),
    "sound": Run("autoencoding/spoken_digits.yaml", "spoken_digits"),
    "spoken_digits_mel": Run("clips/spoken_digits_mel.yaml", "spoken_digits"),
    "spoken_digits_raw": Run("clips/spoken_digits_raw.yaml", "spoken_digits"),
    "units": Run("starcraft/perceiver.yaml", UNITS, ("--data.split=configs/starcraft/split.json",)),
    "units_transformer": Run("starcraft/transformer.yaml", UNITS, ("--data.split=configs/starcraft/split.json",)),
}
"""By the name of the result; results of other seeds than 0 end in `_seed1`, ..."""


def perform(name: str, seed: int, data: Path, runs: Path) -> dict[str, Any]:
    """Trains a run, or goes on with it, and returns what is kept of it."""
    run, output = RUNS[name], runs / f"{name}_seed{seed}"
    arguments = [f"configs/{run.config}"]
    if run.data:
        arguments.append(f"--data.path={prepare_units(data) if run.data == UNITS else data / run.data}")
    arguments += [*run.changes, f"--training.seed={seed}"]
    command = ["perceivers", "fit", *arguments]
    own = [f"--training.output={output}", "--training.resume=auto"]
    runs.mkdir(parents=True, exist_ok=True)
    with Path(f"{output}.log").open("a") as log:
        print(f"{name}, seed {seed}: tail -f {log.name}", flush=True)
        subprocess.run(
            [sys.executable, "-m", *command, *own], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True
        )
    found = json.loads((output / "metrics.json").read_text())
    metrics = {key: value for key, value in found.items() if key.startswith("val_")}
    if run.evaluate:
        evaluate = ["perceivers", "evaluate", str(output / "model"), *(part.format(data=data) for part in run.evaluate)]
        answer = subprocess.run([sys.executable, "-m", *evaluate, "--json"], stdout=subprocess.PIPE, check=True)
        metrics |= json.loads(answer.stdout)
    return {
        "command": " ".join(command).replace(str(ROOT) + "/", "").replace(str(data), "DATA"),
        "config": hide_paths(json.loads((output / "config.json").read_text()), data, output),
        "seed": seed,
        "seconds": found["seconds"],
        "parameters": found["parameters"],
        "metrics": metrics,
        "curve": list(read_curve(output, found["seconds"])),
        "log": hide_paths(Path(f"{output}.log").read_text().splitlines()[-LOG_LINES:], data, output),
    }


def perform_simple(name: str, data: Path) -> dict[str, Any]:
    """Returns the metrics of a simple method, and how long it takes."""
    started = time.perf_counter()
    metrics = SIMPLE[name](data)
    command = f"python benchmarks/results.py --data DATA --only {name}"
    return {"command": command, "seconds": time.perf_counter() - started, "metrics": metrics}


def hide_paths(value: Any, data: Path, output: Path) -> Any:
    """Replaces the folders of this machine in strings."""
    if isinstance(value, str):
        for path, name in ((output, "runs"), (data, "DATA"), (ROOT, ".")):
            value = value.replace(str(path), name)
        return value
    if isinstance(value, dict):
        return {key: hide_paths(each, data, output) for key, each in value.items()}
    return [hide_paths(each, data, output) for each in value] if isinstance(value, list) else value


def read_curve(output: Path, seconds: float) -> Iterator[dict[str, float]]:
    """Yields the metrics of each evaluation, with the seconds since the start, as if steps took equally long."""
    rows = [row for file in sorted(output.glob("csv/version_*/metrics.csv")) for row in csv.DictReader(file.open())]
    last = max((int(row["step"]) for row in rows), default=0)
    for row in rows:
        found = {key: float(value) for key, value in row.items() if key.startswith("val_") and value}
        if found:
            yield {"step": int(row["step"]), "seconds": round(seconds * int(row["step"]) / last, 1), **found}


def save(name: str, found: dict[str, Any]) -> None:
    """Writes a result, with the commit and the machine."""
    machine = {**describe("cpu"), "torch": versions()["torch"]}
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps({"name": name, "commit": find_commit(), "machine": machine, **found}, indent=1)
    (FOLDER / f"{name}.json").write_text(text + "\n")


def read_results(folder: Path = FOLDER) -> Results:
    """Returns the results of each run, of all seeds."""
    results: Results = {}
    for file in sorted(folder.glob("*.json")):
        results.setdefault(file.stem.partition("_seed")[0], []).append(json.loads(file.read_text()))
    return results


def judge(claim: Claim, results: Results) -> str:
    """Returns whether a claim holds: ours is not worse than what it has to match."""
    if not (claim.ours.result in results and claim.matched.result in results):
        return "not measured yet"
    ours, theirs = (mean_of(method, results) for method in (claim.ours, claim.matched))
    better = ours - theirs if claim.higher_is_better else theirs - ours
    said = "holds at this scale" if better >= -claim.tolerance * abs(theirs) else "does not hold at this scale"
    return f"{said}, one seed" if len(results[claim.ours.result]) == 1 else said


def mean_of(method: Method, results: Results) -> float:
    """Returns the mean of a method's figure over seeds."""
    return statistics.mean(method.get(result) for result in results[method.result])


def show(claim: Claim, method: Method, results: Results) -> str:
    """Returns the mean of a method's figure and, of several seeds, its standard deviation."""
    if method.result not in results:
        return "not measured yet"
    found = [method.get(result) for result in results[method.result]]
    spread = f" ± {claim.show(statistics.stdev(found))}" if len(found) > 1 else ""
    return claim.show(statistics.mean(found)) + spread


def render(results: Results) -> str:
    """Returns the tables of the page."""
    lines = ["| claim | here | figure | ours | compared with |", "| --- |" + " --- |" * 4]
    for claim in CLAIMS:
        ours, theirs = (show(claim, method, results) for method in (claim.ours, claim.matched))
        cells = [claim.text, judge(claim, results), claim.column, ours, f"{claim.matched.title}: {theirs}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {text} | cannot be tested here: {reason} | | | |" for text, reason in UNTESTED.items()]
    for claim in CLAIMS:
        lines += ["", f"## {claim.title}", "", *([f"In the paper: {claim.paper}", ""] if claim.paper else [])]
        lines += [
            f"| | {claim.column} | parameters | seeds | minutes | machine | all of it |",
            "| --- |" + " --- |" * 6,
        ]
        lines += [describe_method(claim, method, results) for method in claim.methods if method.result in results]
        commands = {results[method.result][0]["command"]: None for method in claim.methods if method.result in results}
        lines += ["", "```", *commands, "```"] if commands else []
    return "\n".join([*lines, "", *leaderboard(results)]) + "\n"


def render_readme(results: Results) -> str:
    """Returns the table of the README."""
    lines = ["| experiment | rows of the paper | config | measured here | beside it |", "| --- |" + " --- |" * 4]
    for claim in CLAIMS:
        ours = f"{claim.column}: {show(claim, claim.ours, results)}"
        theirs = f"{claim.matched.title}: {show(claim, claim.matched, results)}"
        lines.append(f"| {' | '.join([*claim.readme, ours, theirs])} |")
    return "\n".join(lines) + "\n"


def describe_method(claim: Claim, method: Method, results: Results) -> str:
    """Returns a row of a claim's table."""
    found = results[method.result]
    first, files = found[0], [f"[{result['name']}](../results/{result['name']}.json)" for result in found]
    size = f"{first['parameters'] / 1e6:.2f}M" if "parameters" in first else ""
    seeds = ", ".join(str(result["seed"]) for result in found if "seed" in result)
    seconds: dict[str, list[float]] = {}
    for result in found:
        seconds.setdefault(describe_machine(result), []).append(result["seconds"])
    minutes = "; ".join(f"{statistics.mean(of_machine) / 60:.1f}" for of_machine in seconds.values())
    cells = [method.title, show(claim, method, results), size, seeds, minutes, "; ".join(seconds), " ".join(files)]
    return f"| {' | '.join(cells)} |"


def describe_machine(result: dict[str, Any]) -> str:
    """Returns the processor and the number of cores of a result."""
    cores = result["machine"]["cores"]
    return f"{result['machine']['processor']}, {cores} core{'s'[: cores != 1]}"


LEADERBOARD = {
    "digits, 97%": ("digits", "val_top1", 0.97, True),
    "CIFAR-10, 60%": ("cifar10", "val_top1", 0.60, True),
    "spoken digits, 95%": ("spoken_digits_mel", "val_top1", 0.95, True),
    "masked bytes, 3.9 bits per byte": ("masked_bytes", "val_bits_per_byte", 3.9, False),
    "SST-2, 80%": ("sentiment", "val_accuracy", 0.80, True),
    "next byte, 2.3 bits per byte": ("next_byte", "val_bits_per_byte", 2.3, False),
}
"""Score, and the run, metric and value that reach it; True: higher is better."""


def leaderboard(results: Results) -> list[str]:
    """Returns the table of the shortest time to a fixed score."""
    rows = [
        "## Time to a score",
        "",
        "| score on held-out data | minutes | command | machine |",
        "| --- |" + " --- |" * 3,
    ]
    for title, (name, metric, wanted, higher) in LEADERBOARD.items():
        times = [
            (point["seconds"], result)
            for result in results.get(name, [])
            for point in result["curve"]
            if metric in point and (point[metric] >= wanted if higher else point[metric] <= wanted)
        ]
        if times:
            seconds, result = min(times, key=lambda found: found[0])
            rows.append(f"| {title} | {seconds / 60:.1f} | `{result['command']}` | {describe_machine(result)} |")
        else:
            rows.append(f"| {title} | not reached yet | | |")
    return rows


def main() -> None:
    """Runs what is asked for and not done yet, and renders the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*RUNS, *SIMPLE]
    parser.add_argument("--data", type=Path, help="a folder with cifar10, text, flow, video, ...: see docs/results.md")
    parser.add_argument(
        "--only", nargs="+", choices=names, metavar="NAME", default=names, help=f"of {', '.join(names)}"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/results", help="folder of the runs")
    arguments = parser.parse_args()
    for name in arguments.only if arguments.data else []:
        result = name if name in SIMPLE or arguments.seed == 0 else f"{name}_seed{arguments.seed}"
        if not (FOLDER / f"{result}.json").is_file():
            data = arguments.data.resolve()
            found = (
                perform_simple(name, data) if name in SIMPLE else perform(name, arguments.seed, data, arguments.runs)
            )
            save(result, found)
    for file, text in ((PAGE, render(read_results())), (README, render_readme(read_results()))):
        before, _, rest = file.read_text().partition(START)
        file.write_text(before + START + text + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
