"""GLUE: a sweep of fine-tuning runs, and the table of their best results (section 4.1; section 3 of the appendix)."""

import itertools
import json
import shutil
import statistics
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from perceivers.checks import Checked, Count, Range, check_field
from perceivers.errors import PerceiversError
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import atomic_write, read_config
from perceivers.text import commands, fine_tuning
from perceivers.text.bert import BERT
from perceivers.text.classify import is_text_classifier, task_heads
from perceivers.text.fine_tuning import FineTuning, Method, Pretrained
from perceivers.text.glue_data import TASKS, GlueData
from perceivers.text.labelled import TextTask
from perceivers.text.tokenizers import Tokenizer
from perceivers.training.checkpoints import CONFIG, LAST, METRICS, hold_folder, is_first_process
from perceivers.training.experiment import Setup

PAPER = {
    "Perceiver IO, bytes": (50.19, 83.56, 87.24, 91.71, 90.12, 64.84, 93.17, 86.81),
    "BERT, bytes": (20.06, 74.83, 77.00, 85.75, 88.23, 53.91, 89.00, 82.84),
}
"""The paper's results in the order of `TASKS`, times 100; MNLI is the mean of its two sets."""


@dataclass
class Sweep(Checked):
    """Settings to try; every combination is run.

    Attributes:
        batch_sizes: values of `training.batch_size`.
        lrs: values of `optimization.lr`.
        seeds: values of `training.seed`; results are averaged over seeds before the best setting is picked.
    """

    section = "sweep."

    batch_sizes: list[Count] = field(default_factory=lambda: [16, 32, 64])
    lrs: list[Annotated[float, Range(above=0)]] = field(default_factory=lambda: [1e-4, 5e-5, 2e-5, 1e-5])
    seeds: list[Annotated[int, Range(least=0)]] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in vars(self).items():
            check_field(f"sweep.{name}", values, len(values) > 0, "a list with at least one value")


@dataclass(kw_only=True)
class Glue(FineTuning):
    """Fine-tuning on GLUE, one model per task or one for all, over a sweep of settings.

    Called again, the same command skips finished runs and resumes an interrupted one.

    Attributes:
        model: `init`, a pretrained language model in any format.
        data: the tasks.
        method: single_task, shared_token, task_tokens or multitask_query.
        examples: the maximum number of training examples per task; tasks are sampled in proportion to it. By default
            all are used.
        sweep: the settings.
        training: settings of each run; `output` is the folder of all runs.
    """

    evaluate = staticmethod(commands.evaluate_glue)

    model: Pretrained
    data: GlueData = field(default_factory=GlueData)
    method: Method = "single_task"
    examples: Count | None = None
    sweep: Sweep = field(default_factory=Sweep)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parent: Glue | None = None
        """The sweep that a single run belongs to."""

    def run(self) -> Path:
        """Runs the sweep and prints the table; -> the folder of the runs."""
        if self.parent is not None:
            return super().run()
        self.model.load()  # reports a wrong model before any data is read
        output = Path(self.training.output)
        with hold_folder(output) if is_first_process() else nullcontext():
            self.check_output(output)
            return self.run_all(output)

    def run_all(self, output: Path) -> Path:
        """Runs what is left of the sweep in a folder."""
        tasks = {name: limit_training(task, self.examples) for name, task in self.data.open().items()}
        if missing := self.data.missing():
            print(f"Not in {self.data.path}, and left out: {', '.join(missing)}.")
        together = {"all": tasks} if self.method != "single_task" else {name: {name: tasks[name]} for name in tasks}
        atomic_write(output / CONFIG, lambda file: file.write_text(json.dumps(self.to_config(), indent=2) + "\n"))
        runs = list(itertools.product(together, self.sweep.batch_sizes, self.sweep.lrs, self.sweep.seeds))
        for number, (name, batch_size, lr, seed) in enumerate(runs, 1):
            folder = output / name / f"batch{batch_size}_lr{lr:g}_seed{seed}"
            if (folder / METRICS).is_file():
                continue
            print(f"\nRun {number} of {len(runs)}: {name}, batch size {batch_size}, learning rate {lr:g}, seed {seed}")
            resume = (folder / "checkpoints" / LAST).is_file()
            training = replace(self.training, batch_size=batch_size, seed=seed, output=str(folder), resume=resume)
            run = replace(self, training=training, optimization=replace(self.optimization, lr=lr))
            run.parent, run.tasks = self, together[name]
            run.run()
            shutil.rmtree(folder / "checkpoints")
        found = {folder.name: read_results(folder) for folder in sorted(output.iterdir()) if folder.is_dir()}
        results = {name: settings for name, settings in found.items() if settings}  # others were interrupted
        for name, settings in results.items():
            delete_other_models(output / name, settings)
        scores = {name: score for settings in results.values() for name, score in best_scores(settings).items()}
        atomic_write(output / METRICS, lambda file: file.write_text(json.dumps(scores, indent=2) + "\n"))
        print("\n" + format_table({f"this ({self.method})": scores}))
        return output

    def prepare(self) -> Setup:
        """Prepares a single run."""
        model, tokenizer = self.model.load()
        return self.prepare_tasks(lambda: model, tokenizer, self.tasks, self.method)

    def to_config(self) -> dict[str, Any]:
        """Returns the config of the sweep; its single runs save it, too: the sweep is what can be resumed."""
        return super().to_config() if self.parent is None else self.parent.to_config()

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return is_text_classifier(model) and set(task_heads(model).tasks) <= set(TASKS)

    def check_output(self, output: Path) -> None:
        """Raises a PerceiversError if the folder has a sweep of another model, method or data."""
        if not (output / CONFIG).is_file():
            return
        there, here = read_config(output, CONFIG), self.to_config()
        for config in (there, here):  # these fields may differ
            config.pop("sweep", None)
            config.get("data", {}).pop("tasks", None)
            for name in ("resume", "output", "workers"):
                config.get("training", {}).pop(name, None)
        if there != here:
            names = " and ".join(name for name in here if here[name] != there.get(name))
            raise PerceiversError(f"{output} has a sweep with another {names}: choose another training.output.")


