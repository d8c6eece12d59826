"""Attention, and the two blocks made of it: cross-attention and self-attention (Perceiver IO, section 3.1, appendix E).

These are the paper's formulas. Models compute them by the faster implementations in `perceivers.model.kernels`.

Shape suffixes:
    B batch, O queries, M inputs, H heads, K channels of a head of queries and keys, V of values,
    Q query channels, C input channels, D latent channels
"""

import math
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.linear import Activation, Linear, activate
from perceivers.model.masks import PairMask, combine_masks, to_bool_mask
from perceivers.model.rotary import Rotation, rotate
from perceivers.model.sizes import Gelu


class KeyValues(NamedTuple):
    """Keys and values of an input array, computed once for any number of queries; `mask_BM` is True for real inputs."""

    k_BHMK: Tensor
    v_BHMV: Tensor
    mask_BM: Tensor | None = None


class Cache:
    """Keys and values of the elements of a growing sequence, computed once for all later elements."""

    key_values: KeyValues | None = None

    def __len__(self) -> int:
        return 0 if self.key_values is None else self.key_values.k_BHMK.shape[2]

    def append(self, further: KeyValues) -> KeyValues:
        """Adds the keys and values of further elements, none of them masked, and returns all."""
        if self.key_values is not None:
            k_BHMK = torch.cat([self.key_values.k_BHMK, further.k_BHMK], 2)
            v_BHMV = torch.cat([self.key_values.v_BHMV, further.v_BHMV], 2)
            further = KeyValues(k_BHMK, v_BHMV)
        self.key_values = further
        return further


class Kernel(Protocol):
    """Another way to compute what `Attention` computes, from the same weights."""

    def applies_to(self, attention: "Attention") -> bool: ...

    def project_keys_values(
        self, attention: "Attention", x_BMC: Tensor, mask_BM: Tensor | None, rotation: Rotation | None
    ) -> Any: ...

    def attend(
        self,
        attention: "Attention",
        q_BOQ: Tensor,
        key_values: Any,
        query_mask_BO: Tensor | None,
        pair_mask: PairMask | None,
        query_rotation: Rotation | None,
    ) -> Tensor: ...


