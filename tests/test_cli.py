import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits

import perceivers
from perceivers.adapters import ArrayInput, LabelOutput
from perceivers.cli import main
from perceivers.extras import MODULES
from perceivers.images.demo import digits_run
from perceivers.presets import find_preset
from perceivers.text.glue_data import TASKS
from perceivers.training.config import read_config
from perceivers.training.search_space import list_examples
from perceivers.training.sweep import read_sweep
from tests.support.cli import fails
from tests.support.models import classifier, language, optical

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "configs/image_classification/digits.yaml"
TINY = [f"--model.{field}={value}" for field, value in {"latents": 4, "channels": 8, "depth": 1, "heads": 1}.items()]


SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_is_valid(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    language().save(tmp_path)
    sweep = read_sweep(path, [f"--model.init={tmp_path}"] * path.name.startswith("glue"))
    for name, space in sweep.fields.items():
        assert sweep.make_experiment(0, {name: list_examples(space)[-1]}).to_config()["training"]["resume"] == "auto"


@pytest.mark.parametrize("path", sorted({*(ROOT / "configs").rglob("*.yaml")} - {*SWEEPS}), ids=lambda path: path.stem)
def test_every_config_is_valid_and_its_model_can_be_built(path, tmp_path):
    if (
        init := yaml.safe_load(path.read_text())["model"].get("init")
    ) is not None:  # a model that another config trains
        trained = Path(init).parent.name
        assert read_config(ROOT / f"configs/language/{trained}.yaml").training.output == f"runs/{trained}"
        language().save(tmp_path)
        assert read_config(path, [f"--model.init={tmp_path}"]).model.length == 48
        return
    run = read_config(path)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in run.model.build().parameters()) > 10_000


@pytest.mark.parametrize("name", ["imagenet_fourier", "imagenet_learned", "imagenet_conv"])
def test_the_papers_recipe(name):
    run = read_config(ROOT / f"configs/image_classification/{name}.yaml")
    assert run.model == find_preset(name).config
    assert (run.trainer["max_epochs"], run.training.batch_size) == (110, 1024)
    assert (run.optimization.optimizer, run.optimization.lr, run.optimization.weight_decay) == ("lamb", 2e-3, 0.1)
    assert (run.optimization.schedule, run.optimization.flat_fraction, run.trainer["gradient_clip_val"]) == (
        "flat_cosine",
        0.5,
        10,
    )
    assert (run.augmentation.layers, run.augmentation.magnitude, run.augmentation.mixup) == (4, 5, 0.2)
    assert run.label_smoothing == 0.1


@pytest.mark.parametrize(("name", "length"), [("mlm_bytes_paper", 2048), ("mlm_sentencepiece_paper", 512)])
def test_the_papers_recipe_of_language(name, length, tmp_path):
    run = read_config(ROOT / f"configs/language/{name}.yaml")
    assert run.model == find_preset("language_bytes" if length == 2048 else "language_sentencepiece").config
    assert run.model.length == length
    assert sorted(run.data.shares.values()) == [0.3, 0.7]
    assert (run.data.documents_per_pack, run.data.mask_rate) == (10, 0.15)
    assert run.data.steps_per_epoch * run.trainer["max_epochs"] == 500_000
    assert (run.optimization.optimizer, run.optimization.lr, run.optimization.weight_decay) == ("lamb", 1.25e-3, 0.01)
    assert (run.optimization.schedule, run.optimization.warmup_steps) == ("warmup_cosine", 1000)
    assert run.training.batch_size == 2048
    language().save(tmp_path)
    glue = read_config(ROOT / "configs/language/glue_paper.yaml", [f"--model.init={tmp_path}"])
    sweep = read_sweep(ROOT / "configs/sweeps/glue_paper.yaml")
    assert sweep.fields["training.batch_size"] == [16, 32, 64]
    assert sweep.fields["optimization.lr"] == [1e-4, 5e-5, 2e-5, 1e-5]
    assert [name for tasks in sweep.fields["data.tasks"] for name in tasks] == list(TASKS)
    assert (glue.trainer["max_epochs"], glue.optimization.optimizer, glue.optimization.warmup_steps) == (
        10,
        "lamb",
        200,
    )
    assert glue.optimization.weight_decay == 0.01


def test_the_demo_is_the_digits_config():
    run, demo = read_config(DIGITS), digits_run("runs/digits")
    assert run == demo


