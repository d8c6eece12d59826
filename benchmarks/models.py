"""The six published models on both sides, `transformers` and this library, with the same weights.

`make` writes a model with random weights as `transformers` saves it, once a run; `load` reads it on one side.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

import perceivers
from perceivers.checkpoints.load import pretrained_config
from perceivers.released.transformers import CONFIGS, read_settings

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        architecture: its class in `transformers`.
        config: where its config differs from the default one, at the published size.
        tiny: the same, for tests.
        size, tiny_size: what it is called with: bytes of a text, height and width, or (clip) frames and their side.
        parts, tiny_parts: into how many parts `transformers` has to cut its outputs, each with an encoding of its own.
    """

    architecture: str
    config: dict[str, Any]
    tiny: dict[str, Any]
    size: tuple[int, ...]
    tiny_size: tuple[int, ...]
    parts: int = 1
    tiny_parts: int = 1


CLASSIFIER = {
    "num_latents": 512,
    "d_latents": 1024,
    "num_blocks": 8,
    "num_self_attends_per_block": 6,
    "num_cross_attention_heads": 1,
    "num_labels": 1000,
}
TINY = {
    "num_latents": 12,
    "d_latents": 32,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
    "num_labels": 5,
}
LANGUAGE_TINY = {
    "num_latents": 12,
    "d_latents": 32,
    "num_self_attends_per_block": 2,
    "d_model": 24,
    "qk_channels": 16,
    "v_channels": 32,
    "max_position_embeddings": 40,
}
MODELS = {
    "language": Published(
        "PerceiverForMaskedLM", {"qk_channels": 256, "v_channels": 1280}, LANGUAGE_TINY, (2048,), (40,)
    ),
    "imagenet_fourier": Published(
        "PerceiverForImageClassificationFourier", CLASSIFIER, TINY | {"num_blocks": 2}, (224, 224), (36, 36)
    ),
    "imagenet_learned": Published(
        "PerceiverForImageClassificationLearned",
        CLASSIFIER | {"image_size": 224},
        TINY | {"num_blocks": 2, "image_size": 12},
        (224, 224),
        (12, 12),
    ),
    "imagenet_conv": Published(
        "PerceiverForImageClassificationConvProcessing", CLASSIFIER, TINY | {"num_blocks": 2}, (224, 224), (36, 36)
    ),
    "flow": Published(
        "PerceiverForOpticalFlow",
        {
            "num_latents": 2048,
            "d_latents": 512,
            "num_self_attends_per_block": 24,
            "num_self_attention_heads": 16,
            "num_cross_attention_heads": 1,
        },
        TINY | {"train_size": [32, 48]},
        (368, 496),
        (32, 48),
    ),
    "clip": Published(
        "PerceiverForMultimodalAutoencoding",
        {
            "num_latents": 784,
            "d_latents": 512,
            "num_self_attends_per_block": 8,
            "num_cross_attention_heads": 1,
            "num_labels": 700,
        },
        TINY
        | {
            "num_frames": 4,
            "image_size": 4,
            "output_shape": [1, 4, 16, 16],
            "audio_samples_per_frame": 64,
            "output_num_channels": 20,
            "_label_trainable_num_channels": 48,
        },
        (16, 224),
        (4, 16),
        128,
        4,
    ),
}


def crop_of(size: tuple[int, ...]) -> tuple[int, ...]:
    """The size of a crop of half the height and width, on which flow is trained."""
    return tuple(side // 2 for side in size)


@torch.no_grad()
def make(name: str, folder: Path, tiny: bool = False) -> None:
    """Writes a model as `transformers` saves it, with random weights as large as trained ones, so that answers vary."""
    import transformers

    transformers.logging.disable_progress_bar()
    published = MODELS[name]
    # Without dropout of attention weights: it is random, and neither side's fast paths have it.
    config = transformers.PerceiverConfig(
        **(published.tiny if tiny else published.config), attention_probs_dropout_prob=0.0
    )
    with torch.device("meta"):  # its own initialization takes a minute
        model = getattr(transformers, published.architecture)(config)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:  # not ones and zeros, which would hide mistakes
            norm = "norm" in parameter_name and parameter_name.endswith("weight")
            parameter.normal_(float(norm), 0.1)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in norms:
        module.reset_running_stats()
    unfilled = len(list(model.buffers())) - sum(len(list(module.buffers())) for module in norms)
    assert not unfilled, f"{published.architecture} has buffers that are not filled"
    model.save_pretrained(folder)


def load(name: str, side: str, folder: Path, dtype: str, device: str, crop: tuple[int, ...] | None) -> nn.Module:
    """Reads a model that `make` wrote, with one of the two sides, in evaluation mode.

    Args:
        name: one of `MODELS`.
        side: "theirs" or "ours".
        folder: where the model is.
        dtype: what its weights are converted to, one of `DTYPES`.
        device: where it is put.
        crop: the image size it is built for instead of the published one (flow).
    """
    if side == "ours":
        model: nn.Module = perceivers.load(folder)
        if crop is not None:  # with positions of the crop, as theirs, not those of a part of the published size
            cropped = replace(pretrained_config(folder), image_size=crop).build()
            cropped.load_state_dict(model.state_dict())
            model = cropped
    else:
        import transformers

        transformers.logging.disable_progress_bar()
        settings = {} if crop is None else {"train_size": list(crop)}
        model = getattr(transformers, MODELS[name].architecture).from_pretrained(folder, **settings)
        if name == "clip":  # multiplies with masks of float32, and so cannot go on in bfloat16
            model.perceiver.input_preprocessor.register_forward_hook(to_own_dtype)
    return model.to(DTYPES[dtype]).to(device).eval()


def to_own_dtype(module: nn.Module, _: Any, output: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook that converts the input array to the precision of the model's weights."""
    return output[0].to(next(module.parameters()).dtype), *output[1:]


def empty(name: str, side: str, folder: Path, dtype: str, crop: tuple[int, ...] | None) -> nn.Module:
    """A model of `make` on the meta device, which computes nothing: to count FLOPs with. Arguments as in `load`."""
    config = json.loads((folder / "config.json").read_text())
    if crop is not None:
        config["train_size"] = list(crop)
    with torch.device("meta"):
        if side == "ours":
            architecture = MODELS[name].architecture
            model: nn.Module = CONFIGS[architecture](**read_settings(architecture, config, folder)).build()
        else:
            import transformers

            model = getattr(transformers, MODELS[name].architecture)(transformers.PerceiverConfig(**config))
    if side == "theirs" and name == "clip":
        model.perceiver.input_preprocessor.register_forward_hook(to_own_dtype)
    return model.to(DTYPES[dtype])


@contextmanager
def masks_not_built(side: str) -> Iterator[None]:
    """While open, `transformers` does not look into its masks, which have no values on the meta device.

    They change no FLOPs, since it computes the scores of what is masked too.
    """
    if side == "ours":
        yield
        return
    import transformers.models.perceiver.modeling_perceiver as port

    with patch.object(port, "create_bidirectional_mask", return_value=None):
        yield
