"""A type of column of a user's own: one class in a file beside the config, with the whole tool-chain."""

import csv
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import perceivers
from perceivers import plugins
from perceivers.cli import main
from perceivers.errors import PerceiversError
from perceivers.tables.columns import Column, Number, make_column
from perceivers.tables.predict import load_table_model

ANGLE = '''"""Angles, of which 0 and 360 degrees are the same."""

import math

import torch
from torchmetrics import MeanMetric

from perceivers import LearnedPositions
from perceivers.adapters import ArrayInput, ArrayOutput
from perceivers.tables.columns import Column
from perceivers.tables.columns.number import parse_number


class Angle(Column):
    """An angle in degrees, read and predicted as its sine and cosine."""

    kind = "angle"

    def read(self, cell, root):
        degrees = parse_number(cell)
        if degrees is None:
            raise self.refuse(cell, "an angle in degrees")
        return torch.tensor([[math.sin(math.radians(degrees)), math.cos(math.radians(degrees))]])

    def blank(self, is_target=False):
        return torch.zeros(1, 2)

    def input_adapter(self, channels):
        return ArrayInput(2, projection=channels)

    def output_adapter(self, name, channels):
        return ArrayOutput(2, LearnedPositions((1,), channels))

    def loss(self, predicted, target, points=None):
        return (predicted - target).square().mean((1, 2))

    def answer(self, predicted):
        sine, cosine = predicted[:, 0].double().unbind(-1)
        return torch.rad2deg(torch.atan2(sine, cosine)) % 360

    def metrics(self):
        return {"degrees": AngleError()}

    def fields(self, name):
        return {f"{name}_predicted": float}

    def write(self, answers):
        return [[angle] for angle in answers.tolist()]


class AngleError(MeanMetric):
    """The mean difference of angles in degrees, at most 180."""

    def update(self, angle, target):
        super().update(180 - ((angle - target).abs() - 180).abs())
'''

CONFIG = """experiment: table
data: {path: wind.csv, validation: 0.25}
inputs: {morning: "angles:Angle", speed: number}
outputs: {evening: "angles:Angle"}
model: {latents: 4, channels: 16, depth: 1, heads: 2}
optimization: {lr: 0.02}
trainer: {max_epochs: 12, accelerator: cpu, enable_progress_bar: false}
training: {batch_size: 16, output: runs/wind}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The type beside a config and a table, in which the wind turns by 90 degrees during the day."""
    root = tmp_path_factory.mktemp("wind")
    (root / "angles.py").write_text(ANGLE)
    (root / "wind.yaml").write_text(CONFIG)
    random = np.random.default_rng(0)
    with (root / "wind.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["morning", "speed", "evening"])
        for row in range(120):
            morning = random.uniform(0, 360)
            lines.writerow(["" if row == 5 else f"{morning:.1f}", row % 7, f"{(morning + 90) % 360:.1f}"])
    with pytest.MonkeyPatch.context() as patch:
        enter(root, patch)
        main(["fit", "wind.yaml"])
    return root


def enter(folder, patch):
    """Works in a folder as a new process would: nothing of it is imported or trusted yet."""
    patch.chdir(folder)
    patch.setattr(sys, "path", [*sys.path])
    patch.setattr(plugins, "trusted_packages", {"perceivers"})
    patch.delitem(sys.modules, "angles", raising=False)


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    enter(folder, monkeypatch)


def test_the_type_is_short():
    code = ANGLE.partition("class Angle(")[2].partition("class AngleError")[0]
    assert len(code.strip().splitlines()) <= 40


def test_the_type_is_found_by_its_import_path():
    plugins.add_import_folder(Path.cwd())
    column = make_column("x", "angles:Angle")
    assert column.answer(column.collate([column.read("-30", None)])).item() == pytest.approx(330)
    degrees = column.metrics()["degrees"]
    degrees.update(torch.tensor([350.0, 10.0]), torch.tensor([10.0, 170.0]))
    assert degrees.compute().item() == pytest.approx((20 + 160) / 2)
    for path, message in (
        ("angles:Angel", "has no 'Angel': did you mean 'Angle'"),
        ("angles:AngleError", "is the class AngleError, but a subclass of Column is expected"),
        ("angle:Angle", "there is no module 'angle'"),
    ):
        with pytest.raises(perceivers.PerceiversError, match=message):
            make_column("x", path)


def test_a_model_is_trained(folder):
    metrics = json.loads((folder / "runs/wind/metrics.json").read_text())
    assert metrics["val_degrees"] < 20  # 90 are those of chance
    comparison = json.loads((folder / "runs/wind/comparison.json").read_text())
    assert comparison["validation"]["evening"]["perceiver"]["degrees"] == pytest.approx(metrics["val_degrees"])
    config = json.loads((folder / "runs/wind/model/config.json").read_text())
    assert config["model"]["inputs"]["morning"] == {"class": "angles:Angle"}


def test_its_model_needs_trust(capsys):
    measured = ["evaluate", "runs/wind/model", "--data", "wind.csv"]
    with pytest.raises(SystemExit) as stop:
        main(measured)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "names the class 'angles:Angle', and 'angles' declares no entry point" in err
    assert err.count("\n") == 1
    main([*measured, "--trust", "angles"])
    found = re.search(r"120 rows: degrees (\d+\.\d+)", " ".join(capsys.readouterr().out.split()))
    assert float(found[1]) < 20


def test_predictions_are_those_that_are_evaluated(folder, capsys):
    main(["--trust", "angles", "predict", "runs/wind/model", "wind.csv", "--out", "predictions.csv"])
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["line", "evening", "evening_predicted", "error"]
    errors = [abs(math.remainder(float(row["evening_predicted"]) - float(row["evening"]), 360)) for row in rows]
    assert np.mean(errors) < 20
    capsys.readouterr()
    main(["--trust", "angles", "evaluate", "runs/wind/model", "--data", "wind.csv", "--json"])
    assert json.loads(capsys.readouterr().out)["degrees"] == pytest.approx(np.mean(errors), rel=1e-4)
    model = load_table_model(folder / "runs/wind/model")
    assert model.input_columns["morning"].kind == "angle"


def test_a_wrong_cell_names_its_row(folder, capsys):
    (folder / "wrong.csv").write_text("morning,speed\n10,1\nnorth,2\n")
    main(["--trust", "angles", "predict", "runs/wind/model", "wrong.csv", "--out", "wrong.out.csv"])
    text = (folder / "wrong.out.csv").read_text()
    assert "line 3 of wrong.csv, column 'morning': 'north' is not an angle in degrees." in text
    capsys.readouterr()


def test_a_type_without_a_loss_says_so():
    class Reading(Number):
        kind = "reading"
        loss, write = Column.loss, Column.write

    for call in (lambda: Reading().loss(None, None), lambda: Reading().write(None)):
        with pytest.raises(
            PerceiversError, match=r"'reading' cannot be predicted: its class defines no '(loss|write)'"
        ):
            call()