def test_fit_evaluate_classify(tmp_path, capsys):
    main(["fit", str(DIGITS), f"--training.output={tmp_path / 'run'}", "--trainer.max_epochs=1", *TINY])
    assert f"The model is in {tmp_path / 'run' / 'model'}" in capsys.readouterr().out
    main(["evaluate", str(tmp_path / "run" / "model"), "--data", "digits", "--json"])
    measured = json.loads(capsys.readouterr().out)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert measured["top1"] == pytest.approx(metrics["val_top1"])
    assert measured["images"] == 599
    Image.fromarray((load_digits().images[0] * 15).astype(np.uint8)).save(tmp_path / "zero.png")
    main(["classify-image", str(tmp_path / "run" / "model"), str(tmp_path / "zero.png"), "--top", "3", "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["file"] == str(tmp_path / "zero.png")
    assert len(answer["classes"]) == 3
    main(["classify-image", str(tmp_path / "run" / "model"), str(tmp_path / "zero.png")])
    assert re.search(r"zero.png\n +\d+\.\d\d%  \d\n", capsys.readouterr().out)


def test_the_demo_writes_its_files(tmp_path, capsys, monkeypatch):
    main(["demo", "--output", str(tmp_path), "--epochs", "1"])
    out = capsys.readouterr().out
    assert "Confusion matrix" in out
    assert len(re.findall(r"^  perceivers (classify-image|models|fit)", out, re.M)) == 3
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"test_accuracy", "seconds", "parameters", "seed"}
    with Image.open(tmp_path / "predictions.png") as picture:
        assert picture.size[0] > 1000
    assert perceivers.load(tmp_path / "model").outputs["label"].names == list("0123456789")
    (tmp_path / "model" / "config.json").unlink()
    monkeypatch.setattr("perceivers.images.demo.draw_predictions", lambda *arguments: Figure())  # drawing takes longest
    main(["demo", "--output", str(tmp_path), "--epochs", "1"])  # again in the same place
    assert (tmp_path / "model" / "config.json").is_file()


def test_help_teaches_every_field(capsys):
    main(["fit", str(DIGITS), "--help"])
    out = capsys.readouterr().out
    assert "--trainer.gradient_clip_val" in out
    assert "The value at which to clip gradients." in out
    flat = " ".join(out.split())
    assert "--model.latents (int, at least 1; default: 512) N, number of latents." in flat
    assert "--model.positions ('fourier' | 'learned'; default: \"fourier\")" in flat
    assert "--model.image_size (int | tuple[int, int], at least 1; default: 224)" in flat
    main(["fit", str(ROOT / "configs/flow/light_gpu.yaml"), "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "(float; default: 0.2) pixels of flow for a 1 of the last layer." in out
    assert "--model.latents (int, at least 1; default: 1024)" in out, "that of the preset"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--training.epoch=3", "there is no field 'training.epoch': there are: batch_size, compile"),
        ("--optimisation.lr=3", "there is no field 'optimisation': did you mean 'optimization'"),
        ("--model.latent=3", "there is no field 'model.latent': did you mean 'latents'"),
        ("--model.preset=imagenet", "there is no model 'imagenet'"),
        ("--trainer.max_epochs=many", "trainer.max_epochs"),
        ("--trainer.max_epochs=0", "trainer.max_epochs = 0 is not allowed: it must be at least 1, or -1 for no limit"),
        ("--optimization.optimizer=sgd", "optimization.optimizer"),
        ("--training=3", "training = 3, but it has fields: batch_size"),
        ("--model.heads=3", "channels = 64 cannot be split over heads = 3"),
        ("--model.latents=many", "model.latents"),
        ("--model.depth=2.5", "model.depth"),
        ("--model.widening_factor=0", "model.widening_factor = 0 is not allowed: it must be at least 1"),
        ("--model.std=[0.1, 0.2]", "mean has 1 colors, but std has 2"),
        ("--model.classes=7", "model.classes = 7 is not allowed: it must be 10, as in the data"),
        ("--model.samples_per_frame=3", "there is no field 'model.samples_per_frame'"),
        ("--model.preset=optical_flow", "model.preset = optical_flow is of optical_flow: ImageClassification trains"),
        ("--model.preset=nowhere:MODEL", "there is no module 'nowhere'"),
        ("--model.preset=3", "model.preset = 3 is not allowed"),
        ("--model=imagenet_fourier", "model = 'imagenet_fourier', but it has fields, such as preset"),
        ("--experiment=nowhere:Forecast", "experiment nowhere:Forecast: there is no module 'nowhere'"),
        ("--experiment=perceivers.presets:Preset", "is the class Preset, but a subclass of Experiment is expected"),
        ("--experiment=3", "experiment is 3: name one of autoencoding"),
        ("--data.path=[x", "is not understood"),
        ("--optimization.beta2=7", "optimization.beta2 = 7"),
        ("--trainer.precision=foo", "trainer.precision"),
        ("--trainer.accelerator=tpu", "cannot be used: "),
        ("--trainer.devices=0", "'devices': 0} cannot be used: "),
        ("--augmentation.layers=2", "augmentation.layers = 2 is not allowed: it must be 0 for gray images"),
        ("--experiment=images", "there is no experiment 'images'"),
        ("--data.path=/nonexistent/data", "neither here nor on the Hub"),
        ("--training.batch_size=5000", "larger than the training set of 1198 samples"),
        ("epochs=3", "is not understood: write --field.of.config=value"),
    ],
)
def test_wrong_configs_end_in_one_sentence(tmp_path, capsys, override, message):
    error = fails(capsys, "fit", str(DIGITS), f"--training.output={tmp_path / 'run'}", override)
    assert message in error
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "config.json").exists()


