"""Checkpoints of the original code: Haiku parameters in a pickle (`.pystate`, `.pickle`).

Sizes are read from the shapes of the arrays. Settings that shapes do not determine (heads, number of blocks, image
size) are known for the published models, and must be given for others.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from perceivers.checkpoints.format import Format
from perceivers.clips.model import AutoencoderConfig
from perceivers.errors import PerceiversError
from perceivers.flow.model import OpticalFlowConfig
from perceivers.images.model import ImageClassifierConfig
from perceivers.model.saving import Model
from perceivers.model.sizes import ModelConfig
from perceivers.released.conversion import FLOW_PROJECTION, LAYER, MODALITIES, ExternalCheckpoint, build_model
from perceivers.released.unpickling import read_pickle
from perceivers.text.model import LanguageConfig

Settings = dict[str, Any]

LAYER_NAMES = {
    "norm_q": "layer_norm",
    "norm_x": "layer_norm_1",
    "attention.query": "attention/linear",
    "attention.key": "attention/linear_1",
    "attention.value": "attention/linear_2",
    "attention.output": "attention/linear_3",
    "mlp.hidden": "mlp/linear",
    "mlp.output": "mlp/linear_1",
}
"""Our names of the parts of all attention layers, and Haiku's."""

FOURIER = {
    "encoder": "perceiver_encoder",
    "decoder": "classification_decoder/~/basic_decoder",
    "heads.label": "classification_decoder/~/basic_decoder/output",
    "outputs.label.query": "classification_decoder/~/basic_decoder/~/trainable_position_encoding pos_embs",
}
POSITIONS = "image_preprocessor/~_build_network_inputs"
LEARNED = FOURIER | {
    "inputs.image.features.projection": "image_preprocessor/~/conv2_d",
    "inputs.image.positions.table_SF": f"{POSITIONS}/trainable_position_encoding pos_embs",
    "inputs.image.positions.projection": f"{POSITIONS}/position_encoding_projector/linear",
}
STEM = "image_preprocessor/~/conv2_d_downsample/~"
CONV = FOURIER | {
    "inputs.image.features.convolution": f"{STEM}/conv",
    "inputs.image.features.norm": f"{STEM}/batchnorm",
    "inputs.image.features.norm.running_mean": f"{STEM}/batchnorm/~/mean_ema average",
    "inputs.image.features.norm.running_var": f"{STEM}/batchnorm/~/var_ema average",
    "inputs.image.features.norm.num_batches_tracked": f"{STEM}/batchnorm/~/mean_ema counter",
}
LANGUAGE = {
    "encoder": "perceiver_encoder",
    "decoder": "basic_decoder",
    "inputs.text.embedding.weight": "embed embeddings",
    "inputs.text.positions.table_SF": "trainable_position_encoding pos_embs",
    "outputs.text.positions.table_SF": "basic_decoder/~/trainable_position_encoding pos_embs",
    "outputs.text.bias": "embedding_decoder bias",
}
FLOW = {
    "encoder": "perceiver_encoder",
    "decoder": "flow_decoder/~/basic_decoder",
    "heads.flow": "flow_decoder/~/basic_decoder/output",
    "inputs.frames.image.features.projection": "image_preprocessor/patches_linear",
}
QUERIES = "multimodal_decoder/~decoder_query"
AUTOENCODER = {
    "encoder": "encoder",
    "decoder": "multimodal_decoder/~/basic_decoder",
    "projection": "multimodal_decoder/~/basic_decoder/output",
    "outputs.label.query": "classification_decoder/~/basic_decoder/~/trainable_position_encoding pos_embs",
    "heads.video": "projection_postprocessor/linear",
    "heads.audio": "audio_postprocessor/linear",
    "heads.label": "classification_postprocessor/linear",
    **{f"input_padding.vectors.{o}": f"multimodal_preprocessor/{t}_padding pos_embs" for o, t in MODALITIES.items()},
    **{f"input_padding.masks.{o}": f"multimodal_preprocessor/{t}_mask_token pos_embs" for o, t in MODALITIES.items()},
    **{f"query_padding.vectors.{o}": f"{QUERIES}/{t}_padding pos_embs" for o, t in MODALITIES.items()},
}


