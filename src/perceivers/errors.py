"""The error for all problems that users can solve themselves."""

import difflib
from collections.abc import Iterable


class PerceiversError(ValueError):
    """Says in one sentence what is wrong, with which file or field, what was expected and what to do.

    The command line prints the sentence and exits with 2; any other exception is a bug and keeps its traceback.
    """


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """Returns the end of a sentence about an unknown `name`: the closest of `allowed`, or a list of them all."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}."