def test_two_processes_train_together(tmp_path, capsys):
    """On the CPU: each takes half of every batch; the folder is written once."""
    command = [sys.executable, "-m", "perceivers", "fit", str(DIGITS), *TINY, f"--training.output={tmp_path / 'run'}"]
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.max_epochs=1", "--training.batch_size=128"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *two], env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    main(["evaluate", str(tmp_path / "run" / "model"), "--data", "digits", "--json"])
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(metrics["val_top1"], abs=1e-6)


def test_other_bad_input_ends_in_one_sentence(tmp_path, capsys):
    assert "there is no config file" in fails(capsys, "fit", str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "is not valid YAML" in fails(capsys, "fit", str(tmp_path / "bad.yaml"))
    (tmp_path / "list.yaml").write_text("- a")
    assert "is not a config" in fails(capsys, "fit", str(tmp_path / "list.yaml"))
    (tmp_path / "file").write_text("")
    assert "choose another output path" in fails(capsys, "fit", str(DIGITS), f"--training.output={tmp_path}/file/run")
    assert "neither a folder nor a file here" in fails(capsys, "classify-image", "no/model", "x.png")
    color = perceivers.create_model(
        "imagenet_fourier", classes=5, image_size=8, latents=2, channels=8, depth=1, heads=1
    )
    color.save(tmp_path / "color")
    assert "the data has 10 classes, but the model knows 5" in fails(
        capsys, "evaluate", str(tmp_path / "color"), "--data", "digits"
    )


WITHOUT_EXTRAS = f"""
import importlib.util, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {[name for names in MODULES.values() for name in names]!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
found = importlib.util.find_spec
def find_spec(name):
    try:
        return found(name)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
"""


def test_a_missing_extra_is_named():
    commands = [
        ["fit", str(DIGITS)],
        ["demo"],
        ["classify-image", "m", "x.png"],
        ["evaluate", "m", "--data", "digits"],
        ["flow", "m", "x.png", "y.png", "--out", "x.flo"],
    ]
    code = WITHOUT_EXTRAS + (
        "from perceivers.cli import main\n"
        f"for command in {commands}:\n"
        "    try:\n"
        "        main(command)\n"
        "    except SystemExit as stop:\n"
        "        print(stop.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "2\n" * len(commands)
    expected = r"perceivers: '\w+' is not installed; .*: pip install 'perceivers\[\w+\]'\n"
    assert re.fullmatch(f"({expected}){{{len(commands)}}}", done.stderr), done.stderr


def test_the_core_needs_no_extra():
    """The architecture, presets, saved models and text work where only the core's dependencies are installed."""
    code = WITHOUT_EXTRAS + (
        "from perceivers.text.fill_mask import fill_mask\n"
        "import perceivers, torch\n"
        "model = perceivers.create_model('imagenet_fourier', image_size=8, latents=2, channels=8, depth=1, heads=1)\n"
        "print(tuple(model({'image': torch.rand(1, 3, 8, 8)})['label'].shape))\n"
        "sizes = dict(length=8, latents=2, channels=8, depth=1, qk_channels=8, v_channels=8, decoder_v_channels=8)\n"
        "print(fill_mask(perceivers.create_model('language_bytes', embedding_channels=8, **sizes), 'a[MASK]').masked)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(1, 1000)\n[1]\n", done.stderr


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "perceivers", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == perceivers.__version__


COMMANDS = sorted(
    [
        "models",
        "fit",
        "explain",
        "serve",
        "fill-mask",
        "generate",
        "classify-text",
        "attention",
        "classify-image",
        "classify-clip",
        "flow",
        "autoencode",
        "evaluate",
        "predict",
        "sweep",
        "train-tokenizer",
        "make-flow-data",
        "prepare-replays",
        "convert",
        "export",
        "demo",
    ]
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(capsys, command):
    if command in ("fit", "sweep", "evaluate", "predict"):  # whose help goes on with a config, or a model
        main([command, "--help"])
    else:
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: perceivers {command} ")


def test_help_of_the_evaluation_of_a_model(tmp_path, capsys):
    for model, option in ((classifier(), "--batch-size"), (optical(), "--picture")):
        model.save(tmp_path)
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(tmp_path), "--help"])
        assert stop.value.code == 0
        assert option in capsys.readouterr().out


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    commands, examples = out.split("examples:")
    assert re.findall(r"^  ([a-z-]+)  +[A-Z].+\.$", commands, re.M) == COMMANDS
    assert set(COMMANDS) >= set(re.findall(r"^  perceivers ([a-z-]+)", examples, re.M))


def test_without_a_command_the_help_is_shown(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize("lines", [1, 5000])
def test_a_reader_that_has_read_enough_is_no_error(lines):
    """Whether the pipe breaks while something is printed or, of a short output, at the end."""
    code = (
        "import sys, perceivers.cli\n"
        f"def many():\n    for _ in range({lines}):\n        print('a line')\n"
        "perceivers.cli.find_command = lambda name: many\n"
        "sys.stdin.read()  # until the other end is closed\n"
        "perceivers.cli.main(['models'])\n"
    )
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], env=buffered, **pipes) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141  # as of a program that the signal ends


def test_evaluate_takes_some_images_at_a_time(tmp_path, capsys):
    classifier().save(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tmp_path), "--data", "digits", "--batch-size", "0"])
    assert stop.value.code == 2
    assert "argument --batch-size: 0 is not allowed: it must be at least 1" in capsys.readouterr().err


