"""Image classifiers, and the rows of the ImageNet table of the paper (section 4.4; tables 5 and 6 of the appendix)."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from perceivers.adapters.image import IMAGENET_MEAN, IMAGENET_STD, ConvStem, ImageInput, Patches
from perceivers.adapters.label import LabelOutput, read_decoder
from perceivers.checks import Count
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.positions import FourierPositions, LearnedPositions, Positions
from perceivers.model.sizes import ModelConfig, Sizes, sizes_of
from perceivers.presets import Preset, make_example


@dataclass(frozen=True, kw_only=True)
class ImageClassifierConfig(ModelConfig, Sizes):
    """Image classification (section 4.4). The defaults are the paper's model with 2D Fourier features.

    Input "image": [B, len(mean), height, width] in [0, 1]; output "label": logits [B, classes].

    Attributes:
        preprocessing: "patches" (of one pixel by default, so pixels) or "conv" (7x7 convolution and pooling).
        patch_size: side of a patch in pixels.
        feature_channels: output channels of the projection of patches, null for none, or of the convolution.
        padding: of the convolution, as in `ConvStem`.
        positions: "fourier" with `bands`, or "learned" with `position_channels`.
        bands: number of frequencies of Fourier positions in each dimension.
        position_channels: channels of learned positions.
        image_size: side, or height and width, of the training images in pixels.
        mean: of each color channel, as in `ImageInput`.
        std: of each color channel.
        crop: kept fraction of the resized side, as in `ImageInput`.
        classes: number of classes.
        class_names: names of the classes, in order.
        decoder: "query" as in Perceiver IO, or "average" as in the first Perceiver.
        query_channels: channels of the query of the label; by default those of the latents.
    """

    latents: Count = 512
    channels: Count = 1024
    depth: Count = 6
    num_blocks: Count = 8
    preprocessing: Literal["patches", "conv"] = "patches"
    patch_size: Count = 1
    feature_channels: Count | None = None
    padding: Literal["same", "transformers"] = "same"
    positions: Literal["fourier", "learned"] = "fourier"
    bands: Count = 64
    position_channels: Count = 256
    image_size: Count | tuple[Count, Count] = 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop: float = 224 / 256
    classes: Count = 1000
    class_names: list[str] | None = None
    decoder: Literal["query", "average"] = "query"
    query_channels: Count | None = None

    def build(self) -> PerceiverIO:
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        features: Patches | ConvStem
        if self.preprocessing == "patches":
            features = Patches(self.patch_size, len(self.mean), self.feature_channels)
        else:
            features = ConvStem(self.feature_channels or 64, len(self.mean), self.padding)
        grid = features.grid(height, width)
        encoding: Positions
        if self.positions == "fourier":
            # transformers pads less, but keeps the frequencies of the larger grid
            is_port = self.preprocessing == "conv" and self.padding == "transformers"
            encoding = FourierPositions(grid, self.bands, ConvStem().grid(height, width) if is_port else None)
        else:
            encoding = LearnedPositions(grid, self.position_channels, projected=True)
        query_channels = (self.query_channels or self.channels) if self.decoder == "query" else None
        return PerceiverIO(
            inputs={"image": ImageInput((height, width), features, encoding, self.mean, self.std, self.crop)},
            outputs={"label": LabelOutput(self.classes, query_channels, self.class_names)},
            **self.sizes(),
        )

    @classmethod
    def from_model(cls, model: nn.Module) -> "ImageClassifierConfig | None":
        if not isinstance(model, PerceiverIO) or (list(model.inputs), list(model.outputs)) != (["image"], ["label"]):
            return None
        images, label = model.inputs["image"], model.outputs["label"]
        if not isinstance(images, ImageInput) or not isinstance(label, LabelOutput) or label.multilabel:
            return None
        features, positions, (mean, std), (height, width) = (
            images.features,
            images.positions,
            images.normalization,
            images.size,
        )
        found = sizes_of(model) | {"mean": mean, "std": std, "crop": images.crop}
        found |= {"image_size": height if height == width else (height, width)}
        found |= {"classes": label.classes, "class_names": label.names}
        found |= read_decoder(label, model.config["channels"])
        if isinstance(features, ConvStem):
            found |= {"preprocessing": "conv", "feature_channels": features.channels, "padding": features.padding}
        else:
            channels = None if features.projection is None else features.channels
            found |= {"patch_size": features.size, "feature_channels": channels}
        if isinstance(positions, FourierPositions):
            found |= {"bands": positions.bands}
        else:
            found |= {"positions": "learned", "position_channels": positions.channels}
        config = cls(**found)
        return config if config.has_inputs_of(model) else None


def imagenet_preset(row: str, paper_parameters: float, paper_flops: float, **settings: Any) -> Preset:
    """Returns a row of the ImageNet table of the paper (section 4.4 and appendix)."""
    inputs = {"image": make_example(3, 224, 224)}
    return Preset("image_classification", row, ImageClassifierConfig(**settings), inputs, paper_parameters, paper_flops)


LEARNED: dict[str, Any] = {"feature_channels": 256, "positions": "learned", "query_residual": False}
CONV: dict[str, Any] = {"preprocessing": "conv", "feature_channels": 64}
CONFIG_B: dict[str, Any] = {"depth": 16, "num_blocks": 1, "widening_factor": 4}
PERCEIVER: dict[str, Any] = {"decoder": "average"}  # the first Perceiver, as the paper reproduces it

IMAGENET_FOURIER = imagenet_preset("Perceiver IO A, 2D Fourier", 48.4e6, 407e9)
IMAGENET_LEARNED = imagenet_preset("Perceiver IO A, learned positions", 62.3e6, 407e9, **LEARNED)
IMAGENET_CONV = imagenet_preset("Perceiver IO A, conv", 48.6e6, 369e9, **CONV)
IMAGENET_FOURIER_B = imagenet_preset("Perceiver IO B, 2D Fourier", 212e6, 213e9, feature_channels=256, **CONFIG_B)
IMAGENET_CONV_B = imagenet_preset("Perceiver IO B, conv", 212e6, 176e9, **CONV, **CONFIG_B)
IMAGENET_FOURIER_PERCEIVER = imagenet_preset("Perceiver, 2D Fourier", 42.1e6, 404e9, **PERCEIVER)
IMAGENET_LEARNED_PERCEIVER = imagenet_preset("Perceiver, learned positions", 55.9e6, 404e9, **(LEARNED | PERCEIVER))
IMAGENET_CONV_PERCEIVER = imagenet_preset("Perceiver, conv", 42.1e6, 367e9, **CONV, **PERCEIVER)
