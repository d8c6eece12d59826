"""The configs of the package, by name."""

import json

import pytest
import yaml

from perceivers.cli import main
from perceivers.config_files import CONFIGS, find_config_file, list_configs
from perceivers.errors import PerceiversError
from perceivers.training.sweep import read_sweep
from tests.support.cli import fails


def test_a_config_has_several_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits = CONFIGS / "image_classification/digits.yaml"
    for name in ("digits", "digits.yaml", "image_classification/digits", "configs/image_classification/digits.yaml"):
        assert find_config_file(name) == digits
    assert find_config_file("digits", sweep=True) == CONFIGS / "sweeps/digits.yaml"
    assert find_config_file("configs/starcraft/split.json") == CONFIGS / "starcraft/split.json"
    (tmp_path / "digits").write_text("mine")
    assert find_config_file("digits").read_text() == "mine"


def test_a_sweep_finds_its_config_without_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = read_sweep("digits")
    assert sweep.trials == 20
    assert sweep.make_experiment(0, {}).model.latents == 32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mini", "mini is the name of 2 configs: give one of autoencoding/mini, flow/mini."),
        ("digit", "there is no config file digit: did you mean 'digits'?"),
        ("flow/minni.yaml", "there is no config file flow/minni.yaml: did you mean 'flow/mini'?"),
        ("x" * 300, "`perceivers configs` lists those of the package."),
        ("", "`perceivers configs` lists those of the package."),
    ],
)
def test_other_names(name, message):
    with pytest.raises(PerceiversError) as error:
        find_config_file(name)
    assert str(error.value).endswith(message)


def test_the_command_lists_prints_and_copies(tmp_path, capsys):
    main(["configs", "--json"])
    listed = {item["name"]: item["description"] for item in json.loads(capsys.readouterr().out)}
    assert listed.keys() == list_configs().keys()
    assert listed["flow/paper"].startswith("The paper's recipe (Sintel clean 1.81, final 2.42): AutoFlow")
    assert all(20 < len(text) < 140 and "\n" not in text for text in listed.values())
    main(["configs", "digits"])
    assert yaml.safe_load(capsys.readouterr().out)["experiment"] == "image_classification"
    main(["configs", "flow/mini", "--copy", str(tmp_path / "my.yaml")])
    assert (tmp_path / "my.yaml").read_bytes() == (CONFIGS / "flow/mini.yaml").read_bytes()
    assert "my.yaml exists already" in fails(capsys, "configs", "digits", "--copy", str(tmp_path / "my.yaml"))
    assert "--copy needs the name of a config" in fails(capsys, "configs", "--copy", str(tmp_path / "other.yaml"))
    assert not (tmp_path / "other.yaml").exists()
