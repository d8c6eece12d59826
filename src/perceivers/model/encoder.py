"""The encoder: latents read the input array and process what they have read (Perceiver IO, section 3.1).

Shape suffixes:
    B batch, M inputs, C input channels, N latents, D latent channels
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputArray
from perceivers.model.attention import CrossAttention, SelfAttention
from perceivers.model.linear import trunc_normal_parameter
from perceivers.model.masks import SameExample
from perceivers.model.ragged import regular_offsets
from perceivers.model.rotary import Rotation


class Encoder(nn.Module):
    """Encodes an input array into latents and processes them (section 3.1).

    One block of `depth` self-attention layers is applied `num_blocks` times, with the same weights. A cross-attention
    to the inputs precedes the first `num_cross_attends` of them (1 in Perceiver IO; the first Perceiver repeats it).
    """

    def __init__(
        self,
        latents: int,
        channels: int,
        cross_attentions: list[CrossAttention],
        layers: list[SelfAttention],
        num_blocks: int,
        num_cross_attends: int,
        checkpointing: bool,
        nested_latents: bool = False,
    ) -> None:
        super().__init__()
        self.latents = trunc_normal_parameter(latents, channels).requires_grad_(latents > 0)
        self.channels = channels
        self.cross_attentions = nn.ModuleList(cross_attentions)
        self.layers = nn.ModuleList(layers)
        self.num_blocks = num_blocks
        self.num_cross_attends = num_cross_attends
        self.checkpointing = checkpointing
        self.nested_latents = nested_latents

    def forward(
        self,
        x_BMC: Tensor,
        mask_BM: Tensor | None = None,
        offsets: Tensor | None = None,
        latents_BND: Tensor | None = None,
        pair_mask_BNM: Tensor | None = None,
        latent_mask_BNN: Tensor | None = None,
        rotation: Rotation | None = None,
        latent_rotation: Rotation | None = None,
    ) -> Tensor:
        """Encodes inputs; [B, M, C] -> [B, N, D]. Arguments as in `InputArray` and `PerceiverIO.encode`."""
        run = checkpointed if self.checkpointing else call
        z_BND = latents_BND
        if z_BND is None:
            z_BND = self.first_latents(InputArray(x_BMC, offsets=offsets).batch_size)
        for block in range(self.num_blocks):
            if block < self.num_cross_attends:
                layer = self.cross_attentions[block % len(self.cross_attentions)]
                if offsets is None:
                    z_BND = run(layer, z_BND, x_BMC, mask_BM, None, pair_mask_BNM, latent_rotation, rotation)
                else:
                    z_BND = run(read_ragged, layer, z_BND, x_BMC, offsets, latent_rotation, rotation)
            for layer in self.layers:
                z_BND = run(layer, z_BND, None, latent_mask_BNN, latent_rotation)
        return z_BND

    def first_latents(self, batch_size: int, latents: Tensor | None = None, num_latents: int | None = None) -> Tensor:
        """Returns the latents before the first layer, [B, N, D]: those given, or all or the first learned ones."""
        count = len(self.latents)
        if latents is not None:
            if num_latents is not None:
                raise PerceiversError("num_latents selects learned latents: it cannot be given with latents.")
            check_latents(latents, batch_size, self.channels)
            return latents.expand(batch_size, -1, -1)
        if count == 0:
            raise PerceiversError("the model has no latents of its own: give encode(..., latents=...).")
        if num_latents is None and self.nested_latents and self.training:
            num_latents = draw_num_latents(count)
        if num_latents is not None and not 1 <= num_latents <= count:
            raise PerceiversError(f"num_latents = {num_latents} is not allowed: it must be from 1 to {count}.")
        return self.latents[:num_latents].expand(batch_size, -1, -1)


def check_latents(latents: Any, batch_size: int, channels: int) -> None:
    """Raises a PerceiversError unless given latents are real numbers [N, D] or [B, N, D]."""
    if not isinstance(latents, Tensor) or not latents.is_floating_point():
        found = latents.dtype if isinstance(latents, Tensor) else type(latents).__name__
        raise PerceiversError(f"latents of type {found} were given: a tensor of real numbers is expected.")
    shape = list(latents.shape)
    if len(shape) not in (2, 3) or shape[-1] != channels or (len(shape) == 3 and shape[0] != batch_size):
        expected = f"[latents, {channels}] or [{batch_size}, latents, {channels}]"
        raise PerceiversError(f"latents of shape {shape} were given: {expected} is expected.")


def draw_num_latents(most: int) -> int:
    """Draws a number of latents for a step of training: all numbers of an octave are as likely as those of another."""
    return round(2 ** (math.log2(most) * torch.rand(()).item()))


def read_ragged(
    layer: CrossAttention,
    z_BND: Tensor,
    x_1TC: Tensor,
    offsets: Tensor,
    latent_rotation: Rotation | None,
    rotation: Rotation | None,
) -> Tensor:
    """Cross-attends the latents of each example to its own inputs in a ragged batch; -> [B, N, D]."""
    count, length, _ = z_BND.shape
    same = SameExample(regular_offsets(count, length, offsets.device), offsets)
    latent_rotation = None if latent_rotation is None else latent_rotation.flatten_batch(count)
    z_1TD: Tensor = layer(z_BND.flatten(0, 1)[None], x_1TC, None, None, same, latent_rotation, rotation)
    return z_1TD.view(count, length, -1)


def call(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Calls a module or function."""
    return function(*arguments)


def checkpointed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Calls a module or function, recomputing its activations in the backward pass instead of keeping them."""
    return checkpoint(function, *arguments, use_reentrant=False)
