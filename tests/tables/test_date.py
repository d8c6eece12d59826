"""Dates and times."""

import math
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.errors import PerceiversError
from perceivers.tables.columns import Date

HERE = Path()


@pytest.mark.parametrize(
    ("cells", "format", "first"),
    [
        (["2024-02-01", "2024-02-03"], None, "2024-02-01T00:00"),
        (["2024-02-01 13:30", "2024-02-01T14:00:59"], None, "2024-02-01T13:30"),
        (["20240201"], None, "2024-02-01T00:00"),
        (["01/02/2024", "31/12/2023"], "%d/%m/%Y", "2024-02-01T00:00"),
        (["01/02/2024", "12/31/2023"], "%m/%d/%Y", "2024-01-02T00:00"),
        (["1.2.2024 13:30"], "%d.%m.%Y %H:%M", "2024-02-01T13:30"),
        ([" 2024/02/01 13:30:05 "], "%Y/%m/%d %H:%M:%S", "2024-02-01T13:30:05"),
        (["1 Feb 2024", "3 Mar 2024"], "%d %b %Y", "2024-02-01T00:00"),
        (["1 February 2024", "3 March 2024"], "%d %B %Y", "2024-02-01T00:00"),
        (["Feb 1, 2024"], "%b %d, %Y", "2024-02-01T00:00"),
        ([date(2024, 2, 1), "2024-02-03"], None, "2024-02-01T00:00"),
        ([datetime(2024, 2, 1, 5)], None, "2024-02-01T05:00"),
    ],
)
def test_forms(cells, format, first):
    column = Date().learn(cells, HERE)
    assert (column.format, column.has_zone) == (format, False)
    assert column.to_seconds(cells[0]) == datetime.fromisoformat(f"{first}+00:00").timestamp()


def test_pandas_timestamps():
    pandas = pytest.importorskip("pandas")
    times = pandas.to_datetime(["2024-02-01 10:00", "2024-02-02 12:00"])
    column = Date().learn(list(times), HERE)
    assert column.mean == datetime(2024, 2, 1, 23, tzinfo=UTC).timestamp()
    assert column.std == 13 * 3600
    assert torch.equal(column.read(times[0], HERE), column.read("2024-02-01T10:00", HERE))


def test_zones_are_converted():
    cells = [
        "2024-02-01T12:00:00+02:00",
        "2024-02-01T10:00:00Z",
        datetime(2024, 2, 1, 5, tzinfo=timezone(timedelta(hours=-5))),
    ]
    column = Date().learn(cells, HERE)
    assert column.has_zone
    values = [column.read(cell, HERE) for cell in cells]
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])


def test_zones_are_not_mixed():
    for known, other, which in (("2024-02-01", "2024-02-01T00:00Z", "out"), ("2024-02-01T00:00Z", "2024-02-01", "")):
        with pytest.raises(PerceiversError, match=f"is not a time with{which} a zone, as others of the column"):
            Date().learn([known], HERE).read(other, HERE)


def test_scale_is_learned():
    days = [0, 3, 10, 11]
    cells = [(datetime(2024, 1, 1) + timedelta(days=day)).isoformat() for day in days]
    column = Date().learn(cells, HERE)
    assert column.mean == datetime(2024, 1, 7, tzinfo=UTC).timestamp()
    assert column.std == pytest.approx(np.std(days) * 86400)
    assert column.read(cells[3], HERE)[0, 0].item() == pytest.approx(5 / np.std(days))
    assert column.read("9998-01-01", HERE)[0, 0] == 10
    assert Date().learn(cells[:1], HERE).std == 1


def test_features_are_places_in_periods():
    """Thursday, 1 February 2024, 6:30: a quarter and half an hour of the day."""
    found = Date().read("2024-02-01 06:30", HERE)[0, 1:].reshape(4, 2)
    places = [6.5 / 24, (3 + 6 / 24) / 7, 0, 31 / 366]
    expected = [[math.sin(2 * math.pi * place), math.cos(2 * math.pi * place)] for place in places]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert Date().blank().shape == Date().read("2024-02-01", HERE).shape == (1, 9)


def test_the_input_is_one_element():
    column = Date().learn(["2024-02-01", "2024-02-03"], HERE)
    adapter = column.input_adapter(6)
    assert adapter(column.collate([column.read("2024-02-03", HERE)] * 2)).x_BMC.shape == (2, 1, 6)


@pytest.mark.parametrize("cell", ["soon", "2024-13-01", "31/12/2023", 5.5, "0001-01-01", "9999-12-31", [1]])
def test_cells_that_are_no_dates(cell):
    with pytest.raises(PerceiversError, match="is not a date"):
        Date().read(cell, HERE)


def test_a_given_format_is_kept():
    column = Date(format="%Y year").learn(["2024 year", "2026 year"], HERE)
    assert column.format == "%Y year"
    with pytest.raises(PerceiversError, match="'2024' is not a date of the form %Y year"):
        column.read("2024", HERE)


def test_dates_cannot_be_predicted():
    with pytest.raises(PerceiversError, match="a column of type 'date' can be an input, but not be predicted"):
        Date().output_adapter("x", 8)
