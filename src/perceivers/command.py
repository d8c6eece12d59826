"""Turns functions into commands: the parameters of a function are the arguments of its command.

Parameters before `*` are positional arguments, those after it are options; `*rest` takes unknown arguments.
Annotations give the type, the range and the help text:

    def roll(sides: Annotated[int, "how many sides"] = 6, *, times: Annotated[Count, "how often"] = 1) -> None:
        \"\"\"Rolls a die.\"\"\"

This module and the modules of commands import nothing heavy: a command imports inside its function.
"""

import argparse
import inspect
import json as json_module
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from perceivers import files
from perceivers.checks import Count, Range
from perceivers.errors import PerceiversError, printable, shorten
from perceivers.files import decode

Command = Callable[..., None]

ModelArgument = Annotated[str, "a saved model, in any format (see docs/checkpoints.md)"]
Device = Annotated[str | None, "device, such as cuda:1; by default the accelerator if there is one"]
Precision = Annotated[Literal["float32", "bfloat16", "float16"] | None, "precision; by default that of the saved model"]
Json = Annotated[bool, "print JSON"]


@dataclass(frozen=True)
class Metavar:
    """The name of an argument's value in `--help`, for use in `Annotated`."""

    name: str | tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """Finds the words that a shell completes an argument to, for use in `Annotated`; other values are allowed."""

    find: Callable[[], Iterable[str]]


ClassNames = Annotated[str | None, "names of the classes, one per line, in order", Metavar("FILE")]
TopClasses = Annotated[Count, "number of classes for each row, the most probable ones"]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def print_help(self, file: Any = None) -> None:
        print(self.format_help(), end="", file=file)  # argparse ignores that it cannot be written

    def error(self, message: str) -> NoReturn:
        name = self.prog.replace(" ", ": ", 1)  # as other errors, "perceivers: " and a sentence
        self.exit(2, f"{name}: {shorten(printable(message), 1000)} (see --help)\n")


def add_argument(parser: argparse.ArgumentParser, parameter: inspect.Parameter, annotation: Any) -> None:
    """Adds one parameter of a function to a parser."""
    kind, metadata = split_annotation(annotation)
    option = f"--{parameter.name.replace('_', '-')}"
    is_required = parameter.default is parameter.empty
    default = None if is_required else parameter.default
    is_positional = parameter.kind is not parameter.KEYWORD_ONLY
    help_text = next((item for item in metadata if isinstance(item, str)), "")
    if default not in (None, False, (), []) and "(" not in help_text:
        help_text += f" ({' '.join(map(str, default)) if isinstance(default, list | tuple) else default})"
    help_text = help_text.replace("%", "%%")
    if kind is bool:
        parser.add_argument(option, action="store_true", help=help_text)
        return
    settings: dict[str, Any] = {"help": help_text, "default": default}
    element, element_metadata = kind, metadata
    if get_origin(kind) in (list, tuple):
        parts = get_args(kind)
        element, element_metadata = split_annotation(parts[0])
        has_fixed_length = get_origin(kind) is tuple and Ellipsis not in parts
        settings["nargs"] = len(parts) if has_fixed_length else "+" if is_required or not is_positional else "*"
        if not has_fixed_length and not is_positional:
            settings |= {"action": "extend", "default": list(default or ())}  # may be given several times
    elif is_positional and not is_required:
        settings["nargs"] = "?"
    metavar = next((item.name for item in metadata if isinstance(item, Metavar)), None)
    if get_origin(element) is Literal:
        settings["choices"] = list(get_args(element))
    else:
        settings["type"] = make_reader(element, element_metadata)
        metavar = metavar or (parameter.name.upper() if is_positional or element is not Path else "FILE")
    if metavar is not None:
        settings["metavar"] = metavar
    if is_positional:
        parser.add_argument(parameter.name, **settings)
    else:
        parser.add_argument(option, required=is_required, **settings)


