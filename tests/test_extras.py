"""Each extra alone can do what its name says, where nothing else is installed."""

import numpy as np
import pytest
import torch
from PIL import Image

from perceivers.data.video_writer import write_video
from perceivers.extras import MODULES
from tests.support.causal import causal
from tests.support.experiments import DATA
from tests.support.extras import make_environment, run_in
from tests.support.models import classifier, coder, hearer, labels, language, optical

RUN = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--training.batch_size=8"]
SMALL = ["--model.latents=4", "--model.channels=16", "--model.depth=1", "--model.heads=2"]
BYTES = [*RUN, *SMALL, "--data.path=text.txt", "--data.steps_per_epoch=3", "--training.output=bytes"]
GRID = "config: own.yaml\nfields: {model.depth: [1, 2]}\nsampler: grid\noutput: sweep\n"
OWN = "experiment: causal_language\nmodel: {latents: 4, length: 24, channels: 16, heads: 2}\n"

COMMANDS = {
    "": [["models", "language_bytes"], ["configs"], ["fill-mask", "text", "a [MASK] b"]],
    "train": [
        ["fit", "language/perceiver_ar_mini", *BYTES, "--model.length=24"],
        ["evaluate", "bytes/model", "--data", "text.txt"],
        ["generate", "bytes/model", "yes", "--length", "3"],
    ],
    "text": [
        ["classify-text", "topics", "a text"],
        ["attention", "text", "a text", "--out", "attention.html"],
        ["train-tokenizer", "text.txt", "--out", "words.model", "--vocabulary", "285"],
    ],
    "train,text": [
        ["fit", "language/classify", "--data.path=reviews.csv", *RUN, *SMALL, "--training.output=reviews"],
        ["predict", "reviews/model", "reviews.csv", "--out", "reviews.parquet"],
        ["evaluate", "reviews/model", "--data", "reviews.csv"],
    ],
    "vision": [
        ["classify-image", "images", "a.png"],
        ["flow", "flow", "a.png", "b.png", "--out", "flow.flo", "--picture", "flow.png"],
        ["classify-clip", "clips", "clip.mp4"],
        ["autoencode", "coder", "clip.mp4", "--out", "coded.mp4"],
    ],
    "export": [["export", "images", "images.onnx", "--to", "onnx"]],
    "demo": [["demo", "--epochs", "1"], ["evaluate", "runs/demo/model", "--data", "digits"]],
    "tables": [
        ["fit", "things.csv", "--predict", "color", *RUN, "--training.output=things"],
        ["predict", "things/model", "things.csv", "--out", "things.parquet"],
        ["explain", "things/model", "--data", "things.csv", "--out", "things.html"],
    ],
    "train,starcraft": [
        [
            "fit",
            "starcraft/perceiver",
            *RUN,
            "--data.path=replays",
            "--data.split=replays/split.json",
            "--training.output=policy",
        ],
        ["evaluate", "policy/model", "--data", "replays", "--list", "replays/split.json"],
    ],
    "sweep": [["sweep", "sweep.yaml", "--data.path=text.txt", "--data.steps_per_epoch=3", *RUN]],
    "lora": [
        [
            "fit",
            "own.yaml",
            *RUN,
            "--data.path=text.txt",
            "--data.steps_per_epoch=3",
            "--model.init=causal",
            "--model.lora.rank=2",
        ]
    ],
}
"""Commands that work where only these extras are installed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and data for the commands."""
    folder = tmp_path_factory.mktemp("extras")
    models = {"text": language(), "topics": labels(), "flow": optical(), "images": classifier(), "clips": hearer()}
    for name, model in (models | {"coder": coder(), "causal": causal().float()}).items():
        model.save(folder / name)
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(random.integers(256, size=(30, 40, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    frames = [torch.randint(256, (3, 32, 32), dtype=torch.uint8) for _ in range(10)]
    write_video(folder / "clip.mp4", frames, 25, 0.1 * torch.randn(3200), 8000)
    for experiment in ("causal_language", "text_classification", "table"):
        DATA[experiment](folder)
    (folder / "replays").mkdir()
    DATA["behavioral_cloning"](folder / "replays")
    (folder / "own.yaml").write_text(OWN)
    (folder / "sweep.yaml").write_text(GRID)
    return folder


@pytest.mark.parametrize("extras", COMMANDS, ids=lambda extras: extras or "none")
def test_an_extra_holds(extras, folder, tmp_path):
    environment = make_environment(tmp_path, extras.split(",") if extras else [])
    done = run_in(
        environment, f"from perceivers.cli import main\nfor command in {COMMANDS[extras]}: main(command)", folder
    )
    assert done.returncode == 0, done.stderr


def test_serving_holds(folder, tmp_path):
    """Its modules are imported; no server is started."""
    code = "from perceivers.serving import app, server\nfrom perceivers.cli import main\nmain(['serve', '--help'])"
    done = run_in(make_environment(tmp_path, ["serve"]), code, folder)
    assert done.returncode == 0, done.stderr


def test_every_extra_is_tried():
    assert {extra for extras in COMMANDS for extra in extras.split(",") if extra} | {"serve"} == {*MODULES}


def test_a_command_names_the_extra_that_it_needs(folder, tmp_path):
    environment = make_environment(tmp_path, [])
    for command, extra in ((["demo"], "demo"), (["fit", "things.csv", "--predict", "color"], "tables")):
        done = run_in(environment, f"from perceivers.cli import main\nmain({command})", folder)
        assert done.returncode == 2
        assert done.stderr == (
            f"perceivers: 'lightning' is not installed; it comes with the extra {extra!r}: "
            f"pip install 'perceivers[{extra}]'\n"
        )
