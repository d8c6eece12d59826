"""docs/extending.md, as a user follows it: from a file beside the config, and as an installed package."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perceivers import plugins
from perceivers.cli import main
from tests.support.runs import assert_equal_results, read_results

ROOT = Path(__file__).parents[1]
SHORT = ["--trainer.max_epochs=3", "--trainer.accelerator=cpu"]


def files():
    """The files that the page shows, by name."""
    page = (ROOT / "docs/extending.md").read_text()
    return dict(re.findall(r"```(?:python|yaml|toml)\n# (\S+)\n(.*?)```", page, re.S))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's files in a folder, which is no checkout and beside nothing of this package."""
    root = tmp_path_factory.mktemp("weather")
    for name, content in files().items():
        (root / name).write_text(content)
    subprocess.run([sys.executable, "make_readings.py"], cwd=root, check=True)
    return root


def run(command, cwd, path=None):
    """Runs a command as in a fresh shell."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1"} | ({} if path is None else {"PYTHONPATH": str(path)})
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def perceivers(folder, monkeypatch, capsys):
    """Runs a command in the folder as a new process would: nothing of the folder is imported or trusted yet."""

    def call(*arguments):
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "path", [*sys.path])
            patch.setattr(plugins, "trusted_packages", {"perceivers"})
            patch.delitem(sys.modules, "weather", raising=False)
            main(arguments)
        return capsys.readouterr().out

    return call


def test_the_package_is_short():
    assert len(files()["weather.py"].splitlines()) < 100


def test_a_file_beside_the_config(folder, perceivers, capsys):
    """Fit, interrupt, resume from another folder's config, evaluate, load."""
    whole, parts = folder / "runs/whole", folder / "runs/weather"
    perceivers("fit", "weather.yaml", *SHORT, f"--training.output={whole}")
    command = [sys.executable, "-m", "perceivers", "fit", "weather.yaml", *SHORT, "--training.output=runs/weather"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as process:
        next(line for line in process.stdout if "evaluated" in line)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert not (parts / "model").exists()
    assert "perceivers fit runs/weather/config.json --training.resume=true" in err
    perceivers("fit", "runs/weather/config.json", "--training.resume=true")
    assert_equal_results(read_results(parts), read_results(whole))

    measured = ["evaluate", "runs/weather/model", "--data", "readings.csv"]
    with pytest.raises(SystemExit) as stop:
        perceivers(*measured)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "was trained by 'weather:Forecast', and 'weather' declares no entry point of perceivers" in err
    assert err.count("\n") == 1
    out = perceivers(*measured, "--trust", "weather")
    assert re.fullmatch(r"mean squared error 0\.\d{4}\n", out)
    assert perceivers("--trust", "weather", *measured) == out
    done = run([sys.executable, "use.py"], folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--model.latents=0", "model.latents = 0 is not allowed: it must be at least 1"),
        ("--model.latent=8", "there is no field 'model.latent': did you mean 'latents'"),
        ("--model.image_size=8", "there is no field 'model.image_size'"),
        ("--model.preset=optical_flow", "model.preset = optical_flow is of optical_flow: Forecast trains a model of"),
        ("--experiment=weather:Forcast", "has no 'Forcast': did you mean 'Forecast'"),
        ("--experiment=weather:Readings", "is the class Readings, but a subclass of Experiment is expected"),
    ],
)
def test_wrong_values_end_in_one_sentence(perceivers, capsys, override, message):
    with pytest.raises(SystemExit) as stop:
        perceivers("fit", "weather.yaml", override)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_help_shows_the_fields_of_the_model(perceivers):
    out = " ".join(perceivers("fit", "weather.yaml", "--help").split())
    assert "--model.sensors (int, at least 1; default: 5) number of sensors." in out
    assert "--model.latents (int, at least 1; required) N, number of latents." in out
    assert '--readings (str; default: "readings.csv") a CSV file with the columns day, sensor, hour, value;' in out


def test_an_installed_package(folder, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site)]
    done = run([sys.executable, "-m", "pip", "install", *options, str(folder)], tmp_path)
    assert done.returncode == 0, done.stderr
    readings = str(folder / "readings.csv")
    commands = [
        ["fit", str(folder / "weather.yaml"), "--experiment=forecast", f"--readings={readings}", *SHORT],
        ["evaluate", "runs/weather/model", "--data", readings],
        ["forecast", "runs/weather/model", readings, "--digits", "3"],
        ["--help"],
    ]
    code = f"from perceivers.cli import main\nfor command in {commands}:\n    main(command)\n    print('end')"
    done = run([sys.executable, "-c", code], elsewhere, site)
    assert done.returncode == 0, done.stderr
    assert '"experiment": "forecast"' in (elsewhere / "runs/weather/config.json").read_text()
    assert '"class": "weather:Readings"' in (elsewhere / "runs/weather/model/config.json").read_text()
    _, error, temperatures, commands = done.stdout.split("end\n")
    assert "mean squared error 0." in error
    assert re.fullmatch(r"(-?\d\.\d{3}[ \n]){24}", temperatures)
    assert "  forecast          Prints the temperature at each hour of the first day in a file.\n" in commands
    assert "  flow              " in commands
