"""Which rows of a table are for training, for validation and for testing."""

from datetime import date, timedelta

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold, KFold

from perceivers import PerceiversError
from perceivers.tables.data import TableData

ROWS = 60
DAYS = [str(date(2020, 1, 1) + timedelta(days=day)) for day in range(ROWS)]


def write(path, **columns):
    """Writes a table; by default, it has a number in each row."""
    columns = {"number": range(ROWS)} | columns
    lines = [columns, *zip(*columns.values(), strict=True)]
    path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    return str(path)


def parts(path, **settings):
    """The rows of each part, by their numbers."""
    found = TableData(path, **settings).open()
    return [None if rows is None else [int(cell) for cell in rows.cells("number")] for rows in found[:3]]


def check_disjoint(found, total=ROWS):
    """All rows are in one part."""
    everything = [row for rows in found if rows is not None for row in rows]
    assert sorted(everything) == list(range(total))


def test_fractions(tmp_path):
    path = write(tmp_path / "x.csv")
    found = parts(path, validation=0.2, test=0.1)
    check_disjoint(found)
    assert list(map(len, found)) == [42, 12, 6]
    assert found == parts(path, validation=0.2, test=0.1)
    assert parts(path, validation=0.2, seed=1)[1] != parts(path, validation=0.2)[1]
    assert list(map(len, parts(path)[:2])) == [54, 6]
    assert parts(path)[2] is None


def test_groups_are_never_torn(tmp_path):
    people = [f"person {row * 7 % 13}" for row in range(ROWS)]
    path = write(tmp_path / "x.csv", person=people)
    for seed in range(5):
        found = parts(path, group="person", validation=0.3, test=0.2, seed=seed)
        check_disjoint(found)
        groups = [{people[row] for row in rows} for rows in found]
        assert sum(map(len, groups)) == 13
        assert list(map(len, groups)) == [6, 4, 3]


def test_a_column_names_the_parts(tmp_path):
    names = ["Train", "training", "val", " dev", "validation", "TEST"] * 10
    path = write(tmp_path / "x.csv", part=names)
    found = parts(path, split="part")
    check_disjoint(found)
    assert [{names[row].strip().lower() for row in rows} for rows in found] == [
        {"train", "training"}, {"val", "dev", "validation"}, {"test"},
    ]  # fmt: skip


def test_a_column_without_rows_for_validation(tmp_path):
    names = ["train", "train", "test"] * 20
    found = parts(write(tmp_path / "x.csv", part=names), split="part", validation=0.25)
    check_disjoint(found)
    assert found[2] == list(range(2, ROWS, 3))
    assert 4 <= len(found[1]) <= 16


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%Y-%m-%dT00:00:00+02:00"])
def test_the_last_rows_are_held_out(tmp_path, form):
    order = np.random.default_rng(0).permutation(ROWS)
    days = [date.fromisoformat(DAYS[day]).strftime(form) for day in order]
    path = write(tmp_path / "x.csv", number=order, day=days)
    found = [sorted(rows) for rows in parts(path, time="day", validation=0.25, test=0.2)]
    check_disjoint(found)
    assert list(map(len, found)) == [36, 12, 12]
    assert max(found[0]) < min(found[1])
    assert max(found[1]) < min(found[2])


def test_times_of_the_boundaries_can_be_given(tmp_path):
    path = write(tmp_path / "x.csv", day=DAYS)
    found = parts(path, time="day", validation="2020-02-01", test="2020-02-20")
    assert found == [list(range(31)), list(range(31, 50)), list(range(50, 60))]
    assert parts(path, time="day", validation="2020-02-01") == [list(range(31)), list(range(31, 60)), None]
    steps = write(tmp_path / "y.csv", step=range(100, 100 + ROWS))
    assert parts(steps, time="step", validation="150")[1] == list(range(50, 60))


@pytest.mark.parametrize("count", [2, 5])
def test_folds_are_those_of_scikit_learn(tmp_path, count):
    path = write(tmp_path / "x.csv")
    found = [parts(path, folds=count, fold=fold, seed=3)[:2] for fold in range(count)]
    expected = KFold(count, shuffle=True, random_state=3).split(np.arange(ROWS))
    assert found == [[training.tolist(), held_out.tolist()] for training, held_out in expected]
    check_disjoint([held_out for _, held_out in found])


def test_folds_of_groups_are_those_of_scikit_learn(tmp_path):
    people = [f"person {row * 7 % 13}" for row in range(ROWS)]
    path = write(tmp_path / "x.csv", person=people)
    found = [parts(path, folds=4, fold=fold, group="person")[:2] for fold in range(4)]
    expected = GroupKFold(4, shuffle=True, random_state=0).split(np.arange(ROWS), groups=people)
    assert found == [[training.tolist(), held_out.tolist()] for training, held_out in expected]
    for training, held_out in found:
        assert not {people[row] for row in training} & {people[row] for row in held_out}


