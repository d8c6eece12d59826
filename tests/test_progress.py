"""How far a command has come: lines and bars, --quiet, and --json, which leaves the output to the answer."""

import inspect
import json
import re
import sys

import pytest

from perceivers import plugins, progress
from perceivers.cli import find_command, main
from perceivers.progress import Progress, Shown, show_progress, track
from perceivers.training.experiment import Experiment
from perceivers.training.prediction import find_prediction
from tests.support.models import classifier

TINY = ["--model.latents=4", "--model.channels=8", "--model.depth=1", "--model.heads=1", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def no_lines_of_progress():
    """Replaces the fixture of all other tests: these lines are what is tested."""


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def walk(clock, steps, seconds=1.0, unit="frames"):
    for step in track(range(steps), unit):
        clock[0] += seconds
        yield step


def test_lines_with_the_time_left(clock, capsys):
    with show_progress(loops=True):
        assert list(walk(clock, 30)) == list(range(30))
    lines = ["frames: 2 of 30, 00:28 left", "frames: 12 of 30, 00:18 left", "frames: 22 of 30, 00:08 left"]
    assert capsys.readouterr().err.splitlines() == lines


def test_lines_after_an_interruption_and_without_a_total(clock, capsys):
    with show_progress(loops=True):
        rows = Progress("rows", 100, done=90)
        clock[0] += 4
        rows.update(2)
        rows.close()
        for _ in track(iter(range(3)), "documents"):
            clock[0] += 1
    assert capsys.readouterr().err.splitlines() == ["rows: 92 of 100, 00:16 left", "documents: 2"]


def test_what_is_short_quiet_or_within_another_is_not_shown(clock, capsys):
    with show_progress(loops=True):
        list(walk(clock, 2, 0.5))
    list(walk(clock, 30))  # without a command
    with show_progress(loops=False, runs=False):
        list(walk(clock, 30))
    assert capsys.readouterr().err == ""
    with show_progress(loops=True):
        for _ in track(range(2), "pairs"):
            list(walk(clock, 10, unit="tiles"))
    assert capsys.readouterr().err == "pairs: 1 of 2, 00:10 left\npairs: 2 of 2, 00:00 left\n"
    assert (Shown.loops, Shown.runs) == (False, True)


def test_an_error_ends_the_progress_of_its_loop(clock, capsys):
    with show_progress(loops=True):
        for _ in track(range(9), "broken"):
            break
        list(walk(clock, 2, 2))
    assert capsys.readouterr().err == "frames: 1 of 2, 00:02 left\n"


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with show_progress(loops=True), Progress("frames", 4) as frames:
        frames.bar.delay = 0
        frames.update(3)
        frames.bar.refresh()
    assert re.search(r"frames:  75%\|.* 3/4 \[\d\d:\d\d<\d\d:\d\d", capsys.readouterr().err)


NO_ANSWER = {"completion", "serve"}
"""Commands that print no answer: a script, and the address of a server."""


def test_every_command_answers_in_json():
    for name in set(plugins.find_entry_points("commands")) - NO_ANSWER - {"evaluate", "predict"}:
        assert "json" in inspect.signature(find_command(name)).parameters, name
    for name in plugins.find_entry_points("experiments"):
        evaluate = plugins.find_class("experiments", name, Experiment).evaluate
        assert evaluate is None or "json" in inspect.signature(evaluate).parameters, name


def test_predictions_answer_in_json(tmp_path, capsys):
    classifier(classes=10, image_size=8, mean=(0.3,), std=(0.4,)).save(tmp_path / "model")
    assert "json" in inspect.signature(find_prediction(str(tmp_path / "model"))).parameters
    command = ["predict", str(tmp_path / "model"), "digits", "--accelerator", "cpu", "--out", str(tmp_path / "d.csv")]
    main([*command, "--json", "--quiet"])
    assert json.loads(capsys.readouterr().out) == {"out": str(tmp_path / "d.csv"), "rows": 599, "errors": 0}


def test_a_run_answers_in_json_and_can_be_quiet(tmp_path, capsys):
    command = ["fit", "digits", "--trainer.max_epochs=2", "--trainer.val_check_interval=0.75", *TINY]
    main([*command, f"--training.output={tmp_path / 'loud'}", "--json"])
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer.pop("output") == str(tmp_path / "loud")
    assert answer == json.loads((tmp_path / "loud/metrics.json").read_text())
    assert re.search(r"^epoch 1/2  evaluated  \d\d:\d\d left  train_loss ", err, re.M)
    assert re.search(r"^epoch 2/2  evaluated  00:00 left  ", err, re.M)
    assert "epoch 3" not in err  # the last updates are evaluated after the last epoch
    main([*command, f"--training.output={tmp_path / 'quiet'}", "--quiet"])
    out, err = capsys.readouterr()
    assert "epoch" not in out + err
    assert "Trained. The model is in" in out


def test_a_loop_of_a_command_is_shown(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE", 0)
    monkeypatch.setattr("perceivers.presets.list_models", lambda: ["imagenet_fourier", "language_bytes"])
    main(["models"])
    assert re.search(r"^models: 1 of 2, \d\d:\d\d left$", capsys.readouterr().err, re.M)
    main(["--quiet", "models", "language_bytes"])
    assert capsys.readouterr().err == ""