def test_evaluate_refuses_what_it_cannot_do(tmp_path, capsys):
    classifier().save(tmp_path / "classifier")
    images = ["evaluate", str(tmp_path / "classifier"), "--data", "digits"]
    for option in (["--picture", "pictures"], ["--overlap", "0"], ["--windows", "2"]):
        with pytest.raises(SystemExit) as stop:
            main([*images, *option])
        assert stop.value.code == 2
        assert f"unrecognized arguments: {' '.join(option)}" in capsys.readouterr().err
    other = perceivers.PerceiverIO({"x": ArrayInput(3)}, {"y": LabelOutput(2, 8)}, latents=2, channels=8, depth=1)
    other.save(tmp_path / "other")
    error = fails(capsys, "evaluate", str(tmp_path / "other"), "--data", "digits")
    assert f"{tmp_path / 'other'} holds a PerceiverIO that no installed experiment measures (autoencoding" in error
    assert "evaluate needs a model, such as" in fails(capsys, "evaluate")


@pytest.fixture
def original(shared_fixtures):
    """A small flow model in the original's format, and the settings that its file does not tell."""
    folder = shared_fixtures / "deepmind" / "optical_flow"
    return folder, ["--set", "heads=4", "--set", "image_size=(24, 32)"]


def test_convert_the_originals_file(original, tmp_path, capsys):
    folder, settings = original
    target = tmp_path / "new" / "model"
    main(["convert", str(folder / "checkpoint.pystate"), str(target), "--to", "perceivers", *settings])
    assert capsys.readouterr().out == f"{target} holds the model in the format of perceivers.\n"
    model = perceivers.load(target)
    frames = (torch.from_numpy(np.load(folder / "inputs.npz")["images"]).movedim(-1, 2) + 1) / 2
    expected = torch.from_numpy(np.load(folder / "outputs.npz")["flow"]).movedim(-1, 1)
    with torch.no_grad():
        answer = model({"frames": frames})["flow"]
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_convert_to_transformers_and_back(tmp_path, capsys):
    import transformers

    ours, theirs, back = (tmp_path / name for name in ("ours", "theirs", "back"))
    model = language(decoder_heads=8, decoder_qk_channels=256, heads=4)
    model.save(ours)
    theirs.mkdir()  # an empty folder will do
    main(["convert", str(ours), str(theirs), "--to", "transformers"])
    assert capsys.readouterr().out == f"{theirs} holds the model in the format of transformers.\n"
    tokens = torch.randint(262, (2, 48))  # theirs pads to the full length
    peer = transformers.PerceiverForMaskedLM.from_pretrained(theirs).eval()
    with torch.no_grad():
        expected = peer(inputs=tokens, attention_mask=torch.ones_like(tokens)).logits
        torch.testing.assert_close(model({"text": tokens})["text"], expected, rtol=1e-4, atol=1e-4)
    main(["convert", str(theirs), str(back), "--to", "perceivers"])
    for name in ("config.json", "model.safetensors"):
        assert (back / name).read_bytes() == (ours / name).read_bytes()
    main(["convert", str(theirs), str(tmp_path / "other"), "--to", "perceivers", "--set", "gelu=exact"])
    assert perceivers.load(tmp_path / "other").config["gelu"] == "exact"


