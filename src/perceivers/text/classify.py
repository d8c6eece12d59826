"""Classifies texts: `perceivers classify-text`.

Shape suffixes: B batch, M tokens, K classes
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import torch
from torch import nn

from perceivers.errors import PerceiversError, did_you_mean
from perceivers.inference import check_answers, get_device, load_for_inference, rank_classes
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text.batches import TextEncoding
from perceivers.text.bert import BERT
from perceivers.text.model import text_input
from perceivers.text.task_output import TaskHeads, TaskOutput
from perceivers.text.tokenizers import Tokenizer, tokenizer_of

SCORE = "score"
"""The key of the result of a regression task."""


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


@torch.no_grad()
def classify_text(
    model: PerceiverIO | str | Path,
    texts: Sequence[str | tuple[str, str]],
    task: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[dict[str, float]]:
    """Returns probabilities of the classes of each text, most probable first; for regression {"score": value}.

    Each text is read by itself, without padding. Unlike in training, texts are not truncated.

    Args:
        model, device, dtype: as in `load_for_inference`; a model of bytes, or the folder of any model.
        texts: texts, or pairs of texts if the task compares two.
        task: the task, if the model has several.

    Raises:
        PerceiversError: the model is of another kind or has no tokenizer, there is no such task, or a text is empty or
            longer than the model reads.
    """
    source, model = model, load_for_inference(model, device, dtype)
    heads = task_heads(model)
    encoding = text_encoding(model, tokenizer_of(source, text_input(model).vocabulary))
    index = find_task(heads.tasks, task)
    name = heads.tasks[index]
    tokens = []
    for number, text in enumerate(texts, 1):
        parts = [text] if isinstance(text, str) else text
        if not all(part.strip() for part in parts):
            raise PerceiversError(f"text {number} is empty: give one with words.")
        token_M = encoding.encode(parts, index)
        if len(token_M) > encoding.length:
            size = f"{len(token_M)} tokens, but the model reads at most {encoding.length}"
            raise PerceiversError(f"text {number} has {size}: shorten it.")
        tokens.append(token_M)
    results = []
    for token_M in tokens:
        token_BM = torch.from_numpy(token_M)[None].to(get_device(model))
        values_K = check_answers(model({"text": token_BM}, {"label": torch.tensor([index])})["label"])[name][0]
        names = heads.names.get(name) or [str(k) for k in range(len(values_K))]
        results.append({SCORE: values_K.item()} if len(values_K) == 1 else rank_classes(values_K, names))
    return results
