"""Predictions as they are written."""

import json

import numpy as np
import pandas as pd
import pytest

from perceivers.tables.data import of_frame
from perceivers.tables.windows import Window
from tests.support.tables import answer, as_rows, learned, small_model, write

TEXTS = ["some text", "[MASK]t", "a [MASK*3] longer text, with ä", None, "[MASK*4]"]


@pytest.fixture
def filler():
    """Predicts the hidden bytes of a text."""
    column = learned("masked_text", ["x" * 40])
    return small_model({"n": learned("number", range(3))}, {"text": column})


def rows_of(texts):
    return as_rows({"n": [1] * len(texts), "text": texts})


def test_only_hidden_bytes_are_filled_in(filler):
    rows = rows_of(TEXTS)
    logits = answer(filler, rows)["text"]
    guesses = logits[..., :256].argmax(-1)
    some = [row["text_predicted"] for row in write(filler, rows)]
    assert some[0] == "some text"
    assert some[1] == bytes(guesses[1, :1].tolist()).decode(errors="replace") + "t"
    assert some[2].startswith("a ")
    assert some[2].endswith(" longer text, with ä")
    assert some[3] == ""
    assert some[4] == bytes(guesses[4, :4].tolist()).decode(errors="replace")


def test_texts_are_filled_in_alone_as_in_a_batch(filler):
    together = write(filler, rows_of(TEXTS))
    assert [write(filler, rows_of([text]))[0] for text in TEXTS] == together


def test_texts_without_anything_hidden_stay(filler):
    for texts in (["abc"], ["abc", "a"], ["ä"]):
        assert [row["text_predicted"] for row in write(filler, rows_of(texts))] == texts


def hours(**series):
    count = len(next(iter(series.values())))
    return pd.DataFrame({"time": pd.date_range("2024-01-01", periods=count, freq="h"), **series})


@pytest.fixture
def forecaster():
    """Has learned from a series of the shop a, whose mean is 100 and whose standard deviation is 5."""
    waves = 100 + 5 * 2**0.5 * np.sin(np.arange(48) * np.pi / 4)
    window = Window(8, 4, "time", key="shop").open(of_frame(hours(load=waves, shop=["a"] * 48))).window
    assert window.scales["a"] == pytest.approx([100, 5])
    history = learned("series", [[1.0, 2.0] * 4], patch=4)
    future = learned("series", [[0.0, 1.0] * 2], patch=4, follows="history")
    return small_model({"history": history}, {"future": future}, window=window)


def forecast(model, **series):
    return {
        name: np.array(json.loads(steps)) for name, steps in model.predict(hours(**series))["future_predicted"].items()
    }


def test_a_forecast_is_in_the_units_of_the_table(forecaster):
    """A model that says nothing repeats the last value."""
    for parameter in forecaster.heads["future"].parameters():
        parameter.data.zero_()
    waves = 100 + np.arange(12) % 7
    assert forecast(forecaster, load=waves, shop=["a"] * 12)["a"] == pytest.approx([104] * 4, abs=1e-3)


def test_series_that_training_did_not_have_are_scaled_by_their_own_steps(forecaster):
    waves = np.sin(np.arange(12))
    like_a = 100 + 5 * (waves - waves.mean()) / waves.std()
    shops = ["a"] * 12 + ["b"] * 12
    both = hours(load=[*like_a, *(7 + 1000 * waves)], shop=shops)
    both["time"] = [*both["time"][:12], *both["time"][:12]]
    predicted = forecaster.predict(both)["future_predicted"]
    known, new = (np.array(json.loads(steps)) for steps in predicted)
    assert list(predicted.index) == ["a", "b"]
    scale = 1000 * waves.std() / 5
    assert new == pytest.approx((known - 100) * scale + 7 + 1000 * waves.mean(), abs=0.2)  # of six digits
