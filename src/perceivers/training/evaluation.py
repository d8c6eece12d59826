"""Finds the experiment of a saved model, which defines its evaluation."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from perceivers import plugins
from perceivers.checkpoints.load import describe_source, is_own, load_model, locate
from perceivers.errors import PerceiversError
from perceivers.training.experiment import Experiment


def find_evaluation(source: str | Path) -> Callable[..., None]:
    """Returns the function that evaluates a saved model: `evaluate` of its experiment.

    Raises:
        PerceiversError: there is no such model, its experiment is unknown, may not be imported, or has no evaluation.
    """
    experiment = find_experiment(source)
    if experiment.evaluate is None:
        raise PerceiversError(f"{source} was trained by {experiment.name()}, which defines no evaluation.")
    return experiment.evaluate


def find_experiment(source: str | Path) -> type[Experiment]:
    """Returns the experiment that a saved model names, or else the first that evaluates such models.

    Models of other formats, and those that were not saved by a training run, name no experiment.
    """
    path = locate(source)
    name = describe_source(path).get("experiment") if is_own(path) else None
    if isinstance(name, str):
        package = name.partition(":")[0].split(".")[0]
        if ":" in name and not plugins.is_trusted(package):
            raise PerceiversError(
                f"{source} was trained by {name!r}, and {package!r} declares no entry point of perceivers: "
                f"if you trust its code, add --trust {package}."
            )
        return plugins.find_class("experiments", name, Experiment)  # type: ignore[type-abstract]
    model = load_model(source)
    for name in plugins.find_entry_points("experiments"):
        with suppress(PerceiversError):  # an experiment that cannot be imported must not hide the others
            experiment = plugins.find_class("experiments", name, Experiment)  # type: ignore[type-abstract]
            if experiment.evaluates(model):
                return experiment
    raise PerceiversError(
        f"{source} holds a {type(model).__name__} that no installed experiment measures "
        f"({', '.join(plugins.find_entry_points('experiments'))})."
    )
