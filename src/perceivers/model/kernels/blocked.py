"""softmax(q k^T) v in blocks of inputs, where even the scores of a few queries would take much memory.

Each block has a softmax of its own. The result is the mean of the blocks' results, weighted by the sums of the
exponentials of their scores and updated block by block (Milakov & Gimelshein, 2018). The backward pass computes the
weights again (Dao et al., 2022).

Shape suffixes:
    B batch, H heads, O queries, M inputs, K channels of a head of queries and keys, V of values, G all heads of all
    examples, R some of the queries, N the inputs of a block
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from perceivers.model.kernels.onednn import linear

MAX_QUERIES = 2048
"""Maximum queries whose scores are computed at a time."""

MIN_INPUTS = 512
"""Minimum inputs of a block: smaller matrix products are inefficient."""


class BlockedAttention(torch.autograd.Function):
    """Attends head by head in blocks whose scores take about `budget` bytes, or more where `MIN_INPUTS` requires it.

    Returns the result and, for the gradients, the logarithm of the sum of the exponentials of all scores of a query,
    [G, O, 1]. Keys and values may be one array.
    """

    @staticmethod
    def forward(q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, scale: float, budget: int) -> tuple[Tensor, Tensor]:
        q, k, v = flatten_heads(q_BHOK, k_BHMK, v_BHMV)
        a = q.new_empty(*q.shape[:2], v.shape[-1])
        log_sum = a.new_full((*q.shape[:2], 1), -math.inf, dtype=sum_dtype(q))
        queries, inputs = find_blocks(q, k, budget)
        for head in range(len(q)):
            for R in queries:
                q_RK, log_sum_R1 = q[head, R] * scale, log_sum[head, R]
                mean_RV = torch.zeros_like(a[head, R], dtype=log_sum.dtype)
                for N in inputs:
                    weights_RN, log_block_R1 = compute_weights(q_RK, k[head, N])
                    block_RV = linear(weights_RN, v[head, N].mT).to(mean_RV.dtype)
                    mean_RV.lerp_(block_RV, torch.sigmoid(log_block_R1 - log_sum_R1))
                    torch.logaddexp(log_sum_R1, log_block_R1, out=log_sum_R1)
                a[head, R] = mean_RV
        return a.unflatten(0, q_BHOK.shape[:2]), log_sum

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q_BHOK, k_BHMK, v_BHMV, ctx.scale, ctx.budget = inputs
        ctx.is_shared = v_BHMV is k_BHMK
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(q_BHOK, k_BHMK, v_BHMV, *output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHOV: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q_BHOK, k_BHMK, v_BHMV, a_BHOV, log_sum = ctx.saved_tensors
        q, k, v = flatten_heads(q_BHOK, k_BHMK, v_BHMV)
        grad_a, wide = grad_BHOV.flatten(0, 1), log_sum.dtype
        mean_grad = (grad_a.to(wide) * a_BHOV.flatten(0, 1)).sum(-1, keepdim=True)  # of the weights, by query
        grad_q, grad_k = torch.zeros_like(q, dtype=wide), torch.empty_like(k)
        grad_v = grad_k if ctx.is_shared else torch.empty_like(v)
        queries, inputs = find_blocks(q, k, ctx.budget)
        for head in range(len(q)):
            for N in inputs:
                k_NK, v_NV = k[head, N], v[head, N]
                grad_k_NK = torch.zeros_like(k_NK, dtype=wide)
                grad_v_NV = grad_k_NK if ctx.is_shared else torch.zeros_like(v_NV, dtype=wide)
                for R in queries:
                    q_RK, grad_RV = q[head, R] * ctx.scale, grad_a[head, R]
                    weights_RN, log_block_R1 = compute_weights(q_RK, k_NK)
                    share_R1 = (log_block_R1 - log_sum[head, R]).exp()  # of the block in the weights of each query
                    grad_scores_RN = linear(grad_RV, v_NV).sub_(mean_grad[head, R]).mul_(weights_RN)
                    grad_q[head, R] += linear(grad_scores_RN, k_NK.mT) * (ctx.scale * share_R1)
                    grad_k_NK += grad_scores_RN.mT @ (q_RK * share_R1).to(q.dtype)
                    grad_v_NV += weights_RN.mT @ (grad_RV * share_R1).to(q.dtype)
                grad_k[head, N], grad_v[head, N] = grad_k_NK, grad_v_NV
        found = [grad.unflatten(0, q_BHOK.shape[:2]) for grad in (grad_q.to(q.dtype), grad_k, grad_v)]
        return *found[:2], None if ctx.is_shared else found[2], None, None  # shared values: part of that of the keys


def flatten_heads(q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the heads of all examples; keys and values are contiguous, since every chunk reads them."""
    return q_BHOK.flatten(0, 1), k_BHMK.contiguous().flatten(0, 1), v_BHMV.contiguous().flatten(0, 1)


def sum_dtype(x: Tensor) -> torch.dtype:
    """Returns the type in which sums over several blocks are kept."""
    return torch.promote_types(x.dtype, torch.float32)


def find_blocks(q: Tensor, k: Tensor, budget: int) -> tuple[list[slice], list[slice]]:
    """Returns slices of queries and of inputs."""
    rows = max(1, min(q.shape[1], MAX_QUERIES))
    columns = max(MIN_INPUTS, budget // (rows * q.element_size()))
    return make_slices(q.shape[1], rows), make_slices(k.shape[1], columns)


def make_slices(length: int, size: int) -> list[slice]:
    """Returns slices of `size` that cover `length`; the last may be smaller."""
    return [slice(start, start + size) for start in range(0, length, size)]


def compute_weights(q_RK: Tensor, k_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weights of a block, and the logarithm of the sum of the exponentials of its scores, [R, 1]."""
    scores_RN = linear(q_RK, k_NK)
    highest_R1 = scores_RN.amax(-1, keepdim=True).to(sum_dtype(q_RK))
    weights_RN = softmax_(scores_RN)
    # The largest weight is exp(highest score - this logarithm).
    return weights_RN, highest_R1 - weights_RN.amax(-1, keepdim=True).to(highest_R1.dtype).log()


def softmax_(scores: Tensor) -> Tensor:
    """Computes the softmax over inputs; on CPU in place, since mapping a new array takes time."""
    return torch.softmax(scores, -1, out=scores) if scores.is_cpu else scores.softmax(-1)
