"""What latents, masks, coordinates, offsets and rotary positions must not be: each is one sentence."""

import re

import pytest
import torch

from perceivers import (
    FourierFeatures,
    FourierPositions,
    InputArray,
    LearnedPositions,
    NamedEmbedding,
    PerceiverIO,
    PerceiversError,
    Ragged,
    RotaryPositions,
    window_mask,
)
from perceivers.adapters import ArrayInput, ArrayOutput, ImageInput, LabelOutput, Patches, SetOutput, TextInput
from perceivers.model.attention import Attention


def build(**settings):
    defaults = {"latents": 6, "channels": 16, "depth": 1, "heads": 2}
    return PerceiverIO(
        {"a": ArrayInput(4), "b": ArrayInput(3)},
        {
            "a": SetOutput("a"),
            "grid": ArrayOutput(2, FourierPositions((3, 3), 2)),
            "field": ArrayOutput(2, FourierFeatures(2, [1.0])),
            "table": ArrayOutput(2, LearnedPositions((3,), 5)),
            "label": LabelOutput(3),
        },
        **(defaults | settings),
    )


A, B = torch.randn(2, 7, 4), torch.randn(2, 5, 3)
DATA = {"a": A, "b": B}
ONES = torch.ones(2, 6, 7, dtype=torch.bool)
NAN = torch.tensor([[0.0, torch.nan]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"latents": torch.randn(2, 6, 15)},
            "shape [2, 6, 15] were given: [latents, 16] or [2, latents, 16]",
        ),
        ({"latents": torch.randn(3, 6, 16)}, "latents of shape [3, 6, 16] were given"),
        ({"latents": torch.ones(6, 16, dtype=torch.long)}, "latents of type torch.int64 were given"),
        ({"latents": torch.randn(6, 16), "num_latents": 3}, "num_latents selects learned latents"),
        ({"num_latents": 0}, "num_latents = 0 is not allowed: it must be from 1 to 6"),
        ({"num_latents": 7}, "num_latents = 7 is not allowed"),
        ({"input_masks": {"c": ONES}}, "the model has no input 'c'"),
        ({"input_masks": {"a": ONES[:, :5]}}, "the mask of input 'a' has the shape [2, 5, 7]: [2 or 1, 6, 7 or 1]"),
        ({"input_masks": {"a": ONES[0]}}, "the mask of input 'a' has the shape [6, 7]"),
        ({"input_masks": {"a": ONES.float()}}, "the mask of input 'a' is of type torch.float32: a tensor of bool"),
        ({"latent_mask": ONES}, "latent_mask has the shape [2, 6, 7]: [2 or 1, 6, 6 or 1] is expected"),
    ],
)
def test_wrong_arguments_of_encode(arguments, message):
    with pytest.raises(PerceiversError, match=re.escape(message)):
        build().encode(DATA, **arguments)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"field": None}, "the output 'field' has no grid: give real coordinates."),
        ({"field": torch.tensor([1])}, "the output 'field' has no grid: give real coordinates."),
        ({"field": NAN}, "coordinates of output 'field' are not all finite"),
        ({"field": torch.rand(4, 3)}, "coordinates of output 'field' have the shape [4, 3]: [4, 2] is expected"),
        (
            {"field": torch.rand(3, 4, 2)},
            "output 'field' have the shape [3, 4, 2]: [2, 4, 2] is expected",
        ),
        ({"field": torch.rand(4)}, "coordinates of output 'field' have the shape [4]"),
        ({"grid": torch.tensor([[0.0, 1.2]])}, "coordinates go from 0 to 1.2, but must be from -1 to 1"),
        ({"table": torch.rand(4, 1)}, "the output 'table' has no real coordinates: give integer indices"),
        ({"label": torch.rand(4, 1)}, "the output 'label' has no real coordinates"),
        ({"label": Ragged(torch.tensor([0]), torch.tensor([0, 1, 1]))}, "the output 'label' takes no ragged batch"),
        ({"grid": Ragged(torch.tensor([0]), torch.tensor([0, 1]))}, "are of 1 examples, but the batch has 2"),
        ({"grid": Ragged(torch.tensor([0, 9]), torch.tensor([0, 1, 2]))}, "indices of output 'grid' go from 0 to 9"),
        ({"grid": Ragged(torch.tensor([0, 1]), torch.tensor([0, 2, 1]))}, "but must increase from 0 to its 2 elements"),
        (
            {"grid": Ragged(torch.tensor([0, 1]), torch.tensor([0, 1, 3]))},
            "go from 0 to 3, but must increase",
        ),
        (
            {"grid": Ragged(torch.tensor([0, 1]), torch.tensor([0.0, 1, 2]))},
            "integers of shape [batch + 1]",
        ),
    ],
)
def test_wrong_selections(outputs, message):
    model = build()
    with pytest.raises(PerceiversError, match=re.escape(message)):
        model.decode(model.encode(DATA), outputs)


