"""Trains a model of a table from the names of the columns to predict."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from perceivers.checkpoints.load import load_model
from perceivers.command import print_table
from perceivers.errors import PerceiversError, quote
from perceivers.model.saving import atomic_write
from perceivers.tables.data import open_tables
from perceivers.tables.guess import Guess, guess_columns
from perceivers.tables.model import TableModel
from perceivers.tables.windows import FUTURE, HISTORY, SERIES
from perceivers.values import parse_yaml

CONFIG = "table.yaml"
"""The file in the folder of a run with the config that was guessed."""

UNNAMED = ("train", "training", "data", "table")
"""Names of files that do not say what they are about: the run has the name of their folder."""


def guess_config(data: Path, options: Mapping[str, str]) -> dict[str, Any]:
    """Returns the config of a run for a table, and prints the types of columns that it guesses.

    Args:
        data: the table.
        options: `predict`, the columns to predict, separated by commas; `ignore`, columns to leave out; and, if the
            table is one of series, `data.window`.

    Raises:
        PerceiversError: the table cannot be read, or a column cannot be predicted.
    """
    tables = open_tables(str(data))
    table = tables.get(None) or tables.get("train") or next(iter(tables.values()))
    predict, ignore = (split_names(options.get(name, ""), table.columns) for name in ("predict", "ignore"))
    config: dict[str, Any] = {"experiment": "table", "data": {"path": str(data)}}
    if "data.window" in options:
        window = parse_yaml(options["data.window"], "--data.window")
        if predict and isinstance(window, dict):
            window["series"] = predict
        config["data"] |= {"window": window, "hide": 0.0}
        config |= {"model": {"channels": 16, "dropout": 0.3}, "optimization": {"lr": 1e-3}}  # against overfitting
        config["inputs"] = {HISTORY: "series", SERIES: "category"}
        config["outputs"] = {FUTURE: {"type": "series", "follows": HISTORY}}
        return config
    if not predict:
        names = ", ".join(map(quote, list(table.columns)[:50]))
        raise PerceiversError(f"fit {data} needs --predict with one of its columns: {names}.")
    guesses = guess_columns(table, predict, ignore)
    print_guesses(table.name, len(table.indices), guesses, predict)
    config["inputs"] = {guess.name: guess.type for guess in guesses if guess.type and guess.name not in predict}
    config["outputs"] = {guess.name: guess.type for guess in guesses if guess.name in predict}
    return config


def split_names(text: str, columns: Mapping[str, Any]) -> list[str]:
    """Returns names separated by commas; a name that has one itself is found whole."""
    return [text] if text in columns else [name.strip() for name in text.split(",") if name.strip()]


def print_guesses(name: str, rows: int, guesses: Iterable[Guess], predict: Sequence[str]) -> None:
    """Prints the types of the columns of a table."""
    print(f"{name}: {rows:,} rows")
    cells = list[list[str]]()
    for guess in guesses:
        use = "predicted" if guess.name in predict else "left out" if guess.type is None else "input"
        cells.append([guess.name, use, guess.type or "", guess.reason])
    print_table(["column", "use", "type", "example"], cells)


def write_config(data: Path, options: Mapping[str, str], output: Path | None) -> Path:
    """Writes the config of `guess_config` to the folder of its run, and returns its path.

    The file of an earlier run is kept: it may have been edited.
    """
    stem = data.parent.name if data.stem.lower() in UNNAMED and data.parent.name else data.stem
    output = output or Path("runs") / (stem or "table")
    file = output / CONFIG
    if file.exists():
        raise PerceiversError(
            f"{output} holds a run already: continue it by `perceivers fit {file} --training.resume=true`, "
            f"or choose another --training.output."
        )
    config = guess_config(data, options) | {"training": {"output": str(output)}}
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120)
    atomic_write(file, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"\nThe config is {file}: edit it to change types and settings.\n")
    return file


def fit_table(
    data: Any,
    predict: str | Sequence[str],
    *,
    ignore: Sequence[str] = (),
    types: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    **settings: Mapping[str, Any],
) -> TableModel:
    """Trains a model of a table and returns it.

    Args:
        data: a pandas DataFrame, or the path of a table.
        predict: the column, or columns, to predict.
        ignore: columns to leave out.
        types: types of columns that are not to be guessed, as in a config: {"zipcode": "category"}.
        output: folder of the run; by default a new one, runs/table or, if it exists, runs/table_2, and so on.
        settings: sections of the config: `trainer={"max_epochs": 20}`, `model={"size": "small"}`, `data={"folds": 5}`.

    Raises:
        PerceiversError: the table cannot be read, a column cannot be predicted, or a setting is wrong.

    Examples:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"size": [1.0, 2.0, 3.0, 4.0] * 10, "color": ["red", "blue"] * 20})
        >>> frame["weight"] = 2.5 * frame["size"]
        >>> model = fit_table(frame, "weight", output="runs/weights", trainer={"max_epochs": 1})
        runs/weights/table.parquet: 40 rows
        ...
        >>> list(model.predict(frame.head(3)).columns)
        ['weight', 'weight_predicted']
    """
    from perceivers.training.config import read_config

    folder = next_folder(Path("runs/table")) if output is None else Path(output)
    if isinstance(data, str | Path):
        path = Path(data)
    else:
        path = folder / "table.parquet"
        atomic_write(path, lambda file: data.to_parquet(file, index=False))
    options = {"predict": predict if isinstance(predict, str) else ",".join(predict), "ignore": ",".join(ignore)}
    config = guess_config(path, options)
    if path.parent == folder:
        config["data"]["root"] = str(Path.cwd())  # paths in the cells of a frame are those of the program
    for name, kind in (types or {}).items():
        config["outputs" if name in config["outputs"] else "inputs"][name] = kind
    for section, values in settings.items():
        config[section] = {**config.get(section, {}), **values} if isinstance(values, Mapping) else values
    config["training"] = {**config.get("training", {}), "output": str(folder)}
    file = folder / CONFIG
    atomic_write(file, lambda path: path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True)))
    model = load_model(read_config(file).run() / "model")
    assert isinstance(model, TableModel)
    return model.eval()


def next_folder(folder: Path) -> Path:
    """Returns a folder that does not exist: this one, or with a number from 2 after its name."""
    numbers = (folder.with_name(f"{folder.name}_{number}") for number in range(2, 10_000))
    return next(path for path in (folder, *numbers) if not path.exists())
