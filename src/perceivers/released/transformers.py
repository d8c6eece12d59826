"""The format of Hugging Face `transformers`: a folder with `config.json` and `model.safetensors`, or a `.bin`.

Its six classes are models of ours with particular settings, and the names of their arrays follow from ours. `export.py`
writes the format by the same rules.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceivers.checkpoints.format import Format
from perceivers.clips.model import AutoencoderConfig
from perceivers.errors import PerceiversError, quote
from perceivers.flow.model import OpticalFlowConfig
from perceivers.images.model import ImageClassifierConfig
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import CONFIG, WEIGHTS, Model, read_config, read_tensors
from perceivers.model.sizes import ModelConfig
from perceivers.released.conversion import LAYER, MODALITIES, ExternalCheckpoint, build_model
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
"""Defaults of the fields of a config."""

GELU = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
"""Names of the two ways to compute GELU."""

SIZES = {
    "latents": "num_latents",
    "channels": "d_latents",
    "depth": "num_self_attends_per_block",
    "num_blocks": "num_blocks",
    "heads": "num_self_attention_heads",
    "cross_heads": "num_cross_attention_heads",
    "widening_factor": "self_attention_widening_factor",
    "cross_widening_factor": "cross_attention_widening_factor",
    "qk_channels": "qk_channels",
    "v_channels": "v_channels",
}
"""Fields of every model's config, ours and theirs."""

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

