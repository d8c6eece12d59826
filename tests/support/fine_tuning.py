"""Small runs of fine-tuning, and their texts."""

from dataclasses import dataclass

import numpy as np

from perceivers.presets import model_config
from perceivers.text.fine_tuning import FineTuning, Method
from perceivers.text.labeled import LabeledTexts, TextTask
from perceivers.text.model import BertConfig, LanguageConfig
from perceivers.text.tokenizers import Bytes
from perceivers.training.optimization import Optimization
from tests.support.runs import run_settings

PERCEIVER = {"length": 40, "embedding_channels": 16, "latents": 4, "channels": 16, "depth": 1, "heads": 2,
             "qk_channels": 8, "v_channels": 16, "cross_heads": 2, "decoder_heads": 2, "decoder_qk_channels": 8,
             "decoder_v_channels": 16}  # fmt: skip
SMALL_BERT = {"length": 40, "channels": 16, "depth": 1, "heads": 2}


def config(kind="language_bytes"):
    return model_config(kind, **(SMALL_BERT if "bert" in kind else PERCEIVER))


def labeled(count, seed, classes=("no", "yes")):
    """Whether "good" stands in the text."""
    choose = np.random.default_rng(seed)
    labels = choose.integers(len(classes), size=count).tolist()
    words = ("bad", "good", "fair")
    texts = [(f"a {words[label]} thing {number}", "and other")[: 1 + number % 2] for number, label in enumerate(labels)]
    return LabeledTexts(texts, labels, list(classes))


def scored(count, seed):
    numbers = np.random.default_rng(seed).random(count) * 5
    return LabeledTexts([("x" * int(number * 4), "y") for number in numbers], numbers.tolist(), None)


def several_tasks():
    three = ("no", "yes", "maybe")
    return {
        "CoLA": TextTask(labeled(30, 0), {"CoLA": labeled(21, 1)}, "matthews"),
        "MNLI": TextTask(
            labeled(20, 2, three),
            {"MNLI_matched": labeled(11, 3, three), "MNLI_mismatched": labeled(6, 4, three)},
            "accuracy",
        ),
        "STS-B": TextTask(scored(14, 5), {"STS-B": scored(13, 6)}, "pearson"),
    }


def settings(output, **training):
    training = {"max_epochs": 1, "batch_size": 8, "output": str(output)} | training
    return {"optimization": Optimization(lr=3e-3), **run_settings(**training)}


@dataclass(kw_only=True)
class Several(FineTuning):
    """Several tasks at once, from a fresh language model."""

    model: LanguageConfig | BertConfig
    method: Method

    def prepare(self):
        return self.prepare_tasks(self.model.build, Bytes(), several_tasks(), self.method)


def write_csv(path, texts):
    lines = [
        f'"{" ".join(parts)}",{texts.classes[label]}' for parts, label in zip(texts.texts, texts.labels, strict=True)
    ]
    path.write_text("\n".join(["review,sentiment", *lines]) + "\n")
    return path
