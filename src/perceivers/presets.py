"""Every configuration of the paper by name, with the paper's figures; its parameters and FLOPs can be asked for.

perceivers.list_models()
perceivers.create_model("imagenet_fourier", classes=10)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from perceivers.errors import PerceiversError, nearest
from perceivers.model.attention import compute_as_written
from perceivers.model.config import call
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.tasks import autoencoder, clip_classifier, image_classifier, language_model, optical_flow
from perceivers.text.bert import BERT


@dataclass(frozen=True)
class Preset:
    """A configuration of the paper.

    Attributes:
        experiment: the paper's experiment.
        row: what the paper calls it.
        build: makes the model from `settings`, any of which can be overridden.
        inputs: what one forward pass is measured on, by input name: one example, on the meta device.
        outputs: what it decodes, as in `PerceiverIO.decode`.
        paper_parameters, paper_flops: the paper's figures, FLOPs of one example; None where it gives none.
    """

    experiment: str
    row: str
    build: Callable[..., PerceiverIO | BERT]
    settings: dict[str, Any]
    inputs: dict[str, Tensor]
    paper_parameters: float | None = None
    paper_flops: float | None = None
    outputs: dict[str, Tensor | None] | None = None


def example(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """An input of one example, without data."""
    return torch.empty(1, *shape, dtype=dtype, device="meta")


def imagenet(row: str, paper_parameters: float, paper_flops: float, **settings: Any) -> Preset:
    """A row of the paper's ImageNet table (section 4.4 and appendix)."""
    inputs = {"image": example(3, 224, 224)}
    return Preset("image_classification", row, image_classifier, settings, inputs, paper_parameters, paper_flops)


def language(
    row: str,
    paper_parameters: float,
    paper_flops: float,
    build: Callable[..., PerceiverIO | BERT] = language_model,
    **settings: Any,
) -> Preset:
    """A row of the paper's language table (section 4.1)."""
    inputs = {"text": example(settings.get("length", 2048), dtype=torch.long)}
    return Preset("language", row, build, settings, inputs, paper_parameters, paper_flops)


def flow(
    variant: str, paper_parameters: float | None = None, paper_flops: float | None = None, **settings: Any
) -> Preset:
    """A row of the paper's optical flow table (section 4.2) and of its ablation (appendix)."""
    row, inputs = f"Perceiver IO, {variant}", {"frames": example(2, 3, 368, 496)}
    return Preset("optical_flow", row, optical_flow, settings, inputs, paper_parameters, paper_flops)


def kinetics(row: str, **settings: Any) -> Preset:
    """A row of the paper's autoencoding table (section 4.3); decoded is what a training step decodes."""
    label = example(dtype=torch.long)
    inputs = {"video": example(16, 3, 224, 224), "audio": example(16 * 1920), "label": label}
    points = torch.empty(512, dtype=torch.long, device="meta")
    outputs = {"video": points, "audio": points, "label": None}
    return Preset("autoencoding", row, autoencoder, settings, inputs, 20.0e6, 310e9, outputs)


def audioset(row: str, paper_parameters: float, paper_flops: float, **settings: Any) -> Preset:
    """A row of the paper's AudioSet table (section 4.6 and appendix)."""
    inputs = {"video": example(32, 3, 224, 224), "audio": example(61440)}
    return Preset("clip_classification", row, clip_classifier, settings, inputs, paper_parameters, paper_flops)


LEARNED = {"feature_channels": 256, "positions": "learned", "query_residual": False}
CONV = {"preprocessing": "conv", "feature_channels": 64}
LARGE = {"depth": 16, "blocks": 1, "widening": 4}  # configuration B
FIRST = {"decoder": "average"}  # the first Perceiver, in the paper's reproduction: one cross-attention
MEL = {"sound": "mel", "audio_bands": 64}  # 120 spectra of 40 bands are the paper's 4,800 elements
BYTE_BERT = {"vocabulary": 262, "length": 2048, "channels": 512, "depth": 6, "heads": 8}

