"""Attention and decoding in an order of products that takes less work, and none on padding.

Products are associative: with one head, a score is q W_q (x W_k)^T, and both weights can be applied to the queries, or
both to the inputs; so can those of values and output. The longer array is then not projected, which saves work and,
above all, the memory of its projections. A layer with anything attached to it (hooks, parametrizations, pruning,
another class) is not folded and gets whole arrays: it runs as it is.

Shape suffixes as in `perceivers.model.attention`; W hidden channels of an MLP, E output channels
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from perceivers.model.attention import MLP, Attention, CrossAttention, KeyValues
from perceivers.model.eager import is_concrete
from perceivers.model.kernels.attention import scaled_dot_product_attention
from perceivers.model.kernels.onednn import linear
from perceivers.model.linear import Linear
from perceivers.model.masks import PairMask, can_read
from perceivers.model.rotary import Rotation

MAX_FOLDED_OUTPUT_RATIO = 1 / 8
"""Largest ratio of output channels to query channels at which the weights after the decoder are multiplied first."""

MIN_SKIPPED_PRODUCTS = 400
"""Multiplications on padding, for each number of the real elements that is moved, at which leaving it out pays."""


class FoldedKeyValues(NamedTuple):
    """Arrays that a folded layer attends to in place of keys and values."""

    k_B1MK: Tensor
    v_B1MV: Tensor
    mask_BM: Tensor | None
    bias_BM: Tensor | None = None


class FusedAttention:
    """Attention that stores no scores and skips padding."""

    def applies_to(self, attention: Attention) -> bool:
        return is_unmodified(attention.dropout, nn.Dropout)  # a hook there would see the attention weights

    def project_keys_values(
        self, attention: Attention, x_BMC: Tensor, mask_BM: Tensor | None, rotation: Rotation | None
    ) -> Any:
        k_BMK, v_BMV = (skip_padding(layer, x_BMC, mask_BM) for layer in (attention.key, attention.value))
        return attention.split_keys_values(k_BMK, v_BMV, mask_BM, rotation)

    def attend(
        self,
        attention: Attention,
        q_BOQ: Tensor,
        key_values: Any,
        mask_BO: Tensor | None,
        pair_mask: PairMask | None,
        rotation: Rotation | None,
    ) -> Tensor:
        q_BHOK = attention.split_queries(skip_padding(attention.query, q_BOQ, mask_BO), rotation)
        r_BOV = attention.join_heads(read_values(attention, q_BHOK, key_values, pair_mask), rotation)
        return skip_padding(attention.output, fill_masked(r_BOV, mask_BO), mask_BO)


class FoldIntoQueries(FusedAttention):
    """One head, whose weights of keys and values are applied to queries and results instead of the inputs."""

    def project_keys_values(
        self, attention: Attention, x_BMC: Tensor, mask_BM: Tensor | None, rotation: Rotation | None
    ) -> Any:
        if rotation is not None or not can_fold(attention):
            return super().project_keys_values(attention, x_BMC, mask_BM, rotation)
        x_B1MC = x_BMC[:, None]
        return FoldedKeyValues(x_B1MC, x_B1MC, mask_BM)

    def attend(
        self,
        attention: Attention,
        q_BOQ: Tensor,
        key_values: Any,
        mask_BO: Tensor | None,
        pair_mask: PairMask | None,
        rotation: Rotation | None,
    ) -> Tensor:
        if isinstance(key_values, KeyValues):
            return super().attend(attention, q_BOQ, key_values, mask_BO, pair_mask, rotation)
        # The bias of the keys adds the same to all scores of a query, which changes no weight: times 0 it is in the
        # graph and gets its gradient. Weights sum to 1, so that the bias of the values comes out as it is.
        q_BOK = skip_padding(attention.query, q_BOQ, mask_BO)
        q_BOC = linear(q_BOK, attention.key.weight.mT) + 0 * attention.key.bias.sum()
        r_BOC = read_values(attention, q_BOC[:, None], key_values, pair_mask)[:, 0]
        r_BOV = fill_masked(attention.value(r_BOC), can_read(q_BOQ.shape[1], key_values.mask_BM, pair_mask))
        return skip_padding(attention.output, fill_masked(r_BOV, mask_BO), mask_BO)


class FoldIntoInputs(FusedAttention):
    """One head, whose weights of queries and output are applied to keys and values."""

    def project_keys_values(
        self, attention: Attention, x_BMC: Tensor, mask_BM: Tensor | None, rotation: Rotation | None
    ) -> Any:
        if rotation is not None or not can_fold(attention):
            return super().project_keys_values(attention, x_BMC, mask_BM, rotation)
        k_BMK = attention.key(x_BMC)
        k_BMQ = linear(k_BMK, attention.query.weight.mT)
        v_BMQ = linear(attention.value(x_BMC), attention.output.weight)
        bias_BM = attention.scale * k_BMK @ attention.query.bias
        return FoldedKeyValues(k_BMQ[:, None], v_BMQ[:, None], mask_BM, bias_BM)

    def attend(
        self,
        attention: Attention,
        q_BOQ: Tensor,
        key_values: Any,
        mask_BO: Tensor | None,
        pair_mask: PairMask | None,
        rotation: Rotation | None,
    ) -> Tensor:
        if isinstance(key_values, KeyValues):
            return super().attend(attention, q_BOQ, key_values, mask_BO, pair_mask, rotation)
        r_BOQ = read_values(attention, q_BOQ[:, None], key_values, pair_mask)[:, 0]
        return fill_masked(r_BOQ, mask_BO) + attention.output.bias


def read_values(attention: Attention, q_BHOK: Tensor, key_values: Any, pair_mask: PairMask | None) -> Tensor:
    """Computes softmax(q k^T) v; -> [B, H, O, V]."""
    k_BHMK, v_BHMV, mask_BM, bias_BM = (*key_values, None)[:4]
    dropout = attention.dropout.p if attention.dropout.training else 0.0
    scale = attention.scale
    return scaled_dot_product_attention(q_BHOK, k_BHMK, v_BHMV, mask_BM, bias_BM, dropout, scale, pair_mask)


def fill_masked(r_BOV: Tensor, query_mask_BO: Tensor | None) -> Tensor:
    """Sets what masked queries read to zero."""
    return r_BOV if query_mask_BO is None else r_BOV.masked_fill(~query_mask_BO[..., None], 0)


def skip_padding(function: Callable[[Tensor], Tensor], x_BMC: Tensor, mask_BM: Tensor | None) -> Tensor:
    """Applies a function of single elements, skipping padding; [B, M, C] -> [B, M, E].

    It is evaluated on the real elements and on one padding element, whose result stands for all others: they are
    identical, or nobody reads them. A small linear layer is faster on all elements, unless most are padding.
    """
    if mask_BM is None or not is_concrete(mask_BM):
        return function(x_BMC)
    mask_BM = mask_BM.expand(x_BMC.shape[:2])
    if isinstance(function, nn.Module) and not (
        isinstance(function, Linear) and is_unmodified(function, Linear) and is_worth_skipping(function, mask_BM)
    ):
        return function(x_BMC)
    x_TC, mask_T = x_BMC.flatten(0, 1), mask_BM.flatten()
    real_index, padding_index = mask_T.nonzero()[:, 0], mask_T.int().argmin()[None]
    y_TE = function(x_TC.index_select(0, padding_index)).expand(len(mask_T), -1)
    y_TE = y_TE.index_copy(0, real_index, function(x_TC.index_select(0, real_index)))
    return y_TE.unflatten(0, x_BMC.shape[:2])


def is_worth_skipping(layer: Linear, mask_BM: Tensor) -> bool:
    """Returns whether a layer's products with padding take longer than to move the real elements."""
    real, channels, outputs = int(mask_BM.sum()), layer.in_features, layer.out_features
    return channels * outputs * (mask_BM.numel() - real) > MIN_SKIPPED_PRODUCTS * (channels + outputs) * real


