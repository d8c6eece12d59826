"""Attention, and the two blocks made of it: cross-attention and self-attention (Perceiver IO, section 3.1, appendix E).

Shape suffixes:
    B batch, O queries, M inputs, H heads, K channels of one head,
    Q query channels, C input channels, D latent channels, W channels of an MLP's hidden layer, E output channels
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.model.errors import PerceiversError

Gelu = Literal["tanh", "none"]
"""How GELU is computed: by the tanh approximation (the original code) or exactly (the `transformers` port)."""


def linear(in_channels: int, out_channels: int) -> nn.Linear:
    """A linear layer initialised as in the original code: truncated normal of variance 1 / fan-in, zero bias."""
    layer = nn.Linear(in_channels, out_channels)
    lecun_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def lecun_normal_(weight: Tensor) -> None:
    """Fills `weight` from a normal of variance 1 / fan-in, truncated at two standard deviations before scaling."""
    std = 1 / math.sqrt(weight[0].numel()) / 0.87962566103423978  # std of a unit normal truncated at +-2
    truncated_normal_(weight, std)


def learned(*shape: int) -> nn.Parameter:
    """A learned array (latents, positions, queries), truncated normal of std 0.02."""
    return nn.Parameter(truncated_normal_(torch.empty(shape), std=0.02))


@torch.no_grad()
def truncated_normal_(array: Tensor, std: float) -> Tensor:
    """Fills `array` from a normal truncated at two of its standard deviations, by the inverse of its distribution.

    A large model is made in seconds so; `torch.nn.init.trunc_normal_`, which draws again what falls outside, takes 18
    times as long.
    """
    bound = math.erf(math.sqrt(2))
    return array.uniform_(-bound, bound).erfinv_().mul_(math.sqrt(2) * std).clamp_(-2 * std, 2 * std)


class Attention(nn.Module):
    """Multi-head attention of queries over inputs, each with channels of its own.

    Args:
        query_channels: Q, channels of the queries and of the output.
        input_channels: C, channels of the inputs, from which keys and values are made.
        heads: number of heads; divides `qk_channels` and `v_channels`.
        qk_channels: channels of queries and keys over all heads; as many as the inputs have, if not given.
        v_channels: channels of the values over all heads; as many as `qk_channels`, if not given.
        dropout: probability with which an attention weight is dropped in training.
        long: which of the two arrays is usually the longer one, if one is; with a single head `rearranged` then saves
            its projections.

    Attributes:
        rearrange: whether it may compute in another order than the formula has.

    Raises:
        PerceiversError: `heads` does not divide the channels.
    """

    rearrange = True

    def __init__(
        self,
        query_channels: int,
        input_channels: int,
        heads: int = 1,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        dropout: float = 0.0,
        long: Literal["queries", "inputs"] | None = None,
    ) -> None:
        super().__init__()
        qk_channels = input_channels if qk_channels is None else qk_channels
        v_channels = qk_channels if v_channels is None else v_channels
        for field, channels in (("qk_channels", qk_channels), ("v_channels", v_channels)):
            if heads < 1 or channels % heads:
                raise PerceiversError(
                    f"{field} = {channels} cannot be split over heads = {heads}: "
                    f"choose a number of heads that divides {channels}, or set {field} to a multiple of {heads}."
                )
        self.heads = heads
        self.dropout = dropout
        narrow = min(qk_channels, v_channels)
        self.saves = heads == 1 and (
            (long == "inputs" and input_channels <= narrow) or (long == "queries" and query_channels < narrow)
        )
        self.long = long
        self.query = linear(query_channels, qk_channels)
        self.key = linear(input_channels, qk_channels)
        self.value = linear(input_channels, v_channels)
        self.output = linear(v_channels, query_channels)

    def forward(
        self, q_BOQ: Tensor, x_BMC: Tensor, mask_BM: Tensor | None = None, query_mask_BO: Tensor | None = None
    ) -> Tensor:
        """Attends from queries to inputs; [B, O, Q], [B, M, C] -> [B, O, Q].

        Inputs where `mask_BM` is False get no weight. A query that is masked itself, or all of whose inputs are,
        attends to nothing: its values are zeros (before the output projection, which has a bias).
        """
        dropout = self.dropout if self.training else 0.0
        layers = (self.query, self.key, self.value, self.output)
        plain = all(type(layer) is nn.Linear for layer in layers)  # not one that adapts or quantises its weight
        unfused = self.long == "queries" and torch.is_grad_enabled()  # fused kernels give a bias of scores no gradient
        if self.saves and self.rearrange and plain and not dropout and not unfused:
            return self.rearranged(q_BOQ, x_BMC, mask_BM, query_mask_BO)
        q_BHOK = self.split(self.query(q_BOQ))
        k_BHMK, v_BHMK = self.split(self.key(x_BMC)), self.split(self.value(x_BMC))
        mask_B11M = None if mask_BM is None else attendable(mask_BM)
        a_BHOK = F.scaled_dot_product_attention(q_BHOK, k_BHMK, v_BHMK, mask_B11M, dropout)
        a_BHOK = wipe(a_BHOK, mask_BM, query_mask_BO)
        return self.output(a_BHOK.transpose(1, 2).flatten(2))

    def rearranged(self, q_BOQ: Tensor, x_BMC: Tensor, mask_BM: Tensor | None, query_mask_BO: Tensor | None) -> Tensor:
        """`forward` with one head, in an order in which the longer array is never projected.

        A score is q W_q (x W_k)^T. Products being associative, both weights can be applied to the shorter array; the
        same holds for values and output. This saves work and, above all, the memory of projections of the longer array.
        """
        scale = 1 / math.sqrt(self.query.out_features)
        if self.long == "inputs":
            # The bias of the keys adds the same to all scores of a query, which changes no weight; times 0 it is in the
            # graph, so that it gets its gradient. Weights sum to 1, so the bias of the values comes out as it is.
            q_B1OC = (self.query(q_BOQ) @ self.key.weight + 0 * self.key.bias.sum())[:, None]
            x_B1MC = x_BMC[:, None]
            mask_B11M = None if mask_BM is None else attendable(mask_BM)
            a_B1OC = F.scaled_dot_product_attention(q_B1OC, x_B1MC, x_B1MC, mask_B11M, scale=scale)
            a_B1OK = wipe(self.value(a_B1OC), mask_BM, query_mask_BO)
            return self.output(a_B1OK[:, 0])
        k_BMK = self.key(x_BMC)
        k_BMQ = k_BMK @ self.query.weight
        v_BMQ = F.linear(self.value(x_BMC), self.output.weight)
        bias_B11M = (scale * k_BMK @ self.query.bias)[:, None, None]
        if mask_BM is not None:
            bias_B11M = bias_B11M.masked_fill(~attendable(mask_BM), -math.inf)
        a_B1OQ = F.scaled_dot_product_attention(
            q_BOQ[:, None], k_BMQ[:, None], v_BMQ[:, None], bias_B11M.to(q_BOQ.dtype), scale=scale
        )
        return wipe(a_B1OQ, mask_BM, query_mask_BO)[:, 0] + self.output.bias

    def weights(
        self, q_BOQ: Tensor, x_BMC: Tensor, mask_BM: Tensor | None = None, query_mask_BO: Tensor | None = None
    ) -> Tensor:
        """The attention weights that `forward` uses without forming them, in float32.

        -> [B, H, O, M]; rows sum to 1, or are 0 where all is masked.
        """
        q_BHOK, k_BHMK = self.split(self.query(q_BOQ)), self.split(self.key(x_BMC))
        score_BHOM = q_BHOK.float() @ k_BHMK.float().transpose(-1, -2) / math.sqrt(q_BHOK.shape[-1])
        if mask_BM is not None:
            score_BHOM = score_BHOM.masked_fill(~attendable(mask_BM), -math.inf)
        return wipe(score_BHOM.softmax(-1), mask_BM, query_mask_BO)

    def split(self, x_BMC: Tensor) -> Tensor:
        """Separates the heads; [B, M, H * K] -> [B, H, M, K]."""
        return x_BMC.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def attendable(mask_BM: Tensor) -> Tensor:
    """The mask in the shape of scores, [B, 1, 1, M]; where all is masked, nothing is (a softmax needs a finite row)."""
    return (mask_BM | ~mask_BM.any(-1, keepdim=True))[:, None, None, :]


def wipe(a_BHOK: Tensor, mask_BM: Tensor | None, query_mask_BO: Tensor | None) -> Tensor:
    """Sets to zero what belongs to masked queries and to queries all of whose inputs are masked."""
    if mask_BM is not None:
        a_BHOK = a_BHOK.masked_fill(~mask_BM.any(-1)[:, None, None, None], 0)
    if query_mask_BO is not None:
        a_BHOK = a_BHOK.masked_fill(~query_mask_BO[:, None, :, None], 0)
    return a_BHOK


class MLP(nn.Module):
    """Two linear layers with a GELU between, `widening` times as wide inside as outside."""

    def __init__(self, channels: int, widening: int = 1, gelu: Gelu = "tanh") -> None:
        super().__init__()
        self.gelu = gelu
        self.hidden = linear(channels, widening * channels)
        self.output = linear(widening * channels, channels)

    def forward(self, x_BMC: Tensor) -> Tensor:
        """[B, M, C] -> [B, M, C]."""
        return self.output(self.activate(x_BMC))

    def activate(self, x_BMC: Tensor) -> Tensor:
        """The hidden layer; [B, M, C] -> [B, M, W]."""
        return F.gelu(self.hidden(x_BMC), approximate=self.gelu)


class CrossAttention(nn.Module):
    """Queries read from inputs: how the model encodes, and how it decodes (appendix E).

    Args:
        query_residual: add the queries to what they attended to; decoders may leave this out.
        widening: width of the MLP, in query channels.
        gelu: which GELU the MLP uses.
        query_channels, input_channels, heads, qk_channels, v_channels, dropout, long: as in `Attention`.
    """

    rearrange = True

    def __init__(
        self,
        query_channels: int,
        input_channels: int,
        heads: int = 1,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        widening: int = 1,
        query_residual: bool = True,
        dropout: float = 0.0,
        gelu: Gelu = "tanh",
        long: Literal["queries", "inputs"] | None = None,
    ) -> None:
        super().__init__()
        self.query_residual = query_residual
        self.norm_q = nn.LayerNorm(query_channels)
        self.norm_x = nn.LayerNorm(input_channels)
        self.attention = Attention(query_channels, input_channels, heads, qk_channels, v_channels, dropout, long)
        self.norm_h = nn.LayerNorm(query_channels)
        self.mlp = MLP(query_channels, widening, gelu)

    def forward(
        self,
        q_BOQ: Tensor,
        x_BMC: Tensor,
        mask_BM: Tensor | None = None,
        query_mask_BO: Tensor | None = None,
        last: Sequence[nn.Module] = (),
    ) -> Tensor:
        """Cross-attends queries to inputs; masked inputs get no weight; [B, O, Q], [B, M, C] -> [B, O, Q].

        Layers of `last` are applied to the result, one after another.
        """
        a_BOQ = self.attention(self.norm_q(q_BOQ), self.norm_x(x_BMC), mask_BM, query_mask_BO)
        h_BOQ = a_BOQ + q_BOQ if self.query_residual else a_BOQ
        layers = [self.mlp.output, *last]
        return sum_then_linear(h_BOQ, self.mlp.activate(self.norm_h(h_BOQ)), layers, self.rearrange)


FEW_CHANNELS = 1 / 8
"""What part of the queries' channels an output may have for `sum_then_linear` to multiply weights first."""


