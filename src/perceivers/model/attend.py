"""softmax(q k^T) v without keeping scores: by the fused kernel of torch where it is the fastest, else in pieces.

Shape suffixes:
    B batch, H heads, O queries, M inputs, K channels of a head of queries and keys, V of values,
    G some of all heads of all examples, R some of the queries
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from perceivers.model.linear import project

SCORES_ON_CPU = 2**23
"""Bytes of scores computed at a time on a processor: they stay in its cache."""

SCORES = 2**28
"""The same on an accelerator, whose kernels should be large."""

FEW_QUERIES = 256
"""Fewest queries to take at a time, however many inputs there are: products need some size."""


def attend(
    q_BHOK: Tensor,
    k_BHMK: Tensor,
    v_BHMV: Tensor,
    mask_BM: Tensor | None = None,
    bias_BM: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale * q k^T + bias) v; -> [B, H, O, V].

    Args:
        q_BHOK: queries.
        k_BHMK: keys.
        v_BHMV: values.
        mask_BM: which inputs are real: the others get no weight. Where none is, the answer is zeros.
        bias_BM: what is added to all scores of an input.
        dropout: probability with which a weight is dropped.
        scale: of the scores; 1 / sqrt(K), if not given.
    """
    scale = 1 / math.sqrt(q_BHOK.shape[-1]) if scale is None else scale
    kind = q_BHOK.device.type
    compiling = torch.compiler.is_compiling()
    if mask_BM is not None and kind == "cpu" and known(mask_BM):
        return attend_to_real(q_BHOK, k_BHMK, v_BHMV, mask_BM, bias_BM, dropout, scale)
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        q_BHOK, k_BHMK, v_BHMV = q_BHOK.to(dtype), k_BHMK.to(dtype), v_BHMV.to(dtype)
    if bias_BM is not None:
        bias_BM = bias_BM.to(q_BHOK.dtype)
    if mask_BM is not None:
        some_B1 = mask_BM.any(-1, keepdim=True)
        bias_BM = torch.zeros_like(mask_BM, dtype=q_BHOK.dtype) if bias_BM is None else bias_BM
        bias_BM = bias_BM.masked_fill(~mask_BM & some_B1, -math.inf)  # a softmax needs something to give weight to
    if fused(q_BHOK, v_BHMV, bias_BM, dropout):
        bias_B11M = None if bias_BM is None else bias_BM[:, None, None]
        a_BHOV = F.scaled_dot_product_attention(q_BHOK, k_BHMK, v_BHMV, bias_B11M, dropout, scale=scale)
    else:
        budget = SCORES_ON_CPU if kind == "cpu" and not compiling else SCORES
        arrays = q_BHOK, k_BHMK, v_BHMV, bias_BM
        recorded = torch.is_grad_enabled() and any(array is not None and array.requires_grad for array in arrays)
        run = Attend.apply if recorded else Attend.forward
        a_BHOV = run(*arrays, scale, budget)
    return a_BHOV if mask_BM is None else a_BHOV.masked_fill(~some_B1[..., None, None], 0)


def known(mask_BM: Tensor) -> bool:
    """Whether it can be looked at what a mask hides: not while compiling, and not without data."""
    return not torch.compiler.is_compiling() and mask_BM.device.type != "meta"


def attend_to_real(
    q_BHOK: Tensor,
    k_BHMK: Tensor,
    v_BHMV: Tensor,
    mask_BM: Tensor,
    bias_BM: Tensor | None,
    dropout: float,
    scale: float,
) -> Tensor:
    """`attend` an example at a time, to those of its inputs that are real: no score of padding is computed."""
    answers = []
    for example, real_M in enumerate(mask_BM):
        one = slice(example, example + 1)
        if real_M.any():
            bias_1M = None if bias_BM is None else bias_BM[one, real_M]
            keys_values = k_BHMK[one, :, real_M], v_BHMV[one, :, real_M]
            answers.append(attend(q_BHOK[one], *keys_values, None, bias_1M, dropout, scale))
        else:
            answers.append(q_BHOK.new_zeros(1, *q_BHOK.shape[1:3], v_BHMV.shape[-1]))
    return torch.cat(answers)


def fused(q_BHOK: Tensor, v_BHMV: Tensor, bias_BM: Tensor | None, dropout: float) -> bool:
    """Whether torch has a fused kernel for these that is faster than `Attend`.

    On processors it has one for keys and values of equal size, whose products are those of float32 in any dtype, and
    which gives no gradient to a bias. Those of accelerators take heads of up to 256 channels, in eights.
    """
    sizes = q_BHOK.shape[-1], v_BHMV.shape[-1]
    if dropout:
        return True
    if q_BHOK.device.type == "cpu":
        learned_bias = bias_BM is not None and bias_BM.requires_grad
        wide = q_BHOK.dtype in (torch.float32, torch.float64)
        return torch.compiler.is_compiling() or (wide and sizes[0] == sizes[1] and not learned_bias)
    return all(size <= 256 and size % 8 == 0 for size in sizes)


