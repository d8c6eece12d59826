"""Perceiver IO beside BERT on masked words and GLUE, small, on bytes and on SentencePiece; into docs/language.md.

    python benchmarks/language.py --text FOLDER --glue FOLDER    # make mini-glue TEXT=FOLDER GLUE=FOLDER

Every model gets the same text, steps, sweep and seeds. What is done is kept in `runs/language` and skipped when the
same command is called again; what was interrupted goes on. Models this small gain nothing from a second core, so that
as many are trained side by side as there are cores.
"""

import argparse
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.side_by_side import cores, curve, side_by_side
from perceivers.errors import PerceiversError
from perceivers.presets import create_model, make_example, measure_cost
from perceivers.text.glue import best_scores, format_table, group_by_tasks
from perceivers.text.stream import TextData
from perceivers.text.tokenizers import train_tokenizer
from perceivers.training.checkpoints import LAST
from perceivers.training.config import read_config
from perceivers.training.sweep import Sweep

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs/language"
MODELS = {
    "bytes": "Perceiver IO, bytes",
    "bytes_bert": "BERT, bytes",
    "sentencepiece": "Perceiver IO, SentencePiece",
    "sentencepiece_bert": "BERT, SentencePiece",
}
"""Configs mlm_<name>_mini.yaml, and what the models are called."""

SMALL, LARGE = ["CoLA", "MRPC", "RTE", "STS-B"], ["SST-2"]
SEEDS = {"small": [0, 1, 2], "large": [0]}
LEFT_OUT = ["movie_reviews.txt"]
"""Text of the kind SST-2 was cut from."""

WORDS = "words.model"
"""The vocabulary, in the folder of the runs."""

START, END = "<!-- measured by benchmarks/language.py -->\n", "<!-- end -->\n"


def pretrain(name: str, text: Path, runs: Path) -> Path:
    """Pretrains a model, or goes on with it, unless it is done; -> its folder."""
    output = runs / name
    if not (output / "metrics.json").is_file():
        overrides = [
            f"--data.path={text}",
            f"--data.leave_out={json.dumps(LEFT_OUT)}",
            f"--training.output={output}",
            f"--training.resume={str((output / 'checkpoints' / LAST).is_file()).lower()}",
        ]
        if "sentencepiece" in name:
            overrides.append(f"--data.tokenizer={runs / WORDS}")
        print(f"\nPretraining {MODELS[name]}", flush=True)
        read_config(CONFIGS / f"mlm_{name}_mini.yaml", overrides).run()
    return output


def make_vocabulary(text: Path, runs: Path) -> None:
    """Trains the vocabulary that the configs ask for, unless it is there."""
    if not (runs / WORDS).is_file():
        settings = yaml.safe_load((CONFIGS / "mlm_sentencepiece_mini.yaml").read_text())
        data = TextData(path=str(text), leave_out=LEFT_OUT, validation_fraction=settings["data"]["validation_fraction"])
        train_tokenizer(data.all_documents(), runs / WORDS, settings["model"]["vocabulary"])


def run_all(arguments: argparse.Namespace) -> None:
    """Runs each model in a process of its own, `jobs` at a time."""
    own = [sys.executable, __file__, "--text", arguments.text, "--glue", arguments.glue, "--runs", arguments.runs]
    failed = side_by_side({name: [*own, "--only", name] for name in MODELS}, arguments.runs, arguments.jobs)
    if failed:
        sys.exit(f"language.py: not finished: {', '.join(failed)}; see the ends of their logs in {arguments.runs}.")


def fine_tune(name: str, glue: Path, runs: Path) -> dict[str, Any]:
    """Fine-tunes a pretrained model on the tasks, unless it is done; -> the best results by task."""
    scores: dict[str, Any] = {}
    for size, tasks in (("small", SMALL), ("large", LARGE)):
        print(f"\nFine-tuning {MODELS[name]}", flush=True)
        sweep = Sweep(
            config=str(CONFIGS / "glue_mini.yaml"),
            fields={
                "data.tasks": [[task] for task in tasks],
                "optimization.lr": [3e-4, 1e-3],
                "training.seed": SEEDS[size],
            },
            settings={"model.init": str(runs / name / "model"), "data.path": str(glue)},
            sampler="grid",
            keep="best",
            output=str(runs / f"{name}_glue_{size}"),
        )
        for group in group_by_tasks(sweep.run()):
            scores |= best_scores(group)
    return scores


