"""The format of Hugging Face `transformers`: a folder with its `config.json` and `model.safetensors`, or a `.bin`.

Its six classes are models of ours with particular settings, and the names of their arrays follow from ours. `export.py`
writes it by the same rules.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceivers.checkpoints.format import Format
from perceivers.clips.model import AutoencoderConfig
from perceivers.errors import PerceiversError
from perceivers.flow.model import OpticalFlowConfig
from perceivers.images.model import ImageClassifierConfig
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import CONFIG, WEIGHTS, Model, read_config, read_tensors
from perceivers.model.sizes import ModelConfig
from perceivers.released.conversion import LAYER, Foreign, build
from perceivers.text.model import LanguageConfig

PICKLED_WEIGHTS = "pytorch_model.bin"
PREPROCESSOR = "preprocessor_config.json"


DEFAULTS: dict[str, Any] = {
    "num_latents": 256,
    "d_latents": 1280,
    "d_model": 768,
    "num_blocks": 1,
    "num_self_attends_per_block": 26,
    "num_self_attention_heads": 8,
    "num_cross_attention_heads": 8,
    "qk_channels": None,
    "v_channels": None,
    "cross_attention_shape_for_attention": "kv",
    "self_attention_widening_factor": 1,
    "cross_attention_widening_factor": 1,
    "hidden_act": "gelu",
    "attention_probs_dropout_prob": 0.1,
    "use_query_residual": True,
    "vocab_size": 262,
    "max_position_embeddings": 2048,
    "image_size": 56,
    "train_size": [368, 496],
    "num_frames": 16,
    "audio_samples_per_frame": 1920,
    "samples_per_patch": 16,
    "output_shape": [1, 16, 224, 224],
    "output_num_channels": 512,
    "_label_trainable_num_channels": 1024,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
}
"""What a config that leaves a field out means by it."""

GELU = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
"""Names of the two ways to compute GELU."""

LANGUAGE = "PerceiverForMaskedLM"
FOURIER = "PerceiverForImageClassificationFourier"
LEARNED = "PerceiverForImageClassificationLearned"
CONV = "PerceiverForImageClassificationConvProcessing"
FLOW = "PerceiverForOpticalFlow"
AUTOENCODER = "PerceiverForMultimodalAutoencoding"
CONFIGS: dict[str, type[ModelConfig]] = {
    LANGUAGE: LanguageConfig,
    FOURIER: ImageClassifierConfig,
    LEARNED: ImageClassifierConfig,
    CONV: ImageClassifierConfig,
    FLOW: OpticalFlowConfig,
    AUTOENCODER: AutoencoderConfig,
}

INNER = {
    "norm_q": "attention.self.layernorm1",
    "norm_z": "attention.self.layernorm1",
    "norm_x": "attention.self.layernorm2",
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "norm_h": "layernorm",
    "mlp.hidden": "mlp.dense1",
    "mlp.output": "mlp.dense2",
}
"""Our names inside a layer, and theirs."""

TRUNK = {
    "encoder.latents": "perceiver.embeddings.latents",
    "encoder.cross_attentions.0.": "perceiver.encoder.cross_attention.",
    "encoder.layers.": "perceiver.encoder.self_attends.",
}
INPUT, DECODER, OUTPUT = (
    "perceiver.input_preprocessor.",
    "perceiver.decoder.decoder.",
    "perceiver.output_postprocessor.",
)
CLASSIFIER = TRUNK | {
    "decoder.": f"{DECODER}decoding_cross_attention.",
    "heads.label.": f"{DECODER}final_layer.",
    "outputs.label.query": f"{DECODER}output_position_encodings.position_embeddings",
}
NAMES = {
    LANGUAGE: TRUNK
    | {
        "decoder.": "perceiver.decoder.decoding_cross_attention.",
        "inputs.text.embedding.": f"{INPUT}embeddings.",
        "inputs.text.positions.table_SF": f"{INPUT}position_embeddings.weight",
        "outputs.text.positions.table_SF": "perceiver.decoder.output_position_encodings.position_embeddings",
        "outputs.text.bias": "embedding_decoder.bias",
    },
    FOURIER: CLASSIFIER,
    LEARNED: CLASSIFIER
    | {
        "inputs.image.features.projection.": f"{INPUT}convnet_1x1.",
        "inputs.image.positions.table_SF": f"{INPUT}position_embeddings.position_embeddings",
        "inputs.image.positions.projection.": f"{INPUT}positions_projection.",
    },
    CONV: CLASSIFIER
    | {
        "inputs.image.features.convolution.": f"{INPUT}convnet.conv.",
        "inputs.image.features.norm.": f"{INPUT}convnet.batchnorm.",
    },
    FLOW: TRUNK
    | {
        "decoder.": f"{DECODER}decoding_cross_attention.",
        "heads.flow.": f"{DECODER}final_layer.",
        "inputs.frames.image.features.projection.": f"{INPUT}conv_after_patches.",
    },
    AUTOENCODER: TRUNK
    | {
        "decoder.": f"{DECODER}decoding_cross_attention.",
        "projection.": f"{DECODER}final_layer.",
        "outputs.label.query": (
            "perceiver.decoder.modalities.label.decoder.output_position_encodings.position_embeddings"
        ),
        **{
            f"{ours}.{modality}": f"{theirs}.{published}"
            for modality, published in (("video", "image"), ("audio", "audio"), ("label", "label"))
            for ours, theirs in (
                ("input_padding.vectors", f"{INPUT}padding"),
                ("input_padding.masks", f"{INPUT}mask"),
                ("query_padding.vectors", "perceiver.decoder.padding"),
            )
        },
        "heads.video.": f"{OUTPUT}modalities.image.classifier.",
        "heads.audio.": f"{OUTPUT}modalities.audio.classifier.",
        "heads.label.": f"{OUTPUT}modalities.label.classifier.",
    },
}
"""Beginnings of our names and of theirs, by class."""


def rename(name: str, architecture: str) -> str:
    """Their name of an array of ours."""
    names = NAMES[architecture]
    if match := LAYER.fullmatch(name):
        layer, inner, leaf = match.groups()
        return f"{replace_start(layer + '.', names)}{INNER[inner]}.{leaf}"
    return replace_start(name, names)


def replace_start(name: str, names: Mapping[str, str]) -> str:
    """Replaces the longest beginning that is in `names`."""
    start = max((ours for ours in names if name.startswith(ours)), key=len, default="")
    return names.get(start, "") + name[len(start) :]


def read(folder: Path, config: Mapping[str, Any]) -> Foreign:
    """Reads a model that `transformers` saved.

    Args:
        folder: where it is.
        config: what its `config.json` holds.

    Raises:
        PerceiversError: it is a model of another type, or its weights are missing or cannot be read.
    """
    if config["model_type"] != "perceiver":
        raise PerceiversError(
            f"{folder / CONFIG} describes a model of type {config['model_type']!r}, but only 'perceiver' can be loaded."
        )
    architecture = (config.get("architectures") or [None])[0]
    if architecture not in CONFIGS:
        raise PerceiversError(
            f"{folder / CONFIG} has the architecture {architecture!r}, which is not one of {', '.join(CONFIGS)}."
        )
    try:
        settings = read_settings(architecture, config, folder)
    except PerceiversError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise PerceiversError(f"{folder / CONFIG} has a field of the wrong type ({error!r}): it is damaged.") from error
    if (folder / PREPROCESSOR).is_file() and architecture in (FOURIER, LEARNED, CONV):
        settings |= read_preprocessing(read_config(folder, PREPROCESSOR), folder)
    file = folder / WEIGHTS
    if file.is_file() or not (folder / PICKLED_WEIGHTS).is_file():
        arrays = read_tensors(file)
    else:
        file = folder / PICKLED_WEIGHTS
        arrays = read_pickled(file)
    return Foreign(file, CONFIGS[architecture], settings, arrays, lambda name: rename(name, architecture))


def read_pickled(file: Path) -> dict[str, Tensor]:
    """The arrays of a `.bin`, by name; torch reads it by an allow-list of its own."""
    try:
        contents = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PerceiversError(f"{file} cannot be read ({reason}): it is damaged or holds more than arrays.") from error
    if not isinstance(contents, dict) or not all(isinstance(array, Tensor) for array in contents.values()):
        raise PerceiversError(f"{file} does not hold the arrays of a model by their names.")
    return contents


def read_settings(architecture: str, given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of our model's config that a config of theirs means.

    Raises:
        PerceiversError: the config asks for something that our model does not do.
    """
    config = DEFAULTS | dict(given)
    if "num_labels" in given and "id2label" not in given:
        config["id2label"] = {str(index): f"LABEL_{index}" for index in range(given["num_labels"])}
    for field, allowed in (
        ("cross_attention_shape_for_attention", ["kv"]),
        ("use_query_residual", [True]),
        ("hidden_act", list(GELU)),
    ):
        if config[field] not in allowed:
            raise PerceiversError(
                f"{folder / CONFIG}: {field} = {config[field]!r} is not supported, only "
                f"{' or '.join(repr(value) for value in allowed)}."
            )
    settings: dict[str, Any] = {
        "latents": config["num_latents"],
        "channels": config["d_latents"],
        "depth": config["num_self_attends_per_block"],
        "num_blocks": config["num_blocks"],
        "heads": config["num_self_attention_heads"],
        "cross_heads": config["num_cross_attention_heads"],
        "widening_factor": config["self_attention_widening_factor"],
        "cross_widening_factor": config["cross_attention_widening_factor"],
        "qk_channels": config["qk_channels"],
        "v_channels": config["v_channels"],
        "dropout": config["attention_probs_dropout_prob"],
        "gelu": GELU[config["hidden_act"]],
    }
    if architecture == LANGUAGE:
        return settings | {
            "vocabulary": config["vocab_size"],
            "length": config["max_position_embeddings"],
            "embedding_channels": config["d_model"],
            "decoder_heads": 8,
            "decoder_qk_channels": 256,
            "decoder_v_channels": config["d_model"],
        }
    if architecture == FLOW:
        return settings | {"image_size": config["train_size"]}
    names = [config["id2label"][key] for key in sorted(config["id2label"], key=int)]
    named = names != [f"LABEL_{index}" for index in range(len(names))]
    settings |= {"classes": len(names), "class_names": names if named else None}
    if architecture == AUTOENCODER:
        size = 4 * config["image_size"]
        if list(config["output_shape"])[1:] != [config["num_frames"], size, size]:
            raise PerceiversError(
                f"{folder / CONFIG}: output_shape = {config['output_shape']} is not that of the input, "
                f"{config['num_frames']} frames of 4 * image_size = {size} pixels a side."
            )
        return settings | {
            "frames": config["num_frames"],
            "image_size": (size, size),
            "samples_per_frame": config["audio_samples_per_frame"],
            "samples_per_patch": config["samples_per_patch"],
            "label_query_channels": config["_label_trainable_num_channels"],
            "output_channels": config["output_num_channels"],
        }
    settings |= {"query_channels": config["d_latents"]}
    if architecture == LEARNED:
        return settings | {"feature_channels": 256, "positions": "learned", "image_size": config["image_size"]}
    if architecture == CONV:
        return settings | {"preprocessing": "conv", "padding": "transformers"}
    return settings


def read_preprocessing(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of an image classifier that a config of their image processor means; none, if there is no config."""
    try:
        return {
            **({"mean": list(config["image_mean"])} if "image_mean" in config else {}),
            **({"std": list(config["image_std"])} if "image_std" in config else {}),
            **({"crop": config["size"]["height"] / config["crop_size"]["height"]} if "crop_size" in config else {}),
        }
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise PerceiversError(
            f"{folder / PREPROCESSOR} does not say image_mean, image_std, size and crop_size as expected ({error!r}): "
            f"the file is damaged."
        ) from error


class TransformersFormat(Format):
    """Folders that `transformers` saved."""

    def recognizes(self, path: Path) -> bool:
        return path.is_dir() and "model_type" in read_config(path)

    def read(self, path: Path, settings: Mapping[str, Any]) -> Model:
        return build(read(path, read_config(path)), settings)

    def write(self, model: Model, folder: Path) -> None:
        from perceivers.released.export import to_transformers  # which imports this module

        if not isinstance(model, PerceiverIO):
            raise PerceiversError(f"transformers has no such model as a {type(model).__name__}.")
        to_transformers(model, folder)


TRANSFORMERS = TransformersFormat()
