"""Intermediate values of a model: latents after each layer, attention maps.

Shape suffixes: B batch, H heads, O queries, M inputs, N latents, D latent channels
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any, NamedTuple

from torch import Tensor, nn

from perceivers.model.attention import Attention, CrossAttention, SelfAttention


class Intermediates(NamedTuple):
    """Intermediate values of a model.

    Attributes:
        latents: [B, N, D] after each cross-attention and each self-attention layer, in the order of computation.
        attention: attention maps, as in `record_attention`; empty if they were not asked for.
    """

    latents: list[Tensor]
    attention: dict[str, list[Tensor]]


@contextmanager
def record_latents(encoder: nn.Module) -> Iterator[list[Tensor]]:
    """Collects, while open, the latents after each cross-attention and self-attention layer of an encoder.

    Calls from other threads are ignored.
    """
    latents: list[Tensor] = []
    thread = get_ident()

    def record(_layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        if get_ident() == thread:
            latents.append(output)

    layers = [layer for layer in encoder.modules() if isinstance(layer, CrossAttention | SelfAttention)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        yield latents
    finally:
        for handle in hooks:
            handle.remove()


@contextmanager
def record_attention(module: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collects, while open, the weights of every attention that runs inside `module`.

    Layers compute the formula meanwhile: memory is that of all score matrices. Record a submodule to have only its own.
    Calls from other threads are ignored, so that several threads may use one model.
    Hooks that are added after torch.compile are ignored: record a module before it is compiled.

    Yields:
        For each `Attention`, by its name inside `module`, a list with one [B, H, O, M] per call: a shared layer is
        called more than once, and decoding in chunks calls once per chunk. Rows sum to 1, or are 0 where all inputs,
        or the query, are masked.

    Examples:
        >>> import torch
        >>> from perceivers import PerceiverIO
        >>> from perceivers.adapters import ArrayInput, LabelOutput
        >>> inputs, outputs = {"points": ArrayInput(3)}, {"label": LabelOutput(2)}
        >>> model = PerceiverIO(inputs, outputs, latents=8, channels=16, depth=1)
        >>> with record_attention(model.encoder) as maps:
        ...     encoded = model.encode({"points": torch.randn(2, 100, 3)})
        >>> maps["cross_attentions.0.attention"][0].shape  # [B, H, N, M]
        torch.Size([2, 1, 8, 100])
    """
    maps: dict[str, list[Tensor]] = {}
    thread = get_ident()

    def record(name: str, _dropout: nn.Module, arguments: tuple[Tensor]) -> None:
        if get_ident() == thread:
            maps.setdefault(name, []).append(arguments[0].detach())

    hooks = [
        child.dropout.register_forward_pre_hook(partial(record, name))  # its input is the weights
        for name, child in module.named_modules()
        if isinstance(child, Attention)
    ]
    try:
        yield maps
    finally:
        for handle in hooks:
            handle.remove()
