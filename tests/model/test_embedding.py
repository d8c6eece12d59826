import pytest
import torch

import perceivers
from perceivers import InputAdapter, InputArray, NamedEmbedding, PerceiverIO, PerceiversError
from perceivers.adapters import LabelOutput
from perceivers.model.transfer import transfer_weights


class Sessions(InputAdapter):
    def __init__(self, embedding: NamedEmbedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.channels = embedding.channels

    def forward(self, data):
        return InputArray(self.embedding(data)[:, None])


def model(names):
    return PerceiverIO({"session": Sessions(NamedEmbedding(names, 8))}, {"label": LabelOutput(3)}, 2, 8, 1, heads=2)


def test_names_are_added_and_the_others_keep_their_vectors():
    embedding = NamedEmbedding(["a", "b"], 4).double()
    before = embedding.weight.detach().clone()
    embedding.extend(["d", "c"])
    assert embedding.indices(["c", "a", "d"]).tolist() == [3, 0, 2]
    assert embedding.weight.shape == (4, 4)
    assert embedding.weight.dtype == torch.float64
    assert embedding.weight.requires_grad
    assert embedding.weight[:2].equal(before)
    assert embedding(torch.tensor([[1, 0]])).equal(before[[1, 0]][None])
    assert embedding.weight[2:].std() > 0


@pytest.mark.parametrize("names", [["a"], ["x", "x"]])
def test_a_name_is_there_once(names):
    embedding = NamedEmbedding(["a", "b"], 4)
    with pytest.raises(PerceiversError, match=f"the name '{names[0]}' is given twice"):
        embedding.extend(names)
    assert embedding.names == ["a", "b"]


def test_an_unknown_name_is_one_sentence():
    with pytest.raises(PerceiversError, match="there is no vector of 'session_3': did you mean 'session_2'"):
        NamedEmbedding(["session_1", "session_2"], 4).indices(["session_3"])


def test_an_extended_model_is_saved_and_loaded(tmp_path):
    ours = model(["a", "b"])
    ours.inputs["session"].embedding.extend(["c"])
    ours.save(tmp_path)
    loaded = perceivers.load(tmp_path, custom_classes=[Sessions])
    assert loaded.inputs["session"].embedding.names == ["a", "b", "c"]
    data = {"session": torch.tensor([2, 0])}
    assert loaded(data)["label"].equal(ours(data)["label"])


def test_another_model_takes_the_vectors_of_the_names_that_both_have():
    old, new = model(["a", "b"]), model(["b", "z"])
    fresh = new.inputs["session"].embedding.weight[1].clone()
    transfer_weights(old, new)
    assert new.inputs["session"].embedding.weight[0].equal(old.inputs["session"].embedding.weight[1])
    assert new.inputs["session"].embedding.weight[1].equal(fresh)
