"""Fine-tuning on labelled texts: one task of the user's own, or several at once with one model (section 4.1).

Shape suffixes: B batch, M tokens, K classes
"""

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric, PearsonCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassMatthewsCorrCoef

from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputArray
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.sizes import ModelConfig
from perceivers.text import commands
from perceivers.text.batches import TaskTexts
from perceivers.text.bert import BERT
from perceivers.text.classify import is_text_classifier, task_heads, text_code
from perceivers.text.labelled import LabelledTextData, LabelledTexts
from perceivers.text.loading import load_text_model
from perceivers.text.model import BertConfig, LanguageConfig, text_tasks
from perceivers.text.tokenizers import Tokenizer, open_tokenizer
from perceivers.training import learner
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization

Method = Literal["single_task", "shared_token", "task_tokens", "multitask_query"]
"""How a model knows its task (section 4.1): each task has a model of its own; or all share one, with the same token for
all in front of the text, with a token for each task there, or with a query for each task."""

MetricName = Literal["accuracy", "matthews", "pearson"]


@dataclass(frozen=True)
class Pretrained(ModelConfig):
    """A language model that was trained before.

    Attributes:
        init: the model, in any format, with its tokenizer.
    """

    init: str

    def build(self) -> PerceiverIO | BERT:
        return self.load()[0]

    def load(self) -> tuple[PerceiverIO | BERT, Tokenizer]:
        """Returns the model and its tokenizer, see `load_text_model`."""
        return load_text_model(self.init)


@dataclass(frozen=True)
class TextTask:
    """A task and its examples.

    Attributes:
        training: the examples to train on.
        evaluation: those to evaluate on, by name.
        metric: what it is judged by.
    """

    training: LabelledTexts
    evaluation: Mapping[str, LabelledTexts]
    metric: MetricName


@dataclass(frozen=True)
class TextSet:
    """Examples to evaluate on.

    Attributes:
        task: the name of their task.
        metric: what it is judged by.
        examples: the texts, with the right answers.
    """

    task: str
    metric: MetricName
    examples: LabelledTexts


class FineTuning(Experiment, ABC):
    """Base of experiments in which one model learns tasks, from the weights of a language model on."""

    def prepare_tasks(
        self,
        language: Callable[[], PerceiverIO | BERT],
        tokenizer: Tokenizer,
        tasks: Mapping[str, TextTask],
        method: Method,
    ) -> Setup:
        """Makes samples of the examples of all tasks together, so that each is sampled in proportion to its examples.

        Args:
            language: returns the language model.
            tokenizer: the language model's.
            tasks: the tasks, by name.
            method: how the model knows which task it is to do.
        """
        self.language_tokenizer = tokenizer
        self.sets = {
            name: TextSet(task_name, task.metric, examples)
            for task_name, task in tasks.items()
            for name, examples in task.evaluation.items()
        }

        def build() -> PerceiverIO | BERT:
            return text_tasks(
                language(),
                {name: len(task.training.classes or [""]) for name, task in tasks.items()},
                {name: task.training.classes for name, task in tasks.items() if task.training.classes is not None},
                len(tasks) if method == "task_tokens" else 0,
                method in ("shared_token", "task_tokens"),
            )

        with torch.device("meta"):
            code = text_code(build(), tokenizer)
        numbers = {name: number for number, name in enumerate(tasks)}
        training = TaskTexts([(name, numbers[name], task.training) for name, task in tasks.items()], code)
        return Setup(build, training, TaskTexts(list_sets(self.sets, numbers), code))

    def learner(self, model: PerceiverIO | BERT) -> "TextTasks":
        return TextTasks(model, self.optimization, {name: (part.task, part.metric) for name, part in self.sets.items()})

    def finish(self, folder: Path) -> None:
        self.language_tokenizer.save(folder)


