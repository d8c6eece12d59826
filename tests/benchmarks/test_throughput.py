"""The measurement of whole training runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import throughput

FIGURES = {
    "machine": {"processor": "Chip", "cores": 2, "torch": "2.13.0"},
    "before": "abc of 2026-01-01",
    "start": {side: {"help": 0.1, "first_update": 5.0, "class": 1.5} for side in ("before", "after")},
    "runs": {
        "digits": {
            "before": {"updates_per_second": 50.0, "loss": 0.5},
            "after": {"updates_per_second": 70.0, "loss": 0.25},
        }
    },
}


def test_the_page_shows_the_ratio():
    lines = throughput.render(FIGURES).splitlines()
    assert lines[0] == "Chip, 2 cores, torch 2.13.0; before: abc of 2026-01-01."
    assert "| 1,000 of digits | 50.0 | 70.0 | **1.40** | 0.500 | 0.250 |" in lines
    assert "| `perceivers --help` | 0.10 | 0.10 |" in lines


def test_versions_are_measured_in_turn():
    calls = []

    def measure(version):
        calls.append(version)
        return {"updates_per_second": float(len(calls))}

    found = throughput.compare(measure, Path("old"), rounds=3)
    assert calls == [Path("old"), throughput.ROOT] * 3
    assert found == {"before": {"updates_per_second": 3.0}, "after": {"updates_per_second": 4.0}}


def test_a_run_is_timed_after_its_first_updates(tmp_path):
    arguments = ["configs/image_classification/digits.yaml", "--trainer.max_steps=24", "--trainer.limit_val_batches=0"]
    command = [sys.executable, throughput.STOPWATCH, *arguments, f"--training.output={tmp_path}"]
    done = subprocess.run(command, cwd=throughput.ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["updates_per_second"] > 0
    assert found["loss"] == pytest.approx(2.3, abs=0.3)
