import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import perceivers
from perceivers import LearnedPositions, PerceiversError
from perceivers.adapters import ArrayInput, ArrayOutput, LabelOutput
from perceivers.flow.estimate import BUNDLED_MODEL


@pytest.fixture
def model():
    return perceivers.create_model(
        "imagenet_conv", image_size=16, classes=3, class_names=["a", "b", "c"], latents=4, channels=16, bands=2,
        depth=1, num_blocks=2, heads=2, query_channels=8,
    )  # fmt: skip


def test_a_saved_model_is_the_same_bit_for_bit(model, tmp_path):
    images = torch.rand(4, 3, 16, 16)
    model.train()({"image": images})  # moves the batch statistics, which must be saved too
    model.eval().save(tmp_path / "model")
    loaded = perceivers.load(tmp_path / "model")
    assert not loaded.training
    assert loaded.outputs["label"].names == ["a", "b", "c"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded({"image": images})["label"], model({"image": images})["label"])
    loaded.save(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "model" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["imagenet_fourier", "imagenet_learned", "imagenet_conv"])
def test_a_bfloat16_model_is_the_same_bit_for_bit(name, tmp_path):
    sizes = {"image_size": 16, "latents": 4, "channels": 16, "bands": 2, "depth": 1, "heads": 2, "query_channels": 8}
    model = perceivers.create_model(name, **sizes).bfloat16().eval()
    model.save(tmp_path)
    loaded, images = perceivers.load(tmp_path), torch.rand(2, 3, 16, 16)
    assert loaded.encoder.latents.dtype == torch.bfloat16
    assert torch.equal(loaded({"image": images})["label"], model({"image": images})["label"])


def test_shared_parts_are_refused(tmp_path):
    positions = LearnedPositions((3,), 4)
    inputs, outputs = {"x": ArrayInput(2, positions)}, {"y": ArrayOutput(2, positions)}
    model = perceivers.PerceiverIO(inputs, outputs, latents=2, channels=8, depth=1)
    with pytest.raises(PerceiversError, match=r"outputs.y.positions.table_SF and inputs.x.positions.table_SF share"):
        model.save(tmp_path)


def test_own_adapters_are_passed_by_class(tmp_path):
    class MyInput(ArrayInput):
        pass

    perceivers.PerceiverIO({"x": MyInput(3)}, {"y": LabelOutput(2, 8)}, latents=2, channels=8, depth=1).save(tmp_path)
    with pytest.raises(
        PerceiversError, match=r"names the class 'tests.*MyInput'.*custom_classes=\[.*MyInput\].*--trust tests"
    ):
        perceivers.load(tmp_path)
    assert isinstance(perceivers.load(tmp_path, custom_classes=[MyInput]).inputs["x"], MyInput)


def test_classes_of_a_script_are_known_by_their_name(tmp_path):
    class MyInput(ArrayInput):
        pass

    perceivers.PerceiverIO({"x": MyInput(3)}, {"y": LabelOutput(2, 8)}, latents=2, channels=8, depth=1).save(tmp_path)
    break_config(lambda c: c["model"]["inputs"]["x"].update({"class": "__main__:MyInput"}))(tmp_path)
    assert isinstance(perceivers.load(tmp_path, custom_classes=[MyInput]).inputs["x"], MyInput)
    with pytest.raises(PerceiversError, match="names the class '__main__:MyInput', which is not one of this package"):
        perceivers.load(tmp_path)


