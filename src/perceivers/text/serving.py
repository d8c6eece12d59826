"""Serves models of text: those that fill in masked bytes, and classifiers. Shape suffixes: B batch, M tokens."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from perceivers.adapters.text import TextInput, TextOutput
from perceivers.data.loader import SampleIndex
from perceivers.errors import PerceiversError
from perceivers.inference import check_answers
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.serving.attention import answer_with_attention
from perceivers.serving.service import ClassProbability, Message, Service, list_classes
from perceivers.text.attention_page import find_prefix, split_units, unit_weights
from perceivers.text.classify import TextPredictor, Texts, is_text_classifier, task_heads
from perceivers.text.fill_mask import Filled, MaskFiller
from perceivers.text.tokenizers import BYTE_VOCABULARY, MASK, Bytes, Tokenizer


class TextPart(Message):
    """A part of a text, such as a character or [MASK], and the weight of attention to it."""

    text: str
    weight: float


class MaskRequest(Message):
    """A text with masks to fill in."""

    text: str = Field(description="[MASK] stands for one masked byte, [MASK*9] for nine")
    top: int = Field(default=5, ge=1, le=256, title="Candidates", description="number of candidates for each byte")
    attention: bool = Field(default=False, description="also return what the masked bytes attend to")


class MaskAnswer(Message):
    """The text with the most probable bytes."""

    text: str
    masked: list[int] = Field(description="indices of the masked bytes")
    candidates: list[list[ClassProbability]] = Field(description="the most probable bytes for each of them")
    attention: list[TextPart] | None = Field(default=None, description="what the masked bytes attend to, on average")


class MaskItem(NamedTuple):
    """The tokens [M] of a text with masks, and the request."""

    token_M: NDArray[np.int32]
    request: MaskRequest


class MaskService(Service):
    """A language model of bytes."""

    task, title = "fill-mask", "Fills in masked bytes of a text"
    request, answer = MaskRequest, MaskAnswer

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        if not isinstance(model, PerceiverIO) or (list(model.inputs), list(model.outputs)) != (["text"], ["text"]):
            return False
        reads, predicts = model.inputs["text"], model.outputs["text"]
        return (
            isinstance(reads, TextInput)
            and isinstance(predicts, TextOutput)
            and reads.embedding.num_embeddings == BYTE_VOCABULARY
        )

    def __init__(self, model: PerceiverIO, source: str | Path) -> None:
        self.filler, self.model = MaskFiller(model), model

    def read(self, request: MaskRequest) -> MaskItem:
        return MaskItem(self.filler.read(request.text), request)

    @torch.inference_mode()
    def compute(self, items: Sequence[MaskItem]) -> list[MaskAnswer]:
        filled = self.filler.fill([item.token_M for item in items], max(item.request.top for item in items))
        return [self.write(item, answer) for item, answer in zip(items, filled, strict=True)]

    def write(self, item: MaskItem, filled: Filled) -> MaskAnswer:
        """Returns the answer to a request."""
        candidates = [list_classes(row, item.request.top) for row in filled.candidates]
        attention = None
        if item.request.attention:
            index_P = torch.from_numpy(item.token_M == MASK).nonzero()[:, 0]
            attention = weigh_text(self.filler.model, item.token_M, {"text": index_P}, Bytes(), "")
        return MaskAnswer(text=filled.text, masked=filled.masked, candidates=candidates, attention=attention)

    def example(self) -> MaskRequest:
        return MaskRequest(text="Some words are[MASK*9].")


class TextRequest(Message):
    """A text to classify, or a pair of texts if the task compares two."""

    text: str = Field(description="a text")
    second: str | None = Field(
        default=None, title="Second text", description="the other text of a pair, if there is one"
    )
    task: str | None = Field(default=None, description="the task, if the model has several")
    top: int = Field(
        default=5, ge=1, title="Classes", description="number of classes to return, the most probable ones"
    )
    attention: bool = Field(default=False, description="also return what the model attends to")


class TextAnswer(Message):
    """The most probable classes of a text; or a score, if the task has no classes."""

    classes: list[ClassProbability] | None = None
    score: float | None = None
    attention: list[TextPart] | None = Field(default=None, description="what the model attends to; not of BERT")


class TextItem(NamedTuple):
    """The sample of a text, see `Texts`, and the request with the name of the task."""

    sample: dict[str, Any]
    request: TextRequest


class TextService(Service):
    """A classifier of texts."""

    task, title = "classify-text", "Classifies texts"
    request, answer = TextRequest, TextAnswer

    @classmethod
    def accepts(cls, model: nn.Module) -> bool:
        return is_text_classifier(model)

    def __init__(self, model: Any, source: str | Path) -> None:
        self.tasks = task_heads(model).tasks
        predictor = TextPredictor(source, "cpu", task=self.tasks[0])  # from the folder, with its tokenizer
        predictor.model = self.model = model
        self.predictors = {task: copy.copy(predictor) for task in self.tasks}
        for task, chosen in self.predictors.items():
            chosen.choose_task(task)
        self.classes = predictor.names if len(self.tasks) == 1 else None

    def read(self, request: TextRequest) -> TextItem:
        if request.task is None and len(self.tasks) == 1:
            request = request.model_copy(update={"task": self.tasks[0]})
        if request.task not in self.predictors:
            raise PerceiversError(f"name one of the model's tasks as task: {', '.join(self.tasks)}.")
        parts = (request.text,) if request.second is None else (request.text, request.second)
        predictor = self.predictors[request.task]
        texts = Texts([parts], predictor.encoding, predictor.task, truncate=False)
        return TextItem(texts[SampleIndex(0, 0)], request)

    @torch.inference_mode()
    def compute(self, items: Sequence[TextItem]) -> list[TextAnswer]:
        answers = dict[int, TextAnswer]()
        for task, predictor in self.predictors.items():
            if same := [item for item in items if item.request.task == task]:
                answers |= zip(map(id, same), self.classify(predictor, same), strict=True)
        return [answers[id(item)] for item in items]

    def classify(self, predictor: TextPredictor, items: Sequence[TextItem]) -> list[TextAnswer]:
        """Returns the answers to requests of the same task."""
        batch = Texts([], predictor.encoding, predictor.task, truncate=False).collate([item.sample for item in items])
        device = next(self.model.parameters()).device
        outputs, _ = predictor.compute({name: tensor.to(device) for name, tensor in batch.items()})
        ranked = predictor.rank(check_answers(outputs))
        return [self.write(predictor, item, found) for item, found in zip(items, ranked, strict=True)]

    def write(self, predictor: TextPredictor, item: TextItem, found: dict[str, float]) -> TextAnswer:
        """Returns the answer to a request."""
        attention = None
        if item.request.attention and isinstance(self.model, PerceiverIO):
            token_M, tokenizer = item.sample["text"], predictor.encoding.tokenizer
            _, title = find_prefix(self.model, tokenizer, item.request.task)
            attention = weigh_text(self.model, token_M, predictor.outputs, tokenizer, title)
        if predictor.names is None:
            return TextAnswer(score=found["score"], attention=attention)
        return TextAnswer(classes=list_classes(found, item.request.top), attention=attention)

    def example(self) -> TextRequest:
        return TextRequest(text="A film to see twice.", task=self.tasks[0])


def weigh_text(
    model: PerceiverIO,
    token_M: NDArray[np.int32],
    outputs: Any,
    tokenizer: Tokenizer,
    title: str,
) -> list[TextPart]:
    """Returns the parts of a text with the weights of an answer's attention; `title` is as in `split_units`."""
    token_BM = torch.from_numpy(token_M)[None].long().to(model.device)
    queries = {name: None if index is None else index.to(model.device) for name, index in outputs.items()}
    _, weight_BM = answer_with_attention(model, {"text": token_BM}, queries)
    units = split_units(token_M.tolist(), tokenizer, title)
    weights: Tensor = unit_weights(weight_BM.cpu(), units)[0]
    texts = [f"[{unit.text}]" if unit.framed else unit.text for unit in units]
    return [TextPart(text=text, weight=weight) for text, weight in zip(texts, weights.tolist(), strict=True)]
