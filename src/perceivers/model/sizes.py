"""The sizes of a Perceiver IO, which the configs of all models extend."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, Self

import torch
from torch import nn

from perceivers.checks import Checked, Count, Range
from perceivers.errors import PerceiversError
from perceivers.model.config import construct, to_config
from perceivers.model.lora import Lora

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
        cross_qk_channels: channels of its queries and keys; by default `qk_channels`.
        cross_v_channels: channels of its values; by default equal to `cross_qk_channels`, or else `v_channels`.
        cross_widening_factor: hidden width of its MLP, as a multiple of the channels.
        num_cross_attends: number of blocks that are preceded by cross-attention to the inputs.
        share_cross_attention: whether these cross-attentions share their weights.
        decoder_heads: heads of the decoder's cross-attention.
        decoder_widening_factor: hidden width of its MLP, as a multiple of the channels; 0 for a decoder without MLP.
        decoder_qk_channels: channels of its queries and keys; by default D.
        decoder_v_channels: channels of its values; by default as many as `decoder_qk_channels`.
        query_residual: whether the decoder adds the queries to the result of its attention.
        gated: whether all MLPs are gated: their hidden layer is multiplied by a GELU of another linear layer.
        nested_latents: train with a random number of the first latents in each step, so that `encode` answers with
            fewer of them, too, in less time.
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
    cross_qk_channels: Count | None = None
    cross_v_channels: Count | None = None
    cross_widening_factor: Count = 1
    num_cross_attends: Count = 1
    share_cross_attention: bool = True
    decoder_heads: Count = 1
    decoder_widening_factor: Annotated[int, Range(least=0)] = 1
    decoder_qk_channels: Count | None = None
    decoder_v_channels: Count | None = None
    query_residual: bool = True
    gated: bool = False
    nested_latents: bool = False
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


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked, ABC):
    """Base of model configs: a frozen dataclass that builds its model. That of a Perceiver IO extends `Sizes`, too.

    Attributes:
        init: a pretrained model whose weights a training run starts from, as far as they fit: a folder or file in any
            format, or a name on the Hub. The other fields are then those of that model, if they are not given.
        strict: refuse an `init` that does not have exactly the weights of this model.
        train: parts of the model to train, such as [head, decoder], while all others keep their weights: beginnings of
            the names of weights, as in [encoder.layers.5], or "head", all that makes predictions of what the decoder
            returns. By default everything is trained.
        freeze: parts of the model not to train, as an alternative.
        lora: updates of low rank to train, of layers of `init`; of the other weights, those of `train` are trained, by
            default the head.
    """

    section = "model."

    init: str | None = None
    strict: bool = False
    train: list[str] | None = None
    freeze: list[str] | None = None
    lora: Lora = field(default_factory=Lora)

    @abstractmethod
    def build(self) -> nn.Module:
        """Returns the model, with fresh weights."""

    @classmethod
    def from_model(cls, model: nn.Module) -> Self | None:
        """Returns the config that builds such a model, or None if it is of another kind; needed for `init`."""
        return None

    def settings(self) -> dict[str, Any]:
        """Returns the fields that describe the model, by name, without those that only a training run uses."""
        return {name: value for name, value in vars(self).items() if name not in TRAINING_FIELDS}

    def change(self, settings: Mapping[str, Any]) -> Self:
        """Returns the config with some fields changed; another number of classes has no names, if none are given.

        Raises:
            PerceiversError: there is no such field, it is one of a training run, or its value is not allowed.
        """
        if run := [name for name in settings if name in TRAINING_FIELDS]:
            raise PerceiversError(f"{run[0]} is a setting of a training run, not of a model: leave it out.")
        fields = vars(self) | dict(settings)
        if "class_names" not in settings and fields.get("classes") != vars(self).get("classes"):
            fields["class_names"] = None
        return construct(type(self), fields)

    def describe(self) -> Any:
        """Returns the description of the model, see `describe`."""
        with torch.device("meta"):
            return describe(self.build())

    def has_inputs_of(self, model: nn.Module) -> bool:
        """Returns whether a model reads its inputs as the one of this config does, see `describe`."""
        return bool(self.describe()["inputs"] == describe(model)["inputs"])


TRAINING_FIELDS = tuple(item.name for item in fields(ModelConfig))
"""Fields of every model config that only a training run uses."""


def describe(model: nn.Module) -> Any:
    """Describes a model as in its saved config, but without the frequencies of Fourier positions.

    A model may have those of the pretrained model that it started from, see `Positions.adopt`.
    """

    def leave_out(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: leave_out(item) for name, item in value.items() if name != "resolution"}
        return [leave_out(item) for item in value] if isinstance(value, list) else value

    return leave_out(to_config(model))


def sizes_of(model: Any) -> dict[str, Any]:
    """Returns the fields of `Sizes` of a Perceiver IO."""
    return {item.name: model.config[item.name] for item in fields(Sizes)}


def takes_sizes(constructor: Callable[..., None]) -> Callable[..., None]:
    """Shows the fields of `Sizes` in the signature of a constructor whose last argument is `**sizes`."""
    signature = inspect.signature(constructor)
    *own, _ = signature.parameters.values()
    sizes = [size for size in inspect.signature(Sizes).parameters.values() if size.name not in signature.parameters]
    constructor.__signature__ = signature.replace(parameters=[*own, *sizes])  # type: ignore[attr-defined]
    return constructor