def test_convert_writes_nothing_that_the_format_cannot_hold(original, tmp_path, capsys):
    folder, settings = original
    command = ["convert", str(folder / "checkpoint.pystate"), str(tmp_path / "model"), "--to", "transformers"]
    error = fails(capsys, *command, *settings)
    assert "transformers has no such model: inputs.frames.positions.bands is 6, but 64" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            [],
            "checkpoint.pystate does not have the published size, and its shapes do not determine heads, image_size",
        ),
        (["heads"], "--set heads is not allowed: write NAME=VALUE, such as --set heads=8"),
        (["source=a"], "--set source=a is not allowed"),
        (["custom_classes=5"], "--set custom_classes=5 is not allowed"),
        (["heads=4", "image_size=wide"], "image_size = 'wide' is not allowed: it must be of type"),
        (["heads=null", "image_size=[24, 32]"], "heads = None is not allowed: it must be of type int"),
        (["heads=4", "image_size=[24, 32]", "head=5"], "no argument 'head': did you mean 'heads'"),
        (["heads=5", "image_size=24,32"], "cannot be split over heads = 5"),
    ],
)
def test_settings_that_convert_refuses(original, tmp_path, capsys, settings, message):
    folder, _ = original
    told = [argument for setting in settings for argument in ("--set", setting)]
    target = str(tmp_path / "model")
    error = fails(capsys, "convert", str(folder / "checkpoint.pystate"), target, "--to", "perceivers", *told)
    assert message in error
    assert not list(tmp_path.iterdir())


def test_convert_refuses_what_is_there_and_what_is_not(tmp_path, capsys):
    language().save(tmp_path / "model")
    (tmp_path / "file").write_text("mine")
    for target in ("model", "file"):
        command = ["convert", str(tmp_path / "model"), str(tmp_path / target), "--to", "perceivers"]
        assert f"{target} exists already: choose a new folder" in fails(capsys, *command)
    assert (tmp_path / "file").read_text() == "mine"
    command = ["convert", str(tmp_path / "model"), str(tmp_path / "file" / "in"), "--to", "perceivers"]
    assert "Not a directory; choose another output path" in fails(capsys, *command)
    command = ["convert", str(tmp_path / "none"), str(tmp_path / "new"), "--to", "perceivers"]
    assert "neither a folder nor a file here" in fails(capsys, *command)
    command = ["convert", str(tmp_path / "model"), str(tmp_path / "new"), "--to", "perceivers", "--set", "head=4"]
    assert "LanguageConfig has no argument 'head': did you mean 'heads'?" in fails(capsys, *command)
    assert not (tmp_path / "new").exists()
    main([*command[:-1], "length=20"])
    assert perceivers.load(tmp_path / "new").inputs["text"].length == 20


EXPERIMENTS = {
    "language": ["masked_language", "causal_language", "text_classification", "glue"],
    "flow": ["optical_flow"],
    "clips": ["clip_classification"],
    "starcraft": ["behavioral_cloning"],
}


def test_configs_say_what_they_are_for():
    for path in {*(ROOT / "configs").rglob("*.yaml")} - {*SWEEPS}:
        assert path.read_text().startswith("# "), path
        experiment = yaml.safe_load(path.read_text())["experiment"]
        assert experiment in EXPERIMENTS.get(path.parent.name, [path.parent.name]), path
