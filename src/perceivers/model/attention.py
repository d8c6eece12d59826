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
from perceivers.model.linear import Linear, gelu
from perceivers.model.masks import to_bool_mask
from perceivers.model.sizes import Gelu


class KeyValues(NamedTuple):
    """Keys and values of an input array, computed once for any number of queries; `mask_BM` is True for real inputs."""

    k_BHMK: Tensor
    v_BHMV: Tensor
    mask_BM: Tensor | None = None


class Kernel(Protocol):
    """Another way to compute what `Attention` computes, from the same weights."""

    def applies_to(self, attention: "Attention") -> bool: ...

    def project_keys_values(self, attention: "Attention", x_BMC: Tensor, mask_BM: Tensor | None) -> Any: ...

    def attend(
        self, attention: "Attention", q_BOQ: Tensor, key_values: Any, query_mask_BO: Tensor | None
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

    Attributes:
        kernel: computes the result in place of the formula; None for the formula.

    Raises:
        PerceiversError: `heads` does not divide the channels.
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
    ) -> None:
        super().__init__()
        qk_channels = input_channels if qk_channels is None else qk_channels
        v_channels = qk_channels if v_channels is None else v_channels
        for field, channels in (("qk_channels", qk_channels), ("v_channels", v_channels)):
            if heads < 1 or channels % heads:
                raise PerceiversError(f"{field} = {channels} cannot be split over heads = {heads}: choose a divisor.")
        self.heads = heads
        self.longer = longer
        self.scale = math.sqrt(heads / qk_channels)
        self.query = Linear(query_channels, qk_channels)
        self.key = Linear(input_channels, qk_channels)
        self.value = Linear(input_channels, v_channels)
        self.dropout = nn.Dropout(dropout)
        self.output = Linear(v_channels, query_channels)

    def forward(
        self,
        q_BOQ: Tensor,
        x_BMC: Tensor | KeyValues,
        mask_BM: Tensor | None = None,
        query_mask_BO: Tensor | None = None,
    ) -> Tensor:
        """Attends from queries to inputs, or to their keys and values; [B, O, Q], [B, M, C] -> [B, O, Q].

        Inputs where `mask_BM` is False have weight 0. A query whose inputs are all masked reads zeros (before the
        output projection, which has a bias), and so does a query where `query_mask_BO` is False.
        """
        key_values = self.project_keys_values(x_BMC, mask_BM) if isinstance(x_BMC, Tensor) else x_BMC
        query_mask_BO = to_bool_mask(query_mask_BO)
        if self.active_kernel is not None:
            return self.active_kernel.attend(self, q_BOQ, key_values, query_mask_BO)
        k_BHMK, v_BHMV, mask_BM = key_values
        q_BHOK = self.split_heads(self.query(q_BOQ))
        score_BHOM = (self.scale * q_BHOK) @ k_BHMK.mT
        if mask_BM is not None:
            score_BHOM = score_BHOM.masked_fill(~mask_BM[:, None, None], torch.finfo(score_BHOM.dtype).min)
        weight_BHOM = score_BHOM.softmax(-1, dtype=torch.promote_types(score_BHOM.dtype, torch.float32))
        if mask_BM is not None:  # where no input is real, all weights are 0
            weight_BHOM = weight_BHOM * mask_BM[:, None, None]
        if query_mask_BO is not None:
            weight_BHOM = weight_BHOM * query_mask_BO[:, None, :, None]
        r_BHOV = self.dropout(weight_BHOM).to(v_BHMV.dtype) @ v_BHMV
        return self.output(r_BHOV.transpose(1, 2).flatten(2))

    def project_keys_values(self, x_BMC: Tensor, mask_BM: Tensor | None = None) -> KeyValues:
        """Projects inputs to keys and values."""
        mask_BM = to_bool_mask(mask_BM)
        if self.active_kernel is not None:
            return self.active_kernel.project_keys_values(self, x_BMC, mask_BM)
        return KeyValues(self.split_heads(self.key(x_BMC)), self.split_heads(self.value(x_BMC)), mask_BM)

    @property
    def active_kernel(self) -> Kernel | None:
        """The kernel, if there is one and nothing is attached to this layer that it would bypass."""
        return self.kernel if self.kernel is not None and self.kernel.applies_to(self) else None

    def split_heads(self, x_BMC: Tensor) -> Tensor:
        """Separates the heads; [B, M, H * K] -> [B, H, M, K]."""
        return x_BMC.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with a GELU between them; the hidden layer is `widening_factor` times as wide."""

    def __init__(self, channels: int, widening_factor: int = 1, gelu: Gelu = "tanh") -> None:
        super().__init__()
        self.gelu = gelu
        self.hidden = Linear(channels, widening_factor * channels)
        self.output = Linear(widening_factor * channels, channels)

    def forward(self, x_BMC: Tensor) -> Tensor:
        """[B, M, C] -> [B, M, C]."""
        return self.output(gelu(self.hidden(x_BMC), self.gelu))


class CrossAttention(nn.Module):
    """Queries attend to inputs: how the model encodes, and how it decodes (appendix E, equations 4 to 6).

    Args:
        query_channels, input_channels, heads, qk_channels, v_channels, dropout, longer: as in `Attention`.
        widening_factor: width of the MLP, in query channels.
        query_residual: whether the queries are added to what they read; decoders may leave this out.
        gelu: as in `Sizes`.
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
    ) -> None:
        super().__init__()
        self.query_residual = query_residual
        self.norm_q = nn.LayerNorm(query_channels)
        self.norm_x = nn.LayerNorm(input_channels)
        self.attention = Attention(query_channels, input_channels, heads, qk_channels, v_channels, dropout, longer)
        self.norm_h = nn.LayerNorm(query_channels)
        self.mlp = MLP(query_channels, widening_factor, gelu)

    def forward(
        self,
        q_BOQ: Tensor,
        x_BMC: Tensor | KeyValues,
        mask_BM: Tensor | None = None,
        query_mask_BO: Tensor | None = None,
    ) -> Tensor:
        """Cross-attends queries to inputs; arguments as in `Attention.forward`; [B, O, Q], [B, M, C] -> [B, O, Q]."""
        key_values = self.project_keys_values(x_BMC, mask_BM) if isinstance(x_BMC, Tensor) else x_BMC
        a_BOQ = self.attention(self.norm_q(q_BOQ), key_values, None, query_mask_BO)
        h_BOQ = a_BOQ + q_BOQ if self.query_residual else a_BOQ
        return h_BOQ + self.mlp(self.norm_h(h_BOQ))

    def project_keys_values(self, x_BMC: Tensor, mask_BM: Tensor | None = None) -> KeyValues:
        """Projects inputs to keys and values, once for any number of queries."""
        return self.attention.project_keys_values(self.norm_x(x_BMC), mask_BM)


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
    ) -> None:
        super().__init__()
        self.norm_z = nn.LayerNorm(channels)
        self.attention = Attention(channels, channels, heads, qk_channels, v_channels, dropout)
        self.norm_h = nn.LayerNorm(channels)
        self.mlp = MLP(channels, widening_factor, gelu)

    def forward(self, z_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]; elements where `mask_BN` is False get no weight."""
        n_BND = self.norm_z(z_BND)
        h_BND = z_BND + self.attention(n_BND, n_BND, mask_BN)
        return h_BND + self.mlp(self.norm_h(h_BND))
