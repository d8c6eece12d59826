"""The format of Hugging Face `transformers`: a folder with its `config.json` and `model.safetensors`, or a `.bin`.

Its six classes are models of ours with particular settings, and the names of their arrays follow from ours. A model
is written by the same rules: whatever the config, read back, does not describe exactly, cannot be written.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from perceivers.adapters.audio import AudioInput, AudioOutput
from perceivers.adapters.flow import FlowOutput, FramePairInput
from perceivers.adapters.image import ConvStem, ImageInput
from perceivers.adapters.label import LabelInput, LabelOutput
from perceivers.adapters.text import TextInput, TextOutput
from perceivers.adapters.video import VideoInput, VideoOutput
from perceivers.checkpoints.foreign import FLOW_PROJECTION, LAYER, Foreign, frames_first
from perceivers.model.config import call, to_tree
from perceivers.model.errors import PerceiversError
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.positions import LearnedPositions
from perceivers.model.saving import CONFIG, WEIGHTS, read_config, read_tensors, write
from perceivers.tasks import autoencoder, image_classifier, language_model, optical_flow

PICKLED_WEIGHTS = "pytorch_model.bin"
PREPROCESSOR = "preprocessor_config.json"

TOKENIZER = "tokenizer_config.json"
QUERY = "outputs.label.query"
BIAS = "decoder.attention.output.bias"
PIXEL_PROJECTION = "inputs.image.features.projection.weight"

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

GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
"""Names of the two ways to compute GELU."""

LANGUAGE = "PerceiverForMaskedLM"
FOURIER = "PerceiverForImageClassificationFourier"
LEARNED = "PerceiverForImageClassificationLearned"
CONV = "PerceiverForImageClassificationConvProcessing"
FLOW = "PerceiverForOpticalFlow"
AUTOENCODER = "PerceiverForMultimodalAutoencoding"
TASKS: dict[str, Callable[..., PerceiverIO]] = {
    LANGUAGE: language_model,
    FOURIER: image_classifier,
    LEARNED: image_classifier,
    CONV: image_classifier,
    FLOW: optical_flow,
    AUTOENCODER: autoencoder,
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
    if architecture not in TASKS:
        raise PerceiversError(
            f"{folder / CONFIG} has the architecture {architecture!r}, which is not one of {', '.join(TASKS)}."
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
    return Foreign(file, TASKS[architecture], settings, arrays, lambda name: rename(name, architecture))


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
    """The settings of our task's function that a config of theirs means.

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
        "blocks": config["num_blocks"],
        "heads": config["num_self_attention_heads"],
        "cross_heads": config["num_cross_attention_heads"],
        "widening": config["self_attention_widening_factor"],
        "cross_widening": config["cross_attention_widening_factor"],
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
        return settings | {"preprocessing": "conv", "padding": "port"}
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


def save(model: PerceiverIO, folder: str | Path) -> None:
    """Writes a model to a folder that `transformers` loads, and where it answers the same.

    Raises:
        PerceiversError: `transformers` has no class for such a model.
    """
    folder = Path(folder)
    architecture = find_architecture(model)
    ours, tensors = to_tree(model), model.state_dict()
    if architecture in (FOURIER, LEARNED, CONV) and not ours["query_residual"]:
        # Theirs always adds the query. It is one constant vector, which the bias in front of the sum can take away.
        tensors = tensors | {BIAS: tensors[BIAS] - tensors[QUERY].flatten()}
        ours["query_residual"] = True
    if FLOW_PROJECTION in tensors:
        tensors = tensors | {FLOW_PROJECTION: frames_first(tensors[FLOW_PROJECTION])}
    config = make_config(model, architecture)
    companion = make_companion(model)
    with torch.device("meta"):
        settings = read_settings(architecture, config, folder) | read_preprocessing(companion, folder)
        theirs = to_tree(call(TASKS[architecture], settings))
    if difference := first_difference(ours, theirs):
        raise PerceiversError(f"transformers has no such model: {difference} in its {architecture}.")
    arrays = {rename(name, architecture): their_shape(name, array) for name, array in tensors.items()}
    write(folder / WEIGHTS, lambda file: save_file(arrays, file, metadata={"format": "pt"}))
    name = TOKENIZER if architecture == LANGUAGE else PREPROCESSOR
    for file, contents in ((name, companion), (CONFIG, config)):
        if contents:
            write(folder / file, partial(Path.write_text, data=json.dumps(contents, indent=2) + "\n"))


