"""The original code's checkpoints: Haiku parameters in a pickle (`.pystate`, `.pickle`).

Sizes are read from the shapes of the arrays. What shapes do not tell (heads, repetitions of the block, the size of an
image) is known of the published models, and has to be given for any other.
"""

import math
from collections.abc import Callable, Mapping
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
from perceivers.released.conversion import LAYER, Foreign, build
from perceivers.released.unpickling import read_pickle
from perceivers.text.model import LanguageConfig

INNER = {
    "norm_q": "layer_norm",
    "norm_x": "layer_norm_1",
    "attention.query": "attention/linear",
    "attention.key": "attention/linear_1",
    "attention.value": "attention/linear_2",
    "attention.output": "attention/linear_3",
    "mlp.hidden": "mlp/linear",
    "mlp.output": "mlp/linear_1",
}
"""Our names of what a cross-attention consists of, and Haiku's; the last norm has number 2."""

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
AUTOENCODER = {
    "encoder": "encoder",
    "decoder": "multimodal_decoder/~/basic_decoder",
    "projection": "multimodal_decoder/~/basic_decoder/output",
    "outputs.label.query": "classification_decoder/~/basic_decoder/~/trainable_position_encoding pos_embs",
    "heads.video": "projection_postprocessor/linear",
    "heads.audio": "audio_postprocessor/linear",
    "heads.label": "classification_postprocessor/linear",
    **{
        f"{ours}.{modality}": f"multimodal_{theirs.replace('*', published)} pos_embs"
        for modality, published in (("video", "image"), ("audio", "audio"), ("label", "label"))
        for ours, theirs in (
            ("input_padding.vectors", "preprocessor/*_padding"),
            ("input_padding.masks", "preprocessor/*_mask_token"),
            ("query_padding.vectors", "decoder/~decoder_query/*_padding"),
        )
    },
}


Settings = dict[str, Any]


def rename(name: str, modules: Mapping[str, str]) -> str:
    """Haiku's name, "module array", of an array of ours."""
    if match := LAYER.fullmatch(name):
        layer, inner, leaf = match.groups()
        own = {"norm_z": "layer_norm", "norm_h": "layer_norm_2"}
        if layer == "decoder":
            module = f"{modules['decoder']}/cross_attention"
        elif layer.startswith("encoder.cross"):
            module = f"{modules['encoder']}/~/cross_attention"
        else:
            module = f"{modules['encoder']}/~/self_attention" + f"_{layer.split('.')[-1]}".removesuffix("_0")
            own["norm_h"] = "layer_norm_1"
        return f"{module}/{(INNER | own)[inner]} {leaf_name(leaf, inner.startswith('norm'))}"
    if name == "encoder.latents":
        return f"{modules['encoder']}/~/trainable_position_encoding pos_embs"
    if name in modules:
        return modules[name]
    module, leaf = name.rsplit(".", 1)
    return f"{modules.get(module, module)} {leaf_name(leaf, module.endswith('norm'))}"


def leaf_name(leaf: str, norm: bool) -> str:
    """Haiku's name of a weight or bias."""
    return {"weight": "scale", "bias": "offset"}[leaf] if norm else {"weight": "w", "bias": "b"}[leaf]


def to_torch(array: Any, leaf: str, path: Path) -> Tensor:
    """A copy as a tensor; the weights of linear layers, [in, out], and of convolutions, [Y, X, in, out], are turned."""
    if not isinstance(array, np.ndarray | np.generic) or array.dtype.kind not in "biuf":
        raise PerceiversError(f"{path} has something else than an array of numbers for {leaf!r}: it is damaged.")
    tensor = torch.tensor(array.astype(array.dtype.newbyteorder("=")))
    if leaf == "w" and tensor.dim() in (2, 4):
        return tensor.T.contiguous() if tensor.dim() == 2 else tensor.permute(3, 2, 0, 1).contiguous()
    return tensor


