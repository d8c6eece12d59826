"""GLUE: a sweep of fine-tuning runs, and the table of their best results (section 4.1; section 3 of the appendix)."""

import itertools
import json
import shutil
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import nn

from perceivers.checks import Checked, Count, Range, check_field
from perceivers.errors import PerceiversError
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import write
from perceivers.text import commands, fine_tuning
from perceivers.text.bert import BERT
from perceivers.text.classify import is_text_classifier, task_heads
from perceivers.text.fine_tuning import FineTuning, Method, Pretrained, TextSet, TextTask
from perceivers.text.glue_data import TASKS, GlueData, TaskSplits
from perceivers.text.labelled import LabelledTexts
from perceivers.text.tokenizers import Tokenizer
from perceivers.training.experiment import Setup
from perceivers.training.loop import CONFIG, LAST, epochs_done

PAPER = {
    "Perceiver IO, bytes": (50.19, 83.56, 87.24, 91.71, 90.12, 64.84, 93.17, 86.81),
    "BERT, bytes": (20.06, 74.83, 77.00, 85.75, 88.23, 53.91, 89.00, 82.84),
}
"""The paper's results in the order of `TASKS`, times 100; MNLI is the mean of its two sets."""


@dataclass
class Sweep(Checked):
    """Which settings are tried; every combination is run.

    Attributes:
        batch_sizes: in place of `training.batch_size`.
        lrs: in place of `optimization.lr`.
        seeds: in place of `training.seed`; results are averaged over them before the best is picked.
    """

    section = "sweep."

    batch_sizes: list[Count] = field(default_factory=lambda: [16, 32, 64])
    lrs: list[Annotated[float, Range(above=0)]] = field(default_factory=lambda: [1e-4, 5e-5, 2e-5, 1e-5])
    seeds: list[Annotated[int, Range(least=0)]] = field(default_factory=lambda: [0])

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_sizes", "lrs", "seeds"):
            check_field(
                f"sweep.{name}", getattr(self, name), len(getattr(self, name)) > 0, "a list with at least one value"
            )


