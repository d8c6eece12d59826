import pytest
import torch

import perceivers
from perceivers import InputArray, PerceiverIO, PerceiversError
from perceivers.adapters import TextInput
from perceivers.checkpoints.load import load_model
from perceivers.text.bert import BERT
from perceivers.text.model import LanguageConfig, text_tasks
from perceivers.text.task_output import TaskHeads, TaskOutput

TASKS = {"CoLA": 2, "STS-B": 1, "values.x": 3}
NAMES = {"CoLA": ["no", "yes"], "values.x": ["a", "b", "c"]}
SMALL = {"vocabulary": 30, "length": 12, "embedding_channels": 16, "latents": 4, "channels": 16, "depth": 1, "heads": 2,
         "qk_channels": 8, "v_channels": 16, "cross_heads": 2, "decoder_heads": 2, "decoder_qk_channels": 8,
         "decoder_v_channels": 16}  # fmt: skip
SMALL_BERT = {"vocabulary": 30, "length": 12, "channels": 16, "depth": 2, "heads": 2}


def fill(model):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def build(shared=False):
    output = TaskOutput(TASKS, 16, NAMES, shared)
    return fill(PerceiverIO({"text": TextInput(30, 12, 16)}, {"label": output}, 4, 16, 2, heads=2))


def close(got, want):
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], atol=1e-5, rtol=0)


@pytest.fixture
def tokens():
    return torch.randint(30, (5, 9))


@pytest.mark.parametrize("shared", [False, True])
def test_some_tasks_are_those_of_the_full_decode(tokens, shared):
    model = build(shared)
    full = model({"text": tokens})["label"]
    assert {name: tuple(value.shape) for name, value in full.items()} == {
        name: (5, classes) for name, classes in TASKS.items()
    }
    encoded = model.encode({"text": tokens})
    for points in ([0], [2, 1], [1, 0, 2]):
        some = model.decode(encoded, {"label": torch.tensor(points)})["label"]
        close(some, {list(TASKS)[place]: full[list(TASKS)[place]] for place in points})
    with pytest.raises(PerceiversError, match="indices of output 'label' go from 1 to 3, but must be from 0 to 2"):
        model.decode(encoded, {"label": torch.tensor([1, 3])})


def test_each_task_has_its_own_query_or_one_asks_for_all(tokens):
    for shared, changed in ((False, ["STS-B"]), (True, list(TASKS))):
        model = build(shared)
        query = model.outputs["label"].query
        assert query.shape == (1, 1 if shared else 3, 16)
        before = model({"text": tokens})["label"]
        with torch.no_grad():
            query[:, 0 if shared else 1] += 1
        after = model({"text": tokens})["label"]
        assert [name for name in TASKS if not torch.allclose(before[name], after[name])] == changed


def test_a_head_is_two_layers_with_a_tanh_between():
    heads = fill(TaskHeads(TASKS, 16))
    y_BTE = torch.randn(5, 3, 16)
    for place, (name, classes) in enumerate(TASKS.items()):
        hidden, _, last = heads.heads[place]
        want = torch.tanh(y_BTE[:, place] @ hidden.weight.T + hidden.bias) @ last.weight.T + last.bias
        assert want.shape == (5, classes)
        torch.testing.assert_close(heads(y_BTE)[name], want)
        torch.testing.assert_close(heads(y_BTE[:, [place]], torch.tensor([place]))[name], want)
    assert sum(parameter.numel() for parameter in heads.parameters()) == 3 * (16 * 16 + 16) + 6 * 16 + 6


def test_names_that_are_not_those_of_the_classes_are_refused():
    with pytest.raises(PerceiversError, match="tasks is empty"):
        TaskHeads({}, 16)
    with pytest.raises(PerceiversError, match=r"1 names of classes were given for the task 'CoLA', which has 2"):
        TaskHeads(TASKS, 16, {"CoLA": ["no"]})
    with pytest.raises(PerceiversError, match="for the task 'RTE', which has no such place in tasks"):
        TaskHeads(TASKS, 16, {"RTE": ["no", "yes"]})


@pytest.mark.parametrize("shared", [False, True])
def test_saved_and_loaded_it_is_the_same(tokens, tmp_path, shared):
    model = build(shared)
    model.save(tmp_path)
    loaded = perceivers.load(tmp_path)
    output = loaded.outputs["label"]
    assert (output.heads.tasks, output.heads.names, output.shared) == (list(TASKS), NAMES, shared)
    for name, value in model({"text": tokens})["label"].items():
        assert torch.equal(loaded({"text": tokens})["label"][name], value)


def test_extra_tokens_are_read_like_others():
    text = TextInput(30, 12, 16, num_task_tokens=2)
    assert text.vocabulary == 30
    assert text.embedding.weight.shape == (32, 16)
    x_MC = text(torch.tensor([[31, 3]])).x_BMC[0]
    torch.testing.assert_close(x_MC[0], text.embedding.weight[31] + text.positions.table_SF[0])


@pytest.mark.parametrize("make", [lambda: LanguageConfig(**SMALL).build(), lambda: BERT(**SMALL_BERT)])
@pytest.mark.parametrize(("num_task_tokens", "shared"), [(0, False), (0, True), (3, True)])
def test_a_model_of_labels_begins_with_the_weights_of_the_language_model(
    tokens, tmp_path, make, num_task_tokens, shared
):
    language = fill(make())
    model = text_tasks(language, TASKS, NAMES, num_task_tokens, shared).eval()
    weights, pretrained = model.state_dict(), language.state_dict()
    kept = [name for name in weights if name in pretrained]
    assert {name for name in pretrained if name not in weights} == {
        name for name in pretrained if name.startswith("outputs.")
    }
    assert {name for name in weights if name not in pretrained} == {
        name for name in weights if name.startswith("outputs.")
    }
    for name in kept:
        assert torch.equal(weights[name][: len(pretrained[name])], pretrained[name]), name
    embedding = weights["inputs.text.embedding.weight"]
    assert len(embedding) == 30 + num_task_tokens
    if num_task_tokens:
        assert embedding[30:].abs().max() < 0.05, "fresh vectors are small"
        assert (embedding[30:] != 0).all()
    if isinstance(model, PerceiverIO):
        assert model.outputs["label"].shared == shared
        assert torch.equal(model.encode({"text": tokens}).latents, language.encode({"text": tokens}).latents)
    model.save(tmp_path)
    data = {"text": InputArray(tokens, torch.ones_like(tokens, dtype=torch.bool))}
    again = load_model(tmp_path)
    close(again(data)["label"], model(data)["label"])
    with torch.no_grad():
        model.inputs["text"].embedding.weight.zero_()
    assert language.inputs["text"].embedding.weight.abs().sum() > 0, "the language model keeps its own"
