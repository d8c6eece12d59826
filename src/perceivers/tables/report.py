"""The report of a model of a table: one HTML file that needs nothing else."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import torch
from torch import Tensor

from perceivers.model.saving import atomic_write
from perceivers.tables.columns import Category, Column, Number, Series
from perceivers.tables.explain import Explanation, RowView
from perceivers.tables.model import TableModel
from perceivers.tables.rows import Rows

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --back: #fff; --front: #1b1b1b; --quiet: #5c5c5c; --line: #ddd; --full: 255 150 40;
  --bar: #2f6fb7; --bad: #c0392b; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --front: #f2f2f2; --quiet: #a5a9b0; --line: #33373e; --full: 178 74 0; --bar: #5a9be0;
    --bad: #ff7b6b; }
}
body { background: var(--back); color: var(--front); font: 16px/1.5 system-ui, sans-serif; max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem .25rem 0; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; }
.quiet { color: var(--quiet); font-size: .875rem; }
.scroll { overflow-x: auto; }
.bar { background: var(--bar); border-radius: 2px; display: inline-block; height: .8em; }
.bar.bad { background: var(--bad); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 33rem), 1fr)); }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .75rem 1rem; overflow-wrap: anywhere; }
.card td:first-child { white-space: nowrap; } .card td { max-width: 24rem; }
.card img { border-radius: 4px; display: block; }
b.word { background: rgb(var(--full) / var(--w)); font-weight: inherit; border-radius: 2px; }
.chip { border: 1px solid var(--line); border-radius: 1em; padding: 0 .5em; margin-right: .25em; }
svg { color: var(--bar); display: block; max-width: 100%; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="quiet">$subtitle</p>
$body
</body>
</html>
""")


