"""Tables of all formats: their cells, what is missing, and those that are larger than memory."""

from decimal import Decimal

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from perceivers import PerceiversError
from perceivers.tables import data as tables
from perceivers.tables.columns import Category, Number
from perceivers.tables.data import ArrowColumn, TableData, all_rows, of_frame, open_table, open_tables
from perceivers.tables.rows import is_missing
from perceivers.tables.training import TableExperiment
from tests.support.tables import as_rows


@pytest.mark.parametrize(
    "cell",
    [None, "", " ", "NA", "n/a", "NaN", "null", "None", "?", "-", float("nan"), np.float32("nan"), Decimal("NaN")],
)  # fmt: skip
def test_missing_cells(cell):
    assert is_missing(cell)
    rows = as_rows({"x": ["a", cell, "b"]})
    assert rows.cell("x", 1) is None
    assert list(rows.cells("x")) == ["a", "b"]
    assert rows.read("x", Category(["a", "b"]), 1) is None


@pytest.mark.parametrize("cell", ["0", 0, False, "no", "nano", [], "nothing", np.zeros(2), {"bytes": None}])
def test_other_cells_are_not_missing(cell):
    assert not is_missing(cell)


def test_a_column_that_a_table_does_not_have_is_missing():
    rows = as_rows({"x": [1, 2]})
    assert rows.cell("y", 0) is None
    assert rows.subset([1]).cell("x", 0) == 2


def test_frames():
    frame = pd.DataFrame(
        {
            "number": [1.5, None],
            "whole": pd.array([1, None], dtype="Int64"),
            "category": pd.Categorical(["x", None]),
            "date": pd.to_datetime(["2024-01-31", None]),
            "list": [[1, 2], None],
            7: [True, False],
        },
        index=[5, 5],
    )
    table = of_frame(frame)
    assert table.columns == {
        "number": [1.5, None],
        "whole": [1, None],
        "category": ["x", None],
        "date": [pd.Timestamp("2024-01-31"), None],
        "list": [[1, 2], None],
        "7": [True, False],
    }
    assert table.location(1) == "row 1 of the frame"


def write(path, columns):
    frame = pd.DataFrame(columns)
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_of_all_formats_are_read_alike(tmp_path, suffix):
    path = write(tmp_path / f"x{suffix}", {"n": [1.5, None, -2], "c": ["a", "b", None]})
    rows = all_rows(open_tables(str(path))[None], tmp_path)
    column = Category(["a", "b"])
    assert [rows.read("n", Number(), row) for row in range(3)] == [1.5, None, -2]
    assert [rows.read("c", column, row) for row in range(3)] == [1, 2, None]
    wrong = write(tmp_path / f"y{suffix}", {"n": ["1", "2", "x"], "c": [1, 2, 3]})
    rows = all_rows(open_tables(str(wrong))[None], tmp_path)
    first = {".csv": 2, ".tsv": 2, ".jsonl": 1, ".parquet": 0}[suffix]
    unit = "row" if suffix == ".parquet" else "line"
    for learn in (rows.learn, lambda name, column: rows.read(name, column, 2)):
        with pytest.raises(PerceiversError) as stop:
            learn("n", Number())
        assert str(stop.value) == f"{unit} {first + 2} of {wrong}, column 'n': 'x' is not a number."


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b,a\n1,2,3\n")
    twice = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    parquet.write_table(twice, tmp_path / "x.parquet")
    for name, message in (("x.csv", "has the column 'a' twice: rename one"), ("x.parquet", "cannot be read as parqu")):
        with pytest.raises(PerceiversError, match=message):
            open_tables(str(tmp_path / name))
    with pytest.raises(PerceiversError, match="the frame has the column 'a' twice: rename one"):
        of_frame(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(PerceiversError, match="the frame has the column '1' twice"):
        of_frame(pd.DataFrame([[1, 2]], columns=[1, "1"]))


def test_a_column_that_is_not_there_is_named(tmp_path):
    write(tmp_path / "x.csv", {"age": range(20), "price": range(20)})
    for settings in ({"inputs": {"ages": "number"}, "outputs": {"price": "number"}},
                     {"inputs": {"price": "number"}, "outputs": {"ages": "number"}}):  # fmt: skip
        run = TableExperiment(data=TableData(str(tmp_path / "x.csv")), **settings)
        with pytest.raises(PerceiversError, match=r"x\.csv has no column 'ages': did you mean 'age'\?"):
            run.prepare()


def test_ten_thousand_columns_are_refused_in_one_sentence(tmp_path):
    names = [f"c{place}" for place in range(10_000)]
    (tmp_path / "x.csv").write_text("\n".join(",".join(row) for row in (names, *[["1"] * len(names)] * 20)))
    with pytest.raises(PerceiversError, match="10,000 columns, more than 1,000: leave some out, or put numbers that"):
        TableData(str(tmp_path / "x.csv")).open()
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").write_text((tmp_path / "x.csv").read_text() if name == "train" else "c0\n1\n")
    with pytest.raises(PerceiversError, match=r"train\.csv has 10,000 columns"):
        TableData(str(tmp_path)).open()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "x.csv has no rows"),
        ("a,b\n", "x.csv has no rows"),
        ("a,b\n1\n", "line 2 of .*x.csv has 1 fields, but the file has 2 columns"),
        ('a,b\n"1,2\n', "line 2 of .*x.csv cannot be read"),
    ],
)
def test_broken_tables_are_refused(tmp_path, content, message):
    (tmp_path / "x.csv").write_text(content)
    with pytest.raises(PerceiversError, match=message):
        TableData(str(tmp_path / "x.csv")).open()


