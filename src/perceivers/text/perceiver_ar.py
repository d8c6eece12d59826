"""Perceiver AR (Hawthorne et al., ICML 2022): predicts the next byte of a text, from many bytes by few latents.

The last N of M bytes are the latents, too. They attend to all bytes up to their own, then, layer by layer, to the
latents up to their own, and each predicts the byte that follows its own.

Shape suffixes: B batch, M bytes, K bytes that are read, N latents, C channels
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from perceivers.checkpoints.load import load_model
from perceivers.checks import Count, Range
from perceivers.errors import PerceiversError
from perceivers.model import kernels
from perceivers.model.arguments import check_range
from perceivers.model.attention import Cache, CrossAttention, SelfAttention
from perceivers.model.device import check_dtype, choose_device, move_model
from perceivers.model.linear import Linear
from perceivers.model.rotary import RotaryPositions, Rotation, spaced_periods
from perceivers.model.saving import Model
from perceivers.model.sizes import ModelConfig

BYTES = 256
"""Number of different bytes."""

MIN_PERIOD, MAX_PERIOD = 2 * math.pi, 2e4 * math.pi
"""Periods of the rotary positions in bytes, those of RoFormer."""


class PerceiverAR(Model):
    """A causal model of bytes. With as many latents as bytes, it is a decoder-only Transformer of `depth` + 1 layers.

    Args:
        length: maximum number of bytes that a prediction depends on.
        latents: maximum number of latents, and of predictions at a time; at most `length`.
        channels: C, channels of bytes and latents.
        depth: number of self-attention layers.
        heads: heads of the cross-attention and of each layer.
        widening_factor: hidden width of their MLPs, as a multiple of the channels.
        dropout: probability of dropping an attention weight in training.
        prefix_dropout: fraction of the bytes before the latents that training leaves out, others for each text.

    Raises:
        PerceiversError: there are more latents than bytes, or heads have an odd number of channels.
    """

    head = ("norm", "output")

    def __init__(
        self,
        length: int,
        latents: int,
        channels: int,
        depth: int,
        heads: int = 8,
        widening_factor: int = 4,
        dropout: float = 0.0,
        prefix_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 1 <= latents <= length:
            raise PerceiversError(f"latents = {latents} is not allowed: it must be from 1 to length = {length}.")
        if channels % (2 * heads):
            raise PerceiversError(
                f"channels = {channels} cannot be split into pairs over heads = {heads}: "
                f"choose a multiple of {2 * heads}."
            )
        self.length = length
        self.latents = latents
        self.prefix_dropout = prefix_dropout
        self.embedding = nn.Embedding(BYTES, channels)
        self.positions = RotaryPositions(spaced_periods(channels // heads // 2, MIN_PERIOD, MAX_PERIOD))
        self.cross_attention = CrossAttention(
            channels, channels, heads, widening_factor=widening_factor, dropout=dropout, longer="inputs"
        )
        self.layers = nn.ModuleList(
            SelfAttention(channels, heads, widening_factor=widening_factor, dropout=dropout) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels)
        self.output = Linear(channels, BYTES)
        nn.init.zeros_(self.output.weight)  # as in the original code: all bytes are equally probable at first
        kernels.optimize(self)

    @property
    def stride(self) -> int:
        """Half of the latents: number of bytes that are predicted with a window before the next one, by default."""
        return max(1, self.latents // 2)

    def forward(self, byte_BM: Tensor, latents: int | None = None) -> Tensor:
        """Returns the logits [B, N, 256] of the bytes that follow the last N.

        Args:
            byte_BM: texts as integers from 0 to 255, M at most `length`.
            latents: N; by default as many as the model has, or M if that is less.
        """
        count = byte_BM.shape[-1]
        return self.read(byte_BM, min(self.latents, count) if latents is None else latents, self.make_caches())

    def make_caches(self) -> list[Cache]:
        """Returns empty caches, one for the cross-attention and one for each layer."""
        return [Cache() for _ in range(1 + len(self.layers))]

    def read(self, byte_BM: Tensor, latents: int, caches: list[Cache]) -> Tensor:
        """Reads bytes that follow those in the caches, and adds them there; arguments and result as in `forward`.

        If the caches hold any, all bytes have to be latents.
        """
        start = len(caches[0])
        self.check(byte_BM, latents, start)
        index_BK = self.choose_bytes(byte_BM, latents)
        x_BKC = self.embedding(byte_BM.long().take_along_dim(index_BK, 1))
        dtype = torch.promote_types(x_BKC.dtype, torch.float32)
        rotation = self.positions((start + index_BK)[..., None].to(dtype))
        own = Rotation(*(array[:, -latents:] for array in rotation))  # of the latents
        key_values = caches[0].append(self.cross_attention.project_keys_values(x_BKC, None, rotation))
        mask = causal_mask(latents, len(caches[0]), x_BKC.device)
        z_BNC = self.cross_attention(x_BKC[:, -latents:], key_values, None, None, mask, own)
        mask = causal_mask(latents, len(caches[1]) + latents, x_BKC.device)
        for layer, cache in zip(self.layers, caches[1:], strict=True):
            z_BNC = layer(z_BNC, None, mask, own, cache)
        return self.output(self.norm(z_BNC))

    def choose_bytes(self, byte_BM: Tensor, latents: int) -> Tensor:
        """Returns the indices of the bytes to read, [B or 1, K]: of all, but for the prefix dropout in training."""
        batch, count = byte_BM.shape
        index_1M = torch.arange(count, device=byte_BM.device)[None]
        prefix = count - latents
        dropped = int(self.prefix_dropout * prefix) if self.training else 0
        if not dropped:
            return index_1M
        order_BP = torch.rand(batch, prefix, device=byte_BM.device).argsort()
        return torch.cat([order_BP[:, dropped:], index_1M[:, prefix:].expand(batch, -1)], 1)

    def check(self, byte_BM: Tensor, latents: int, start: int) -> None:
        """Raises a PerceiversError unless the arguments of `read` are as described."""
        if byte_BM.dim() != 2 or byte_BM.is_floating_point():
            found = f"bytes of shape {tuple(byte_BM.shape)} and type {byte_BM.dtype} were given"
            raise PerceiversError(f"{found}: integers of shape [batch, bytes] are expected.")
        count = byte_BM.shape[1]
        if not 1 <= start + count <= self.length:
            raise PerceiversError(f"a text of {start + count} bytes was given: from 1 to {self.length} are expected.")
        if not 1 <= latents <= count:
            raise PerceiversError(
                f"latents = {latents} is not allowed: it must be from 1 to {count}, as many as bytes."
            )
        check_range("bytes", byte_BM, 0, BYTES - 1)


def causal_mask(queries: int, inputs: int, device: torch.device) -> Tensor | None:
    """Returns the mask [1, queries, inputs] in which the last input is the last query's own, and none sees later ones.

    None for a single query, which sees all.
    """
    if queries == 1:
        return None
    return torch.ones(1, queries, inputs, dtype=torch.bool, device=device).tril(inputs - queries)


@dataclass(frozen=True, kw_only=True)
class PerceiverARConfig(ModelConfig):
    """A causal model of bytes. The fields not described here are arguments of `PerceiverAR`.

    Attributes:
        length: maximum number of bytes that a prediction depends on.
        latents: maximum number of latents; as many as `length` for a decoder-only Transformer.
        prefix_dropout: fraction of the bytes before the latents that training leaves out, others for each text.
    """

    length: Count = 1024
    latents: Count = 256
    channels: Count = 512
    depth: Count = 8
    heads: Count = 8
    widening_factor: Count = 4
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    prefix_dropout: Annotated[float, Range(least=0, below=1)] = 0.0

    def build(self) -> PerceiverAR:
        return PerceiverAR(**self.settings())

    @classmethod
    def from_model(cls, model: nn.Module) -> "PerceiverARConfig | None":
        """Returns the config of a Perceiver AR."""
        return cls(**model.config) if isinstance(model, PerceiverAR) else None


def load_causal_model(
    model: PerceiverAR | str | Path, device: str | None = None, dtype: str | None = None
) -> PerceiverAR:
    """Returns a causal model of bytes in evaluation mode, by the rules of `load_for_inference`.

    Args:
        model: the model, or anything that `load_model` takes.
        device, dtype: as in `load_for_inference`.

    Raises:
        PerceiversError: the model cannot be loaded, or is of another kind.
    """
    check_dtype(dtype)
    loaded: object = model
    if isinstance(model, str | Path):
        loaded, device = load_model(model), device or choose_device()
    if not isinstance(loaded, PerceiverAR):
        source = model if isinstance(model, str | Path) else "the model"
        raise PerceiversError(
            f"{source} is a {type(loaded).__name__}: a causal model, of the experiment causal_language, is needed."
        )
    return move_model(loaded, device, dtype)
