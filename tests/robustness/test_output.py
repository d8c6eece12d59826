"""Names that a terminal cannot print, and outputs that are closed, full, or in another encoding."""

import json
import os
import subprocess
import sys

import pytest

from perceivers.cli import main
from perceivers.errors import PerceiversError, quote
from perceivers.training.config import read_config
from tests.robustness.readers import YAML, image_file
from tests.support import models
from tests.support.cli import fails


def run_shell(command, **environment):
    """Runs a shell command, in which `perceivers` is this package's."""
    script = f'perceivers() {{ {sys.executable} -m perceivers "$@"; }}; set -o pipefail; {command}'
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(["bash", "-c", script], env=variables, capture_output=True, check=False, timeout=120)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["--help", "models --help"])
def test_a_full_output_is_an_error(command, unbuffered):
    done = run_shell(f"perceivers {command} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.stderr == b"perceivers: the output cannot be written: No space left on device.\n"
    assert done.returncode == 2


def test_a_closed_output_is_an_error():
    done = run_shell("perceivers --help >&-")
    assert done.stderr == b"perceivers: the standard output is closed: redirect it to /dev/null to ignore it.\n"
    assert done.returncode == 2
    assert run_shell("perceivers nothing >&- 2>&-").returncode == 2


def test_a_reader_that_has_closed_the_pipe_is_no_error():
    done = run_shell("perceivers --help | true")
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_output_that_is_not_utf8_shows_escapes(tmp_path):
    models.classifier(class_names=["\u00e9t\u00e9", *"abcdefghi"]).save(tmp_path / "model")
    image = image_file("\u00fc.png")(tmp_path)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run_shell(f"perceivers classify-image {tmp_path}/model {image} --top 10", **ascii_only)
    assert done.returncode == 0, done.stderr
    assert b"\\xe9t\\xe9\n" in done.stdout


@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "a\rb", "a\u202eb", "a\udcffb", "a\u2028b"])
def test_names_that_cannot_be_printed_are_shown_as_escapes(tmp_path, capsys, name):
    shown = name.encode("unicode_escape", "surrogatepass").decode()
    for command in (["classify-image", name, "x.png"], ["fit", f"{name}.yaml"], [name], ["models", name]):
        assert shown in fails(capsys, *command)
    models.classifier(class_names=[name.replace("\udcff", "\t"), *"abcdefghi"]).save(tmp_path / "model")
    image = image_file("x.png")(tmp_path)
    file = os.fsdecode(os.fsencode(tmp_path) + os.fsencode(f"/{name}.png"))
    image.rename(file)
    main(["classify-image", str(tmp_path / "model"), file, "--top", "10"])
    out = capsys.readouterr().out
    assert f"{shown}.png\n" in out
    assert all(line.isprintable() for line in out.split("\n"))


def test_errors_are_one_printable_line_of_limited_length():
    error = str(PerceiversError("x" * 5000 + "\n\x1b" + "do this."))
    assert len(error) <= 1000
    assert error.startswith("xxx")
    assert error.endswith("\\n\\x1bdo this.")
    assert quote(16**5000) == "a long int"
    assert len(quote("y" * 5000)) <= 200


@pytest.mark.parametrize("command", [["classify-image", "MODEL", "x"], ["fit", "x"], ["classify-image", "x", "y.png"]])
@pytest.mark.parametrize("length", [300, 5000])
def test_names_that_are_too_long(tmp_path, capsys, command, length):
    models.classifier().save(tmp_path)
    names = {"MODEL": str(tmp_path), "x": "x" * length}
    assert "xxx" in fails(capsys, *(names.get(argument, argument) for argument in command))


def test_zero_bytes_in_names(tmp_path, capsys):
    assert "zero byte" in fails(capsys, "classify-image", "a\0b", "x.png")
    (tmp_path / "x.yaml").write_text(YAML)
    with pytest.raises(PerceiversError):
        read_config(tmp_path / "x.yaml", ['--data.path="a\\0b"'])


def test_the_home_folder_in_arguments(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    models.classifier().save(tmp_path / "model")
    image_file("x.png")(tmp_path)
    main(["classify-image", "~/model", "~/x.png", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["file"] == str(tmp_path / "x.png")
    assert f"{tmp_path}/none" in fails(capsys, "classify-image", "~/model", "~/x.png", "--classes=~/none")


def test_json_never_holds_nan(tmp_path, capsys, monkeypatch):
    models.classifier().save(tmp_path / "model")
    nan = {"top1": float("nan"), "images": 2}
    monkeypatch.setattr("perceivers.images.training.evaluate", lambda *arguments: nan)
    message = "the results have NaN or infinite values, which JSON cannot hold"
    assert message in fails(capsys, "evaluate", str(tmp_path / "model"), "--data", "digits", "--json")


def test_a_system_error_names_the_file(capsys, monkeypatch):
    def fail(*arguments):
        raise PermissionError(13, "Permission denied", "a\x1bb")

    monkeypatch.setattr("perceivers.presets.list_models", fail)
    assert fails(capsys, "models") == "perceivers: a\\x1bb cannot be read or written: Permission denied.\n"
