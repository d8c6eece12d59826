import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from perceivers.errors import PerceiversError
from perceivers.model.attention import (
    Attention,
    CrossAttention,
    SelfAttention,
    compute_as_written,
    record_attention,
    sum_then_linear,
)
from perceivers.model.linear import Linear


def plain_attention(attention, q_OQ, x_MC, mask_M, query_mask_O):
    """The formula of the paper, one example, one head and one query at a time."""
    q, k, v = attention.query(q_OQ), attention.key(x_MC), attention.value(x_MC)
    qk, vv = q.shape[-1] // attention.heads, v.shape[-1] // attention.heads
    rows = []
    for o in range(len(q)):
        row = []
        for h in range(attention.heads):
            scores = [
                float(q[o, h * qk : (h + 1) * qk] @ k[m, h * qk : (h + 1) * qk]) / math.sqrt(qk) for m in range(len(k))
            ]
            weights = [math.exp(s) if mask_M[m] and query_mask_O[o] else 0.0 for m, s in enumerate(scores)]
            total = sum(weights) or 1.0
            row.append(sum(w / total * v[m, h * vv : (h + 1) * vv] for m, w in enumerate(weights)))
        rows.append(torch.cat(row))
    return attention.output(torch.stack(rows))


@pytest.mark.parametrize(("heads", "qk_channels", "v_channels"), [(1, None, None), (3, 6, None), (2, 6, 10), (1, 7, 5)])
def test_attention_equals_the_plain_formula(heads, qk_channels, v_channels):
    attention = Attention(8, 5 if heads == 1 else 6, heads, qk_channels, v_channels).double()
    channels = attention.key.in_features
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    q_BOQ, x_BMC = torch.randn(3, 4, 8).double(), torch.randn(3, 9, channels).double()
    mask_BM = torch.rand(3, 9) < 0.6
    mask_BM[1] = False
    query_mask_BO = torch.rand(3, 4) < 0.7
    got = attention(q_BOQ, x_BMC, mask_BM, query_mask_BO)
    for b in range(3):
        want = plain_attention(attention, q_BOQ[b], x_BMC[b], mask_BM[b], query_mask_BO[b])
        torch.testing.assert_close(got[b], want)
    full = attention(q_BOQ, x_BMC)
    want = plain_attention(attention, q_BOQ[0], x_BMC[0], [True] * 9, [True] * 4)
    torch.testing.assert_close(full[0], want)


def test_blocks_are_pre_norm_with_residuals():
    block = CrossAttention(8, 6, widening_factor=3).double()
    q, x = torch.randn(2, 4, 8).double(), torch.randn(2, 5, 6).double()
    norm = nn.functional.layer_norm
    a = block.attention(norm(q, (8,)), norm(x, (6,)))
    inside = nn.functional.gelu(block.mlp.hidden(norm(a + q, (8,))), approximate="tanh")
    torch.testing.assert_close(block(q, x), a + q + block.mlp.output(inside))
    assert block.mlp.hidden.out_features == 24

    without = CrossAttention(8, 6, query_residual=False, gelu="exact").double()
    a = without.attention(norm(q, (8,)), norm(x, (6,)))
    inside = nn.functional.gelu(without.mlp.hidden(norm(a, (8,))), approximate="none")
    torch.testing.assert_close(without(q, x), a + without.mlp.output(inside))

    layer = SelfAttention(8, 2).double()
    n = norm(q, (8,))
    h = q + layer.attention(n, n)
    torch.testing.assert_close(layer(q), h + layer.mlp(norm(h, (8,))))


def test_fully_masked_queries_give_the_bias_and_finite_gradients():
    attention = Attention(8, 6)
    nn.init.normal_(attention.output.bias)
    q, x = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 5, 6, requires_grad=True)
    out = attention(q, x, torch.tensor([[False] * 5, [True] * 5]))
    torch.testing.assert_close(out[0], attention.output.bias.expand(3, -1))
    out.sum().backward()
    assert q.grad.isfinite().all()
    assert x.grad.isfinite().all()
    assert (x.grad[0] == 0).all()


def test_padding_changes_nothing():
    attention = Attention(8, 6, 2)
    q, x = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    padded = torch.cat([x, torch.full((2, 4, 6), 1e4)], 1)
    mask = torch.arange(9).expand(2, -1) < 5
    torch.testing.assert_close(attention(q, padded, mask), attention(q, x))


def test_attention_maps_are_those_of_the_fused_path():
    attention = Attention(8, 6, 2, v_channels=4)
    q, x = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    mask = torch.tensor([[True, True, False, True, False], [False] * 5])
    with record_attention(nn.ModuleDict({"a": attention})) as maps:
        out = attention(q, x, mask)
    attention(q, x)
    (w_BHOM,) = maps["a"]
    torch.testing.assert_close(w_BHOM[0].sum(-1), torch.ones(2, 3))
    assert (w_BHOM[0, :, :, [2, 4]] == 0).all()
    assert (w_BHOM[1] == 0).all()
    values = w_BHOM @ attention.split(attention.value(x))
    torch.testing.assert_close(attention.output(values.transpose(1, 2).flatten(2)), out)


