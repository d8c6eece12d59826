"""What may be wrong with a table is said in one sentence, which names the place and what to do."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import perceivers
from perceivers import PerceiversError
from perceivers.cli import main
from perceivers.tables import data as module
from perceivers.tables.columns import Column, make_column
from perceivers.tables.data import TableData, of_frame, open_tables
from perceivers.training.config import read_config
from tests.support.cli import fails
from tests.support.tables import as_rows, learned, small_model, write

COUNT = 40
CONFIG = """experiment: table
model: {latents: 4, channels: 16, depth: 1, heads: 2}
data: {path: table.csv, validation: 0.25}
inputs: {size: number, color: category}
outputs: {price: number}
trainer: {max_epochs: 1, accelerator: cpu}
training: {batch_size: 16, output: run}
compare: false
"""


def cells():
    random = np.random.default_rng(0)
    return {
        "size": [f"{size:.2f}" for size in random.normal(size=COUNT)],
        "color": ["red", "green", "blue", "red"] * 10,
        "price": [f"{price:.2f}" for price in random.normal(size=COUNT)],
    }


def write_csv(columns, path="table.csv"):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([[*columns], *zip(*columns.values(), strict=True)])
    return path


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A folder with a table and a config, and the cells of the table."""
    monkeypatch.chdir(tmp_path)
    Path("table.yaml").write_text(CONFIG)
    write_csv(cells())
    return cells()


def problem(*overrides):
    """The sentence that training ends in."""
    with pytest.raises(PerceiversError) as error:
        read_config(Path("table.yaml"), overrides).run()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--inputs={sise: number}", r"table.csv has no column 'sise': did you mean 'size'\?"),
        ("--outputs={prize: number}", r"table.csv has no column 'prize': did you mean 'price'\?"),
        ("--data.split=part", "data.split: table.csv has no column 'part'"),
        ("--data.group=colour", "data.group: table.csv has no column 'colour': did you mean 'color'"),
        ("--data.time=when", "data.time: table.csv has no column 'when'"),
        ("--data.time=color", "line 2 of table.csv, column 'color'"),
        ("--data.path=tables.csv", "tables.csv does not exist"),
        ("--outputs={size: number}", "the column 'size' is both an input and an output: leave one out"),
        ("--outputs={price: nmber}", "column 'price': there is no type 'nmber': did you mean 'number'"),
        ("--outputs={color: text}", "column of type 'text' can be an input, but not be predicted|both an input"),
        ("--outputs={price: date}", "a date of the form"),
        ("--outputs={price: {type: number, weight: 0}}", "outputs.price.weight = 0"),
        ("--class_weights=balanced", "class_weights is for categories, but 'price' is a number"),
        ("--data.folds=41", "data.folds = 41 is not allowed: it must be at most 40"),
    ],
)
def test_configs_that_do_not_fit_the_table(table, override, message):
    assert re.search(message, problem(override))


def test_two_columns_of_one_name(table, capsys):
    Path("table.csv").write_text("size,price,size\n1,2,3\n")
    assert "table.csv has the column 'size' twice" in problem()
    assert "twice" in fails(capsys, "fit", "table.csv", "--predict", "price")
    pandas = pytest.importorskip("pandas")
    with pytest.raises(PerceiversError, match="the frame has the column 'size' twice: rename one"):
        of_frame(pandas.DataFrame([[1, 2]], columns=["size", "size"]))


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (["7"] * COUNT, "cannot be predicted: it is constant: 7"),
        (["", "NA"] * 20, "cannot be predicted: it is empty"),
        (
            [f"id{row:05d}" for row in np.random.default_rng(0).permutation(COUNT)],
            "cannot be predicted: it is an ident",
        ),
        ([str(row) for row in range(COUNT)], "cannot be predicted: it is an identifier of the rows"),
    ],
)
def test_columns_that_cannot_be_predicted(table, capsys, column, reason):
    write_csv(table | {"x": column})
    assert reason in fails(capsys, "fit", "table.csv", "--predict", "x")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("column", "what"), [(["7"] * COUNT, "has the same cell, '7', in all rows"), ([""] * COUNT, "has no cells")]
)
def test_the_same_from_a_config(table, column, what):
    write_csv(table | {"price": column})
    assert f"table.csv: the column 'price' {what}, so that there is nothing to predict" in problem()