def rename_array(name: str, modules: Mapping[str, str]) -> str:
    """Returns Haiku's name, "module array", of one of our arrays."""
    if match := LAYER.fullmatch(name):
        layer, part, leaf = match.groups()
        norms = {"norm_z": "layer_norm", "norm_h": "layer_norm_2"}
        if layer == "decoder":
            module = f"{modules['decoder']}/cross_attention"
        elif layer.startswith("encoder.cross"):
            module = f"{modules['encoder']}/~/cross_attention"
        else:
            module = f"{modules['encoder']}/~/self_attention" + f"_{layer.split('.')[-1]}".removesuffix("_0")
            norms["norm_h"] = "layer_norm_1"
        return f"{module}/{(LAYER_NAMES | norms)[part]} {rename_leaf(leaf, part.startswith('norm'))}"
    if name == "encoder.latents":
        return f"{modules['encoder']}/~/trainable_position_encoding pos_embs"
    if name in modules:
        return modules[name]
    module, leaf = name.rsplit(".", 1)
    return f"{modules.get(module, module)} {rename_leaf(leaf, module.endswith('norm'))}"


def rename_leaf(leaf: str, is_norm: bool) -> str:
    """Returns Haiku's name of a weight or bias."""
    return {"weight": "scale", "bias": "offset"}[leaf] if is_norm else {"weight": "w", "bias": "b"}[leaf]


def to_torch(array: Any, leaf: str, path: Path) -> Tensor:
    """Copies an array to a tensor; transposes weights of linear layers [in, out] and convolutions [Y, X, in, out]."""
    if not isinstance(array, np.ndarray | np.generic) or array.dtype.kind not in "biuf":
        raise PerceiversError(f"{path} has something other than an array of numbers for {leaf!r}: it is damaged.")
    tensor = torch.tensor(array.astype(array.dtype.newbyteorder("=")))
    if leaf == "w" and tensor.dim() in (2, 4):
        return tensor.T.contiguous() if tensor.dim() == 2 else tensor.permute(3, 2, 0, 1).contiguous()
    return tensor


class Shapes:
    """Sizes of a model, read from the shapes of its arrays (by our names); a missing or damaged one is an error."""

    def __init__(self, path: Path, arrays: Mapping[str, Tensor], modules: Mapping[str, str]) -> None:
        self.path, self.arrays, self.modules = path, arrays, modules

    def __call__(self, name: str) -> torch.Size:
        """Returns the shape of an array."""
        external = rename_array(name, self.modules)
        if external not in self.arrays:
            raise PerceiversError(
                f"{self.path} has no array {external!r}: it is incomplete or belongs to another model."
            )
        shape = self.arrays[external].shape
        if len(shape) < 2 or not all(shape):
            raise PerceiversError(f"{self.path}: the array {external!r} has shape {tuple(shape)}: it is damaged.")
        return shape

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """Returns the shape of an array, with all but the last dimension flattened."""
        *rows, columns = self(name)
        return math.prod(rows), columns

    def out_features(self, layer: str) -> int:
        """Returns the output channels of a linear layer."""
        return self(f"{layer}.weight")[0]

    def in_features(self, layer: str) -> int:
        """Returns the input channels of a linear layer."""
        return self(f"{layer}.weight")[1]

    def backbone_settings(self) -> Settings:
        """Returns the sizes of encoder and processor."""
        latents, channels = self.matrix_shape("encoder.latents")
        prefix = f"{self.modules['encoder']}/~/self_attention"
        layers = {name.removeprefix(prefix).split("/")[0] for name in self.arrays if name.startswith(prefix)}
        cross, layer = "encoder.cross_attentions.0", "encoder.layers.0"
        inputs = self.in_features(f"{cross}.attention.key")
        qk, v = self.out_features(f"{layer}.attention.query"), self.out_features(f"{layer}.attention.value")
        is_default = (qk, v, self.out_features(f"{cross}.attention.query")) == (channels, channels, inputs)
        return {
            "latents": latents,
            "channels": channels,
            "depth": len(layers),
            "widening_factor": self.out_features(f"{layer}.mlp.hidden") // channels,
            "cross_widening_factor": self.out_features(f"{cross}.mlp.hidden") // channels,
            "qk_channels": None if is_default else qk,
            "v_channels": None if is_default else v,
        }


