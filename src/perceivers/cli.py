"""The command `perceivers`, which imports and runs one of the commands: functions that entry points declare."""

import errno
import inspect
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import NoReturn

from perceivers import extras, plugins
from perceivers.command import Command, Parser, run
from perceivers.errors import PerceiversError, did_you_mean, printable, shorten
from perceivers.progress import show_progress

EXAMPLES = """\
examples:
  perceivers demo                                     train on handwritten digits, in minutes
  perceivers models                                   the paper's models, with parameters and FLOPs
  perceivers configs                                  the configs that come with the package
  perceivers configs flow/mini --copy my.yaml
  perceivers fit digits --trainer.max_epochs=5        a config by its name, or a file
  perceivers fit CONFIG --help                        every field of that experiment's config
  perceivers fit houses.csv --predict price           any table: the types of its columns are guessed
  perceivers sweep digits
  perceivers evaluate runs/demo/model --data digits
  perceivers evaluate MODEL --help                    the options for models of that experiment
  perceivers predict runs/demo/model pictures/ --out predictions.parquet
  perceivers explain runs/houses/model --data houses.csv --out report.html
  perceivers classify-image runs/demo/model picture.png
  perceivers fill-mask MODEL "This is an incomplete sentence where some words are[MASK*9]"
  perceivers generate MODEL "Once upon" --length 200 --temperature 0.8
  perceivers classify-text MODEL "A film to see twice."
  perceivers attention MODEL "A film to see twice." --out attention.html
  perceivers flow frame1.png frame2.png --out flow.flo --picture flow.png
  perceivers classify-clip MODEL clip.mp4 sound.wav --windows 16
  perceivers autoencode MODEL clip.mp4 --out reconstruction.mp4
  perceivers serve runs/demo/model                    a page for a browser, and a JSON API
  perceivers make-flow-data pairs/ --pairs 1000
  perceivers prepare-replays replays/ tables/
  perceivers train-tokenizer texts/ --out words.model --vocabulary 32000
  perceivers convert language_perceiver_io_bytes.pickle language --to transformers
  perceivers export runs/demo/model digits.onnx --to onnx
  source <(perceivers completion bash)                completes commands, options and configs; also zsh, fish

Every command takes --help; --quiet, which hides how far it has come; and --trust PACKAGE (repeatable), which allows
saved models to use classes of your own package, installed or in the current folder. With --json, a command prints its
answer as JSON.
"""

SYSTEM_ERRORS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
)
"""Errors of files that only the user can solve."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command; a problem that the user can solve ends in one sentence and exit status 2."""
    try:
        prepare_output()
        try:
            arguments = [expand_home(argument) for argument in (sys.argv[1:] if argv is None else argv)]
            if any("\0" in argument for argument in arguments):
                raise PerceiversError("an argument has a zero byte: leave it out.")
            name, rest, is_quiet = read_command(arguments)
            with show_progress(loops=not is_quiet, runs=not is_quiet):
                run(find_command(name), rest, f"perceivers {name}")
        finally:
            sys.stdout.flush()
    except (PerceiversError, ModuleNotFoundError) as error:
        message = error if isinstance(error, PerceiversError) else extras.describe_missing(error.name)
        if message is None:
            raise
        fail(message)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `| head`, has closed the pipe
        discard_output()
        sys.exit(141)
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        if error.filename is not None:
            fail(f"{shorten(printable(str(error.filename)), 500)} cannot be read or written: {error.strerror}.")
        discard_output()
        fail(f"the output cannot be written: {error.strerror}.")


def prepare_output() -> None:
    """Makes the output show characters that its encoding lacks as escapes; raises a PerceiversError if it is closed."""
    if sys.stdout is None:
        raise PerceiversError("the standard output is closed: redirect it to /dev/null to ignore it.")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def discard_output() -> None:
    """Discards what is left to be written at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: object) -> NoReturn:
    """Prints the sentence of an error and exits with 2."""
    with suppress(OSError):  # the errors cannot be written, either
        print(f"perceivers: {message}", file=sys.stderr)
    sys.exit(2)


def expand_home(argument: str) -> str:
    """Replaces "~/" at the beginning of an argument, or of the value in `--option=value`, by the home folder."""
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return f"{option}{equals}{os.path.expanduser(value)}" if value.startswith("~/") else argument


def read_command(argv: list[str]) -> tuple[str, list[str], bool]:
    """Returns the name of the command, its arguments, and whether its progress is hidden.

    Handles `--trust`, `--quiet`, `--help` and `--version`.
    """
    parser = Parser("perceivers", add_help=False, allow_abbrev=False)
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE")
    parser.add_argument("--quiet", action="store_true")
    found, argv = parser.parse_known_args(argv)
    for package in found.trust:
        plugins.trust(package)
    if not argv or argv[0] in ("-h", "--help"):
        print(describe_commands())
        sys.exit(0 if argv else 2)
    if argv[0] == "--version":
        print(version("perceivers"))
        sys.exit(0)
    return argv[0], argv[1:], found.quiet


def find_command(name: str) -> Command:
    """Returns the function of a command.

    Raises:
        PerceiversError: there is none, several packages declare it, or it is not a function.
    """
    if name not in (names := plugins.find_entry_points("commands")):
        raise PerceiversError(f"there is no command {name!r}: {did_you_mean(name, names)}")
    function = plugins.find_object("commands", name)
    if not inspect.isfunction(function):
        raise PerceiversError(f"the command {name!r} is {plugins.describe_value(function)}, but must be a function.")
    return function


def describe_commands() -> str:
    """Returns the help of `perceivers`: all installed commands, and examples."""
    rows = []
    for name in plugins.find_entry_points("commands"):
        try:
            summary = (inspect.getdoc(find_command(name)) or "").partition("\n")[0]
        except PerceiversError as error:  # a broken package must not hide the others
            summary = f"not available: {error}"
        rows.append(f"  {name:<18}{summary}")
    return "\n\n".join(["usage: perceivers COMMAND ...", "\n".join(["commands:", *rows]), EXAMPLES])
