"""Labels of texts: `perceivers classify-text`.

Shape suffixes: B batch, M tokens, K classes
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import torch
from torch import nn

from perceivers.errors import PerceiversError, did_you_mean
from perceivers.inference import get_device, load_for_inference, rank_classes
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text.batches import TextCode
from perceivers.text.bert import BERT
from perceivers.text.model import text_input
from perceivers.text.task_output import TaskHeads, TaskOutput
from perceivers.text.tokenizers import Tokenizer, tokenizer_of

SCORE = "score"
"""What the answer of a task that is a number is called."""


def is_text_classifier(model: nn.Module) -> TypeGuard[PerceiverIO | BERT]:
    """Returns whether a model reads a text and predicts labels of it."""
    if not isinstance(model, PerceiverIO | BERT) or list(model.inputs) != ["text"] or list(model.outputs) != ["label"]:
        return False
    return isinstance(model.outputs["label"], TaskOutput | TaskHeads)


def task_heads(model: PerceiverIO | BERT) -> TaskHeads:
    """Returns the heads of the tasks of a model of labels.

    Raises:
        PerceiversError: the model is of another kind.
    """
    label = model.outputs["label"] if is_text_classifier(model) else None
    heads = label.heads if isinstance(label, TaskOutput) else label
    if not isinstance(heads, TaskHeads):
        raise PerceiversError(
            f"this model is no text classifier: it reads {', '.join(model.inputs)} "
            f"and predicts {', '.join(model.outputs)}, instead of a text and its label."
        )
    return heads


def text_code(model: PerceiverIO | BERT, tokenizer: Tokenizer) -> TextCode:
    """Returns how a model that `text_tasks` makes reads texts, in training and afterwards (section 4.1).

    Where each task has a query of its own, nothing stands in front of a text. Elsewhere it is the token of the task, if
    the model has such, or the same one for all.
    """
    text, label = text_input(model), model.outputs["label"]
    if isinstance(label, TaskOutput) and not label.shared:
        return TextCode(tokenizer, text.length)
    heads = task_heads(model)
    each = text.embedding.num_embeddings > text.vocabulary
    first = [text.vocabulary + number if each else tokenizer.cls for number in range(len(heads.tasks))]
    return TextCode(tokenizer, text.length, first)


def find_task(tasks: Sequence[str], task: str | None) -> int:
    """The number of a task.

    Raises:
        PerceiversError: there is none of that name, or none is named and there are several.
    """
    if task is None:
        if len(tasks) > 1:
            raise PerceiversError(f"the model has several tasks: name one as task (--task), of {', '.join(tasks)}.")
        return 0
    if task not in tasks:
        raise PerceiversError(f"the model has no task {task!r}: {did_you_mean(task, tasks)}")
    return tasks.index(task)


@torch.no_grad()
def classify_text(
    model: PerceiverIO | str | Path,
    texts: Sequence[str | tuple[str, str]],
    task: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> list[dict[str, float]]:
    """Probabilities of the classes for each text, as `rank` names and sorts them; of a number, {"score": its value}.

    Each text is read by itself: nothing is padded, and nothing is cut as it is in training.

    Args:
        model, device, dtype: as in `load_for_inference`; a model of bytes, or the folder of any.
        texts: texts, or pairs of texts where the task compares two.
        task: which of its tasks the model is to do, if it has several.

    Raises:
        PerceiversError: the model is of another kind or lacks its tokenizer, there is no such task, or a text is empty
            or longer than the model reads.
    """
    source, model = model, load_for_inference(model, device, dtype)
    heads = task_heads(model)
    code = text_code(model, tokenizer_of(source, text_input(model).vocabulary))
    number = find_task(heads.tasks, task)
    name = heads.tasks[number]
    coded = []
    for place, given in enumerate(texts, 1):
        parts = [given] if isinstance(given, str) else given
        if not all(part.strip() for part in parts):
            raise PerceiversError(f"text {place} is empty: give one with words.")
        token_M = code.encode(parts, number)
        if len(token_M) > code.length:
            raise PerceiversError(
                f"text {place} has {len(token_M)} tokens, but the model reads at most {code.length}: shorten it."
            )
        coded.append(token_M)
    answers = []
    for token_M in coded:
        token_BM = torch.from_numpy(token_M)[None].to(get_device(model))
        values_K = model({"text": token_BM}, {"label": torch.tensor([number])})["label"][name][0]
        if len(values_K) == 1:
            answers.append({SCORE: values_K.item()})
        else:
            answers.append(
                rank_classes(values_K, heads.names.get(name) or [str(index) for index in range(len(values_K))])
            )
    return answers
