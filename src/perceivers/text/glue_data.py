"""The eight GLUE tasks of the paper, from the original TSV files or from the hub's parquet files."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from perceivers.checks import Checked
from perceivers.errors import PerceiversError, did_you_mean
from perceivers.text.labelled import LabelledTexts
from perceivers.text.tables import Table, hub_splits, hub_table, read_separated, read_table, split_files


@dataclass(frozen=True)
class GlueTask:
    """A task, and how its files look.

    Attributes:
        name: as the paper writes it.
        classes: their names, in the order of their numbers in the files; None for scores from 0 to 5.
        metric: what the paper judges it by.
        text, label: columns of the original files.
        hub_text: those of the hub's files, in which the label's is called `label`.
        header: the columns of the original files, where they do not begin with their names.
        evaluation: name, original file and hub's split of each set to evaluate on.
    """

    name: str
    classes: list[str] | None
    metric: Literal["accuracy", "matthews", "pearson"]
    text: tuple[str, ...]
    label: str
    hub_text: tuple[str, ...]
    header: list[str] | None = None
    evaluation: tuple[tuple[str, str, str], ...] = (("dev", "dev.tsv", "validation"),)


ENTAILMENT = ["entailment", "not_entailment"]
PAIR = ("sentence1", "sentence2")
QUESTIONS = ("question1", "question2")
MNLI_EVALUATION = (
    ("matched", "dev_matched.tsv", "validation_matched"),
    ("mismatched", "dev_mismatched.tsv", "validation_mismatched"),
)
TASKS = {
    task.name: task
    for task in (
        GlueTask(
            "CoLA",
            ["unacceptable", "acceptable"],
            "matthews",
            ("sentence",),
            "label",
            ("sentence",),
            header=["source", "label", "star", "sentence"],
        ),
        GlueTask(
            "MNLI",
            ["entailment", "neutral", "contradiction"],
            "accuracy",
            PAIR,
            "gold_label",
            ("premise", "hypothesis"),
            evaluation=MNLI_EVALUATION,
        ),
        GlueTask("MRPC", ["not_equivalent", "equivalent"], "accuracy", ("#1 String", "#2 String"), "Quality", PAIR),
        GlueTask("QNLI", ENTAILMENT, "accuracy", ("question", "sentence"), "label", ("question", "sentence")),
        GlueTask("QQP", ["not_duplicate", "duplicate"], "accuracy", QUESTIONS, "is_duplicate", QUESTIONS),
        GlueTask("RTE", ENTAILMENT, "accuracy", PAIR, "label", PAIR),
        GlueTask("SST-2", ["negative", "positive"], "accuracy", ("sentence",), "label", ("sentence",)),
        GlueTask("STS-B", None, "pearson", PAIR, "score", PAIR),
    )
}
"""The tasks in the paper's order. It leaves out WNLI."""


@dataclass(frozen=True)
class TaskSplits:
    """The examples of a task.

    Attributes:
        task: which.
        training: the examples to train on.
        evaluation: those to evaluate on: "dev"; for MNLI "matched" and "mismatched".
    """

    task: GlueTask
    training: LabelledTexts
    evaluation: dict[str, LabelledTexts]


