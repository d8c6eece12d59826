"""Rows as samples of a model: missing cells, hidden cells, augmentation, and batches."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from perceivers import PerceiversError
from perceivers.data.loader import SampleIndex
from perceivers.tables import rows as module
from perceivers.tables.columns import Category, Date, Image, Number
from perceivers.tables.rows import Cells, TableSamples, open_root
from perceivers.tables.training import RowLearner
from tests.support.tables import as_rows, collate, learned, small_model, write_picture

NUMBERS = {f"n{place}": Number() for place in range(10)}


def samples_of(rows, inputs, outputs=None, **settings):
    return TableSamples(rows, inputs, {"y": Number()} if outputs is None else outputs, **settings)


def numbers(count=50):
    return as_rows({name: range(count) for name in (*NUMBERS, "y")})


def test_a_batch_says_what_is_missing():
    rows = as_rows({"a": ["1", None, 3, ""], "b": ["x", "y", "?", "z"], "y": [None, 5, 6, "nan"]})
    inputs = {"a": Number(mean=2.0, std=0.5), "b": Category(["x", "y"])}
    samples = samples_of(rows, inputs)
    batch = samples.collate([samples[SampleIndex(row, 0)] for row in (3, 0, 2)])
    assert batch["row"].tolist() == [3, 0, 2]
    assert batch["problems"] == []
    assert {name: hidden.tolist() for name, hidden in batch["hidden"].items()} == {
        "a": [True, False, False], "b": [False, False, True],
    }  # fmt: skip
    assert batch["inputs"]["a"][1:].tolist() == [-2, 2]
    assert batch["inputs"]["b"].tolist() == [0, 1, 0]
    assert batch["known"]["y"].tolist() == [False, False, True]
    assert batch["targets"]["y"][2] == 6


def test_predictions_need_no_targets():
    samples = samples_of(as_rows({"a": [1, 2]}), {"a": Number()}, has_targets=False)
    assert set(samples.collate([samples[SampleIndex(0, 0)]])) == {"inputs", "hidden", "row", "problems"}


def test_training_hides_cells_at_random():
    samples = samples_of(numbers(), NUMBERS, hide=0.3)
    batches = [samples.collate([samples[SampleIndex(row, 50 * seed + row)] for row in range(50)]) for seed in range(4)]
    hidden = torch.stack([torch.stack(list(batch["hidden"].values())) for batch in batches]).float()
    assert hidden.mean().item() == pytest.approx(0.3, abs=0.03)
    assert (hidden.mean((0, 2)) > 0.1).all()  # every column
    assert not torch.equal(hidden[0], hidden[1])
    assert all(batch["known"]["y"].all() for batch in batches)
    again = samples.collate([samples[SampleIndex(row, row)] for row in range(50)])
    assert all(torch.equal(again["hidden"][name], batches[0]["hidden"][name]) for name in NUMBERS)


@pytest.mark.parametrize("hide", [None, 0.0])
def test_nothing_is_hidden_otherwise(hide):
    samples = samples_of(numbers(), NUMBERS, hide=hide)
    batch = samples.collate([samples[SampleIndex(row, row)] for row in range(50)])
    assert not any(hidden.any() for hidden in batch["hidden"].values())


def test_a_continued_column_hides_only_parts_of_its_own():
    """The model could not be asked for bytes of a text that it does not even know the length of."""
    column = learned("masked_text", ["short", "a much longer text than that"])
    rows = as_rows({"x": ["short", "a much longer text than that"], "n": [1, 2]})
    model = small_model({"n": learned("number", [1, 2])}, {"x": column})
    learner = RowLearner(model)
    for seed in range(20):
        batch = collate(model, rows, hide=0.9, seed=2 * seed)
        assert not batch["hidden"]["x"].any()
        assert learner.loss(batch).isfinite()


def test_an_evaluation_hides_the_same_bytes_each_time():
    column = learned("masked_text", ["some text that is long enough"])
    rows = as_rows({"x": ["some text that is long enough"] * 2})
    samples = samples_of(rows, {"x": column}, {"x": column})
    first, again, other = (samples[SampleIndex(row, seed)]["inputs"]["x"] for row, seed in ((0, 1), (0, 2), (1, 1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    training = samples_of(rows, {"x": column}, {"x": column}, hide=0.0)
    first, other = (training[SampleIndex(0, seed)]["inputs"]["x"] for seed in (1, 2))
    assert not torch.equal(first, other)


@pytest.fixture
def picture(tmp_path):
    write_picture(tmp_path / "x.png", 0)
    return as_rows({"x": ["x.png"], "y": [1], "array": [[1, 2]]}, tmp_path)


def views(rows, outputs=None, **settings):
    samples = samples_of(rows, {"x": Image(size=8, patch=4)}, outputs, **settings)
    return [samples[SampleIndex(0, seed)]["inputs"]["x"] for seed in range(8)]


def is_constant(values):
    return all(torch.equal(value, values[0]) for value in values)


def test_only_training_augments(picture):
    assert not is_constant(views(picture, hide=0.0))
    assert is_constant(views(picture))
    assert torch.equal(views(picture, hide=0.0)[3], views(picture, hide=0.0)[3])


@pytest.mark.parametrize("output", [Image(size=8, patch=4), learned("array", [[1, 2], [3, 4]])])
def test_inputs_stay_as_they_are_where_places_are_predicted(picture, output):
    """A mirrored picture would not fit the one to predict."""
    target = {"target" if isinstance(output, Image) else "array": output}
    rows = as_rows(picture.table.columns | {"target": ["x.png"]}, picture.root)
    found = views(rows, target, hide=0.0)
    assert is_constant(found)
    assert torch.equal(found[0], views(rows)[0])


class Counted(Number):
    """A number that counts how often it is read."""

    def read(self, cell, root):
        self.count = getattr(self, "count", 0) + 1
        return Tensor([super().read(cell, root)])

    def collate(self, values):
        return torch.cat(list(values))


def test_values_are_kept_in_memory(monkeypatch):
    for limit, kept in ((2**30, 50), (8 * 30, 30), (0, 0)):  # the values of a row have 8 bytes
        monkeypatch.setattr(module, "CACHE_BYTES", limit)
        column, target = Counted(), Counted()
        samples = samples_of(numbers(), {"n0": column}, {"y": target})
        values = [[samples[SampleIndex(row, 0)]["inputs"]["n0"].item() for row in range(50)] for _ in range(2)]
        assert values == [list(range(50))] * 2
        assert column.count == target.count == 100 - kept


def test_rows_that_cannot_be_read_are_left_out():
    rows = as_rows({"a": [1, "x", 3], "y": [1, 2, 3]})
    samples = samples_of(rows, {"a": Number()})
    found = [samples[SampleIndex(row, 0)] for row in range(3)]
    batch = samples.collate(found)
    assert batch["problems"] == ["row 1 of the table, column 'a': 'x' is not a number."]
    assert batch["row"].tolist() == [0, 2]
    assert batch["inputs"]["a"].tolist() == [1, 3]
    assert samples.collate(found[1:2]) == {"problems": batch["problems"]}


def test_targets_that_training_did_not_have_are_a_problem():
    rows = as_rows({"a": [1, 2], "y": ["x", "w"]})
    samples = samples_of(rows, {"a": Number()}, {"y": Category(["x", "y"])})
    problem = samples[SampleIndex(1, 0)]["problem"]
    assert problem.startswith("row 1 of the table, column 'y': 'w' is a category that training did not have: ")
    without = samples_of(rows, {"a": Number()}, {"y": Category(["x", "y"])}, has_targets=False)
    assert "problem" not in without[SampleIndex(1, 0)]


@pytest.mark.parametrize("wrong", [0, 3, 5])
@pytest.mark.parametrize(
    ("column", "cells", "cell", "message"),
    [
        (Number(), [1, 2, 3, 4, 5, 6], "x", "'x' is not a number."),
        (Date(), ["2024-01-31"] * 6, "x", "'x' is not a date of the form 2026-01-31 23:59:59."),
        (Date(format="%Y"), ["2024"] * 6, "2024-01-31", "'2024-01-31' is not a date of the form %Y."),
    ],
)
def test_the_cell_that_cannot_be_learned_from_is_named(column, cells, cell, message, wrong):
    cells = [*cells[:wrong], cell, *cells[wrong + 1 :]]
    with pytest.raises(PerceiversError) as stop:
        as_rows({"x": cells}).learn("x", column)
    assert str(stop.value) == f"row {wrong} of the table, column 'x': {message}"


def test_what_is_wrong_with_all_cells_names_the_column():
    with pytest.raises(PerceiversError) as stop:
        as_rows({"x": [1, -2, 3]}).learn("x", Number(scale="log"))
    assert str(stop.value) == "column 'x' of the table: it has -2, but scale: log needs positive numbers."


def test_cells_can_be_read_several_times():
    cells = Cells(as_rows({"x": ["a", None, "b", ""]}), "x")
    places = []
    for _ in range(2):
        for cell in cells:
            places.append((cell, cells.row))
        assert cells.row is None
    assert places == [("a", 0), ("b", 2)] * 2


def test_some_of_the_rows():
    rows = as_rows({"x": list("abcdef")}).subset([5, 3, 1]).subset([2, 0])
    assert list(rows.cells("x")) == ["b", "f"]
    assert rows.describe("x", 1) == "row 5 of the table, column 'x'"


def test_the_folder_of_paths(tmp_path):
    table = tmp_path / "x.csv"
    table.touch()
    assert open_root(str(table), None) == tmp_path
    assert open_root(str(tmp_path), None) == tmp_path
    assert open_root(str(table), str(tmp_path.parent)) == tmp_path.parent
    assert open_root("x.csv", None) == Path()
    with pytest.raises(PerceiversError, match=r"data\.root = .* is not a folder"):
        open_root(str(table), str(table))
