import copy

import pytest
import torch
from safetensors.torch import load_file

import perceivers
from perceivers import InputArray, PerceiverIO, PerceiversError
from perceivers.adapters import ArrayInput, TextInput, TextOutput
from perceivers.model.ragged import Ragged

LENGTHS = torch.tensor([9, 5, 1])
MASK = torch.arange(9) < LENGTHS[:, None]


@pytest.fixture(params=[False, True], ids=["positions", "local queries"])
def model(request):
    output = TextOutput("text", local_queries=request.param)
    model = PerceiverIO({"text": TextInput(30, 12, 16)}, {"text": output}, 4, 16, 2, heads=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture
def tokens():
    return torch.randint(30, (3, 9))


def close(got, want):
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_elements_are_the_vectors_of_token_and_place(tokens):
    adapter = TextInput(30, 12, 16)
    array = adapter(tokens)
    assert (array.mask_BM, array.grid) == (None, (9,))
    want = adapter.embedding.weight[tokens[2, 7]] + adapter.positions.table_SF[7]
    torch.testing.assert_close(array.x_BMC[2, 7], want)


def test_logits_are_products_with_the_embedding_and_a_bias(model, tokens):
    encoded = model.encode({"text": tokens})
    output, x_BMC = model.outputs["text"], model.inputs["text"](tokens).x_BMC
    q_BOQ = x_BMC if output.local_queries else output.positions.table_SF[:9].expand(3, -1, -1)
    y_BOE = model.decoder(q_BOQ, encoded.latents)
    want = y_BOE @ model.inputs["text"].embedding.weight.T + model.outputs["text"].bias
    close(model.decode(encoded)["text"], want)


def test_a_text_alone_is_answered_as_in_a_padded_batch(model, tokens):
    batch = model({"text": InputArray(tokens, MASK)})["text"]
    assert batch.shape == (3, 9, 30)
    for index, length in enumerate(LENGTHS):
        close(batch[index, :length], model({"text": tokens[index : index + 1, :length]})["text"][0])


def test_what_stands_in_the_padding_does_not_matter(model, tokens):
    other = torch.where(MASK, tokens, (tokens + 7) % 30)
    assert not torch.equal(tokens, other)
    logits, others = (model({"text": InputArray(text, MASK)})["text"] for text in (tokens, other))
    assert torch.equal(logits, others)
    assert not torch.allclose(model({"text": tokens})["text"], model({"text": other})["text"])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("points", [[4, 0, 8, 4], [[4, 0], [8, 2], [3, 0]]])
@pytest.mark.parametrize("max_memory", [None, 1])
def test_some_places_are_those_of_the_full_decode(model, tokens, masked, points, max_memory):
    encoded = model.encode({"text": InputArray(tokens, MASK) if masked else tokens})
    points = torch.tensor(points)
    full = model.decode(encoded, max_memory=None)["text"]
    some = model.decode(encoded, {"text": points}, max_memory)["text"]
    close(some, full.take_along_dim(points.expand(3, -1)[..., None], 1))


def test_ragged_texts_are_answered_as_each_alone(model, tokens):
    texts = [text[:length] for text, length in zip(tokens, LENGTHS, strict=True)]
    alone = [model({"text": text[None]})["text"][0] for text in texts]
    encoded = model.encode({"text": Ragged.stack(texts)})
    close(model.decode(encoded)["text"].values, torch.cat(alone))
    points = [torch.tensor([8, 3]), torch.tensor([4]), torch.tensor([0, 0])]
    some = model.decode(encoded, {"text": Ragged.stack(points)})["text"]
    close(some.values, torch.cat([logits[point] for logits, point in zip(alone, points, strict=True)]))


def test_padding_asks_nothing_of_the_latents(model, tokens):
    encoded = model.encode({"text": InputArray(tokens, MASK)})
    other = encoded._replace(latents=torch.randn_like(encoded.latents))
    changed = (model.decode(encoded)["text"] != model.decode(other)["text"]).any(-1)
    assert torch.equal(changed, MASK)


def test_the_embedding_is_one_parameter_trained_from_both_sides(model, tokens):
    names = [name for name, parameter in model.named_parameters() if parameter.shape == (30, 16)]
    assert names == ["inputs.text.embedding.weight"]
    weight = model.inputs["text"].embedding.weight
    encoded = model.encode({"text": tokens})
    detached = encoded._replace(latents=encoded.latents.detach())
    model.decode(detached)["text"].square().sum().backward()
    assert weight.grad.abs().sum() > 0, "the output reads with it"


def assert_tied(model, tokens):
    """Logits follow the input's embedding, when the latents are kept."""
    encoded = model.encode({"text": tokens})
    before = model.decode(encoded)["text"]
    with torch.no_grad():
        model.inputs["text"].embedding.weight[3] += 1
    after = model.decode(encoded)["text"]
    changed = (before != after).all(1).all(0)
    assert changed.nonzero().flatten().tolist() == [3]


def test_the_embedding_is_saved_once_and_tied_after_loading(model, tokens, tmp_path):
    model.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert [name for name, array in saved.items() if array.shape == (30, 16)] == ["inputs.text.embedding.weight"]
    loaded = perceivers.load(tmp_path)
    assert torch.equal(loaded({"text": tokens})["text"], model({"text": tokens})["text"])
    assert_tied(loaded, tokens)


def test_a_copy_is_tied_to_itself_and_not_to_the_original(model, tokens):
    original = model({"text": tokens})["text"]
    copied = copy.deepcopy(model)
    assert torch.equal(copied({"text": tokens})["text"], original)
    assert_tied(copied, tokens)
    assert torch.equal(model({"text": tokens})["text"], original)


def test_weights_can_be_replaced_and_stay_tied(model, tokens):
    with torch.device("meta"):
        output = TextOutput("text", model.outputs["text"].local_queries)
        empty = PerceiverIO({"text": TextInput(30, 12, 16)}, {"text": output}, 4, 16, 2, heads=2).eval()
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty({"text": tokens})["text"], model({"text": tokens})["text"])
    assert_tied(empty, tokens)