def test_a_category_with_one_example(table, capsys):
    """It is learned where training has it; where only the validation does, its row is left out and counted."""
    parts = TableData("table.csv", validation=0.25).open()
    colors = ["red", "green"] * 20
    outputs = ("--outputs={color: category}", "--inputs={size: number}")
    row, other = parts.validation.indices[0], parts.training.indices[0]
    write_csv(table | {"color": [*colors[:row], "pink", *colors[row + 1 :]]})
    folder = read_config(Path("table.yaml"), [*outputs, "--training.output=first"]).run()
    assert perceivers.load(folder / "model").output_columns["color"].names == ["green", "red"]
    left_out = (
        f"1 of 10 rows, such as line {row + 2} of table.csv, column 'color': 'pink' is a category that training did"
    )
    assert left_out in capsys.readouterr().err
    write_csv(table | {"color": [*colors[:other], "pink", *colors[other + 1 :]]})
    folder = read_config(Path("table.yaml"), [*outputs, "--training.output=other"]).run()
    assert perceivers.load(folder / "model").output_columns["color"].names == ["green", "pink", "red"]


def test_an_empty_input_is_left_out(table, capsys):
    """Weights that nothing trained would answer at random if another table has cells."""
    write_csv(table | {"size": [""] * COUNT})
    folder = read_config(Path("table.yaml")).run()
    assert "Column 'size' of table.csv is empty: it is left out." in capsys.readouterr().err
    assert list(perceivers.load(folder / "model").input_columns) == ["color"]
    write_csv(table | {"size": [""] * COUNT, "color": ["?"] * COUNT})
    assert "table.csv has no cells in any of the inputs: name others" in problem("--training.output=other")


@pytest.mark.parametrize(
    ("column", "kind", "cell", "message"),
    [
        ("size", "number", "big", "'big' is not a number"),
        ("color", "yes_no", "maybe", "is not yes or no"),
        ("color", "date", "someday", "is not a date of the form 2026-01-31 23:59:59"),
        ("color", "series", "[1, 2", "is not a list of numbers"),
        ("color", "array", "[[1], [2, 3]]", "is not a list of numbers"),
    ],
)
def test_a_cell_of_the_wrong_type(table, column, kind, cell, message):
    """Its row and column are named."""
    good = {"number": "1.5", "yes_no": "yes", "date": "2024-01-01", "series": "[1, 2]", "array": "[1, 2]"}[kind]
    values = [good] * COUNT
    values[17] = cell
    write_csv(table | {column: values})
    if kind in ("number", "yes_no", "date"):
        found = problem(f"--inputs={{{column}: {kind}}}")
        assert f"line 19 of table.csv, column '{column}': " in found
        assert message in found
    else:
        rows = as_rows({column: values}, name="table.csv")
        with pytest.raises(PerceiversError, match=f"row 17 of table.csv, column '{column}': .*{message}"):
            rows.read(column, learned(kind, [good]), 17)


@pytest.fixture
def pictures(table):
    """A column of pictures, of which two that training reads are missing and broken."""
    for row in range(COUNT):
        Image.fromarray(np.full((8, 8, 3), 6 * row, dtype=np.uint8)).save(f"{row}.png")
    write_csv(table | {"picture": [f"{row}.png" for row in range(COUNT)]})
    missing, broken, *_ = sorted(TableData("table.csv", validation=0.25).open().training.indices)
    Path(f"{missing}.png").unlink()
    Path(f"{broken}.png").write_bytes(b"no picture")
    return missing, broken


PICTURE = "--inputs={picture: {type: image, size: 8, patch: 4}}"


def test_files_that_are_missing_or_broken(pictures, capsys):
    """Training counts them, and names each with its row and column."""
    read_config(Path("table.yaml"), [PICTURE, "--training.batch_size=30"]).run()
    err = capsys.readouterr().err
    missing, broken = pictures
    assert f"Skipped: line {missing + 2} of table.csv, column 'picture': {missing}.png is not a readable file" in err
    assert f"Skipped: line {broken + 2} of table.csv, column 'picture': {broken}.png cannot be decoded" in err
    assert "2 samples could not be read and were skipped" in err


def test_an_evaluation_leaves_no_file_out(pictures):
    held_out = min(TableData("table.csv", validation=0.25).open().validation.indices)
    Path(f"{held_out}.png").unlink()
    assert f"line {held_out + 2} of table.csv, column 'picture': {held_out}.png is not a readable" in problem(PICTURE)


