"""Writes models in the format of `transformers`, so that they can be published for everyone.

The config is read back: unless it describes the model exactly, nothing is written.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from perceivers.adapters.audio import AudioInput, AudioOutput
from perceivers.adapters.image import ConvStem, ImageInput
from perceivers.adapters.label import LabelInput, LabelOutput
from perceivers.adapters.text import TextInput, TextOutput
from perceivers.adapters.video import VideoInput, VideoOutput
from perceivers.errors import PerceiversError
from perceivers.flow.adapter import FlowOutput, FramePairInput
from perceivers.model.config import construct, to_config
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.positions import LearnedPositions
from perceivers.model.saving import CONFIG, WEIGHTS, atomic_write
from perceivers.released import transformers as port
from perceivers.released.conversion import FLOW_PROJECTION, frames_first

TOKENIZER = "tokenizer_config.json"
QUERY = "outputs.label.query"
BIAS = "decoder.attention.output.bias"
PIXEL_PROJECTION = "inputs.image.features.projection.weight"


def to_transformers(model: PerceiverIO, folder: str | Path) -> None:
    """Writes a model for `transformers`, with the same outputs; raises a PerceiversError if it has no such class."""
    folder = Path(folder)
    architecture = find_architecture(model)
    ours, tensors = to_config(model), model.state_dict()
    if architecture in (port.FOURIER, port.LEARNED, port.CONV) and not ours["query_residual"]:
        # Their decoder always adds the query: a constant vector, which is subtracted from the bias before the sum.
        tensors = tensors | {BIAS: tensors[BIAS] - tensors[QUERY].flatten()}
        ours["query_residual"] = True
    config, preprocessor = make_config(model, architecture), make_preprocessor_config(model)
    with torch.device("meta"):
        settings = port.read_settings(architecture, config, folder) | port.read_preprocessing(preprocessor, folder)
        theirs = to_config(construct(port.CONFIGS[architecture], settings).build())
    if difference := find_difference(ours, theirs):
        raise PerceiversError(f"transformers has no such model: {difference} in its {architecture}.")
    if FLOW_PROJECTION in tensors:
        tensors = tensors | {FLOW_PROJECTION: frames_first(tensors[FLOW_PROJECTION])}
    arrays = {port.rename_array(name, architecture): external_shape(name, array) for name, array in tensors.items()}
    atomic_write(folder / WEIGHTS, lambda file: save_file(arrays, file, metadata={"format": "pt"}))
    name = TOKENIZER if architecture == port.LANGUAGE else port.PREPROCESSOR
    for file, contents in ((name, preprocessor), (CONFIG, config)):
        if contents:
            atomic_write(folder / file, partial(Path.write_text, data=json.dumps(contents, indent=2) + "\n"))


def find_architecture(model: PerceiverIO) -> str:
    """Returns the class of theirs that has the inputs and outputs of a model."""
    kinds = [{name: type(adapter) for name, adapter in part.items()} for part in (model.inputs, model.outputs)]
    if kinds == [{"text": TextInput}, {"text": TextOutput}]:
        return port.LANGUAGE
    if kinds == [{"frames": FramePairInput}, {"flow": FlowOutput}]:
        return port.FLOW
    if kinds == [
        {"video": VideoInput, "audio": AudioInput, "label": LabelInput},
        {"video": VideoOutput, "audio": AudioOutput, "label": LabelOutput},
    ]:
        return port.AUTOENCODER
    if kinds != [{"image": ImageInput}, {"label": LabelOutput}]:
        found = f"from {', '.join(model.inputs)} to {', '.join(model.outputs)}"
        raise PerceiversError(f"transformers has no such model, {found}: it has those of the published models only.")
    images = cast(ImageInput, model.inputs["image"])
    if images.in_channels != 3:
        raise PerceiversError(f"transformers has no such model: inputs.image has {images.in_channels} colors, not 3.")
    if isinstance(images.features, ConvStem):
        return port.CONV
    return port.LEARNED if isinstance(images.positions, LearnedPositions) else port.FOURIER


def external_shape(name: str, array: Tensor) -> Tensor:
    """Returns an array with the dimensions of size 1 that it has in their format."""
    if name.startswith(("input_padding.", "query_padding.")):
        array = array[None]
    elif name == QUERY:
        array = array[0]
    elif name == PIXEL_PROJECTION:
        array = array[..., None, None]
    return array.contiguous()


def find_difference(ours: Any, theirs: Any, path: str = "") -> str | None:
    """Describes the first difference between two descriptions of models that changes their outputs."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.get("class") == theirs.get("class"):
        names = sorted((ours.keys() | theirs.keys()) - {"checkpointing", "crop", "nested_latents"})
        found = (find_difference(ours.get(name), theirs.get(name), f"{path}.{name}".lstrip(".")) for name in names)
        return next(filter(None, found), None)
    return None if ours == theirs else f"{path} is {short_repr(ours)}, but {short_repr(theirs)}"


def short_repr(value: Any) -> str:
    """Formats a part of a model's description, by its class if it has one."""
    return value["class"].rpartition(":")[2] if isinstance(value, dict) and "class" in value else repr(value)


def make_config(model: PerceiverIO, architecture: str) -> dict[str, Any]:
    """Returns their config of a model, as far as their format can describe it."""
    ours = model.config
    config: dict[str, Any] = {"architectures": [architecture], "model_type": "perceiver"}
    config |= {theirs: ours[name] for name, theirs in port.SIZES.items()}
    config["hidden_act"] = {"exact": "gelu", "tanh": "gelu_pytorch_tanh"}[ours["gelu"]]
    config["attention_probs_dropout_prob"] = ours["dropout"]
    label = dict(model.outputs.items()).get("label")
    if isinstance(label, LabelOutput):
        names = label.names or [f"LABEL_{index}" for index in range(label.classes)]
        config["id2label"] = {str(index): name for index, name in enumerate(names)}
        config["label2id"] = {name: index for index, name in enumerate(names)}
    if architecture == port.LANGUAGE:
        text = cast(TextInput, model.inputs["text"])
        return config | {
            "vocab_size": text.embedding.num_embeddings,
            "max_position_embeddings": text.length,
            "d_model": text.channels,
        }
    if architecture == port.FLOW:
        return config | {"train_size": list(cast(FramePairInput, model.inputs["frames"]).size)}
    if architecture == port.AUTOENCODER:
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


def make_preprocessor_config(model: PerceiverIO) -> dict[str, Any]:
    """Returns the config of their tokenizer or image processor; {} if they have none for such a model."""
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