LAYER_NAMES = {
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
"""Our names of the parts of a layer, and theirs."""

INPUT, DECODER = "perceiver.input_preprocessor.", "perceiver.decoder."
QUERY = "output_position_encodings.position_embeddings"
NAMES = {
    "encoder.latents": "perceiver.embeddings.latents",
    "encoder.cross_attentions.0.": "perceiver.encoder.cross_attention.",
    "encoder.layers.": "perceiver.encoder.self_attends.",
    "decoder.": f"{DECODER}decoder.decoding_cross_attention.",
    "projection.": f"{DECODER}decoder.final_layer.",
    "heads.flow.": f"{DECODER}decoder.final_layer.",
    "heads.label.": f"{DECODER}decoder.final_layer.",
    "inputs.text.embedding.": f"{INPUT}embeddings.",
    "inputs.text.positions.table_SF": f"{INPUT}position_embeddings.weight",
    "inputs.image.features.projection.": f"{INPUT}convnet_1x1.",
    "inputs.image.features.convolution.": f"{INPUT}convnet.conv.",
    "inputs.image.features.norm.": f"{INPUT}convnet.batchnorm.",
    "inputs.image.positions.table_SF": f"{INPUT}position_embeddings.position_embeddings",
    "inputs.image.positions.projection.": f"{INPUT}positions_projection.",
    "inputs.frames.image.features.projection.": f"{INPUT}conv_after_patches.",
    "outputs.text.positions.table_SF": f"{DECODER}{QUERY}",
    "outputs.text.bias": "embedding_decoder.bias",
    "outputs.label.query": f"{DECODER}decoder.{QUERY}",
    **{f"input_padding.vectors.{ours}": f"{INPUT}padding.{theirs}" for ours, theirs in MODALITIES.items()},
    **{f"input_padding.masks.{ours}": f"{INPUT}mask.{theirs}" for ours, theirs in MODALITIES.items()},
    **{f"query_padding.vectors.{ours}": f"{DECODER}padding.{theirs}" for ours, theirs in MODALITIES.items()},
}
"""Prefixes of our names, and theirs."""

NAMES_BY_CLASS = {
    LANGUAGE: {"decoder.": f"{DECODER}decoding_cross_attention."},
    AUTOENCODER: {
        "outputs.label.query": f"{DECODER}modalities.label.decoder.{QUERY}",
        **{f"heads.{o}.": f"perceiver.output_postprocessor.modalities.{t}.classifier." for o, t in MODALITIES.items()},
    },
}
"""Prefixes that one of their classes names differently."""


def rename_array(name: str, architecture: str) -> str:
    """Returns their name of one of our arrays."""
    if match := LAYER.fullmatch(name):
        layer, part, leaf = match.groups()
        return f"{replace_prefix(layer + '.', architecture)}{LAYER_NAMES[part]}.{leaf}"
    return replace_prefix(name, architecture)


def replace_prefix(name: str, architecture: str) -> str:
    """Replaces the longest known prefix of a name."""
    names = NAMES | NAMES_BY_CLASS.get(architecture, {})
    prefix = max((ours for ours in names if name.startswith(ours)), key=len, default="")
    return names.get(prefix, "") + name[len(prefix) :]


def read_checkpoint(folder: Path, config: Mapping[str, Any]) -> ExternalCheckpoint:
    """Reads a model that `transformers` saved in a folder; `config` is the content of its `config.json`.

    Raises:
        PerceiversError: it is a model of another type, or its weights are missing or cannot be read.
    """
    source = folder / CONFIG
    if config["model_type"] != "perceiver":
        raise PerceiversError(
            f"{source} describes a model of type {config['model_type']!r}, but only 'perceiver' can be loaded."
        )
    architectures = config.get("architectures") or [None]
    architecture = architectures[0] if isinstance(architectures, list) else architectures
    if not isinstance(architecture, str) or architecture not in CONFIGS:
        found = quote(architecture)
        raise PerceiversError(f"{source} has architecture {found}, which is not one of {', '.join(CONFIGS)}.")
    try:
        settings = read_settings(architecture, config, folder)
    except PerceiversError:  # a ValueError
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise PerceiversError(f"{source} has a field of the wrong type ({error!r}): it is damaged.") from error
    if (folder / PREPROCESSOR).is_file() and architecture in (FOURIER, LEARNED, CONV):
        settings |= read_preprocessing(read_config(folder, PREPROCESSOR), folder)
    file, pickled = folder / WEIGHTS, folder / PICKLED_WEIGHTS
    if pickled.is_file() and not file.is_file():
        file, arrays = pickled, read_pickled(pickled)
    else:
        arrays = read_tensors(file)
    return ExternalCheckpoint(
        file, CONFIGS[architecture], settings, arrays, lambda name: rename_array(name, architecture)
    )


def read_pickled(file: Path) -> dict[str, Tensor]:
    """Reads the arrays of a `.bin` by torch's own allow-list."""
    try:
        # Mapped memory ends with the file, whatever sizes it states; files from before torch 1.6 cannot be mapped.
        contents = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a damaged pickle may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PerceiversError(f"{file} cannot be read ({reason}): it is damaged or holds more than arrays.") from error
    if not isinstance(contents, dict) or not all(isinstance(array, Tensor) for array in contents.values()):
        raise PerceiversError(f"{file} does not hold the arrays of a model by their names.")
    for name, array in contents.items():
        is_plain = array.layout == torch.strided and array.device.type == "cpu" and not array.is_quantized
        if not is_plain or array.nbytes > array.untyped_storage().nbytes():
            raise PerceiversError(f"{file} does not hold all numbers of the array {quote(name)}: it is damaged.")
    return {name: array.detach().clone() for name, array in contents.items()}


def read_settings(architecture: str, given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Translates the fields of their config to those of ours; what our model does not support is an error."""
    config = DEFAULTS | dict(given)
    if "num_labels" in given and "id2label" not in given:
        if given["num_labels"] > 10**6:
            raise PerceiversError(f"{folder / CONFIG}: num_labels = {given['num_labels']} is more than a million.")
        config["id2label"] = {str(index): f"LABEL_{index}" for index in range(given["num_labels"])}
    gelu = list(GELU)
    supported = (("cross_attention_shape_for_attention", ["kv"]), ("use_query_residual", [True]), ("hidden_act", gelu))
    for field, allowed in supported:
        if config[field] not in allowed:
            known = " or ".join(map(repr, allowed))
            raise PerceiversError(f"{folder / CONFIG}: {field} = {config[field]!r} is not supported, only {known}.")
    settings: dict[str, Any] = {ours: config[theirs] for ours, theirs in SIZES.items()}
    settings |= {"gelu": GELU[config["hidden_act"]], "dropout": config["attention_probs_dropout_prob"]}
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
                f"{folder / CONFIG}: output_shape = {config['output_shape']} is not the shape of the input, "
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
    """Translates the config of their image processor to settings of an image classifier; {} if it is empty."""
    try:
        images = {"mean": "image_mean", "std": "image_std"}
        settings = {ours: list(config[theirs]) for ours, theirs in images.items() if theirs in config}
        if "crop_size" in config:
            settings["crop"] = config["size"]["height"] / config["crop_size"]["height"]
        return settings
    except (ArithmeticError, KeyError, TypeError) as error:
        raise PerceiversError(
            f"{folder / PREPROCESSOR} does not say image_mean, image_std, size and crop_size as expected ({error!r}): "
            f"the file is damaged."
        ) from error


class TransformersFormat(Format):
    """Folders that `transformers` saved."""

    def recognizes(self, path: Path) -> bool:
        return path.is_dir() and "model_type" in read_config(path)

    def read(self, path: Path, settings: Mapping[str, Any]) -> Model:
        return build_model(read_checkpoint(path, read_config(path)), settings)

    def write(self, model: Model, folder: Path) -> None:
        from perceivers.released.export import to_transformers  # which imports this module

        if not isinstance(model, PerceiverIO):
            raise PerceiversError(f"transformers has no such model as a {type(model).__name__}.")
        to_transformers(model, folder)


TRANSFORMERS = TransformersFormat()
