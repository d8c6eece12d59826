"""Fine-tuning on labeled texts: one task of the user's own, or several tasks with one model (section 4.1).

Shape suffixes: B batch, K classes
"""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric as MetricModule
from torchmetrics import PearsonCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassMatthewsCorrCoef

from perceivers.checks import Count, Fraction
from perceivers.data.class_weights import ClassWeights, weigh_examples
from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputArray
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text import commands
from perceivers.text.batches import TaskTexts, TextEncoding
from perceivers.text.bert import BERT
from perceivers.text.classify import TextPredictor, has_one_classifier, is_text_classifier, task_heads, text_encoding
from perceivers.text.labeled import LabeledTextData, Metric, TextTask
from perceivers.text.model import BertConfig, LanguageConfig, choose_tokenizer, text_tasks
from perceivers.text.tokenizers import Tokenizer
from perceivers.training import learner
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization

Method = Literal["single_task", "shared_token", "task_tokens", "multitask_query"]
"""Ways in which a model knows its task (section 4.1): a model for each task; or one model with the same token before
all texts, a token for each task, or a query for each task."""


class FineTuning(Experiment, ABC):
    """Base of experiments in which one model, mostly a pretrained language model, learns tasks."""

    def prepare_tasks(
        self,
        language: Callable[[], PerceiverIO | BERT],
        tokenizer: Tokenizer,
        tasks: Mapping[str, TextTask],
        method: Method,
        mask_rate: float = 0.0,
        least: int = 0,
    ) -> Setup:
        """Makes samples of all tasks, by name, together: each is sampled in proportion to its examples.

        Args:
            language: builds the language model.
            tokenizer: its tokenizer.
            tasks: the tasks.
            method: how the model knows its task.
            mask_rate, least: of the training samples, as in `TaskTexts`.
        """
        self.language_tokenizer, self.tasks = tokenizer, tasks

        def build() -> PerceiverIO | BERT:
            return text_tasks(
                language(),
                {name: task.num_classes for name, task in tasks.items()},
                {name: task.classes for name, task in tasks.items() if task.classes is not None},
                len(tasks) if method == "task_tokens" else 0,
                method in ("shared_token", "task_tokens"),
            )

        with torch.device("meta"):
            encoding = text_encoding(build(), tokenizer)
        training = [(name, index, task.training) for index, (name, task) in enumerate(tasks.items()) if task.training]
        return Setup(
            build, TaskTexts(training, encoding, mask_rate, least), evaluation_texts(tasks, list(tasks), encoding)
        )

    def learner(self, model: PerceiverIO | BERT) -> "TextTasks":
        return TextTasks(model, self.optimization, self.tasks)

    def finish(self, folder: Path) -> None:
        self.language_tokenizer.save(folder)


