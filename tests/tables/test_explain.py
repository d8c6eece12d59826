"""Explanations of models of tables, and their report."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from perceivers.data.splits import Part
from perceivers.data.tables import Table
from perceivers.tables.columns import Array, Categories, Category, Number, Series, Text
from perceivers.tables.data import all_rows
from perceivers.tables.explain import explain, label_quarters, measure_rows
from perceivers.tables.model import TableModel, encode_rows
from perceivers.tables.report import write_report
from perceivers.tables.rows import TableSamples
from perceivers.tables.training import RowLearner


@pytest.fixture(scope="module")
def trained():
    """A model of y = 2 x, beside noise and a text, trained for a second."""
    random = np.random.default_rng(0)
    x, noise = random.normal(size=200), random.normal(size=200)
    columns = {
        "x": x.tolist(),
        "noise": noise.tolist(),
        "group": ["a <script>alert(1)</script>", "b"] * 100,
        "text": [*["<b>loud</b> words"] * 4, None] * 40,
        "y": (2 * x).tolist(),
    }
    rows = all_rows(Table("made", columns, "row", range(200)), Path())
    inputs = {"x": Number(), "noise": Number(), "group": Category(), "text": Text(hashes=256, width=8)}
    inputs = {name: rows.learn(name, column) for name, column in inputs.items()}
    torch.manual_seed(0)
    model = TableModel(inputs, {"y": rows.learn("y", Number())}, 4, 16, 1, heads=2, qk_channels=16)
    learner, samples = RowLearner(model), TableSamples(rows, model.input_columns, model.output_columns, hide=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for epoch in range(50):
        for batch in samples.loader(50, seed=epoch):
            optimizer.zero_grad()
            learner.loss(batch).backward()
            optimizer.step()
    return model.eval(), rows


def test_a_column_that_decides_is_worth_more_than_noise(trained):
    model, rows = trained
    found = explain(model, rows, Part("row", 200, 200), 4)
    whole = found.metrics["y"]["rmse"]
    assert whole < 0.6
    assert found.worth["x"]["y"]["rmse"] > 3 * whole
    assert abs(found.worth["noise"]["y"]["rmse"] - whole) < 0.3 * whole
    losses = [view.loss for view in found.views]
    assert losses == sorted(losses)
    assert losses[0] == found.losses.min()
    assert losses[-1] == found.losses.max()


def test_metrics_and_those_of_groups_are_those_of_their_rows(trained):
    model, rows = trained
    found = explain(model, rows, Part("row", 200, 200), 1)
    guess, truth = found.answers["y"]
    error = (guess - truth).double()
    assert found.metrics["y"]["rmse"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-5)
    count, metrics = found.groups["group"]["b"]
    assert count == 100
    assert metrics["y"]["mae"] == pytest.approx(error[1::2].abs().mean().item(), rel=1e-5)
    assert [count for count, _ in found.groups["x"].values()] == [50] * 4


def test_quarters():
    assert label_quarters([1.0, 2.0, 3.0, 4.0, None])[::2] == ["1 to 1.75", "2.5 to 3.25", "missing"]
    assert label_quarters([7.0, 7.0]) == ["7 to 7"] * 2


def test_attention_is_split_by_input_and_sums_to_one(trained):
    model, rows = trained
    with_text = rows.subset([row for row in range(200) if row % 5 < 4])
    view = explain(model, with_text, Part("row", 160, 200), 1).views[0]
    assert sum(view.shares.values()) == pytest.approx(1, abs=1e-5)
    assert {name: len(weight) for name, weight in view.weights.items()} == {"x": 1, "noise": 1, "group": 1, "text": 10}
    samples = TableSamples(with_text.subset([view.row]), model.input_columns, model.output_columns)
    batch = next(iter(samples.loader(1)))
    attention = model.encoder.cross_attentions[0].attention
    seen = []
    hook = attention.dropout.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        encode_rows(model, batch)
    hook.remove()
    torch.testing.assert_close(torch.cat(list(view.weights.values())), seen[0].mean((0, 1, 2)))


def test_masking_does_not_read_the_cells(trained):
    model, rows = trained
    columns = rows.table.columns | {"x": rows.table.columns["noise"]}
    other = all_rows(Table("made", columns, "row", range(200)), Path())
    with torch.no_grad():
        first, second = (measure_rows(model, part, masked="x")[0]["y"] for part in (rows, other))
    assert first == second


def test_the_report_is_one_file_in_which_cells_are_text(trained, tmp_path):
    model, rows = trained
    write_report(tmp_path / "report.html", model, rows, explain(model, rows, Part("row", 200, 200), 30))
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert not re.search(r"(?:src|href)=['\"]?(?!data:)", text)
    assert "http" not in text
    assert "<span class=quiet>missing</span>" in text
    assert text.count("class=card>") == 30
    assert "200 of 200 rows of made" in text


def test_drawings():
    root = Path()
    assert Number().draw("1234567.5", root) == "1,234,568"
    assert Categories(["a"], ",").draw("a,<i>", root).count("class=chip") == 2
    text = Text(length=3).draw("One <two>", root, torch.tensor([0.5, 0.25, 0.25, 0.0, 0.0]))
    assert text.startswith("<b class=word style='--w:1.00'>one</b>")
    assert "&lt;" in text
    line = Series(length=4, patch=2).draw([0, 1, 2, 3], root, torch.tensor([0.1, 0.4]))
    assert line.count("<rect") == 2
    assert "rgb(var(--full) / 0.25)" in line
    assert Array(shape=[2, 3, 4]).draw(np.zeros((2, 3, 4)).tolist(), root) == "array of 2 x 3 x 4"
    assert "data:image/png" in Array(shape=[2, 2]).draw([[0, 1], [2, 3]], root)
