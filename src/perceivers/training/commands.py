"""The commands `fit`, `sweep`, `evaluate` and `predict`."""

from functools import partial
from pathlib import Path
from typing import Annotated

from perceivers.command import Choices, Json, print_aside, print_json, run
from perceivers.config_files import list_configs
from perceivers.errors import PerceiversError
from perceivers.extras import require_extra

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Suffixes of data that `fit` takes instead of a config."""

FLAGS = ("-h", "--help", "--print_config", "--find-lr")
"""Arguments of `fit` that are no fields."""


def fit(
    config: Annotated[
        str | None,
        "YAML or JSON file, one of `perceivers configs`, or a table",
        Choices(partial(list_configs, sweeps=False)),
    ] = None,
    *overrides: Annotated[str, Choices(lambda: (*FLAGS, "--predict", "--ignore"))],
    json: Json = False,
) -> None:
    """Trains a model as described in a config file; `fit CONFIG --help` lists its fields."""
    if config is not None and (Path(config).suffix.lower() in TABLES or "--predict" in overrides):
        require_extra("tables")
        from perceivers.training.config import configure_table

        with print_aside(json):
            config, *overrides = configure_table(Path(config), overrides)  # type: ignore[assignment]
    others = [override for override in overrides if override not in FLAGS]
    if config is None:
        print(
            "usage: perceivers fit CONFIG [--any.field value ...]\n"
            "       perceivers fit TABLE --predict COLUMN[,...] [--ignore COLUMN[,...]] [--any.field value ...]\n\n"
            "CONFIG is a file, or one of `perceivers configs`; with --help, all fields of its experiment are listed,\n"
            "with --print_config, their values; with --find-lr, a learning rate is searched. For a TABLE (.csv, .tsv,\n"
            ".jsonl, .parquet), the types of its columns are guessed, and the config is written."
        )
        if len(others) == len(overrides):
            raise PerceiversError("fit needs a config file, or the name of one, such as digits.")
        return
    from perceivers.training.config import describe_config, format_config, print_search, train_config

    if len(others) == len(overrides):
        train_config(Path(config), overrides, json)
    elif json:
        raise PerceiversError("--json is for the figures of a run: leave it out.")
    elif "--find-lr" in overrides:
        print_search(Path(config), others)
    elif "--print_config" in overrides:
        print(format_config(Path(config), others), end="")
    else:
        print(describe_config(Path(config), others))


def sweep(
    file: Annotated[
        str | None, "YAML or JSON file, or one of `perceivers configs`", Choices(partial(list_configs, sweeps=True))
    ] = None,
    *overrides: str,
    json: Json = False,
) -> None:
    """Trains with different settings and finds the best; `sweep --help` lists the fields of its file."""
    from perceivers.training.checkpoints import is_first_process
    from perceivers.training.sweep import describe_sweep, read_sweep

    if file is None or {"-h", "--help"} & {*overrides}:
        print(describe_sweep())
        if not {"-h", "--help"} & {*overrides}:
            raise PerceiversError("sweep needs a file with the fields to vary.")
        return
    with print_aside(json):
        results = read_sweep(Path(file), overrides).run()
    if json and is_first_process():
        print_json([result._asdict() | {"folder": str(result.folder)} for result in results])


def evaluate(model: Annotated[str | None, "saved model, in any format"] = None, *options: str) -> None:
    """Evaluates a saved model on data; `evaluate MODEL --help` lists the options."""
    if model is None:
        if not options:
            raise PerceiversError("evaluate needs a model, such as runs/demo/model.")
        print(
            "usage: perceivers evaluate MODEL --data DATA [...]\n\n"
            "MODEL is a saved model, in any format. Its experiment defines the options, see evaluate MODEL --help."
        )
        return
    from perceivers.training.evaluation import find_evaluation

    run(find_evaluation(model), [model, *options], "perceivers evaluate")


def predict(model: Annotated[str | None, "saved model, in any format"] = None, *options: str) -> None:
    """Predicts the files of a folder, or the rows of a table; `predict MODEL --help` lists the options."""
    if model is None:
        if not options:
            raise PerceiversError("predict needs a model, such as runs/demo/model.")
        print(
            "usage: perceivers predict MODEL DATA --out predictions.parquet [...]\n\n"
            "MODEL is a saved model, in any format. Its experiment defines some options, see predict MODEL --help."
        )
        return
    from perceivers.training.prediction import find_prediction

    named = options and not options[0].startswith("-")
    run(find_prediction(model), [model, *(["--data"] if named else []), *options], "perceivers predict")
