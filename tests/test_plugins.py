"""Objects by name and by import path."""

import subprocess
import sys

import pytest

from perceivers import PerceiversError, plugins
from perceivers.presets import Preset, find_preset
from perceivers.training.experiment import Experiment


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that modules can be imported from; what was imported is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def install(folder, package, group, entries):
    """Lets a folder look like one that pip installed a package into."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"[perceivers.{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    with (info / "entry_points.txt").open("a") as file:
        file.write("\n".join(lines) + "\n")
    plugins.scan_packages.cache_clear()


def test_built_ins_are_found_by_name_and_by_import_path():
    assert find_preset("optical_flow") is find_preset("perceivers.flow.model:OPTICAL_FLOW")
    experiment = plugins.find_class("experiments", "optical_flow", Experiment)
    assert (experiment.__module__, experiment.__name__) == ("perceivers.flow.training", "OpticalFlow")
    assert experiment.name() == "optical_flow"


def test_nothing_but_what_is_asked_for_is_imported():
    code = (
        "import sys; from perceivers import plugins\n"
        "plugins.find_object('models', 'imagenet_fourier')\n"
        "print(sorted({name.split('.')[1] for name in sys.modules if name.startswith('perceivers.')}\n"
        "  & {'images', 'text', 'flow', 'clips', 'starcraft', 'training', 'released'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['images']\n"


def test_another_package_is_as_good_as_this_one(folder):
    (folder / "meadow.py").write_text("from perceivers.flow.model import OPTICAL_FLOW as FIELD\n")
    install(folder, "meadow", "models", {"field": "meadow:FIELD"})
    assert "meadow" not in sys.modules
    assert "field" in plugins.find_entry_points("models")
    assert not plugins.is_trusted("mea")
    assert plugins.is_trusted("meadow")
    assert find_preset("field").experiment == "optical_flow"


def test_two_packages_that_declare_one_name(folder):
    for package in ("meadow", "lawn"):
        (folder / f"{package}.py").write_text("from perceivers.flow.model import OPTICAL_FLOW as FIELD\n")
        install(folder, package, "models", {"field": f"{package}:FIELD"})
    expected = r"the model 'field' is declared by (lawn|meadow) \(\1:FIELD\) and (lawn|meadow) \(.*: uninstall one"
    with pytest.raises(PerceiversError, match=expected):
        find_preset("field")
    install(folder, "lawn", "models", {"optical_flow": "lawn:FIELD"})
    with pytest.raises(PerceiversError, match=r"declared by .*perceivers\.flow\.model:OPTICAL_FLOW"):
        find_preset("optical_flow")


def test_a_package_on_two_paths_is_one(folder, monkeypatch):
    again = folder / "again"
    again.mkdir()
    monkeypatch.syspath_prepend(again)
    (folder / "meadow.py").write_text("from perceivers.flow.model import OPTICAL_FLOW as FIELD\n")
    for place in (folder, again):
        install(place, "meadow", "models", {"field": "meadow:FIELD"})
    assert isinstance(find_preset("field"), Preset)


@pytest.mark.parametrize(
    ("group", "name", "message"),
    [
        ("models", "optical_flo", "there is no model 'optical_flo': did you mean 'optical_flow"),
        ("experiments", "weather", "there is no experiment 'weather': there are: autoencoding, .*import path, such as"),
        ("formats", "onnx", "there is no format 'onnx': there are: haiku, transformers"),
        ("experiments", "nowhere:Forecast", "experiment nowhere:Forecast: there is no module 'nowhere': install"),
        ("experiments", "perceivers.nowhere:Forecast", "there is no module 'perceivers.nowhere'"),
        ("experiments", "perceivers.flow.training:OpticFlow", "has no 'OpticFlow': did you mean 'OpticalFlow'"),
        ("experiments", "perceivers.flow.training:", "is not the import path of an experiment"),
        ("experiments", "../weather:Forecast", "is not the import path"),
        ("experiments", "broken:Forecast", "importing broken fails: ZeroDivisionError: division by zero"),
        ("experiments", "needs:Forecast", "needs needs the module 'not_installed_anywhere', which is not installed"),
    ],
)
def test_what_is_not_found(folder, group, name, message):
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "needs.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(PerceiversError, match=message):
        plugins.find_object(group, name)


def test_an_object_of_another_type_is_refused():
    with pytest.raises(PerceiversError, match="LANGUAGE_BYTES is a Preset, but a subclass of Experiment is expected"):
        plugins.find_class("experiments", "perceivers.text.model:LANGUAGE_BYTES", Experiment)
    with pytest.raises(PerceiversError, match="LanguageConfig is the class LanguageConfig, but a Preset is expected"):
        find_preset("perceivers.text.model:LanguageConfig")
    with pytest.raises(PerceiversError, match="is the class Preset, but a subclass of Experiment is expected"):
        plugins.find_class("experiments", "perceivers.presets:Preset", Experiment)


def test_commands_of_packages_stand_in_the_help(folder, capsys):
    from perceivers.cli import main
    from tests.support.cli import fails

    (folder / "meadow.py").write_text(
        "from typing import Annotated\n"
        "def mow(where: str, *, height: Annotated[int, 'in mm'] = 30):\n"
        "    'Cuts the grass.'\n"
        "    print(f'{where}: {height}')\n"
    )
    (folder / "lawn.py").write_text("1 / 0\n")
    install(folder, "meadow", "commands", {"mow": "meadow:mow"})
    main(["mow", "garden", "--height", "40"])
    assert capsys.readouterr().out == "garden: 40\n"
    install(folder, "lawn", "commands", {"roll": "lawn:roll"})
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "  mow               Cuts the grass.\n" in out
    assert "  roll              not available: the command lawn:roll: importing lawn fails: ZeroDivisionError" in out
    assert "there is no command 'mov': did you mean 'mow'" in fails(capsys, "mov")
    assert "importing lawn fails" in fails(capsys, "roll")
    install(folder, "lawn", "commands", {"table": "meadow:__name__"})
    assert "the command 'table' is a str, but must be a function" in fails(capsys, "table")