@dataclass(kw_only=True)
class TextClassification(FineTuning):
    """A training run that learns the classes of texts.

    Attributes:
        model: `init`, a pretrained language model in any format; or `preset`, one of `perceivers models`, and whichever
            of its fields are to be others, to learn from nothing. `init` goes before `preset`.
        data: the texts.
        tokenizer: of a model that is made from a preset: "bytes", or a SentencePiece model.
    """

    decided_by_data = ("vocabulary",)
    evaluate = staticmethod(commands.evaluate_texts)

    model: LanguageConfig | BertConfig | Pretrained
    data: LabelledTextData = field(default_factory=LabelledTextData)
    tokenizer: str = "bytes"

    def prepare(self) -> Setup:
        if isinstance(self.model, Pretrained):
            model, tokenizer = self.model.load()
            return self.prepare_tasks(lambda: model, tokenizer, self.open_tasks(), "single_task")
        tokenizer = open_tokenizer(self.tokenizer)
        config = replace(self.model, **self.settle(vocabulary=tokenizer.size))
        self.build_on_meta()
        return self.prepare_tasks(config.build, tokenizer, self.open_tasks(), "single_task")

    def open_tasks(self) -> dict[str, TextTask]:
        """Returns the one task."""
        splits = self.data.open()
        return {"label": TextTask(splits.training, {"accuracy": splits.evaluation}, "accuracy")}

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return is_text_classifier(model) and [count > 1 for count in task_heads(model).classes.values()] == [True]


def list_sets(sets: Mapping[str, TextSet], numbers: Mapping[str, int]) -> list[tuple[str, int, LabelledTexts]]:
    """Returns sets of examples as `TaskTexts` takes them; `numbers` are those of the tasks."""
    return [(name, numbers[part.task], part.examples) for name, part in sets.items()]