def count_bands(channels: int, dimensions: int) -> int:
    """Returns the number of frequencies of Fourier positions: the inverse of `FourierPositions.channels`."""
    return (channels // dimensions - 1) // 2


def image_settings(shapes: Shapes) -> Settings:
    """Returns the settings of an image classifier."""
    query_channels = shapes("outputs.label.query")[-1]
    settings: Settings = {"classes": shapes.out_features("heads.label"), "query_channels": query_channels}
    inputs = shapes.in_features("encoder.cross_attentions.0.attention.key")
    if shapes.modules is LEARNED:
        size, channels = shapes.matrix_shape("inputs.image.positions.table_SF")
        return settings | {
            "feature_channels": shapes.out_features("inputs.image.features.projection"),
            "positions": "learned",
            "position_channels": channels,
            "image_size": math.isqrt(size),
            "query_residual": False,
        }
    if shapes.modules is CONV:
        features = shapes.out_features("inputs.image.features.convolution")
        bands = count_bands(inputs - features, 2)
        return settings | {"preprocessing": "conv", "feature_channels": features, "bands": bands}
    return settings | {"bands": count_bands(inputs - 3, 2)}


def language_settings(shapes: Shapes) -> Settings:
    """Returns the settings of a language model."""
    vocabulary, channels = shapes.matrix_shape("inputs.text.embedding.weight")
    return {
        "vocabulary": vocabulary,
        "length": shapes("inputs.text.positions.table_SF")[0],
        "embedding_channels": channels,
        "decoder_qk_channels": shapes.out_features("decoder.attention.query"),
        "decoder_v_channels": shapes.out_features("decoder.attention.value"),
    }


def flow_settings(shapes: Shapes) -> Settings:
    """Returns the settings of an optical flow model."""
    features, values = shapes.matrix_shape("inputs.frames.image.features.projection.weight")
    positions = shapes.in_features("encoder.cross_attentions.0.attention.key") - features
    return {"patch_size": math.isqrt(values // 6), "feature_channels": features, "bands": count_bands(positions, 2)}


def autoencoder_settings(shapes: Shapes) -> Settings:
    """Returns the settings of an autoencoder: a modality has the channels of all less those of its padding."""
    inputs = shapes.in_features("encoder.cross_attentions.0.attention.key")
    queries = shapes.in_features("decoder.attention.query")
    video = queries - shapes("query_padding.vectors.video")[-1]
    audio = queries - shapes("query_padding.vectors.audio")[-1]
    pixels = (inputs - shapes("input_padding.vectors.video")[-1] - video) // 3
    return {
        "patch_size": math.isqrt(max(pixels, 1)),
        "video_bands": count_bands(video, 3),
        "samples_per_patch": shapes.out_features("heads.audio"),
        "audio_bands": count_bands(audio, 1),
        "classes": shapes.out_features("heads.label"),
        "label_query_channels": shapes("outputs.label.query")[-1],
        "output_channels": shapes.out_features("projection"),
    }


class PublishedModel(NamedTuple):
    """A published model: how its file is recognized and read."""

    marker: str  # our name of an array that only such files have
    modules: Mapping[str, str]  # Haiku's names of our modules and arrays
    config: type[ModelConfig]
    read_settings: Callable[[Shapes], Settings]  # reads fields of the config from the shapes of the arrays
    size: tuple[int, int, int]  # latents, channels and depth
    not_in_shapes: Settings  # fields of the config that shapes do not determine


classifier = partial(PublishedModel, config=ImageClassifierConfig, read_settings=image_settings, size=(512, 1024, 6))
IMAGE_SETTINGS = {"heads": 8, "num_blocks": 8, "image_size": 224}
AUTOENCODER_SETTINGS = {"heads": 8, "frames": 16, "image_size": (224, 224), "samples_per_frame": 1920}
LANGUAGE_SETTINGS = {"heads": 8, "cross_heads": 8, "decoder_heads": 8}
FLOW_SETTINGS = {"heads": 16, "image_size": (368, 496)}
PUBLISHED = [
    PublishedModel(
        "heads.audio.weight", AUTOENCODER, AutoencoderConfig, autoencoder_settings, (784, 512, 8), AUTOENCODER_SETTINGS
    ),
    classifier("inputs.image.positions.table_SF", LEARNED, not_in_shapes={"heads": 8, "num_blocks": 8}),
    classifier("inputs.image.features.convolution.weight", CONV, not_in_shapes=IMAGE_SETTINGS),
    classifier("outputs.label.query", FOURIER, not_in_shapes=IMAGE_SETTINGS),
    PublishedModel(
        "inputs.text.embedding.weight", LANGUAGE, LanguageConfig, language_settings, (256, 1280, 26), LANGUAGE_SETTINGS
    ),
    PublishedModel(FLOW_PROJECTION, FLOW, OpticalFlowConfig, flow_settings, (2048, 512, 24), FLOW_SETTINGS),
]
"""The first whose marker a file has is taken: the autoencoder has a label query, too, like all classifiers."""


def read_checkpoint(path: Path, given: Mapping[str, Any]) -> ExternalCheckpoint:
    """Reads a checkpoint of the original code; `given`: settings from the user.

    Raises:
        PerceiversError: the file cannot be read, is not of a published model, or a setting must be given.
    """
    contents = read_pickle(path)
    trees = [contents["params"], contents.get("state", {})] if "params" in contents else [contents]
    arrays: dict[str, Tensor] = {}
    total = 0
    if not all(isinstance(tree, dict) for tree in trees):
        raise PerceiversError(f"{path} has no mappings as its params and state: it was not written by Haiku.")
    for module, leaves in (item for tree in trees for item in tree.items()):
        if not isinstance(module, str) or not isinstance(leaves, dict):
            raise PerceiversError(f"{path} has {module!r} without arrays in it: it was not written by Haiku.")
        for leaf, array in leaves.items():
            total += array.nbytes if isinstance(array, np.ndarray) else 0
            if total > path.stat().st_size:  # views that repeat their numbers, or arrays without content
                raise PerceiversError(f"{path} has arrays of more bytes than the file itself: it is damaged.")
            if leaf != "hidden" and not (leaf == "counter" and module.endswith("var_ema")):  # of batch norm
                arrays[f"{module} {leaf}"] = to_torch(array, leaf, path)
    model = next((model for model in PUBLISHED if rename_array(model.marker, model.modules) in arrays), None)
    if model is None:
        raise PerceiversError(
            f"{path} is not one of the published models, which are image classifiers, the byte language model, "
            f"optical flow, and the autoencoder of video, sound and label."
        )
    shapes, modules = Shapes(path, arrays, model.modules), model.modules
    settings = shapes.backbone_settings() | model.read_settings(shapes)
    size = (settings["latents"], settings["channels"], settings["depth"])
    missing = [] if size == model.size else sorted(model.not_in_shapes.keys() - given.keys())
    if missing:
        raise PerceiversError(
            f"{path} does not have the published size, and its shapes do not determine {', '.join(missing)}: "
            f"give these settings, as in {', '.join(f'{name}={model.not_in_shapes[name]}' for name in missing)}."
        )
    settings = model.not_in_shapes | settings
    rename = partial(rename_array, modules=modules)
    return ExternalCheckpoint(path, model.config, settings, arrays, rename, model.not_in_shapes.keys())


class HaikuFormat(Format):
    """Checkpoints of the original code, in files of any name."""

    def recognizes(self, path: Path) -> bool:
        return path.is_file()

    def read(self, path: Path, settings: Mapping[str, Any]) -> Model:
        return build_model(read_checkpoint(path, settings), settings)


HAIKU = HaikuFormat()
