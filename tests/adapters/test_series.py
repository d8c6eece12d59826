import pytest
import torch

import perceivers
from perceivers import InputArray, PerceiverIO, PerceiversError
from perceivers.adapters import ArrayInput, SeriesInput, SeriesOutput
from perceivers.adapters.series import LEAST_SPREAD
from perceivers.model.adapter import Encoded
from tests.support.models import shaken

SIZES = {"latents": 4, "channels": 16, "depth": 1, "heads": 2}


@pytest.fixture
def model():
    """Reads 12 steps and predicts 6, which are standardized by other numbers."""
    inputs = {"history": SeriesInput(12, 4, mean=10.0, std=2.0)}
    outputs = {"future": SeriesOutput("history", 6, 3, 16, mean=12.0, std=5.0)}
    return shaken(PerceiverIO(inputs, outputs, **SIZES))


def in_units(steps, mean, std):
    return steps * std + mean


def forecast(model, history, latents=None):
    """The future in the units of the cells, for a history in these; with other latents, if given."""
    encoded = model.encode({"history": (history - 10) / 2})
    encoded = encoded if latents is None else encoded._replace(latents=latents)
    return in_units(model.decode(encoded)["future"], 12, 5)


def test_patches_hold_steps_less_the_last_one_in_units_of_the_spread():
    adapter = SeriesInput(12, 4)
    steps = torch.randn(2, 12)
    x = adapter(steps).x_BMC
    assert x.shape == (2, 3, adapter.channels)
    spread = steps.std(1, correction=0) + LEAST_SPREAD
    torch.testing.assert_close(x[1, 2, :4], (steps[1, 8:] - steps[1, -1]) / spread[1])
    torch.testing.assert_close(x[0, :, -2:], torch.stack([steps[0, -1], spread[0]]).expand(3, 2))
    torch.testing.assert_close(x[0, :, 4:-2], adapter.positions())


def test_a_series_that_begins_later_is_normalized_by_its_own_steps():
    adapter = SeriesInput(12, 4)
    steps, mask = torch.randn(1, 12), torch.arange(12) >= 5
    array = adapter(InputArray(torch.where(mask, steps, 99.0), mask[None]))
    assert array.mask_BM.tolist() == [[False, True, True]]
    spread = steps[0, 5:].std(correction=0) + LEAST_SPREAD
    torch.testing.assert_close(array.x_BMC[0, 2, :4], (steps[0, 8:] - steps[0, -1]) / spread)
    assert array.x_BMC[0, 1, 0] == 0
    torch.testing.assert_close(array.x_BMC[0, 1, 1:4], (steps[0, 5:8] - steps[0, -1]) / spread)


def test_a_constant_added_to_the_history_moves_the_forecast_by_it(model):
    """With the same latents, which know the level: what the query says of the history is without it."""
    history = 10 + torch.randn(3, 12)
    latents = model.encode({"history": (history - 10) / 2}).latents
    before, after = forecast(model, history, latents), forecast(model, history + 70, latents)
    torch.testing.assert_close(after, before + 70, atol=1e-4, rtol=0)


def test_a_scaled_history_scales_the_forecast():
    """All but the least spread, by which a constant history is divided."""
    history, output = SeriesInput(12, 4), SeriesOutput("history", 6, 3, 16)
    steps, y = torch.randn(3, 12), torch.randn(3, 2, 3)
    small, large = (output.context({"history": history(factor * steps)}) for factor in (1, 50))
    output.bind_inputs({"history": history})
    small, large = (output.postprocess(y, Encoded(y, context)) for context in (small, large))
    torch.testing.assert_close(large, 50 * small - 49 * LEAST_SPREAD * y.flatten(1))


def test_a_model_that_says_nothing_repeats_the_last_value(model):
    """In the units of the cells, although history and future are standardized differently."""
    for parameter in model.heads["future"].parameters():
        parameter.data.zero_()
    history = 10 + torch.randn(3, 12)
    torch.testing.assert_close(forecast(model, history), history[:, -1:].expand(3, 6), atol=1e-5, rtol=1e-5)


def test_a_forecast_can_be_linear_in_the_history():
    """The query of a patch is a linear map of the history, for each of its steps."""
    model = PerceiverIO({"history": SeriesInput(12, 4)}, {"future": SeriesOutput("history", 6, 3, 16)}, **SIZES)
    adapter = model.outputs["future"]
    history = torch.randn(2, 12)
    encoded = model.encode({"history": history})
    normalized = (history - history[:, -1:]) / (history.std(1, correction=0, keepdim=True) + LEAST_SPREAD)
    want = (adapter.linear.weight @ normalized[1] + adapter.linear.bias).view(2, 16) + adapter.positions.table_SF
    found = adapter.queries(encoded._replace(context=encoded.context["future"]))
    torch.testing.assert_close(found[1], want)


@pytest.mark.parametrize("points", [[1], [[1], [0], [1]]])
def test_some_patches_are_those_of_the_full_decode(model, points):
    encoded = model.encode({"history": torch.randn(3, 12)})
    full = model.decode(encoded)["future"].unflatten(1, (2, 3))
    points = torch.tensor(points)
    some = model.decode(encoded, {"future": points})["future"]
    torch.testing.assert_close(some, full.take_along_dim(points.expand(3, -1)[..., None], 1))


def test_a_saved_model_forecasts_the_same(model, tmp_path):
    model.save(tmp_path)
    history = 10 + torch.randn(3, 12)
    assert torch.equal(forecast(perceivers.load(tmp_path), history), forecast(model, history))


def test_wrong_series_are_refused():
    with pytest.raises(PerceiversError, match="a series of 10 steps cannot be cut into patches of 4"):
        SeriesInput(10, 4)
    with pytest.raises(PerceiversError, match="10 steps cannot be predicted in patches of 4"):
        SeriesOutput("history", 10, 4, 16)
    with pytest.raises(PerceiversError, match=r"series of shape \(2, 11\) were given: \[batch, 12\] is expected"):
        SeriesInput(12, 4)(torch.zeros(2, 11))
    for name, adapter in (("past", SeriesInput(12, 4)), ("history", ArrayInput(3))):
        with pytest.raises(PerceiversError, match="a series output needs an input 'history' that is a series"):
            PerceiverIO({name: adapter}, {"future": SeriesOutput("history", 6, 3, 16)}, **SIZES)