class TextTasks(Learner):
    """Cross-entropy of labels, or squared error of numbers; the metric of each set of examples, and their mean.

    Args:
        model, optimization: as in `Learner`.
        sets: of each set of examples to evaluate on, by name, its task and metric; a set for each task, if not given,
            with the accuracy of labels or the Pearson correlation of numbers.
    """

    monitor = ("test_mean", "max")

    def __init__(
        self,
        model: PerceiverIO | BERT,
        optimization: Optimization | None = None,
        sets: Mapping[str, tuple[str, MetricName]] | None = None,
    ) -> None:
        super().__init__(model, optimization)
        self.tasks = task_heads(model).classes
        usual = {name: (name, usual_metric(count)) for name, count in self.tasks.items()}
        self.metrics = TaskScores(usual if sets is None else sets, self.tasks)

    def predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns by task, logits [B, K], or numbers [B, 1]."""
        predictions: dict[str, Tensor] = self.model({"text": InputArray(batch["text"], batch["mask"])})["label"]
        return {name: values.float() for name, values in predictions.items()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        predictions = self.predict(batch)
        loss = torch.zeros((), device=self.device)
        for number, (name, classes) in enumerate(self.tasks.items()):
            mine_B = batch["task"] == number
            values, label = predictions[name][mine_B], batch["label"][mine_B]
            loss = loss + (
                F.cross_entropy(values, label.long(), reduction="sum")
                if classes > 1
                else F.mse_loss(values[:, 0], label, reduction="sum")
            )
        return loss / len(batch["label"])

    def evaluate_batch(self, batch: dict[str, Tensor]) -> None:
        predictions = self.predict(batch)
        for number, task in enumerate(self.metrics.tasks.values()):
            mine_B = batch["set"] == number
            if mine_B.any():
                self.metrics.update(number, predictions[task][mine_B], batch["label"][mine_B])


class TaskScores(nn.Module):
    """The metric of each set of examples, and the mean over tasks.

    Args:
        sets: as in `TextTasks`.
        classes: how many each task has; 1 for a number.
    """

    def __init__(self, sets: Mapping[str, tuple[str, MetricName]], classes: Mapping[str, int]) -> None:
        super().__init__()
        self.tasks = {name: task for name, (task, _) in sets.items()}
        self.scores = nn.ModuleList(make_metric(metric, classes[task]) for task, metric in sets.values())

    def each(self) -> list[Metric]:
        """Returns the metrics of the sets."""
        return [score for score in self.scores if isinstance(score, Metric)]

    def update(self, number: int, values: Tensor, label_B: Tensor) -> None:
        """Adds to the set of that number logits [B, K], or numbers [B, 1], and what is right."""
        right = (values[:, 0], label_B) if values.shape[1] == 1 else (values.argmax(-1), label_B.long())
        self.each()[number].update(*right)

    def compute(self) -> dict[str, Tensor]:
        """Returns the metric of each set, by name, and their "mean"."""
        scores = {name: score.compute() for name, score in zip(self.tasks, self.each(), strict=True)}
        by_task: dict[str, list[Tensor]] = {}
        for name, task in self.tasks.items():
            by_task.setdefault(task, []).append(scores[name])
        means = [torch.stack(values).mean() for values in by_task.values()]  # MNLI's two sets are averaged first
        return scores | {"mean": torch.stack(means).mean()}

    def reset(self) -> None:
        """Starts anew."""
        for score in self.each():
            score.reset()


def usual_metric(classes: int) -> MetricName:
    """Returns the metric of a task of so many classes, 1 for a number, if nothing else is said."""
    return "accuracy" if classes > 1 else "pearson"


def make_metric(name: MetricName, classes: int) -> Metric:
    """Returns a metric of GLUE: accuracy, Matthews correlation, or Pearson correlation."""
    if name == "pearson":
        return Pearson()
    if name == "matthews":
        return Matthews(classes)
    return MulticlassAccuracy(classes, average="micro")


class Matthews(MulticlassMatthewsCorrCoef):
    """Matthews correlation as GLUE computes it: 0, not something near it, where all answers or labels are the same."""

    def compute(self) -> Tensor:
        counts_KK: Tensor = self.confmat
        alike = any((counts_KK.sum(axis) > 0).sum() < 2 for axis in (0, 1))
        return counts_KK.new_zeros((), dtype=torch.float32) if alike else super().compute()


class Pearson(PearsonCorrCoef):
    """Pearson correlation; 0, not NaN, of which no mean can be taken, where all answers are the same."""

    def compute(self) -> Tensor:
        return super().compute().nan_to_num()


def evaluate(
    model: PerceiverIO | BERT, tokenizer: Tokenizer, sets: Mapping[str, TextSet], batch_size: int = 64
) -> dict[str, float]:
    """Returns the metric of a model on each of some sets of examples, by name, and their "mean" over tasks.

    Args:
        model: a model of labels of texts.
        tokenizer: the model's.
        sets: the examples, by name.
        batch_size: texts computed at a time.

    Raises:
        PerceiversError: the model is of another kind, lacks a task, or has other classes.
    """
    heads = task_heads(model)
    for part in sets.values():
        check_task(heads.classes, heads.names, part)
    samples = TaskTexts(
        list_sets(sets, {name: number for number, name in enumerate(heads.tasks)}), text_code(model, tokenizer)
    )
    scored = TextTasks(model, sets={name: (part.task, part.metric) for name, part in sets.items()})
    return learner.evaluate(scored, samples, batch_size)


def evaluate_classes(
    model: PerceiverIO | BERT,
    tokenizer: Tokenizer,
    data: LabelledTextData,
    held_out: float | None = None,
    batch_size: int = 64,
) -> tuple[dict[str, float], str]:
    """Returns the "accuracy" of a classifier and the number of "texts", and which texts these are, for people.

    Args:
        model: a model of labels of texts, of one task.
        tokenizer: the model's.
        data: the texts; their classes are those of the model, by name.
        held_out: as in `LabelledTextData.open_evaluation`; `data.held_out` is not used.
        batch_size: texts computed at a time.

    Raises:
        PerceiversError: the model is of another kind, or the texts cannot be read or have other classes.
    """
    heads = task_heads(model)
    if [count > 1 for count in heads.classes.values()] != [True]:
        raise PerceiversError(f"a classifier with one task is needed, but the model has {', '.join(heads.tasks)}.")
    ((task, count),) = heads.classes.items()
    names = heads.names.get(task) or [str(number) for number in range(count)]
    texts, which = data.open_evaluation(names, held_out)
    results = evaluate(model, tokenizer, {"accuracy": TextSet(task, "accuracy", texts)}, batch_size)
    return {"accuracy": results["accuracy"], "texts": len(texts)}, which


def check_task(classes: Mapping[str, int], names: Mapping[str, list[str]], part: TextSet) -> None:
    """Raises a PerceiversError unless a model has the task of a set, with the same classes.

    Args:
        classes: how many classes each task of the model has.
        names: what they are called, where that is known.
        part: the set.
    """
    if part.task not in classes:
        raise PerceiversError(f"the model has no task {part.task!r}: it has {', '.join(classes)}.")
    count, theirs = classes[part.task], part.examples.classes
    ours = names.get(part.task)
    if len(theirs or [""]) != count or (ours is not None and ours != theirs):
        have = ", ".join(theirs or ["numbers"])
        want = ", ".join(ours or [f"{count} classes" if count > 1 else "numbers"])
        raise PerceiversError(f"the examples of {part.task} have {have}, but the model knows {want}.")
