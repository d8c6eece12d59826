import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from perceivers.model.kernels import attention as module
from perceivers.model.kernels import blocked, chunked, half_precision
from perceivers.model.kernels.attention import has_fused_kernel, scaled_dot_product_attention
from perceivers.model.kernels.blocked import BlockedAttention
from perceivers.model.kernels.chunked import ChunkedAttention, chunks

LOOSE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 3e-2}


def formula(q, k, v, mask=None, bias=None, scale=None):
    """softmax(scale q k^T + bias) v, as it stands in the paper, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    score = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if bias is not None:
        score = score + bias.double()[:, None, None]
    if mask is not None:
        score = score.masked_fill(~mask[:, None, None], -math.inf)
    return score.softmax(-1).nan_to_num() @ v


def arrays(dtype, heads=2, queries=7, inputs=9, qk=4, v=6):
    """Queries, keys and values as they come from a projection that was split into heads."""
    sizes = (queries, qk), (inputs, qk), (inputs, v)
    made = [torch.randn(3, count, heads, size).to(dtype).transpose(1, 2) for count, size in sizes]
    return [array.detach().requires_grad_() for array in made]


MASK = torch.arange(9) < torch.tensor([[9], [4], [0]])


@pytest.fixture(params=["one piece", "many pieces"])
def in_pieces(request, monkeypatch):
    if request.param == "many pieces":
        monkeypatch.setattr(module, "CPU_CHUNK_BYTES", 40)
        monkeypatch.setattr(chunked, "MIN_CHUNK_QUERIES", 3)
        monkeypatch.setattr(blocked, "MIN_INPUTS", 4)


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("heads", "qk", "v"), [(2, 4, 6), (2, 4, 4), (1, 5, 5)])
@pytest.mark.parametrize("dtype", list(LOOSE))
@pytest.mark.usefixtures("in_pieces")
def test_values_and_gradients_are_the_formulas(dtype, heads, qk, v, masked, biased, scattered):
    q, k, values = arrays(dtype, heads, qk=qk, v=v)
    mask = (MASK[:, torch.randperm(9)] if scattered else MASK) if masked else None
    bias = torch.randn(3, 9).to(dtype).requires_grad_() if biased else None
    inputs = [array for array in (q, k, values, bias) if array is not None]
    want = formula(q, k, values, mask, bias, 0.3)
    got = scaled_dot_product_attention(q, k, values, mask, bias, scale=0.3)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, atol=LOOSE[dtype], rtol=LOOSE[dtype])
    weight = torch.randn_like(want)
    gradients = torch.autograd.grad((got.double() * weight).sum(), inputs)
    for gradient, of_formula in zip(gradients, torch.autograd.grad((want * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, of_formula, atol=3 * LOOSE[dtype], rtol=3 * LOOSE[dtype])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("heads", "qk", "v"), [(2, 4, 6), (2, 4, 4), (1, 5, 5)])
@pytest.mark.parametrize("dtype", list(LOOSE))
@pytest.mark.usefixtures("in_pieces")
def test_a_mask_of_pairs_hides_them_of_all_examples_or_of_each(dtype, heads, qk, v, batch):
    q, k, values = inputs = arrays(dtype, heads, qk=qk, v=v)
    pairs = torch.rand(batch, 7, 9) < 0.6
    score = (0.3 * q.double() @ k.double().mT).masked_fill(~pairs[:, None], -math.inf)
    want = score.softmax(-1) @ values.double()
    got = scaled_dot_product_attention(q, k, values, scale=0.3, pair_mask=pairs)
    torch.testing.assert_close(got.double(), want, atol=LOOSE[dtype], rtol=LOOSE[dtype])
    weight = torch.randn_like(want)
    gradients = torch.autograd.grad((got.double() * weight).sum(), inputs)
    for gradient, of_formula in zip(gradients, torch.autograd.grad((want * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, of_formula, atol=3 * LOOSE[dtype], rtol=3 * LOOSE[dtype])


@pytest.mark.parametrize("budget", [1, 10**6])
def test_pieces_on_an_accelerator_take_masks_as_a_bias(budget, monkeypatch):
    """There, masks become a bias; the same path is taken here where it cannot be looked at what they hide."""
    monkeypatch.setattr(module, "is_concrete", lambda mask: False)
    monkeypatch.setattr(module, "CPU_CHUNK_BYTES", budget)
    for v in (4, 6):  # by the fused kernel, and in pieces
        q, k, values = arrays(torch.float32, v=v)
        torch.testing.assert_close(
            scaled_dot_product_attention(q, k, values, MASK).double(), formula(q, k, values, MASK)
        )


def test_gradients_by_finite_differences():
    q, k, v = arrays(torch.float64, queries=3, inputs=4)
    for queries in (1, 3):  # a bias of all queries, or of each
        bias = torch.randn(3, queries, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda *a: ChunkedAttention.apply(*a, 0.5, 1, None), (q, k, v, bias))


def test_gradients_of_blocks_by_finite_differences(monkeypatch):
    monkeypatch.setattr(blocked, "MAX_QUERIES", 2)
    monkeypatch.setattr(blocked, "MIN_INPUTS", 3)
    q, k, v = arrays(torch.float64, queries=5, inputs=7)
    assert torch.autograd.gradcheck(lambda *a: BlockedAttention.apply(*a, 0.5, 1)[0], (q, k, v))
    assert torch.autograd.gradcheck(lambda q, k: BlockedAttention.apply(q, k, k, 0.5, 1)[0], (q, k))


@pytest.mark.parametrize(("dtype", "qk", "v"), [(torch.float32, 32, 160), (torch.bfloat16, 64, 64)])
def test_no_score_is_kept_for_the_gradients(dtype, qk, v, monkeypatch):
    monkeypatch.setattr(half_precision, "has_fast_products", lambda dtype: True)
    q, k, values = arrays(dtype, 8, 64, 512, qk, v)
    kept = []
    with saved_tensors_hooks(lambda array: kept.append(array.numel()) or array, lambda array: array):
        scaled_dot_product_attention(q, k, values)
    assert sum(kept) == q.numel() + k.numel() + values.numel()


@pytest.mark.parametrize(
    ("dtype", "scale", "close"),
    [(dtype, 0.3, close) for dtype, close in LOOSE.items()] + [(torch.float64, 40, 1e-10), (torch.float32, 40, 1e-3)],
)
def test_blocks_of_many_inputs_are_combined_to_the_formula(dtype, scale, close, monkeypatch):
    """At the larger scale, the highest scores of blocks differ by hundreds. The last block is smaller."""
    sizes = []
    linear = blocked.linear
    monkeypatch.setattr(blocked, "linear", lambda x, weight: sizes.append(len(weight)) or linear(x, weight))
    monkeypatch.setattr(chunked, "MIN_CHUNK_QUERIES", 3)
    monkeypatch.setattr(blocked, "MAX_QUERIES", 5)
    monkeypatch.setattr(blocked, "MIN_INPUTS", 4)
    q, k, values = (array.detach() for array in arrays(dtype, inputs=30))
    got = chunked.attend_in_chunks(q, k, values, None, scale, budget=1)
    torch.testing.assert_close(got.double(), formula(q, k, values, scale=scale), atol=close, rtol=close)
    assert sizes[:2] == [4, 6]  # inputs of the first block, and channels of its values
    assert sizes.count(2) == 3 * 2 * 2  # the last block: by example, head, and part of the queries


def test_gradients_of_blocks_are_as_exact_as_those_of_the_fused_kernel(monkeypatch):
    """In half precision, an offset of keys and values cancels in the gradient of the queries."""
    monkeypatch.setattr(blocked, "MIN_INPUTS", 1024)
    q, k, v = (torch.randn(1, 1, count, 32) + offset for count, offset in ((64, 0), (6000, 1), (6000, 3)))
    exact = [array.to(torch.bfloat16).double().requires_grad_() for array in (q, k, v)]
    grad_a = torch.randn(1, 1, 64, 32)
    (want,) = torch.autograd.grad(formula(*exact), exact[0], grad_a.double())
    errors = []
    for attend in (
        lambda q, k, v: BlockedAttention.apply(q, k, v, 1 / math.sqrt(32), 1)[0],
        torch.nn.functional.scaled_dot_product_attention,
    ):
        arrays = [array.detach().to(torch.bfloat16).requires_grad_() for array in exact]
        (grad_q,) = torch.autograd.grad(attend(*arrays), arrays[0], grad_a.to(torch.bfloat16))
        errors.append(((grad_q.double() - want).norm() / want.norm()).item())
    assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize(("queries", "is_blocked"), [(1, False), (300, True)])
def test_one_query_of_many_heads_is_not_taken_in_blocks(queries, is_blocked):
    q, k, v = arrays(torch.float32, queries=queries, inputs=9000)
    a = chunked.attend_in_chunks(q, k, v, None, 1.0, budget=2**23)
    assert (type(a.grad_fn).__name__ == "BlockedAttentionBackward") is is_blocked


def test_a_batch_of_nothing_is_attended_to():
    q, k, v = (array[:0] for array in arrays(torch.float32))
    assert chunked.attend_in_chunks(q, k, v, None, 1.0, budget=2**23).shape == (0, 2, 7, 6)


@pytest.mark.parametrize("max_heads", [None, 1, 2])
@pytest.mark.parametrize("budget", [1, 5000, 10**5, 10**9])
@pytest.mark.parametrize(("heads", "queries", "inputs"), [(24, 700, 100), (1, 1000, 3), (3, 10, 5000)])
def test_pieces_cover_everything_once_within_the_budget(budget, heads, queries, inputs, max_heads):
    q, k = torch.empty(heads, queries, 8), torch.empty(heads, inputs, 8)
    seen = torch.zeros(heads, queries)
    for some_heads, parts in chunks(q, k, budget, max_heads):
        for some_queries in parts:
            part = seen[some_heads, some_queries]
            assert len(part) <= (max_heads or heads)
            part += 1
            assert part.numel() * inputs * 4 <= max(budget, min(queries, 256) * inputs * 4)
    assert (seen == 1).all()


def test_nothing_is_computed_of_padding():
    q, k, v = (array.detach() for array in arrays(torch.float32))
    with FlopCounterMode(display=False) as counter:
        scaled_dot_product_attention(q, k, v, MASK)
    assert counter.get_total_flops() == 2 * 2 * 7 * (9 + 4) * (4 + 6)


def test_which_kernel():
    q, _, v = arrays(torch.float32, qk=8, v=8)
    assert has_fused_kernel(q, v, None, 0.0)
    assert not has_fused_kernel(q, v, torch.zeros(3, 9, requires_grad=True), 0.0)  # whose gradient it would not give
    assert not has_fused_kernel(q[..., :4], v, None, 0.0)
    sizes = {(64, 64): True, (32, 160): True, (256, 256): True, (322, 322): False, (261, 261): False, (512, 512): False}
    for (qk, v_channels), expected in sizes.items():
        q, v = torch.empty(1, 1, 2, qk, device="meta"), torch.empty(1, 1, 3, v_channels, device="meta")
        assert has_fused_kernel(q, v, None, 0.0) is expected


def test_autocast_computes_in_its_type():
    q, k, v = arrays(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = scaled_dot_product_attention(q, k, v)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), formula(q, k, v), atol=3e-2, rtol=3e-2)
    got.float().sum().backward()
    assert q.grad.dtype == torch.float32


def test_dropout_drops_weights():
    q, k, v = arrays(torch.float32)
    torch.manual_seed(0)
    some = torch.stack([scaled_dot_product_attention(q, k, v, MASK, dropout=0.5) for _ in range(400)])
    assert some.std(0)[:2].min() > 0
    torch.testing.assert_close(some.mean(0).double(), formula(q, k, v, MASK), atol=0.4, rtol=0)
