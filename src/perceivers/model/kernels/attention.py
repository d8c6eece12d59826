"""softmax(q k^T) v without storing all scores: by torch's fused kernel or in chunks, whichever is faster.

Shape suffixes:
    B batch, H heads, O queries, M inputs, K channels of a head of queries and keys, V of values;
    a bias has B = 1 or O = 1 if all share it
"""

import importlib.util
import math
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from perceivers.model.eager import is_concrete, is_eager
from perceivers.model.kernels.chunked import (
    CHANNEL_MULTIPLE,
    MIN_CHUNK_QUERIES,
    attend_in_chunks,
    attend_keeping_weights,
    attend_with_padded_channels,
    needs_gradients,
)
from perceivers.model.kernels.half_precision import compute_in_float32, needs_float32, product_dtype
from perceivers.model.kernels.tuning import MAX_TIMED_PRODUCTS, MIN_TIMED_PRODUCTS, Implementation, choose, size_class
from perceivers.model.masks import PairMask, SameExample, can_read, combine_masks

CPU_CHUNK_BYTES = 2**23
"""Bytes of scores computed at a time on CPU, to stay in its cache; a quarter of them is tried, too."""

GPU_CHUNK_BYTES = 2**28
"""The same on an accelerator, whose kernels should be large."""

MAX_KEPT_BYTES = 2**22
"""Bytes of weights of a layer that may be kept for the gradients, where that is faster than to compute them again."""

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
"""Implementations of torch's fused kernel on accelerators, beside its own choice."""

MIN_SAMPLE_EXAMPLES = 16
"""Examples of a batch with padding that are timed at least: their lengths differ."""


def scaled_dot_product_attention(
    q_BHOK: Tensor,
    k_BHMK: Tensor,
    v_BHMV: Tensor,
    mask_BM: Tensor | None = None,
    bias_BM: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    pair_mask: PairMask | None = None,
) -> Tensor:
    """Computes softmax(scale * q k^T + bias) v; -> [B, H, O, V].

    Args:
        q_BHOK: queries.
        k_BHMK: keys.
        v_BHMV: values.
        mask_BM: True for real inputs; the others get no weight. Where none is real, the result is zeros.
        bias_BM: added to all scores of an input.
        dropout: probability of dropping a weight.
        scale: of the scores; 1 / sqrt(K) by default.
        pair_mask: True where a query may read an input; a query that may read none reads zeros.
    """
    scale = 1 / math.sqrt(q_BHOK.shape[-1]) if scale is None else scale
    if needs_float32(q_BHOK):
        attend = partial(attend_by_mask, mask_BM=mask_BM, dropout=dropout, scale=scale, pair_mask=pair_mask)
        return compute_in_float32(attend, q_BHOK, k_BHMK, v_BHMV, bias_BM)
    return attend_by_mask(q_BHOK, k_BHMK, v_BHMV, bias_BM, mask_BM, dropout, scale, pair_mask)


def attend_by_mask(
    q_BHOK: Tensor,
    k_BHMK: Tensor,
    v_BHMV: Tensor,
    bias_BM: Tensor | None,
    mask_BM: Tensor | None,
    dropout: float,
    scale: float,
    pair_mask: PairMask | None,
) -> Tensor:
    """Attends by example where the mask makes this faster, or in all examples of a batch at once."""
    if isinstance(pair_mask, SameExample) and is_concrete(pair_mask.offsets):
        return attend_by_example(q_BHOK, k_BHMK, v_BHMV, pair_mask, bias_BM, dropout, scale)
    if pair_mask is None and mask_BM is not None and mask_BM.is_cpu and is_concrete(mask_BM):
        if mask_BM.all():
            mask_BM = None
        else:
            attend = choose_by_padding(q_BHOK, k_BHMK, v_BHMV, mask_BM, bias_BM, dropout)
            return attend(q_BHOK, k_BHMK, v_BHMV, mask_BM, bias_BM, dropout, scale)
    return attend_to_batch(q_BHOK, k_BHMK, v_BHMV, mask_BM, bias_BM, dropout, scale, pair_mask)


