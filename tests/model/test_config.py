"""The recording of constructor arguments, and building from the record."""

import json
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from torch import nn

import perceivers
from perceivers import InputAdapter, InputArray, PerceiverIO, PerceiversError
from perceivers.adapters import ArrayInput, LabelOutput
from perceivers.model.config import Configurable, construct, from_config, import_path, to_config
from tests.model import other_readings

if TYPE_CHECKING:
    from nowhere import Unknown


class Readings(InputAdapter):
    """As a user writes one: arguments without annotations."""

    def __init__(self, sensors, channels=16):
        super().__init__()
        self.channels = channels
        self.linear = nn.Linear(sensors, channels)

    def forward(self, data):
        return InputArray(self.linear(data))


class Plain(Configurable):
    def __init__(self, value: Any = None, *rest: Any, size: tuple[int, int] = (1, 2), **more: Any) -> None:
        self.arguments = (value, rest, size, more)


class Child(Plain):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


class Grandchild(Child):
    pass


class Renamed(Plain):
    def __init__(self, number):
        super().__init__(number + 1, 7)


class Unresolved(Configurable):
    def __init__(self, value: "Unknown") -> None:
        self.value = value


class Empty(Configurable):
    pass


def again(value, *classes):
    """What is built of the record, which has been JSON in between."""
    known = {import_path(kind): kind for kind in (type(value), *classes)}
    return from_config(json.loads(json.dumps(to_config(value))), lambda name: known[name])


def test_an_adapter_with_arguments_without_annotations_is_loaded(tmp_path):
    model = PerceiverIO({"x": Readings(3)}, {"y": LabelOutput(2, 8)}, latents=2, channels=8, depth=1).eval()
    model.save(tmp_path)
    loaded = perceivers.load(tmp_path, custom_classes=[Readings])
    x = torch.randn(1, 5, 3)
    assert torch.equal(loaded({"x": x})["y"], model({"x": x})["y"])


@pytest.mark.parametrize("kind", [Plain, Child, Grandchild])
def test_arguments_of_any_number_and_name_are_recorded(kind):
    made = kind(1, 2, "three", size=(4, 5), color="red", widths=[6])
    assert made.arguments == (1, (2, "three"), (4, 5), {"color": "red", "widths": [6]})
    value, rest, size, more = again(made).arguments
    assert (value, rest, tuple(size), more) == (1, (2, "three"), (4, 5), {"color": "red", "widths": [6]})
    assert again(kind()).arguments[:2] == (None, ())


def test_the_outermost_constructor_is_the_one_that_is_recorded():
    made = Renamed(1)
    assert made.config == {"number": 1}
    assert again(made).arguments[:2] == (2, (7,))


def test_defaults_are_recorded():
    assert Plain().config == {"value": None, "size": (1, 2)}
    assert LabelOutput(3).config == {"classes": 3, "query_channels": "any", "names": None, "multilabel": False}
    assert PerceiverIO({"x": ArrayInput(3)}, {"y": LabelOutput(2, 8)}, 2, 8, 1).config["gelu"] == "tanh"


def test_without_a_constructor_nothing_is_recorded():
    assert Empty().config == {}
    assert to_config(Empty()) == {"class": "tests.model.test_config:Empty"}


def test_what_changes_after_construction_does_not_change_the_record():
    names, nested = ["a", "b"], {"list": [1]}
    made = Plain(names, nested)
    names.append("c")
    nested["list"].append(2)
    assert made.config["value"] == ["a", "b"]
    assert made.config["rest"] == ({"list": [1]},)


def test_a_dict_with_a_key_class_stays_a_dict():
    for value in ({"class": "os:system", "other": [1]}, {"class": {"class": 3}}, {1: "a", "1": "b"}, {}):
        assert again(Plain(value)).arguments[0] == value


def test_two_classes_of_one_name_are_told_apart():
    ours, theirs = Readings(3), other_readings.Readings(4)
    tree = to_config(Plain([ours, theirs]))
    assert [each["class"] for each in tree["value"]] == [
        "tests.model.test_config:Readings",
        "tests.model.other_readings:Readings",
    ]
    first, second = again(Plain([ours, theirs]), Readings, other_readings.Readings).arguments[0]
    assert (type(first), type(second)) == (Readings, other_readings.Readings)


def test_an_annotation_that_cannot_be_resolved_is_no_error():
    assert again(Unresolved(3)).value == 3


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(PerceiversError, match="cannot save an argument of type Linear"):
        to_config(Plain(nn.Linear(1, 1)))


def typed(
    number: int = 1,
    ratio: float = 1.0,
    sides: tuple[int, int] = (1, 2),
    names: list[str] | None = None,
    kind: Literal["a", "b"] = "a",
    table: dict[str, int] | None = None,
    anything=None,
) -> dict[str, Any]:
    return dict(locals())


@pytest.mark.parametrize(
    "arguments",
    [
        {"number": 3, "ratio": 2},
        {"sides": [3, 4], "names": ["x"], "kind": "b", "table": {"x": 1}},
        {"anything": object()},
    ],
)
def test_arguments_that_fit(arguments):
    assert construct(typed, arguments).items() >= arguments.items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"number": "3"}, "typed: number = '3' is not allowed: it must be of type int"),
        ({"number": True}, "number = True is not allowed"),
        ({"number": 2.0}, "number = 2.0 is not allowed"),
        ({"ratio": "half"}, "ratio = 'half' is not allowed: it must be of type float"),
        ({"sides": [1]}, r"sides = \[1\] is not allowed: it must be of type tuple\[int, int\]"),
        ({"sides": [1, 2, 3]}, r"sides = \[1, 2, 3\] is not allowed"),
        ({"sides": [1, "2"]}, "is not allowed"),
        ({"names": "abc"}, r"names = 'abc' is not allowed: it must be of type list\[str\]"),
        ({"names": [1]}, "is not allowed"),
        ({"kind": "c"}, "kind = 'c' is not allowed: it must be 'a' or 'b'"),
        ({"table": {"x": "y"}}, "is not allowed"),
        ({"nubmer": 3}, "typed has no argument 'nubmer': did you mean 'number'"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(PerceiversError, match=message):
        construct(typed, arguments)


def test_a_missing_argument_is_named():
    with pytest.raises(PerceiversError, match="Readings needs the argument 'sensors'"):
        construct(Readings, {"channels": 3})