def test_tables_of_a_folder(tmp_path):
    for name, start, count in (("train", 0, 40), ("validation", 40, 12), ("test", 52, 8)):
        write(tmp_path / f"{name}.csv", number=range(start, start + count))
    check_disjoint(parts(str(tmp_path)))
    assert list(map(len, parts(str(tmp_path)))) == [40, 12, 8]
    (tmp_path / "validation.csv").unlink()
    found = parts(str(tmp_path), validation=0.25)
    assert list(map(len, found)) == [30, 10, 8]
    assert sorted(found[0] + found[1]) == list(range(40))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "part"}, r"data\.split: .*x\.csv has no column 'part': there are: day, group, number\."),
        ({"group": "groups"}, r"data\.group: .* has no column 'groups': did you mean 'group'\?"),
        ({"time": "date"}, r"data\.time: .* has no column 'date': "),
        ({"time": "day", "group": "group"}, r"data\.group and data\.time both choose the rows that are held out"),
        ({"folds": 3, "time": "day"}, r"data\.folds and data\.time both choose"),
        ({"folds": 61, "fold": 0}, r"data\.folds = 61 is not allowed: it must be at most 60"),
        ({"folds": 3, "fold": 0, "group": "group"}, r"data\.folds = 3 is not allowed: it must be at most 2"),
        ({"folds": 3, "fold": 3}, r"data\.fold = 3 is not allowed: it must be below data\.folds"),
        ({"validation": "2020-02-01"}, r"data\.validation = '2020-02-01' is not allowed: it must be a fraction, or co"),
        ({"time": "day", "validation": "soon"}, r"data\.validation or data\.test: 'soon' is not a date of the form"),
        ({"time": "day", "validation": "2030-01-01"}, "has no rows to validate on"),
        ({"time": "day", "validation": "2010-01-01"}, "has no rows to train on"),
        ({"split": "group"}, r"line 2 of .*x\.csv, column 'group': 'a' is none of train, validation and test"),
        ({"group": "group", "validation": 0.5, "test": 0.5}, "has 2 groups, too few to hold some out"),
        ({"root": "nowhere"}, r"data\.root = nowhere is not a folder"),
    ],
)  # fmt: skip
def test_wrong_settings_end_in_one_sentence(tmp_path, settings, message):
    path = write(tmp_path / "x.csv", day=DAYS, group=["a", "b"] * 30)
    with pytest.raises(PerceiversError, match=message):
        parts(path, **settings)


def test_tables_of_a_folder_are_split_only_once(tmp_path):
    for name in ("train", "val", "test"):
        write(tmp_path / f"{name}.csv", day=DAYS)
    for settings in ({"folds": 3}, {"time": "day"}, {"test": 0.1}):
        with pytest.raises(PerceiversError, match=f"data.{next(iter(settings))} .* has a table of them: leave one out"):
            parts(str(tmp_path), **settings)
    with pytest.raises(PerceiversError, match=r"has several tables: with data\.window, give the file of one"):
        parts(str(tmp_path), window={"history": 2, "horizon": 1, "time": "day"})
    (tmp_path / "train.csv").unlink()
    with pytest.raises(PerceiversError, match="has no table called train; it has val, test"):
        parts(str(tmp_path))


def test_times_that_are_missing_or_of_mixed_zones_name_their_row(tmp_path):
    zones = [*DAYS[:-1], "2020-03-01T00:00:00+01:00"]
    for days, message in (
        ([*DAYS[:30], "", *DAYS[31:]], r"line 32 of .*x\.csv, column 'day': the time is missing"),
        (zones, r"line 61 of .*x\.csv, column 'day': '2020-03-01T00:00:00\+01:00' is not a time without a zone, as ot"),
        (zones[::-1], r"line 3 of .*x\.csv, column 'day': '2020-02-28' is not a time with a zone, as others"),
        ([*DAYS[:30], "31 days later", *DAYS[31:]], r"line 32 of .*, column 'day': '31 days later' is not a date of"),
    ):
        path = write(tmp_path / "x.csv", day=days)
        with pytest.raises(PerceiversError, match=message):
            parts(path, time="day")


def test_one_row_cannot_be_split(tmp_path):
    with pytest.raises(PerceiversError, match="has 1 rows, too few to hold some out"):
        parts(write(tmp_path / "x.csv", number=[1]))
