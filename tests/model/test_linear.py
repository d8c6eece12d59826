import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from perceivers.model import kernels
from perceivers.model.kernels import onednn as module
from perceivers.model.kernels.onednn import linear, onednn_is_preferred
from perceivers.model.linear import Linear, lecun_normal_, trunc_normal_, trunc_normal_parameter


def test_initialization():
    weight = torch.empty(2000, 400)
    lecun_normal_(weight)
    assert weight.std() == pytest.approx(1 / math.sqrt(400), rel=0.01)
    assert weight.abs().max() <= 2 / math.sqrt(400) / 0.8796
    array = trunc_normal_parameter(1000, 100).detach()
    assert array.std() == pytest.approx(0.02 * 0.8796, rel=0.01)
    assert array.abs().max() <= 0.04
    assert (Linear(8, 6).bias == 0).all()


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_truncated_normal_is_a_normal_cut_at_two_standard_deviations(std):
    array = trunc_normal_(torch.empty(1000, 1000), std)
    assert array.abs().max() <= 2 * std
    assert array.abs().max() > 1.999 * std
    assert array.mean() == pytest.approx(0, abs=5e-3 * std)
    assert array.var() == pytest.approx(0.7737413 * std**2, rel=5e-3)
    normal = torch.distributions.Normal(0, std)
    ordered = array.flatten().sort().values
    for bound in (-1.9, -1, -0.3, 0.5, 1.5):
        share = torch.searchsorted(ordered, bound * std).item() / array.numel()
        low, high, at = (normal.cdf(torch.tensor(x * std)).item() for x in (-2, 2, bound))
        assert share == pytest.approx((at - low) / (high - low), abs=2e-3)


def test_truncated_normal_fills_in_place_whatever_the_layout_and_no_gradient_is_recorded():
    array = torch.zeros(50, 40).T
    assert trunc_normal_(array, 1.0) is array
    assert (array != 0).all()
    parameter = nn.Parameter(torch.zeros(50))
    trunc_normal_(parameter, 1.0)
    assert parameter.is_leaf
    assert parameter.grad_fn is None


@pytest.fixture
def onednn_for_small(monkeypatch):
    """Has oneDNN multiply small arrays, too."""
    monkeypatch.setattr(module, "MIN_PRODUCTS", 1)


@pytest.mark.usefixtures("onednn_for_small")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    "x",
    [
        torch.randn(5, 8),
        torch.randn(2, 3, 5, 8),
        torch.randn(8),
        torch.empty(0, 8),
        torch.randn(8, 5).mT,
        torch.randn(3, 5, 16)[:, ::2, ::2],
        torch.randn(1, 5, 8).expand(3, -1, -1),
    ],
    ids=["2d", "4d", "1d", "empty", "transposed", "strided", "expanded"],
)
def test_project_is_a_linear_layer_with_its_gradients(x, biased):
    x = x.detach().requires_grad_()
    weight, bias = torch.randn(6, 8, requires_grad=True), torch.randn(6, requires_grad=True) if biased else None
    inputs = [array for array in (x, weight, bias) if array is not None]
    want, got = F.linear(x, weight, bias), linear(x, weight, bias)
    torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), want)
    factor = torch.randn_like(want)
    gradients = zip(*(torch.autograd.grad((y * factor).sum(), inputs) for y in (got, want)), strict=True)
    for ours, theirs in gradients:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("onednn_for_small")
def test_weights_may_be_transposed():
    x, weight = torch.randn(5, 8), torch.randn(8, 6)
    torch.testing.assert_close(linear(x, weight.mT), x @ weight)


def test_matrices_with_gaps_are_left_to_the_other_library(monkeypatch):
    """With the second, oneDNN does not come back."""
    monkeypatch.setattr(module, "onednn_linear", lambda *_: pytest.fail("has gaps"))
    gaps = torch.randn(512, 8, 128)[:, 0]
    for x, weight in ((gaps, torch.randn(6, 128)), (torch.randn(512, 512), gaps.mT)):
        torch.testing.assert_close(linear(x, weight), x @ weight.mT)


@pytest.mark.usefixtures("onednn_for_small")
def test_only_gradients_that_are_asked_for_are_computed():
    x, weight = torch.randn(5, 8), torch.randn(6, 8, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        linear(x, weight).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 5 * 8 * 6


def test_onednn_multiplies_float32_and_nothing_else(monkeypatch):
    if not onednn_is_preferred():
        pytest.skip("this processor has no AVX-512, or torch no oneDNN")
    calls = []
    real = module.onednn_linear
    monkeypatch.setattr(module, "onednn_linear", lambda *a: calls.append(a) or real(*a))
    layer = Linear(8, 6)
    kernels.optimize(layer)
    x = torch.randn(5, 8)
    layer(x)
    assert not calls  # 240 multiplications are not worth the call
    monkeypatch.setattr(module, "MIN_PRODUCTS", 240)
    layer(x)
    assert len(calls) == 1
    layer(x).sum().backward()
    assert len(calls) == 2  # x needs no gradient
    layer.double()(x.double())
    layer.bfloat16()(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(x).dtype == torch.bfloat16
    layer.to("meta")(x.to("meta"))
    with torch.backends.mkldnn.flags(enabled=False):
        layer.to_empty(device="cpu")(x)
    assert len(calls) == 2


@pytest.mark.usefixtures("onednn_for_small")
def test_flops_are_seen_by_the_counter():
    layer = Linear(8, 6)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.randn(3, 5, 8))
    assert counter.get_total_flops() == 2 * 15 * 8 * 6


def test_gradients_of_every_example():
    """With torch.func, as for influence functions or private training."""
    layer = Linear(8, 6)
    weights = dict(layer.named_parameters())
    x = torch.randn(4, 3, 8)

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, x).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for one in range(4):
        expected = torch.autograd.grad(loss(weights, x[one]), list(weights.values()))
        torch.testing.assert_close([gradient[one] for gradient in each.values()], list(expected), atol=1e-4, rtol=1e-4)
