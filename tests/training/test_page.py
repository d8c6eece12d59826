"""The commands of docs/training.md."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("peft")
pytest.importorskip("optuna")
from PIL import Image
from sklearn.datasets import load_digits

from perceivers.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()


def test_every_command_of_the_page_runs(tmp_path, monkeypatch, capsys):
    """In their order, with a smaller model of the digits, a folder of pictures, and the files that the page shows."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((ROOT / "configs" / "image_classification" / "digits.yaml").read_text())
    config["model"] |= {"latents": 4, "channels": 16, "depth": 1, "heads": 1, "query_channels": 16, "bands": 2}
    small = Path("configs/image_classification/digits.yaml")  # also the config of the page's sweep
    small.parent.mkdir(parents=True)
    small.write_text(yaml.safe_dump(config))
    Path("pictures").mkdir()
    for index, image in enumerate(load_digits().images[:20]):
        Image.fromarray((image * 15.9).astype("uint8")).save(f"pictures/{index:02d}.png")
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S):
        name = re.match(r"# (\S+)\n", text)[1]
        Path(name).write_text(text)
    commands = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
    assert len(commands) > 15
    for command in commands:
        program, *arguments = shlex.split(command.replace("fit digits ", f"fit {small} "))
        if program == "torchrun":
            run = [sys.executable, "-m", "torch.distributed.run", *arguments]
            done = subprocess.run(run, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
        else:
            assert program == "perceivers"
            main(arguments)
    for name in ("base", "tuned", "head", "larger", "lora", "steps", "sgd", "stopping", "auto", "sharded"):
        assert {"model", "best", "metrics.json"} <= {path.name for path in (tmp_path / "runs" / name).iterdir()}, name
    assert len(Path("predictions.csv").read_text().splitlines()) == 21
    output = capsys.readouterr().out
    assert "599 of 1,797 images (test)" in output
    assert "1,198 of 1,797 images (train)" in output
    assert "Nothing to do: the run in runs/auto is finished" in output
