import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from perceivers import PerceiverIO, PerceiversError, SetEncoder
from perceivers.adapters import ArrayInput, SetOutput
from perceivers.checkpoints.load import load_model
from perceivers.model import kernels
from perceivers.model.adapter import InputArray
from perceivers.set_encoder import SetHeads
from perceivers.starcraft.entity_transformer import EntityTransformer
from tests.support.models import shaken

SMALL = {"output_channels": 12, "width": 16, "depth": 2, "heads": 2}


def perceiver():
    return shaken(SetEncoder(7, latents=5, latent_channels=20, **SMALL))


def transformer():
    return shaken(EntityTransformer(7, **SMALL))


@pytest.fixture(params=[perceiver, transformer])
def encoder(request):
    return request.param()


@pytest.fixture
def elements():
    return torch.randn(2, 9, 7), torch.tensor([[True] * 9, [True] * 5 + [False] * 4])


@torch.no_grad()
def test_order_does_not_matter(encoder, elements):
    x_BMC, mask_BM = elements
    found = encoder(x_BMC, mask_BM)
    order = torch.randperm(9)
    other = encoder(x_BMC[:, order], mask_BM[:, order])
    torch.testing.assert_close(other.elements_BME, found.elements_BME[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.pooled_BE, found.pooled_BE, rtol=1e-4, atol=1e-5)
    assert found.elements_BME.shape == (2, 9, 12)
    assert (found.elements_BME[0, 0] - found.elements_BME[0, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_padding_has_no_influence(encoder, elements):
    x_BMC, mask_BM = elements
    found = encoder(x_BMC, mask_BM)
    noise = torch.where(mask_BM[..., None], x_BMC, 100 * torch.randn_like(x_BMC))
    other, alone = encoder(noise, mask_BM), encoder(x_BMC[1:, :5])
    torch.testing.assert_close(other.elements_BME, found.elements_BME, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.pooled_BE, found.pooled_BE, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.elements_BME[0], found.elements_BME[1, :5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.pooled_BE[0], found.pooled_BE[1], rtol=1e-4, atol=1e-5)
    assert (found.elements_BME[1, 5:] == 0).all()


@torch.no_grad()
def test_every_element_counts(encoder, elements):
    x_BMC, mask_BM = elements
    found, changed = encoder(x_BMC, mask_BM), x_BMC.clone()
    changed[:, 4] += 1
    other = encoder(changed, mask_BM)
    assert (other.elements_BME - found.elements_BME).abs().amax(-1)[mask_BM].min() > 1e-6
    assert (other.pooled_BE - found.pooled_BE).abs().amax(-1).min() > 1e-5


@torch.no_grad()
def test_heads_are_alphastars():
    """Elements through ReLU and a linear layer; their mean through a linear layer, then ReLU."""
    heads, y_BMD = shaken(SetHeads(6, 5)), torch.randn(1, 4, 6)
    found = heads(y_BMD, torch.tensor([[True, True, True, False]]))
    torch.testing.assert_close(found.elements_BME[0, :3], heads.element(y_BMD[0, :3].clamp_min(0)))
    torch.testing.assert_close(found.pooled_BE, heads.whole(y_BMD[:, :3].mean(1)).clamp_min(0))
    assert (heads.whole(y_BMD[:, :3].mean(1)) < 0).any()


@torch.no_grad()
def test_a_set_without_elements_has_finite_answers(encoder):
    found = encoder(torch.randn(1, 3, 7), torch.zeros(1, 3, dtype=torch.bool))
    assert (found.elements_BME == 0).all()
    assert found.pooled_BE.isfinite().all()


def test_a_saved_encoder_answers_the_same(encoder, elements, tmp_path):
    encoder.save(tmp_path / "model")
    found = load_model(tmp_path / "model")
    assert type(found) is type(encoder)
    with torch.no_grad():
        torch.testing.assert_close(found(*elements).pooled_BE, encoder(*elements).pooled_BE)


def flops(encoder):
    with torch.device("meta"):
        model = encoder(128).eval().requires_grad_(False)
        kernels.reset(model)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 512, 128), torch.ones(1, 512, dtype=torch.bool))
    return counter.get_total_flops()


def test_flops_are_the_papers():
    assert flops(EntityTransformer) == pytest.approx(3.3e9, rel=0.02)
    assert flops(SetEncoder) == pytest.approx(0.93e9, rel=0.06)
    assert flops(EntityTransformer) > 3 * flops(SetEncoder)


@torch.no_grad()
def test_some_elements_are_the_same_as_of_all():
    model = shaken(
        PerceiverIO({"x": ArrayInput(6)}, {"y": SetOutput("x", 3)}, latents=4, channels=16, depth=1, heads=2)
    )
    mask_BM = torch.tensor([[True] * 8, [True] * 3 + [False] * 5])
    encoded = model.encode({"x": InputArray(torch.randn(2, 8, 6), mask_BM)})
    whole = model.decode(encoded)["y"]
    assert whole.shape == (2, 8, 3)
    points = torch.tensor([6, 0, 2])
    torch.testing.assert_close(model.decode(encoded, {"y": points})["y"], whole[:, points])
    own = torch.tensor([[6, 0, 2], [1, 7, 7]])
    expected = whole.take_along_dim(own[..., None], 1)
    torch.testing.assert_close(model.decode(encoded, {"y": own})["y"], expected)
    torch.testing.assert_close(model.decode(encoded, max_memory=1)["y"], whole)
    with pytest.raises(PerceiversError, match="elements of an input 'z': name one of the model's"):
        PerceiverIO({"x": ArrayInput(6)}, {"y": SetOutput("z")}, latents=4, channels=16, depth=1, heads=2)
