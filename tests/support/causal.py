"""A small causal model of bytes, its run, and its text."""

import random

import torch
from torch import nn

from perceivers.text.byte_windows import ByteData
from perceivers.text.causal import CausalLanguage
from perceivers.text.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceivers.training.optimization import Optimization
from tests.support.runs import run_settings

SIZES = {"length": 24, "latents": 8, "channels": 16, "depth": 2, "heads": 2}


def causal(**settings) -> PerceiverAR:
    """With random weights that leave no part without effect, in float64."""
    model = PerceiverAR(**(SIZES | settings)).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def random_bytes(*shape) -> torch.Tensor:
    return torch.randint(256, shape)


def write_text(path):
    """Writes 1,800 bytes of words, with blank lines and characters of several bytes."""
    choose = random.Random(0)
    words = choose.choices(["yes", "no", "perhaps", "été", "\n\nROMEO:\n", "日本"], k=1000)
    path.write_bytes(" ".join(words).encode()[:1800])
    return path


def small_run(output, text, model=None, **training):
    """Two epochs of six updates."""
    sizes = PerceiverARConfig(**SIZES, dropout=0.1, prefix_dropout=0.5)
    return CausalLanguage(
        model=sizes if model is None else model,
        data=ByteData(str(text), steps_per_epoch=6),
        optimization=Optimization(lr=1e-2),
        **run_settings(**({"max_epochs": 2, "batch_size": 8, "output": str(output)} | training)),
    )
