"""Scripts by which shells complete the commands, their options, and the words of arguments with `Choices`."""

import inspect
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, get_args, get_origin, get_type_hints

from perceivers.command import Choices, Command, split_annotation

SHELLS = ("bash", "zsh", "fish")

BASH = """\
_perceivers() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
    case "$COMP_CWORD ${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}}:$word" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _perceivers perceivers
"""


class Argument(NamedTuple):
    """An argument of a command: its option, "" for one without; its help; and the words that it can be, if known."""

    option: str
    help: str
    words: tuple[str, ...]


def list_arguments(function: Command) -> Iterator[Argument]:
    """Yields the arguments of a command."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, metadata = split_annotation(hints[name])
        choices = [word for item in metadata if isinstance(item, Choices) for word in item.find()]
        words = get_args(kind) if get_origin(kind) is Literal else tuple(choices)
        option = f"--{name.replace('_', '-')}" if parameter.kind is parameter.KEYWORD_ONLY else ""
        yield Argument(option, next((item for item in metadata if isinstance(item, str)), ""), words)
    yield Argument("--help", "how to use the command", ())


def write_script(shell: str, commands: Mapping[str, Command]) -> str:
    """Returns the script of a shell, one of SHELLS, for commands by name. Files are completed, too."""
    if shell == "fish":
        return "\n".join(write_fish(commands)) + "\n"
    script = BASH.format(cases="\n".join(write_cases(commands)))
    return script if shell == "bash" else f"autoload -Uz compinit bashcompinit && compinit && bashcompinit\n{script}"


def write_cases(commands: Mapping[str, Command]) -> Iterator[str]:
    """Yields the lines of bash that choose the words, by place, command, word before, and word that is begun."""

    def write_case(pattern: str, words: Sequence[str]) -> str:
        return f"        {pattern}) words={shlex.quote(' '.join(words))} ;;"

    yield write_case('"1 "*', [*commands, "--help", "--version"])
    for name, function in commands.items():
        arguments = list(list_arguments(function))
        options = [argument.option for argument in arguments if argument.option]
        words = [word for argument in arguments if not argument.option for word in argument.words]
        for argument in arguments:
            if argument.option and argument.words:
                yield write_case(f'*" {name} {argument.option}:"*', argument.words)
        yield write_case(f'*" {name} "*":-"*', [*options, *(word for word in words if word.startswith("-"))])
        yield write_case(f'*" {name} "*', [word for word in words if not word.startswith("-")])


def write_fish(commands: Mapping[str, Command]) -> Iterator[str]:
    """Yields the lines of fish: one for each command and each argument that is an option or has words."""
    for name, function in commands.items():
        summary = (inspect.getdoc(function) or "").partition("\n")[0]
        yield shlex.join(["complete", "-c", "perceivers", "-n", "__fish_use_subcommand", "-a", name, "-d", summary])
        for option, text, words in list_arguments(function):
            if option or words:
                line = ["complete", "-c", "perceivers", "-n", f"__fish_seen_subcommand_from {name}", "-d", text]
                yield shlex.join(line + (["-l", option[2:]] * bool(option)) + (["-xa", " ".join(words)] * bool(words)))
