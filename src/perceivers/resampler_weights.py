"""Weights of other implementations of resamplers: read under their own names, laid out as ours."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.files import require_file
from perceivers.model.meta import build_on_meta
from perceivers.model.saving import check_numbers, read_tensors

M = TypeVar("M", bound=nn.Module)

Weights = str | Path | Mapping[str, Tensor]
"""A safetensors file, or a state dict."""


class Implementation(NamedTuple):
    """Another implementation of a resampler.

    Attributes:
        owner: the model that it is part of.
        names: its name of each part of `Resampler`; in a layer, what follows "layers.N.". Two names are those of arrays
            that are one of ours, one behind the other.
        settings: arguments of `Resampler` that no shape tells.
    """

    owner: str
    names: dict[str, str]
    settings: dict[str, Any]


ATTENTION = {
    "attention.query": "0.to_q",
    "attention.key": "0.to_kv",
    "attention.value": "0.to_kv",
    "attention.output": "0.to_out",
}
"""Names that three implementations share; "to_kv" are keys, and behind them values."""

MLP = {"norm_h": "1.0", "mlp.hidden": "1.1", "mlp.output": "1.3"}
"""Names that two of them share."""

LAYER_NORM_GELU = {"norm": "layer", "norm_eps": 1e-5, "gated": False, "activation": "exact"}

IP_ADAPTER = Implementation(
    "IP-Adapter",
    {
        "position_MC": "pos_emb.weight",
        "input_projection": "proj_in",
        "latents_ND": "latents",
        "pool.0": "to_latents_from_mean_pooled_seq.0",
        "pool.1": "to_latents_from_mean_pooled_seq.1",
        "norm_x": "0.norm1",
        "norm_z": "0.norm2",
        **ATTENTION,
        **MLP,
        "output_projection": "proj_out",
        "norm": "norm_out",
    },
    LAYER_NORM_GELU,
)
"""tencent-ailab/IP-Adapter, ip_adapter/resampler.py."""

OPEN_FLAMINGO = Implementation(
    "OpenFlamingo",
    {
        "frame_FC": "frame_embs",
        "medium_TC": "media_time_embs",
        "latents_ND": "latents",
        "norm_x": "0.norm_media",
        "norm_z": "0.norm_latents",
        **ATTENTION,
        **MLP,
        "norm": "norm",
    },
    LAYER_NORM_GELU,
)
"""mlfoundations/open_flamingo, open_flamingo/src/helpers.py."""

AURORA = Implementation(
    "Aurora",
    {
        **ATTENTION,
        "attention.norm_query": "0.ln_q",
        "attention.norm_key": "0.ln_k",
        "norm_a": "2",
        "mlp.hidden": "1.net.0",
        "mlp.output": "1.net.2",
        "norm_m": "3",
    },
    {**LAYER_NORM_GELU, "mlp_bias": True, "post_norm": True, "attend_to_latents": False},
)
"""microsoft/aurora, aurora/model/perceiver.py."""

IDEFICS2 = Implementation(
    "Idefics2",
    {
        "latents_ND": "latents",
        "norm_x": "input_context_norm",
        "norm_z": "input_latents_norm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "norm_h": "post_attention_layernorm",
        "mlp.hidden": "mlp.up_proj mlp.gate_proj",
        "mlp.output": "mlp.down_proj",
        "norm": "norm",
    },
    {"norm": "rms", "gated": True, "activation": "silu"},
)
"""`transformers`, Idefics2PerceiverResampler."""

OPTIONAL = ("position_MC", "pool.1", "frame_FC", "medium_TC", "attention.norm_key")
"""Parts that some resamplers of an implementation have."""


class ExternalWeights:
    """Weights of a resampler of another implementation.

    Args:
        weights: the weights.
        implementation: the implementation.
        prefix: what the names of the resampler begin with; arrays with other names are ignored.

    Raises:
        PerceiversError: the file cannot be read, or no name begins with the prefix.
    """

    def __init__(self, weights: Weights, implementation: Implementation, prefix: str) -> None:
        self.source, arrays = read_weights(weights)
        self.owner, self.names, self.settings = implementation
        self.prefix = prefix
        self.arrays = {name: array for name, array in arrays.items() if name.startswith(prefix)}
        if not self.arrays:
            raise PerceiversError(f"{self.source} has no array whose name begins with {prefix!r}: give another prefix.")
        for name, array in self.arrays.items():
            if not isinstance(array, Tensor) or not array.dim() or not array.numel():
                raise PerceiversError(f"{self.source} has no array as {name!r}: give the state dict of a resampler.")

    def external_names(self, name: str) -> list[str]:
        """Returns the names of the arrays that hold one of our arrays; none if the implementation has no such part."""
        match = re.fullmatch(r"(?:resampler\.)?(layers\.\d+\.)?(.+?)(\.weight|\.bias)?", name)
        layer, part, leaf = match.groups("")  # type: ignore[union-attr]  # it matches any name
        return [f"{self.prefix}{layer}{external}{leaf}" for external in self.names.get(part, "").split()]

    def find(self, name: str) -> Tensor:
        """Returns a copy of one of our arrays; raises a PerceiversError if it is missing."""
        names = self.external_names(name)
        for external in names:
            if external not in self.arrays:
                inside = [known for known in self.arrays if known.endswith(f".{external}")]
                advice = f"give prefix={inside[0].removesuffix(external)!r}" if inside else "give other weights"
                raise PerceiversError(
                    f"{self.source} has no array {external!r}, which the resampler of {self.owner} has: {advice}."
                )
        arrays = [self.arrays[external].detach() for external in names]
        if len({array.shape for array in arrays}) > 1:
            raise PerceiversError(f"{self.source}: {' and '.join(names)} have different shapes: give other weights.")
        if names[0].endswith(".to_kv.weight"):
            return arrays[0].tensor_split(2)[".value." in name].clone()
        return torch.cat(arrays)

    def size(self, name: str) -> tuple[int, int]:
        """Returns the rows and columns of one of our matrices; 0 if this resampler has no such part."""
        names = self.external_names(name)
        is_optional = any(part in name for part in OPTIONAL)
        if not names or (is_optional and names[0] not in self.arrays):
            return 0, 0
        matrix = self.find(name)
        return matrix.numel() // matrix.shape[-1], matrix.shape[-1]

    def read_arguments(self, heads: int) -> dict[str, Any]:
        """Returns the arguments of `Resampler`, given what no shape tells, the number of heads.

        Raises:
            PerceiversError: an array is missing, or `heads` is wrong.
        """
        qk_channels, channels = self.size("layers.0.attention.query.weight")
        key_channels, width = self.size("layers.0.attention.key.weight")
        if heads < 1 or qk_channels % heads or key_channels * heads % qk_channels:
            raise PerceiversError(
                f"heads = {heads} does not divide the {qk_channels} channels of queries or the {key_channels} of keys "
                f"in {self.source}: give the number of heads that the resampler was trained with."
            )
        start = f"{self.prefix}layers."
        layers = {name.removeprefix(start).split(".")[0] for name in self.arrays if name.startswith(start)}
        return {
            "input_channels": self.size("input_projection.weight")[1] or width,
            "channels": channels,
            "latents": self.size("latents_ND")[0] or None,
            "depth": len(layers),
            "heads": heads,
            "output_channels": self.size("output_projection.weight")[0] or None,
            "head_channels": qk_channels // heads,
            "kv_heads": key_channels * heads // qk_channels,
            "widening_factor": self.size("layers.0.mlp.output.weight")[1] // channels,
            "qk_norm_layers": sum(self.size(f"layers.{layer}.attention.norm_key.weight") > (0, 0) for layer in layers),
            "project_inputs": "input_projection" in self.names,
            "positions": self.size("position_MC")[0] or None,
            "pooled_latents": self.size("pool.1.weight")[0] // channels,
            **self.settings,
        }

    def load(self, build: Callable[[], M]) -> M:
        """Returns the model that `build` builds, with these weights in their precision.

        Raises:
            PerceiversError: an array is missing, left over, or has another shape.
        """
        model = build_on_meta(build, len(self.arrays), self.source)
        tensors, used = {}, set[str]()
        for name, expected in model.state_dict().items():
            array, names = self.find(name), self.external_names(name)
            if squeezed(array.shape) != squeezed(expected.shape):
                raise PerceiversError(
                    f"{self.source}: {names[0]} has the shape {tuple(array.shape)}, but {tuple(expected.shape)} is "
                    f"expected in the resampler of {self.owner}: an argument is wrong, or it belongs to another model."
                )
            check_numbers(array, expected.dtype, f"{self.source}: {names[0]}")
            tensors[name] = array.reshape(expected.shape)
            used.update(names)
        if unused := self.arrays.keys() - used:
            raise PerceiversError(
                f"{self.source} has an array {min(unused)!r}, which the resampler of {self.owner} does not have: "
                f"give the prefix of the resampler if it is part of a larger model, or other weights."
            )
        model.load_state_dict(tensors, assign=True)
        return model


def read_weights(weights: Weights) -> tuple[str, Mapping[str, Any]]:
    """Returns the name of weights, for errors, and their arrays by name."""
    if isinstance(weights, Mapping):
        return "the state dict", weights
    if Path(weights).suffix != ".safetensors":
        raise PerceiversError(
            f"{weights} is not a .safetensors file: give one, or a state dict, "
            f"which torch.load(..., weights_only=True) reads."
        )
    return str(weights), read_tensors(require_file(weights))


def squeezed(shape: torch.Size) -> list[int]:
    """Returns a shape without dimensions of size 1, in which implementations differ."""
    return [size for size in shape if size != 1]
