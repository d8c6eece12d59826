"""The splits of data sets: their names, and the part of a data set that is measured or predicted."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from perceivers.checks import ProperFraction
from perceivers.errors import PerceiversError

SPLITS = {"train": ("train", "training"), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}
"""The names that each split has in data sets, in any case of letters."""

TRAINING_NAMES = SPLITS["train"]
EVALUATION_NAMES = (*SPLITS["val"], *SPLITS["test"])

SplitOption = Annotated[
    Literal["train", "val", "test"] | None,
    "split of the data; by default test if there is one, else val, else all of it",
]

HeldOut = Annotated[
    ProperFraction | None, "without a split for evaluation: only the fraction of the data that training held out"
]


def find_splits(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns the names of a data set's parts that are splits, by split: "train", "val" or "test"."""
    names = list(names)
    found = {split: [name for known in SPLITS[split] for name in names if name.lower() == known] for split in SPLITS}
    return {split: parts for split, parts in found.items() if parts}


def choose_splits(names: Iterable[str], split: str | None, source: object) -> list[tuple[str, str]]:
    """Returns the split to use and its name in the data, then those to use instead if it has no labels.

    Without a choice, that is the split for testing if there is one, then that for validation, or else all there is.

    Args:
        names: names of the parts of a data set.
        split: "train", "val" or "test", if the user has chosen.
        source: the data set, for errors.

    Returns:
        Nothing if the data set has no splits and none was chosen.

    Raises:
        PerceiversError: the data set does not have the chosen split.
    """
    found = find_splits(names)
    if split is not None and split not in found:
        there = f"only {' and '.join(found)}" if found else "nor any other: leave out --split to use all of it"
        raise PerceiversError(f"{source} has no split {split!r}, {there}.")
    default = sorted(found.keys() - {"train"}) or list(found)  # "test" comes before "val"
    order = default if split is None else [split]
    return [(name, part) for name in order for part in found[name]]


@dataclass(frozen=True)
class Part:
    """The part of a data set that is used, for messages.

    Attributes:
        noun: the name of an example, such as "image".
        count: number of examples in the part.
        total: number of examples in the data set; None if they were not counted.
        split: "train", "val" or "test"; None for all of a data set without splits.
    """

    noun: str
    count: int
    total: int | None
    split: str | None = None

    def __str__(self) -> str:
        name = "" if self.split is None else f" ({self.split})"
        total = "" if self.total is None else f" of {self.total:,}"
        return f"{self.count:,}{total} {self.noun}{'s'[: (self.total or self.count) > 1]}{name}"

    def fields(self) -> dict[str, Any]:
        """Returns the attributes as they are printed in JSON."""
        return {f"{self.noun}s": self.count, "total": self.total, "split": self.split}
