"""Fine-tuning on labelled texts: one task of the user's own, or several at once with one model (section 4.1).

Shape suffixes: B batch, M tokens, K classes
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric, PearsonCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassMatthewsCorrCoef

from perceivers.checkpoints.load import load_model, locate
from perceivers.data.loader import ResumableLoader
from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputArray
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.tasks import text_tasks
from perceivers.text.batches import TaskTexts, TextCode
from perceivers.text.bert import BERT
from perceivers.text.classify import text_code
from perceivers.text.labelled import LabelledTextData, LabelledTexts
from perceivers.text.pretraining import build_language_model, text_input
from perceivers.text.tokenizers import Tokenizer, find_tokenizer, open_tokenizer
from perceivers.training.loop import Trained, Training, train
from perceivers.training.optimization import Optimization

Method = Literal["single_task", "shared_token", "task_tokens", "multitask_query"]
"""How a model knows its task (section 4.1): each task has a model of its own; or all share one, with the same token for
all in front of the text, with a token for each task there, or with a query for each task."""


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
    metric: Literal["accuracy", "matthews", "pearson"]


@dataclass
class TextClassification:
    """A training run that learns the classes of texts.

    Attributes:
        model: `init`, a pretrained language model in any format; or `preset`, one of `perceivers models`, and whichever
            of its settings are to be others, to learn from nothing. `init` goes before `preset`.
        data: the texts.
        tokenizer: of a model that is made from a preset: "bytes", or a SentencePiece model.
        optimization: how weights are updated.
        training: how the run is done.
    """

    model: dict[str, Any]
    data: LabelledTextData = field(default_factory=LabelledTextData)
    tokenizer: str = "bytes"
    optimization: Optimization = field(default_factory=Optimization)
    training: Training = field(default_factory=Training)

    def run(self) -> Path:
        """Trains; -> the run's folder."""
        L.seed_everything(self.training.seed, verbose=False)
        if "init" in self.model:
            model, tokenizer = pretrained(self.model["init"])
        elif "preset" in self.model:
            tokenizer = open_tokenizer(self.tokenizer)
            model = build_language_model(self.model, tokenizer)
        else:
            raise PerceiversError(
                "model.init is missing: name a pretrained language model, or a preset as model.preset."
            )
        splits = self.data.open()
        tasks = {"label": TextTask(splits.training, {"accuracy": splits.evaluation}, "accuracy")}
        written = {"experiment": "text_classification", **asdict(self)}
        return fine_tune(model, tokenizer, tasks, "single_task", self.optimization, self.training, written)


def pretrained(source: str | Path) -> tuple[PerceiverIO | BERT, Tokenizer]:
    """A pretrained language model in any format, and its tokenizer.

    Raises:
        PerceiversError: the model is of another kind, or its tokenizer is missing.
    """
    model = load_model(source)
    if not isinstance(model, PerceiverIO | BERT):
        raise PerceiversError(f"{source} holds a {type(model).__name__}: a pretrained language model is needed.")
    return model, find_tokenizer(locate(source), text_input(model).vocabulary)


def fine_tune(
    language: PerceiverIO | BERT,
    tokenizer: Tokenizer,
    tasks: Mapping[str, TextTask],
    method: Method,
    optimization: Optimization,
    training: Training,
    written: Mapping[str, Any],
) -> Path:
    """Trains one model on tasks, from the weights of a language model on; -> the run's folder.

    How the model knows which task it is to do says `method`; the rest is as in `train`.
    """
    counts = {name: len(task.training.classes or [""]) for name, task in tasks.items()}
    names = {name: task.training.classes for name, task in tasks.items() if task.training.classes is not None}
    extra = len(tasks) if method == "task_tokens" else 0
    model = text_tasks(language, counts, names, extra, method in ("shared_token", "task_tokens"))
    batches = TaskBatches(tasks, text_code(model, tokenizer), training)
    output = train(TextTasks(model, optimization, tasks), batches, training, "test_mean", written)
    tokenizer.save(output / "model")
    return output


class TaskBatches(L.LightningDataModule):
    """Batches of the examples of all tasks together, so that each is sampled in proportion to its examples."""

    def __init__(self, tasks: Mapping[str, TextTask], code: TextCode, training: Training) -> None:
        super().__init__()
        self.config = training
        numbered = list(enumerate(tasks.items()))
        self.training = TaskTexts([(name, number, task.training) for number, (name, task) in numbered], code)
        self.evaluation = TaskTexts(
            [(name, number, examples) for number, (_, task) in numbered for name, examples in task.evaluation.items()],
            code,
        )

    def train_dataloader(self) -> ResumableLoader:
        return self.loader(self.training, self.config.seed)

    def val_dataloader(self) -> ResumableLoader:
        return self.loader(self.evaluation, None)

    def loader(self, texts: TaskTexts, seed: int | None) -> ResumableLoader:
        assert self.trainer is not None
        world = self.trainer.world_size
        return ResumableLoader(
            texts,
            len(texts),
            self.config.batch_per_process(world),
            seed,
            self.config.workers,
            texts.collate,
            self.trainer.global_rank,
            world,
            texts.lengths,
        )


class TextTasks(Trained):
    """Cross-entropy of labels, or squared error of numbers; the metric of each set of examples, and their mean."""

    def __init__(self, model: PerceiverIO | BERT, optimization: Optimization, tasks: Mapping[str, TextTask]) -> None:
        super().__init__(model, optimization)
        self.tasks = [(name, task.training.classes is not None) for name, task in tasks.items()]
        self.sets = [(name, number) for number, task in enumerate(tasks.values()) for name in task.evaluation]
        self.metrics = nn.ModuleList(
            metric(task.metric, len(task.training.classes or [""])) for task in tasks.values() for _ in task.evaluation
        )

    def predict(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """By task, logits [B, K], or numbers [B, 1]."""
        predictions: dict[str, Tensor] = self.model({"text": InputArray(batch["text"], batch["mask"])})["label"]
        return {name: values.float() for name, values in predictions.items()}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        predictions = self.predict(batch)
        loss = torch.zeros((), device=self.device)
        for number, (name, has_classes) in enumerate(self.tasks):
            mine_B = batch["task"] == number
            values, label = predictions[name][mine_B], batch["label"][mine_B]
            loss = loss + (
                F.cross_entropy(values, label.long(), reduction="sum")
                if has_classes
                else F.mse_loss(values[:, 0], label, reduction="sum")
            )
        loss = loss / len(batch["label"])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        predictions = self.predict(batch)
        for number, (_, task) in enumerate(self.sets):
            name, has_classes = self.tasks[task]
            mine_B = batch["set"] == number
            if mine_B.any():
                values, label = predictions[name][mine_B], batch["label"][mine_B]
                score = self.metrics[number]
                assert isinstance(score, Metric)
                score.update(*((values.argmax(-1), label.long()) if has_classes else (values[:, 0], label)))

    def on_validation_epoch_end(self) -> None:
        scores: dict[int, list[Tensor]] = {}
        for (name, task), score in zip(self.sets, self.metrics, strict=True):
            assert isinstance(score, Metric)
            value = score.compute()
            self.log(f"test_{name}", value, prog_bar=True, sync_dist=True)
            scores.setdefault(task, []).append(value)
            score.reset()
        means = [torch.stack(values).mean() for values in scores.values()]  # MNLI's two sets are averaged first
        self.log("test_mean", torch.stack(means).mean(), sync_dist=True)


def metric(name: Literal["accuracy", "matthews", "pearson"], classes: int) -> Metric:
    """A metric of GLUE: accuracy, Matthews correlation, or Pearson correlation."""
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