def sum_then_linear(h_BOQ: Tensor, hidden_BOW: Tensor, layers: Sequence[nn.Module], rearrange: bool) -> Tensor:
    """Adds the first of the layers, of the hidden layer, to `h`, and applies the others to the sum; -> [B, O, E].

    All of it is linear. For an output of few channels and many points, such as the colours of every pixel, it takes a
    fraction of the work to multiply the weights of the layers with each other first.
    """
    output, *last = layers
    plain = [layer for layer in last if type(layer) is nn.Linear]  # not one that adapts or quantises its weight
    few = plain and plain[-1].out_features <= FEW_CHANNELS * h_BOQ.shape[-1]
    if not rearrange or not few or len(plain) < len(last) or type(output) is not nn.Linear:
        y_BOE = h_BOQ + output(hidden_BOW)
        for layer in last:
            y_BOE = layer(y_BOE)
        return y_BOE
    weight: Tensor = plain[-1].weight
    bias: Tensor = plain[-1].bias
    for layer in reversed(plain[:-1]):
        weight, bias = weight @ layer.weight, weight @ layer.bias + bias
    return F.linear(h_BOQ, weight, bias) + F.linear(hidden_BOW, weight @ output.weight, weight @ output.bias)


def compute_as_written(module: nn.Module) -> None:
    """Lets every attention inside compute its formula as written, not in an order that saves work: to compare with."""
    for part in module.modules():
        if isinstance(part, Attention | CrossAttention):
            part.rearrange = False


