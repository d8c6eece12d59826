"""Classifying texts by configs/language/classify.yaml, beside TF-IDF and linear models; into docs/language.md.

    python benchmarks/text_classification.py --data FOLDER [--only TASK ...]    # make mini-classify DATA=FOLDER
    python benchmarks/text_classification.py --data FOLDER --pretrained runs/results    # fine-tuned models, too

FOLDER has `glue/` with the original files of CoLA, MRPC, RTE, SST-2 and STS-B, and `tables/clothes/`. Both get the same
rows. Ours trains once, with the settings of the file. TF-IDF is searched: `SETTINGS` are compared on training rows, and
the best is trained on all of them. Models of masked bytes, which `make results` trains, are fine-tuned with the same
file, beside an untrained model of their size. Everything runs on one core. Results are kept in
benchmarks/text_classification.json, and what it has is skipped.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, matthews_corrcoef, roc_auc_score
from sklearn.model_selection import KFold, ShuffleSplit

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.machine import describe, find_commit, versions
from perceivers.text.model import LanguageConfig
from perceivers.values import read_json

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/language/classify.yaml"
RESULTS = ROOT / "benchmarks/text_classification.json"
START, END = "<!-- measured by benchmarks/text_classification.py -->\n", "<!-- end -->\n"
OURS, TFIDF = "Perceiver IO", "TF-IDF"
PRETRAINED = {"pretrained Perceiver IO": "masked_bytes", "pretrained BERT": "masked_bytes_bert"}
"""Fine-tuned models, and the runs of benchmarks/results.py that pretrain them."""

UNTRAINED = "Perceiver IO of 128 latents, from scratch"
PRETRAINING = ROOT / "configs/language/mlm_bytes_mini.yaml"
"""Has its sizes. Its local initialization is not for classification, see docs/language.md."""

SEEDS = (0, 1, 2)

FOLDS = 5
"""Of the rows of clothes, and of training rows in the search of TF-IDF; one in ten rows is held out of large tables."""

KEPT = ("model", "mask_rate", "min_examples", "optimization", "trainer")
"""Sections of a run's config that are kept."""

LARGE = 5000
"""Training rows of a large table."""

FEATURES: dict[str, dict[str, Any]] = {
    "words": {},
    "words and pairs": {"ngram_range": (1, 2), "sublinear_tf": True},
    "characters": {"analyzer": "char_wb", "ngram_range": (2, 6), "sublinear_tf": True, "min_df": 2},
}
SETTINGS = [(features, strength) for features in FEATURES for strength in (1.0, 10.0)]
"""Settings of TF-IDF that are compared: features, and the inverse regularization of the linear model."""

Frames = tuple[pd.DataFrame, pd.DataFrame]


@dataclass(frozen=True)
class Task:
    """A task: texts, or pairs of texts, with labels.

    Attributes:
        read: returns training and evaluation rows of each part of the data: columns "a", "b" of pairs, and
            "label".
        metric: "accuracy", "matthews", "pearson" or "auroc".
        glue: the task's name in GLUE, if it is regression, which `classify.yaml` has not.
    """

    read: Callable[[Path], list[Frames]]
    metric: str
    glue: str | None = None


def read_tsv(file: Path, columns: Mapping[str, Any], header: int | None = 0) -> pd.DataFrame:
    """Returns columns of a file of GLUE, as text; `columns` has their names, or numbers, by the names they get."""
    table = pd.read_csv(file, sep="\t", quoting=3, keep_default_na=False, dtype=str, header=header, on_bad_lines="warn")
    return pd.DataFrame({name: table[column] for name, column in columns.items()})


def glue(name: str, header: int | None = 0, **columns: Any) -> Callable[[Path], list[Frames]]:
    """Returns a function that reads a task of GLUE."""
    return lambda data: [
        (
            read_tsv(data / f"glue/{name}/train.tsv", columns, header),
            read_tsv(data / f"glue/{name}/dev.tsv", columns, header),
        )
    ]