def test_paths_that_are_no_tables_are_refused(tmp_path):
    (tmp_path / "x.txt").write_text("a\n1\n")
    for path, message in (
        ("", "data.path is not given"),
        (tmp_path / "no.csv", "no.csv does not exist: give the file of a table"),
        (tmp_path, "has no tables called train, validation or test"),
        (tmp_path / "x.txt", "x.txt is not a table"),
    ):
        with pytest.raises(PerceiversError, match=message):
            TableData(str(path)).open()


@pytest.fixture
def streamed(tmp_path, monkeypatch):
    """A parquet table whose rows are read from the disk: 32 MB of numbers, a category, lists, and class labels."""
    count, random = 40_000, np.random.default_rng(0)
    path = tmp_path / "x.parquet"
    names = datasets.Features({
        "number": datasets.Value("int64"), "lists": datasets.List(datasets.Value("float64")),
        "class": datasets.ClassLabel(names=["no", "yes"]), "text": datasets.Value("string"),
    })  # fmt: skip
    lists = pa.ListArray.from_arrays(np.arange(0, 100 * count + 1, 100), random.normal(size=100 * count))
    columns = [
        np.arange(count),
        lists,
        np.arange(count) % 3 - 1,
        [f"{row % 5}" if row else None for row in range(count)],
    ]
    table = pa.table([pa.array(column) for column in columns], names=list(names))
    parquet.write_table(table.replace_schema_metadata(names.arrow_schema.metadata), path, row_group_size=1000)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(tables, "LARGEST_PARQUET", 2**20)
    return path


def test_large_parquet_is_not_read_into_memory(streamed):
    before = pa.total_allocated_bytes()
    table = open_table([streamed])
    training, held_out = TableData(str(streamed)).open()[:2]
    column = training.learn("number", Number())
    assert pa.total_allocated_bytes() - before < 2**22  # of 32 MB
    assert all(isinstance(cells, ArrowColumn) for cells in table.columns.values())
    assert len(training) + len(held_out) == 40_000
    assert column.mean == pytest.approx(np.mean(training.indices))


def test_large_parquet_has_the_same_cells_as_in_memory(streamed, monkeypatch):
    some = [0, 1, 2, 17, 999, 1000, 39_999]
    found = open_table([streamed])
    monkeypatch.setattr(tables, "LARGEST_PARQUET", 2**40)
    before = pa.total_allocated_bytes()
    expected = open_table([streamed])
    assert pa.total_allocated_bytes() - before > 2**24
    for name in ("number", "lists", "class", "text"):
        assert [found.columns[name][row] for row in some] == [expected.columns[name][row] for row in some]
    assert found.columns["class"][:4] == [None, "no", "yes", None]
    assert found.columns["text"][-1:] == ["4"]
    assert found.indices == expected.indices


def test_large_parquet_in_several_files(streamed, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    half = parquet.read_table(streamed)
    for place, rows in enumerate((half.slice(0, 10_000), half.slice(10_000))):
        parquet.write_table(rows, folder / f"train-0000{place}-of-00002.parquet")
    training, held_out = TableData(str(folder)).open()[:2]
    assert sorted([*training.cells("number"), *held_out.cells("number")]) == list(range(40_000))


def test_damaged_large_parquet_is_refused(streamed):
    streamed.write_bytes(streamed.read_bytes()[: 3 * 2**20])
    with pytest.raises(PerceiversError, match=r"x\.parquet cannot be read as parquet"):
        open_table([streamed])
