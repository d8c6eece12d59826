"""A small run and a small sweep of GLUE, and their data."""

import json

from perceivers.checkpoints.load import pretrained_config
from perceivers.text.glue import Glue
from perceivers.text.glue_data import GlueData
from perceivers.training.optimization import Optimization
from perceivers.training.sweep import Sweep
from tests.support.runs import run_settings


def write_rows(path, *rows):
    """Rows as a file with tabs, given with | between their cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row.replace("|", "\t") + "\n" for row in rows))


def header(names):
    """A row of names, given with spaces between them."""
    return names.replace(" ", "|")


def write_glue(folder):
    """CoLA, MNLI, RTE and STS-B, of 16 examples to train on and 8 or more to evaluate on."""
    rows = [f"{'ab' * (row % 5)}{row}|{row}" for row in range(24)]
    cola = [f"x|{row % 2}||{text.split('|')[0]}" for row, text in enumerate(rows)]
    write_rows(folder / "CoLA" / "train.tsv", *cola[:16])
    write_rows(folder / "CoLA" / "dev.tsv", *cola[16:])
    rte = [f"{text}|{'not_' * (row % 2)}entailment" for row, text in enumerate(rows)]
    columns = header("sentence1 sentence2 {}")
    write_rows(folder / "RTE" / "train.tsv", columns.format("label"), *rte[:16])
    write_rows(folder / "RTE" / "dev.tsv", columns.format("label"), *rte[16:])
    mnli = [f"{text}|{('neutral', 'entailment', 'contradiction')[row % 3]}" for row, text in enumerate(rows)]
    write_rows(folder / "MNLI" / "train.tsv", columns.format("gold_label"), *mnli[:16])
    write_rows(folder / "MNLI" / "dev_matched.tsv", columns.format("gold_label"), *mnli[16:21])
    write_rows(folder / "MNLI" / "dev_mismatched.tsv", columns.format("gold_label"), *mnli[21:])
    scores = [f"{text}|{row % 6 * 0.9}" for row, text in enumerate(rows)]
    write_rows(folder / "STS-B" / "train.tsv", columns.format("score"), *scores[:16])
    write_rows(folder / "STS-B" / "dev.tsv", columns.format("score"), *scores[16:])
    return folder


def small_run(language, data, output, tasks=None, method="single_task", examples=None, **training):
    """Two epochs of two updates for each task."""
    return Glue(
        model=pretrained_config(language),
        data=GlueData(str(data), tasks),
        method=method,
        examples=examples,
        optimization=Optimization(lr=1e-2, schedule="flat_cosine"),
        **run_settings(**{"max_epochs": 2, "batch_size": 8, "output": str(output)} | training),
    )


def small_sweep(language, data, output, fields, **settings):
    """A sweep over all values of fields, whose config is beside its folder."""
    config = output.with_suffix(".json")
    config.write_text(json.dumps(small_run(language, data, "unused").to_config()))
    return Sweep(config=str(config), fields=fields, sampler="grid", output=str(output), keep="best", settings=settings)