@dataclass(kw_only=True)
class Glue(FineTuning):
    """Fine-tuning on GLUE, one model a task or one for all, over a sweep of settings.

    What is done is skipped when the same command is called again, and what was interrupted goes on.

    Attributes:
        model: `init`, a pretrained language model in any format.
        data: the tasks.
        method: single_task, shared_token, task_tokens or multitask_query.
        examples: the most training examples of a task, by which tasks are also sampled; all, if not given.
        sweep: the settings.
        training: how each run is done; `output` is the folder of all of them.
    """

    evaluate = staticmethod(commands.evaluate_glue)

    model: Pretrained
    data: GlueData = field(default_factory=GlueData)
    method: Method = "single_task"
    examples: Count | None = None
    sweep: Sweep = field(default_factory=Sweep)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.whole: Glue | None = None
        """Of a single run, the sweep that it belongs to."""
        self.tasks: Mapping[str, TextTask] | None = None
        """The tasks of a single run; those of the data, if not given."""

    def run(self) -> Path:
        """Runs the sweep and prints the table; -> the folder of the runs."""
        if self.whole is not None:
            return super().run()
        self.model.load()  # a wrong one shows before any data is read
        output = Path(self.training.output)
        self.check_output(output)
        tasks = self.open_tasks()
        if missing := self.data.missing():
            print(f"Not in {self.data.path}, and left out: {', '.join(missing)}.")
        together = {"all": tasks} if self.method != "single_task" else {name: {name: tasks[name]} for name in tasks}
        write(output / CONFIG, lambda file: file.write_text(json.dumps(self.to_config(), indent=2) + "\n"))
        runs = [(name, setting) for name in together for setting in self.settings()]
        for number, (name, (batch_size, lr, seed)) in enumerate(runs, 1):
            folder = output / name / f"batch{batch_size}_lr{lr:g}_seed{seed}"
            if (folder / "metrics.json").is_file():
                continue
            last = folder / "checkpoints" / LAST
            if last.is_file() and epochs_done(last) >= self.training.epochs:
                shutil.rmtree(folder)  # it was killed between its last step and its result
            print(f"\nRun {number} of {len(runs)}: {name}, batch size {batch_size}, learning rate {lr:g}, seed {seed}")
            self.single_run(together[name], batch_size, lr, seed, folder).run()
            shutil.rmtree(folder / "checkpoints")
        found = {folder.name: read_results(folder) for folder in sorted(output.iterdir()) if folder.is_dir()}
        results = {name: settings for name, settings in found.items() if settings}  # others were interrupted
        for name, settings in results.items():
            keep_best(output / name, settings)
        scores = {name: score for settings in results.values() for name, score in best(settings).items()}
        write(output / "metrics.json", lambda file: file.write_text(json.dumps(scores, indent=2) + "\n"))
        print("\n" + table({f"this ({self.method})": scores}))
        return output

    def single_run(self, tasks: Mapping[str, TextTask], batch_size: int, lr: float, seed: int, folder: Path) -> "Glue":
        """Returns one run of the sweep, which goes on with what is in its folder."""
        resume = (folder / "checkpoints" / LAST).is_file()
        training = replace(self.training, batch_size=batch_size, seed=seed, output=str(folder), resume=resume)
        run = replace(self, training=training, optimization=replace(self.optimization, lr=lr))
        run.whole, run.tasks = self, tasks
        return run

    def open_tasks(self) -> dict[str, TextTask]:
        """Returns the tasks of the data."""
        return {name: text_task(splits, self.examples) for name, splits in self.data.open().items()}

    def prepare(self) -> Setup:
        """Opens a single run."""
        model, tokenizer = self.model.load()
        return self.prepare_tasks(lambda: model, tokenizer, self.tasks or self.open_tasks(), self.method)

    def to_config(self) -> dict[str, Any]:
        """Returns the config of the sweep, which its single runs hold as well: what goes on is the sweep."""
        return super().to_config() if self.whole is None else self.whole.to_config()

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return is_text_classifier(model) and set(task_heads(model).tasks) <= set(TASKS)

    def settings(self) -> Iterator[tuple[int, float, int]]:
        """The combinations of batch size, learning rate and seed."""
        return itertools.product(self.sweep.batch_sizes, self.sweep.lrs, self.sweep.seeds)

    def check_output(self, output: Path) -> None:
        """Raises a PerceiversError if the folder holds a sweep of another model, method or data."""
        if not (output / CONFIG).is_file():
            return
        there, here = json.loads((output / CONFIG).read_text()), json.loads(json.dumps(self.to_config()))
        for config in (there, here):
            for part, names in (
                ("training", ("resume", "output", "workers", "devices", "accelerator")),
                ("data", ("tasks",)),
            ):
                for name in names:
                    config.get(part, {}).pop(name, None)
            config.pop("sweep", None)
        if there != here:
            other = [name for name in here if here[name] != there.get(name)]
            raise PerceiversError(
                f"{output} holds a sweep with another {' and '.join(other)}: choose another training.output."
            )


def text_task(splits: TaskSplits, most: int | None) -> TextTask:
    """A task as the experiment takes it, with at most so many training examples, always the same."""
    training: LabelledTexts = splits.training
    if most is not None and most < len(training):
        training = training.part(
            torch.randperm(len(training), generator=torch.Generator().manual_seed(0))[:most].tolist()
        )
    return TextTask(training, name_sets(splits.task.name, splits.evaluation), splits.task.metric)


def name_sets(task: str, sets: Mapping[str, LabelledTexts]) -> dict[str, LabelledTexts]:
    """Returns sets of a task to evaluate on under the names that their metrics have: RTE, MNLI_matched."""
    return {f"{task}_{part}" if len(sets) > 1 else task: texts for part, texts in sets.items()}


