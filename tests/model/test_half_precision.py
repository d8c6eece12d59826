"""Half precision on a CPU without instructions for it: products are computed in float32."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from perceivers.adapters.image import ConvStem
from perceivers.model.kernels import half_precision
from perceivers.model.kernels.attention import scaled_dot_product_attention
from perceivers.model.kernels.half_precision import compute_in_float32, convolve, has_fast_products, needs_float32
from perceivers.model.kernels.onednn import linear
from perceivers.presets import create_model
from perceivers.training.muon import Muon

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_linear_pointwise", "_scaled_dot_product")

SOUND = {"frames": None, "samples": 1024, "samples_per_patch": 64, "audio_bands": 4, "mel_bands": 16, "hop": 64}


@pytest.fixture(params=[torch.bfloat16, torch.float16])
def slow(request, monkeypatch):
    """A type that the CPU multiplies slowly."""
    monkeypatch.setattr(half_precision, "has_fast_products", lambda dtype: False)
    return request.param


class Recorder(TorchDispatchMode):
    """Keeps the types of the arrays that are multiplied."""

    def __init__(self):
        super().__init__()
        self.types = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name().partition("::")[2].startswith(PRODUCTS):
            self.types += [arg.dtype for arg in args if isinstance(arg, torch.Tensor) and arg.dim() > 1]
        return function(*args, **(kwargs or {}))


def test_only_slow_types_on_a_cpu_need_float32(slow):
    x = torch.ones(2, 2)
    assert not needs_float32(x)
    assert not needs_float32(x.double())
    assert not needs_float32(x.to(slow).to("meta"))
    assert needs_float32(x.to(slow))
    with torch.autocast("cpu", dtype=slow):
        assert needs_float32(x)
        with torch.autocast("cpu", enabled=False):
            assert not needs_float32(x)
    assert not torch.vmap(lambda row: torch.full_like(row, needs_float32(row)))(x.to(slow)).any()


def test_fast_types_are_multiplied_as_they_are(monkeypatch):
    monkeypatch.setattr(half_precision, "has_fast_products", lambda dtype: True)
    with Recorder() as recorder:
        linear(torch.ones(2, 2).bfloat16(), torch.ones(2, 2).bfloat16())
    assert {*recorder.types} == {torch.bfloat16}


def test_types_are_fast_where_onednn_multiplies_them(monkeypatch):
    for fast in (torch.bfloat16, torch.float16):
        has_fast_products.cache_clear()
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda fast=fast: fast == torch.bfloat16)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda fast=fast: fast == torch.float16)
        assert [dtype for dtype in half_precision.HALF if has_fast_products(dtype)] == [fast]
    has_fast_products.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_fast_products(torch.bfloat16)
    has_fast_products.cache_clear()


@pytest.mark.parametrize("with_bias", [True, False])
def test_a_linear_layer_rounds_only_its_result(slow, with_bias):
    x, weight, bias = (torch.randn(shape).to(slow) for shape in ((3, 5, 16), (8, 16), (8,)))
    bias = bias if with_bias else None
    expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(slow)
    torch.testing.assert_close(linear(x, weight, bias), expected, rtol=0, atol=0)


def test_autocast_rounds_only_the_result_and_leaves_gradients_in_float32(slow):
    x, weight = torch.randn(5, 16), torch.randn(8, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=slow):
        result = linear(x, weight)
    assert result.dtype == slow
    torch.testing.assert_close(result, F.linear(x, weight).to(slow), rtol=0, atol=0)
    grad = torch.randn(5, 8).to(slow)
    (found,) = torch.autograd.grad(result, weight, grad)
    torch.testing.assert_close(found, grad.float().T @ x)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_rounds_only_its_result(slow, masked):
    q, k, v = (torch.randn(2, 4, size, 8).to(slow).requires_grad_() for size in (6, 10, 10))
    mask = torch.arange(10) < torch.tensor([[7], [10]]) if masked else None
    result = scaled_dot_product_attention(q, k, v, mask)
    scores = q.float() @ k.float().mT / math.sqrt(8)
    weights = (scores if mask is None else scores.masked_fill(~mask[:, None, None], -math.inf)).softmax(-1)
    assert result.dtype == slow
    expected = (weights @ v.float()).to(slow)
    torch.testing.assert_close(result, expected, rtol=2 * torch.finfo(slow).eps, atol=1e-5)
    grads = [torch.autograd.grad(each.float().sum(), (q, k, v)) for each in (result, expected)]
    for found, wanted in zip(*grads, strict=True):
        assert found.dtype == slow
        torch.testing.assert_close(found, wanted, rtol=2 * torch.finfo(slow).eps, atol=1e-3)


def test_an_array_that_is_given_twice_stays_one(slow):
    x = torch.ones(2).to(slow)
    assert compute_in_float32(lambda a, b, c: torch.tensor([a is b, c is None]), x, x, None).all()


def test_a_convolution_rounds_only_its_result(slow):
    layer, x = nn.Conv2d(3, 4, 3, stride=2).to(slow), torch.randn(2, 3, 9, 9).to(slow)
    expected = F.conv2d(x.float(), layer.weight.float(), layer.bias.float(), stride=2).to(slow)
    torch.testing.assert_close(convolve(layer, x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("preset", "sizes", "inputs"),
    [
        ("language_bytes", {"length": 64}, {"text": torch.randint(6, 200, (2, 64))}),
        ("imagenet_conv", {"image_size": 32}, {"image": torch.rand(2, 3, 32, 32)}),
        ("imagenet_fourier", {"image_size": 16, "bands": 4}, {"image": torch.rand(2, 3, 16, 16)}),
        ("optical_flow", {"image_size": (16, 24), "bands": 4}, {"frames": torch.rand(1, 2, 3, 16, 24)}),
        (
            "optical_flow",  # whose queries are narrower than the latents
            {"image_size": (16, 24), "bands": 4, "channels": 128},
            {"frames": torch.rand(1, 2, 3, 16, 24)},
        ),
        ("audioset_raw", SOUND | {"sound": "conv"}, {"audio": torch.rand(2, 1024)}),
        ("audioset_raw", SOUND | {"sound": "mel"}, {"audio": torch.rand(2, 1024)}),
    ],
)
def test_a_whole_model_multiplies_in_float32_only(slow, preset, sizes, inputs):
    sizes = {"latents": 8, "channels": 32, "depth": 1, "num_blocks": 1, "heads": 2} | sizes
    model = create_model(preset, **sizes)
    with Recorder() as recorder, torch.autocast("cpu", dtype=slow):
        loss = sum(y.float().square().mean() for y in model(inputs).values())
    with recorder:
        loss.backward()
    assert len(recorder.types) > 10
    assert {*recorder.types} == {torch.float32}
    model, recorder = model.to(slow).eval(), Recorder()
    with recorder, torch.no_grad():
        outputs = model({name: x.to(slow) if x.is_floating_point() else x for name, x in inputs.items()})
    assert len(recorder.types) > 10
    assert {*recorder.types} == {torch.float32}
    assert all(y.isfinite().all() for y in outputs.values())


def test_the_stem_of_images_convolves_in_float32(slow):
    stem, images = ConvStem(8).eval(), torch.rand(1, 3, 32, 32)
    expected = stem(images)
    found = stem.to(slow)(images.to(slow))
    assert found.dtype == slow
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("method", ["newton_schulz", "gram_newton_schulz"])
def test_muon_orthogonalizes_in_float32_as_well_as_in_bfloat16(monkeypatch, method):
    shapes, updated = ((8, 8), (8, 8), (4, 12), (12, 4)), []
    for is_fast in (True, False):
        monkeypatch.setattr("perceivers.training.muon.has_fast_products", lambda dtype, is_fast=is_fast: is_fast)
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            muon = Muon([{"params": weights, "use_muon": True}], lr=1.0, ns_method=method)
        with Recorder() as recorder:
            muon.step()
        assert (torch.float32 in recorder.types) != is_fast
        updated.append([weight.detach().clone() for weight in weights])
    for fast, wide in zip(*updated, strict=True):
        torch.testing.assert_close(wide, fast, rtol=0, atol=0.02)
        singular = torch.linalg.svdvals(wide)
        assert singular.max() < 2 * singular.min()
