"""Classifies texts: `perceivers classify-text`.

Shape suffixes: B batch, M tokens, K classes
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeGuard

import torch
from torch import Tensor, nn

from perceivers.checkpoints.load import load_model
from perceivers.command import TopClasses
from perceivers.data.loader import SampleIndex, Samples
from perceivers.data.splits import Part
from perceivers.errors import PerceiversError, did_you_mean
from perceivers.inference import load_for_inference
from perceivers.model.adapter import InputArray
from perceivers.model.device import check_dtype, choose_device, move_model
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.prediction import Inputs, Predictor, classify, require_answers
from perceivers.text.batches import TextEncoding, pad_tokens
from perceivers.text.bert import BERT
from perceivers.text.commands import TextColumns
from perceivers.text.labeled import open_texts
from perceivers.text.model import text_input
from perceivers.text.task_output import TaskHeads, TaskOutput
from perceivers.text.tokenizers import Tokenizer, tokenizer_of


def is_text_classifier(model: nn.Module) -> TypeGuard[PerceiverIO | BERT]:
    """Returns whether a model reads a text and predicts labels of it."""
    if not isinstance(model, PerceiverIO | BERT) or list(model.inputs) != ["text"] or list(model.outputs) != ["label"]:
        return False
    return isinstance(model.outputs["label"], TaskOutput | TaskHeads)


def task_heads(model: PerceiverIO | BERT) -> TaskHeads:
    """Returns the task heads of a text classifier, or raises a PerceiversError if the model is of another kind."""
    label = model.outputs["label"] if is_text_classifier(model) else None
    heads = label.heads if isinstance(label, TaskOutput) else label
    if not isinstance(heads, TaskHeads):
        raise PerceiversError(
            f"this model does not classify texts: it reads {', '.join(model.inputs)} "
            f"and predicts {', '.join(model.outputs)}, instead of a text and its label."
        )
    return heads


def has_one_classifier(heads: TaskHeads) -> bool:
    """Returns whether there is exactly one task, and it has classes."""
    return [count > 1 for count in heads.classes.values()] == [True]


def text_encoding(model: PerceiverIO | BERT, tokenizer: Tokenizer) -> TextEncoding:
    """Returns how a model made by `text_tasks` reads texts (section 4.1).

    A text has no prefix if each task has its own query. Otherwise its prefix is the token of the task, if the model has
    such tokens, or the same token for all tasks.
    """
    text, label = text_input(model), model.outputs["label"]
    if isinstance(label, TaskOutput) and not label.shared:
        return TextEncoding(tokenizer, text.length)
    has_task_tokens = text.embedding.num_embeddings > text.vocabulary
    tasks = range(len(task_heads(model).tasks))
    prefix_tokens = [text.vocabulary + task if has_task_tokens else tokenizer.cls for task in tasks]
    return TextEncoding(tokenizer, text.length, prefix_tokens)


def find_task(tasks: Sequence[str], task: str | None) -> int:
    """Returns the index of a task, or of the only one if none is named.

    Raises:
        PerceiversError: there is no such task, or there are several and none is named.
    """
    if task is None and len(tasks) > 1:
        raise PerceiversError(f"the model has several tasks: name one as task (--task), of {', '.join(tasks)}.")
    if task is not None and task not in tasks:
        raise PerceiversError(f"the model has no task {task!r}: {did_you_mean(task, tasks)}")
    return 0 if task is None else tasks.index(task)


def load_any(model: PerceiverIO | str | Path, device: str | None, dtype: str | None) -> Any:
    """Returns a model as `load_for_inference` does, but also one of another class, such as BERT."""
    if isinstance(model, PerceiverIO):
        return load_for_inference(model, device, dtype)
    check_dtype(dtype)
    return move_model(load_model(model), device or choose_device(), dtype)


class Texts(Samples):
    """Texts, or pairs of texts, as batches of tokens "text" [B, M], padded to the longest, and their "mask".

    Args:
        texts: one or two for each row; one that is missing or blank cannot be read.
        encoding: how texts become tokens.
        task: index of the task.
        truncate: cut texts that are longer than the model reads, as in training, instead of refusing them.
    """

    def __init__(self, texts: Sequence[Sequence[Any]], encoding: TextEncoding, task: int, truncate: bool) -> None:
        self.texts, self.encoding, self.task, self.truncate = texts, encoding, task, truncate
        self.lengths = [sum(len(part) for part in parts if isinstance(part, str)) for parts in texts]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        parts, number, length = self.texts[item.sample], item.sample + 1, self.encoding.length
        if not all(isinstance(part, str) and part.strip() for part in parts):
            raise PerceiversError(f"text {number} is empty: give one with words.")
        token_M = self.encoding.encode(parts, self.task)
        if len(token_M) > length:
            if not self.truncate:
                size = f"{len(token_M)} tokens, but the model reads at most {length}"
                raise PerceiversError(f"text {number} has {size}: shorten it.")
            token_M = self.encoding.truncate(parts, self.task)
        return {"text": token_M}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        token_BM, mask_BM = pad_tokens([sample["text"] for sample in samples], self.encoding.tokenizer.pad)
        return {"text": token_BM, "mask": mask_BM}


class TextEncoder(Predictor):
    """A model of texts, which are truncated as in training."""

    def __init__(
        self,
        model: PerceiverIO | str | Path,
        device: str | None = None,
        dtype: str | None = None,
        *,
        text: TextColumns = None,
    ) -> None:
        self.model, self.text, self.task = load_any(model, device, dtype), text or None, 0
        reads = text_input(self.model)
        self.encoding = TextEncoding(tokenizer_of(model, reads.vocabulary), reads.length)

    def open(self, data: str, split: str | None = None) -> Inputs:
        texts, names, unit, part = open_texts(data, self.text, split)
        checksum = hashlib.sha256(repr(texts).encode("utf-8", "surrogatepass")).hexdigest()
        return Inputs(Texts(texts, self.encoding, self.task, truncate=True), names, unit, part, checksum)

    def inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"text": InputArray(batch["text"], batch["mask"])}

    def compute(self, batch: Mapping[str, Any]) -> tuple[Mapping[str, Any], Tensor | None]:
        if isinstance(self.model, PerceiverIO):
            return super().compute(batch)
        return self.model(self.inputs(batch), self.outputs), None


class TextPredictor(TextEncoder):
    """A classifier of texts, or a model that predicts a number for each."""

    def __init__(
        self,
        model: PerceiverIO | str | Path,
        device: str | None = None,
        dtype: str | None = None,
        *,
        text: TextColumns = None,
        task: Annotated[str | None, "the task, if the model has several"] = None,
        top: TopClasses = 1,
    ) -> None:
        self.model, self.text, self.top = load_any(model, device, dtype), text or None, top
        task_heads(self.model)  # or an error
        self.encoding = text_encoding(self.model, tokenizer_of(model, text_input(self.model).vocabulary))
        self.choose_task(task)

    def choose_task(self, task: str | None) -> None:
        """Sets the task that is predicted; raises a PerceiversError as `find_task` does."""
        heads = task_heads(self.model)
        self.task = find_task(heads.tasks, task)
        self.name, self.outputs = heads.tasks[self.task], {"label": torch.tensor([self.task])}
        count = heads.classes[self.name]
        self.names = None if count == 1 else heads.names.get(self.name) or [str(k) for k in range(count)]

    def values(self, outputs: Mapping[str, Any]) -> Tensor:
        values_BK: Tensor = outputs["label"][self.name].float()
        return values_BK if self.names is None else values_BK.softmax(-1)


def classify_text(
    model: PerceiverIO | str | Path,
    texts: Sequence[str | tuple[str, str]],
    task: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[dict[str, float]]:
    """Returns probabilities of the classes of each text, most probable first; for regression {"score": value}.

    Unlike in training, texts are not truncated.

    Args:
        model, device, dtype: as in `load_for_inference`; a model of bytes, or the folder of any model.
        texts: texts, or pairs of texts if the task compares two.
        task: the task, if the model has several.

    Raises:
        PerceiversError: the model is of another kind or has no tokenizer, there is no such task, or a text is empty or
            longer than the model reads.
    """
    return require_answers(classify_texts(TextPredictor(model, device, dtype, task=task), texts))


def classify_texts(
    predictor: TextPredictor, texts: Sequence[str | tuple[str, str]]
) -> list[dict[str, float] | PerceiversError]:
    """Returns what `classify_text` does, or why a text has no answer."""
    parts = [(text,) if isinstance(text, str) else text for text in texts]
    samples = Texts(parts, predictor.encoding, predictor.task, truncate=False)
    return classify(predictor, Inputs(samples, range(len(texts)), "row", Part("text", len(texts), len(texts)), ""))