class Attend(torch.autograd.Function):
    """The plain formula for so many heads and queries at a time that their scores take at most `budget` bytes.

    Scores are computed again for the gradients instead of being kept.
    """

    @staticmethod
    def forward(
        q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, bias_BM: Tensor | None, scale: float, budget: int
    ) -> Tensor:
        # What is multiplied often, or transposed, is copied once so that nothing lies between.
        q, k, v = q_BHOK.flatten(0, 1), k_BHMK.contiguous().flatten(0, 1), v_BHMV.contiguous().flatten(0, 1)
        bias = over_heads(bias_BM, q_BHOK.shape[1])
        of_heads = [
            joined([product(scores(q[G, R], k[G], bias, G, scale).softmax(-1), v[G]) for R in queries], 1)
            for G, queries in pieces(q, k, budget)
        ]
        return joined(of_heads, 0).unflatten(0, q_BHOK.shape[:2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q_BHOK, k_BHMK, v_BHMV, bias_BM, ctx.scale, ctx.budget = inputs
        ctx.save_for_backward(q_BHOK, k_BHMK, v_BHMV, bias_BM)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BHOV: Tensor) -> tuple[Tensor | None, ...]:
        q_BHOK, k_BHMK, v_BHMV, bias_BM = ctx.saved_tensors
        q, of_a = q_BHOK.flatten(0, 1), gradient_BHOV.flatten(0, 1)
        k, v = k_BHMK.contiguous().flatten(0, 1), v_BHMV.contiguous().flatten(0, 1)
        bias = over_heads(bias_BM, q_BHOK.shape[1])
        biased = ctx.needs_input_grad[3]
        of_q, of_k, of_v = (array.new_empty(array.shape) for array in (q, k, v))
        of_bias = k.new_empty(k.shape[:2])
        for G, queries in pieces(q, k, ctx.budget):
            sums: list[Tensor] = []
            for R in queries:
                weights_GRM = scores(q[G, R], k[G], bias, G, ctx.scale).softmax(-1)
                of_weights_GRM = product(of_a[G, R], v[G].mT)
                of_scores_GRM = torch._softmax_backward_data(of_weights_GRM, weights_GRM, -1, weights_GRM.dtype)
                of_q[G, R] = product(of_scores_GRM, k[G]) * ctx.scale
                parts = [of_scores_GRM.mT @ (q[G, R] * ctx.scale), weights_GRM.mT @ of_a[G, R]]
                parts += [of_scores_GRM.sum(1)] if biased else []
                if len(queries) > 1:  # sums of many are kept in more digits
                    parts = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
                sums = [total.add_(part) for total, part in zip(sums, parts, strict=True)] if sums else parts
            of_k[G], of_v[G] = sums[:2]
            if biased:
                of_bias[G] = sums[2]
        of_q, of_k, of_v, of_bias = (array.unflatten(0, q_BHOK.shape[:2]) for array in (of_q, of_k, of_v, of_bias))
        return of_q, of_k, of_v, of_bias.sum(1) if biased else None, None, None


def pieces(q: Tensor, k: Tensor, budget: int) -> Iterator[tuple[slice, list[slice]]]:
    """Which heads to take at a time, and which of their queries."""
    heads, queries, _ = q.shape
    bytes_of_query = k.shape[1] * q.element_size()
    few = min(queries, FEW_QUERIES)
    some_heads = min(heads, max(1, budget // (few * bytes_of_query)))
    some_queries = max(few, budget // (some_heads * bytes_of_query))
    of_each = [slice(query, query + some_queries) for query in range(0, queries, some_queries)]
    for head in range(0, heads, some_heads):
        yield slice(head, head + some_heads), of_each


def joined(pieces: list[Tensor], dimension: int) -> Tensor:
    """The pieces as one array; a single one is not copied."""
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dimension)


def over_heads(bias_BM: Tensor | None, heads: int) -> Tensor | None:
    """The bias of each head of each example, [B * H, 1, M]."""
    return None if bias_BM is None else bias_BM.repeat_interleave(heads, 0)[:, None]


def scores(q_GRK: Tensor, k_GMK: Tensor, bias: Tensor | None, G: slice, scale: float) -> Tensor:
    """The scores q k^T * scale + bias; -> [G, R, M]."""
    if len(q_GRK) == 1:
        return project(q_GRK[0] * scale, k_GMK[0], None if bias is None else bias[G][0, 0])[None]
    added, factor = (q_GRK.new_zeros(1), 0) if bias is None else (bias[G], 1)
    return torch.baddbmm(added, q_GRK, k_GMK.mT, beta=factor, alpha=scale)


def product(a: Tensor, b: Tensor) -> Tensor:
    """A b, for each head."""
    return project(a[0], b[0].mT)[None] if len(a) == 1 else a @ b
