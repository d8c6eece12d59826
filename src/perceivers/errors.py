"""The error for all problems that users can solve themselves."""

import difflib
from collections.abc import Iterable


class PerceiversError(ValueError):
    """Says in one sentence what is wrong, with which file or field, what was expected and what to do.

    The command line prints the sentence and exits with 2; any other exception is a bug and keeps its traceback. The
    sentence is one line: characters that cannot be printed are shown as escapes, and the middle of a long one is cut.

    Examples:
        >>> import perceivers
        >>> perceivers.load("nowhere")
        Traceback (most recent call last):
            ...
        perceivers.errors.PerceiversError: nowhere ...
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shorten(printable(str(message)), 1000))


def printable(text: str) -> str:
    """Replaces characters that cannot be printed, such as line breaks and those that control a terminal, by escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shorten(text: str, most: int) -> str:
    """Cuts the middle of a text that is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2 - 3]} ... {text[len(text) - most // 2 + 2 :]}"


def quote(value: object) -> str:
    """Returns the source form of a value, shortened, for an error."""
    try:
        return shorten(repr(value), 200)
    except (ValueError, RecursionError):  # an integer of more than 4,300 digits, or deep nesting
        return f"a long {type(value).__name__}"


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Returns the end of a sentence about an unknown `name`: the closest of `allowed`, or a list of them all."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}."
