"""The commands of tables: `explain`, and `evaluate` for their models."""

from pathlib import Path
from typing import Annotated

from perceivers.checks import Count
from perceivers.command import Device, Json, Metavar, ModelArgument, Precision, print_answer, print_json
from perceivers.data.splits import SplitOption


def evaluate(
    model: ModelArgument,
    *,
    data: Annotated[str, "a table (.csv, .tsv, .jsonl, .parquet), or a folder with train, validation and test"],
    split: SplitOption = None,
    root: Annotated[str | None, "folder that the paths in cells start from; by default that of the table"] = None,
    batch_size: Annotated[Count, "rows computed at a time"] = 256,
    device: Device = None,
    dtype: Precision = None,
    json: Json = False,
) -> None:
    """Measures a model of a table: the metrics of each column that it predicts."""
    from perceivers.tables.evaluation import evaluate_table
    from perceivers.tables.predict import load_table_model
    from perceivers.values import describe_values

    results, part = evaluate_table(load_table_model(model, device, dtype), data, split, root, batch_size)
    if json:
        print_json(results | part.fields())
        return
    print(f"{part}: {describe_values(results)}")


def explain(
    model: ModelArgument,
    *,
    data: Annotated[str, "a table with the columns to predict"],
    out: Annotated[Path, "HTML file to write"],
    split: SplitOption = None,
    root: Annotated[str | None, "folder that the paths in cells start from; by default that of the table"] = None,
    rows: Annotated[Count, "number of rows that are shown one by one"] = 8,
    group: Annotated[
        list[str], "columns by whose values errors are shown; by default all categories and numbers", Metavar("COLUMN")
    ] = [],  # noqa: B006
    device: Device = None,
    json: Json = False,
) -> None:
    """Explains a model of a table: what each column is worth, where attention goes, and which rows are wrong."""
    from perceivers.tables.explain import explain_table
    from perceivers.tables.predict import load_table_model

    found = explain_table(load_table_model(model, device), data, out, split, root, rows, group)
    worth = {main: {item.name: item.loss for item in inputs} for main, inputs in found.worth.items()}
    answer = {"out": str(out), "rows": len(found.rows), "metrics": found.metrics, "worth": worth}
    print_answer(answer, f"Written to {out}: open it in a browser.", json)