def test_folders_of_the_release_before_are_read(tmp_path):
    """Their configs name classes without modules; this one is that of the flow model that 0.1.0 shipped."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    shutil.copy(Path(__file__).with_name("flow_of_0.1.0.json"), old / "config.json")
    shutil.copy(BUNDLED_MODEL / "model.safetensors", old)
    config = json.loads((old / "config.json").read_text())
    assert (config["version"], config["model"]["class"]) == (1, "PerceiverIO")
    model = perceivers.load(old)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_421_136
    model.save(new)
    saved = json.loads((new / "config.json").read_text())
    assert (saved["version"], saved["model"]["class"]) == (2, "perceivers.model.perceiver_io:PerceiverIO")
    frames = torch.rand(1, 2, 3, *saved["model"]["inputs"]["frames"]["size"])
    assert frames.shape[-2:] == (64, 64)
    assert torch.equal(perceivers.load(new)({"frames": frames})["flow"], model({"frames": frames})["flow"])
    theirs = perceivers.load(BUNDLED_MODEL).state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in model.state_dict().items())


def test_classes_of_ones_own_in_folders_of_the_release_before(tmp_path):
    class MyInput(ArrayInput):
        pass

    def to_version_1(config):
        config["version"] = 1
        config["model"]["class"], config["model"]["inputs"]["x"]["class"] = "PerceiverIO", "MyInput"
        config["model"]["outputs"]["y"]["class"] = "LabelOutput"

    perceivers.PerceiverIO({"x": MyInput(3)}, {"y": LabelOutput(2, 8)}, latents=2, channels=8, depth=1).save(tmp_path)
    break_config(to_version_1)(tmp_path)
    assert isinstance(perceivers.load(tmp_path, custom_classes=[MyInput]).inputs["x"], MyInput)
    with pytest.raises(PerceiversError, match=r"names the class 'MyInput'.*custom_classes=\[MyInput\]"):
        perceivers.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:system", "'os' declares no entry point of perceivers"),
        ("antigravity:fly", "'antigravity' declares no entry point of perceivers"),
        ("perceivers_of_mine.adapters:Input", "'perceivers_of_mine' declares no entry point"),
        ("perceivers.model.saving:os.system", "is not a part of a model"),
        ("perceivers.model.saving:json", "is not a part of a model"),
        ("perceivers.adapters.array:ArayInput", "has no 'ArayInput': did you mean 'ArrayInput'"),
        ("perceivers.adaptors:ArrayInput", "there is no module 'perceivers.adaptors'"),
        ("perceivers.model.saving:", "is not the import path of a class"),
        ("perceivers.model.saving:a b", "is not the import path of a class"),
    ],
)
def test_a_class_that_may_not_be_or_is_not_there(model, tmp_path, name, message):
    model.save(tmp_path)
    break_config(lambda c: c["model"]["inputs"]["image"].update({"class": name}))(tmp_path)
    before = set(sys.modules)
    with pytest.raises(PerceiversError, match=message):
        perceivers.load(tmp_path)
    assert not {"antigravity", "perceivers_of_mine"} & (set(sys.modules) - before)


def test_what_is_no_model_is_refused(model, tmp_path):
    model.save(tmp_path)
    break_config(lambda c: c.update(model=c["model"]["outputs"]["label"]))(tmp_path)
    with pytest.raises(PerceiversError, match="describes a LabelOutput, not a model"):
        perceivers.load(tmp_path)


def break_config(change):
    def edit(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def truncate(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (truncate("model.safetensors"), "model.safetensors cannot be read .* truncated or damaged"),
        (truncate("config.json"), "config.json is not valid JSON"),
        (break_config(lambda c: c.pop("format")), "was not written by perceivers"),
        (break_config(lambda c: c.update(version=3)), "has version 3 of the format"),
        (
            break_config(lambda c: c["model"].update(latents=5)),
            r"belongs to another model: encoder.latents is \(4, 16\)",
        ),
        (break_config(lambda c: c["model"].update(latent=5)), "no argument 'latent': did you mean 'latents'"),
        (break_config(lambda c: c["model"].pop("latents")), "needs the argument 'latents'"),
        (
            break_config(lambda c: c["model"].update(latents="4")),
            "latents = '4' is not allowed: .* of type int",
        ),
        (break_config(lambda c: c.pop("model")), "has no 'model'"),
        (
            break_config(lambda c: c["model"].update({"class": "perceivers.adapters.image:Patches"})),
            "Patches has no argument",
        ),
        (break_config(lambda c: c["model"].update({"class": "os.system"})), "names the class 'os.system'"),
    ],
)
def test_damaged_models_are_refused(model, tmp_path, damage, message):
    model.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(PerceiversError, match=message):
        perceivers.load(tmp_path)


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["PerceiverForMaskedLM"]}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(PerceiversError, match="was not written by perceivers"):
        perceivers.load(tmp_path)


def test_an_unknown_name_is_refused():
    with pytest.raises(PerceiversError, match="neither a folder nor a file here"):
        perceivers.load("nobody/no-such-model")


def test_an_unwritable_path_is_refused(model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PerceiversError, match=r"cannot write .*choose another output path"):
        model.save(tmp_path / "file" / "model")


def test_nothing_half_written_remains(model, tmp_path, monkeypatch):
    def fail(tensors, file):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("perceivers.model.saving.save_file", fail)
    with pytest.raises(PerceiversError, match="disk full; choose another output path"):
        model.save(tmp_path)
    assert list(tmp_path.iterdir()) == []
