"""Masks: any type of 0 and 1 means what bool means, and what padding holds reaches neither results nor gradients."""

import pytest
import torch

from perceivers import InputArray, PerceiverIO
from perceivers.adapters import ArrayInput, AudioInput, LabelOutput, SetOutput, TextInput, TextOutput
from perceivers.errors import PerceiversError
from perceivers.model import kernels
from perceivers.model.attention import Attention, SelfAttention
from perceivers.model.positions import FourierPositions
from perceivers.set_encoder import SetEncoder
from perceivers.starcraft.entity_transformer import EntityTransformer
from perceivers.text.bert import BERT

SIZES = {"latents": 3, "channels": 16, "depth": 1, "heads": 4}
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
TYPES = [torch.int64, torch.int32, torch.uint8, torch.int8, torch.float32, torch.bfloat16, torch.float64]


def set_model():
    return PerceiverIO({"x": ArrayInput(4)}, {"y": SetOutput("x", 2), "label": LabelOutput(2, 8)}, **SIZES)


def text_model():
    return PerceiverIO({"x": TextInput(9, 4, 8)}, {"y": TextOutput("x")}, **SIZES)


def sound_model():
    sound = AudioInput(2, FourierPositions((2,), bands=2))
    return PerceiverIO({"x": sound}, {"label": LabelOutput(2, 8)}, **SIZES)


VECTORS, TOKENS, SOUND = torch.randn(3, 4, 4), torch.randint(9, (3, 4)), torch.rand(3, 4)
MODELS = {
    "set": (set_model, VECTORS),
    "text": (text_model, TOKENS),
    "sound": (sound_model, SOUND),
    "set encoder": (lambda: SetEncoder(4, 2, 8, 3, 16, 1), VECTORS),
    "entity transformer": (lambda: EntityTransformer(4, 2, 8, 1, 2), VECTORS),
    "BERT": (lambda: BERT(9, 4, 8, 1, 2), TOKENS),
    "self-attention": (lambda: SelfAttention(4, 2), VECTORS),
}


def build(name, fast=True):
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    (kernels.optimize if fast else kernels.reset)(model)
    return model, MODELS[name][1]


def call(model, x, mask):
    """Returns all predictions of a model as one vector per example."""
    if isinstance(model, SetEncoder | EntityTransformer):
        results = model(x, mask)
    elif isinstance(model, SelfAttention):
        results = [model(x, mask)]
    else:
        name = next(iter(model.inputs))
        results = model({name: InputArray(x, mask)}).values()
    return torch.cat([y.flatten(1) for y in results], 1)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_mask_of_any_type_means_what_bool_means(name, dtype, fast):
    model, x = build(name, fast)
    expected = call(model, x, MASK)
    assert call(model, x, MASK.to(dtype)).equal(expected)
    assert not torch.allclose(call(model, x, None)[1], expected[1])


@pytest.mark.parametrize("values", [[0.0, -torch.inf], [0, 2], [1, -1], [0.5, 1.0], [torch.nan, 1.0]])
@pytest.mark.parametrize("name", MODELS)
def test_other_numbers_are_refused(name, values):
    model, x = build(name)
    with pytest.raises(PerceiversError, match="has values other than 0 and 1: give True or 1 for real elements"):
        call(model, x, torch.tensor(values).repeat(3, 2))


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("padding", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("name", ["set", "sound", "set encoder", "entity transformer"])
def test_what_padding_holds_changes_nothing(name, padding, fast):
    model, x = build(name, fast)
    found = []
    for values in (x.clone(), x.masked_fill((~MASK).view(*MASK.shape, *[1] * (x.dim() - 2)), padding)):
        model.zero_grad()
        values.requires_grad_()
        result = call(model, values, MASK)
        result.square().sum().backward()
        grads = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        found.append([result.detach(), values.grad, *grads])
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        assert one.equal(other)


@pytest.mark.parametrize("name", ["text", "BERT"])
def test_padding_may_hold_tokens_out_of_range(name):
    model, token_BM = build(name)
    wrong_BM = token_BM.masked_fill(~MASK, -100)
    expected, found = (call(model, x, MASK).unflatten(1, (4, -1))[MASK] for x in (token_BM, wrong_BM))
    assert found.equal(expected)


def test_a_hidden_mask_of_any_type_means_what_bool_means():
    model = PerceiverIO({"x": ArrayInput(4)}, {"y": LabelOutput(2, 8)}, **SIZES, maskable=["x"])
    expected = model({"x": VECTORS}, hidden={"x": MASK})["y"]
    assert not expected.equal(model({"x": VECTORS})["y"])
    for dtype in TYPES:
        assert model({"x": VECTORS}, hidden={"x": MASK.to(dtype)})["y"].equal(expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_query_mask_of_any_type_means_what_bool_means(dtype):
    attention = Attention(4, 4, 2)
    expected = attention(VECTORS, VECTORS, query_mask_BO=MASK)
    assert attention(VECTORS, VECTORS, query_mask_BO=MASK.to(dtype)).equal(expected)
