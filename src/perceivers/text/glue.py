"""GLUE: fine-tuning, and the table of the best results of a sweep (section 4.1; section 3 of the appendix)."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from perceivers.checks import Count, Fraction, check_field
from perceivers.errors import PerceiversError
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text import commands, fine_tuning
from perceivers.text.bert import BERT
from perceivers.text.classify import TextPredictor, is_text_classifier, task_heads
from perceivers.text.fine_tuning import FineTuning, Method
from perceivers.text.glue_data import TASKS, GlueData
from perceivers.text.labeled import TextTask
from perceivers.text.model import BertConfig, LanguageConfig, choose_tokenizer
from perceivers.text.tokenizers import Tokenizer
from perceivers.training.experiment import Setup, TrialResult
from perceivers.values import describe_values

PAPER = {
    "Perceiver IO, bytes": (50.19, 83.56, 87.24, 91.71, 90.12, 64.84, 93.17, 86.81),
    "BERT, bytes": (20.06, 74.83, 77.00, 85.75, 88.23, 53.91, 89.00, 82.84),
}
"""The paper's results in the order of `TASKS`, times 100; MNLI is the mean of its two sets."""


@dataclass(kw_only=True)
class Glue(FineTuning):
    """Fine-tuning on tasks of GLUE; a sweep over settings, and over tasks, prints the table of the paper.

    Attributes:
        model: `init`, a pretrained language model in any format, and fields that differ from it.
        data: the tasks.
        method: single_task (of which there is one), shared_token, task_tokens or multitask_query.
        examples: the maximum number of training examples per task; tasks are sampled in proportion to it. By default
            all are used.
        mask_rate: as in `TextClassification`.
    """

    evaluate = staticmethod(commands.evaluate_glue)
    predictor = TextPredictor

    model: LanguageConfig | BertConfig
    data: GlueData = field(default_factory=GlueData)
    method: Method = "single_task"
    examples: Count | None = None
    mask_rate: Fraction = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_field("model.init", self.model.init, self.model.init is not None, "a pretrained language model")

    def prepare(self) -> Setup:
        tokenizer = choose_tokenizer(None, self.model)
        tasks = {name: limit_training(task, self.examples) for name, task in self.data.open().items()}
        if missing := self.data.missing():
            print(f"Not in {self.data.path}, and left out: {', '.join(missing)}.")
        if self.method == "single_task" and len(tasks) > 1:
            hint = "name one, such as data.tasks=[RTE], or several in a sweep, or choose another method"
            raise PerceiversError(f"method = single_task trains one task, but there are {', '.join(tasks)}: {hint}.")
        return self.prepare_tasks(self.model.build, tokenizer, tasks, self.method, self.mask_rate)

    def summarize_sweep(self, results: Sequence[TrialResult]) -> list[Path]:
        """Prints the table; returns the best model of each task, or of all: of the setting with the best mean."""
        groups = group_by_tasks(results)
        scores = {task: score for group in groups for task, score in best_scores(group).items()}
        if scores:
            print("\n" + format_table({f"this ({self.method})": scores}))
        best = [max(group[best_setting(group)].values(), key=lambda run: run.metrics["val_mean"]) for group in groups]
        return [run.folder / "model" for run in best]

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return is_text_classifier(model) and set(task_heads(model).tasks) <= set(TASKS)


def limit_training(task: TextTask, limit: int | None) -> TextTask:
    """Returns a task with at most `limit` random training examples, always the same."""
    if task.training is None or limit is None or limit >= len(task.training):
        return task
    order = torch.randperm(len(task.training), generator=torch.Generator().manual_seed(0))
    return replace(task, training=task.training.subset(order[:limit].tolist()))


def evaluate(
    model: PerceiverIO | BERT,
    tokenizer: Tokenizer,
    data: GlueData,
    batch_size: int = 64,
    split: Literal["train", "val", "test"] = "val",
) -> tuple[dict[str, float], dict[str, int]]:
    """Returns the metrics of a model on its tasks, by name, and their "mean"; and the number of texts of each.

    If `data` names no tasks, they are all tasks of the model that are available. The test sets have no labels.

    Raises:
        PerceiversError: the model is of another kind, no task of it is available, or it lacks a named task.
    """
    known = task_heads(model).tasks
    data = replace(data, tasks=data.tasks or [name for name in known if name in TASKS])
    if lacking := [name for name in data.requested_tasks() if name not in known]:
        raise PerceiversError(f"the model has no task {lacking[0]!r}: it has {', '.join(known)}.")
    if split == "test":
        raise PerceiversError("the labels of the split 'test' of GLUE are not published: use train or val.")
    tasks = data.open(split)
    counts = {name: len(texts) for task in tasks.values() for name, texts in task.evaluation.items()}
    return fine_tuning.evaluate(model, tokenizer, tasks, batch_size), counts


Group = dict[str, dict[Any, TrialResult]]
"""Finished runs of the same tasks, by setting and seed."""


def group_by_tasks(results: Sequence[TrialResult]) -> list[Group]:
    """Returns the results of a sweep by tasks, setting and seed, in the order of the trials."""
    groups: dict[str, Group] = {}
    for result in sorted(results, key=lambda result: result.number):
        if result.metrics:  # they are on this machine
            setting = dict(result.values)
            tasks, seed = setting.pop("data.tasks", None), setting.pop("training.seed", None)
            groups.setdefault(str(tasks), {}).setdefault(describe_values(setting), {})[seed] = result
    return list(groups.values())


def best_scores(group: Group) -> dict[str, dict[str, Any]]:
    """Returns for each task its "mean" and "seeds" (score of each seed) at the best setting, and "setting"."""
    setting = best_setting(group)
    runs = [run.metrics for run in group[setting].values()]
    scores: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        sets = [name for name in runs[0] if name in (f"val_{task}", f"val_{task}_matched", f"val_{task}_mismatched")]
        if sets:
            seeds = [statistics.mean(run[name] for name in sets) for run in runs]
            seconds = statistics.mean(run["seconds"] for run in runs)
            scores[task] = {"mean": statistics.mean(seeds), "seeds": seeds, "setting": setting, "seconds": seconds}
    return scores


def best_setting(group: Group) -> str:
    """Returns the setting with the best mean over seeds and tasks."""
    return max(group, key=lambda setting: statistics.mean(run.metrics["val_mean"] for run in group[setting].values()))


def format_table(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns results and the paper's as a Markdown table: times 100, spread over seeds, and mean over tasks."""
    table = [["model", *TASKS, "mean"], ["---"] * (len(TASKS) + 2)]
    for name, scores in rows.items():
        cells = dict.fromkeys(TASKS, "")
        for task, score in scores.items():
            seeds = [100 * seed for seed in score["seeds"]]
            spread = f" ± {statistics.stdev(seeds):.1f}" if len(seeds) > 1 else ""
            cells[task] = f"{statistics.mean(seeds):.1f}{spread}"
        mean = statistics.mean(100 * score["mean"] for score in scores.values())
        table.append([name, *cells.values(), f"{mean:.1f}"])
    for name, figures in PAPER.items():
        table.append([f"paper: {name}", *(f"{figure:.1f}" for figure in (*figures, statistics.mean(figures)))])
    return "\n".join(f"| {' | '.join(row)} |" for row in table)
