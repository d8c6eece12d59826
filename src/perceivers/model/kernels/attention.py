"""softmax(q k^T) v without storing all scores: by torch's fused kernel or in chunks, whichever is faster.

Shape suffixes:
    B batch, H heads, O queries, M inputs, K channels of a head of queries and keys, V of values,
    G some of all heads of all examples, R some of the queries; a bias has B = 1 or O = 1 if all share it
"""

import importlib.util
import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from perceivers.model.eager import is_concrete, is_eager
from perceivers.model.kernels.onednn import linear
from perceivers.model.kernels.tuning import MIN_PRODUCTS, SAMPLE_PRODUCTS, Way, choose, size_class
from perceivers.model.masks import PairMask, SameExample, can_read, combine_masks

CPU_CHUNK_BYTES = 2**23
"""Bytes of scores computed at a time on CPU, to stay in its cache; a quarter and four times as many are tried, too."""

GPU_CHUNK_BYTES = 2**28
"""The same on an accelerator, whose kernels should be large."""

MIN_CHUNK_QUERIES = 256
"""Minimum queries per chunk: smaller matrix products are inefficient."""

MAX_KEPT_BYTES = 2**22
"""Bytes of weights of a layer that may be kept for the gradients, where that is faster than to compute them again."""

CHANNEL_MULTIPLE = 32
"""Matrix products of other numbers of channels are slower on some processors."""

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
"""Implementations of torch's fused kernel on accelerators, beside its own choice."""

MIN_SAMPLE_EXAMPLES = 16
"""Examples of a batch with padding that are timed at least: their lengths differ."""

MIN_SAMPLE_INPUTS = 4096
"""Inputs that are timed at least, of more: their products should be as efficient."""


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
    if isinstance(pair_mask, SameExample) and is_concrete(pair_mask.offsets):
        return attend_by_example(q_BHOK, k_BHMK, v_BHMV, pair_mask, bias_BM, dropout, scale)
    if pair_mask is None and mask_BM is not None and mask_BM.is_cpu and is_concrete(mask_BM):
        if mask_BM.all():
            mask_BM = None
        else:
            attend = choose_by_padding(q_BHOK, k_BHMK, v_BHMV, mask_BM, bias_BM, dropout)
            return attend(q_BHOK, k_BHMK, v_BHMV, mask_BM, bias_BM, dropout, scale)
    return attend_at_once(q_BHOK, k_BHMK, v_BHMV, mask_BM, bias_BM, dropout, scale, pair_mask)


def attend_at_once(
    q_BHOK: Tensor,
    k_BHMK: Tensor,
    v_BHMV: Tensor,
    mask_BM: Tensor | None,
    bias_BM: Tensor | None,
    dropout: float,
    scale: float,
    pair_mask: PairMask | None = None,
) -> Tensor:
    """Attends in all examples at once; masks become a bias."""
    device_type = q_BHOK.device.type
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        q_BHOK, k_BHMK, v_BHMV = q_BHOK.to(dtype), k_BHMK.to(dtype), v_BHMV.to(dtype)
    bias_BOM = None if bias_BM is None else bias_BM[:, None].to(q_BHOK.dtype)
    mask_BOM = combine_masks(mask_BM, pair_mask, q_BHOK.shape[2], k_BHMK.shape[2])
    if mask_BOM is not None:
        can_read_BO1 = mask_BOM.any(-1, keepdim=True)
        bias_BOM = torch.zeros_like(mask_BOM, dtype=q_BHOK.dtype) if bias_BOM is None else bias_BOM
        bias_BOM = bias_BOM.masked_fill(~mask_BOM & can_read_BO1, -math.inf)  # a softmax needs one finite score
    attend = choose_way(q_BHOK, k_BHMK, v_BHMV, bias_BOM, dropout)
    a_BHOV = attend(q_BHOK, k_BHMK, v_BHMV, bias_BOM, scale)
    return a_BHOV if mask_BOM is None else a_BHOV.masked_fill(~can_read_BO1[:, None], 0)


