"""Runs that are stopped by a signal save, say so, exit with its status, and end like runs that were not stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support.runs import differences, read_results

pytest.importorskip("sklearn")
CONFIG = """experiment: image_classification
model: {latents: 4, channels: 8, depth: 1, heads: 1, query_channels: 8, bands: 2, classes: 10, image_size: 8,
        mean: [0.5], std: [0.5], crop: 1.0}
data: {path: digits, validation_fraction: 0.3}
trainer: {max_epochs: 3, accelerator: cpu}
training: {batch_size: 32}
"""


def start(folder, output, *options):
    arguments = [f"--training.output={folder / output}", *options]
    command = [sys.executable, "-m", "perceivers", "fit", str(folder / "run.yaml"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def finish(run):
    out, err = run.communicate(timeout=120)
    assert "Traceback" not in err, err
    return run.returncode, out, err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signals")
    (folder / "run.yaml").write_text(CONFIG)
    return folder


@pytest.mark.parametrize(
    ("number", "to_group", "options"),
    [
        (signal.SIGTERM, True, ["--training.workers=2"]),
        (signal.SIGINT, True, ["--training.workers=1"]),
        (signal.SIGTERM, False, ["--trainer.devices=2"]),
        pytest.param(signal.SIGTERM, False, [], marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, ["--trainer.devices=2"], marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_ends_the_run_with_its_status(folder, tmp_path, number, to_group, options):
    (tmp_path / "run.yaml").write_text(CONFIG)
    run = start(tmp_path, "run", *options)
    while not (tmp_path / "run" / "config.json").is_file() and run.poll() is None:  # training has begun
        time.sleep(0.05)
    time.sleep(0.5)
    (os.killpg if to_group else os.kill)(run.pid, number)
    status, _, err = finish(run)
    assert status == 128 + number, err
    assert "everything is saved. Resume with:" in err
    status, _, err = finish(start(tmp_path, "run", *options, "--training.resume=true"))
    assert status == 0, err
    if not (folder / "whole").exists():
        assert finish(start(folder, "whole"))[0] == 0
    if "--trainer.devices=2" not in options:  # several processes add up in another order
        assert differences(read_results(tmp_path / "run"), read_results(folder / "whole")) == []