def first_rows(count: int, read: Callable[[Path], list[Frames]]) -> Callable[[Path], list[Frames]]:
    """Returns a function that keeps some training rows, those that a shuffle by seed 0 puts first."""

    def read_some(data: Path) -> list[Frames]:
        ((training, evaluation),) = read(data)
        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(0))
        return [(training.iloc[order[:count].numpy()], evaluation)]

    return read_some


def read_clothes(data: Path) -> list[Frames]:
    """Returns the five folds of `KFold(5, shuffle=True, random_state=0)`: is a piece of clothing recommended?"""
    table = pd.read_csv(data / "tables/clothes/reviews.csv", index_col=0)
    table = table[table["Review Text"].notna()]
    table = pd.DataFrame({"a": table["Review Text"], "label": table["Recommended IND"].astype(str)})
    folds = KFold(FOLDS, shuffle=True, random_state=0).split(table)
    return [(table.iloc[training], table.iloc[evaluation]) for training, evaluation in folds]


SST = glue("SST-2", a="sentence", label="label")
TASKS = {
    "SST-2, 500 rows": Task(first_rows(500, SST), "accuracy"),
    "SST-2, 12,000 rows": Task(first_rows(12_000, SST), "accuracy"),
    "SST-2": Task(SST, "accuracy"),
    "CoLA": Task(glue("CoLA", header=None, a=3, label=1), "matthews"),
    "MRPC": Task(glue("MRPC", a="#1 String", b="#2 String", label="Quality"), "accuracy"),
    "RTE": Task(glue("RTE", a="sentence1", b="sentence2", label="label"), "accuracy"),
    "STS-B": Task(glue("STS-B", a="sentence1", b="sentence2", label="score"), "pearson", "STS-B"),
    "clothes": Task(read_clothes, "auroc"),
}


def measure(metric: str, label: "pd.Series[str]", values: np.ndarray[Any, Any]) -> float:
    """Returns a metric of the probabilities of the last class, of two, or of predicted numbers."""
    if metric == "pearson":
        return float(np.corrcoef(label.astype(float), values)[0, 1]) if values.std() else 0.0
    is_last = (label == label.max()).to_numpy()
    if metric == "auroc":
        return float(roc_auc_score(is_last, values))
    return float((accuracy_score if metric == "accuracy" else matthews_corrcoef)(is_last, values > 0.5))


def fit_ours(
    task: Task, rows: Frames, seed: int, data: Path, folder: Path, model: Mapping[str, Any]
) -> tuple[np.ndarray[Any, Any], float, Any]:
    """Trains as a user would.

    Args:
        task: the task.
        rows: for training and evaluation.
        seed: of the run.
        data: the folder of data.
        folder: for the run, emptied first.
        model: fields of the model that differ from the file's, or `init`, a pretrained model.

    Returns:
        Predictions for the evaluation rows, CPU seconds of training, and the config.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, frame in zip(("train", "dev"), rows, strict=True):
        frame.to_csv(folder / f"{name}.csv", index=False)
    texts = [column for column in rows[0] if column != "label"]
    options = [f"--data.path={folder}", f"--data.text=[{','.join(texts)}]"]
    options += [f"--model.{field}={json.dumps(value)}" for field, value in model.items()]
    config = CONFIG
    if task.glue is not None:
        settings = yaml.safe_load(CONFIG.read_text())
        del settings["min_examples"]  # GLUE has enough
        init = model.get("init", str(folder / "untrained"))
        if "init" not in model:
            sizes = {name: value for name, value in (settings["model"] | model).items() if name != "preset"}
            LanguageConfig(**sizes).build().save(init)
        config = folder / "glue.yaml"
        config.write_text(yaml.safe_dump(settings | {"experiment": "glue", "model": {"init": init}}))
        options = [f"--data.path={data / 'glue'}", f"--data.tasks=[{task.glue}]"]
    output, predictions = folder / "run", folder / "predictions.csv"
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    call("fit", config, *options, f"--training.output={output}", f"--training.seed={seed}")
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    call("predict", output / "model", "--data", folder / "dev.csv", "--out", predictions, "--text", *texts)
    found = pd.read_csv(predictions, dtype={"class": str})
    config_of_run = {key: value for key, value in read_json(output / "config.json").items() if key in KEPT}
    if config_of_run["model"].get("init"):
        config_of_run["model"]["init"] = "pretrained" if "init" in model else "untrained"  # in a folder of this machine
    if task.metric == "pearson":
        return found["score"].to_numpy(), seconds, config_of_run
    is_last = (found["class"] == rows[1]["label"].max()).to_numpy()
    return np.where(is_last, found["probability"], 1 - found["probability"]), seconds, config_of_run


def call(*arguments: object) -> None:
    """Runs a command of perceivers on one core."""
    command = [sys.executable, "-m", "perceivers", *map(str, arguments)]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)


def fit_tfidf(task: Task, rows: Frames) -> tuple[np.ndarray[Any, Any], float, Any]:
    """Searches the settings of TF-IDF on training rows; returns the predictions of the best, CPU seconds, and it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    training = rows[0]
    is_large = len(training) > LARGE
    split = ShuffleSplit(1, test_size=0.1, random_state=0) if is_large else KFold(FOLDS, shuffle=True, random_state=0)
    parts = [(training.iloc[kept], training.iloc[held_out]) for kept, held_out in split.split(training)]

    def score(setting: tuple[str, float]) -> float:
        scores = [measure(task.metric, part[1]["label"], predict_tfidf(task, part, *setting)) for part in parts]
        return statistics.mean(scores)

    best = max(SETTINGS, key=score)
    values = predict_tfidf(task, rows, *best)
    seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
    return values, seconds, {"features": best[0], "C": best[1]}