def size_of(name: str) -> tuple[float, float]:
    """Parameters, and FLOPs of a forward pass of one window with the places that training decodes."""
    config = yaml.safe_load((CONFIGS / f"mlm_{name}_mini.yaml").read_text())
    settings = {name: value for name, value in config["model"].items() if name != "initialization"}
    length = settings["length"]
    places = torch.empty(-(-length // 5), dtype=torch.long, device="meta")
    build = partial(create_model, settings.pop("preset"), **settings)
    size = measure_cost(build, {"text": make_example(length, dtype=torch.long)}, {"text": places})
    return size.parameters, size.flops


def report(names: list[str], runs: Path, results: dict[str, dict[str, Any]], picture: Path) -> str:
    """The tables of what was measured, as Markdown; draws the curves."""
    lines = [
        "| model | parameters | FLOPs of a window | learning rate | bits per byte | masked accuracy | windows / s | "
        "pretraining |",
        "| --- |" + " --- |" * 7,
    ]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    by_step, by_time = figure.subplots(1, 2, sharey=True)
    for name in names:
        parameters, flops = size_of(name)
        found = json.loads((runs / name / "metrics.json").read_text())
        config = json.loads((runs / name / "config.json").read_text())
        speed = statistics.median(value for _, value in curve(runs / name, "examples_per_second"))
        minutes = config["training"]["batch_size"] / speed / 60  # of a step
        steps, bits = zip(*curve(runs / name, "val_bits_per_byte"), strict=True)
        lines.append(
            f"| {MODELS[name]} | {parameters / 1e6:.2f}M | {flops / 1e9:.3f}B | {config['optimization']['lr']:g} | "
            f"{found['val_bits_per_byte']:.3f} | {found['val_accuracy']:.1%} | {speed:.0f} | "
            f"{steps[-1] * minutes:.0f} min |"
        )
        by_step.plot(steps, bits, label=MODELS[name])
        by_time.plot([step * minutes for step in steps], bits)
    by_step.set_xlabel("step")
    by_time.set_xlabel("minutes")
    by_step.set_ylabel("bits per byte of hidden words")
    by_step.legend()
    figure.savefig(picture, dpi=110)
    return "\n".join(lines) + "\n\n" + format_table({MODELS[name]: results[name] for name in names}) + "\n"


def main() -> None:
    """Runs what is not done yet and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="a folder of text files")
    parser.add_argument("--glue", type=Path, required=True, help="a folder with CoLA, MRPC, RTE, SST-2 and STS-B")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/language", help="where runs are kept")
    parser.add_argument("--only", choices=list(MODELS), help="run one of the models, in this process, without tables")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1 if torch.cuda.is_available() else min(cores(), len(MODELS)),
        help="models trained side by side: one on a GPU, else one a core",
    )
    arguments = parser.parse_args()
    page, picture = ROOT / "docs/language.md", ROOT / "docs/language_mini.png"
    try:
        arguments.runs.mkdir(parents=True, exist_ok=True)
        make_vocabulary(arguments.text, arguments.runs)
        if arguments.only:
            pretrain(arguments.only, arguments.text, arguments.runs)
            fine_tune(arguments.only, arguments.glue, arguments.runs)
            return
        run_all(arguments)
        results = {name: fine_tune(name, arguments.glue, arguments.runs) for name in MODELS}
    except PerceiversError as error:
        sys.exit(f"language.py: {error}")
    tables = report(list(MODELS), arguments.runs, results, picture)
    before, _, rest = page.read_text().partition(START)
    page.write_text(before + START + tables + END + rest.partition(END)[2])
    print("\n" + tables)


if __name__ == "__main__":
    main()
