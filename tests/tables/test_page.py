"""The commands and programs of docs/tables.md."""

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perceivers.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
ROOMS = ("frontal", "kitchen", "bedroom", "bathroom")


def write_houses(folder):
    """Tables of houses, whose price depends on their area and on the brightness of a picture."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for name, count in (("train", 60), ("test", 20)):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*ROOMS, "bedrooms", "bathrooms", "area", "zipcode", "price"])
            for index in range(count):
                paths = [f"images/{name}_{index}_{room}.png" for room in ROOMS]
                brightness = random.integers(0, 255)
                for path in paths:
                    Image.new("RGB", (24, 24), (int(brightness),) * 3).save(folder / path)
                area = int(random.integers(500, 5000))
                rows.writerow(
                    [*paths, index % 5 + 1, index % 3 + 1, area, 85255 + index % 4, 100 * area + 500 * brightness]
                )


def write_series(path):
    """Two series, one of them a wave."""
    with path.open("w") as file:
        file.write("date,wave,line\n")
        for hour in range(400):
            file.write(f"2024-01-{1 + hour // 24:02d} {hour % 24:02d}:00,{np.sin(hour / 4):.4f},{hour}\n")


def test_every_command_of_the_page_runs(tmp_path, monkeypatch, capsys):
    """In their order, on small tables of the same columns, and with the files that the page shows."""
    monkeypatch.chdir(tmp_path)
    write_houses(Path("houses"))
    write_series(Path("weather.csv"))
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S):
        Path(re.match(r"# (\S+)\n", text)[1]).write_text(text)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
    assert len(commands) >= 9
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "perceivers"
        if arguments[0] == "fit" and "houses/train.csv" in arguments:
            arguments += ["--trainer.max_epochs=4"]
        main(arguments)
    shown = re.search(r"```\n(houses/train.csv: .*?)```", PAGE, re.S)[1].splitlines()[1:]
    printed = capsys.readouterr().out
    for line in shown:
        assert line.split()[:3] in [other.split()[:3] for other in printed.splitlines()], line
    rows = list(csv.DictReader(Path("predictions.csv").read_text().splitlines()))
    assert len(rows) == 20
    assert {"price", "price_predicted", "error"} <= rows[0].keys()
    forecast = list(csv.DictReader(Path("forecast.csv").read_text().splitlines()))
    assert [row["series"] for row in forecast] == ["wave", "line"]
    assert len(json.loads(forecast[0]["future_predicted"])) == 12
    metrics = json.loads(Path("runs/two_outputs/metrics.json").read_text())
    assert {"val_price_mape", "val_bedrooms_rmse"} <= metrics.keys() or "val_price_rmse" in metrics
    folds = json.loads(Path("runs/folds/comparison.json").read_text())["folds"]["price"]
    assert {"perceiver", "mean", "gradient boosting"} == folds.keys()
    assert "<html" in Path("report.html").read_text()


def test_the_notebook_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = next(text for text in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "fit_table" in text)
    names = {}
    exec(program, names)
    found = names["model"].predict(names["frame"])
    assert list(found.columns) == ["weight", "weight_predicted"]
    assert (found["weight"] - found["weight_predicted"]).abs().mean() < 0.3 * found["weight"].std()


@pytest.fixture
def my_types(tmp_path, monkeypatch):
    """The type of the page, in a module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    program = next(text for text in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "my_types.py" in text)
    Path("my_types.py").write_text(program)
    yield
    sys.modules.pop("my_types", None)


def test_the_type_of_the_page_has_the_whole_tool_chain(my_types, capsys):
    """It learns that one angle is the other plus 90 degrees, across 360."""
    random = np.random.default_rng(0)
    wind = random.integers(0, 360, 400)
    lines = ["wind,sail", *(f"{angle},{(angle + 90) % 360}" for angle in wind), ",90", "north,90"]
    Path("winds.csv").write_text("\n".join(lines[:401]) + "\n")
    Path("new.csv").write_text("wind\n350\nnorth\n")
    config = """
        experiment: table
        data: {path: winds.csv, hide: 0.0}
        inputs: {wind: "my_types:Angle"}
        outputs: {sail: "my_types:Angle"}
        trainer: {max_epochs: 60}
        training: {output: runs/winds}
    """
    Path("winds.yaml").write_text(config)
    main(["fit", "winds.yaml"])
    assert json.loads(Path("runs/winds/metrics.json").read_text())["val_degrees"] < 10
    main(["--trust", "my_types", "evaluate", "runs/winds/model", "--data", "winds.csv"])
    assert "400 of 400 rows: degrees" in capsys.readouterr().out
    main(["--trust", "my_types", "predict", "runs/winds/model", "new.csv", "--out", "new_sails.csv"])
    first, second = csv.DictReader(Path("new_sails.csv").read_text().splitlines())
    assert abs((float(first["sail_predicted"]) - 80 + 180) % 360 - 180) < 15
    assert "'north' is not an angle in degrees" in second["error"]
