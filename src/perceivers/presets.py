"""Every configuration of the paper by name, with the paper's figures; its parameters and FLOPs can be asked for.

perceivers.list_models()
perceivers.create_model("imagenet_fourier", classes=10)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from perceivers.adapters.image import IMAGENET_MEAN, IMAGENET_STD, ConvStem, ImageInput, Patches
from perceivers.adapters.label import LabelOutput
from perceivers.model.attention import Gelu
from perceivers.model.config import call
from perceivers.model.errors import PerceiversError, nearest
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.positions import FourierPositions, LearnedPositions, Positions


def image_classifier(
    *,
    preprocessing: Literal["patches", "conv"] = "patches",
    patch_size: int = 1,
    feature_channels: int | None = None,
    positions: Literal["fourier", "learned"] = "fourier",
    bands: int = 64,
    position_channels: int = 256,
    image_size: int | Sequence[int] = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop: float = 224 / 256,
    classes: int = 1000,
    class_names: list[str] | None = None,
    latents: int = 512,
    channels: int = 1024,
    depth: int = 6,
    blocks: int = 8,
    heads: int = 8,
    widening: int = 1,
    cross_attends: int = 1,
    share_cross_attention: bool = True,
    decoder: Literal["query", "average"] = "query",
    query_channels: int = 1024,
    query_residual: bool = True,
    dropout: float = 0.0,
    gelu: Gelu = "tanh",
    checkpointing: bool = False,
) -> PerceiverIO:
    """Image classification (section 6; table 6 of the appendix). The defaults are the paper's 2D Fourier model.

    Input "image": [B, len(mean), height, width] in [0, 1]; output "label": logits [B, classes].

    Args:
        preprocessing: "patches" (of one pixel by default, so pixels) or "conv" (7x7 convolution and pooling).
        patch_size: side of a patch in pixels.
        feature_channels: channels to which patches are projected (not at all, if not given) or the convolution gives.
        positions: "fourier" with `bands` frequencies per dimension, or "learned" with `position_channels`.
        image_size: side, or height and width, of the training images in pixels.
        mean, std, crop: as in `ImageInput`.
        classes, class_names: as in `LabelOutput`.
        decoder: "query" as in Perceiver IO, or "average" as in the first Perceiver.
        query_channels: channels of the label's query.
        The others are those of `PerceiverIO`.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    features: Patches | ConvStem
    if preprocessing == "patches":
        features = Patches(patch_size, len(mean), feature_channels)
    elif preprocessing == "conv":
        features = ConvStem(feature_channels or 64, len(mean))
    else:
        raise PerceiversError(f"preprocessing = {preprocessing!r} is not allowed: it is 'patches' or 'conv'.")
    encoding: Positions
    grid = features.grid(height, width)
    if positions == "fourier":
        encoding = FourierPositions(grid, bands)
    elif positions == "learned":
        encoding = LearnedPositions(grid, position_channels, projected=True)
    else:
        raise PerceiversError(f"positions = {positions!r} is not allowed: it is 'fourier' or 'learned'.")
    if decoder not in ("query", "average"):
        raise PerceiversError(f"decoder = {decoder!r} is not allowed: it is 'query' or 'average'.")
    return PerceiverIO(
        inputs={"image": ImageInput((height, width), features, encoding, mean, std, crop)},
        outputs={"label": LabelOutput(classes, query_channels if decoder == "query" else None, class_names)},
        latents=latents,
        channels=channels,
        depth=depth,
        blocks=blocks,
        heads=heads,
        widening=widening,
        cross_attends=cross_attends,
        share_cross_attention=share_cross_attention,
        query_residual=query_residual,
        dropout=dropout,
        gelu=gelu,
        checkpointing=checkpointing,
    )


@dataclass(frozen=True)
class Preset:
    """A configuration of the paper.

    Attributes:
        experiment: the paper's experiment.
        row: what the paper calls it.
        build: makes the model from `settings`, any of which can be overridden.
        inputs: what one forward pass is measured on, without the batch: shape by input name.
        paper_parameters, paper_flops: the paper's figures, FLOPs of one example.
    """

    experiment: str
    row: str
    build: Callable[..., PerceiverIO]
    settings: dict[str, Any]
    inputs: dict[str, tuple[int, ...]]
    paper_parameters: float
    paper_flops: float


def imagenet(row: str, paper_parameters: float, paper_flops: float, **settings: Any) -> Preset:
    """A row of the paper's ImageNet table (section 4.4 and appendix)."""
    inputs: dict[str, tuple[int, ...]] = {"image": (3, 224, 224)}
    return Preset("image_classification", row, image_classifier, settings, inputs, paper_parameters, paper_flops)


LEARNED = {"feature_channels": 256, "positions": "learned", "query_residual": False}
CONV = {"preprocessing": "conv", "feature_channels": 64}
LARGE = {"depth": 16, "blocks": 1, "widening": 4}  # configuration B
FIRST = {"decoder": "average"}  # the first Perceiver, in the paper's reproduction: one cross-attention

PRESETS = {
    "imagenet_fourier": imagenet("Perceiver IO A, 2D Fourier", 48.4e6, 407e9),
    "imagenet_learned": imagenet("Perceiver IO A, learned positions", 62.3e6, 407e9, **LEARNED),
    "imagenet_conv": imagenet("Perceiver IO A, conv", 48.6e6, 369e9, **CONV),
    "imagenet_fourier_b": imagenet("Perceiver IO B, 2D Fourier", 212e6, 213e9, feature_channels=256, **LARGE),
    "imagenet_conv_b": imagenet("Perceiver IO B, conv", 212e6, 176e9, **CONV, **LARGE),
    "imagenet_fourier_perceiver": imagenet("Perceiver, 2D Fourier", 42.1e6, 404e9, **FIRST),
    "imagenet_learned_perceiver": imagenet("Perceiver, learned positions", 55.9e6, 404e9, **(LEARNED | FIRST)),
    "imagenet_conv_perceiver": imagenet("Perceiver, conv", 42.1e6, 367e9, **CONV, **FIRST),
}


def list_models() -> list[str]:
    """Names that `create_model` takes."""
    return list(PRESETS)


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        PerceiversError: there is none.
    """
    if name not in PRESETS:
        raise PerceiversError(f"there is no model {name!r}: {nearest(name, PRESETS)}")
    return PRESETS[name]


def create_model(name: str, **overrides: Any) -> PerceiverIO:
    """Builds a model of the paper with fresh weights.

    Args:
        name: one of `list_models()`.
        overrides: settings to change, such as `classes=10`; what there is stands at the preset's `build` function.

    Raises:
        PerceiversError: there is no such model or setting, or the setting cannot have that value.
    """
    chosen = preset(name)
    return call(chosen.build, chosen.settings | overrides)


@dataclass(frozen=True)
class Size:
    """What a model costs: number of parameters, and FLOPs of a forward pass (a multiply and an add are two)."""

    parameters: int
    flops: int


def measure(model: Callable[[], PerceiverIO], inputs: dict[str, tuple[int, ...]]) -> Size:
    """Counts parameters, and FLOPs of a forward pass of one example, without computing either (on the meta device).

    Args:
        model: builds the model.
        inputs: shape of each input, without the batch.
    """
    with torch.device("meta"):
        meta_model = model().eval().requires_grad_(False)
        data = {name: torch.empty(1, *shape) for name, shape in inputs.items()}
        with FlopCounterMode(display=False) as counter:
            meta_model(data, max_memory=None)
    return Size(sum(parameter.numel() for parameter in meta_model.parameters()), counter.get_total_flops())
