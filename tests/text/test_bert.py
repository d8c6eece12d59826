import math

import pytest
import torch

import perceivers
from perceivers import InputArray, PerceiversError
from perceivers.checkpoints.load import load_model
from perceivers.model.config import to_config
from perceivers.presets import find_preset, make_example, measure_cost
from perceivers.text.bert import BERT
from perceivers.text.model import LanguageConfig

SMALL = {"vocabulary": 30, "length": 12, "channels": 16, "depth": 2, "heads": 4, "widening_factor": 3}
TASKS = {"CoLA": 2, "STS-B": 1, "RTE": 2}
LENGTHS = torch.tensor([9, 5, 1])
MASK = torch.arange(9) < LENGTHS[:, None]


def make(**settings):
    model = BERT(**(SMALL | settings))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def tokens():
    return torch.randint(30, (3, 9))


def close(got, want, atol=1e-5):
    torch.testing.assert_close(got, want, atol=atol, rtol=0)


def norm(x, weights, name):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def plain_formula(weights, token_M, depth=2, heads=4):
    """One text without padding, head by head; -> what comes out of the last layer, normalized [M, C]."""
    x = weights["inputs.text.embedding.weight"][token_M] + weights["inputs.text.positions.table_SF"][: len(token_M)]
    x = norm(x, weights, "norm_x")
    for layer in range(depth):
        part = f"layers.{layer}"
        n = norm(x, weights, f"{part}.norm_z")
        q, k, v = (
            linear(n, weights, f"{part}.attention.{name}").chunk(heads, -1) for name in ("query", "key", "value")
        )
        read = [torch.softmax(q[h] @ k[h].T / math.sqrt(q[h].shape[-1]), -1) @ v[h] for h in range(heads)]
        x = x + linear(torch.cat(read, -1), weights, f"{part}.attention.output")
        hidden = gelu(linear(norm(x, weights, f"{part}.norm_h"), weights, f"{part}.mlp.hidden"))
        x = x + linear(hidden, weights, f"{part}.mlp.output")
    return norm(x, weights, "norm")


def test_logits_are_those_of_the_plain_formula(tokens):
    model = make().double()
    weights = model.state_dict()
    h = plain_formula(weights, tokens[1])
    h = norm(gelu(linear(h, weights, "outputs.text.hidden")), weights, "outputs.text.norm")
    want = h @ weights["inputs.text.embedding.weight"].T + weights["outputs.text.bias"]
    close(model({"text": tokens})["text"][1], want, atol=1e-10)


def test_labels_are_read_at_the_first_token(tokens):
    model = make(tasks=TASKS).double()
    weights = model.state_dict()
    first = plain_formula(weights, tokens[2])[0]
    labels = model({"text": tokens})["label"]
    assert {name: tuple(values.shape) for name, values in labels.items()} == {
        "CoLA": (3, 2),
        "STS-B": (3, 1),
        "RTE": (3, 2),
    }
    for place, name in enumerate(TASKS):
        head = f"outputs.label.heads.{place}"
        want = linear(torch.tanh(linear(first, weights, f"{head}.0")), weights, f"{head}.2")
        close(labels[name][2], want, atol=1e-10)
    some = model({"text": tokens}, {"label": torch.tensor([2, 0])})["label"]
    assert list(some) == ["RTE", "CoLA"]
    assert all(torch.equal(some[name], labels[name]) for name in some)


@pytest.mark.parametrize("tasks", [None, TASKS])
def test_padding_changes_nothing(tokens, tasks):
    model = make(tasks=tasks)
    other = torch.where(MASK, tokens, (tokens + 7) % 30)
    batch, others = (model({"text": InputArray(text, MASK)}) for text in (tokens, other))
    for index, length in enumerate(LENGTHS):
        alone = model({"text": tokens[index : index + 1, :length]})
        if tasks is None:
            close(batch["text"][index, :length], alone["text"][0])
            close(others["text"][index, :length], alone["text"][0])
        else:
            for name in TASKS:
                close(batch["label"][name][index], alone["label"][name][0])
                assert torch.equal(others["label"][name], batch["label"][name])
    unmasked = model({"text": tokens})
    if tasks is None:
        assert not torch.allclose(unmasked["text"][1, :5], batch["text"][1, :5])