def evaluate(model: PerceiverIO | BERT, tokenizer: Tokenizer, data: GlueData, batch_size: int = 64) -> dict[str, float]:
    """Returns the metrics of a model on the sets of its tasks to evaluate on, by name, and their "mean" over tasks.

    Args:
        model: a model of labels of texts.
        tokenizer: the model's.
        data: where the tasks are; of those, the model's are taken if none are named.
        batch_size: texts computed at a time.

    Raises:
        PerceiversError: the model is of another kind, there are none of its tasks, or it lacks one that is named.
    """
    known = task_heads(model).tasks
    own = replace(data, tasks=data.tasks or [name for name in known if name in TASKS])
    if lacking := [name for name in own.asked() if name not in known]:
        raise PerceiversError(f"the model has no task {lacking[0]!r}: it has {', '.join(known)}.")
    sets = {
        name: TextSet(task, TASKS[task].metric, texts)
        for task, parts in own.open_evaluation().items()
        for name, texts in name_sets(task, parts).items()
    }
    return fine_tuning.evaluate(model, tokenizer, sets, batch_size)


Results = dict[str, dict[str, dict[str, float]]]
"""By setting and seed, the metrics of a run."""


def read_results(folder: Path) -> Results:
    """What the finished runs in a folder measured."""
    results: Results = {}
    for file in sorted(folder.glob("*/metrics.json")):
        setting, _, seed = file.parent.name.rpartition("_seed")
        results.setdefault(setting, {})[seed] = json.loads(file.read_text())
    return results


def best(results: Results) -> dict[str, dict[str, Any]]:
    """By task, its score at the setting with the best mean over seeds: mean, each seed's, and the setting.

    With one model for several tasks that is the setting with the best mean over tasks.
    """
    chosen = best_setting(results)
    runs = list(results[chosen].values())
    scores: dict[str, dict[str, Any]] = {}
    for task in TASKS:
        sets = [name for name in runs[0] if name in (f"test_{task}", f"test_{task}_matched", f"test_{task}_mismatched")]
        if sets:
            seeds = [statistics.mean(run[name] for name in sets) for run in runs]
            seconds = statistics.mean(run["seconds"] for run in runs)
            scores[task] = {"mean": statistics.mean(seeds), "seeds": seeds, "setting": chosen, "seconds": seconds}
    return scores


def best_setting(results: Results) -> str:
    """The setting with the best mean over seeds and tasks."""
    return max(results, key=lambda setting: statistics.mean(run["test_mean"] for run in results[setting].values()))


def keep_best(folder: Path, results: Results) -> None:
    """Removes the models of all runs but the best one's at the best setting."""
    setting = best_setting(results)
    seed = max(results[setting], key=lambda seed: results[setting][seed]["test_mean"])
    for run in folder.iterdir():
        if run.is_dir() and run.name != f"{setting}_seed{seed}":
            shutil.rmtree(run / "model", ignore_errors=True)


def table(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Results beside the paper's, as Markdown; times 100, with the spread over seeds, and the mean over tasks."""
    lines = ["| model | " + " | ".join(TASKS) + " | mean |", "| --- |" + " --- |" * (len(TASKS) + 1)]
    for name, scores in rows.items():
        cells = []
        for task in TASKS:
            if task not in scores:
                cells.append("")
                continue
            seeds = [100 * seed for seed in scores[task]["seeds"]]
            spread = f" ± {statistics.stdev(seeds):.1f}" if len(seeds) > 1 else ""
            cells.append(f"{statistics.mean(seeds):.1f}{spread}")
        mean = statistics.mean(100 * score["mean"] for score in scores.values())
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {mean:.1f} |")
    for name, figures in PAPER.items():
        mean = statistics.mean(figures)
        lines.append(f"| paper: {name} | " + " | ".join(f"{figure:.1f}" for figure in figures) + f" | {mean:.1f} |")
    return "\n".join(lines)
