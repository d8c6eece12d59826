"""Functions as commands."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest

from perceivers.checks import Count, Range
from perceivers.command import Metavar, run

calls = []


def roll(
    dice: Annotated[list[str], "which dice", Metavar("DIE")],
    *,
    out: Path,
    times: Annotated[Count, "how often"] = 1,
    bias: Annotated[float, Range(least=0, most=1)] | None = None,
    kind: Literal["fair", "loaded"] = "fair",
    size: tuple[int, int] = (3, 4),
    labels: Annotated[list[str], "names"] = [],  # noqa: B006
    loud: Annotated[bool, "shout"] = False,
) -> None:
    """Rolls dice.

    More of it.
    """
    calls.append((dice, out, times, bias, kind, size, labels, loud))


def pass_on(first: str | None = None, *rest: str, flag: bool = False) -> None:
    """Takes anything."""
    calls.append((first, rest, flag))


@pytest.fixture(autouse=True)
def no_calls():
    calls.clear()


def test_arguments_become_values_of_their_types():
    run(roll, ["a", "b", "--out", "x/y"], "roll")
    assert calls.pop() == (["a", "b"], Path("x/y"), 1, None, "fair", (3, 4), [], False)
    options = ["--times", "3", "--bias", "0.5", "--kind", "loaded", "--size", "5", "6", "--loud"]
    run(roll, ["a", "--out", "o", *options, "--labels", "p", "q", "--labels", "r"], "roll")
    assert calls.pop() == (["a"], Path("o"), 3, 0.5, "loaded", (5, 6), ["p", "q", "r"], True)


def test_what_is_not_understood_is_passed_on():
    run(pass_on, ["model", "--data", "x", "--flag", "--help"], "pass")
    assert calls.pop() == ("model", ("--data", "x", "--help"), True)
    run(pass_on, [], "pass")
    assert calls.pop() == (None, (), False)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a"], "the following arguments are required: --out"),
        (["--out", "x"], "the following arguments are required: DIE"),
        (["a", "--out", "x", "--times", "0"], "argument --times: 0 is not allowed: it must be at least 1"),
        (["a", "--out", "x", "--times", "many"], "argument --times: 'many' is not a value of type int"),
        (["a", "--out", "x", "--bias", "2"], "argument --bias: 2 is not allowed: it must be at least 0 and at most 1"),
        (["a", "--out", "x", "--kind", "odd"], "argument --kind: invalid choice: 'odd'"),
        (["a", "--out", "x", "--size", "1"], "argument --size: expected 2 arguments"),
        (["a", "--out", "x", "--tims", "1"], "unrecognized arguments: --tims 1"),
    ],
)
def test_wrong_arguments(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        run(roll, argv, "roll")
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not calls


def test_help_says_what_the_annotations_say(capsys):
    with pytest.raises(SystemExit) as stop:
        run(roll, ["--help"], "perceivers roll")
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("usage: perceivers roll ")
    for expected in ("Rolls dice.", "DIE which dice", "--times TIMES how often (1)", "{fair,loaded}", "--loud shout"):
        assert expected in out


def test_the_help_needs_no_torch():
    code = "import sys\ntry:\n    from perceivers.cli import main; main(['--help'])\nfinally:\n"
    code += "    print([name for name in ('torch', 'lightning', 'numpy') if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
