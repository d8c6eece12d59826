import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

import perceivers
from perceivers.cli import main
from perceivers.experiments.configuration import read_config
from perceivers.experiments.demo import digits_run
from perceivers.extras import MODULES

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "configs/image_classification/digits.yaml"
TINY = [f"--model.{field}={value}" for field, value in {"latents": 4, "channels": 8, "depth": 1, "heads": 1}.items()]


def fails(capsys, *argv):
    """The one sentence that a command ends in."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("perceivers: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_valid_and_its_model_can_be_built(path):
    run = read_config(path)
    settings = {name: value for name, value in run.model.items() if name != "preset"}
    import torch

    with torch.device("meta"):
        perceivers.create_model(run.model["preset"], **settings)


def test_the_papers_recipe():
    run = read_config(ROOT / "configs/image_classification/imagenet_fourier.yaml")
    assert (run.training.epochs, run.training.batch_size) == (110, 1024)
    assert (run.optimization.name, run.optimization.lr, run.optimization.weight_decay) == ("lamb", 2e-3, 0.1)
    assert (run.optimization.schedule, run.optimization.flat, run.optimization.clip_norm) == ("flat_cosine", 0.5, 10)
    assert (run.augmentation.layers, run.augmentation.magnitude, run.augmentation.mixup) == (4, 5, 0.2)
    assert run.label_smoothing == 0.1


def test_the_demo_is_the_digits_config():
    run, demo = read_config(DIGITS), digits_run("runs/digits")
    assert run == demo


def test_fit_evaluate_classify(tmp_path, capsys):
    main(["fit", str(DIGITS), f"--training.output={tmp_path / 'run'}", "--training.epochs=1", *TINY])
    assert f"The model is in {tmp_path / 'run' / 'model'}" in capsys.readouterr().out
    main(["evaluate", str(tmp_path / "run" / "model"), "--data", "digits", "--json"])
    measured = json.loads(capsys.readouterr().out)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measured["top1"] == pytest.approx(metrics["test_top1"])
    assert measured["images"] == 599
    Image.fromarray((load_digits().images[0] * 15).astype(np.uint8)).save(tmp_path / "zero.png")
    main(["classify-image", str(tmp_path / "run" / "model"), str(tmp_path / "zero.png"), "--top", "3", "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["file"] == str(tmp_path / "zero.png")
    assert len(answer["classes"]) == 3
    main(["classify-image", str(tmp_path / "run" / "model"), str(tmp_path / "zero.png")])
    assert re.search(r"zero.png\n +\d+\.\d\d%  \d\n", capsys.readouterr().out)


def test_the_demo_writes_its_files(tmp_path, capsys):
    main(["demo", "--output", str(tmp_path), "--epochs", "1"])
    out = capsys.readouterr().out
    assert "Confusion matrix" in out
    assert len(re.findall(r"^  perceivers ", out, re.M)) == 3
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"test_accuracy", "seconds", "parameters", "seed"}
    with Image.open(tmp_path / "predictions.png") as picture:
        assert picture.size[0] > 1000
    assert perceivers.load(tmp_path / "model").outputs["label"].names == list("0123456789")
    main(["demo", "--output", str(tmp_path), "--epochs", "1"])  # again in the same place


def test_help_teaches_every_field(capsys):
    main(["fit", str(DIGITS), "--help"])
    out = capsys.readouterr().out
    assert "--optimization.clip_norm" in out
    assert "largest norm of the gradient" in out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--training.epoch=3", "there is no field 'training.epoch': did you mean 'epochs'"),
        ("--optimisation.lr=3", "there is no field 'optimisation': did you mean 'optimization'"),
        ("--model.latent=3", "image_classifier has no argument 'latent': did you mean 'latents'"),
        ("--model.preset=imagenet", "there is no model 'imagenet'"),
        ("--training.epochs=many", "training.epochs"),
        ("--training.epochs=0", "training.epochs = 0 is not allowed: it must be at least 1"),
        ("--optimization.name=sgd", "optimization.name"),
        ("--training=3", "training = 3, but it has fields: epochs"),
        ("--model.heads=3", "qk_channels = 64 cannot be split over heads = 3"),
        ("--experiment=images", "experiment is 'images'"),
        ("--data.path=/nonexistent/data", "neither a folder nor a data set of the hub"),
        ("--training.batch_size=5000", "larger than the training set of 1198 samples"),
        ("epochs=3", "is not understood: write --field.of.config=value"),
    ],
)
def test_wrong_configs_end_in_one_sentence(tmp_path, capsys, override, message):
    error = fails(capsys, "fit", str(DIGITS), f"--training.output={tmp_path / 'run'}", override)
    assert message in error
    assert not (tmp_path / "run" / "model").exists()


def test_other_bad_input_ends_in_one_sentence(tmp_path, capsys):
    assert "there is no config file" in fails(capsys, "fit", str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "is not valid YAML" in fails(capsys, "fit", str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- a")
    assert "is not a config" in fails(capsys, "fit", str(tmp_path / "list.yaml"))
    (tmp_path / "file").write_text("")
    assert "choose another output path" in fails(capsys, "fit", str(DIGITS), f"--training.output={tmp_path}/file/run")
    assert "neither a folder here nor a model" in fails(capsys, "classify-image", "no/model", "x.png")
    colour = perceivers.create_model("imagenet_fourier", image_size=8, latents=2, channels=8, depth=1, heads=1)
    colour.save(tmp_path / "colour")
    assert "the data has 10 classes, but the model knows 1000" in fails(
        capsys, "evaluate", str(tmp_path / "colour"), "--data", "digits"
    )


def test_a_missing_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr("perceivers.extras.find_spec", lambda name: None if name == "kornia" else True)
    for module in ("perceivers.data.images", "perceivers.experiments.image_classification"):
        monkeypatch.delitem(sys.modules, module)
    error = fails(capsys, "classify-image", "model", "x.png")
    assert "'kornia' is not installed" in error
    assert "pip install 'perceivers[vision]'" in error


def test_the_core_needs_no_extra():
    """The architecture, presets and saved models work where only the core's dependencies are installed."""
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {[name for names in MODULES.values() for name in names]!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import perceivers, torch\n"
        "model = perceivers.create_model('imagenet_fourier', image_size=8, latents=2, channels=8, depth=1, heads=1)\n"
        "print(tuple(model({'image': torch.rand(1, 3, 8, 8)})['label'].shape))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 1000)", done.stderr


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "perceivers", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == perceivers.__version__


def test_configs_say_what_they_are_for():
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert path.read_text().startswith("# "), path
        assert yaml.safe_load(path.read_text())["experiment"] == path.parent.name