def write_report(out: Path, model: TableModel, rows: Rows, found: Explanation) -> None:
    """Writes the report of a model."""
    names = ", ".join(model.output_columns)
    parts = [
        section("Metrics", "", show_metrics(found)),
        section("What each column is worth", WORTH, show_worth(found)),
        *(section(f"Predicted and true: {name}", "", show_answers(model, name, found)) for name in found.answers),
        section("Row by row", ROWS, show_rows(model, rows, found)),
        section("Errors by group", GROUPS, show_groups(found)),
    ]
    sizes = ", ".join(f"{model.config[name]} {name}" for name in ("latents", "channels"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    text = PAGE.substitute(
        title=escape(f"A model of {names}"),
        subtitle=escape(f"{found.part} of {rows.table.name}. Perceiver IO: {sizes}, {parameters:,} parameters."),
        body="\n".join(part for part in parts if part),
    )
    atomic_write(out, lambda path: path.write_text(text, encoding="utf-8"))


WORTH = """The metrics with all cells of a column masked. A column on which the model relies makes them worse (red); one
that it does not need, or that leads it astray, leaves them as they are or makes them better (blue)."""

ROWS = """Rows from the smallest loss to the largest. The share is that of all attention of the latents to the row;
within a text, a picture or a series, color shows where it goes."""

GROUPS = """Metrics of the rows with one value of a column, or, of numbers, of each quarter of the rows."""


def section(title: str, note: str, content: str) -> str:
    """Returns a section of the page, nothing if it has no content."""
    return f"<h2>{escape(title)}</h2>\n<p class='quiet'>{escape(note)}</p>\n{content}" if content else ""


def figure(value: float) -> str:
    """Returns a number for the page."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def table(header: list[str], lines: list[list[str]]) -> str:
    """Returns a table of cells that are HTML; all columns but the first are numbers."""
    head = "".join(f"<th{' class=number' * (i > 0)}>{cell}</th>" for i, cell in enumerate(header))
    body = "\n".join(
        "<tr>" + "".join(f"<td{' class=number' * (i > 0)}>{cell}</td>" for i, cell in enumerate(line)) + "</tr>"
        for line in lines
    )
    return f"<div class=scroll><table><tr>{head}</tr>\n{body}</table></div>"


def show_metrics(found: Explanation) -> str:
    """Returns a table of the metrics of each output."""
    return "\n".join(
        table(["", *map(escape, values)], [[escape(name), *map(figure, values.values())]])
        for name, values in found.metrics.items()
    )


def show_worth(found: Explanation) -> str:
    """Returns for each output a table of the metrics with each input masked, the most important first."""
    parts = list[str]()
    for output, whole in found.metrics.items():
        main = next(iter(whole))
        changes = {name: metrics[output][main] - whole[main] for name, metrics in found.worth.items()}
        sign = 1 if main in ("rmse", "mae", "mse", "mape", "bits", "degrees") else -1
        most = max([abs(change) for change in changes.values()]) or 1
        lines = list[list[str]]()
        for name in sorted(changes, key=lambda name: -sign * changes[name]):
            change = changes[name]
            kind = "bar bad" if sign * change > 0 else "bar"
            bar = f"<span class='{kind}' style='width:{10 * abs(change) / most:.2f}em'></span>"
            values = found.worth[name][output]
            lines.append([f"{escape(name)}<br>{bar}", f"{change:+.4g}", *(figure(value) for value in values.values())])
        lines.insert(0, ["nothing masked", "", *map(figure, whole.values())])
        parts.append(f"<h3>{escape(output)}</h3>" + table(["masked", f"change of {main}", *map(escape, whole)], lines))
    return "\n".join(parts)


def show_answers(model: TableModel, name: str, found: Explanation) -> str:
    """Returns a scatter plot of numbers, or a table of categories: how often each is taken for each."""
    column, (guess, truth) = model.output_columns[name], found.answers[name]
    if isinstance(column, Number):
        return scatter(guess.double(), truth.double(), column.scale == "log")
    if not isinstance(column, Category) or len(column.names) > 20:
        return ""
    counts = torch.zeros(len(column.names), len(column.names), dtype=torch.long)
    counts.index_put_((truth, guess.argmax(-1)), torch.tensor(1), accumulate=True)
    lines = [
        [escape(label), *(f"{n:,}" for n in line)] for label, line in zip(column.names, counts.tolist(), strict=True)
    ]
    return table(["true, and predicted as", *map(escape, column.names)], lines)


def scatter(guess: Tensor, truth: Tensor, is_log: bool, size: int = 360) -> str:
    """Returns a plot of predictions over true numbers, with the diagonal on which they are equal."""
    both = torch.cat([guess, truth])
    low, high = float(both.min()), float(both.max())
    if is_log and low > 0:
        guess, truth, (first, last) = guess.log(), truth.log(), torch.tensor([low, high]).log().tolist()
    else:
        first, last = low, high
    scale = size / ((last - first) or 1)
    step = -(-len(guess) // 2000)
    points = "".join(
        f"<circle cx='{(t - first) * scale:.1f}' cy='{size - (g - first) * scale:.1f}' r='2.5'/>"
        for t, g in zip(truth[::step].tolist(), guess[::step].tolist(), strict=True)
    )
    labels = f"<p class='quiet'>across: true, up: predicted, both from {figure(low)} to {figure(high)}"
    labels += f"{', logarithmic' * is_log}; on the line they are equal</p>"
    frame = f"<rect width='{size}' height='{size}' fill='none' stroke='var(--line)'/>"
    line = f"<line x1='0' y1='{size}' x2='{size}' y2='0' stroke='var(--quiet)' stroke-dasharray='4'/>"
    plot = f"{frame}{line}<g fill='currentColor' fill-opacity='.6'>{points}</g>"
    return f"<svg viewBox='-4 -4 {size + 8} {size + 8}' width='{size + 8}'>{plot}</svg>{labels}"


def show_rows(model: TableModel, rows: Rows, found: Explanation) -> str:
    """Returns a card for each row that is shown."""
    return f"<div class=cards>{''.join(show_row(model, rows, view) for view in found.views)}</div>"


def show_row(model: TableModel, rows: Rows, view: RowView) -> str:
    """Returns the card of a row: its cells with their shares of the attention, predictions and targets."""
    lines = list[str]()
    for name, column in model.input_columns.items():
        cell = show_cell(rows, name, column, view.row, view.weights[name])
        lines.append(f"<tr><td>{escape(name)}</td><td class=number>{view.shares[name]:.0%}</td><td>{cell}</td></tr>")
    for name, column in model.output_columns.items():
        written = column.write(view.answers[name])[0]
        predicted = column.draw(written[0], rows.root) if written else ""
        more = ", ".join(
            f"{key.removeprefix(f'{name}_')} {show_value(value)}"
            for key, value in list(zip(column.fields(name), written, strict=True))[1:]
        )
        truth = show_cell(rows, name, column, view.row, None)
        if isinstance(column, Series):
            predicted, truth = show_forecast(rows, column, name, view), ""
        note = f" <span class=quiet>{escape(more)}</span>" * bool(more)
        lines.append(
            f"<tr><td>{escape(name)}</td><td></td><td><strong>predicted {predicted}</strong>{note}"
            f"{f'<br>true {truth}' * bool(truth)}</td></tr>"
        )
    where = rows.table.location(rows.indices[view.row])
    head = f"<div class=quiet>{escape(where)}, loss {view.loss:.3g}</div>"
    return f"<div class=card>{head}<table>{''.join(lines)}</table></div>"


def show_value(value: Any) -> str:
    """Returns a value that is written beside a prediction."""
    return figure(value) if isinstance(value, float) else str(value)


def show_cell(rows: Rows, name: str, column: Column, row: int, weights: Tensor | None) -> str:
    """Returns a cell as HTML."""
    cell = rows.cell(name, row)
    return "<span class=quiet>missing</span>" if cell is None else column.draw(cell, rows.root, weights)


def show_forecast(rows: Rows, column: Series, name: str, view: RowView) -> str:
    """Returns a plot of a history, what followed it, and the forecast."""
    parts: Mapping[str, list[float]] = {
        "history": [float(value) for value in rows.cell(column.follows or "", view.row)],
        "true": [float(value) for value in rows.cell(name, view.row)],
        "predicted": json.loads(column.write(view.answers[name])[0][0]),
    }
    return plot_lines(parts)


def plot_lines(parts: Mapping[str, list[float]], width: int = 420, height: int = 110) -> str:
    """Returns a plot of a history, and of two lines that follow it."""
    history, true, predicted = parts.values()
    values = [*history, *true, *predicted]
    low, high = min(values), max(values)
    total = len(history) + max(len(true), len(predicted))

    def path(line: list[float], start: int, style: str) -> str:
        points = " ".join(
            f"{(start + i) * width / total:.1f},{height - (value - low) / ((high - low) or 1) * height:.1f}"
            for i, value in enumerate(line)
        )
        return f"<polyline points='{points}' fill='none' stroke='{style}' stroke-width='1.5'/>"

    lines = path(history, 0, "var(--quiet)") + path(true, len(history), "var(--front)")
    lines += path(predicted, len(history), "var(--bad)")
    note = "<span class=quiet>gray: history, plain: true, red: predicted</span>"
    return f"<svg viewBox='0 -3 {width} {height + 6}' width='{width}'>{lines}</svg>{note}"


def show_groups(found: Explanation) -> str:
    """Returns a table of the metrics by group for each input that has several."""
    parts = list[str]()
    for name, groups in found.groups.items():
        if len(groups) < 2:
            continue
        outputs = {output: list(metrics) for _, values in groups.values() for output, metrics in values.items()}
        header = [escape(name), "rows"]
        header += [
            escape(metric if len(outputs) == 1 else f"{output} {metric}")
            for output in outputs
            for metric in outputs[output]
        ]
        lines = [
            [escape(label), f"{count:,}", *(figure(v) for metrics in values.values() for v in metrics.values())]
            for label, (count, values) in groups.items()
        ]
        parts.append(
            f"<details{' open' * (len(parts) < 3)}><summary>{escape(name)}</summary>{table(header, lines)}</details>"
        )
    return "\n".join(parts)