@pytest.mark.parametrize("points", [[4, 0, 8, 4], [[4, 0], [8, 2], [3, 0]]])
def test_some_places_are_those_of_all(tokens, points):
    model, points = make(), torch.tensor(points)
    full = model({"text": tokens})["text"]
    assert full.shape == (3, 9, 30)
    some = model({"text": tokens}, {"text": points})["text"]
    close(some, full.take_along_dim(points.expand(3, -1)[..., None], 1))


def test_an_output_that_is_not_there_is_refused(tokens):
    with pytest.raises(PerceiversError, match="the model has no output 'label': it has text"):
        make()({"text": tokens}, {"label": None})


def test_places_outside_of_the_text_are_refused(tokens):
    with pytest.raises(PerceiversError, match=f"go from 0 to {tokens.shape[1]}, but must be from 0 to"):
        BERT(**SMALL)({"text": tokens}, {"text": torch.tensor([0, tokens.shape[1]])})


def test_attention_weights_are_dropped_in_training_only(tokens):
    model = make(dropout=0.5)
    assert torch.equal(model({"text": tokens})["text"], model({"text": tokens})["text"])
    model.train()
    assert not torch.allclose(model({"text": tokens})["text"], model({"text": tokens})["text"])


def test_the_embedding_is_trained_from_both_sides(tokens):
    model = make()
    names = [name for name, parameter in model.named_parameters() if parameter.shape == (30, 16)]
    assert names == ["inputs.text.embedding.weight"]
    model({"text": tokens % 3})["text"].square().sum().backward()
    assert (model.inputs["text"].embedding.weight.grad[3:].abs().sum(1) > 0).all(), "tokens that are not in the text"


@pytest.mark.parametrize("tasks", [None, TASKS])
def test_saved_and_loaded_it_is_the_same(tokens, tmp_path, tasks):
    model = make(tasks=tasks, num_task_tokens=2)
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    assert isinstance(loaded, BERT)
    assert not loaded.training
    assert to_config(loaded) == to_config(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    want, got = model({"text": tokens}), loaded({"text": tokens})
    if tasks is None:
        assert torch.equal(got["text"], want["text"])
    else:
        assert all(torch.equal(got["label"][name], want["label"][name]) for name in TASKS)
    with pytest.raises(PerceiversError, match=f"{tmp_path} holds a BERT, not a PerceiverIO: give another model"):
        perceivers.load(tmp_path)
    with pytest.raises(PerceiversError, match="a model that no installed config describes: heads cannot be given"):
        load_model(tmp_path, heads=2)


def test_what_loads_a_perceiver_loads_any(tmp_path):
    sizes = {"latents": 4, "channels": 16, "depth": 1, "v_channels": 16, "decoder_v_channels": 16}
    model = LanguageConfig(**sizes, embedding_channels=16).build()
    model.save(tmp_path)
    assert to_config(load_model(tmp_path)) == to_config(perceivers.load(tmp_path)) == to_config(model)


@pytest.mark.parametrize(
    ("name", "parameters", "flops"), [("bert_base", 110.6e6, 122e9), ("bert_bytes", 20.4e6, 130e9)]
)
def test_sizes_of_the_presets(name, parameters, flops):
    chosen = find_preset(name)
    size = measure_cost(lambda: perceivers.create_model(name), chosen.inputs)
    assert size.parameters == pytest.approx(parameters, rel=0.0025)
    assert size.flops == pytest.approx(flops, rel=0.005)


def test_flops_and_parameters_by_hand():
    v, m, c, w = 30, 9, 16, 3 * 16
    size = measure_cost(lambda: BERT(**SMALL), {"text": make_example(m, dtype=torch.long)})
    layer = 4 * m * c * c + 2 * m * m * c + 2 * m * c * w
    assert size.flops == 2 * (2 * layer + m * c * c + m * c * v)
    layer = 4 * (c * c + c) + (c * w + w) + (w * c + c) + 4 * c
    assert size.parameters == v * c + 12 * c + 2 * c + 2 * layer + 2 * c + (c * c + c) + 2 * c + v
