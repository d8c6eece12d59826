"""Attention, and the two blocks made of it: cross-attention and self-attention (Perceiver IO, section 3.1, appendix E).

Shape suffixes:
    B batch, O queries, M inputs, H heads, K channels of a head of queries and keys, V of values,
    Q query channels, C input channels, D latent channels, W channels of an MLP's hidden layer, E output channels
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.attend import attend, known
from perceivers.model.linear import Linear, project
from perceivers.model.sizes import Gelu


class Remembered(NamedTuple):
    """What queries need of the inputs: computed once, for however many queries there will be.

    Attributes:
        k_BHMK, v_BHMV: keys and values.
        mask_BM: which inputs are real; None: all are.
        bias_BM: what is added to all scores of an input.
        projected: which side of the attention all weights are applied to, or None for each to its own.
    """

    k_BHMK: Tensor
    v_BHMV: Tensor
    mask_BM: Tensor | None = None
    bias_BM: Tensor | None = None
    projected: Literal["queries", "inputs"] | None = None


class Attention(nn.Module):
    """Multi-head attention of queries over inputs, each with channels of its own.

    Args:
        query_channels: Q, channels of the queries and of the output.
        input_channels: C, channels of the inputs, from which keys and values are made.
        heads: number of heads; divides `qk_channels` and `v_channels`.
        qk_channels: channels of queries and keys over all heads; as many as the inputs have, if not given.
        v_channels: channels of the values over all heads; as many as `qk_channels`, if not given.
        dropout: probability with which an attention weight is dropped in training.
        long: which of the two arrays is usually the longer one, if one is; with a single head it is not projected.

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
        self.scale = math.sqrt(heads / qk_channels)
        self.query = Linear(query_channels, qk_channels)
        self.key = Linear(input_channels, qk_channels)
        self.value = Linear(input_channels, v_channels)
        self.output = Linear(v_channels, query_channels)

    def forward(
        self,
        q_BOQ: Tensor,
        x_BMC: Tensor | Remembered,
        mask_BM: Tensor | None = None,
        query_mask_BO: Tensor | None = None,
    ) -> Tensor:
        """Attends from queries to inputs, or to what was remembered of them; [B, O, Q], [B, M, C] -> [B, O, Q].

        Inputs where `mask_BM` is False get no weight; a query all of whose inputs are masked reads zeros (before the
        output projection, which has a bias), and so does a query where `query_mask_BO` is False.
        """
        seen = x_BMC if isinstance(x_BMC, Remembered) else self.remember(x_BMC, mask_BM)
        q_BHOK = self.ask(q_BOQ, seen, query_mask_BO)
        dropout = self.dropout if self.training else 0.0
        a_BHOV = attend(q_BHOK, seen.k_BHMK, seen.v_BHMV, seen.mask_BM, seen.bias_BM, dropout, self.scale)
        a_BOV = a_BHOV.transpose(1, 2).flatten(2)
        if seen.projected == "queries":  # weights sum to 1, so that the bias of the values comes out as it is
            a_BOV = self.value(a_BOV)
            if seen.mask_BM is not None:
                a_BOV = a_BOV.masked_fill(~seen.mask_BM.any(-1)[:, None, None], 0)
        if query_mask_BO is not None:
            a_BOV = a_BOV.masked_fill(~query_mask_BO[..., None], 0)
        if seen.projected == "inputs":
            return a_BOV + self.output.bias
        return on_real(self.output, a_BOV, query_mask_BO)

    def remember(self, x_BMC: Tensor, mask_BM: Tensor | None = None) -> Remembered:
        """Keys and values of inputs.

        With one head, all weights are applied to the shorter side. A score is q W_q (x W_k)^T: products being
        associative, both weights can be applied to the queries or both to the inputs, and so can those of values and
        output. This saves work and, above all, the memory of projections of the longer array.
        """
        layers = (self.query, self.key, self.value, self.output)
        plain = all(type(layer) is Linear for layer in layers)  # not one that adapts or quantises its weight
        if not (self.saves and self.rearrange and plain) or (self.dropout and self.training):
            k_BMK, v_BMV = on_real(self.key, x_BMC, mask_BM), on_real(self.value, x_BMC, mask_BM)
            return Remembered(self.split(k_BMK), self.split(v_BMV), mask_BM)
        if self.long == "inputs":
            return Remembered(x_BMC[:, None], x_BMC[:, None], mask_BM, None, "queries")
        k_BMK = self.key(x_BMC)
        k_BMQ = k_BMK @ self.query.weight
        v_BMQ = project(self.value(x_BMC), self.output.weight)
        bias_BM = self.scale * k_BMK @ self.query.bias
        return Remembered(k_BMQ[:, None], v_BMQ[:, None], mask_BM, bias_BM, "inputs")

    def ask(self, q_BOQ: Tensor, seen: Remembered, query_mask_BO: Tensor | None = None) -> Tensor:
        """What keys are compared with; -> [B, H, O, K]."""
        if seen.projected == "inputs":
            return q_BOQ[:, None]
        q_BOK = on_real(self.query, q_BOQ, query_mask_BO)
        if seen.projected == "queries":
            # The bias of the keys adds the same to all scores of a query, which changes no weight; times 0 it is in
            # the graph, so that it gets its gradient.
            return (q_BOK @ self.key.weight + 0 * self.key.bias.sum())[:, None]
        return self.split(q_BOK)

    def weights(
        self,
        q_BOQ: Tensor,
        x_BMC: Tensor | Remembered,
        mask_BM: Tensor | None = None,
        query_mask_BO: Tensor | None = None,
    ) -> Tensor:
        """The attention weights that `forward` uses without forming them, in float32.

        -> [B, H, O, M]; rows sum to 1, or are 0 where all is masked.
        """
        seen = x_BMC if isinstance(x_BMC, Remembered) else self.remember(x_BMC, mask_BM)
        q_BHOK = self.ask(q_BOQ, seen)
        score_BHOM = self.scale * q_BHOK.float() @ seen.k_BHMK.float().mT
        if seen.bias_BM is not None:
            score_BHOM = score_BHOM + seen.bias_BM[:, None, None].float()
        if seen.mask_BM is not None:
            score_BHOM = score_BHOM.masked_fill(~seen.mask_BM[:, None, None], -math.inf)
        weight_BHOM = score_BHOM.softmax(-1).nan_to_num()  # of an example without real inputs
        return weight_BHOM if query_mask_BO is None else weight_BHOM * query_mask_BO[:, None, :, None]

    def split(self, x_BMC: Tensor) -> Tensor:
        """Separates the heads; [B, M, H * K] -> [B, H, M, K]."""
        return x_BMC.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def on_real(layer: Callable[[Tensor], Tensor], x_BMC: Tensor, mask_BM: Tensor | None) -> Tensor:
    """Applies what works on every vector for itself; [B, M, C] -> [B, M, E].

    It does so to the vectors that are real and to one of the others, which are all alike or will not be read.
    """
    if mask_BM is None or not known(mask_BM):
        return layer(x_BMC)
    mask_BM = mask_BM.expand(x_BMC.shape[:2])
    other = mask_BM.flatten().int().argmin()
    one_E = layer(x_BMC.flatten(0, 1)[other][None])[0]
    return one_E.expand(*mask_BM.shape, -1).index_put((mask_BM,), layer(x_BMC[mask_BM]))