def choose_way(q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, bias_BOM: Tensor | None, dropout: float) -> Way:
    """Returns the fastest way to attend in arrays like these, of those that can; a fixed one for small arrays."""
    is_cpu = q_BHOK.is_cpu
    budget = CPU_CHUNK_BYTES if is_cpu else GPU_CHUNK_BYTES
    can_fuse = has_fused_kernel(q_BHOK, v_BHMV, bias_BOM, dropout)
    prefer_fused = not is_cpu or dropout or not is_eager() or q_BHOK.dtype in (torch.float32, torch.float64)
    ways: dict[str, Way] = {f"chunks of {budget} bytes": partial(attend_in_chunks, budget=budget)}
    if can_fuse:
        fused: dict[str, Way] = {"fused": partial(attend_fused, dropout=dropout)}
        ways = fused | ways if prefer_fused else ways | fused
    if (
        dropout or not is_eager() or type(q_BHOK) is not Tensor
    ):  # before sizes are compared, which would fix them under torch.export
        return next(iter(ways.values()))
    batch, heads, queries, qk = q_BHOK.shape
    inputs, v = v_BHMV.shape[2:]
    weights = batch * heads * queries * inputs
    if weights * (qk + v) < MIN_PRODUCTS:
        return next(iter(ways.values()))
    arrays = q_BHOK, k_BHMK, v_BHMV, bias_BOM
    has_grad = needs_gradients(*arrays)
    if is_cpu:
        ways |= {
            f"chunks of {size} bytes": partial(attend_in_chunks, budget=size) for size in (budget // 4, 4 * budget)
        }
        if qk % CHANNEL_MULTIPLE or v % CHANNEL_MULTIPLE:
            ways["more channels"] = partial(attend_with_more_channels, budget=budget)
        if has_grad and weights * q_BHOK.element_size() <= MAX_KEPT_BYTES:
            ways["weights kept"] = attend_keeping_weights
    elif can_fuse:
        ways |= {name: partial(attend_fused, backend=backend) for name, backend in BACKENDS.items()}
    bias = "no bias" if bias_BOM is None else f"bias of {'queries' if bias_BOM.shape[1] > 1 else 'inputs'}"
    sizes = size_class(batch * heads), size_class(queries), size_class(inputs), qk, v
    key = "attention", q_BHOK.device.type, q_BHOK.dtype, "training" if has_grad else "inference", bias, *sizes
    return choose(key, weights * (qk + v), ways, lambda: (*take_part(*arrays, has_grad), 1 / math.sqrt(qk)))


def needs_gradients(*arrays: Tensor | None) -> bool:
    """Returns whether a gradient is recorded of any of these arrays."""
    return torch.is_grad_enabled() and any(array is not None and array.requires_grad for array in arrays)


def take_part(
    q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, bias_BOM: Tensor | None, has_grad: bool
) -> tuple[Tensor | None, ...]:
    """Returns a part of some arrays that takes little time: some examples, queries, and inputs of the first of them."""
    batch, heads, queries, qk = q_BHOK.shape
    inputs, v = v_BHMV.shape[2:]
    most = SAMPLE_PRODUCTS // (heads * (qk + v))
    examples = max(1, min(batch, most // (queries * inputs)))
    queries = min(queries, max(MIN_CHUNK_QUERIES, most // inputs))
    inputs = min(inputs, max(MIN_SAMPLE_INPUTS, most // queries))
    parts = [q_BHOK[:examples, :, :queries], k_BHMK[:examples, :, :inputs], v_BHMV[:examples, :, :inputs]]
    bias = None if bias_BOM is None else bias_BOM[:examples, :queries, :inputs]
    arrays = (q_BHOK, k_BHMK, v_BHMV, bias_BOM)
    return tuple(
        None if part is None or array is None else part.detach().requires_grad_(has_grad and array.requires_grad)
        for part, array in zip([*parts, bias], arrays, strict=True)
    )


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


def attend_in_chunks(
    q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, bias_BOM: Tensor | None, scale: float, budget: int
) -> Tensor:
    """Attends in chunks whose scores take about `budget` bytes; gradients compute the scores again."""
    arrays = q_BHOK, k_BHMK, v_BHMV, bias_BOM
    run = ChunkedAttention.apply if needs_gradients(*arrays) else ChunkedAttention.forward
    a_BHOV: Tensor = run(*arrays, scale, budget)
    return a_BHOV


def attend_with_more_channels(
    q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, bias_BOM: Tensor | None, scale: float, budget: int
) -> Tensor:
    """Does the same with channels of zeros added, up to a number that suits the processor."""
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
    every = slice(None)
    bias = bias_of(bias_BOM, q_BHOK.shape[1], slice(0, len(q)), every)
    return matmul(scores(q, k, bias, scale).softmax(-1), v).unflatten(0, q_BHOK.shape[:2])


def choose_by_padding(
    q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, mask_BM: Tensor, bias_BM: Tensor | None, dropout: float
) -> Way:
    """Returns the faster way to attend in a batch with padding: one example at a time, or all with masked scores."""
    arrays = q_BHOK, k_BHMK, v_BHMV, bias_BM
    batch, heads, queries, qk = q_BHOK.shape
    inputs, v = v_BHMV.shape[2:]
    has_grad = needs_gradients(*arrays)
    real = round(4 * mask_BM.float().mean().item())  # quarters
    sizes = size_class(batch), size_class(heads), size_class(queries), size_class(inputs), qk, v
    per_example = heads * queries * inputs * (qk + v)
    if (
        per_example > SAMPLE_PRODUCTS // MIN_SAMPLE_EXAMPLES
    ):  # then products take the time, of which none is left out at once
        return attend_without_padding
    flags = {
        "training": has_grad,
        "autocast": torch.is_autocast_enabled("cpu"),
        "bias": bias_BM is not None,
        "dropout": dropout > 0,
    }
    key = "padding", q_BHOK.dtype, *(name for name, is_set in flags.items() if is_set), f"{real}/4 real", *sizes

    def sample() -> tuple[object, ...]:
        some = SAMPLE_PRODUCTS // per_example
        parts = [None if x is None else x[:some].detach().requires_grad_(has_grad and x.requires_grad) for x in arrays]
        return *parts[:3], mask_BM[:some], parts[3], dropout, 1 / math.sqrt(qk)

    ways: dict[str, Way] = {"by example": attend_without_padding, "at once": attend_at_once}
    return choose(key, batch * per_example, ways, sample)


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


class ChunkedAttention(torch.autograd.Function):
    """The formula in chunks of heads and queries whose scores take about `budget` bytes.

    Scores are recomputed in the backward pass.
    """

    @staticmethod
    def forward(
        q_BHOK: Tensor, k_BHMK: Tensor, v_BHMV: Tensor, bias_BOM: Tensor | None, scale: float, budget: int
    ) -> Tensor:
        # Keys and values are read in every chunk: make them contiguous once.
        q, k, v = q_BHOK.flatten(0, 1), k_BHMK.contiguous().flatten(0, 1), v_BHMV.contiguous().flatten(0, 1)
        examples = bias_BOM, q_BHOK.shape[1]
        per_head = [
            concatenate(
                [matmul(scores(q[G, R], k[G], bias_of(*examples, G, R), scale).softmax(-1), v[G]) for R in queries], 1
            )
            for G, queries in chunks(q, k, budget)
        ]
        return concatenate(per_head, 0).unflatten(0, q_BHOK.shape[:2])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q_BHOK, k_BHMK, v_BHMV, bias_BOM, ctx.scale, ctx.budget = inputs
        ctx.save_for_backward(q_BHOK, k_BHMK, v_BHMV, bias_BOM)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHOV: Tensor) -> tuple[Tensor | None, ...]:
        q_BHOK, k_BHMK, v_BHMV, bias_BOM = ctx.saved_tensors
        heads = q_BHOK.shape[1]
        q, grad_a = q_BHOK.flatten(0, 1), grad_BHOV.flatten(0, 1)
        k, v = k_BHMK.contiguous().flatten(0, 1), v_BHMV.contiguous().flatten(0, 1)
        grad_q, grad_k, grad_v = (array.new_empty(array.shape) for array in (q, k, v))
        wide = torch.promote_types(q.dtype, torch.float32)  # sums of several chunks are of this type
        grad_bias = torch.zeros_like(bias_BOM, dtype=wide) if ctx.needs_input_grad[3] else None
        for G, queries in chunks(q, k, ctx.budget):
            sums: list[Tensor] = []
            for R in queries:
                weights_GRM = scores(q[G, R], k[G], bias_of(bias_BOM, heads, G, R), ctx.scale).softmax(-1)
                grad_weights_GRM = matmul(grad_a[G, R], v[G].mT)
                grad_scores_GRM = torch._softmax_backward_data(grad_weights_GRM, weights_GRM, -1, weights_GRM.dtype)
                grad_q[G, R] = matmul(grad_scores_GRM, k[G]) * ctx.scale
                parts = [grad_scores_GRM.mT @ (q[G, R] * ctx.scale), weights_GRM.mT @ grad_a[G, R]]
                if grad_bias is not None:
                    is_shared = grad_bias.shape[1] == 1  # by all queries
                    grad_GRM = grad_scores_GRM.sum(1, keepdim=True) if is_shared else grad_scores_GRM
                    rows = grad_bias if is_shared else grad_bias[:, R]
                    rows.index_add_(0, example_of_heads(G, heads, q.device), grad_GRM.to(wide))
                if len(queries) > 1:
                    parts = [part.to(wide) for part in parts]
                sums = [total.add_(part) for total, part in zip(sums, parts, strict=True)] if sums else parts
            grad_k[G], grad_v[G] = sums
        grad_q, grad_k, grad_v = (g.unflatten(0, q_BHOK.shape[:2]) for g in (grad_q, grad_k, grad_v))
        return grad_q, grad_k, grad_v, None if grad_bias is None else grad_bias.to(bias_BOM.dtype), None, None


def chunks(q: Tensor, k: Tensor, budget: int) -> Iterator[tuple[slice, list[slice]]]:
    """Yields slices of heads, and for each the slices of its queries."""
    heads, queries, _ = q.shape
    bytes_per_query = max(1, k.shape[1]) * q.element_size()
    fewest = max(1, min(queries, MIN_CHUNK_QUERIES))
    heads_per_chunk = min(heads, max(1, budget // (fewest * bytes_per_query)))
    queries_per_chunk = max(fewest, budget // (heads_per_chunk * bytes_per_query))
    query_slices = [slice(query, query + queries_per_chunk) for query in range(0, max(1, queries), queries_per_chunk)]
    for head in range(0, heads, heads_per_chunk):
        yield slice(head, min(head + heads_per_chunk, heads)), query_slices


def concatenate(chunks: list[Tensor], dimension: int) -> Tensor:
    """Concatenates chunks; a single one is not copied."""
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dimension)


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


def scores(q_GRK: Tensor, k_GMK: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Computes q k^T * scale + bias; -> [G, R, M]."""
    if len(q_GRK) == 1 and (bias is None or bias.shape[1] == 1):
        return linear(q_GRK[0] * scale, k_GMK[0], None if bias is None else bias[0, 0])[None]
    added, factor = (q_GRK.new_zeros(1), 0) if bias is None else (bias, 1)
    return torch.baddbmm(added, q_GRK, k_GMK.mT, beta=factor, alpha=scale)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Computes a b for each head."""
    return linear(a[0], b[0].mT)[None] if len(a) == 1 else a @ b