@dataclass(kw_only=True)
class TextClassification(FineTuning):
    """A training run that learns classes of texts.

    Attributes:
        model: `init`, a pretrained language model in any format; or `preset`, one of `perceivers models`, to train from
            scratch; and fields that differ from it.
        data: the texts.
        tokenizer: "bytes", or a SentencePiece model; by default that of `init` or, without it, "bytes".
        class_weights: how often training draws the examples of a class: "balanced", all classes equally often; or
            {name: weight}, with 1 for the other classes; by default, every example once in an epoch.
        mask_rate: probability with which training masks a word, as in pretraining, so that predictions depend on
            several words.
        min_examples: an epoch repeats the training examples until they are at least so many, so that little data is
            trained on for enough updates.
    """

    decided_by_data = ("vocabulary",)
    evaluate = staticmethod(commands.evaluate_texts)
    predictor = TextPredictor

    model: LanguageConfig | BertConfig
    data: LabeledTextData = field(default_factory=LabeledTextData)
    tokenizer: str | None = None
    class_weights: ClassWeights = None
    mask_rate: Fraction = 0.0
    min_examples: Count = 1

    def prepare(self) -> Setup:
        tokenizer = choose_tokenizer(self.tokenizer, self.model)
        config = replace(self.model, **self.settle(vocabulary=tokenizer.size))
        self.build_on_meta()
        own = self.mask_rate, self.min_examples
        return self.weigh(self.prepare_tasks(config.build, tokenizer, self.open_tasks(), "single_task", *own))

    def weigh(self, setup: Setup) -> Setup:
        """Weighs the training examples by their classes."""
        (task,) = self.tasks.values()
        labels = [] if task.training is None else task.training.labels
        repeated = [*labels] * (len(setup.training) // max(1, len(labels)))
        setup.training.weights = weigh_examples(self.class_weights, task.classes or [], repeated)
        return setup

    def open_tasks(self) -> dict[str, TextTask]:
        """Returns the one task."""
        training, evaluation = self.data.open()
        return {"label": TextTask(training, {"accuracy": evaluation}, "accuracy")}

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return is_text_classifier(model) and has_one_classifier(task_heads(model))


class TextTasks(Learner):
    """Cross-entropy of labels, or squared error of numbers; the metric of each evaluation set, and their mean.

    Args:
        model, optimization: as in `Learner`.
        tasks: the tasks to evaluate on, by name; none by default.
    """

    monitor = ("val_mean", "max")

    def __init__(
        self,
        model: PerceiverIO | BERT,
        optimization: Optimization | None = None,
        tasks: Mapping[str, TextTask] | None = None,
    ) -> None:
        super().__init__(model, optimization)
        self.classes = task_heads(model).classes
        self.metrics = TaskMetrics(tasks or {})

    def predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns by task, logits [B, K], or numbers [B, 1]."""
        predictions: dict[str, Tensor] = self.model({"text": InputArray(batch["text"], batch["mask"])})["label"]
        return {name: values.float() for name, values in predictions.items()}

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        predictions = self.predict(batch)
        loss = torch.zeros((), device=self.device)
        for index, (name, classes) in enumerate(self.classes.items()):
            of_task_B = batch["task"] == index
            values, label = predictions[name][of_task_B], batch["label"][of_task_B]
            if classes > 1:
                loss = loss + F.cross_entropy(values, label.long(), reduction="sum")
            else:
                loss = loss + F.mse_loss(values[:, 0], label, reduction="sum")
        return loss / len(batch["label"])

    def evaluate_batch(self, batch: dict[str, Tensor]) -> None:
        predictions = self.predict(batch)
        for index, (_, task) in enumerate(self.metrics.sets):
            in_set_B = batch["set"] == index
            if in_set_B.any():
                values, label_B = predictions[task][in_set_B], batch["label"][in_set_B]
                pair = (values[:, 0], label_B) if values.shape[1] == 1 else (values.argmax(-1), label_B.long())
                self.metrics.metrics[index].update(*pair)


class TaskMetrics(nn.Module):
    """The metric of each evaluation set, and the mean over tasks."""

    def __init__(self, tasks: Mapping[str, TextTask]) -> None:
        super().__init__()
        self.sets = [(name, task_name) for task_name, task in tasks.items() for name in task.evaluation]
        self.metrics: Any = nn.ModuleList(
            make_metric(tasks[task].metric, tasks[task].num_classes) for _, task in self.sets
        )

    def compute(self) -> dict[str, Tensor]:
        """Returns the metric of each set, by name, and their "mean"."""
        results = {name: metric.compute() for (name, _), metric in zip(self.sets, self.metrics, strict=True)}
        tasks = dict.fromkeys(task for _, task in self.sets)  # MNLI has two sets
        means = [torch.stack([results[name] for name, key in self.sets if key == task]).mean() for task in tasks]
        return results | {"mean": torch.stack(means).mean()}

    def reset(self) -> None:
        """Resets all metrics."""
        for metric in self.metrics:
            metric.reset()


def make_metric(name: Metric, classes: int) -> MetricModule:
    """Returns a metric by name."""
    if name == "pearson":
        return Pearson()
    return Matthews(classes) if name == "matthews" else MulticlassAccuracy(classes, average="micro")


class Matthews(MulticlassMatthewsCorrCoef):
    """Matthews correlation as GLUE computes it: exactly 0 if all predictions or all labels are the same."""

    def compute(self) -> Tensor:
        counts_KK: Tensor = self.confmat
        is_constant = any((counts_KK.sum(axis) > 0).sum() < 2 for axis in (0, 1))
        return counts_KK.new_zeros((), dtype=torch.float32) if is_constant else super().compute()


class Pearson(PearsonCorrCoef):
    """Pearson correlation; 0 instead of NaN if all predictions are the same."""

    def compute(self) -> Tensor:
        return super().compute().nan_to_num()


def evaluation_texts(tasks: Mapping[str, TextTask], names: Sequence[str], encoding: TextEncoding) -> TaskTexts:
    """Returns the evaluation sets of tasks, which have their indices in `names`."""
    sets = [(name, names.index(key), texts) for key, task in tasks.items() for name, texts in task.evaluation.items()]
    return TaskTexts(sets, encoding)


def evaluate(
    model: PerceiverIO | BERT, tokenizer: Tokenizer, tasks: Mapping[str, TextTask], batch_size: int = 64
) -> dict[str, float]:
    """Returns the metric of a text classifier on each evaluation set of some tasks, by name, and "mean" over tasks.

    Raises:
        PerceiversError: the model is of another kind, lacks a task, or has other classes.
    """
    heads = task_heads(model)
    for name, task in tasks.items():
        if name not in heads.classes:
            raise PerceiversError(f"the model has no task {name!r}: it has {', '.join(heads.classes)}.")
        count, known = heads.classes[name], heads.names.get(name)
        if task.num_classes != count or known not in (None, task.classes):
            have = ", ".join(task.classes or ["numbers"])
            expected = ", ".join(known or [f"{count} classes" if count > 1 else "numbers"])
            raise PerceiversError(f"the examples of {name} have {have}, but the model knows {expected}.")
    samples = evaluation_texts(tasks, heads.tasks, text_encoding(model, tokenizer))
    return learner.evaluate(TextTasks(model, tasks=tasks), samples, batch_size)