def test_predictions_name_a_missing_file(pictures, capsys):
    folder = read_config(Path("table.yaml"), [PICTURE]).run()
    capsys.readouterr()
    frame = pytest.importorskip("pandas").read_csv("table.csv")
    model = perceivers.load(folder / "model")
    missing, broken = pictures
    with pytest.raises(PerceiversError, match=rf"row {missing} of the frame, column 'picture': {missing}.png"):
        model.predict(frame)
    assert len(model.predict(frame.drop(index=[missing, broken]))) == COUNT - 2
    main(["predict", str(folder / "model"), "table.csv", "--out", "found.csv"])
    with open("found.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row for row in range(COUNT) if rows[row]["error"]] == [missing, broken]
    assert f"line {missing + 2} of table.csv, column 'picture'" in rows[missing]["error"]


def test_all_files_are_missing(pictures):
    for file in Path().glob("*.png"):
        file.unlink()
    first = TableData("table.csv", validation=0.25).open().training.indices[0]
    assert f"line {first + 2} of table.csv, column 'picture': {first}.png is not a readable file" in problem(PICTURE)


def a_model():
    columns = {"size": learned("number", cells()["size"]), "color": learned("category", cells()["color"])}
    return small_model(columns, {"price": learned("number", cells()["price"])})


def test_a_prediction_table_without_an_input(table, capsys):
    """The column is masked, and this is said; the result is that of missing cells."""
    model = a_model()
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(cells())
    found = model.predict(frame[["size"]])
    assert "Columns that the frame does not have are masked: 'color'." in capsys.readouterr().err
    missing = model.predict(frame.assign(color=None))
    assert found["price_predicted"].tolist() == pytest.approx(missing["price_predicted"].tolist(), rel=1e-9)
    assert found["price_predicted"].tolist() != pytest.approx(
        model.predict(frame)["price_predicted"].tolist(), rel=1e-3
    )
    with pytest.raises(PerceiversError, match="the frame has none of the columns that the model reads: size, color"):
        model.predict(frame[["price"]])


def test_a_prediction_table_with_the_target(table):
    """It is kept beside the prediction, and changes nothing."""
    model = a_model()
    frame = pytest.importorskip("pandas").DataFrame(cells())
    found, without = model.predict(frame), model.predict(frame.drop(columns="price"))
    assert [*found] == ["price", "price_predicted"]
    assert [*without] == ["price_predicted"]
    assert found["price"].tolist() == [float(price) for price in cells()["price"]]
    assert found["price_predicted"].tolist() == without["price_predicted"].tolist()
    frame.loc[3, "price"] = "unknown"
    assert model.predict(frame)["price"].isna().tolist() == [row == 3 for row in range(COUNT)]


def test_mixed_time_zones(table):
    times = ["2024-01-01T00:00:00+01:00"] * COUNT
    times[5] = "2024-01-01T00:00:00"
    write_csv(table | {"color": times})
    found = problem("--inputs={color: date}")
    assert "line 7 of table.csv, column 'color': " in found
    assert "is not a time with a zone, as others of the column" in found


def test_ten_thousand_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    columns = {f"c{index}": [str(index), str(index + 1), "0"] for index in range(10_000)}
    write_csv(columns)
    found = fails(capsys, "fit", "table.csv", "--predict", "c7")
    assert "table.csv has 10,000 columns, more than 1,000: leave some out" in found


def test_parquet_larger_than_memory_is_streamed(tmp_path, monkeypatch):
    """Cells are read when they are needed, and the same as of a table in memory."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "t.parquet"
    columns = cells() | {"list": [[row, None] for row in range(COUNT)], "gone": [None, "x"] * 20}
    parquet.write_table(pyarrow.table(columns), path)
    whole = open_tables(str(path))[None]
    monkeypatch.setattr(module, "LARGEST_PARQUET", 1)
    streamed = open_tables(str(path))[None]
    for table in (whole, streamed):
        assert {name: list(column) for name, column in table.columns.items()} == columns
        assert table.columns["list"][-1] == [COUNT - 1, None]
        assert table.columns["size"][1:3] == columns["size"][1:3]
    assert type(streamed.columns["size"]) is not list
    parts = TableData(str(path), validation=0.25).open()
    assert sorted([*parts.training.indices, *parts.validation.indices]) == list(range(COUNT))
    assert [*parts.training.cells("size")] == [columns["size"][row] for row in parts.training.indices]


def test_a_broken_parquet_file(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 no more")
    for size in (2**28, 1):
        monkeypatch.setattr(module, "LARGEST_PARQUET", size)
        with pytest.raises(PerceiversError, match=r"t.parquet"):
            open_tables(str(path))


def test_predictions_of_an_unknown_category_are_explicit():
    """A category that training did not have is one of its own, not a missing cell."""
    model = a_model()
    known, unknown, other, missing = (
        row["price_predicted"]
        for row in write(model, as_rows({"size": ["1"] * 4, "color": ["red", "pink", "violet", None]}))
    )
    assert unknown == other
    assert len({known, unknown, missing}) == 3


def test_a_setting_of_a_type_that_has_none():
    with pytest.raises(PerceiversError, match=r"column 'x': .*unit"):
        make_column("x", {"type": "tests.tables.test_bad_input:Plain", "unit": 3})
    assert make_column("x", "tests.tables.test_bad_input:Plain").config == {}


class Plain(Column):
    """A type without a constructor of its own."""

    kind = "plain"

    def read(self, cell, root):
        return cell

    def blank(self, is_target=False):
        return ""

    def input_adapter(self, channels):
        raise NotImplementedError
