"""Several processes train like one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support import flow
from tests.support.experiments import DATA
from tests.support.processes import EXPERIMENTS, train

STRATEGIES = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains each experiment in this process, and in two, by each strategy."""
    folder = tmp_path_factory.mktemp("runs")
    for name in EXPERIMENTS:
        (folder / name).mkdir()
        DATA.get(name, Path.exists)(folder / name)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "tests.support.processes"]
    done = subprocess.run(
        [*command, str(folder), *STRATEGIES],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    with pytest.MonkeyPatch.context() as patch:
        flow.use_few_textures(patch)
        for name in EXPERIMENTS:
            train(folder, folder / "one", name)
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_two_processes_train_like_one(trained, experiment, strategy):
    """But for rounding, as gradients are added up in another order; SGD shows their size."""
    one, two = (load_file(trained / name / experiment / "model" / "model.safetensors") for name in ("one", strategy))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=2e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