PRESETS = {
    "imagenet_fourier": imagenet("Perceiver IO A, 2D Fourier", 48.4e6, 407e9),
    "imagenet_learned": imagenet("Perceiver IO A, learned positions", 62.3e6, 407e9, **LEARNED),
    "imagenet_conv": imagenet("Perceiver IO A, conv", 48.6e6, 369e9, **CONV),
    "imagenet_fourier_b": imagenet("Perceiver IO B, 2D Fourier", 212e6, 213e9, feature_channels=256, **LARGE),
    "imagenet_conv_b": imagenet("Perceiver IO B, conv", 212e6, 176e9, **CONV, **LARGE),
    "imagenet_fourier_perceiver": imagenet("Perceiver, 2D Fourier", 42.1e6, 404e9, **FIRST),
    "imagenet_learned_perceiver": imagenet("Perceiver, learned positions", 55.9e6, 404e9, **(LEARNED | FIRST)),
    "imagenet_conv_perceiver": imagenet("Perceiver, conv", 42.1e6, 367e9, **CONV, **FIRST),
    "language_bytes": language("Perceiver IO, bytes", 201e6, 113e9),
    "language_bytes_plus": language("Perceiver IO++, bytes", 425e6, 241e9, depth=40, channels=1536, v_channels=1536),
    "language_sentencepiece": language("Perceiver IO Base", 223e6, 119e9, vocabulary=32000, length=512),
    "bert_base": language("BERT Base", 110e6, 109e9, BERT, vocabulary=32000, length=512),
    "bert_bytes": language("BERT, bytes, FLOPs matched", 20e6, 130e9, BERT, **BYTE_BERT),
    "optical_flow": flow("3x3, concatenated", 27.9e6, 987e9),
    "optical_flow_separate": flow("3x3, separate", frames="separate"),
    "optical_flow_1x1": flow("1x1, concatenated", patch_size=1),
    "optical_flow_1x1_separate": flow("1x1, separate", patch_size=1, frames="separate"),
    "optical_flow_conv": flow("conv, concatenated", downsampling="conv"),
    "optical_flow_conv_separate": flow("conv, separate", downsampling="conv", frames="separate"),
    "optical_flow_light": flow("conv, concatenated, 16 layers", downsampling="conv", depth=16, latents=1024),
    "autoencoder_88x": kinetics("compression 88x", latents=784),
    "autoencoder_176x": kinetics("compression 176x", latents=392),
    "autoencoder_352x": kinetics("compression 352x", latents=196),
    "audioset_raw_perceiver": audioset("Perceiver, raw audio + video", 21.0e6, 52.3e9, **FIRST),
    "audioset_raw": audioset("Perceiver IO, raw audio + video", 25.0e6, 52.9e9),
    "audioset_mel_perceiver": audioset("Perceiver, mel + video", 21.0e6, 60.7e9, **MEL, **FIRST),
    "audioset_mel": audioset("Perceiver IO, mel + video", 88.2e6, 129.5e9, **MEL, channels=1024),
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


def create_model(name: str, **overrides: Any) -> PerceiverIO | BERT:
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


def measure(
    model: Callable[[], PerceiverIO | BERT],
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor | None] | None = None,
) -> Size:
    """Counts parameters, and FLOPs of a forward pass of one example, without computing either (on the meta device).

    FLOPs are those of the formulas as written, as the paper counts them, not what rearranging saves.

    Args:
        model: builds the model.
        inputs: what is encoded, by input name, on the meta device.
        outputs: what is decoded, as in `PerceiverIO.decode`.
    """
    with torch.device("meta"):
        meta_model = model().eval().requires_grad_(False)
        compute_as_written(meta_model)
        with FlopCounterMode(display=False) as counter:
            meta_model(inputs, outputs)
    return Size(sum(parameter.numel() for parameter in meta_model.parameters()), counter.get_total_flops())
