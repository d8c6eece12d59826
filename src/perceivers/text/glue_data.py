"""The eight GLUE tasks of the paper, from the original TSV files or from the Hub's parquet files."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perceivers.checks import Checked
from perceivers.data.tables import Table, hub_splits, read_separated, read_table, split_files, to_table
from perceivers.errors import PerceiversError, did_you_mean, quote
from perceivers.files import list_folder, list_folders
from perceivers.text.labeled import LabeledTexts, Metric, TextTask


@dataclass(frozen=True)
class GlueTask:
    """A task, and the format of its files.

    Attributes:
        classes: their names, in the order of their indices in the files; None for scores from 0 to 5.
        metric: the paper's metric of the task.
        text, label: columns of the original files.
        hub_text: text columns of the Hub's files; their label column is called `label`.
        header: the columns of the original files if they have no header.
        evaluation: suffix of the name, original file and Hub split of each set to evaluate on.
    """

    name: str
    classes: list[str] | None
    metric: Metric
    text: tuple[str, ...]
    label: str
    hub_text: tuple[str, ...]
    header: list[str] | None = None
    evaluation: tuple[tuple[str, str, str], ...] = (("", "dev.tsv", "validation"),)


COLA = ["source", "label", "star", "sentence"]
ENTAILMENT = ["entailment", "not_entailment"]
SENTENCE, PAIR, QUESTIONS = ("sentence",), ("sentence1", "sentence2"), ("question1", "question2")
MNLI = ["entailment", "neutral", "contradiction"]
MNLI_EVALUATION = (
    ("_matched", "dev_matched.tsv", "validation_matched"),
    ("_mismatched", "dev_mismatched.tsv", "validation_mismatched"),
)
TASKS = {
    task.name: task
    for task in (
        GlueTask("CoLA", ["unacceptable", "acceptable"], "matthews", SENTENCE, "label", SENTENCE, COLA),
        GlueTask("MNLI", MNLI, "accuracy", PAIR, "gold_label", ("premise", "hypothesis"), None, MNLI_EVALUATION),
        GlueTask("MRPC", ["not_equivalent", "equivalent"], "accuracy", ("#1 String", "#2 String"), "Quality", PAIR),
        GlueTask("QNLI", ENTAILMENT, "accuracy", ("question", "sentence"), "label", ("question", "sentence")),
        GlueTask("QQP", ["not_duplicate", "duplicate"], "accuracy", QUESTIONS, "is_duplicate", QUESTIONS),
        GlueTask("RTE", ENTAILMENT, "accuracy", PAIR, "label", PAIR),
        GlueTask("SST-2", ["negative", "positive"], "accuracy", SENTENCE, "label", SENTENCE),
        GlueTask("STS-B", None, "pearson", PAIR, "score", PAIR),
    )
}
"""The tasks in the paper's order. The paper leaves out WNLI."""


@dataclass
class GlueData(Checked):
    """GLUE tasks.

    Attributes:
        path: a folder with one folder per task, which holds the original train.tsv and dev.tsv, or the Hub's
            train-00000-of-00001.parquet and validation-00000-of-00001.parquet; or the name of a data set on the Hub.
        tasks: names of tasks; by default all that are available.
    """

    section = "data."

    path: str = "nyu-mll/glue"
    tasks: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.tasks or ():
            if normalized_name(name) not in map(normalized_name, TASKS):
                raise PerceiversError(f"data.tasks: there is no task {name!r}: {did_you_mean(name, TASKS)}")
        if self.tasks == []:
            raise PerceiversError("data.tasks is empty: name tasks, or leave it out for all that are available.")

    def open(self, only: Literal["train", "val"] | None = None) -> dict[str, TextTask]:
        """Reads the tasks that are available, in the paper's order; texts are as published, even empty ones.

        A task's only set to evaluate on has its name; those of MNLI are MNLI_matched and MNLI_mismatched. With `only`,
        there is nothing to train on, and the sets to evaluate on are those of this split.

        Raises:
            PerceiversError: no task is available, a file or column is missing, or a label is invalid; names the file
                and the line.
        """
        folders = self.available_tasks()
        if not folders:
            raise PerceiversError(
                f"{self.path} has no folder for {', '.join(self.requested_tasks())}: one per task is expected, with "
                f"train.tsv and dev.tsv (MNLI: dev_matched.tsv and dev_mismatched.tsv) or the Hub's parquet files."
            )
        return {name: read_task(TASKS[name], self.path, folders[name], only) for name in folders}

    def missing(self) -> list[str]:
        """Returns the requested tasks that are not available."""
        available = self.available_tasks()
        return [name for name in self.requested_tasks() if name not in available]

    def requested_tasks(self) -> list[str]:
        """Returns the names of the requested tasks, in the paper's order."""
        names = {normalized_name(name) for name in self.tasks or TASKS}
        return [name for name in TASKS if normalized_name(name) in names]

    def available_tasks(self) -> dict[str, Path | None]:
        """Returns the folder of each requested task that is available; None on the Hub."""
        root, names = Path(self.path), self.requested_tasks()
        if not os.path.exists(root):
            return dict.fromkeys(names)
        if not root.is_dir():
            raise PerceiversError(f"data.path = {self.path} is a file: give the folder that holds those of the tasks.")
        folders = {normalized_name(folder.name): folder for folder in list_folders(root)}
        return {name: folders[normalized_name(name)] for name in names if normalized_name(name) in folders}