class Attention(nn.Module):
    """Multi-head attention, softmax(q k^T / sqrt(K)) v, of queries over inputs (appendix E, equations 1 to 3).

    Args:
        query_channels: Q, channels of the queries and of the output.
        input_channels: C, channels of the inputs, from which keys and values are projected.
        heads: number of heads; it divides `qk_channels` and `v_channels`.
        qk_channels: channels of queries and keys over all heads; `input_channels` by default.
        v_channels: channels of values over all heads; `qk_channels` by default.
        dropout: probability of dropping an attention weight in training.
        longer: which array is expected to be longer; `kernels.optimize` chooses an implementation by it.
        kv_heads: heads of keys and values, each for `heads / kv_heads` heads of queries; `heads` by default.
        bias: whether the projections of queries, keys and values have a bias; `output_bias` for that of the output.
        qk_norm: whether queries and keys are normalized before the heads are split.
        rotate_values: whether a rotation applies to values, too.

    Attributes:
        kernel: computes the result in place of the formula; None for the formula.

    Raises:
        PerceiversError: `heads` does not divide the channels, or `kv_heads` the heads.
    """

    kernel: Kernel | None = None

    def __init__(
        self,
        query_channels: int,
        input_channels: int,
        heads: int = 1,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        dropout: float = 0.0,
        longer: Literal["queries", "inputs"] | None = None,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
        output_bias: bool = True,
        qk_norm: bool = False,
        rotate_values: bool = False,
    ) -> None:
        super().__init__()
        qk_channels = input_channels if qk_channels is None else qk_channels
        v_channels = qk_channels if v_channels is None else v_channels
        kv_heads = heads if kv_heads is None else kv_heads
        for field, channels in (("qk_channels", qk_channels), ("v_channels", v_channels)):
            if heads < 1 or channels % heads:
                raise PerceiversError(f"{field} = {channels} cannot be split over heads = {heads}: choose a divisor.")
        if kv_heads < 1 or heads % kv_heads:
            raise PerceiversError(f"heads = {heads} cannot share kv_heads = {kv_heads}: choose a divisor.")
        self.heads = heads
        self.kv_heads = kv_heads
        self.longer = longer
        self.rotate_values = rotate_values
        self.scale = math.sqrt(heads / qk_channels)
        self.query = Linear(query_channels, qk_channels, bias)
        self.key = Linear(input_channels, qk_channels // heads * kv_heads, bias)
        self.value = Linear(input_channels, v_channels // heads * kv_heads, bias)
        self.norm_query = nn.LayerNorm(qk_channels) if qk_norm else nn.Identity()
        self.norm_key = nn.LayerNorm(self.key.out_features) if qk_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.output = Linear(v_channels, query_channels, output_bias)

    def forward(
        self,
        q_BOQ: Tensor,
        x_BMC: Tensor | KeyValues,
        mask_BM: Tensor | None = None,
        query_mask_BO: Tensor | None = None,
        pair_mask: PairMask | None = None,
        query_rotation: Rotation | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """Attends from queries to inputs, or to their keys and values; [B, O, Q], [B, M, C] -> [B, O, Q].

        Inputs where `mask_BM` is False have weight 0, and so have those that the pair mask, [B or 1, O, M], hides from
        a query. A query whose inputs are all masked reads zeros (before the output projection, which has a bias), and
        so does a query where `query_mask_BO` is False. Rotations turn queries and keys by their positions.
        """
        key_values = self.project_keys_values(x_BMC, mask_BM, rotation) if isinstance(x_BMC, Tensor) else x_BMC
        query_mask_BO = to_bool_mask(query_mask_BO)
        if self.active_kernel is not None:
            return self.active_kernel.attend(self, q_BOQ, key_values, query_mask_BO, pair_mask, query_rotation)
        k_BHMK, v_BHMV, mask_BM = key_values
        q_BHOK = self.split_queries(self.query(q_BOQ), query_rotation)
        score_BHOM = (self.scale * q_BHOK) @ k_BHMK.mT
        mask_BOM = combine_masks(mask_BM, pair_mask, *score_BHOM.shape[2:])
        if mask_BOM is not None:
            score_BHOM = score_BHOM.masked_fill(~mask_BOM[:, None], torch.finfo(score_BHOM.dtype).min)
        weight_BHOM = score_BHOM.softmax(-1, dtype=torch.promote_types(score_BHOM.dtype, torch.float32))
        if mask_BOM is not None:  # where no input is real, all weights are 0
            weight_BHOM = weight_BHOM * mask_BOM[:, None]
        if query_mask_BO is not None:
            weight_BHOM = weight_BHOM * query_mask_BO[:, None, :, None]
        r_BHOV = self.dropout(weight_BHOM).to(v_BHMV.dtype) @ v_BHMV
        return self.output(self.join_heads(r_BHOV, query_rotation))

    def project_keys_values(
        self, x_BMC: Tensor, mask_BM: Tensor | None = None, rotation: Rotation | None = None
    ) -> KeyValues:
        """Projects inputs to keys and values."""
        mask_BM = to_bool_mask(mask_BM)
        if self.active_kernel is not None:
            return self.active_kernel.project_keys_values(self, x_BMC, mask_BM, rotation)
        return self.split_keys_values(self.key(x_BMC), self.value(x_BMC), mask_BM, rotation)

    def split_queries(self, q_BOK: Tensor, rotation: Rotation | None) -> Tensor:
        """Normalizes projected queries, separates their heads, and rotates them; [B, O, H * K] -> [B, H, O, K]."""
        return rotate(self.split_heads(self.norm_query(q_BOK), self.heads), rotation)

    def split_keys_values(
        self, k_BMK: Tensor, v_BMV: Tensor, mask_BM: Tensor | None, rotation: Rotation | None
    ) -> KeyValues:
        """Does the same with projected keys and values, and repeats heads that several heads of queries share."""
        k_BHMK = rotate(self.split_heads(self.norm_key(k_BMK), self.kv_heads), rotation)
        v_BHMV = rotate(self.split_heads(v_BMV, self.kv_heads), rotation if self.rotate_values else None)
        repeats = self.heads // self.kv_heads
        if repeats > 1:  # in the layout of the projection: torch.export fails for arrays of any length in another
            k_BHMK, v_BHMV = (x.transpose(1, 2).repeat_interleave(repeats, 2).transpose(1, 2) for x in (k_BHMK, v_BHMV))
        return KeyValues(k_BHMK, v_BHMV, mask_BM)

    def join_heads(self, r_BHOV: Tensor, query_rotation: Rotation | None) -> Tensor:
        """Joins what the heads read, relative to the query's position if values are rotated; -> [B, O, H * V]."""
        if self.rotate_values and query_rotation is not None:
            r_BHOV = rotate(r_BHOV, query_rotation.inverse())
        return r_BHOV.transpose(1, 2).flatten(2)

    def check_rotation(self, channels: int) -> None:
        """Raises a PerceiversError if a head has fewer channels than rotary positions rotate."""
        width = (
            self.query.out_features if not self.rotate_values else min(self.query.out_features, self.output.in_features)
        )
        if width // self.heads < channels:
            raise PerceiversError(
                f"rotary positions rotate {channels} channels of each head, but some heads have {width // self.heads}: "
                f"choose fewer, or wider heads."
            )

    @property
    def active_kernel(self) -> Kernel | None:
        """The kernel, if there is one and nothing is attached to this layer that it would bypass."""
        return self.kernel if self.kernel is not None and self.kernel.applies_to(self) else None

    @staticmethod
    def split_heads(x_BMC: Tensor, heads: int) -> Tensor:
        """Separates the heads; [B, M, H * K] -> [B, H, M, K]."""
        return x_BMC.unflatten(-1, (heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with a GELU between them; the hidden layer is `widening_factor` times as wide.

    A gated MLP multiplies the hidden layer by a GELU of another linear layer (Shazeer, 2020, "GLU Variants Improve
    Transformer").
    """

    def __init__(
        self,
        channels: int,
        widening_factor: int = 1,
        activation: Activation = "tanh",
        gated: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gated = gated
        self.hidden = Linear(channels, widening_factor * channels * (2 if gated else 1), bias)
        self.output = Linear(widening_factor * channels, channels, bias)

    def forward(self, x_BMC: Tensor) -> Tensor:
        """[B, M, C] -> [B, M, C]."""
        return self.output(self.widen(x_BMC))

    def widen(self, x_BMC: Tensor) -> Tensor:
        """Computes the hidden layer; [B, M, C] -> [B, M, widening_factor * C]."""
        if not self.gated:
            return activate(self.hidden(x_BMC), self.activation)
        hidden_BMW, gate_BMW = self.hidden(x_BMC).chunk(2, -1)
        return hidden_BMW * activate(gate_BMW, self.activation)


class CrossAttention(nn.Module):
    """Queries attend to inputs: how the model encodes, and how it decodes (appendix E, equations 4 to 6).

    Args:
        query_channels, input_channels, heads, qk_channels, v_channels, dropout, longer: as in `Attention`.
        widening_factor: width of the MLP, in query channels; 0 for no MLP.
        query_residual: whether the queries are added to what they read; decoders may leave this out.
        gelu: as in `Sizes`.
        gated: whether the MLP is gated.
        rotate_values: whether a rotation applies to values, too.
    """

    def __init__(
        self,
        query_channels: int,
        input_channels: int,
        heads: int = 1,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        widening_factor: int = 1,
        query_residual: bool = True,
        dropout: float = 0.0,
        gelu: Gelu = "tanh",
        longer: Literal["queries", "inputs"] | None = None,
        *,
        gated: bool = False,
        rotate_values: bool = False,
    ) -> None:
        super().__init__()
        self.query_residual = query_residual
        self.norm_q = nn.LayerNorm(query_channels)
        self.norm_x = nn.LayerNorm(input_channels)
        self.attention = Attention(
            query_channels, input_channels, heads, qk_channels, v_channels, dropout, longer, rotate_values=rotate_values
        )
        if widening_factor:
            self.norm_h = nn.LayerNorm(query_channels)
            self.mlp = MLP(query_channels, widening_factor, gelu, gated)

    def forward(
        self,
        q_BOQ: Tensor,
        x_BMC: Tensor | KeyValues,
        mask_BM: Tensor | None = None,
        query_mask_BO: Tensor | None = None,
        pair_mask: PairMask | None = None,
        query_rotation: Rotation | None = None,
        rotation: Rotation | None = None,
    ) -> Tensor:
        """Cross-attends queries to inputs; arguments as in `Attention.forward`; [B, O, Q], [B, M, C] -> [B, O, Q]."""
        key_values = self.project_keys_values(x_BMC, mask_BM, rotation) if isinstance(x_BMC, Tensor) else x_BMC
        a_BOQ = self.attention(self.norm_q(q_BOQ), key_values, None, query_mask_BO, pair_mask, query_rotation)
        h_BOQ = a_BOQ + q_BOQ if self.query_residual else a_BOQ
        return h_BOQ + self.mlp(self.norm_h(h_BOQ)) if hasattr(self, "mlp") else h_BOQ

    def project_keys_values(
        self, x_BMC: Tensor, mask_BM: Tensor | None = None, rotation: Rotation | None = None
    ) -> KeyValues:
        """Projects inputs to keys and values, once for any number of queries."""
        return self.attention.project_keys_values(self.norm_x(x_BMC), mask_BM, rotation)


class SelfAttention(nn.Module):
    """A layer of the processor: latents attend to each other (appendix E). Arguments as in `CrossAttention`."""

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        widening_factor: int = 1,
        dropout: float = 0.0,
        gelu: Gelu = "tanh",
        *,
        gated: bool = False,
        rotate_values: bool = False,
    ) -> None:
        super().__init__()
        self.norm_z = nn.LayerNorm(channels)
        self.attention = Attention(
            channels, channels, heads, qk_channels, v_channels, dropout, rotate_values=rotate_values
        )
        self.norm_h = nn.LayerNorm(channels)
        self.mlp = MLP(channels, widening_factor, gelu, gated)

    def forward(
        self,
        z_BND: Tensor,
        mask_BN: Tensor | None = None,
        pair_mask: PairMask | None = None,
        rotation: Rotation | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """[B, N, D] -> [B, N, D]; elements where `mask_BN` is False get no weight, others as in `Attention.forward`.

        With a cache, the elements are added to it, without a mask, and attend to all in it.
        """
        n_BND = self.norm_z(z_BND)
        x = n_BND if cache is None else cache.append(self.attention.project_keys_values(n_BND, None, rotation))
        h_BND = z_BND + self.attention(n_BND, x, mask_BN, None, pair_mask, rotation, rotation)
        return h_BND + self.mlp(self.norm_h(h_BND))