class Shapes:
    """Sizes of a model, read from the shapes of its arrays (by our names).

    Raises:
        PerceiversError: an array whose shape is needed is missing, or its shape tells no sizes.
    """

    def __init__(self, path: Path, arrays: Mapping[str, Tensor], modules: Mapping[str, str]) -> None:
        self.path, self.arrays, self.modules = path, arrays, modules

    def __call__(self, name: str) -> torch.Size:
        """The shape of an array."""
        theirs = rename(name, self.modules)
        if theirs not in self.arrays:
            raise PerceiversError(f"{self.path} has no array {theirs!r}: it is incomplete or of another model.")
        shape = self.arrays[theirs].shape
        if len(shape) < 2 or not all(shape):
            raise PerceiversError(f"{self.path}: the array {theirs!r} has shape {tuple(shape)}: it is damaged.")
        return shape

    def table(self, name: str) -> tuple[int, int]:
        """Rows and columns of an array."""
        *rows, columns = self(name)
        return math.prod(rows), columns

    def out(self, layer: str) -> int:
        """Channels that a linear layer gives."""
        return self(f"{layer}.weight")[0]

    def into(self, layer: str) -> int:
        """Channels that a linear layer takes."""
        return self(f"{layer}.weight")[1]

    def bands(self, channels: int, dimensions: int) -> int:
        """Frequencies of Fourier positions with so many channels: the inverse of `FourierPositions.channels`."""
        return (channels // dimensions - 1) // 2

    def trunk(self) -> Settings:
        """Sizes of encoder and processor."""
        latents, channels = self.table("encoder.latents")
        stem = f"{self.modules['encoder']}/~/self_attention"
        layers = {name.removeprefix(stem).split("/")[0] for name in self.arrays if name.startswith(stem)}
        cross, own = "encoder.cross_attentions.0", "encoder.layers.0"
        inputs = self.into(f"{cross}.attention.key")
        qk, v = self.out(f"{own}.attention.query"), self.out(f"{own}.attention.value")
        by_default = (qk, v, self.out(f"{cross}.attention.query")) == (channels, channels, inputs)
        return {
            "latents": latents,
            "channels": channels,
            "depth": len(layers),
            "widening_factor": self.out(f"{own}.mlp.hidden") // channels,
            "cross_widening_factor": self.out(f"{cross}.mlp.hidden") // channels,
            "qk_channels": None if by_default else qk,
            "v_channels": None if by_default else v,
        }


def image_settings(shapes: Shapes) -> Settings:
    """Settings of an image classifier."""
    settings: Settings = {"classes": shapes.out("heads.label"), "query_channels": shapes("outputs.label.query")[-1]}
    inputs = shapes.into("encoder.cross_attentions.0.attention.key")
    if shapes.modules is LEARNED:
        size, channels = shapes.table("inputs.image.positions.table_SF")
        return settings | {
            "feature_channels": shapes.out("inputs.image.features.projection"),
            "positions": "learned",
            "position_channels": channels,
            "image_size": math.isqrt(size),
            "query_residual": False,
        }
    if shapes.modules is CONV:
        features = shapes.out("inputs.image.features.convolution")
        settings |= {"preprocessing": "conv", "feature_channels": features}
        return settings | {"bands": shapes.bands(inputs - features, 2)}
    return settings | {"bands": shapes.bands(inputs - 3, 2)}


def language_settings(shapes: Shapes) -> Settings:
    """Settings of a language model."""
    vocabulary, channels = shapes.table("inputs.text.embedding.weight")
    return {
        "vocabulary": vocabulary,
        "length": shapes("inputs.text.positions.table_SF")[0],
        "embedding_channels": channels,
        "decoder_qk_channels": shapes.out("decoder.attention.query"),
        "decoder_v_channels": shapes.out("decoder.attention.value"),
    }


def flow_settings(shapes: Shapes) -> Settings:
    """Settings of an optical flow model."""
    features, values = shapes.table("inputs.frames.image.features.projection.weight")
    positions = shapes.into("encoder.cross_attentions.0.attention.key") - features
    return {
        "patch_size": math.isqrt(values // 6),
        "feature_channels": features,
        "bands": shapes.bands(positions, 2),
    }


def autoencoder_settings(shapes: Shapes) -> Settings:
    """Settings of an autoencoder: channels of a modality are those of all less those of its padding."""
    inputs = shapes.into("encoder.cross_attentions.0.attention.key")
    queries = shapes.into("decoder.attention.query")
    video = queries - shapes("query_padding.vectors.video")[-1]
    audio = queries - shapes("query_padding.vectors.audio")[-1]
    pixels = (inputs - shapes("input_padding.vectors.video")[-1] - video) // 3
    return {
        "patch_size": math.isqrt(max(pixels, 1)),
        "video_bands": shapes.bands(video, 3),
        "samples_per_patch": shapes.out("heads.audio"),
        "audio_bands": shapes.bands(audio, 1),
        "classes": shapes.out("heads.label"),
        "label_query_channels": shapes("outputs.label.query")[-1],
        "output_channels": shapes.out("projection"),
    }


class Kind(NamedTuple):
    """A published model: how a file of its kind is recognised and read.

    Attributes:
        marker: an array that only such files have.
        modules: Haiku's names of our modules and arrays.
        config: the class of the model's config.
        settings: reads its fields from the shapes of the arrays.
        size: latents, channels and depth of the published model.
        untold: settings of the published model that shapes do not tell.
    """

    marker: str
    modules: Mapping[str, str]
    config: type[ModelConfig]
    settings: Callable[[Shapes], Settings]
    size: tuple[int, int, int]
    untold: Settings


IMAGENET = (512, 1024, 6)
CLASSIFIER = {"heads": 8, "num_blocks": 8}
KINDS = [
    Kind(
        f"{AUTOENCODER['heads.audio']} w",
        AUTOENCODER,
        AutoencoderConfig,
        autoencoder_settings,
        (784, 512, 8),
        {"heads": 8, "frames": 16, "image_size": (224, 224), "samples_per_frame": 1920},
    ),
    Kind(
        LEARNED["inputs.image.positions.table_SF"], LEARNED, ImageClassifierConfig, image_settings, IMAGENET, CLASSIFIER
    ),
    Kind(
        f"{CONV['inputs.image.features.convolution']} w",
        CONV,
        ImageClassifierConfig,
        image_settings,
        IMAGENET,
        CLASSIFIER | {"image_size": 224},
    ),
    Kind(
        FOURIER["outputs.label.query"],
        FOURIER,
        ImageClassifierConfig,
        image_settings,
        IMAGENET,
        CLASSIFIER | {"image_size": 224},
    ),
    Kind(
        LANGUAGE["inputs.text.embedding.weight"],
        LANGUAGE,
        LanguageConfig,
        language_settings,
        (256, 1280, 26),
        {"heads": 8, "cross_heads": 8, "decoder_heads": 8},
    ),
    Kind(
        f"{FLOW['inputs.frames.image.features.projection']} w",
        FLOW,
        OpticalFlowConfig,
        flow_settings,
        (2048, 512, 24),
        {"heads": 16, "image_size": (368, 496)},
    ),
]
"""The autoencoder stands before the classifiers, whose label query it has too; of these, Fourier has no other mark."""


def read(path: Path, given: Mapping[str, Any]) -> Foreign:
    """Reads a checkpoint of the original code.

    Args:
        path: the pickle.
        given: settings that the user gives.

    Raises:
        PerceiversError: the file cannot be read, is of no model that was published, or does not tell a size.
    """
    contents = read_pickle(path)
    trees = [contents["params"], contents.get("state", {})] if "params" in contents else [contents]
    arrays: dict[str, Tensor] = {}
    if not all(isinstance(tree, dict) for tree in trees):
        raise PerceiversError(f"{path} has no mappings as its params and state: it was not written by Haiku.")
    for tree in trees:
        for module, leaves in tree.items():
            if not isinstance(module, str) or not isinstance(leaves, dict):
                raise PerceiversError(f"{path} has {module!r} without arrays in it: it was not written by Haiku.")
            for leaf, array in leaves.items():
                if leaf != "hidden" and not (leaf == "counter" and module.endswith("var_ema")):  # of batch norm
                    arrays[f"{module} {leaf}"] = to_torch(array, leaf, path)
    kind = next((kind for kind in KINDS if kind.marker in arrays), None)
    if kind is None:
        raise PerceiversError(
            f"{path} is of none of the published models: they are classifiers of images, the byte language model, "
            f"optical flow, and the autoencoder of video, sound and label."
        )
    shapes = Shapes(path, arrays, kind.modules)
    settings = shapes.trunk() | kind.settings(shapes)
    size = (settings["latents"], settings["channels"], settings["depth"])
    missing = [] if size == kind.size else sorted(kind.untold.keys() - given.keys())
    if missing:
        raise PerceiversError(
            f"{path} is not of the published size, and its arrays do not tell {', '.join(missing)}: "
            f"give these settings, as in {', '.join(f'{name}={kind.untold[name]}' for name in missing)}."
        )
    return Foreign(path, kind.config, kind.untold | settings, arrays, lambda name: rename(name, kind.modules))


class HaikuFormat(Format):
    """The original code's checkpoints, files of any name."""

    def recognizes(self, path: Path) -> bool:
        return path.is_file()

    def read(self, path: Path, settings: Mapping[str, Any]) -> Model:
        return build(read(path, settings), settings)


HAIKU = HaikuFormat()