def find_architecture(model: PerceiverIO) -> str:
    """Which of their classes has inputs and outputs of these kinds."""
    kinds = [{name: type(adapter) for name, adapter in part.items()} for part in (model.inputs, model.outputs)]
    if kinds == [{"text": TextInput}, {"text": TextOutput}]:
        return LANGUAGE
    if kinds == [{"frames": FramePairInput}, {"flow": FlowOutput}]:
        return FLOW
    if kinds == [
        {"video": VideoInput, "audio": AudioInput, "label": LabelInput},
        {"video": VideoOutput, "audio": AudioOutput, "label": LabelOutput},
    ]:
        return AUTOENCODER
    if kinds != [{"image": ImageInput}, {"label": LabelOutput}]:
        raise PerceiversError(
            f"transformers has no such model, from {', '.join(model.inputs)} to {', '.join(model.outputs)}: it has "
            f"those of the published models, whose inputs and outputs are those of perceivers.tasks."
        )
    images = cast(ImageInput, model.inputs["image"])
    if images.colours != 3:
        raise PerceiversError(
            f"transformers has no such model: inputs.image has {images.colours} colours, but 3 in its."
        )
    if isinstance(images.features, ConvStem):
        return CONV
    return LEARNED if isinstance(images.positions, LearnedPositions) else FOURIER


def their_shape(name: str, array: Tensor) -> Tensor:
    """An array with the dimensions of size 1 that it has in their format."""
    if name.startswith(("input_padding.", "query_padding.")):
        array = array[None]
    elif name == QUERY:
        array = array[0]
    elif name == PIXEL_PROJECTION:
        array = array[..., None, None]
    return array.contiguous()


def first_difference(ours: Any, theirs: Any, path: str = "") -> str | None:
    """Says where two descriptions of models first differ, but for what does not change what they answer."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.get("class") == theirs.get("class"):
        for name in sorted((ours.keys() | theirs.keys()) - {"checkpointing", "crop"}):
            difference = first_difference(ours.get(name), theirs.get(name), f"{path}.{name}" if path else name)
            if difference:
                return difference
        return None
    return None if ours == theirs else f"{path} is {brief(ours)}, but {brief(theirs)}"


def brief(value: Any) -> str:
    """A part of a model's description, by its class if it has one."""
    return value["class"] if isinstance(value, dict) and "class" in value else repr(value)


def make_config(model: PerceiverIO, architecture: str) -> dict[str, Any]:
    """The config with which `transformers` builds the model, as far as it can."""
    ours = model.config
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": "perceiver",
        "num_latents": ours["latents"],
        "d_latents": ours["channels"],
        "num_self_attends_per_block": ours["depth"],
        "num_blocks": ours["blocks"],
        "num_self_attention_heads": ours["heads"],
        "num_cross_attention_heads": ours["cross_heads"],
        "self_attention_widening_factor": ours["widening"],
        "cross_attention_widening_factor": ours["cross_widening"],
        "qk_channels": ours["qk_channels"],
        "v_channels": ours["v_channels"],
        "hidden_act": {"none": "gelu", "tanh": "gelu_pytorch_tanh"}[ours["gelu"]],
        "attention_probs_dropout_prob": ours["dropout"],
    }
    label = dict(model.outputs.items()).get("label")
    if isinstance(label, LabelOutput):
        names = label.names or [f"LABEL_{index}" for index in range(label.classes)]
        config |= {
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {name: index for index, name in enumerate(names)},
        }
    if architecture == LANGUAGE:
        text = cast(TextInput, model.inputs["text"])
        return config | {
            "vocab_size": text.embedding.num_embeddings,
            "max_position_embeddings": text.length,
            "d_model": text.channels,
        }
    if architecture == FLOW:
        return config | {"train_size": list(cast(FramePairInput, model.inputs["frames"]).size)}
    if architecture == AUTOENCODER:
        frames, height, width = cast(VideoOutput, model.outputs["video"]).positions.grid
        sound = cast(AudioInput, model.inputs["audio"])
        return config | {
            "num_frames": frames,
            "image_size": height // 4,
            "output_shape": [1, frames, height, width],
            "samples_per_patch": sound.patch,
            "audio_samples_per_frame": sound.patch * sound.positions.grid[0] // frames,
            "_label_trainable_num_channels": model.outputs["label"].query_channels,
            "output_num_channels": ours["output_channels"],
        }
    return config | {"image_size": cast(ImageInput, model.inputs["image"]).size[0]}


def make_companion(model: PerceiverIO) -> dict[str, Any]:
    """What the tokenizer or image processor of `transformers` needs to know, if it has one for such a model."""
    inputs = dict(model.inputs.items())
    text, images = inputs.get("text"), inputs.get("image")
    if isinstance(text, TextInput):
        return {"tokenizer_class": "PerceiverTokenizer", "model_max_length": text.length}
    if not isinstance(images, ImageInput):
        return {}
    mean, std = images.normalization
    height, width = images.size
    return {
        "image_processor_type": "PerceiverImageProcessor",
        "size": {"height": height, "width": width},
        "crop_size": {"height": round(height / images.crop), "width": round(width / images.crop)},
        "image_mean": list(mean),
        "image_std": list(std),
    }
