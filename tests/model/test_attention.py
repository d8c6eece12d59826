import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from perceivers.errors import PerceiversError
from perceivers.model import kernels
from perceivers.model.attention import Attention, Cache, CrossAttention, SelfAttention
from perceivers.model.intermediates import record_attention
from perceivers.model.kernels.folding import FoldIntoInputs, FoldIntoQueries, FusedAttention, decode
from perceivers.model.linear import Linear
from perceivers.model.rotary import RotaryPositions, spaced_periods


@pytest.fixture(params=[kernels.reset, kernels.optimize], ids=["formula", "kernel"])
def choose(request):
    """Makes a layer compute the formula, or by its kernel."""

    def apply(layer):
        request.param(layer)
        return layer

    return apply


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
def test_attention_equals_the_plain_formula(heads, qk_channels, v_channels, choose):
    attention = choose(Attention(8, 5 if heads == 1 else 6, heads, qk_channels, v_channels)).double()
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


def test_blocks_are_pre_norm_with_residuals(choose):
    block = choose(CrossAttention(8, 6, widening_factor=3)).double()
    q, x = torch.randn(2, 4, 8).double(), torch.randn(2, 5, 6).double()
    norm = nn.functional.layer_norm
    a = block.attention(norm(q, (8,)), norm(x, (6,)))
    inside = nn.functional.gelu(block.mlp.hidden(norm(a + q, (8,))), approximate="tanh")
    torch.testing.assert_close(block(q, x), a + q + block.mlp.output(inside))
    assert block.mlp.hidden.out_features == 24

    without = CrossAttention(8, 6, query_residual=False, gelu="exact")
    choose(without).double()
    a = without.attention(norm(q, (8,)), norm(x, (6,)))
    inside = nn.functional.gelu(without.mlp.hidden(norm(a, (8,))), approximate="none")
    torch.testing.assert_close(without(q, x), a + without.mlp.output(inside))

    layer = choose(SelfAttention(8, 2)).double()
    n = norm(q, (8,))
    h = q + layer.attention(n, n)
    torch.testing.assert_close(layer(q), h + layer.mlp(norm(h, (8,))))


def test_elements_added_to_a_cache_are_those_of_the_whole_causal_sequence(choose):
    layer = choose(SelfAttention(8, heads=2).double())
    z_BND = torch.randn(3, 7, 8).double()
    rotation = RotaryPositions(spaced_periods(2, 2.0, 50.0))(torch.arange(7.0).double()[None, :, None])
    causal = torch.ones(1, 7, 7, dtype=torch.bool).tril()
    whole = layer(z_BND, None, causal, rotation)
    cache, parts = Cache(), []
    for start, end in ((0, 3), (3, 4), (4, 7)):
        assert len(cache) == start
        part = type(rotation)(*(array[:, start:end] for array in rotation))
        parts.append(layer(z_BND[:, start:end], None, causal[:, start:end, :end], part, cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_fully_masked_queries_give_the_bias_and_finite_gradients(choose):
    attention = choose(Attention(8, 6))
    nn.init.normal_(attention.output.bias)
    q, x = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 5, 6, requires_grad=True)
    out = attention(q, x, torch.tensor([[False] * 5, [True] * 5]))
    torch.testing.assert_close(out[0], attention.output.bias.expand(3, -1))
    out.sum().backward()
    assert q.grad.isfinite().all()
    assert x.grad.isfinite().all()
    assert (x.grad[0] == 0).all()


def test_padding_changes_nothing(choose):
    attention = choose(Attention(8, 6, 2))
    q, x = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    padded = torch.cat([x, torch.full((2, 4, 6), 1e4)], 1)
    mask = torch.arange(9).expand(2, -1) < 5
    torch.testing.assert_close(attention(q, padded, mask), attention(q, x))


def test_attention_maps_are_the_weights(choose):
    attention = choose(Attention(8, 6, 2, v_channels=4))
    q, x = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    mask = torch.tensor([[True, True, False, True, False], [False] * 5])
    with record_attention(nn.ModuleDict({"a": attention})) as maps:
        out = attention(q, x, mask)
    torch.testing.assert_close(attention(q, x, mask), out)
    (w_BHOM,) = maps["a"]
    torch.testing.assert_close(w_BHOM[0].sum(-1), torch.ones(2, 3))
    assert (w_BHOM[0, :, :, [2, 4]] == 0).all()
    assert (w_BHOM[1] == 0).all()
    values = w_BHOM @ attention.split_heads(attention.value(x), attention.heads)
    torch.testing.assert_close(attention.output(values.transpose(1, 2).flatten(2)), out)


def test_dropout_acts_in_training_only(choose):
    attention = choose(Attention(8, 6, dropout=0.5))
    q, x = torch.randn(2, 3, 8), torch.randn(2, 5, 6)
    assert not torch.equal(attention(q, x), attention(q, x))
    attention.eval()
    torch.testing.assert_close(attention(q, x), attention(q, x))


def test_gradients(choose):
    block = choose(CrossAttention(4, 3, qk_channels=2, v_channels=6, heads=2)).double()
    q, x = torch.randn(1, 2, 4, requires_grad=True).double(), torch.randn(1, 3, 3, requires_grad=True).double()
    mask = torch.tensor([[True, False, True]])
    assert torch.autograd.gradcheck(lambda q, x: block(q, x, mask), (q, x))


def test_heads_must_divide_channels():
    with pytest.raises(PerceiversError, match=r"qk_channels = 261 cannot be split over heads = 8"):
        Attention(1024, 261, heads=8)
    with pytest.raises(PerceiversError, match=r"v_channels = 9 cannot be split over heads = 2"):
        Attention(8, 6, heads=2, v_channels=9)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("kernel", "longer", "query_channels", "input_channels"),
    [(FoldIntoQueries, "inputs", 24, 12), (FoldIntoInputs, "queries", 12, 24)],
)
def test_a_folded_head_is_the_formula(kernel, longer, query_channels, input_channels, masked):
    qk_channels, v_channels = 16, 20
    attention = Attention(query_channels, input_channels, 1, qk_channels, v_channels, longer=longer)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    kernels.optimize(attention)
    assert type(attention.kernel) is kernel
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
        kernels.reset(attention)
        attention(q_BOQ, x_BMC)
    assert counter.get_total_flops() != as_written.get_total_flops()