def split_annotation(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns the type of an annotation, without None, and the metadata of `Annotated`."""
    metadata: tuple[Any, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            metadata += tuple(more)
        elif get_origin(annotation) in (Union, types.UnionType):
            annotation = next(part for part in get_args(annotation) if part is not type(None))
        else:
            return annotation, metadata


def make_reader(kind: Any, metadata: Sequence[Any]) -> Callable[[str], Any]:
    """Returns a function that converts the text of an argument to a type and checks its range."""

    def read_value(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a value of type {kind.__name__}") from error
        for item in metadata:
            if isinstance(item, Range) and value not in item:
                raise argparse.ArgumentTypeError(f"{text} is not allowed: it must be {item}")
        return value

    return read_value


def add_options(function: Command, other: Callable[..., Any]) -> Command:
    """Returns a command that also has the options of another function, and passes them on as keyword arguments."""

    def command(*arguments: Any, **options: Any) -> None:
        function(*arguments, **options)

    parameters = [
        *(p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD),
        *(p for p in inspect.signature(other).parameters.values() if p.kind is p.KEYWORD_ONLY),
    ]
    command.__doc__ = function.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = get_type_hints(other, include_extras=True) | get_type_hints(function, include_extras=True)
    return command


def run(function: Command, argv: Sequence[str], prog: str) -> None:
    """Calls a function with the arguments of a command line."""
    parameters = inspect.signature(function).parameters.values()
    hints = get_type_hints(function, include_extras=True)
    takes_rest = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    parser = Parser(prog, description=inspect.getdoc(function), add_help=not takes_rest)
    for parameter in parameters:
        if parameter.kind is not parameter.VAR_POSITIONAL:
            add_argument(parser, parameter, hints.get(parameter.name, str))
    found, rest = parser.parse_known_args(argv) if takes_rest else (parser.parse_args(argv), [])
    tuples = {name for name, hint in hints.items() if get_origin(split_annotation(hint)[0]) is tuple}
    values = {name: tuple(value) if name in tuples and value else value for name, value in vars(found).items()}
    positional = [values.pop(p.name) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    function(*positional, *rest, **values)


def print_json(value: Any) -> None:
    """Prints a value as JSON."""
    try:
        print(json_module.dumps(value, indent=2, allow_nan=False))
    except ValueError as error:
        raise PerceiversError(
            "the results have NaN or infinite values, which JSON cannot hold: check the model."
        ) from error


def print_answer(answer: Mapping[str, Any], text: str, json: bool) -> None:
    """Prints an answer as JSON, or else its text."""
    if json:
        print_json(answer)
    else:
        print(text)


@contextmanager
def print_aside(json: bool) -> Iterator[None]:
    """Sends what is printed within to standard error if the answer is JSON, so that the output holds nothing else."""
    with redirect_stdout(sys.stderr) if json else nullcontext():
        yield


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Prints a table, with numbers aligned to the right."""
    columns = []
    for title, *cells in zip(header, *([printable(cell) for cell in row] for row in rows), strict=True):
        width = max(map(len, (title, *cells)))
        is_number = any(cell[:1].isdigit() for cell in cells)
        columns.append([cell.rjust(width) if is_number else cell.ljust(width) for cell in (title, *cells)])
    for row in zip(*columns, strict=True):
        print("  ".join(row).rstrip())


def print_classes(classes: Mapping[str, float]) -> None:
    """Prints classes with their probabilities."""
    for name, probability in classes.items():
        print(f"  {probability:7.2%}  {printable(name)}")


Answer = Mapping[str, float] | PerceiversError
"""Probabilities by class, most probable first, or why there are none."""


def print_answers(
    unit: Literal["file", "text"],
    rows: Sequence[str | tuple[str, ...]],
    answers: Sequence[Answer],
    top: int,
    json: bool,
) -> None:
    """Prints files or texts, and for each its most probable classes, or its score, or why there is no answer.

    Raises:
        PerceiversError: there is only one, and it has no answer.
        SystemExit: several were printed, and one of them has no answer.
    """
    if len(answers) == 1 and isinstance(answers[0], PerceiversError):
        raise answers[0]
    best = [answer if isinstance(answer, PerceiversError) else dict(list(answer.items())[:top]) for answer in answers]
    if json:
        print_json([{unit: row} | describe_answer(answer) for row, answer in zip(rows, best, strict=True)])
    else:
        for row, answer in zip(rows, best, strict=True):
            title = row if isinstance(row, str) else "\n".join(row)
            print(printable(title) if unit == "file" else title)
            if isinstance(answer, PerceiversError):
                print(f"  error: {answer}")
            elif answer.keys() == {"score"}:
                print(f"  {answer['score']:.4f}")
            else:
                print_classes(answer)
    if any(isinstance(answer, PerceiversError) for answer in answers):
        sys.exit(1)


def describe_answer(answer: Answer) -> dict[str, Any]:
    """Returns an answer as it is printed in JSON."""
    if isinstance(answer, PerceiversError):
        return {"error": str(answer)}
    return dict(answer) if answer.keys() == {"score"} else {"classes": answer}


def read_text(text: str | None, file: str | None, command: str) -> str:
    """Returns the text of a command: from the command line, a file, or standard input ("-").

    Raises:
        PerceiversError: neither or both are given, or the file cannot be read.
    """
    if (file is None) == (text is None):
        raise PerceiversError(f"{command} needs one text: as an argument, with --file, or '-' for standard input.")
    if text is not None and text != "-":
        return text
    content = decode(sys.stdin.buffer.read(), "standard input") if file is None else files.read_text(file)
    return content.removesuffix("\n")  # editors and shells end the last line