def test_wrong_masks_of_outputs():
    model = build()
    encoded = model.encode(DATA)
    mask = torch.ones(1, 9, 5, dtype=torch.bool)
    with pytest.raises(
        PerceiversError, match=r"mask of output 'grid' has the shape \[1, 9, 5\]: \[2 or 1, 9, 6 or 1\]"
    ):
        model.decode(encoded, {"grid": None}, masks={"grid": mask})
    with pytest.raises(PerceiversError, match="the model has no output 'grid'"):
        model.decode(encoded, {"label": None}, masks={"grid": mask})
    ragged = Ragged(torch.zeros(3, 2), torch.tensor([0, 1, 3]))
    with pytest.raises(PerceiversError, match="masks are not defined for a ragged output, such as 'field'"):
        model.decode(encoded, {"field": ragged}, masks={"field": mask})


def test_coordinates_beyond_the_grid_are_allowed_where_features_have_none():
    model = build()
    assert model.decode(model.encode(DATA), {"field": torch.tensor([[5.0, -9.0]])})["field"].shape == (2, 1, 2)


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (
            InputArray(A, offsets=torch.tensor([0, 3, 7])),
            "has the shape [1, elements, ...], not [2, 7, 4]",
        ),
        (InputArray(A[:1], offsets=torch.tensor([0, 3, 8])), "the offsets of a ragged batch go from 0 to 8"),
        (InputArray(A[:1], offsets=torch.tensor([1, 3, 7])), "the offsets of a ragged batch go from 1 to 7"),
        (InputArray(A[:1], offsets=torch.tensor([7])), "the offsets of a ragged batch are of shape [1]"),
        (InputArray(A[:1], offsets=[0, 7]), "the offsets of a ragged batch are [0, 7]: integers of shape [batch + 1]"),
        (InputArray(A[:1], ONES[:1, 0], offsets=torch.tensor([0, 3, 7])), "give offsets or a mask, not both"),
        (
            InputArray(A, coordinates_BMG=torch.rand(2, 6, 1)),
            "an input have the shape [2, 6, 1]: [2, 7, ",
        ),
        (InputArray(A, coordinates_BMG=torch.full((2, 7, 1), torch.nan)), "coordinates of an input are not all finite"),
    ],
)
def test_wrong_ragged_inputs(a, message):
    with pytest.raises(PerceiversError, match=re.escape(message)):
        build().encode({"a": a, "b": B})


def test_ragged_and_padded_inputs_are_not_mixed():
    model, ragged = build(), Ragged.stack([A[0, :3], A[1]])
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 3] = False
    with pytest.raises(PerceiversError, match="some inputs are ragged and others padded"):
        model.encode({"a": ragged, "b": InputArray(B, mask)})
    with pytest.raises(PerceiversError, match="input_masks are not defined for ragged inputs, such as 'a'"):
        model.encode({"a": ragged, "b": B}, input_masks={"b": torch.ones(1, 6, 5, dtype=torch.bool)})
    with pytest.raises(PerceiversError, match="different batch sizes"):
        model.encode({"a": Ragged.stack([A[0]]), "b": B})


