"""Draws the examples of some classes more often than those of others."""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from perceivers.checks import Range
from perceivers.errors import PerceiversError, did_you_mean

ClassWeights = Literal["balanced"] | dict[str, Annotated[float, Range(above=0)]] | None
"""The number of times that training draws an example of each class for one of a class that is not named; "balanced":
all classes equally often; None: every example once in an epoch."""


def weigh_examples(weights: ClassWeights, classes: Sequence[str], labels: Sequence[Any]) -> list[float] | None:
    """Returns the weight with which each example is drawn, see `Samples.weights`.

    Args:
        weights: those of the classes.
        classes: the names of the classes.
        labels: the class index of each example.

    Raises:
        PerceiversError: a class does not exist, or several classes can apply to an example.
    """
    if weights is None:
        return None
    if any(isinstance(label, tuple) for label in labels):
        raise PerceiversError("class_weights is for examples of one class each: leave it out.")
    if weights == "balanced":
        counts = Counter(labels)
        return [1 / counts[label] for label in labels]
    for name in weights:
        if name not in classes:
            raise PerceiversError(f"class_weights names the class {name!r}: {did_you_mean(name, classes)}")
    return [float(weights.get(classes[label], 1)) for label in labels]
