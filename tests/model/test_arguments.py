"""Each mistake in calling a model is one sentence."""

import re

import pytest
import torch

from perceivers import InputArray, PerceiverIO
from perceivers.adapters import ArrayInput, AudioInput, LabelInput, LabelOutput, SetOutput, TextInput, TextOutput
from perceivers.errors import PerceiversError
from perceivers.model.positions import FourierPositions

SIZES = {"latents": 3, "channels": 16, "depth": 1, "heads": 4}
INPUTS = {
    "set": lambda: ArrayInput(4),
    "text": lambda: TextInput(9, 4, 8),
    "label": lambda: LabelInput(3),
    "sound": lambda: AudioInput(2, FourierPositions((2,), bands=2)),
}


@pytest.fixture
def model():
    inputs = {name: build() for name, build in INPUTS.items()}
    return PerceiverIO(inputs, {"y": LabelOutput(2), "words": TextOutput("text"), "rows": SetOutput("set", 2)}, **SIZES)


def data(**changes):
    tokens, label = torch.randint(9, (2, 4)), torch.tensor([0, 2])
    return {"set": torch.randn(2, 5, 4), "text": tokens, "label": label, "sound": torch.rand(2, 4)} | changes


def test_right_arguments_are_taken(model):
    model(data())
    assert model(data(), {"rows": torch.tensor([4, 0])})["rows"].shape == (2, 2, 2)
    assert model(data(), {"rows": torch.tensor([[4, 0, 1], [3, 3, 3]])})["rows"].shape == (2, 3, 2)
    assert model(data(), {"rows": torch.tensor([4], dtype=torch.int32)})["rows"].shape == (2, 1, 2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2), "data is of type Tensor: a dict by name is expected, such as {'set': ..., 'text': ..., "),
        ([torch.zeros(2)], "data is of type list: a dict by name is expected"),
        (None, "data is of type NoneType: a dict by name is expected"),
        (data(set=[[1.0]]), "a list was given as data of the model: a torch.Tensor is expected"),
        (data(set=torch.zeros(2, 5, 4).numpy()), "a ndarray was given as data of the model"),
        (data(sound="x.wav"), "a str was given as data of the model"),
        (data(set=torch.zeros(3, 5, 4)), "different batch sizes ('set' 3, 'text' 2, 'label' 2, 'sound' 2)"),
        (data(set=torch.zeros(2, 5, 4, device="meta")), "the input 'set' is on meta, but the model is on cpu"),
        (
            data(set=InputArray(torch.zeros(2, 5, 4), torch.ones(2, 5, device="meta"))),
            "the input 'set' is on meta, but the model is on cpu",
        ),
        (data(text=torch.tensor([[0, 9], [1, 2]])), "tokens go from 0 to 9, but must be from 0 to 8"),
        (data(text=torch.tensor([[0, -1], [1, 2]])), "tokens go from -1 to 2, but must be from 0 to 8"),
        (data(label=torch.tensor([0, 3])), "class indices go from 0 to 3, but must be from 0 to 2"),
        (data(label=torch.tensor([0.0, 1.0])), "class indices are of type torch.float32: a tensor of integers"),
        (data(label=torch.tensor([[0], [1]])), "class indices have the shape [2, 1]: [count] is expected"),
        (data(label=[0, 1]), "class indices are of type list: a tensor of integers is expected"),
    ],
)
def test_wrong_inputs_are_one_sentence(model, inputs, message):
    with pytest.raises(PerceiversError, match=re.escape(message)) as error:
        model(inputs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ("y", "outputs is of type str: a dict by name is expected, such as {'y': ..., 'words': ..., 'rows': ...}"),
        (["y"], "outputs is of type list: a dict by name is expected"),
        ({"rows": [0, 1]}, "indices of output 'rows' are of type list: a tensor of integers is expected"),
        ({"rows": torch.tensor([0.5])}, "the output 'rows' has no real coordinates: give integer indices"),
        ({"rows": torch.tensor([True])}, "indices of output 'rows' are of type torch.bool"),
        ({"rows": torch.tensor([5])}, "indices of output 'rows' go from 5 to 5, but must be from 0 to 4"),
        ({"rows": torch.tensor([-1])}, "indices of output 'rows' go from -1 to -1, but must be from 0 to 4"),
        ({"rows": torch.tensor(1)}, "indices of output 'rows' have the shape []: [count] or [2, count] is expected"),
        ({"words": torch.zeros(3, 1, dtype=int)}, "have the shape [3, 1]: [count] or [2, count] is expected"),
    ],
)
def test_wrong_outputs_are_one_sentence(model, outputs, message):
    with pytest.raises(PerceiversError, match=re.escape(message)):
        model(data(), outputs)