@dataclass
class GlueData(Checked):
    """Which GLUE tasks to use.

    Attributes:
        path: a folder with a folder a task, which holds the original train.tsv and dev.tsv, or the hub's
            train-00000-of-00001.parquet and validation-00000-of-00001.parquet; or the name of a data set on the hub.
        tasks: their names; by default all that are there.
    """

    section = "data."

    path: str = "nyu-mll/glue"
    tasks: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        known = {plain(name) for name in TASKS}
        for name in self.tasks or ():
            if plain(name) not in known:
                raise PerceiversError(f"data.tasks: there is no task {name!r}: {did_you_mean(name, TASKS)}")
        if self.tasks == []:
            raise PerceiversError("data.tasks is empty: name tasks, or leave it out for all that are there.")

    def open(self) -> dict[str, TaskSplits]:
        """Reads the tasks that are there, in the paper's order; texts are as they are published, even empty.

        Raises:
            PerceiversError: there are none, a file or a column is missing, or a label is none of the task's; names
                the file and the line.
        """
        return {
            name: TaskSplits(TASKS[name], read("train.tsv", "train"), read_evaluation(TASKS[name], read))
            for name, read in self.readers().items()
        }

    def open_evaluation(self) -> dict[str, dict[str, LabelledTexts]]:
        """Reads by task the sets to evaluate on alone, by name; the rest as in `open`."""
        return {name: read_evaluation(TASKS[name], read) for name, read in self.readers().items()}

    def readers(self) -> dict[str, "Reader"]:
        """Returns what reads the files of each task that is there.

        Raises:
            PerceiversError: there is none.
        """
        present = self.present()
        if not present:
            raise PerceiversError(
                f"{self.path} has no folder for {', '.join(self.asked())}: one is expected for each task, with "
                f"train.tsv and dev.tsv (MNLI: dev_matched.tsv and dev_mismatched.tsv) or the hub's parquet files."
            )
        return {name: open_task(TASKS[name], self.path, folder) for name, folder in present.items()}

    def missing(self) -> list[str]:
        """Those of the tasks asked for that are not there."""
        present = self.present()
        return [name for name in self.asked() if name not in present]

    def asked(self) -> list[str]:
        """The names of the tasks asked for, in the paper's order."""
        names = {plain(name) for name in self.tasks or TASKS}
        return [name for name in TASKS if plain(name) in names]

    def present(self) -> dict[str, Path | None]:
        """The folder of each task that is there; None on the hub."""
        if not Path(self.path).exists():
            return dict.fromkeys(self.asked())
        if not Path(self.path).is_dir():
            raise PerceiversError(f"data.path = {self.path} is a file: give the folder that holds those of the tasks.")
        folders = {plain(folder.name): folder for folder in sorted(Path(self.path).iterdir()) if folder.is_dir()}
        return {name: folders[plain(name)] for name in self.asked() if plain(name) in folders}


def plain(name: str) -> str:
    """A task's name as the hub writes it: STS-B, STS_B, stsb -> stsb."""
    return name.lower().replace("-", "").replace("_", "")


Reader = Callable[[str, str], LabelledTexts]
"""Reads examples of a task, of an original file or of the hub's split, whichever is there."""


def open_task(task: GlueTask, path: str, folder: Path | None) -> Reader:
    """Opens a task in its folder, or in the hub's data set `path`."""
    splits = {} if folder is not None else hub_splits(f"{path}:{plain(task.name)}")

    def read(file: str, split: str) -> LabelledTexts:
        if folder is None:
            if split not in splits:
                raise PerceiversError(f"{path} has no split {split!r} of {task.name}; it has {', '.join(splits)}.")
            return examples(task, hub_table(splits, split, f"{path}:{plain(task.name)}"), task.hub_text, "label")
        if next(folder.glob("*.parquet"), None) is not None:
            paths = split_files(folder, (split,))
            if not paths:
                raise PerceiversError(f"{folder / split}-00000-of-00001.parquet does not exist; {task.name} needs it.")
            return examples(task, read_table(paths), task.hub_text, "label")
        if not (folder / file).is_file():
            raise PerceiversError(f"{folder / file} does not exist; {task.name} needs it.")
        # a few rows of QQP are broken in the published files, and everyone leaves them out
        table = read_separated(folder / file, "\t", quotes=False, columns=task.header, skip_short=task.name == "QQP")
        return examples(task, table, task.text, task.label)

    return read


def read_evaluation(task: GlueTask, read: Reader) -> dict[str, LabelledTexts]:
    """Reads the sets of a task to evaluate on, by name."""
    return {name: read(file, split) for name, file, split in task.evaluation}


def examples(task: GlueTask, table: Table, text: tuple[str, ...], label: str) -> LabelledTexts:
    """The examples of a table.

    Raises:
        PerceiversError: a column is missing, or a label is none of the task's; names the row.
    """
    for column in (*text, label):
        if column not in table.columns:
            raise PerceiversError(f"{table.name} has no column {column!r} of {task.name}; it has {table.listed()}.")
    values = table.columns[label]
    if task.classes is None:
        scores = [score(value) for value in values]
        for index, number in enumerate(scores):
            if not 0 <= number <= 5:
                raise PerceiversError(
                    f"{table.where(index)} has the score {values[index]!r}, where {task.name} has a number from 0 to 5."
                )
        return LabelledTexts(table.texts(text), scores, None)
    numbers = {key: index for index, name in enumerate(task.classes) for key in (name, str(index))}
    for index, value in enumerate(values):
        if str(value) not in numbers:
            raise PerceiversError(
                f"{table.where(index)} has the label {value!r}, where {task.name} has {', '.join(task.classes)}, "
                f"or their numbers from 0 on."
            )
    return LabelledTexts(table.texts(text), [numbers[str(value)] for value in values], task.classes)


def score(value: Any) -> float:
    """The number that a value is, or NaN."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