def test_gradients_of_a_folded_encoder_are_the_formulas():
    attention = Attention(24, 12, 1, 16, 20, longer="inputs")
    q_BOQ, x_BMC = torch.randn(2, 3, 24), torch.randn(2, 9, 12, requires_grad=True)
    gradients = []
    for choose in (kernels.optimize, kernels.reset):
        choose(attention)
        x_BMC.grad = None
        attention.zero_grad()
        attention(q_BOQ, x_BMC).square().sum().backward()
        gradients.append([x_BMC.grad.clone(), *(parameter.grad.clone() for parameter in attention.parameters())])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_longer_inputs_are_never_projected(monkeypatch):
    attention = Attention(16, 12, 1, 16, 16, longer="inputs")
    kernels.optimize(attention)
    inputs = []
    monkeypatch.setattr(Linear, "forward", lambda layer, x: inputs.append(x.shape) or x @ layer.weight.T + layer.bias)
    attention(torch.randn(1, 4, 16), torch.randn(1, 1000, 12))
    assert inputs
    assert all(shape[-2] == 4 for shape in inputs)


def decoder_and_head(kind=Linear):
    """A decoder of 64 query channels whose output of 3 channels makes folding worthwhile."""
    decoder = CrossAttention(64, 16, query_residual=False)
    head = [Linear(64, 32), kind(32, 3)]
    for layer in (decoder, *head):
        kernels.optimize(layer)
    return decoder, head, torch.randn(2, 5, 64), torch.randn(2, 6, 16)


@pytest.mark.parametrize("masked", [False, True])
def test_a_folded_head_of_the_decoder_is_the_formula(masked):
    decoder, head, q_BOQ, x_BMC = decoder_and_head()
    mask_BO = torch.arange(5) < torch.tensor([[5], [3]]) if masked else None
    got = decode(decoder, head, q_BOQ, decoder.project_keys_values(x_BMC), mask_BO)
    with FlopCounterMode(display=False) as folded, torch.no_grad():
        decode(decoder, head, q_BOQ, decoder.project_keys_values(x_BMC), mask_BO)
    for layer in (decoder, *head):
        kernels.reset(layer)
    with FlopCounterMode(display=False) as formula:
        want = head[1](head[0](decoder(q_BOQ, x_BMC, None, mask_BO)))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert folded.get_total_flops() < formula.get_total_flops()


class Doubled(Linear):
    def forward(self, x):
        return 2 * super().forward(x)


ATTACHED = {
    "forward hook": lambda layer: layer.register_forward_hook(lambda _layer, _inputs, output: output * 0.5),
    "forward pre-hook": lambda layer: layer.register_forward_pre_hook(lambda _layer, inputs: (inputs[0] * 0.5,)),
    "parametrization": lambda layer: nn.utils.parametrizations.weight_norm(layer),
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    "forward of the object": lambda layer: setattr(layer, "forward", lambda x: x @ layer.weight.T * 0.5),
    "another class": lambda layer: setattr(layer, "__class__", Doubled),
}


@pytest.mark.parametrize("longer", ["inputs", "queries", None])
@pytest.mark.parametrize("name", ["query", "key", "value", "output"])
@pytest.mark.parametrize("what", list(ATTACHED))
def test_whatever_is_attached_to_a_layer_of_attention_acts(what, name, longer):
    attention = Attention(16, 16, 1, 32, 32, longer=longer)
    q_BOQ, x_BMC, mask_BM = torch.randn(2, 4, 16), torch.randn(2, 9, 16), torch.arange(9) < torch.tensor([[9], [4]])
    kernels.optimize(attention)
    before = attention(q_BOQ, x_BMC, mask_BM)
    shapes = []
    ATTACHED[what](getattr(attention, name))
    getattr(attention, name).register_forward_pre_hook(lambda _layer, inputs: shapes.append(inputs[0].shape))
    results = []
    for choose in (kernels.optimize, kernels.reset):
        choose(attention)
        results.append(attention(q_BOQ, x_BMC, mask_BM))
        results[-1].sum().backward()  # every forward pass has a graph of its own
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
    if what != "parametrization":  # weight_norm alone changes nothing
        assert (results[0] - before).abs().max() > 1e-3
    assert [len(shape) for shape in shapes] == [3, 3], "hooks see whole arrays, once a call"


