"""A small run of masked language modeling, and its text."""

import random

from perceivers.presets import model_config
from perceivers.text.pretraining import MaskedLanguage
from perceivers.text.stream import TextData
from perceivers.training.optimization import Optimization
from tests.support.runs import run_settings

PERCEIVER = {"length": 32, "embedding_channels": 16, "latents": 4, "channels": 16, "depth": 1, "heads": 2,
             "qk_channels": 8, "v_channels": 16, "cross_heads": 2, "decoder_heads": 2, "decoder_qk_channels": 8,
             "decoder_v_channels": 16, "dropout": 0.1}  # fmt: skip
BERT = {"length": 32, "channels": 16, "depth": 1, "heads": 2, "dropout": 0.1}


def sample(lines=300, seed=0):
    """Lines of made-up words in several scripts."""
    choose = random.Random(seed)
    alphabets = ["abcdefghijklmnop", "абвгдежзик", "日本語文章中国人"]
    words = ["".join(choose.choices(alphabet, k=choose.randint(1, 7))) for alphabet in alphabets for _ in range(80)]
    return [" ".join(choose.choices(words, k=12)) for _ in range(lines)]


def write_text(path):
    """Writes documents in several scripts."""
    path.write_text("\n\n".join(" ".join(sample(6, seed)) for seed in range(60)), encoding="utf-8")
    return path


def small_run(output, text, model=None, **training):
    """Two epochs of six updates."""
    data = TextData(str(text), steps_per_epoch=6, eval_windows=40, validation_fraction=0.1, documents_per_pack=2)
    training = {"max_epochs": 2, "batch_size": 8, "output": str(output)} | training
    return MaskedLanguage(
        model=model_config("language_bytes", **PERCEIVER) if model is None else model,
        data=data,
        optimization=Optimization(lr=1e-2),
        **run_settings(**training),
    )