def limit_training(task: TextTask, limit: int | None) -> TextTask:
    """Returns a task with at most `limit` random training examples, always the same."""
    if task.training is None or limit is None or limit >= len(task.training):
        return task
    order = torch.randperm(len(task.training), generator=torch.Generator().manual_seed(0))
    return replace(task, training=task.training.subset(order[:limit].tolist()))


def evaluate(model: PerceiverIO | BERT, tokenizer: Tokenizer, data: GlueData, batch_size: int = 64) -> dict[str, float]:
    """Returns the metrics of a text classifier on the evaluation sets of its tasks, by name, and "mean" over tasks.

    If `data` names no tasks, they are all tasks of the model that are available.

    Raises:
        PerceiversError: the model is of another kind, no task of it is available, or it lacks a named task.
    """
    known = task_heads(model).tasks
    data = replace(data, tasks=data.tasks or [name for name in known if name in TASKS])
    if lacking := [name for name in data.requested_tasks() if name not in known]:
        raise PerceiversError(f"the model has no task {lacking[0]!r}: it has {', '.join(known)}.")
    return fine_tuning.evaluate(model, tokenizer, data.open(only_evaluation=True), batch_size)


Results = dict[str, dict[str, dict[str, float]]]
"""The metrics of each run, by setting and seed."""


def read_results(folder: Path) -> Results:
    """Reads the metrics of the finished runs in a folder."""
    results: Results = {}
    for file in sorted(folder.glob(f"*/{METRICS}")):
        setting, _, seed = file.parent.name.rpartition("_seed")
        results.setdefault(setting, {})[seed] = json.loads(file.read_text())
    return results


def best_scores(results: Results) -> dict[str, dict[str, Any]]:
    """Returns for each task its "mean" and "seeds" (score of each seed) at the best setting, and "setting"."""
    setting = best_setting(results)
    runs = list(results[setting].values())
    scores: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        sets = [name for name in runs[0] if name in (f"val_{task}", f"val_{task}_matched", f"val_{task}_mismatched")]
        if sets:
            seeds = [statistics.mean(run[name] for name in sets) for run in runs]
            seconds = statistics.mean(run["seconds"] for run in runs)
            scores[task] = {"mean": statistics.mean(seeds), "seeds": seeds, "setting": setting, "seconds": seconds}
    return scores


def best_setting(results: Results) -> str:
    """Returns the setting with the best mean over seeds and tasks."""
    return max(results, key=lambda setting: statistics.mean(run["val_mean"] for run in results[setting].values()))


def delete_other_models(folder: Path, results: Results) -> None:
    """Deletes the models of all runs except the best run at the best setting."""
    setting = best_setting(results)
    seed = max(results[setting], key=lambda seed: results[setting][seed]["val_mean"])
    for run in folder.iterdir():
        if run.is_dir() and run.name != f"{setting}_seed{seed}":
            shutil.rmtree(run / "model", ignore_errors=True)


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