class SelfAttention(nn.Module):
    """One layer of the processor: latents read from each other. Arguments as in `CrossAttention`."""

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        widening: int = 1,
        dropout: float = 0.0,
        gelu: Gelu = "tanh",
    ) -> None:
        super().__init__()
        self.norm_z = nn.LayerNorm(channels)
        self.attention = Attention(channels, channels, heads, qk_channels, v_channels, dropout)
        self.norm_h = nn.LayerNorm(channels)
        self.mlp = MLP(channels, widening, gelu)

    def forward(self, z_BND: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        n_BND = self.norm_z(z_BND)
        h_BND = z_BND + self.attention(n_BND, n_BND)
        return h_BND + self.mlp(self.norm_h(h_BND))


@contextmanager
def record_attention(module: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """While open, collects the weights of every attention that runs inside `module`.

        with record_attention(model.encoder) as maps:
            model.encode({"image": images})
        maps["cross_attentions.0.attention"][0]  # [B, H, N, M]

    Yields:
        For each `Attention`, by its name inside `module`, one [B, H, O, M] a call (a shared layer is called often).
        Memory is that of all the score matrices: record a submodule to have only its own. A compiled module runs
        without its hooks: record it before it is compiled.
    """
    maps: dict[str, list[Tensor]] = {}

    def keep(name: str, attention: Attention, arguments: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            maps.setdefault(name, []).append(attention.weights(*arguments))

    hooks = [
        child.register_forward_pre_hook(partial(keep, name))
        for name, child in module.named_modules()
        if isinstance(child, Attention)
    ]
    try:
        yield maps
    finally:
        for handle in hooks:
            handle.remove()