def test_inputs_that_are_not_ragged_say_so():
    image = ImageInput((4, 4), Patches(1), FourierPositions((4, 4), 2))
    with pytest.raises(PerceiversError, match="an input was given that takes no ragged batches"):
        image(Ragged(torch.rand(5, 3), torch.tensor([0, 5])))
    with pytest.raises(PerceiversError, match="an array without a grid was given: its vectors need coordinates"):
        ArrayInput(3, FourierPositions((4,), 2))(Ragged(torch.rand(5, 3), torch.tensor([0, 5])))
    with pytest.raises(PerceiversError, match="its vectors need coordinates"):
        ArrayInput(3, FourierFeatures(1, [2.0]))(torch.rand(1, 5, 3))
    with pytest.raises(PerceiversError, match="LearnedPositions exist on a grid only"):
        ArrayInput(3, LearnedPositions((5,), 4))(InputArray(torch.rand(1, 5, 3), coordinates_BMG=torch.rand(1, 5, 1)))
    with pytest.raises(PerceiversError, match="a text of 5 tokens was given, but the model reads at most 4"):
        TextInput(9, 4, 8)(Ragged(torch.zeros(6, dtype=torch.long), torch.tensor([0, 1, 6])))


def test_rotary_positions_need_coordinates_and_wide_heads():
    sizes = {"latents": 6, "channels": 16, "depth": 1, "cross_qk_channels": 8}
    adapters = {"a": ArrayInput(4)}, {"a": SetOutput("a")}
    model = PerceiverIO(*adapters, **sizes, heads=2, rotary=RotaryPositions([1.0, 2]))
    with pytest.raises(PerceiversError, match="rotary positions: the inputs need coordinates"):
        model.encode({"a": A})
    array = InputArray(A, coordinates_BMG=torch.rand(2, 7, 1))
    with pytest.raises(PerceiversError, match="rotary positions: the latents need coordinates"):
        model.encode({"a": array})
    with pytest.raises(PerceiversError, match=r"of the latents have the shape \[1, 6, 2\]: \[1, 6, 1\]"):
        model.encode({"a": array}, latent_coordinates=torch.rand(6, 2))
    with pytest.raises(PerceiversError, match=r"of the latents have the shape \[3, 6, 1\]: \[2, 6, 1\]"):
        model.encode({"a": array}, latent_coordinates=torch.rand(3, 6, 1))
    with pytest.raises(PerceiversError, match="8 channels of each head, but some heads have 4: choose fewer"):
        PerceiverIO(*adapters, **sizes, heads=4, rotary=RotaryPositions([1.0] * 4))
    for periods in ([], [1.0, 0.0], [-1.0], [float("inf")]):
        with pytest.raises(PerceiversError, match=r"periods = .* are not allowed: positive numbers are expected"):
            RotaryPositions(periods)


def test_a_model_without_latents_is_given_some():
    with pytest.raises(PerceiversError, match=re.escape("no latents of its own: give encode(..., latents=...)")):
        build(latents=0).encode(DATA)


@pytest.mark.parametrize(("settings", "message"), [({"kv_heads": 3}, "heads = 4 cannot share kv_heads = 3")])
def test_heads_that_cannot_be_shared(settings, message):
    with pytest.raises(PerceiversError, match=message):
        Attention(8, 8, 4, **settings)


def test_windows_in_time():
    times = torch.tensor([[0.0, 1, 2, 3]])
    mask = window_mask(times[:, [1, 3]], times, before=1, after=0)
    assert mask.tolist() == [[[True, True, False, False], [False, False, True, True]]]
    assert window_mask(times, times, after=0)[0].equal(torch.ones(4, 4).tril().bool())


def test_an_embedding_has_names():
    assert NamedEmbedding([], 3)(torch.zeros(0, dtype=torch.long)).shape == (0, 3)