def attend_to_batch(
    q_BHOK: Tensor,
    k_BHMK: Tensor,
    v_BHMV: Tensor,
    mask_BM: Tensor | None,
    bias_BM: Tensor | None,
    dropout: float,
    scale: float,
    pair_mask: PairMask | None = None,
) -> Tensor:
    """Attends in all examples of a batch at once; masks become a bias."""
    dtype, is_shared = product_dtype(q_BHOK), v_BHMV is k_BHMK
    q_BHOK, k_BHMK = q_BHOK.to(dtype), k_BHMK.to(dtype)
    v_BHMV = k_BHMK if is_shared else v_BHMV.to(dtype)
    bias_BOM = None if bias_BM is None else bias_BM[:, None].to(q_BHOK.dtype)
    mask_BOM = combine_masks(mask_BM, pair_mask, q_BHOK.shape[2], k_BHMK.shape[2])
    if mask_BOM is not None:
        can_read_BO1 = mask_BOM.any(-1, keepdim=True)
        bias_BOM = torch.zeros_like(mask_BOM, dtype=q_BHOK.dtype) if bias_BOM is None else bias_BOM
        bias_BOM = bias_BOM.masked_fill(~mask_BOM & can_read_BO1, -math.inf)  # a softmax needs one finite score
    attend = choose_implementation(q_BHOK, k_BHMK, v_BHMV, bias_BOM, dropout)
    a_BHOV = attend(q_BHOK, k_BHMK, v_BHMV, bias_BOM, scale)
    return a_BHOV if mask_BOM is None else a_BHOV.masked_fill(~can_read_BO1[:, None], 0)


