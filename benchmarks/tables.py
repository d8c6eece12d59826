"""Tables of every kind: `perceivers fit` with its defaults, beside simple methods on the same rows.

What is measured goes into docs/tables.md.

    python benchmarks/tables.py --tables FOLDER [--only NAME ...]

FOLDER holds the public tables that docs/tables.md names. Runs are kept in `runs/tables` and skipped when the same
command is called again.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).parents[1]))

from perceivers.tables.fit import CONFIG
from perceivers.tables.training import COMPARISON
from perceivers.training.checkpoints import METRICS
from perceivers.values import read_json

ROOT = Path(__file__).parents[1]
START, END = "<!-- measured by benchmarks/tables.py -->\n", "<!-- end -->\n"
FOLDS = ("--data.folds=5",)


@dataclass(frozen=True)
class Task:
    """A table and what is predicted of it.

    Attributes:
        make: returns the table from the folder of tables.
        predict: the column to predict.
        metric: the metric that is compared.
        options: options of `perceivers fit`.
        part: the part of the comparison: "folds", "validation" or "test".
        digits: digits of the printed metric.
    """

    make: Callable[[Path], pd.DataFrame]
    predict: str
    metric: str
    options: tuple[str, ...] = FOLDS
    part: str = "folds"
    digits: int = 3


def read(path: str, leave_out: str = "") -> Callable[[Path], pd.DataFrame]:
    """Returns a function that reads a CSV file without some columns."""
    return lambda folder: pd.read_csv(folder / path).drop(columns=leave_out.split(",") if leave_out else [])


def make_diamonds(folder: Path) -> pd.DataFrame:
    """Returns 10,000 of the rows."""
    return pd.read_csv(folder / "seaborn/diamonds.csv").sample(10_000, random_state=0)


def make_clothes(folder: Path) -> pd.DataFrame:
    """Returns the rows with a text, without the stars, which give the answer away."""
    frame = pd.read_csv(folder / "clothes/reviews.csv", index_col=0)
    return frame[frame["Review Text"].notna()].drop(columns="Rating")


def make_houses(folder: Path) -> pd.DataFrame:
    """Returns both files of the given split, with absolute paths of the pictures."""
    parts = [
        pd.read_csv(folder / f"houses/{name}.csv").assign(split=split)
        for name, split in (("train", "train"), ("test", "validation"))
    ]
    frame = pd.concat(parts)
    for room in ("frontal", "kitchen", "bedroom", "bathroom"):
        frame[room] = [str((folder / "houses" / path).absolute()) for path in frame[room]]
    return frame


def make_series(folder: Path) -> pd.DataFrame:
    """Returns the rows of the usual split."""
    return pd.read_csv(folder / "ett/ETTh1.csv").head(14_400)


def make_digits(folder: Path) -> pd.DataFrame:
    """Returns handwritten digits of 8 x 8 pixels from scikit-learn, and 12 of the pixels of each, always the same."""
    images = load_digits().images / 16
    places = np.random.default_rng(0).choice(np.arange(64), 12, replace=False)
    frame = pd.DataFrame({f"pixel_{place // 8}_{place % 8}": images.reshape(-1, 64)[:, place] for place in places})
    frame["picture"] = [str(np.round(image, 4).tolist()) for image in images]
    return frame


TASKS = {
    "titanic": Task(
        read("seaborn/titanic.csv", "class,who,adult_male,deck,embark_town,alive,alone"), "survived", "accuracy"
    ),
    "penguins": Task(read("seaborn/penguins.csv"), "species", "accuracy"),
    "mpg": Task(read("seaborn/mpg.csv", "name"), "mpg", "rmse", digits=2),
    "diamonds": Task(make_diamonds, "price", "rmse", digits=0),
    "churn": Task(read("churn/churn.csv", "RowNumber,CustomerId,Surname"), "Exited", "auroc"),
    "movies": Task(read("movies/movies.csv", "Rank"), "Rating", "mae"),
    "clothes": Task(make_clothes, "Recommended IND", "auroc"),
    "houses": Task(make_houses, "price", "mape", ("--data.split=split", "--ignore=split"), "validation"),
    "ETTh1": Task(
        make_series,
        "",
        "mse",
        (
            "--data.window={history: 336, horizon: 96, time: date}",
            "--data.validation=2017-06-26",
            "--data.test=2017-10-24",
        ),
        "test",
    ),
    "digits": Task(make_digits, "picture", "rmse"),
}


def run(name: str, task: Task, folder: Path, output: Path) -> None:
    """Trains and measures a task, unless it was done before; goes on with a run that was interrupted."""
    if (output / name / METRICS).is_file():
        return
    begun = output / name / CONFIG
    if begun.is_file():
        command = [sys.executable, "-m", "perceivers", "fit", str(begun), "--training.resume=auto"]
        subprocess.run([*command, *(option for option in task.options if "ignore" not in option)], check=True)
        return
    table = output / "data" / f"{name}.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    task.make(folder).to_csv(table, index=False)
    predict = ("--predict", task.predict) if task.predict else ()
    command = [sys.executable, "-m", "perceivers", "fit", str(table), *predict, *task.options]
    started = time.perf_counter()
    subprocess.run([*command, f"--training.output={output / name}"], check=True)
    (output / name / "seconds").write_text(f"{time.perf_counter() - started:.0f}")


def format_figure(figures: Mapping[str, Any] | None, task: Task) -> str:
    """Returns a metric with its standard error, if it has one."""
    if figures is None:
        return ""
    error = figures.get(f"{task.metric}_error")
    return f"{figures[task.metric]:.{task.digits}f}" + ("" if error is None else f" ± {error:.{task.digits}f}")


def report(output: Path) -> str:
    """Returns the table of what was measured."""
    methods = ["perceiver", "gradient boosting", "TF-IDF, linear", "linear"]
    base = ["mean", "frequencies", "last value"]
    lines = [
        "| table | metric | Perceiver IO | gradient boosting | TF-IDF, linear | linear | mean, last value | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, task in TASKS.items():
        if not (output / name / METRICS).is_file():
            continue
        found = next(iter(read_json(output / name / COMPARISON)[task.part].values()))
        cells = [format_figure(found.get(method), task) for method in methods]
        cells.append(next((format_figure(found[method], task) for method in base if method in found), ""))
        seconds = output / name / "seconds"  # of a run that was not interrupted
        minutes = f"{int(seconds.read_text()) / 60:.1f}" if seconds.is_file() else ""
        lines.append(f"| {name} | {task.metric} | {' | '.join(cells)} | {minutes} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all tasks, or some, and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="folder with the tables")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS), help="only these")
    parser.add_argument("--output", type=Path, default=ROOT / "runs/tables", help="folder of the runs")
    parser.add_argument("--document", type=Path, default=ROOT / "docs/tables.md", help="document to write the table to")
    arguments = parser.parse_args()
    for name in arguments.only:
        print(f"\n{name}", flush=True)
        run(name, TASKS[name], arguments.tables, arguments.output)
    text = arguments.document.read_text()
    before, rest = text.split(START)
    arguments.document.write_text(f"{before}{START}{report(arguments.output)}{END}{rest.split(END)[1]}")
    print(report(arguments.output))


if __name__ == "__main__":
    main()
