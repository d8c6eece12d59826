"""Masked language modelling (section 4.1; section 3 of the appendix), of Perceiver IO and of BERT alike.

configs/language/mlm_*_paper.yaml are the paper's recipe.

Shape suffixes: B batch, M tokens, P decoded places, V vocabulary
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import SumMetric

from perceivers.adapters.text import TextInput
from perceivers.checks import check
from perceivers.errors import PerceiversError
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.presets import create_model, preset
from perceivers.text.bert import BERT
from perceivers.text.documents import Source
from perceivers.text.local_start import start_locally
from perceivers.text.masking import IGNORED
from perceivers.text.stream import Batch, Stream, StreamLoader, TextData
from perceivers.text.tokenizers import Tokenizer, open_tokenizer
from perceivers.training.loop import Trained, Training, train
from perceivers.training.optimization import Optimization

SHOWN = 160
"""About so many tokens of a filled text are shown after an evaluation."""


@dataclass
class MaskedLanguage:
    """A pretraining run: hidden words of a text are predicted.

    Attributes:
        model: `preset`, one of `perceivers models`, and whichever of its settings are to be others.
            The vocabulary is the tokenizer's. `start: local` is for small models, see `start_locally`.
        data: the text.
        optimization: how weights are updated.
        training: how the run is done.
    """

    model: dict[str, Any]
    data: TextData = field(default_factory=TextData)
    optimization: Optimization = field(default_factory=Optimization)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        if "preset" not in self.model:
            raise PerceiversError("model.preset is missing: name one of `perceivers models`.")

    def run(self) -> Path:
        """Trains; -> the run's folder."""
        L.seed_everything(self.training.seed, verbose=False)
        tokenizer = open_tokenizer(self.data.tokenizer)
        with torch.device("meta"):  # a wrong setting shows before any data is read
            build_language_model(self.model, tokenizer)
        sources = self.data.open(self.training.seed)
        model = build_language_model(self.model, tokenizer)
        module = MaskedLanguageModel(model, self.optimization, tokenizer)
        batches = TextBatches(sources, tokenizer, text_input(model).length, self)
        written = {"experiment": "masked_language", **asdict(self)}
        output = train(module, batches, self.training, "test_bits_per_byte", written, best="min")
        if module.global_rank == 0:
            tokenizer.save(output / "model")
        return output


def build_language_model(config: Mapping[str, Any], tokenizer: Tokenizer) -> PerceiverIO | BERT:
    """A fresh model of a preset and its settings, with the tokenizer's vocabulary.

    Raises:
        PerceiversError: a setting is wrong, the vocabulary is another, or the preset reads no text.
    """
    settings = {name: value for name, value in config.items() if name not in ("preset", "start")}
    vocabulary = settings.get("vocabulary", tokenizer.size)
    check("model.vocabulary", vocabulary, vocabulary == tokenizer.size, f"{tokenizer.size}, as in the tokenizer")
    experiment = preset(config["preset"]).experiment
    if experiment != "language":
        raise PerceiversError(f"model.preset = {config['preset']} is of {experiment}: a language model is needed.")
    start = config.get("start", "normal")
    check("model.start", start, start in ("normal", "local"), "'normal' or 'local'")
    model = create_model(config["preset"], **(settings | {"vocabulary": tokenizer.size}))
    if start == "local":
        start_locally(model)
    return model


def text_input(model: PerceiverIO | BERT) -> TextInput:
    """The adapter of a language model's text.

    Raises:
        PerceiversError: the model is of another kind.
    """
    adapter = model.inputs["text"] if list(model.inputs) == ["text"] else None
    if not isinstance(adapter, TextInput):
        raise PerceiversError(
            f"this model reads {', '.join(model.inputs)}: a language model, which reads text, is needed."
        )
    return adapter


class TextBatches(L.LightningDataModule):
    """Batches for training and evaluation."""

    def __init__(
        self, sources: Mapping[str, tuple[Source, float]], tokenizer: Tokenizer, length: int, config: MaskedLanguage
    ) -> None:
        super().__init__()
        self.sources, self.tokenizer, self.length, self.config = sources, tokenizer, length, config

    def train_dataloader(self) -> StreamLoader:
        assert self.trainer is not None
        data, training = self.config.data, self.config.training
        stream = Stream(
            self.sources,
            self.tokenizer,
            self.length,
            data.documents,
            data.masked,
            data.places(self.length),
            training.batch_per_process(self.trainer.world_size),
            training.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
            training.workers,
        )
        return StreamLoader(stream, data.steps * training.accumulate, training.workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        assert self.trainer is not None
        world = self.trainer.world_size
        size = self.config.training.batch_per_process(world)
        batches = self.config.data.evaluation(self.sources, self.tokenizer, self.length, size)
        mine: Any = batches[self.trainer.global_rank :: world]
        return DataLoader(mine, batch_size=None)


class MaskedLanguageModel(Trained):
    """Cross-entropy of hidden tokens; their accuracy, and bits per byte of the hidden words' text."""

    def __init__(self, model: PerceiverIO | BERT, optimization: Optimization, tokenizer: Tokenizer) -> None:
        super().__init__(model, optimization)
        self.tokenizer = tokenizer
        self.bytes_V: Tensor
        self.register_buffer("bytes_V", torch.from_numpy(tokenizer.byte_counts_V), persistent=False)
        self.scores = MaskedScores()

    def predict(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, P, V] of what is hidden, and what it is, [B, P]."""
        logits_BPV = self.model({"text": batch["text"]}, {"text": batch["places"].long()})["text"]
        return logits_BPV.float(), batch["labels"].long()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits_BPV, label_BP = self.predict(batch)
        loss = nats(logits_BPV, label_BP) / (label_BP != IGNORED).sum().clamp(min=1)  # there may be no hidden word
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits_BPV, label_BP = self.predict(batch)
        real_BP = label_BP != IGNORED
        guess_BP = logits_BPV.argmax(-1)
        right = (guess_BP == label_BP)[real_BP].sum()
        self.scores.update(nats(logits_BPV, label_BP), right, real_BP.sum(), self.bytes_V[label_BP[real_BP]].sum())
        if batch_idx == 0 and self.trainer.is_global_zero:
            count = int(real_BP[0].sum())
            self.shown = self.show(batch["text"][0], batch["places"][0, :count], guess_BP[0, :count])

    def on_validation_epoch_end(self) -> None:
        for name, value in self.scores.compute().items():
            self.log(f"test_{name}", value, prog_bar=True, sync_dist=True)
        self.scores.reset()
        if self.trainer.is_global_zero:
            print(f"\n{self.shown}", flush=True)
            for logger in self.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text("filled", self.shown, self.global_step)

    def show(self, token_M: Tensor, place_P: Tensor, guess_P: Tensor) -> str:
        """The beginning of a text, hidden words filled in and put in brackets."""
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
    """Cross-entropy, summed."""
    return F.cross_entropy(logits_BPV.flatten(0, 1), label_BP.flatten(), ignore_index=IGNORED, reduction="sum")


class MaskedScores(torch.nn.Module):
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
