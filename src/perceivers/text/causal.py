"""Causal language modeling of bytes, by Perceiver AR or, with as many latents as bytes, a Transformer.

Shape suffixes: B batch, M bytes, N predicted bytes, P those of them that are measured
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from perceivers.data.splits import Part
from perceivers.text import commands
from perceivers.text.byte_windows import AllWindows, ByteData, RandomWindows
from perceivers.text.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceivers.training import learner
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization


@dataclass(kw_only=True)
class CausalLanguage(Experiment):
    """A training run that predicts the next byte of a text.

    Attributes:
        model: fields of `PerceiverARConfig`, or `init`, such a model whose training is continued, and fields that
            differ from it: length and number of latents may differ, too.
        data: the text.
    """

    evaluate = staticmethod(commands.evaluate_causal)
    command = "generate"

    model: PerceiverARConfig
    data: ByteData = field(default_factory=ByteData)

    def prepare(self) -> Setup:
        model = self.build_on_meta()
        text = self.data.open()
        end = self.data.split(text)
        windows = self.data.steps_per_epoch * self.training.batch_size
        return Setup(
            self.model.build,
            RandomWindows(text, end, model.length, windows),
            AllWindows(text, end, model.length, model.latents, self.data.stride or model.stride),
        )

    def learner(self, model: PerceiverAR) -> "CausalLanguageModel":
        return CausalLanguageModel(model, self.optimization)

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return isinstance(model, PerceiverAR)


class CausalLanguageModel(Learner):
    """Cross-entropy of the next bytes, in nats; in evaluation, bits per byte."""

    monitor = ("val_bits_per_byte", "min")

    def __init__(self, model: PerceiverAR, optimization: Optimization | None = None) -> None:
        super().__init__(model, optimization)
        self.metrics = MetricCollection({"bits_per_byte": MeanMetric(nan_strategy="disable")})

    def nats(self, text_BM: Tensor) -> Tensor:
        """Returns the cross-entropy of the bytes that a window predicts; [B, M + 1] -> [B, N]."""
        logits_BNV = self.model(text_BM[:, :-1]).float()
        byte_BN = text_BM[:, -logits_BNV.shape[1] :].long()
        return F.cross_entropy(logits_BNV.mT, byte_BN, reduction="none")

    def loss(self, batch: dict[str, Any]) -> Tensor:
        return self.nats(batch["text"]).mean()

    def evaluate_batch(self, batch: dict[str, Any]) -> None:
        nats_BP = self.nats(batch["text"])[:, -batch["predicted"] :]
        self.metrics["bits_per_byte"].update(nats_BP / math.log(2))


def evaluate(
    model: PerceiverAR, data: ByteData, batch_size: int = 64, held_out: bool = False
) -> tuple[dict[str, float], Part]:
    """Returns the bits per byte of a model on text, see `AllWindows`, and the bytes they were measured on.

    Args:
        model: the model.
        data: the text.
        batch_size: in windows; it changes nothing but speed and memory.
        held_out: measure only on what a training run with this `data` held out.

    Raises:
        PerceiversError: the text cannot be read or is too short, or the stride is too large.
    """
    text = data.open()
    start = data.split(text) if held_out else 0
    samples = AllWindows(text, start, model.length, model.latents, data.stride or model.stride)
    results = learner.evaluate(CausalLanguageModel(model), samples, batch_size)
    return results, Part("byte", len(text) - start, len(text))
