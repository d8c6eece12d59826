"""Resamplers: any number of features in, a fixed number of tokens out (Alayrac et al., 2022, "Flamingo", section 2.1).

Every layer is a cross-attention of the latents to the inputs. The usual place of one is between an encoder of images,
video or sound and a language or diffusion model.

Shape suffixes:
    B batch, M inputs, C input channels, N latents, D latent channels, E output channels, T media, F frames
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.checks import Count, Range, check_field, describe_expected, matches
from perceivers.errors import PerceiversError
from perceivers.model import kernels
from perceivers.model.adapter import InputArray, read_array
from perceivers.model.attention import MLP, Attention
from perceivers.model.config import read_annotations
from perceivers.model.eager import is_eager
from perceivers.model.linear import Activation, Linear, trunc_normal_parameter
from perceivers.model.masks import drop_trivial_mask
from perceivers.model.saving import Model
from perceivers.resampler_weights import AURORA, IDEFICS2, IP_ADAPTER, OPEN_FLAMINGO, ExternalWeights, Weights


class ResamplerLayer(nn.Module):
    """Latents attend to the inputs, then pass through an MLP.

    Args:
        attention: of latents to inputs.
        mlp: of the latents.
        norm: makes a norm of a number of channels.
        post_norm: whether results are normalized, before they are added, instead of what attention and MLP take.
        attend_to_latents, query_residual: as in `Resampler`.
    """

    def __init__(
        self,
        attention: Attention,
        mlp: MLP,
        norm: Callable[[int], nn.Module],
        post_norm: bool,
        attend_to_latents: bool,
        query_residual: bool,
    ) -> None:
        super().__init__()
        self.attend_to_latents = attend_to_latents
        self.query_residual = query_residual
        channels, input_channels = attention.query.in_features, attention.key.in_features
        before, after = (nn.Identity, norm) if post_norm else (norm, nn.Identity)
        self.norm_z, self.norm_x = before(channels), before(input_channels)
        self.attention = attention
        self.norm_a = after(channels)
        self.norm_h = before(channels)
        self.mlp = mlp
        self.norm_m = after(channels)

    def forward(self, z_BND: Tensor, x_BMC: Tensor, mask_BM: Tensor | None) -> Tensor:
        """[B, N, D], [B, M, C] -> [B, N, D]; `mask_BM` is True for real inputs."""
        q_BND, x_BMC = self.norm_z(z_BND), self.norm_x(x_BMC)
        if self.attend_to_latents:
            x_BMC = torch.cat([x_BMC, q_BND], 1)
            mask_BM = None if mask_BM is None else F.pad(mask_BM, (0, q_BND.shape[1]), value=True)
        a_BND = self.norm_a(self.attention(q_BND, x_BMC, mask_BM))
        h_BND = z_BND + a_BND if self.query_residual else a_BND
        return h_BND + self.norm_m(self.mlp(self.norm_h(h_BND)))


class Resampler(Model):
    """Turns any number of features into a fixed number of tokens: those of its latents.

    Args:
        input_channels: C.
        channels: D.
        latents: N, number of learned latents; None if the caller gives latents.
        depth: number of layers.
        heads: heads of the queries.
        output_channels: E, to which a linear layer projects the latents in the end; None for no layer, and E = D.
        head_channels: channels of a head; `channels / heads` by default.
        kv_heads: heads of keys and values, each for `heads / kv_heads` heads of queries; `heads` by default.
        widening_factor: hidden width of the MLPs, as a multiple of the channels.
        activation: of the MLPs.
        gated: whether the MLPs are gated.
        mlp_bias: whether the MLPs have biases; attention has none.
        norm: RMS norm or layer norm.
        norm_eps: what the norms add to the variance.
        post_norm: whether the results of attention and MLP are normalized, instead of what they take. Otherwise, the
            tokens are normalized in the end.
        qk_norm_layers: number of layers, from the first, whose queries and keys are normalized.
        attend_to_latents: whether latents attend to the latents beside the inputs.
        query_residual: whether the latents are added to what they read.
        project_inputs: whether a linear layer projects inputs to D channels before the first layer.
        positions: number of learned positions, which are added to the inputs: the largest M; None for a set of inputs.
        pooled_latents: number of further latents, made of the mean of the inputs; they stand before the others.

    Raises:
        PerceiversError: an argument has the wrong type or is out of range, `heads` does not divide the channels, or
            latents attend to each other beside inputs of other channels.

    Examples:
        >>> import torch
        >>> resampler = Resampler(input_channels=64, channels=32, latents=16, depth=2, heads=4, output_channels=48)
        >>> resampler(torch.randn(2, 257, 64)).shape
        torch.Size([2, 16, 48])
    """

    def __init__(
        self,
        input_channels: Count,
        channels: Count,
        latents: Count | None = 64,
        depth: Count = 3,
        heads: Count = 8,
        output_channels: Count | None = None,
        *,
        head_channels: Count | None = None,
        kv_heads: Count | None = None,
        widening_factor: Count = 4,
        activation: Activation = "silu",
        gated: bool = True,
        mlp_bias: bool = False,
        norm: Literal["rms", "layer"] = "rms",
        norm_eps: Annotated[float, Range(above=0)] = 1e-6,
        post_norm: bool = False,
        qk_norm_layers: Annotated[int, Range(least=0)] = 0,
        attend_to_latents: bool = True,
        query_residual: bool = True,
        project_inputs: bool = True,
        positions: Count | None = None,
        pooled_latents: Annotated[int, Range(least=0)] = 0,
    ) -> None:
        check_arguments(Resampler, locals())
        width = channels if project_inputs else input_channels
        if attend_to_latents and width != channels:
            raise PerceiversError(
                f"latents of channels = {channels} cannot be attended to beside inputs of input_channels = "
                f"{input_channels}: set project_inputs = True, or attend_to_latents = False."
            )
        super().__init__()
        self.input_channels, self.channels = input_channels, channels
        make_norm: Callable[[int], nn.Module] = partial(nn.RMSNorm if norm == "rms" else nn.LayerNorm, eps=norm_eps)
        self.position_MC = None if positions is None else normal_parameter(positions, input_channels)
        self.input_projection = Linear(input_channels, channels) if project_inputs else nn.Identity()
        self.latents_ND = None if latents is None else trunc_normal_parameter(latents, channels)
        self.pool = None
        if pooled_latents:
            self.pool = nn.Sequential(make_norm(width), Linear(width, pooled_latents * channels))
        qk_channels = channels if head_channels is None else heads * head_channels
        sizes: dict[str, Any] = {"kv_heads": kv_heads, "bias": False, "output_bias": False}
        self.layers = nn.ModuleList(
            ResamplerLayer(
                Attention(channels, width, heads, qk_channels, qk_norm=layer < qk_norm_layers, **sizes),
                MLP(channels, widening_factor, activation, gated, mlp_bias),
                make_norm,
                post_norm,
                attend_to_latents,
                query_residual,
            )
            for layer in range(depth)
        )
        self.output_projection = nn.Identity() if output_channels is None else Linear(channels, output_channels)
        self.norm = nn.Identity() if post_norm else make_norm(output_channels or channels)
        kernels.optimize(self)

    def forward(self, x_BMC: Tensor, mask_BM: Tensor | None = None, latents: Tensor | None = None) -> Tensor:
        """Resamples features; [B, M, C] -> [B, N, E].

        Args:
            x_BMC: features.
            mask_BM: True or 1 for real features, False or 0 for padding, which has no effect; by default all are real.
                With no real feature at all, latents attend to latents only, or read zeros.
            latents: [B, N, D], if the resampler has none of its own.

        Raises:
            PerceiversError: an array has another shape than expected, or latents are missing or not expected.
        """
        x_BMC, mask_BM = read_array(InputArray(x_BMC, mask_BM), channel_dims=1)
        if x_BMC.dim() != 3 or x_BMC.shape[2] != self.input_channels:
            expected = f"[batch, inputs, {self.input_channels} channels]"
            raise PerceiversError(f"inputs of shape {tuple(x_BMC.shape)} were given, but {expected} is expected.")
        if self.position_MC is not None:
            check_count("inputs", x_BMC.shape[1], self.position_MC)
            x_BMC = x_BMC + self.position_MC[: x_BMC.shape[1]]
        x_BMC, mask_BM = self.input_projection(x_BMC), drop_trivial_mask(mask_BM)
        z_BND = self.make_latents(x_BMC, mask_BM, latents)
        for layer in self.layers:
            z_BND = layer(z_BND, x_BMC, mask_BM)
        return self.norm(self.output_projection(z_BND))

    def make_latents(self, x_BMC: Tensor, mask_BM: Tensor | None, latents: Tensor | None) -> Tensor:
        """Returns the latents before the first layer: those made of the mean of the inputs, then the others."""
        if self.latents_ND is not None:
            if latents is not None:
                raise PerceiversError("latents were given, but the resampler has its own: build it with latents=None.")
            z_BND = self.latents_ND.expand(x_BMC.shape[0], -1, -1)
        elif latents is None:
            raise PerceiversError("the resampler has no latents of its own: call it with latents=....")
        else:
            shape = tuple(latents.shape)
            if len(shape) != 3 or shape[2] != self.channels or (is_eager() and shape[0] != x_BMC.shape[0]):
                expected = f"[{x_BMC.shape[0]}, latents, {self.channels} channels]"
                raise PerceiversError(f"latents of shape {shape} were given, but {expected} is expected.")
            z_BND = latents
        if self.pool is None:
            return z_BND
        pooled_BND = self.pool(mean_of_real(x_BMC, mask_BM)).unflatten(-1, (-1, self.channels))
        return torch.cat([pooled_BND, z_BND], 1)

    @classmethod
    def from_ip_adapter(cls, weights: Weights, heads: int, prefix: str = "") -> Self:
        """Returns the resampler of IP-Adapter Plus (Ye et al., 2023): features of an image -> tokens for its U-Net.

        Args:
            weights: a safetensors file, or a state dict, with the names of that implementation.
            heads: number of heads.
            prefix: what these names begin with in a larger model, here "image_proj."; other arrays are ignored.

        Raises:
            PerceiversError: the weights cannot be read, an array is missing, left over or of another shape, or `heads`
                does not fit.
        """
        external = ExternalWeights(weights, IP_ADAPTER, prefix)
        arguments = external.read_arguments(heads)
        return external.load(lambda: cls(**arguments))

    @classmethod
    def from_open_flamingo(cls, weights: Weights, heads: int, prefix: str = "") -> "MediaResampler":
        """Returns the resampler of OpenFlamingo (Awadalla et al., 2023); arguments as in `from_ip_adapter`.

        The prefix in a larger model is "perceiver.".
        """
        external = ExternalWeights(weights, OPEN_FLAMINGO, prefix)
        arguments = external.read_arguments(heads)
        media, frames = (external.size(name)[0] or None for name in ("medium_TC", "frame_FC"))
        return external.load(lambda: MediaResampler(cls(**arguments), media, frames))

    @classmethod
    def from_aurora(cls, weights: Weights, heads: int, prefix: str = "", query_residual: bool = True) -> Self:
        """Returns a resampler of Aurora (Bodnar et al., 2024), to call with latents; arguments as in `from_ip_adapter`.

        `query_residual` is its `residual_latent`. Prefixes are "encoder.level_agg." and "decoder.level_decoder.".
        """
        external = ExternalWeights(weights, AURORA, prefix)
        arguments = external.read_arguments(heads)
        return external.load(lambda: cls(**arguments, query_residual=query_residual))

    @classmethod
    def from_idefics2(cls, weights: Weights, heads: int, prefix: str = "", norm_eps: float = 1e-6) -> Self:
        """Returns the resampler of Idefics2 (Laurençon et al., 2024); arguments as in `from_ip_adapter`.

        `norm_eps` is its `rms_norm_eps`. The prefix in the whole model is "model.connector.perceiver_resampler.".
        """
        external = ExternalWeights(weights, IDEFICS2, prefix)
        arguments = external.read_arguments(heads)
        return external.load(lambda: cls(**arguments, norm_eps=norm_eps))


class MediaResampler(Model):
    """OpenFlamingo's resampler of each of several media, images or clips, which learns their order and that of frames.

    Args:
        resampler: resamples the features of all frames of a medium together.
        media: largest number of media, T, each with a learned vector; None for no such vectors.
        frames: largest number of frames, F, each with a learned vector; None for no such vectors.
    """

    def __init__(self, resampler: Resampler, media: Count | None = None, frames: Count | None = None) -> None:
        check_arguments(MediaResampler, locals())
        super().__init__()
        self.resampler = resampler
        self.medium_TC = None if media is None else normal_parameter(media, resampler.input_channels)
        self.frame_FC = None if frames is None else normal_parameter(frames, resampler.input_channels)

    def forward(self, x_BTFMC: Tensor, mask_BTFM: Tensor | None = None) -> Tensor:
        """[B, T, F, M, C] -> [B, T, N, E]; the mask is True for real features."""
        if x_BTFMC.dim() != 5:
            expected = "[batch, media, frames, inputs, channels]"
            raise PerceiversError(f"inputs of shape {tuple(x_BTFMC.shape)} were given, but {expected} is expected.")
        batch, media, frames = x_BTFMC.shape[:3]
        if self.frame_FC is not None:
            check_count("frames", frames, self.frame_FC)
            x_BTFMC = x_BTFMC + self.frame_FC[:frames, None]
        if self.medium_TC is not None:
            check_count("media", media, self.medium_TC)
            x_BTFMC = x_BTFMC + self.medium_TC[:media, None, None]
        mask_BM = None if mask_BTFM is None else mask_BTFM.flatten(2).flatten(0, 1)
        return self.resampler(x_BTFMC.flatten(2, 3).flatten(0, 1), mask_BM).unflatten(0, (batch, media))


def normal_parameter(*shape: int) -> nn.Parameter:
    """Returns learned vectors to add to features, from a normal distribution of their usual scale, std 1."""
    return nn.Parameter(torch.randn(shape))


def mean_of_real(x_BMC: Tensor, mask_BM: Tensor | None) -> Tensor:
    """Returns the mean of the real elements, [B, C]; 0 if there are none."""
    if mask_BM is None:
        return x_BMC.mean(1)
    mask_BM1 = mask_BM[..., None].to(x_BMC.dtype)
    return (x_BMC * mask_BM1).sum(1) / mask_BM1.sum(1).clamp_min(1)


def check_count(what: str, count: int, learned: Tensor) -> None:
    """Raises a PerceiversError if there are more elements than learned vectors to add to them."""
    if is_eager() and count > len(learned):
        raise PerceiversError(f"{count} {what} were given, but the resampler was built for {len(learned)}: give fewer.")


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raises a PerceiversError if an argument does not match its annotation."""
    for name, annotation in read_annotations(function).items():
        if name in arguments:
            value = arguments[name]
            check_field(name, value, matches(value, annotation), describe_expected(value, annotation))