@pytest.mark.parametrize("place", ["norm_h", "mlp", "mlp.hidden", "mlp.output", "head.0", "head.1"])
@pytest.mark.parametrize("what", ["forward hook", "forward pre-hook"])
def test_whatever_is_attached_behind_the_decoders_attention_acts(what, place):
    decoder, head, q_BOQ, x_BMC = decoder_and_head()
    both = nn.ModuleDict({"decoder": decoder, "head": nn.ModuleList(head)})
    ATTACHED[what](both.get_submodule(place if place.startswith("head") else f"decoder.{place}"))
    got = decode(decoder, head, q_BOQ, decoder.project_keys_values(x_BMC), None)
    kernels.reset(both)
    torch.testing.assert_close(got, head[1](head[0](decoder(q_BOQ, x_BMC))), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "other", [nn.LayerNorm(32), nn.Dropout(0.0), nn.Tanh()], ids=lambda layer: type(layer).__name__
)
def test_other_layers_after_the_decoder_are_called(other):
    decoder, head, q_BOQ, x_BMC = decoder_and_head()
    head.insert(1, other)
    got = decode(decoder, head, q_BOQ, decoder.project_keys_values(x_BMC), None)
    torch.testing.assert_close(got, head[2](other(head[0](decoder(q_BOQ, x_BMC)))), atol=1e-5, rtol=1e-5)


def test_a_replaced_mlp_is_called():
    decoder, head, q_BOQ, x_BMC = decoder_and_head()
    decoder.mlp = nn.Tanh()
    got = decode(decoder, head, q_BOQ, decoder.project_keys_values(x_BMC), None)
    torch.testing.assert_close(got, head[1](head[0](decoder(q_BOQ, x_BMC))), atol=1e-5, rtol=1e-5)


def test_a_hook_of_the_decoder_sees_its_own_output():
    decoder, head, q_BOQ, x_BMC = decoder_and_head()
    shapes = []
    decoder.register_forward_hook(lambda _decoder, _inputs, output: shapes.append(output.shape))
    decode(decoder, head, q_BOQ, decoder.project_keys_values(x_BMC), None)
    assert shapes == [(2, 5, 64)]


def test_an_adapted_layer_still_gets_fused_attention():
    attention = Attention(16, 16, 4)
    attention.query.__class__ = Doubled
    kernels.optimize(attention)
    assert type(attention.kernel) is FusedAttention
    assert attention.active_kernel is attention.kernel


def test_transforms_see_plain_operators():
    block = CrossAttention(16, 12, longer="inputs")
    kernels.optimize(block)
    q_BOQ, x_BMC, mask_BM = torch.randn(2, 4, 16), torch.randn(2, 9, 12), torch.arange(9) < torch.tensor([[9], [4]])
    other_BM = torch.arange(9) < torch.tensor([[2], [7]])
    want = block(q_BOQ, x_BMC, other_BM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        traced = torch.jit.trace(block, (q_BOQ, x_BMC, mask_BM))
        torch.testing.assert_close(traced(q_BOQ, x_BMC, other_BM), want)
    exported = torch.export.export(block, (q_BOQ, x_BMC, mask_BM))
    torch.testing.assert_close(exported.module()(q_BOQ, x_BMC, other_BM), want)
    assert not any("mkldnn" in str(node.target) for node in exported.graph.nodes)

    def loss(q_OQ, x_MC, mask_M):
        return block(q_OQ[None], x_MC[None], mask_M[None]).square().sum()

    each = torch.func.vmap(torch.func.grad(loss, argnums=1))(q_BOQ, x_BMC, other_BM)
    x_BMC.requires_grad_()
    block(q_BOQ, x_BMC, other_BM).square().sum().backward()
    torch.testing.assert_close(each, x_BMC.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_exports_for_any_number_of_inputs_joined_to_the_queries(kv_heads):
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(12, 12, 4, kv_heads=kv_heads)
            kernels.optimize(self)

        def forward(self, q_BOQ, x_BMC):
            return self.attention(q_BOQ, torch.cat([x_BMC, q_BOQ], 1))

    model, length = Joined(), torch.export.Dim("length", min=2, max=64)
    shapes = ({}, {1: length})
    program = torch.export.export(model, (torch.randn(2, 5, 12), torch.randn(2, 9, 12)), dynamic_shapes=shapes)
    arguments = torch.randn(2, 5, 12), torch.randn(2, 20, 12)
    torch.testing.assert_close(program.module()(*arguments), model(*arguments))