def normalized_name(name: str) -> str:
    """Returns a task's name as the Hub writes it: STS-B, STS_B, stsb -> stsb."""
    return name.lower().replace("-", "").replace("_", "")


def read_task(task: GlueTask, path: str, folder: Path | None, only: Literal["train", "val"] | None = None) -> TextTask:
    """Reads a task from its folder, or from the data set `path` on the Hub; `only` as in `GlueData.open`."""
    hub_name = f"{path}:{normalized_name(task.name)}"
    splits = hub_splits(hub_name) if folder is None else {}

    def read(file: str, split: str) -> LabeledTexts:
        if folder is None:
            if split not in splits:
                raise PerceiversError(f"{path} has no split {split!r} of {task.name}; it has {', '.join(splits)}.")
            return label_examples(task, to_table(splits[split], f"{hub_name} ({split})"), task.hub_text, "label")
        if list_folder(folder, "*.parquet"):
            paths = split_files(folder, (split,))
            if not paths:
                raise PerceiversError(f"{folder / split}-00000-of-00001.parquet does not exist; {task.name} needs it.")
            return label_examples(task, read_table(paths), task.hub_text, "label")
        if not (folder / file).is_file():
            raise PerceiversError(f"{folder / file} does not exist; {task.name} needs it.")
        # a few rows of QQP are broken in the published files, and everyone leaves them out
        table = read_separated(folder / file, "\t", columns=task.header, skip_short=task.name == "QQP")
        return label_examples(task, table, task.text, task.label)

    training = None if only == "val" else read("train.tsv", "train")
    if training is not None and only == "train":
        return TextTask(None, {task.name: training}, task.metric)
    return TextTask(training, {task.name + suffix: read(*names) for suffix, *names in task.evaluation}, task.metric)


def label_examples(task: GlueTask, table: Table, text: tuple[str, ...], label: str) -> LabeledTexts:
    """Returns the examples of a table; raises a PerceiversError if a column is missing or a label is invalid."""
    for column in (*text, label):
        if column not in table.columns:
            names = table.column_names()
            raise PerceiversError(f"{table.name} has no column {column!r} of {task.name}; it has {names}.")
    values = table.columns[label]
    if task.classes is None:
        kind, expected = "score", "a number from 0 to 5"
        labels: list[Any] = [read_score(value) for value in values]
    else:
        kind, expected = "label", f"{', '.join(task.classes)}, or their numbers from 0 on"
        indices = {key: index for index, name in enumerate(task.classes) for key in (name, str(index))}
        labels = [indices.get(str(value)) for value in values]
    if None in labels:
        row = labels.index(None)
        raise PerceiversError(
            f"{table.location(row)} has the {kind} {quote(values[row])}, where {task.name} has {expected}."
        )
    return LabeledTexts(table.texts(text), labels, task.classes)


def read_score(value: Any) -> float | None:
    """Returns a number from 0 to 5; None for anything else."""
    try:
        return score if 0 <= (score := float(value)) <= 5 else None
    except (TypeError, ValueError):
        return None