def can_fold(attention: Attention) -> bool:
    """Returns whether weights may be applied elsewhere: no weight is dropped, queries and keys are not normalized, and
    all layers have a bias and are as they were built.
    """
    drops = attention.dropout.training and attention.dropout.p > 0
    normalizes = not all(is_unmodified(norm, nn.Identity) for norm in (attention.norm_query, attention.norm_key))
    layers = (attention.query, attention.key, attention.value, attention.output)
    return not (drops or normalizes) and all(is_unmodified(x, Linear) and x.bias is not None for x in layers)


def is_unmodified(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Returns whether a layer is of a class, not of a subclass, with its own parameters and nothing attached to it."""
    return (
        type(layer) is kind
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks)
        and "forward" not in vars(layer)
        and (kind is not Linear or layer._parameters.keys() == {"weight", "bias"})
    )


def is_foldable(decoder: CrossAttention, head: Sequence[nn.Module]) -> bool:
    """Returns whether all layers after the decoder's attention are as they were built."""
    return (
        decoder.attention.kernel is not None
        and is_unmodified(decoder, CrossAttention)
        and hasattr(decoder, "mlp")
        and is_unmodified(decoder.norm_h, nn.LayerNorm)
        and is_unmodified(decoder.mlp, MLP)
        and is_unmodified(decoder.mlp.hidden, Linear)
        and is_unmodified(decoder.mlp.output, Linear)
        and all(is_unmodified(layer, Linear) or is_unmodified(layer, nn.Identity) for layer in head)
    )


def decode(
    decoder: CrossAttention,
    head: Sequence[nn.Module],
    q_BOQ: Tensor,
    key_values: Any,
    query_mask_BO: Tensor | None,
    pair_mask: PairMask | None = None,
    query_rotation: Rotation | None = None,
) -> Tensor:
    """Applies the decoder and the layers after it; -> [B, O, E]."""
    if not is_foldable(decoder, head):
        y_BOE: Tensor = decoder(q_BOQ, key_values, None, query_mask_BO, pair_mask, query_rotation)
        for layer in head:
            y_BOE = layer(y_BOE)
        return y_BOE
    a_BOQ = decoder.attention(decoder.norm_q(q_BOQ), key_values, None, query_mask_BO, pair_mask, query_rotation)
    h_BOQ = a_BOQ + q_BOQ if decoder.query_residual else a_BOQ
    identical_BO = None if decoder.query_residual else query_mask_BO  # masked queries then have the same output
    return skip_padding(partial(apply_mlp_and_head, decoder, head), h_BOQ, identical_BO)


def apply_mlp_and_head(decoder: CrossAttention, head: Sequence[nn.Module], h_BOQ: Tensor) -> Tensor:
    """Applies the MLP with its residual, and the layers of the head; -> [B, O, E].

    All after the GELU is linear. For an output of few channels and many elements, such as the colors of every pixel,
    multiplying the weights with each other first takes a fraction of the work.
    """
    hidden_BOW, output = decoder.mlp.widen(decoder.norm_h(h_BOQ)), decoder.mlp.output
    layers = [layer for layer in head if isinstance(layer, Linear)]  # the others are identities, see `is_foldable`
    if not layers or layers[-1].out_features > MAX_FOLDED_OUTPUT_RATIO * h_BOQ.shape[-1]:
        y_BOE: Tensor = h_BOQ + output(hidden_BOW)
        for layer in layers:
            y_BOE = layer(y_BOE)
        return y_BOE
    weight: Tensor = layers[-1].weight
    bias: Tensor = layers[-1].bias
    for layer in reversed(layers[:-1]):
        weight, bias = linear(weight, layer.weight.mT), weight @ layer.bias + bias
    return linear(h_BOQ, weight, bias) + linear(hidden_BOW, linear(weight, output.weight.mT), weight @ output.bias)