def choose_implementation(
    q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, bias_BOM: Tensor | None, dropout: float
) -> Implementation:
    """Returns the fastest of the functions that can attend in arrays like these; a fixed one for small arrays."""
    is_cpu, eager = q_BHOK.is_cpu, is_eager()
    budget = CPU_CHUNK_BYTES if is_cpu else GPU_CHUNK_BYTES
    can_fuse = has_fused_kernel(q_BHOK, v_BHMV, bias_BOM, dropout)
    candidates: dict[str, Implementation] = {f"chunks of {budget} bytes": partial(attend_in_chunks, budget=budget)}
    if can_fuse:
        fused: dict[str, Implementation] = {"fused": partial(attend_fused, dropout=dropout)}
        prefers_fused = not is_cpu or dropout or not eager or q_BHOK.dtype in (torch.float32, torch.float64)
        candidates = fused | candidates if prefers_fused else candidates | fused
    first = next(iter(candidates.values()))
    if dropout or not eager or type(q_BHOK) is not Tensor:
        return first  # before sizes are compared, which would fix them under torch.export
    batch, heads, queries, qk = q_BHOK.shape
    inputs, v = v_BHMV.shape[2:]
    weights = batch * heads * queries * inputs
    if weights * (qk + v) < MIN_TIMED_PRODUCTS:
        return first  # without the time that it takes to list the others
    arrays = q_BHOK, k_BHMK, v_BHMV, bias_BOM
    has_grad = needs_gradients(*arrays)
    if is_cpu:
        small = partial(attend_in_chunks, budget=budget // 4)
        candidates[f"chunks of {budget // 4} bytes"] = small
        scores_of_head = min(queries, MIN_CHUNK_QUERIES) * inputs * q_BHOK.element_size()  # bytes
        if batch * heads > 1 and 2 * scores_of_head <= budget // 4:
            candidates[f"chunks of {budget // 4} bytes of a head"] = partial(small, max_heads=1)
        if qk % CHANNEL_MULTIPLE or v % CHANNEL_MULTIPLE:
            candidates["padded channels"] = partial(attend_with_padded_channels, budget=budget)
        if has_grad and weights * q_BHOK.element_size() <= MAX_KEPT_BYTES:
            candidates["weights kept"] = attend_keeping_weights
    elif can_fuse:
        candidates |= {name: partial(attend_fused, backend=backend) for name, backend in BACKENDS.items()}
    bias = "no bias" if bias_BOM is None else f"bias of {'queries' if bias_BOM.shape[1] > 1 else 'inputs'}"
    sizes = size_class(batch * heads), size_class(queries), size_class(inputs), qk, v
    key = "attention", q_BHOK.device.type, q_BHOK.dtype, "training" if has_grad else "inference", bias, *sizes
    return choose(key, weights * (qk + v), candidates, lambda: (*take_sample(*arrays, has_grad), 1 / math.sqrt(qk)))


def take_sample(
    q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, bias_BOM: Tensor | None, has_grad: bool
) -> tuple[Tensor | None, ...]:
    """Returns a part of some arrays that takes little time: some examples, queries, and inputs of the first of them."""
    batch, heads, queries, qk = q_BHOK.shape
    inputs, v = v_BHMV.shape[2:]
    most = MAX_TIMED_PRODUCTS // (heads * (qk + v))
    examples = max(1, min(batch, most // (queries * inputs)))
    queries = min(queries, max(MIN_CHUNK_QUERIES, most // inputs))
    in_blocks = CPU_CHUNK_BYTES // (MIN_CHUNK_QUERIES * q_BHOK.element_size()) + 1  # as many are taken in blocks
    inputs = min(inputs, max(in_blocks, most // queries))
    parts = [q_BHOK[:examples, :, :queries], k_BHMK[:examples, :, :inputs], v_BHMV[:examples, :, :inputs]]
    bias = None if bias_BOM is None else bias_BOM[:examples, :queries, :inputs]
    arrays = (q_BHOK, k_BHMK, v_BHMV, bias_BOM)
    sample = [
        None if part is None or array is None else part.detach().requires_grad_(has_grad and array.requires_grad)
        for part, array in zip([*parts, bias], arrays, strict=True)
    ]
    if v_BHMV is k_BHMK:
        sample[2] = sample[1]
    return tuple(sample)


def attend_fused(
    q_BHOK: Tensor,
    k_BHMK: Tensor,
    v_BHMV: Tensor,
    bias_BOM: Tensor | None,
    scale: float,
    dropout: float = 0.0,
    backend: SDPBackend | None = None,
) -> Tensor:
    """Attends by torch's fused kernel, of one of its implementations or of the one that it takes by itself."""
    bias_B1OM = None if bias_BOM is None else bias_BOM[:, None]
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q_BHOK, k_BHMK, v_BHMV, bias_B1OM, dropout, scale=scale)


def choose_by_padding(
    q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, mask_BM: Tensor, bias_BM: Tensor | None, dropout: float
) -> Implementation:
    """Returns the faster function for a batch with padding: one example at a time, or all with masked scores."""
    arrays = q_BHOK, k_BHMK, v_BHMV, bias_BM
    batch, heads, queries, qk = q_BHOK.shape
    inputs, v = v_BHMV.shape[2:]
    has_grad = needs_gradients(*arrays)
    real = round(4 * mask_BM.float().mean().item())  # quarters
    sizes = size_class(batch), size_class(heads), size_class(queries), size_class(inputs), qk, v
    per_example = heads * queries * inputs * (qk + v)
    if per_example > MAX_TIMED_PRODUCTS // MIN_SAMPLE_EXAMPLES:
        return attend_without_padding  # products take the time, and those of padding would be computed
    flags = {
        "training": has_grad,
        "autocast": torch.is_autocast_enabled("cpu"),
        "bias": bias_BM is not None,
        "dropout": dropout > 0,
    }
    key = "padding", q_BHOK.dtype, *(name for name, is_set in flags.items() if is_set), f"{real}/4 real", *sizes

    def sample() -> tuple[object, ...]:
        some = MAX_TIMED_PRODUCTS // per_example
        parts = [None if x is None else x[:some].detach().requires_grad_(has_grad and x.requires_grad) for x in arrays]
        return *parts[:3], mask_BM[:some], parts[3], dropout, 1 / math.sqrt(qk)

    candidates: dict[str, Implementation] = {"by example": attend_without_padding, "whole batch": attend_to_batch}
    return choose(key, batch * per_example, candidates, sample)


def attend_without_padding(
    q_BHOK: Tensor,
    k_BHMK: Tensor,
    v_BHMV: Tensor,
    mask_BM: Tensor,
    bias_BM: Tensor | None,
    dropout: float,
    scale: float,
) -> Tensor:
    """Attends one example at a time to its real inputs only, so that no score of padding is computed."""
    results = []
    arrays = [q_BHOK.split(1), k_BHMK.split(1), v_BHMV.split(1)]  # a gradient of all arrays for each would be slow
    biases = [None] * len(mask_BM) if bias_BM is None else bias_BM.split(1)
    for q, k, v, bias, real_M in zip(*arrays, biases, mask_BM, strict=True):
        if real_M.any():
            if not real_M.all():
                k, v, bias = k[:, :, real_M], v[:, :, real_M], None if bias is None else bias[:, real_M]
            results.append(scaled_dot_product_attention(q, k, v, None, bias, dropout, scale))
        else:
            results.append(q.new_zeros(*q.shape[:3], v.shape[-1]))
    return torch.cat(results)


def attend_by_example(
    q_1HOK: Tensor,
    k_1HMK: Tensor,
    v_1HMV: Tensor,
    same: SameExample,
    bias_1M: Tensor | None,
    dropout: float,
    scale: float,
) -> Tensor:
    """Attends in a ragged batch, one example at a time, or all at once where torch has a kernel for that."""
    queries, inputs = same.query_offsets.tolist(), same.offsets.tolist()
    if has_varlen_kernel(q_1HOK, v_1HMV, bias_1M, dropout, scale):
        from torch.nn.attention.varlen import varlen_attn

        q_OHK, k_MHK, v_MHV = (x[0].transpose(0, 1) for x in (q_1HOK, k_1HMK, v_1HMV))
        longest = [max(end - start for start, end in pairwise(offsets)) for offsets in (queries, inputs)]
        a_OHV: Any = varlen_attn(q_OHK, k_MHK, v_MHV, same.query_offsets.int(), same.offsets.int(), *longest)
        can_read_1O: Any = can_read(q_1HOK.shape[2], None, same)
        a_1HOV: Tensor = a_OHV.transpose(0, 1)[None].masked_fill(~can_read_1O[:, None, :, None], 0)
        return a_1HOV
    sizes = [[end - start for start, end in pairwise(offsets)] for offsets in (queries, inputs)]
    if all(len(set(lengths)) == 1 for lengths in sizes) and sizes[1][0]:  # a batch like any other
        q, k, v = (x[0].unflatten(1, (len(queries) - 1, -1)).transpose(0, 1) for x in (q_1HOK, k_1HMK, v_1HMV))
        bias_BM = None if bias_1M is None else bias_1M.view(len(queries) - 1, -1)
        a_BHOV = scaled_dot_product_attention(q, k, v, None, bias_BM, dropout, scale)
        return a_BHOV.transpose(0, 1).flatten(1, 2)[None]
    results = []
    parts = [q_1HOK.split(sizes[0], 2), k_1HMK.split(sizes[1], 2), v_1HMV.split(sizes[1], 2)]
    biases = [None] * len(sizes[1]) if bias_1M is None else bias_1M.split(sizes[1], 1)
    for q, k, v, bias in zip(*parts, biases, strict=True):
        if q.shape[2] and k.shape[2]:
            results.append(scaled_dot_product_attention(q, k, v, None, bias, dropout, scale))
        else:
            results.append(q.new_zeros(*q.shape[:3], v.shape[-1]))
    return torch.cat(results, 2)


def has_varlen_kernel(q_1HOK: Tensor, v_1HMV: Tensor, bias_1M: Tensor | None, dropout: float, scale: float) -> bool:
    """Returns whether torch attends in a ragged batch at once: on CUDA, in half precision, in heads of common sizes."""
    channels = q_1HOK.shape[-1]
    return (
        q_1HOK.is_cuda
        and importlib.util.find_spec("torch.nn.attention.varlen") is not None
        and q_1HOK.dtype in (torch.float16, torch.bfloat16)
        and bias_1M is None
        and not dropout
        and scale == 1 / math.sqrt(channels)
        and channels == v_1HMV.shape[-1] <= 256
        and channels % 8 == 0
    )


def has_fused_kernel(q_BHOK: Tensor, v_BHMV: Tensor, bias_BOM: Tensor | None, dropout: float) -> bool:
    """Returns whether `F.scaled_dot_product_attention` computes this without storing the scores, or has to anyway.

    On CPU, it takes keys and values of equal size, and gives no gradient to a bias. On accelerators, it takes heads of
    up to 256 channels, in multiples of 8.
    """
    sizes = q_BHOK.shape[-1], v_BHMV.shape[-1]
    compiling = torch.compiler.is_compiling()
    if dropout or not (compiling or is_eager()):
        return True
    if q_BHOK.device.type == "cpu":
        learned_bias = bias_BOM is not None and bias_BOM.requires_grad
        return compiling or (sizes[0] == sizes[1] and not learned_bias)
    return all(size <= 256 and size % 8 == 0 for size in sizes)
