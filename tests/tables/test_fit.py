"""Runs of tables: their folders, folds, several outputs, and rows that cannot be predicted."""

import json
from pathlib import Path

import numpy as np
import pytest

from perceivers.cli import main
from perceivers.tables.fit import fit_table, guess_config, next_folder
from tests.support.cli import fails

TINY = ("--model.latents=2", "--model.channels=8", "--model.heads=2", "--model.depth=1", "--trainer.max_epochs=2")


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of 60 rows, in which a category has a single example."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    lines = ["size,color,label"]
    for index in range(60):
        size = random.normal()
        lines.append(f"{size:.4f},{'red' if index % 2 else 'blue'},{'large' if size > 0 else 'small'}")
    lines[-1] = "0.5,red,odd"
    Path("things.csv").write_text("\n".join(lines) + "\n")
    return Path("things.csv")


def test_a_run_writes_its_config_model_and_comparison(table, capsys):
    main(["fit", "things.csv", "--predict", "label", *TINY])
    out = capsys.readouterr().out
    assert "runs/things/table.yaml" in out
    assert "gradient boosting" in out
    found = json.loads(Path("runs/things/comparison.json").read_text())["validation"]["label"]
    assert list(found) == ["perceiver", "frequencies", "gradient boosting"]
    metrics = json.loads(Path("runs/things/metrics.json").read_text())
    assert metrics["val_accuracy"] == pytest.approx(found["perceiver"]["accuracy"])
    assert "holds a run already" in fails(capsys, "fit", "things.csv", "--predict", "label")
    main(["fit", "runs/things/table.yaml", "--training.resume=auto", *TINY])
    assert "Nothing to do" in capsys.readouterr().out


def test_rows_whose_category_training_did_not_have_are_left_out_and_counted(table, capsys):
    text = table.read_text().replace("odd", "small")
    Path("train.csv").write_text(text)
    main(["fit", "train.csv", "--predict", "label", "--training.output=runs/a", *TINY])
    capsys.readouterr()
    main(["evaluate", "runs/a/model", "--data", "things.csv"])
    output = capsys.readouterr()
    assert "59 of 60 rows: accuracy" in output.out
    assert "Left out of things.csv: 1 of 60 rows, such as line 61 of things.csv, column 'label': 'odd' is" in output.err


def test_folds_hold_out_each_row_once_and_are_averaged(table, capsys):
    main(["fit", "things.csv", "--predict", "size", "--data.folds=3", *TINY])
    runs = [json.loads(Path(f"runs/things/fold_{fold}/metrics.json").read_text()) for fold in range(3)]
    mean = json.loads(Path("runs/things/metrics.json").read_text())
    assert mean["val_rmse"] == pytest.approx(np.mean([run["val_rmse"] for run in runs]))
    error = np.std([run["val_rmse"] for run in runs], ddof=1) / np.sqrt(3)
    assert mean["val_rmse_error"] == pytest.approx(error)
    assert "mean of 3 folds ± standard error" in capsys.readouterr().out


def test_two_outputs_have_weights_and_metrics_of_their_own(table):
    config = guess_config(table, {"predict": "size,label"})
    assert config["inputs"] == {"color": "category"}
    assert config["outputs"] == {"size": "number", "label": "category"}
    model = fit_table(
        table, ["size", "label"], types={"size": {"type": "number", "weight": 3.0}}, trainer={"max_epochs": 1}
    )
    assert list(model.output_columns) == ["size", "label"]
    metrics = json.loads(Path("runs/table/metrics.json").read_text())
    assert {"val_size_rmse", "val_label_accuracy", "val_loss"} <= metrics.keys()
    assert next_folder(Path("runs/table")) == Path("runs/table_2")


def test_masked_bytes_of_a_text_are_filled_in(tmp_path, monkeypatch):
    """A color decides the word of a text: after a short training, its hidden letters are found."""
    monkeypatch.chdir(tmp_path)
    rows = [("red", "fire"), ("blue", "lake")] * 60
    Path("words.csv").write_text("color,word\n" + "".join(f"{color},{word}\n" for color, word in rows))
    config = """
        experiment: table
        data: {path: words.csv, hide: 0.0}
        inputs: {color: category}
        outputs: {word: {type: masked_text, fraction: 0.5}}
        trainer: {max_epochs: 40}
        training: {output: runs/words, batch_size: 32}
    """
    Path("words.yaml").write_text(config)
    main(["fit", "words.yaml"])
    Path("new.csv").write_text("color,word\nred,[MASK*4]\nblue,l[MASK]ke\n")
    main(["predict", "runs/words/model", "new.csv", "--out", "filled.csv"])
    lines = Path("filled.csv").read_text().splitlines()
    assert [line.split(",")[2] for line in lines[1:]] == ["fire", "lake"]