def test_dropout_acts_in_training_only():
    attention = Attention(8, 6, dropout=0.5)
    q, x = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    assert not torch.equal(attention(q, x), attention(q, x))
    attention.eval()
    torch.testing.assert_close(attention(q, x), attention(q, x))


def test_gradients():
    block = CrossAttention(4, 3, qk_channels=2, v_channels=6, heads=2).double()
    q, x = torch.randn(1, 2, 4, requires_grad=True).double(), torch.randn(1, 3, 3, requires_grad=True).double()
    mask = torch.tensor([[True, False, True]])
    assert torch.autograd.gradcheck(lambda q, x: block(q, x, mask), (q, x))


def test_heads_must_divide_channels():
    with pytest.raises(PerceiversError, match=r"qk_channels = 261 cannot be split over heads = 8"):
        Attention(1024, 261, heads=8)
    with pytest.raises(PerceiversError, match=r"v_channels = 9 cannot be split over heads = 2"):
        Attention(8, 6, heads=2, v_channels=9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("long", "query_channels", "input_channels"), [("inputs", 24, 12), ("queries", 12, 24)])
def test_a_rearranged_single_head_is_the_formula(long, query_channels, input_channels, masked):
    qk_channels, v_channels = 16, 20
    attention = Attention(query_channels, input_channels, 1, qk_channels, v_channels, long=long)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    assert attention.saves
    q_BOQ, x_BMC = torch.randn(3, 7, query_channels), torch.randn(3, 9, input_channels)
    mask_BM = torch.tensor([[True] * 9, [True] * 4 + [False] * 5, [False] * 9]) if masked else None
    query_mask_BO = torch.arange(7) < torch.tensor([[7], [5], [0]]) if masked else None
    key, value, query = attention.key(x_BMC), attention.value(x_BMC), attention.query(q_BOQ)
    score = query @ key.transpose(1, 2) / qk_channels**0.5
    if masked:
        score = score.masked_fill(~mask_BM[:, None], -torch.inf)
    weight = score.softmax(-1).nan_to_num()
    if masked:
        weight = weight * query_mask_BO[..., None]
    expected = attention.output(weight @ value)
    with torch.no_grad():
        torch.testing.assert_close(attention(q_BOQ, x_BMC, mask_BM, query_mask_BO), expected, atol=1e-5, rtol=1e-5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        attention(q_BOQ, x_BMC)
    with FlopCounterMode(display=False) as as_written, torch.no_grad():
        compute_as_written(attention)
        attention(q_BOQ, x_BMC)
    assert counter.get_total_flops() != as_written.get_total_flops()


def test_gradients_of_a_rearranged_encoder_are_the_formulas():
    attention = Attention(24, 12, 1, 16, 20, long="inputs")
    q_BOQ, x_BMC = torch.randn(2, 3, 24), torch.randn(2, 9, 12, requires_grad=True)
    gradients = []
    for rearrange in (True, False):
        attention.rearrange = rearrange
        x_BMC.grad = None
        attention.zero_grad()
        attention(q_BOQ, x_BMC).square().sum().backward()
        gradients.append([x_BMC.grad.clone(), *(parameter.grad.clone() for parameter in attention.parameters())])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_long_inputs_are_never_projected():
    attention = Attention(16, 12, 1, 16, 16, long="inputs")
    attention.key.register_forward_hook(lambda *_: pytest.fail("projected all inputs"))
    attention(torch.randn(1, 4, 16), torch.randn(1, 1000, 12))


@pytest.mark.parametrize("rearrange", [True, False])
def test_a_sum_then_linear_layers_is_what_it_says(rearrange):
    layers = [Linear(20, 64), Linear(64, 32), Linear(32, 3)]
    h_BOQ, hidden_BOW = torch.randn(2, 5, 64), torch.randn(2, 5, 20)
    expected = layers[2](layers[1](h_BOQ + layers[0](hidden_BOW)))
    torch.testing.assert_close(sum_then_linear(h_BOQ, hidden_BOW, layers, rearrange), expected, atol=1e-5, rtol=1e-5)


def test_a_layer_that_was_replaced_is_called():
    class Doubled(Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layers = [Linear(20, 64), Doubled(64, 3)]
    h_BOQ, hidden_BOW = torch.randn(2, 5, 64), torch.randn(2, 5, 20)
    expected = layers[1](h_BOQ + layers[0](hidden_BOW))
    torch.testing.assert_close(sum_then_linear(h_BOQ, hidden_BOW, layers, True), expected)
    attention = Attention(16, 12, 1, 16, 16, long="inputs")
    attention.value = Doubled(12, 16)
    q_BOQ, x_BMC = torch.randn(1, 4, 16), torch.randn(1, 9, 12)
    answer = attention(q_BOQ, x_BMC)
    compute_as_written(attention)
    torch.testing.assert_close(answer, attention(q_BOQ, x_BMC))