def predict_tfidf(task: Task, rows: Frames, features: str, strength: float) -> np.ndarray[Any, Any]:
    """Returns predictions of a linear model of TF-IDF: of a pair, of both texts and of their product."""
    texts = [column for column in rows[0] if column != "label"]
    vectorizer = TfidfVectorizer(**FEATURES[features]).fit(pd.concat([rows[0][column] for column in texts]))

    def read(frame: pd.DataFrame) -> csr_matrix:
        arrays = [vectorizer.transform(frame[column]) for column in texts]
        return hstack([*arrays, arrays[0].multiply(arrays[1])]).tocsr() if len(arrays) == 2 else arrays[0]

    x, y = read(rows[0]), read(rows[1])
    if task.metric == "pearson":
        return np.asarray(Ridge(1 / strength).fit(x, rows[0]["label"].astype(float)).predict(y))
    model = LogisticRegression(C=strength, max_iter=2000).fit(x, rows[0]["label"])
    return np.asarray(model.predict_proba(y)[:, 1])


def run(
    name: str, task: Task, data: Path, folder: Path, file: Path, others: Mapping[tuple[str, int], Mapping[str, Any]]
) -> None:
    """Measures what the JSON file has not.

    Args:
        name: of the task.
        task: the task.
        data: the folder of data.
        folder: for the latest run.
        file: the JSON file.
        others: fields of other models than the file's, by method and seed, see `find_others`.
    """
    results: dict[str, Any] = read_json(file) if file.is_file() else {}
    for part, rows in enumerate(task.read(data)):
        for method, seed in [(TFIDF, 0), *((OURS, seed) for seed in SEEDS), *others]:
            key = f"{name} / {part} / {method} / {seed}"
            if key in results:
                continue
            print(f"\n{key}", flush=True)
            if method == TFIDF:
                values, seconds, config = fit_tfidf(task, rows)
            else:
                values, seconds, config = fit_ours(task, rows, seed, data, folder, others.get((method, seed), {}))
            results[key] = {
                "task": name,
                "part": part,
                "method": method,
                "seed": seed,
                "rows": [len(frame) for frame in rows],
                "metric": task.metric,
                "value": measure(task.metric, rows[1]["label"], values),
                "seconds": round(seconds, 1),
                "config": config,
                "commit": find_commit(),
                "machine": describe("cpu") | versions(),
            }
            file.write_text(json.dumps(results, indent=1) + "\n")


