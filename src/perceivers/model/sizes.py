"""The sizes of a Perceiver IO, which the configs of all models extend."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from torch import nn

from perceivers.checks import Checked, Count, Range
from perceivers.errors import PerceiversError

Gelu = Literal["tanh", "exact"]
"""GELU by the tanh approximation (the original code), or exact (the `transformers` port)."""


@dataclass(frozen=True, kw_only=True)
class Sizes(Checked):
    """Sizes of encoder, processor and decoder (appendix, tables 5 and 6).

    Attributes:
        latents: N, number of latents.
        channels: D, channels of each latent.
        depth: self-attention layers per block.
        num_blocks: number of times the block is applied, each time with the same weights.
        heads: heads of the self-attention layers.
        widening_factor: hidden width of their MLPs, as a multiple of the channels.
        qk_channels: channels of queries and keys in encoder and processor; by default those of the keys' input
            (section 1 of the appendix: C in the encoder, D in the processor).
        v_channels: channels of values in encoder and processor; by default equal to `qk_channels`.
        cross_heads: heads of the encoder's cross-attention.
        cross_widening_factor: hidden width of its MLP, as a multiple of the channels.
        num_cross_attends: number of blocks that are preceded by cross-attention to the inputs.
        share_cross_attention: whether these cross-attentions share their weights.
        decoder_heads: heads of the decoder's cross-attention.
        decoder_widening_factor: hidden width of its MLP, as a multiple of the channels.
        decoder_qk_channels: channels of its queries and keys; by default D.
        decoder_v_channels: channels of its values; by default as many as `decoder_qk_channels`.
        query_residual: whether the decoder adds the queries to the result of its attention.
        dropout: probability of dropping an attention weight in training.
        gelu: "tanh" (the original code's approximation) or "exact".
        checkpointing: recompute the encoder's activations in the backward pass instead of storing them.

    Raises:
        PerceiversError: a size is out of range.
    """

    latents: Count
    channels: Count
    depth: Count
    num_blocks: Count = 1
    heads: Count = 8
    widening_factor: Count = 1
    qk_channels: Count | None = None
    v_channels: Count | None = None
    cross_heads: Count = 1
    cross_widening_factor: Count = 1
    num_cross_attends: Count = 1
    share_cross_attention: bool = True
    decoder_heads: Count = 1
    decoder_widening_factor: Count = 1
    decoder_qk_channels: Count | None = None
    decoder_v_channels: Count | None = None
    query_residual: bool = True
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    gelu: Gelu = "tanh"
    checkpointing: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.qk_channels is None and self.channels % self.heads:
            raise PerceiversError(
                f"{self.section}channels = {self.channels} cannot be split over heads = {self.heads}: choose a divisor."
            )
        if self.num_cross_attends > self.num_blocks:
            raise PerceiversError(
                f"{self.section}num_cross_attends = {self.num_cross_attends} is not allowed: "
                f"it must be from 1 to {self.num_blocks} blocks."
            )

    def sizes(self) -> dict[str, Any]:
        """Returns the sizes as keyword arguments of `PerceiverIO`, without the fields of a subclass."""
        return {item.name: getattr(self, item.name) for item in fields(Sizes)}


class ModelConfig(Checked, ABC):
    """Base of model configs: a frozen dataclass that builds its model. That of a Perceiver IO extends `Sizes`, too."""

    section = "model."

    @abstractmethod
    def build(self) -> nn.Module:
        """Returns the model, with fresh weights."""


def takes_sizes(constructor: Callable[..., None]) -> Callable[..., None]:
    """Shows the fields of `Sizes` in the signature of a constructor whose last argument is `**sizes`."""
    signature = inspect.signature(constructor)
    *own, _ = signature.parameters.values()
    sizes = [size for size in inspect.signature(Sizes).parameters.values() if size.name not in signature.parameters]
    constructor.__signature__ = signature.replace(parameters=[*own, *sizes])  # type: ignore[attr-defined]
    return constructor
