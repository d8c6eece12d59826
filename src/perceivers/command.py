"""Commands: a function is one, and its arguments are the command's.

Parameters before `*` are arguments by position, those after it are options; `*rest` takes what is not understood.
Annotations say the type, the range and the help:

    def roll(sides: Annotated[int, "how many sides"] = 6, *, times: Annotated[Count, "how often"] = 1) -> None:
        \"\"\"Rolls a die.\"\"\"

This module and the modules of commands import nothing heavy: what a command calls is imported inside it.
"""

import argparse
import inspect
import json as json_module
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from perceivers.checks import Range, matches
from perceivers.errors import PerceiversError

Command = Callable[..., None]

ModelArgument = Annotated[str, "a saved model, in any format (see docs/checkpoints.md)"]
Device = Annotated[str | None, "where to compute, such as cuda:1; the accelerator if there is one"]
Precision = Annotated[Literal["float32", "bfloat16", "float16"] | None, "as saved, if not given"]
Json = Annotated[bool, "print JSON"]


@dataclass(frozen=True)
class Metavar:
    """What an argument is called in `--help`, for use in `Annotated`."""

    name: str | tuple[str, ...]


def build_parser(function: Command, prog: str) -> argparse.ArgumentParser:
    """Returns a parser of the arguments of a function."""
    passes_on = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(function).parameters.values())
    parser = argparse.ArgumentParser(prog, description=inspect.getdoc(function), add_help=not passes_on)
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.VAR_POSITIONAL:
            add_argument(parser, parameter, hints.get(name, str))
    return parser


def add_argument(parser: argparse.ArgumentParser, parameter: inspect.Parameter, annotation: Any) -> None:
    """Adds one parameter of a function to a parser."""
    kind, metadata = split_annotation(annotation)
    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    positional = parameter.kind is not parameter.KEYWORD_ONLY
    help_text = next((item for item in metadata if isinstance(item, str)), "")
    if not required and default not in (None, False, (), []) and "(" not in help_text:
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
        help_text += f" ({shown})"
    settings: dict[str, Any] = {"help": help_text.replace("%", "%%"), "default": default}
    if kind is bool:
        parser.add_argument(f"--{parameter.name.replace('_', '-')}", action="store_true", help=settings["help"])
        return
    origin, parts = get_origin(kind), get_args(kind)
    element, element_metadata = kind, metadata
    if origin in (list, tuple):
        element, element_metadata = split_annotation(parts[0])
        fixed = origin is tuple and Ellipsis not in parts
        settings["nargs"] = len(parts) if fixed else "+" if required or not positional else "*"
        if not fixed and not positional:
            settings |= {"action": "extend", "default": list(default or ())}  # may be given several times
    elif positional and not required:
        settings["nargs"] = "?"
    if get_origin(element) is Literal:
        settings["choices"] = list(get_args(element))
    else:
        settings["type"] = read_value(element, element_metadata)
    metavar = next((item.name for item in metadata if isinstance(item, Metavar)), None)
    if metavar is None and "choices" not in settings:
        metavar = parameter.name.upper() if positional or element is not Path else "FILE"
    if metavar is not None:
        settings["metavar"] = metavar
    if positional:
        parser.add_argument(parameter.name, **settings)
    else:
        parser.add_argument(f"--{parameter.name.replace('_', '-')}", required=required, **settings)


def split_annotation(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns the type of an annotation, without None, and what `Annotated` says of it."""
    metadata: tuple[Any, ...] = ()
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            metadata += tuple(more)
        elif get_origin(annotation) in (Union, types.UnionType):
            annotation = next(part for part in get_args(annotation) if part is not type(None))
        else:
            return annotation, metadata


def read_value(kind: Any, metadata: Sequence[Any]) -> Callable[[str], Any]:
    """Returns a function that makes a value of an argument's text, and checks its range."""
    ranges = [item for item in metadata if isinstance(item, Range)]

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a value of type {kind.__name__}") from error
        for bounds in ranges:
            if not matches(value, Annotated[kind, bounds]):
                raise argparse.ArgumentTypeError(f"{text} is not allowed: it must be {bounds}")
        return value

    return read


def run(function: Command, argv: Sequence[str], prog: str) -> None:
    """Calls a function with the arguments of a command line."""
    parser = build_parser(function, prog)
    parameters = inspect.signature(function).parameters
    rest = next((name for name, p in parameters.items() if p.kind is p.VAR_POSITIONAL), None)
    hints = get_type_hints(function, include_extras=True)
    tuples = {name for name, hint in hints.items() if get_origin(split_annotation(hint)[0]) is tuple}
    if rest is None:
        found, unknown = parser.parse_args(argv), list[str]()
    else:
        found, unknown = parser.parse_known_args(argv)
    values = {name: tuple(value) if name in tuples and value else value for name, value in vars(found).items()}
    positional = [values.pop(name) for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    function(*positional, *unknown, **values)


def print_json(value: Any) -> None:
    """Prints a value as JSON."""
    print(json_module.dumps(value, indent=2))


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Prints columns side by side, numbers to the right."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = [
            cell.rjust(width) if any(r[column][:1].isdigit() for r in table[1:]) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def print_classes(classes: Mapping[str, float]) -> None:
    """Prints classes with their probabilities."""
    for name, probability in classes.items():
        print(f"  {probability:7.2%}  {name}")


def print_files_classes(files: Sequence[str], answers: Sequence[Mapping[str, float]], top: int, json: bool) -> None:
    """Prints the most probable classes of each file."""
    best = [dict(list(answer.items())[:top]) for answer in answers]
    if json:
        print_json([{"file": file, "classes": classes} for file, classes in zip(files, best, strict=True)])
        return
    for file, classes in zip(files, best, strict=True):
        print(file)
        print_classes(classes)


def read_lines(path: str | Path) -> list[str]:
    """Returns the lines of a file.

    Raises:
        PerceiversError: it cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PerceiversError(f"{path} cannot be read as lines of text ({error}).") from error


def read_text(text: str | None, file: str | None, command: str) -> str:
    """Returns a command's text: from the command line, a file, or standard input.

    Raises:
        PerceiversError: none or several of these are given, or it cannot be read.
    """
    if (file is None) == (text is None):
        raise PerceiversError(f"{command} needs one text: as an argument, with --file, or '-' for standard input.")
    if text is not None and text != "-":
        return text
    try:
        content = sys.stdin.buffer.read() if file is None else Path(file).read_bytes()
        return content.decode().removesuffix("\n")  # the last line's end, which editors and shells add
    except (OSError, UnicodeDecodeError) as error:
        raise PerceiversError(f"{file or 'standard input'} cannot be read as text ({error}).") from error
