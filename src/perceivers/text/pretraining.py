"""Masked language modeling (section 4.1; section 3 of the appendix), of Perceiver IO and of BERT alike.

configs/language/mlm_*_paper.yaml are the paper's recipe.

Shape suffixes: B batch, M tokens, P decoded places, V vocabulary
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics import SumMetric

from perceivers.errors import PerceiversError
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text import commands
from perceivers.text.bert import BERT
from perceivers.text.masking import IGNORED
from perceivers.text.model import BertConfig, LanguageConfig, is_language_model, text_input
from perceivers.text.stream import Batch, HeldOutText, StreamedText, TextData
from perceivers.text.tokenizers import Bytes, Tokenizer, open_tokenizer
from perceivers.training import learner
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization

SHOWN = 160
"""About so many tokens of a filled text are shown after an evaluation."""


@dataclass(kw_only=True)
class MaskedLanguage(Experiment):
    """A pretraining run: hidden words of a text are predicted.

    Attributes:
        model: `preset`, one of `perceivers models`, and whichever of its fields are to be others.
            The vocabulary is the tokenizer's. `start: local` is for small models, see `start_locally`.
        data: the text.
    """

    decided_by_data = ("vocabulary",)
    evaluate = staticmethod(commands.evaluate_language)

    model: LanguageConfig | BertConfig
    data: TextData = field(default_factory=TextData)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that `data` names."""
        return open_tokenizer(self.data.tokenizer)

    def prepare(self) -> Setup:
        config = replace(self.model, **self.settle(vocabulary=self.tokenizer.size))
        length = text_input(self.build_on_meta()).length
        sources = self.data.open(self.training.seed)
        windows = self.data.steps * self.training.batch_size
        return Setup(
            config.build,
            StreamedText(sources, self.tokenizer, length, self.data, windows),
            HeldOutText(sources, self.tokenizer, length, self.data),
        )

    def learner(self, model: PerceiverIO | BERT) -> "MaskedLanguageModel":
        return MaskedLanguageModel(model, self.optimization, self.tokenizer)

    def finish(self, folder: Path) -> None:
        self.tokenizer.save(folder)

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return is_language_model(model)


class MaskedLanguageModel(Learner):
    """Cross-entropy of hidden tokens; their accuracy, and bits per byte of the hidden words' text.

    Args:
        model, optimization: as in `Learner`.
        tokenizer: of the text; of bytes, if not given.
    """

    monitor = ("test_bits_per_byte", "min")

    def __init__(
        self,
        model: PerceiverIO | BERT,
        optimization: Optimization | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__(model, optimization)
        self.tokenizer = tokenizer or Bytes()
        self.bytes_V: Tensor
        self.register_buffer("bytes_V", torch.from_numpy(self.tokenizer.byte_counts_V), persistent=False)
        self.metrics = MaskedScores()
        self.filled: str | None = None

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns logits [B, P, V] of what is hidden, and what it is, [B, P]."""
        logits_BPV = self.model({"text": batch["text"]}, {"text": batch["places"].long()})["text"]
        return logits_BPV.float(), batch["labels"].long()

    def loss(self, batch: Batch) -> Tensor:
        logits_BPV, label_BP = self.predict(batch)
        return nats(logits_BPV, label_BP) / (label_BP != IGNORED).sum().clamp(min=1)  # there may be no hidden word

    def evaluate_batch(self, batch: Batch) -> None:
        logits_BPV, label_BP = self.predict(batch)
        real_BP = label_BP != IGNORED
        guess_BP = logits_BPV.argmax(-1)
        right = (guess_BP == label_BP)[real_BP].sum()
        self.metrics.update(nats(logits_BPV, label_BP), right, real_BP.sum(), self.bytes_V[label_BP[real_BP]].sum())
        if self.filled is None:
            count = int(real_BP[0].sum())
            self.filled = self.fill(batch["text"][0], batch["places"][0, :count], guess_BP[0, :count])

    def on_validation_epoch_end(self) -> None:
        """Shows one of the texts, with what was hidden filled in."""
        super().on_validation_epoch_end()
        if self.trainer.is_global_zero and self.filled is not None:
            print(f"\n{self.filled}", flush=True)
            for logger in self.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text("filled", self.filled, self.global_step)
        self.filled = None

    def fill(self, token_M: Tensor, place_P: Tensor, guess_P: Tensor) -> str:
        """Returns the beginning of a text, hidden words filled in and put in brackets."""
        filled_M = token_M.to(torch.long, copy=True)
        filled_M[place_P] = guess_P
        hidden_M = torch.zeros_like(token_M, dtype=torch.bool)
        hidden_M[place_P] = True
        runs = hidden_M[:SHOWN].unique_consecutive(return_counts=True)
        parts, start = [], 0
        for hidden, count in zip(*(part.tolist() for part in runs), strict=True):
            text = self.tokenizer.decode(filled_M[start : start + count].tolist())
            parts.append(f"[{text}]" if hidden else text)
            start += count
        return " ".join("".join(parts).split())


def nats(logits_BPV: Tensor, label_BP: Tensor) -> Tensor:
    """Returns the cross-entropy, summed."""
    return F.cross_entropy(logits_BPV.flatten(0, 1), label_BP.flatten(), ignore_index=IGNORED, reduction="sum")


class MaskedScores(nn.Module):
    """Loss in nats and accuracy of a hidden token, and bits for each byte of the hidden words, over a data set."""

    def __init__(self) -> None:
        super().__init__()
        self.nats, self.right, self.tokens, self.bytes = SumMetric(), SumMetric(), SumMetric(), SumMetric()

    def update(self, nats: Tensor, right: Tensor, tokens: Tensor, bytes: Tensor) -> None:
        """Adds the sums of a batch."""
        self.nats.update(nats)
        self.right.update(right)
        self.tokens.update(tokens)
        self.bytes.update(bytes)

    def compute(self) -> dict[str, Tensor]:
        """-> loss, accuracy in [0, 1], and bits_per_byte."""
        nats, right, tokens, bytes = (metric.compute() for metric in (self.nats, self.right, self.tokens, self.bytes))
        return {"loss": nats / tokens, "accuracy": right / tokens, "bits_per_byte": nats / math.log(2) / bytes}

    def reset(self) -> None:
        """Starts anew."""
        for metric in (self.nats, self.right, self.tokens, self.bytes):
            metric.reset()


def evaluate(model: PerceiverIO | BERT, tokenizer: Tokenizer, data: TextData, batch_size: int = 64) -> dict[str, float]:
    """Returns loss, accuracy and bits per byte of a language model on the held-out part of a text.

    Args:
        model: a language model.
        tokenizer: the model's own; that of `data` is not used.
        data: the text, how much of it is held out, and how it is cut and masked.
        batch_size: windows computed at a time; which words are hidden depends on it, so that the figures of a training
            run are those of its own batch size.

    Returns:
        The figures that validation computes, and the number of "windows".

    Raises:
        PerceiversError: the model is of another kind, or the text cannot be read or is too short.
    """
    length = text_input(model).length
    if not is_language_model(model):
        raise PerceiversError(
            f"this model predicts {', '.join(model.outputs)}: a language model, which predicts text, is needed."
        )
    samples = HeldOutText(data.open(0), tokenizer, length, data)
    figures = learner.evaluate(MaskedLanguageModel(model, tokenizer=tokenizer), samples, batch_size)
    return figures | {"windows": len(samples)}