def gelu(x: Tensor, kind: Gelu) -> Tensor:
    """Computes GELU, by its tanh approximation or exactly."""
    return F.gelu(x, approximate="none" if kind == "exact" else kind)


class MLP(nn.Module):
    """Two linear layers with a GELU between, `widening_factor` times as wide inside as outside."""

    def __init__(self, channels: int, widening_factor: int = 1, gelu: Gelu = "tanh") -> None:
        super().__init__()
        self.gelu = gelu
        self.hidden = Linear(channels, widening_factor * channels)
        self.output = Linear(widening_factor * channels, channels)

    def forward(self, x_BMC: Tensor) -> Tensor:
        """[B, M, C] -> [B, M, C]."""
        return self.output(self.activate(x_BMC))

    def activate(self, x_BMC: Tensor) -> Tensor:
        """The hidden layer; [B, M, C] -> [B, M, W]."""
        return gelu(self.hidden(x_BMC), self.gelu)


class CrossAttention(nn.Module):
    """Queries read from inputs: how the model encodes, and how it decodes (appendix E).

    Args:
        query_residual: add the queries to what they attended to; decoders may leave this out.
        widening_factor: width of the MLP, in query channels.
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
        widening_factor: int = 1,
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
        self.mlp = MLP(query_channels, widening_factor, gelu)

    def forward(
        self,
        q_BOQ: Tensor,
        x_BMC: Tensor | Remembered,
        mask_BM: Tensor | None = None,
        query_mask_BO: Tensor | None = None,
        last: Sequence[nn.Module] = (),
    ) -> Tensor:
        """Cross-attends queries to inputs, or to what was remembered of them; [B, O, Q], [B, M, C] -> [B, O, Q].

        Masked inputs get no weight; masked queries read nothing. Layers of `last` are applied to the result, one after
        another.
        """
        seen = x_BMC if isinstance(x_BMC, Remembered) else self.remember(x_BMC, mask_BM)
        a_BOQ = self.attention(self.norm_q(q_BOQ), seen, None, query_mask_BO)
        h_BOQ = a_BOQ + q_BOQ if self.query_residual else a_BOQ
        alike = None if self.query_residual else query_mask_BO  # what read nothing has nothing that tells it apart
        return on_real(partial(self.finish, last), h_BOQ, alike)

    def remember(self, x_BMC: Tensor, mask_BM: Tensor | None = None) -> Remembered:
        """What queries need of inputs; see `Attention.remember`."""
        return self.attention.remember(self.norm_x(x_BMC), mask_BM)

    def finish(self, last: Sequence[nn.Module], h_BOQ: Tensor) -> Tensor:
        """The MLP, its residual, and the layers after it."""
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
    plain = [layer for layer in last if type(layer) is Linear]  # not one that adapts or quantises its weight
    few = plain and plain[-1].out_features <= FEW_CHANNELS * h_BOQ.shape[-1]
    if not rearrange or not few or len(plain) < len(last) or type(output) is not Linear:
        y_BOE = h_BOQ + output(hidden_BOW)
        for layer in last:
            y_BOE = layer(y_BOE)
        return y_BOE
    weight: Tensor = plain[-1].weight
    bias: Tensor = plain[-1].bias
    for layer in reversed(plain[:-1]):
        weight, bias = weight @ layer.weight, weight @ layer.bias + bias
    return project(h_BOQ, weight, bias) + project(hidden_BOW, weight @ output.weight, weight @ output.bias)


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
        """[B, N, D] -> [B, N, D]; nothing is read where `mask_BN` is False."""
        n_BND = self.norm_z(z_BND)
        h_BND = z_BND + self.attention(n_BND, n_BND, mask_BN)
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
