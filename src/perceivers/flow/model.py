"""Models of optical flow, and the rows of the paper's table and of its ablation (section 4.2 and appendix H)."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from perceivers.adapters.image import ConvStem, Patches
from perceivers.checks import Count
from perceivers.flow.adapter import FlowOutput, FramePairInput
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.positions import FourierPositions
from perceivers.model.sizes import ModelConfig, Sizes, sizes_of
from perceivers.presets import Preset, make_example


@dataclass(frozen=True, kw_only=True)
class OpticalFlowConfig(ModelConfig, Sizes):
    """Optical flow (section 4.2; its ablation in the appendix). The defaults are the released model.

    Input "frames": [B, 2, 3, height, width] in [0, 1]; output "flow": [B, 2, height, width] in pixels, to the right
    and down.

    Attributes:
        image_size: height and width of the training frames in pixels.
        frames: one image of six colors ("concatenated") or each frame by itself ("separate"), see `FramePairInput`.
        downsampling: "none": an element for the patch around every pixel; "conv": a 7x7 convolution and pooling to a
            quarter of each side, and flow that is upsampled from there.
        patch_size: side of the patch around a pixel, without downsampling.
        feature_channels: channels of a projected patch, or of the convolution's output.
        bands: frequencies of the Fourier positions in each dimension.
        scale: pixels of flow for a 1 of the last layer.
    """

    latents: Count = 2048
    channels: Count = 512
    depth: Count = 24
    heads: Count = 16
    query_residual: bool = False
    image_size: tuple[Count, Count] = (368, 496)
    frames: Literal["concatenated", "separate"] = "concatenated"
    downsampling: Literal["none", "conv"] = "none"
    patch_size: Count = 3
    feature_channels: Count = 64
    bands: Count = 64
    scale: float = 0.2

    def build(self) -> PerceiverIO:
        separate = self.frames == "separate"
        colors = 3 if separate else 6
        features: Patches | ConvStem
        if self.downsampling == "none":
            features = Patches(self.patch_size, colors, self.feature_channels, overlapping=True)
        else:
            features = ConvStem(self.feature_channels, colors)
        grid = features.grid(*self.image_size)
        positions = FourierPositions((2, *grid) if separate else grid, self.bands)
        upsampling = 4 if self.downsampling == "conv" else None
        return PerceiverIO(
            inputs={"frames": FramePairInput(self.image_size, features, positions, self.frames)},
            outputs={"flow": FlowOutput("frames", self.scale, upsampling)},
            **self.sizes(),
        )

    @classmethod
    def from_model(cls, model: nn.Module) -> "OpticalFlowConfig | None":
        if not isinstance(model, PerceiverIO) or (list(model.inputs), list(model.outputs)) != (["frames"], ["flow"]):
            return None
        frames, flow = model.inputs["frames"], model.outputs["flow"]
        if not isinstance(frames, FramePairInput) or not isinstance(flow, FlowOutput):
            return None
        features, positions = frames.image.features, frames.image.positions
        if not isinstance(positions, FourierPositions):
            return None
        patches = {"patch_size": features.size} if isinstance(features, Patches) else {"downsampling": "conv"}
        config = cls(
            image_size=frames.size,
            frames="separate" if frames.separate else "concatenated",
            feature_channels=features.channels,
            bands=positions.bands,
            scale=flow.scale,
            **(sizes_of(model) | patches),
        )
        return config if config.has_inputs_of(model) else None


def make_preset(
    variant: str, paper_parameters: float | None = None, paper_flops: float | None = None, **settings: Any
) -> Preset:
    """Returns a row of the paper's optical flow table (section 4.2) or of its ablation (appendix)."""
    row, inputs = f"Perceiver IO, {variant}", {"frames": make_example(2, 3, 368, 496)}
    return Preset("optical_flow", row, OpticalFlowConfig(**settings), inputs, paper_parameters, paper_flops)


OPTICAL_FLOW = make_preset("3x3, concatenated", 27.9e6, 987e9)
OPTICAL_FLOW_SEPARATE = make_preset("3x3, separate", frames="separate")
OPTICAL_FLOW_1X1 = make_preset("1x1, concatenated", patch_size=1)
OPTICAL_FLOW_1X1_SEPARATE = make_preset("1x1, separate", patch_size=1, frames="separate")
OPTICAL_FLOW_CONV = make_preset("conv, concatenated", downsampling="conv")
OPTICAL_FLOW_CONV_SEPARATE = make_preset("conv, separate", downsampling="conv", frames="separate")
OPTICAL_FLOW_LIGHT = make_preset("conv, concatenated, 16 layers", downsampling="conv", depth=16, latents=1024)
