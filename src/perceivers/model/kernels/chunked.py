"""softmax(q k^T) v as written: in chunks, whose scores are not stored, or at once, with its weights kept for gradients.

Shape suffixes:
    B batch, H heads, O queries, M inputs, K channels of a head of queries and keys, V of values, P padded channels,
    G some of all heads of all examples, R some of the queries; a bias has B = 1 or O = 1 if all share it
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from perceivers.model.kernels.blocked import BlockedAttention, flatten_heads, make_slices, softmax_, sum_dtype
from perceivers.model.kernels.onednn import linear

MIN_CHUNK_QUERIES = 256
"""Minimum queries per chunk: smaller matrix products are inefficient."""

CHANNEL_MULTIPLE = 32
"""Matrix products of other numbers of channels are slower on some processors."""


def attend_in_chunks(
    q_BHOK: Tensor,
    k_BHMK: Tensor,
    v_BHMV: Tensor,
    bias_BOM: Tensor | None,
    scale: float,
    budget: int,
    max_heads: int | None = None,
) -> Tensor:
    """Attends in chunks whose scores take about `budget` bytes; gradients compute the scores again.

    A chunk has up to `max_heads` heads: matrix products of one are computed by `linear`, those of several as a batch.
    Where the scores of `MIN_CHUNK_QUERIES` queries of a head exceed the budget and there is no bias, inputs are taken
    in blocks, head by head.
    """
    arrays = q_BHOK, k_BHMK, v_BHMV, bias_BOM
    if bias_BOM is None and min(q_BHOK.shape[2], MIN_CHUNK_QUERIES) * count_bytes_per_query(k_BHMK) > budget:
        attend = BlockedAttention.apply if needs_gradients(*arrays) else BlockedAttention.forward
        in_blocks_BHOV: Tensor = attend(q_BHOK, k_BHMK, v_BHMV, scale, budget)[0]
        return in_blocks_BHOV
    run = ChunkedAttention.apply if needs_gradients(*arrays) else ChunkedAttention.forward
    a_BHOV: Tensor = run(*arrays, scale, budget, max_heads)
    return a_BHOV


def attend_with_padded_channels(
    q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, bias_BOM: Tensor | None, scale: float, budget: int
) -> Tensor:
    """Attends in chunks with channels of zeros added, up to a number that suits the processor."""
    k_BHMP = pad_channels(k_BHMK)
    v_BHMP = k_BHMP if v_BHMV is k_BHMK else pad_channels(v_BHMV)
    a_BHOP = attend_in_chunks(pad_channels(q_BHOK), k_BHMP, v_BHMP, bias_BOM, scale, budget)
    return a_BHOP[..., : v_BHMV.shape[-1]]


def pad_channels(x_BHMK: Tensor) -> Tensor:
    """Adds channels of zeros up to a multiple; [B, H, M, K] -> [B, H, M, P]."""
    return F.pad(x_BHMK, (0, -x_BHMK.shape[-1] % CHANNEL_MULTIPLE))


def attend_keeping_weights(
    q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, bias_BOM: Tensor | None, scale: float
) -> Tensor:
    """Attends by the formula; the weights are kept for the gradients."""
    q, k, v = (x.flatten(0, 1) for x in (q_BHOK, k_BHMK, v_BHMV))
    bias = bias_of(bias_BOM, q_BHOK.shape[1], slice(0, len(q)), slice(None))
    return matmul(compute_scores(q, k, bias, scale).softmax(-1), v).unflatten(0, q_BHOK.shape[:2])


def needs_gradients(*arrays: Tensor | None) -> bool:
    """Returns whether a gradient is recorded of any of these arrays."""
    return torch.is_grad_enabled() and any(array is not None and array.requires_grad for array in arrays)


class ChunkedAttention(torch.autograd.Function):
    """The formula in chunks of heads and queries whose scores take about `budget` bytes.

    Scores are recomputed in the backward pass. Keys and values may be one array.
    """

    @staticmethod
    def forward(
        q_BHOK: Tensor,
        k_BHMK: Tensor,
        v_BHMV: Tensor,
        bias_BOM: Tensor | None,
        scale: float,
        budget: int,
        max_heads: int | None,
    ) -> Tensor:
        q, k, v = flatten_heads(q_BHOK, k_BHMK, v_BHMV)
        a = q.new_empty(*q.shape[:2], v.shape[-1])
        for G, queries in chunks(q, k, budget, max_heads):
            for R in queries:
                bias = bias_of(bias_BOM, q_BHOK.shape[1], G, R)
                a[G, R] = matmul(softmax_(compute_scores(q[G, R], k[G], bias, scale)), v[G])
        return a.unflatten(0, q_BHOK.shape[:2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q_BHOK, k_BHMK, v_BHMV, bias_BOM, ctx.scale, ctx.budget, ctx.max_heads = inputs
        ctx.is_shared = v_BHMV is k_BHMK
        ctx.save_for_backward(q_BHOK, k_BHMK, v_BHMV, bias_BOM)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHOV: Tensor) -> tuple[Tensor | None, ...]:
        q_BHOK, k_BHMK, v_BHMV, bias_BOM = ctx.saved_tensors
        heads = q_BHOK.shape[1]
        q, k, v = flatten_heads(q_BHOK, k_BHMK, v_BHMV)
        grad_a = grad_BHOV.flatten(0, 1)
        grad_q, *grads = (array.new_empty(array.shape) for array in (q, k, v)[: 2 if ctx.is_shared else 3])
        wide = sum_dtype(q)
        grad_bias = torch.zeros_like(bias_BOM, dtype=wide) if ctx.needs_input_grad[3] else None
        for G, queries in chunks(q, k, ctx.budget, ctx.max_heads):
            sums: list[Tensor] = []
            for R in queries:
                bias = bias_of(bias_BOM, heads, G, R)
                weights_GRM = softmax_(compute_scores(q[G, R], k[G], bias, ctx.scale))
                grad_scores_GRM = softmax_backward_(matmul(grad_a[G, R], v[G].mT), weights_GRM)
                grad_q[G, R] = matmul(grad_scores_GRM, k[G]) * ctx.scale
                grad_k = transposed_matmul(grad_scores_GRM, q[G, R] * ctx.scale)
                grad_v = transposed_matmul(weights_GRM, grad_a[G, R])
                parts = [grad_k.add_(grad_v)] if ctx.is_shared else [grad_k, grad_v]
                if grad_bias is not None:
                    is_common = grad_bias.shape[1] == 1  # to all queries
                    grad_GRM = grad_scores_GRM.sum(1, keepdim=True) if is_common else grad_scores_GRM
                    rows = grad_bias if is_common else grad_bias[:, R]
                    rows.index_add_(0, example_of_heads(G, heads, q.device), grad_GRM.to(wide))
                if len(queries) > 1:
                    parts = [part.to(wide) for part in parts]
                sums = [total.add_(part) for total, part in zip(sums, parts, strict=True)] if sums else parts
            for grad, total in zip(grads, sums, strict=True):
                grad[G] = total
        found = [grad.unflatten(0, q_BHOK.shape[:2]) for grad in (grad_q, *grads)]
        found += [None] * ctx.is_shared  # the gradient of the values is part of that of the keys
        return *found, None if grad_bias is None else grad_bias.to(bias_BOM.dtype), None, None, None


def chunks(q: Tensor, k: Tensor, budget: int, max_heads: int | None = None) -> Iterator[tuple[slice, list[slice]]]:
    """Yields slices of heads, and for each the slices of its queries."""
    heads, queries, _ = q.shape
    bytes_per_query = count_bytes_per_query(k)
    fewest = max(1, min(queries, MIN_CHUNK_QUERIES))
    heads_per_chunk = max(1, min(heads, max_heads or heads, budget // (fewest * bytes_per_query)))
    queries_per_chunk = max(fewest, budget // (heads_per_chunk * bytes_per_query))
    query_slices = make_slices(max(1, queries), queries_per_chunk)
    for head in range(0, heads, heads_per_chunk):
        yield slice(head, min(head + heads_per_chunk, heads)), query_slices


def count_bytes_per_query(k: Tensor) -> int:
    """Returns the bytes of the scores of a query."""
    return max(1, k.shape[-2]) * k.element_size()


def example_of_heads(G: slice, heads: int, device: torch.device) -> Tensor:
    """Returns the example that each head of a slice belongs to."""
    return torch.arange(G.start, G.stop, device=device) // heads


def bias_of(bias_BOM: Tensor | None, heads: int, G: slice, R: slice) -> Tensor | None:
    """Returns the bias of some queries for some heads; -> [G, R or 1, M], or [1, R or 1, M] if examples share it."""
    if bias_BOM is None:
        return None
    rows = bias_BOM if bias_BOM.shape[1] == 1 else bias_BOM[:, R]
    if len(rows) == 1:
        return rows
    return rows[G] if heads == 1 else rows[example_of_heads(G, heads, rows.device)]


def compute_scores(q_GRK: Tensor, k_GMK: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Computes q k^T * scale + bias; -> [G, R, M]."""
    if len(q_GRK) == 1 and (bias is None or bias.shape[1] == 1):
        return linear(q_GRK[0] * scale, k_GMK[0], None if bias is None else bias[0, 0])[None]
    added, factor = (q_GRK.new_zeros(1), 0) if bias is None else (bias, 1)
    return torch.baddbmm(added, q_GRK, k_GMK.mT, beta=factor, alpha=scale)


def softmax_backward_(grad: Tensor, weights: Tensor) -> Tensor:
    """Computes the gradient of scores from that of weights; on CPU in place, which torch can if it is contiguous."""
    out = {"grad_input": grad} if grad.is_cpu and grad.is_contiguous() else {}
    return torch._softmax_backward_data(grad, weights, -1, weights.dtype, **out)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Computes a b for each head."""
    return linear(a[0], b[0].mT)[None] if len(a) == 1 else a @ b


def transposed_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Computes a^T b for each head; of a single one, without a copy of a^T."""
    return (a[0].mT @ b[0])[None] if len(a) == 1 else a.mT @ b
