"""What shells complete, as they do it where they are installed."""

import shutil
import subprocess

import pytest

from perceivers.cli import main

CASES = {
    "perceivers de": {"demo"},
    "perceivers make": {"make-flow-data"},
    "perceivers fit flow/": {"flow/light_gpu", "flow/mini", "flow/paper"},
    "perceivers fit digits --print": {"--print_config"},
    "perceivers sweep sweeps/d": {"sweeps/digits"},
    "perceivers configs lang": None,
    "perceivers models autoencoder_": {"autoencoder_88x", "autoencoder_176x", "autoencoder_352x"},
    "perceivers fill-mask model text --dt": {"--dtype"},
    "perceivers fill-mask model --dtype b": {"bfloat16"},
    "perceivers fill-mask --dtype float32 --to": {"--top"},
    "perceivers convert model out --to tr": {"transformers"},
    "perceivers completion z": {"zsh"},
}
"""The words that complete a line; None: at least ten."""

BASH = """
source ./script
COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_perceivers
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def complete(shell, line, folder):
    if shell == "bash":
        command = ["bash", "--norc", "-c", BASH.format(line=line)]
    else:
        command = ["fish", "--no-config", "-c", f"source ./script; complete -C '{line}'"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return {word.split("\t")[0] for word in done.stdout.splitlines()}


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes(shell, tmp_path, capsys):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    main(["completion", shell])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    for line, expected in CASES.items():
        found = complete(shell, line, tmp_path)
        assert found == expected if expected is not None else len(found) > 10, line


def test_files_are_completed_where_a_command_takes_them(tmp_path, capsys):
    main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    assert complete("bash", "perceivers flow fr", tmp_path) == {""}
    assert "complete -o default" in (tmp_path / "script").read_text()


def test_zsh_takes_the_script_of_bash(capsys):
    main(["completion", "bash"])
    bash = capsys.readouterr().out
    main(["completion", "zsh"])
    first, _, rest = capsys.readouterr().out.partition("\n")
    assert rest == bash
    assert first.endswith("bashcompinit")