def test_a_model_in_lower_precision_answers_nearly_the_same(model, tokens):
    want = model({"text": InputArray(tokens, MASK)})["text"]
    got = model.bfloat16()({"text": InputArray(tokens, MASK)})["text"]
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() < 0.05 * want.norm()


def test_wrong_texts_are_refused(model):
    with pytest.raises(PerceiversError, match="a text of 13 tokens was given, but the model reads at most 12"):
        model({"text": torch.zeros(1, 13, dtype=torch.long)})
    with pytest.raises(
        PerceiversError, match=r"tokens of shape \(1, 5\) and type torch.float32 were given, but integers"
    ):
        model({"text": torch.zeros(1, 5)})
    with pytest.raises(PerceiversError, match=r"tokens of shape \(5,\) .* of shape \[batch, tokens\] are expected"):
        model({"text": torch.zeros(5, dtype=torch.long)})
    with pytest.raises(
        PerceiversError,
        match=r"a mask of shape \(1, 4\) was given for an array of shape \(1, 5\): its shape must be \(1, 5\)",
    ):
        model({"text": InputArray(torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))})
    with pytest.raises(PerceiversError, match="indices of output 'text' go from 4 to 5, but must be from 0 to 4"):
        model({"text": torch.zeros(1, 5, dtype=torch.long)}, {"text": torch.tensor([4, 5])})


def test_a_text_output_without_its_text_is_refused():
    for name, adapter in (("words", TextInput(30, 12, 16)), ("text", ArrayInput(3))):
        with pytest.raises(PerceiversError, match="needs an input 'text' that is a TextInput"):
            PerceiverIO({name: adapter}, {"text": TextOutput("text")}, 4, 16, 1)
