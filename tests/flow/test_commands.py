import inspect
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from perceivers.cli import main
from perceivers.flow import commands
from perceivers.flow import generator as flow_generator
from perceivers.flow.datasets import open_pairs
from perceivers.flow.estimate import OVERLAP
from perceivers.flow.evaluation import FlowScore
from perceivers.flow.files import write_flow
from perceivers.flow.scenes import SceneConfig
from perceivers.flow.training import OpticalFlow
from perceivers.training.evaluation import find_evaluation
from tests.support.cli import fails
from tests.support.models import classifier, constant_flow, optical


def defaults(function):
    """Values of the arguments that have some."""
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


@pytest.fixture
def middlebury(tmp_path):
    """Two pairs of known flow in Middlebury's folders: everything moves by (3, 4), or by (0, 1)."""
    for name, vector in {"Fast": (3.0, 4.0), "Slow": (0.0, 1.0)}.items():
        for kind in ("other-data", "other-gt-flow"):
            (tmp_path / "middlebury" / kind / name).mkdir(parents=True)
        for frame in ("frame10.png", "frame11.png"):
            pixels = np.random.default_rng(0).integers(256, size=(32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "middlebury" / "other-data" / name / frame)
        flow = torch.tensor(vector)[:, None, None].expand(2, 32, 40)
        write_flow(tmp_path / "middlebury" / "other-gt-flow" / name / "flow10.flo", flow)
    return str(tmp_path / "middlebury")


def test_evaluate(middlebury, tmp_path, capsys):
    constant_flow(0.0, 1.0).save(tmp_path / "model", "optical_flow")
    command = ["evaluate", str(tmp_path / "model"), "--data", middlebury, "--overlap", "4", "--batch-size", "2"]
    main([*command, "--json", "--picture", str(tmp_path / "pictures")])
    measured = json.loads(capsys.readouterr().out)["middlebury"]
    assert [measured.pop(name) for name in ("pairs", "total", "split")] == [2, 2, "train"]
    assert list(measured) == ["model", "zero flow", "Farneback", "DIS fast", "DIS medium"]
    model, still = measured["model"], measured["zero flow"]
    slow, fast = 0.0, 18**0.5
    assert model["errors"]["epe"] == pytest.approx((slow + fast) / 2, abs=1e-5)
    assert model["errors"]["fl_all"] == still["errors"]["fl_all"] == 0.5
    assert still["sequences"] == pytest.approx({"Fast": 5, "Slow": 1})
    assert still["errors"]["over1px"] == 0.5
    assert model["seconds"] > 0
    assert len(list((tmp_path / "pictures").rglob("*.png"))) == 2
    main(command)
    lines = capsys.readouterr().out.splitlines()
    assert re.split("  +", lines[0]) == [
        "middlebury, 2 of 2 pairs (train)", "EPE", ">1px", ">3px", ">5px", "Fl-all", "seconds per pair"
    ]  # fmt: skip
    assert re.split("  +", lines[1])[:-1] == ["model", "2.12", "50.00%", "50.00%", "0.00%", "50.00%"]
    assert re.split("  +", lines[2])[:-1] == ["zero flow", "3.00", "50.00%", "50.00%", "0.00%", "50.00%"]
    assert re.split("  +", lines[7])[:3] == ["EPE of each sequence", "model", "zero flow"]
    assert re.split("  +", lines[8])[:3] == ["Fast", "4.24", "5.00"]
    assert re.split("  +", lines[9])[:3] == ["Slow", "0.00", "1.00"]


def test_evaluate_tells_visible_and_occluded_pixels_apart(capsys):
    parts = dict.fromkeys(("over1px", "over3px", "over5px", "fl_all"), 0.125)
    errors = {"epe": 2.0, **parts, "epe_visible": 1.5, "epe_occluded": 12.25}
    commands.print_scores("sintel-clean, 1 pair", {"model": FlowScore(errors, {"alley_1": 2.0}, 0.25)})
    header, row = capsys.readouterr().out.strip().splitlines()  # a single sequence is no table
    assert re.split("  +", header)[-3:] == ["EPE visible", "EPE occluded", "seconds per pair"]
    assert re.split("  +", row)[-3:] == ["1.50", "12.25", "0.250"]


def test_evaluate_refuses_what_it_cannot_do(middlebury, tmp_path, capsys):
    optical().save(tmp_path / "flow", "optical_flow")
    flow = ["evaluate", str(tmp_path / "flow"), "--data", middlebury]
    (tmp_path / "file").write_text("mine")
    assert "is a file: give a folder" in fails(capsys, *flow, "--picture", str(tmp_path / "file"))
    assert "has no split 'test', only train." in fails(capsys, *flow, "--split", "test")
    assert "overlap = -1 is not allowed" in fails(capsys, *flow, "--overlap", "-1")
    for wrong, message in {
        ("--batch-size", "0"): "argument --batch-size: 0 is not allowed: it must be at least 1",
        ("--windows", "2"): "unrecognized arguments: --windows 2",  # of models of clips
    }.items():
        with pytest.raises(SystemExit) as stop:
            main([*flow, *wrong])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_models_of_flow_are_found_to_be_so(tmp_path):
    optical(downsampling="conv").save(tmp_path / "flow")
    assert find_evaluation(tmp_path / "flow") is commands.evaluate
    assert OpticalFlow.evaluates(optical())
    assert not OpticalFlow.evaluates(classifier())


def test_pairs_are_generated_as_asked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(flow_generator, "TEXTURES", 4)
    monkeypatch.setattr(flow_generator, "SHAPES", 4)
    out = tmp_path / "pairs"
    main(["make-flow-data", str(out), "--pairs", "2", "--size", "16", "24", "--motion", "2.5", "--seed", "3"])
    assert capsys.readouterr().out == f"{out}: 2 pairs of 24 x 16 pixels with their flow.\n"
    assert open_pairs(out)[1].flow.shape == (2, 16, 24)
    written = json.loads((out / "scenes.json").read_text())
    assert (written["size"], written["motion"], written["seed"]) == ([16, 24], 2.5, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "4", "100"], "scenes.size = (4, 100) is not allowed: it must be height and width, at least 8"),
        (["--motion", "-1"], "scenes.motion = -1.0 is not allowed: it must be at least 0"),
        (["--motion-exponent", "0"], "scenes.motion_exponent = 0.0 is not allowed: it must be above 0"),
        (["--blur", "1.5"], "scenes.blur = 1.5 is not allowed: it must be at least 0 and at most 1"),
        (["--seed", "-1"], "scenes.seed = -1 is not allowed: it must be at least 0"),
        (["--textures", "nowhere"], "there is no folder of textures nowhere"),
    ],
)
def test_pairs_that_cannot_be_generated(tmp_path, capsys, arguments, message):
    assert message in fails(capsys, "make-flow-data", str(tmp_path / "pairs"), *arguments)
    assert not (tmp_path / "pairs").exists()


def test_defaults_are_those_of_the_library():
    given = defaults(commands.make_flow_data)
    scenes = vars(SceneConfig())
    assert {name: value for name, value in given.items() if name not in ("pairs", "json")} == {
        name: scenes[name] for name in given if name not in ("pairs", "json")
    }
    assert defaults(commands.flow)["overlap"] == defaults(commands.evaluate)["overlap"] == OVERLAP
