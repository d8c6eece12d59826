"""Simple methods, fitted beside every model of a table, by scikit-learn. Shape suffixes: R rows, F features."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perceivers.tables.columns import Array, Categories, Category, Column, Date, MaskedText, Number, Series, Text
from perceivers.tables.rows import Rows

Method = Callable[[], Tensor]

MOST_ROWS = 50_000
"""Training rows that simple methods see at most, the first of a random order."""


def compare(
    training: Rows, evaluation: Rows, inputs: Mapping[str, Column], outputs: Mapping[str, Column]
) -> dict[str, dict[str, dict[str, float]]]:
    """Fits simple methods to training rows, and measures them on others.

    Returns:
        The metrics of each column to predict, by its name and that of the method. Only numbers, categories, series and
        arrays have some.
    """
    if len(training) > MOST_ROWS:
        order = np.random.default_rng(0).permutation(len(training))
        training = training.subset(order[:MOST_ROWS].tolist())
    found = dict[str, dict[str, dict[str, float]]]()
    for name, column in outputs.items():
        if not isinstance(column, Number | Category | Series | Array):
            continue
        known = [rows_with(rows, name) for rows in (training, evaluation)]
        targets: list[Any] = [
            column.collate([rows.read(name, column, row) for row in range(len(rows))]) for rows in known
        ]
        if isinstance(column, Series):
            methods = forecast(known, inputs, column, targets[0])
        elif isinstance(column, Array):
            methods = regress(known, inputs, column, targets[0])
        else:
            methods = predict(known, inputs, column, targets[0])
        truth = column.truth(targets[1])
        found[name] = {method: measure(column, answers, truth) for method, answers in methods.items()}
    return found


def rows_with(rows: Rows, name: str) -> Rows:
    """Returns the rows that have a cell in a column."""
    return rows.subset([row for row in range(len(rows)) if rows.cell(name, row) is not None])


def measure(column: Column, answers: Tensor, truth: Any) -> dict[str, float]:
    """Returns the metrics of a column for the answers of a method."""
    metrics = column.metrics()
    for metric in metrics.values():
        metric.update(answers, truth)
    return {name: float(metric.compute()) for name, metric in metrics.items()}


def predict(
    parts: list[Rows], inputs: Mapping[str, Column], column: Number | Category, target: Tensor
) -> dict[str, Tensor]:
    """Returns the answers of simple methods for numbers or categories."""
    is_number = isinstance(column, Number)
    truth = target.numpy() if is_number else column.truth(target).numpy()
    found = dict[str, Tensor]()
    count = len(parts[1])

    def add(method: str, model: Any, features: list[Any]) -> None:
        model.fit(features[0], truth)
        if is_number:
            found[method] = column.answer(torch.from_numpy(np.asarray(model.predict(features[1]), dtype=np.float32)))
            return
        probability = torch.zeros(count, len(column.names), dtype=torch.float64)  # type: ignore[union-attr]
        probability[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_proba(features[1]))
        found[method] = probability

    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline

    nothing = [np.zeros((len(rows), 1)) for rows in parts]
    add("mean" if is_number else "frequencies", DummyRegressor() if is_number else DummyClassifier(), nothing)
    features, is_category = make_features(parts, inputs)
    if is_category:
        boosting = HistGradientBoostingRegressor if is_number else HistGradientBoostingClassifier
        add("gradient boosting", boosting(categorical_features=is_category, random_state=0), features)
    texts = [read_texts(rows, inputs) for rows in parts]
    if any(map(str.strip, texts[0])):
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        linear = Ridge() if is_number else LogisticRegression(max_iter=1000)
        add("TF-IDF, linear", make_pipeline(words, linear), texts)
    return found


def regress(parts: list[Rows], inputs: Mapping[str, Column], column: Array, target: Tensor) -> dict[str, Tensor]:
    """Returns the mean of arrays, and the answers of a linear model of numbers and categories."""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    mean = target.mean(0, keepdim=True).expand(len(parts[1]), *target.shape[1:])
    found = {"mean": column.answer(mean)}
    features, is_category = make_features(parts, inputs)
    if is_category:
        linear = make_pipeline(SimpleImputer(), Ridge()).fit(features[0], target.flatten(1).numpy())
        found["linear"] = column.answer(torch.from_numpy(linear.predict(features[1])))
    return found


def make_features(parts: list[Rows], inputs: Mapping[str, Column]) -> tuple[list[Any], list[bool]]:
    """Returns the numbers and categories of rows [R, F], NaN for missing ones, and which are categories."""
    columns: list[list[Any]] = [[], []]
    is_category = list[bool]()
    for name, column in inputs.items():
        cells = (
            [[rows.read(name, column, row) for row in range(len(rows))] for rows in parts] if is_plain(column) else []
        )
        if isinstance(column, Number):
            is_category.append(False)
            for part, values in zip(columns, cells, strict=True):
                part.append(np.array([np.nan if value is None else value for value in values])[:, None])
        elif isinstance(column, Category):
            is_category.append(len(column.names) < 255)  # of more, boosting takes the order
            for part, values in zip(columns, cells, strict=True):
                part.append(np.array([np.nan if not value else value - 1 for value in values], dtype=float)[:, None])
        elif isinstance(column, Categories):
            is_category += [False] * len(column.names)
            for part, values in zip(columns, cells, strict=True):
                sets = column.collate([column.blank() if value is None else value for value in values])
                part.append(column.truth(sets).numpy().astype(float))
        elif isinstance(column, Date):
            is_category += [False] * 9
            for part, values in zip(columns, cells, strict=True):
                part.append(np.stack([np.full(9, np.nan) if value is None else value[0].numpy() for value in values]))
    if not is_category:
        return [], []
    return [np.concatenate(part, 1) for part in columns], is_category


def is_plain(column: Column) -> bool:
    """Returns whether a column has numbers or categories."""
    return isinstance(column, Number | Category | Categories | Date)


def read_texts(rows: Rows, inputs: Mapping[str, Column]) -> list[str]:
    """Returns all texts of each row, one after another."""
    names = [name for name, column in inputs.items() if isinstance(column, Text | MaskedText)]
    return [" ".join(str(rows.cell(name, row) or "") for name in names) for row in range(len(rows))]


def forecast(parts: list[Rows], inputs: Mapping[str, Column], column: Series, target: Tensor) -> dict[str, Tensor]:
    """Returns the answers of simple methods for the steps that follow a series.

    The linear method maps the differences of the history to its last value; each series of the table has its own map.
    """
    from sklearn.linear_model import LinearRegression

    history: Any = inputs[column.follows or ""]
    steps = []
    for rows in parts:
        values = history.collate([rows.read(column.follows or "", history, row) for row in range(len(rows))]).x_BMC
        steps.append((values.double() * history.std + history.mean - column.mean) / column.std)
    names = [name for name, other in inputs.items() if isinstance(other, Category)][:1]
    keys = [np.array([str(rows.cell(name, row)) for name in names for row in range(len(rows))]) for rows in parts]
    keys = keys if names else [np.zeros(len(rows)) for rows in parts]
    last = [values[:, -1:] for values in steps]
    linear = last[1].expand(-1, target.shape[1]).clone()
    for key in np.unique(keys[1]):
        train, test = (torch.from_numpy(part == key) for part in keys)
        if train.any():
            model = LinearRegression().fit((steps[0] - last[0])[train], target[train] - last[0][train])
            linear[test] += torch.from_numpy(model.predict((steps[1] - last[1])[test]))
    return {
        "last value": column.answer(last[1].expand(-1, target.shape[1])),
        "linear": column.answer(linear),
    }
