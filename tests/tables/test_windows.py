"""Tables of series, cut into windows."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from perceivers import PerceiversError
from perceivers.data.tables import Table
from perceivers.tables.data import TableData, of_frame
from perceivers.tables.windows import END, FUTURE, HISTORY, SCALE, SERIES, TIME, Window, read_times

START = datetime(2024, 1, 1)
HOUR = 3600


def seconds(step, first=START):
    """The seconds from 1970 of an hour."""
    return (first - datetime(1970, 1, 1)).total_seconds() + HOUR * step


def frame(count=40, names=("load",), **columns):
    """Hours with numbers that tell series and step: 1000, 1001, ... in the first series, 2000, ... in the next."""
    times = [START + timedelta(hours=step) for step in range(count)]
    series = {name: [1000.0 * (place + 1) + step for step in range(count)] for place, name in enumerate(names)}
    return pd.DataFrame({"time": [str(time) for time in times], **series, **columns})


def cut(table, latest=False, boundary=None, **settings):
    """The windows of a frame, and the window with its scales."""
    settings = {"history": 4, "horizon": 2, "time": "time"} | settings
    series = Window(**settings).open(of_frame(table), boundary)
    return series.cut(latest), series.window


def unscaled(window, table, part):
    """The steps of a part of all windows, in the units of the table."""
    assert table.columns[SCALE] == [window.scales[name] for name in table.columns[SERIES]]
    rows = zip(table.columns[SCALE], table.columns[part], strict=True)
    return [[round(float(mean + std * step), 6) for step in steps] for (mean, std), steps in rows]


def test_a_window_is_a_history_and_what_follows():
    found, window = cut(frame(9))
    assert unscaled(window, found, HISTORY) == [[1000 + start + step for step in range(4)] for start in range(4)]
    assert unscaled(window, found, FUTURE) == [[1000 + start + step for step in (4, 5)] for start in range(4)]
    assert found.columns[SERIES] == ["load"] * 4
    assert found.columns[TIME] == [seconds(start + 4) for start in range(4)]
    assert found.columns[END] == [seconds(start + 5) for start in range(4)]
    assert found.indices == [3, 4, 5, 6]  # the last row of the history
    np.testing.assert_allclose(found.columns[HISTORY][1:3], [found.columns[HISTORY][1], found.columns[HISTORY][2]])


def test_the_latest_window_has_no_future():
    found, window = cut(frame(9, ["load", "heat"]), latest=True)
    assert unscaled(window, found, HISTORY) == [[1005, 1006, 1007, 1008], [2005, 2006, 2007, 2008]]
    assert found.columns[TIME] == [seconds(9)] * 2
    assert FUTURE not in found.columns


def test_every_column_of_numbers_is_a_series_with_a_scale():
    table = frame(9, ["load", "heat"], place=["north"] * 9)
    found, window = cut(table)
    assert window.series == ["load", "heat"]
    assert list(dict.fromkeys(found.columns[SERIES])) == ["load", "heat"]
    for name in ("load", "heat"):
        assert window.scales[name] == pytest.approx([table[name].mean(), table[name].std(ddof=0)])
    assert cut(table, series=["heat"])[1].series == ["heat"]


def test_scales_are_those_of_the_rows_before_the_boundary():
    table = frame(20)
    table.loc[3, "load"] = None
    _, window = cut(table, boundary=seconds(12))
    known = np.delete(table["load"].to_numpy()[:12], 3)
    assert window.scales["load"] == pytest.approx([known.mean(), known.std()])
    again = Window(**window.config).open(of_frame(frame(60)))
    assert again.window.scales == window.scales


def test_rows_are_sorted_by_time(capsys):
    table = frame(9)
    found, window = cut(table.sample(frac=1, random_state=0).reset_index(drop=True))
    assert unscaled(window, found, HISTORY)[2] == [1002, 1003, 1004, 1005]
    assert capsys.readouterr().err == "the frame is not in order of time: its rows are sorted.\n"
    cut(table)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("missing", [6, 0, 10])
def test_windows_with_a_missing_number_are_left_out(missing, capsys):
    table = frame(11)
    table.loc[missing, "load"] = None
    found, window = cut(table)
    expected = [start for start in range(6) if not start <= missing < start + 6]
    assert [history[0] - 1000 for history in unscaled(window, found, HISTORY)] == expected
    assert f"Left out of the frame: {6 - len(expected)} windows" in capsys.readouterr().err


def test_windows_over_a_gap_are_left_out(capsys):
    found, window = cut(frame(14).drop(index=7).reset_index(drop=True))
    assert [history[0] - 1000 for history in unscaled(window, found, HISTORY)] == [0, 1, 8]
    assert "5 windows with a gap or a missing number" in capsys.readouterr().err


def test_the_latest_history_of_a_series_may_have_a_gap(capsys):
    table = frame(12, ["load", "heat"])
    table.loc[10, "heat"] = None
    found, _ = cut(table, latest=True)
    assert found.columns[SERIES] == ["load"]
    assert "1 windows with a gap" in capsys.readouterr().err


@pytest.mark.parametrize("days", ["MS", "QS", "YS", "D", "W"])
def test_months_and_years_are_no_gaps(days):
    table = pd.DataFrame({"time": pd.date_range("2019-01-01", periods=30, freq=days), "load": range(30)})
    found, _ = cut(table)
    assert len(found.indices) == 25


def test_series_below_each_other():
    """Each shop has its own series, with its own scale, and may begin and end at other times."""
    first, second = frame(9).assign(shop="a"), frame(12).assign(shop="b")
    second["load"] *= 10
    second["time"] = [str(datetime.fromisoformat(time) + timedelta(days=3)) for time in second["time"]]
    table = pd.concat([first, second]).sample(frac=1, random_state=0).reset_index(drop=True)
    found, window = cut(table, key="shop")
    assert [found.columns[SERIES].count(name) for name in "ab"] == [4, 7]
    assert unscaled(window, found, HISTORY)[0] == [1000, 1001, 1002, 1003]
    assert unscaled(window, found, HISTORY)[4] == [10000, 10010, 10020, 10030]
    assert window.scales["b"][0] == pytest.approx(second["load"].mean())
    both, _ = cut(table.assign(heat=table["load"]), key="shop")
    assert list(dict.fromkeys(both.columns[SERIES])) == ["a load", "a heat", "b load", "b heat"]
    latest, _ = cut(table, key="shop", latest=True)
    assert latest.columns[TIME] == [seconds(9), seconds(12) + 72 * HOUR]


@pytest.mark.parametrize("validation", [0.25, "2024-01-02T06:00:00"])
def test_no_window_of_training_touches_a_later_part(tmp_path, validation):
    path = tmp_path / "x.csv"
    frame(40).to_csv(path, index=False)
    window = {"history": 4, "horizon": 2, "time": "time"}
    test = 0.2 if validation == 0.25 else "2024-01-02T10:00:00"
    training, held_out, last, learned = TableData(str(path), validation=validation, test=test, window=window).open()
    first, second = (24, 32) if validation == 0.25 else (30, 34)
    for rows, begin, end in ((training, 0, first), (held_out, first, second), (last, second, 40)):
        futures = unscaled(learned, rows.subset(range(len(rows))).table, FUTURE)
        steps = [step - 1000 for row in rows.indices for step in futures[row]]
        assert min(steps) == (4 if begin == 0 else begin)
        assert max(steps) == end - 1
        assert len(rows) == end - max(begin, 4) - 1
    histories = unscaled(learned, training.table, HISTORY)
    assert max(step for row in training.indices for step in histories[row]) < 1000 + first
    assert learned.scales["load"][0] == pytest.approx(1000 + (first - 1) / 2)


def test_times_of_all_forms():
    days = ["2024-01-01", "2024-01-02"]
    expected = [seconds(0), seconds(24)]
    for cells in (
        days,
        ["01.01.2024", "02.01.2024"],
        ["01/01/2024 00:00", "02/01/2024 00:00"],
        ["Jan 1, 2024", "Jan 2, 2024"],
        [f"{day}T01:00:00+01:00" for day in days],
        [datetime.fromisoformat(day) for day in days],
        [datetime.fromisoformat(day).date() for day in days],
        list(pd.to_datetime(days)),
    ):
        assert read_times(Table("x", {"t": cells}, "row", range(2)), "t").tolist() == expected
    assert read_times(Table("x", {"t": ["3", 4]}, "row", range(2)), "t").tolist() == [3, 4]


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (frame(), {"time": "date"}, "the frame has no column 'date': there are: load, time."),
        (frame(), {"series": ["loads"]}, "the frame has no column 'loads': did you mean 'load'?"),
        (frame(), {"key": "shop"}, "the frame has no column 'shop'"),
        (frame(names=()), {}, "the frame has no column of numbers: name those to predict in data.window.series"),
        (frame(5), {}, "the frame has no series of 4 + 2 rows without a gap or a missing number"),
        (frame(1), {}, "the frame has no series of more than one row"),
        (pd.concat([frame(), frame()]), {}, "the frame has two rows of the same time: keep one, or name data.window.k"),
        (pd.concat([frame(), frame()]).assign(shop=1), {"key": "shop"}, "has two rows of 1 of the same time"),
        (frame().assign(load="?"), {"series": ["load"]}, "the series 'load' of the frame has no number to train on"),
        (frame().assign(load=[1] * 39 + ["x"]), {"series": ["load"]}, "row 39 of the frame, column 'load': 'x' is not"),
        (frame().assign(time=["soon"] * 40), {}, "row 0 of the frame, column 'time': 'soon' is not a date"),
        (frame().assign(time=[None] + ["2024"] * 39), {}, "row 0 of the frame, column 'time': the time is missing"),
        (frame(), {"history": 1}, "data.window.history = 1 is not allowed: it must be at least 2"),
        (frame(), {"horizon": 0}, "data.window.horizon = 0 is not allowed: it must be at least 1"),
    ],
)  # fmt: skip
def test_wrong_series_end_in_one_sentence(table, settings, message):
    with pytest.raises(PerceiversError) as stop:
        cut(table, **settings)
    assert message in str(stop.value)


def test_wrong_windows_of_a_config_end_in_one_sentence(tmp_path):
    frame().to_csv(tmp_path / "x.csv", index=False)
    window = {"history": 4, "horizon": 2, "time": "time"}
    for changed, message in (
        ({"time": "date"}, "data.window.time: .* has no column 'date'"),
        ({"histories": 4}, "Window has no argument 'histories': did you mean 'history'"),
        ({"history": "long"}, "Window: history = 'long' is not allowed: it must be of type int"),
        ({"horizon": 200}, "has no series of 4 \\+ 200 rows"),
    ):
        with pytest.raises(PerceiversError, match=message):
            TableData(str(tmp_path / "x.csv"), window=window | changed).open()
    del window["time"]
    with pytest.raises(PerceiversError, match="Window needs the argument 'time'"):
        TableData(str(tmp_path / "x.csv"), window=window).open()
