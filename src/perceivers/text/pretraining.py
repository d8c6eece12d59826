"""Masked language modeling (section 4.1; section 3 of the appendix), of Perceiver IO and of BERT.

configs/language/mlm_*_paper.yaml have the paper's settings.

Shape suffixes: B batch, M tokens, P masked tokens, N masked tokens of a batch, V vocabulary
"""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics import Metric

from perceivers.errors import PerceiversError
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text import commands
from perceivers.text.bert import BERT
from perceivers.text.masking import IGNORE_INDEX
from perceivers.text.model import BertConfig, LanguageConfig, is_language_model, text_input
from perceivers.text.stream import Batch, HeldOutText, StreamedText, TextData
from perceivers.text.tokenizers import Bytes, Tokenizer, open_tokenizer
from perceivers.training import learner
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization

PREVIEW_TOKENS = 160
"""Tokens of a filled text that are shown after an evaluation."""


@dataclass(kw_only=True)
class MaskedLanguage(Experiment):
    """A pretraining run that predicts masked words of a text.

    Attributes:
        model: `preset`, one of `perceivers models`, and any of its fields to change. The vocabulary is the tokenizer's.
            `initialization: local` is for small models, see `init_local_attention`.
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
        windows = self.data.steps_per_epoch * self.training.batch_size
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
    """Cross-entropy of masked tokens; their accuracy, and bits per byte of the masked words.

    Args:
        model, optimization: as in `Learner`.
        tokenizer: the tokenizer of the text; bytes by default.
    """

    monitor = ("val_bits_per_byte", "min")

    def __init__(
        self, model: PerceiverIO | BERT, optimization: Optimization | None = None, tokenizer: Tokenizer | None = None
    ) -> None:
        super().__init__(model, optimization)
        self.tokenizer = tokenizer or Bytes()
        self.bytes_V: Tensor
        self.register_buffer("bytes_V", torch.from_numpy(self.tokenizer.byte_counts_V), persistent=False)
        self.metrics = MaskedLanguageMetrics()
        self.preview: str | None = None

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Returns logits [B, P, V] of masked tokens, their labels [B, P], and the summed cross-entropy."""
        logits_BPV = self.model({"text": batch["text"]}, {"text": batch["indices"].long()})["text"].float()
        label_BP = batch["labels"].long()
        logits_NV, label_N = logits_BPV.flatten(0, 1), label_BP.flatten()
        nats = F.cross_entropy(logits_NV, label_N, ignore_index=IGNORE_INDEX, reduction="sum")
        return logits_BPV, label_BP, nats

    def loss(self, batch: Batch) -> Tensor:
        _, label_BP, nats = self.predict(batch)
        return nats / (label_BP != IGNORE_INDEX).sum().clamp(min=1)  # there may be no masked word

    def evaluate_batch(self, batch: Batch) -> None:
        logits_BPV, label_BP, nats = self.predict(batch)
        is_real_BP = label_BP != IGNORE_INDEX
        guess_BP = logits_BPV.argmax(-1)
        correct = (guess_BP == label_BP)[is_real_BP].sum()
        self.metrics.update(nats, correct, is_real_BP.sum(), self.bytes_V[label_BP[is_real_BP]].sum())
        if self.preview is None:
            count = int(is_real_BP[0].sum())
            self.preview = self.fill(batch["text"][0], batch["indices"][0, :count], guess_BP[0, :count])

    def on_validation_epoch_end(self) -> None:
        """Prints and logs one of the texts, with the masked words filled in."""
        super().on_validation_epoch_end()
        if self.trainer.is_global_zero and self.preview is not None:
            print(f"\n{self.preview}", flush=True)
            for logger in self.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text("filled", self.preview, self.global_step)
        self.preview = None

    def fill(self, token_M: Tensor, index_P: Tensor, guess_P: Tensor) -> str:
        """Returns the beginning of a text, with masked words filled in, in brackets."""
        guesses = dict(zip(index_P.tolist(), guess_P.tolist(), strict=True))
        tokens, parts = token_M[:PREVIEW_TOKENS].tolist(), []
        for is_masked, indices in groupby(range(len(tokens)), guesses.__contains__):
            text = self.tokenizer.decode([guesses.get(index, tokens[index]) for index in indices])
            parts.append(f"[{text}]" if is_masked else text)
        return " ".join("".join(parts).split())


class MaskedLanguageMetrics(Metric):
    """Loss in nats and accuracy of a masked token, and bits per byte of the masked words, over a data set."""

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(4), dist_reduce_fx="sum")

    def update(self, *sums: Tensor) -> None:
        """Adds the sums of a batch: nats, correct tokens, tokens, bytes."""
        self.sums = self.sums + torch.stack([value.float() for value in sums])

    def compute(self) -> dict[str, Tensor]:
        """Returns loss, accuracy in [0, 1], and bits_per_byte."""
        nats, correct, tokens, size = self.sums
        return {"loss": nats / tokens, "accuracy": correct / tokens, "bits_per_byte": nats / math.log(2) / size}


def evaluate(model: PerceiverIO | BERT, tokenizer: Tokenizer, data: TextData, batch_size: int = 64) -> dict[str, float]:
    """Returns the metrics of a language model on held-out text, as validation computes them, and its "windows".

    The tokenizer of `data` is not used. Which words are masked depends on `batch_size`, in windows: a training run's
    metrics need its own batch size.

    Raises:
        PerceiversError: the model is of another kind, or the text cannot be read or is too short.
    """
    length = text_input(model).length
    if not is_language_model(model):
        outputs = ", ".join(model.outputs)
        raise PerceiversError(f"this model predicts {outputs}: a language model, which predicts text, is needed.")
    samples = HeldOutText(data.open(0), tokenizer, length, data)
    results = learner.evaluate(MaskedLanguageModel(model, tokenizer=tokenizer), samples, batch_size)
    return results | {"windows": len(samples)}