def find_others(runs: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Returns an untrained model for each seed, and pretrained ones in a folder of runs of benchmarks/results.py."""
    folders = {(name, seed): runs / f"{PRETRAINED[name]}_seed{seed}/model" for name in PRETRAINED for seed in SEEDS}
    settings = yaml.safe_load(PRETRAINING.read_text())["model"]
    fields = {name: value for name, value in settings.items() if name != "preset"} | {"initialization": "normal"}
    untrained = {(UNTRAINED, seed): fields for seed in SEEDS}
    return untrained | {key: {"init": str(folder)} for key, folder in folders.items() if folder.is_dir()}


def report_pretrained(results: Mapping[str, Any]) -> str:
    """Returns the table of fine-tuned models beside those trained from scratch, as Markdown."""
    others = (UNTRAINED, *PRETRAINED)
    lines = [
        f"| task | training rows | metric | from scratch | TF-IDF | {' | '.join(others)} |",
        "| --- |" + " --- |" * (4 + len(others)),
    ]
    for name, task in TASKS.items():
        methods = (OURS, TFIDF, *others)
        found = [[r for r in results.values() if (r["task"], r["method"]) == (name, method)] for method in methods]
        if all(found):
            rows = f"{found[0][0]['rows'][0]:,}"
            from_scratch = [f"{100 * statistics.mean(r['value'] for r in method):.1f}" for method in found[:2]]
            cells = [name, rows, task.metric, *from_scratch, *map(describe_seeds, found[2:])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def describe_seeds(found: list[dict[str, Any]]) -> str:
    """Returns the mean over seeds, each of them, and the mean time of training."""
    values = [100 * result["value"] for result in found]
    seconds = statistics.mean(result["seconds"] for result in found)
    return f"{statistics.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)}; {seconds:.0f} s)"


def report(results: Mapping[str, Any]) -> str:
    """Returns the table of models trained from scratch, as Markdown."""
    lines = [
        "| task | training rows | metric | Perceiver IO | by seed | TF-IDF | its setting | CPU seconds | of TF-IDF |",
        "| --- |" + " --- |" * 8,
    ]
    for name, task in TASKS.items():
        found = [result for result in results.values() if result["task"] == name]
        ours = [[r for r in found if r["method"] == OURS and r["seed"] == seed] for seed in SEEDS]
        theirs = [r for r in found if r["method"] == TFIDF]
        if not theirs or not all(len(of_seed) == len(theirs) for of_seed in ours):
            continue
        by_seed = [statistics.mean(r["value"] for r in of_seed) for of_seed in ours]
        chosen = {f"{r['config']['features']}, C = {r['config']['C']:g}": None for r in theirs}
        cells = [
            name,
            f"{theirs[0]['rows'][0]:,}",
            task.metric,
            f"{100 * statistics.mean(by_seed):.1f}",
            ", ".join(f"{100 * value:.1f}" for value in by_seed),
            f"{100 * statistics.mean(r['value'] for r in theirs):.1f}",
            "; ".join(chosen),
            f"{statistics.mean(r['seconds'] for of_seed in ours for r in of_seed):.0f}",
            f"{statistics.mean(r['seconds'] for r in theirs):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs all tasks, or some, and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with glue/ and tables/")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS), help="only these")
    parser.add_argument("--pretrained", type=Path, help="folder of runs of benchmarks/results.py: runs/results")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/text_classification", help="folder of the latest run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of all results")
    parser.add_argument("--document", type=Path, default=ROOT / "docs/language.md", help="document to write into")
    arguments = parser.parse_args()
    others = find_others(arguments.pretrained) if arguments.pretrained else {}
    for name in arguments.only:
        run(name, TASKS[name], arguments.data, arguments.runs, arguments.results, others)
    results = read_json(arguments.results)
    table = report(results) + "\n" + report_pretrained(results)
    before, rest = arguments.document.read_text().split(START)
    arguments.document.write_text(f"{before}{START}{table}{END}{rest.split(END, 1)[1]}")
    print(table)


if __name__ == "__main__":
    main()
