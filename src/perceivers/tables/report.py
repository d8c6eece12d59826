"""Writes an explanation of a model of a table as one HTML file, which needs no other file.

Shape suffixes: K categories
"""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from perceivers.model.saving import atomic_write
from perceivers.tables.columns import Category, Column, Number, Series
from perceivers.tables.columns.drawing import draw_chip, draw_lines, format_number
from perceivers.tables.explain import LEAST_ROWS, Case, Explanation, Group, Main, Outcomes
from perceivers.tables.model import TableModel
from perceivers.tables.windows import FUTURE, HISTORY, SCALE, SERIES, TIME

TITLE = "What each column is worth"

MOST_WORTH = 40
"""Most columns whose worth is shown, those that are worth most."""

MOST_DOTS = 1500
"""Most rows in a chart of predictions; of more, some at equal distances."""

MOST_CATEGORIES = 12
"""Most categories in a table of predictions, the most frequent ones; the rest is one more."""

MOST_GROUPS, MOST_GROUPED = 8, 12
"""Most groups of a column, and most columns, that are shown: those that deviate most."""

SIDE, LEFT, BELOW = 360, 64, 40
"""Side of the chart of predictions, and the room for its labels."""

STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --front: #1b1d21; --quiet: #5f6670; --line: #d9dde3;
  --full: 255 150 40; --bar: #2f6fde; --good: #1a7f4b; --bad: #c4382d; }
@media (prefers-color-scheme: dark) {
  :root { --back: #131519; --card: #1c1f25; --front: #eceef1; --quiet: #a3aab5; --line: #343942; --full: 190 88 0;
    --bar: #6ea0ff; --good: #52c48a; --bad: #ff7b6e; }
}
* { box-sizing: border-box; }
body { background: var(--back); color: var(--front); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 70rem; padding: 1.5rem 1rem 3rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .25rem; }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 .75rem; max-width: 48rem; }
.quiet, p { color: var(--quiet); }
.quiet { font-size: .8rem; font-weight: normal; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; }
.wide { overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin-top: .75rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .6rem 1rem; }
.tile b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.bars { display: grid; gap: .35rem .75rem; align-items: center;
  grid-template-columns: minmax(5rem, max-content) minmax(4rem, 1fr) max-content; }
.bars > span { font-variant-numeric: tabular-nums; }
.track { background: color-mix(in srgb, var(--line) 55%, transparent); border-radius: 3px; display: block;
  height: .8rem; overflow: hidden; }
.track > i { background: var(--bar); display: block; height: 100%; }
.track > i.gain { background: var(--quiet); }
.pair { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.groups { grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.two { display: grid; gap: 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
.two > section { min-width: 0; }
.row { margin-top: 1rem; }
.row header { display: flex; flex-wrap: wrap; gap: .25rem .75rem; align-items: baseline; margin-bottom: .6rem; }
.row header h3 { margin: 0; }
.answers { border-left: 4px solid var(--line); display: flex; flex-wrap: wrap; gap: .4rem 2rem; padding-left: .75rem;
  margin-bottom: .8rem; }
.answers.right { border-color: var(--good); }
.answers.wrong { border-color: var(--bad); }
.answers > div { min-width: 6rem; }
.answers > .forecast { flex: 1 1 100%; }
.answers .value { font-size: 1.05rem; font-weight: 600; }
.cells { display: grid; gap: .75rem 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 7.2rem), 1fr)); }
.cells > div:has(.text), .cells > div:has(.line), .cells > div:has(.strip) { grid-column: 1 / -1; }
.name { color: var(--quiet); display: flex; font-size: .8rem; gap: .5rem; justify-content: space-between; }
.share { font-variant-numeric: tabular-nums; white-space: nowrap; }
.cells .track { height: 4px; margin: .1rem 0 .35rem; }
.cells .track > i { background: rgb(var(--full)); }
.cells img, .answers img { border-radius: 6px; display: block; height: auto; image-rendering: pixelated;
  max-width: 100%; }
.cells audio { display: block; height: 2.2rem; margin-top: .25rem; max-width: 100%; }
.chip { background: rgb(var(--full) / var(--w, 0)); border: 1px solid var(--line); border-radius: 99px;
  display: inline-block; padding: 0 .6rem; }
.chip.unknown { border-style: dashed; color: var(--quiet); }
.missing { color: var(--quiet); }
.text { white-space: pre-wrap; line-height: 1.7; }
.text b { background: rgb(var(--full) / var(--w)); border-radius: 3px; font-weight: inherit; }
.text i { border: 1px solid var(--line); border-radius: 3px; font-style: normal; }
.line { display: block; height: 5rem; width: 100%; }
.forecast .line { height: 9rem; }
.line polyline { fill: none; stroke: var(--front); stroke-width: 1.3; vector-effect: non-scaling-stroke; }
.line .truth { stroke: var(--quiet); }
.line .guess { stroke: var(--bad); stroke-width: 1.8; }
.line .band { fill: rgb(var(--full) / calc(var(--w) * .5)); }
.key { font-size: .8rem; }
.key i { border-top: 3px solid var(--front); display: inline-block; margin: 0 .3rem 0 .8rem; vertical-align: middle;
  width: 1.2rem; }
.key i.truth { border-color: var(--quiet); }
.key i.guess { border-color: var(--bad); }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem 0 .25rem .7rem; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { max-width: 12rem; overflow: hidden; padding-left: 0; text-align: left;
  text-overflow: ellipsis; }
th { color: var(--quiet); font-size: .8rem; font-weight: normal; }
td.worse { color: var(--bad); }
td.better { color: var(--good); }
.confusion td:not(:first-child) { background: rgb(var(--full) / calc(var(--w) * .85)); min-width: 3rem;
  padding: .25rem .5rem; text-align: center; }
.confusion th { padding: .25rem .5rem; text-align: center; }
.plot { display: block; height: auto; max-width: 27rem; width: 100%; }
.plot text { fill: var(--quiet); font-size: 11px; }
.plot circle { fill: var(--bar); fill-opacity: .5; }
.plot .axis { stroke: var(--line); }
.plot .equal { stroke: var(--quiet); stroke-dasharray: 4 4; }
"""

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:">
<title>$title</title>
<style>$style</style>
</head>
<body>
<h1>$title</h1>
<p>$subtitle</p>
$sections
</body>
</html>
""")


def write_report(explanation: Explanation, out: str | Path) -> None:
    """Writes an explanation as an HTML file."""
    page = make_report(explanation)
    atomic_write(Path(out), lambda file: file.write_text(page, encoding="utf-8", errors="replace"))


def make_report(explanation: Explanation) -> str:
    """Returns an explanation as an HTML page."""
    names = ", ".join(escape(name) for name in explanation.model.output_columns)
    table = explanation.rows.table.name
    source = f"{describe_count(explanation)} of {escape(Path(table).name or table)}"
    sections = [
        draw_metrics(explanation.metrics),
        f'<div class="two">{draw_worth(explanation)}\n{draw_outcomes(explanation)}</div>',
        draw_cases(explanation),
        draw_groups(explanation),
    ]
    return PAGE.substitute(
        title=f"How {names} is predicted",
        subtitle=f"{source}. {describe_sizes(explanation.model)}",
        style=STYLE,
        sections="\n".join(section for section in sections if section),
    )


def describe_count(explanation: Explanation) -> str:
    """Returns the number of rows, or of windows."""
    count, total = len(explanation.rows), explanation.total
    unit = ("row" if explanation.model.window is None else "window") + "s"[: total != 1]
    return f"{count:,} {unit}" if count == total else f"{count:,} of {total:,} {unit}, at equal distances,"


def describe_sizes(model: TableModel) -> str:
    """Returns the sizes of a model."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    latents, channels = model.encoder.latents.shape
    return f"A Perceiver IO of {latents} latents of {channels} channels, with {parameters:,} parameters."


def show_figure(value: float) -> str:
    """Returns a metric with four digits."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else "∞"
    return format_number(value) if abs(value) >= 10_000 else f"{value:.4g}"


def draw_metrics(metrics: dict[str, float]) -> str:
    """Returns the metrics of all rows as tiles."""
    tiles = (f'<div class="tile">{escape(name)}<b>{show_figure(value)}</b></div>' for name, value in metrics.items())
    return f'<div class="tiles">{"".join(tiles)}</div>'


def draw_bar(fraction: float, kind: str = "") -> str:
    """Returns a horizontal bar of a length from 0 to 1."""
    style = f"width:{100 * min(1.0, max(0.0, fraction)):.1f}%"
    return f'<span class="track"><i{f" class={kind}" if kind else ""} style="{style}"></i></span>'


def draw_worth(explanation: Explanation) -> str:
    """Returns what each input is worth as bars."""
    mains = [main for main in explanation.mains if main.name in explanation.worth]
    titles = [f"{TITLE}: {main.name}" for main in mains] if len(mains) > 1 else [TITLE]
    return "\n".join(draw_worth_by(explanation, main, title) for main, title in zip(mains, titles, strict=True))


def draw_worth_by(explanation: Explanation, main: Main, title: str) -> str:
    """Returns what each input is worth by a figure, under a title."""
    found, whole = explanation.worth[main.name], explanation.metrics[main.name]
    shown = found[:MOST_WORTH]
    largest = max((abs(worth.loss) for worth in shown if math.isfinite(worth.loss)), default=0.0) or 1.0
    rows = list[str]()
    for worth in shown:
        change = worth.metrics[main.name] - whole
        figures = " ".join(f"{name} {show_figure(value)}" for name, value in worth.metrics.items())
        rows += [
            f"<span>{escape(worth.name)}</span>",
            draw_bar(abs(worth.loss) / largest, "gain" if worth.loss < 0 else ""),
            f'<span title="{escape(figures)}">{show_figure(worth.metrics[main.name])} '
            f'<span class="quiet">({"+" if change >= 0 else "-"}{show_figure(abs(change))})</span></span>',
        ]
    left = len(found) - len(shown)
    more = f" {left} columns that are worth less are left out." if left else ""
    gray = " A gray bar is of a column without which the model is better." if any(w.loss < 0 for w in shown) else ""
    return (
        f"<section><h2>{escape(title)}</h2>\n<p>The {escape(main.name)} with one column masked in all rows, "
        f"as if its cells were missing; with nothing masked, it is {show_figure(whole)}. The longer the bar, the worse "
        f"the model is without the column. Of columns that say the same, each alone may seem to be worth little."
        f"{gray}{more}</p>\n"
        f'<div class="card bars">{"".join(rows)}</div></section>'
    )


def draw_outcomes(explanation: Explanation) -> str:
    """Returns charts of the predictions of numbers, and tables of those of categories."""
    parts = list[str]()
    for name, outcomes in explanation.outcomes.items():
        column = explanation.model.output_columns[name]
        if not outcomes.truths:
            continue
        if isinstance(column, Number):
            chart = draw_scatter(outcomes, column.scale == "log")
        else:
            assert isinstance(column, Category)
            chart = draw_confusion(outcomes, column.names)
        parts.append(f'<div class="card wide"><h3>{escape(name)}</h3>{chart}</div>')
    if not parts:
        return ""
    return f'<section><h2>Predicted and true</h2>\n<div class="pair">{"".join(parts)}</div></section>'


def draw_scatter(outcomes: Outcomes, is_log: bool) -> str:
    """Returns a chart with a dot for each row: the true number to the right, the predicted one upward."""
    truths, guesses = np.array(outcomes.truths), np.array(outcomes.guesses)
    if len(truths) > MOST_DOTS:
        some = np.linspace(0, len(truths) - 1, MOST_DOTS).round().astype(int)
        truths, guesses = truths[some], guesses[some]
    low, high = float(min(truths.min(), guesses.min())), float(max(truths.max(), guesses.max()))
    is_log = is_log and low > 0
    ticks = find_ticks(low, high, is_log)
    if is_log:
        low, high, truths, guesses = math.log(low), math.log(high), np.log(truths), np.log(guesses)
    span = (high - low) or 1.0

    def place(numbers: Any) -> Any:
        return 8 + (numbers - low) / span * (SIDE - 16)

    parts = [
        f'<line class="equal" x1="{LEFT}" y1="{SIDE}" x2="{LEFT + SIDE}" y2="0"/>',
        f'<path class="axis" fill="none" d="M{LEFT} 0V{SIDE}H{LEFT + SIDE}"/>',
    ]
    for tick in ticks:
        at, label = place(math.log(tick) if is_log else tick), format_number(tick)
        parts.append(f'<text x="{LEFT - 6}" y="{SIDE - at + 4:.1f}" text-anchor="end">{label}</text>')
        parts.append(f'<text x="{LEFT + at:.1f}" y="{SIDE + 16}" text-anchor="middle">{label}</text>')
    parts += [
        f'<circle cx="{LEFT + x:.1f}" cy="{SIDE - y:.1f}" r="3"/>'
        for x, y in zip(place(truths).tolist(), place(guesses).tolist(), strict=True)
    ]
    parts.append(f'<text x="{LEFT + SIDE / 2}" y="{SIDE + 34}" text-anchor="middle">true</text>')
    parts.append(f'<text x="{LEFT + 6}" y="12">predicted</text>')
    size = f"0 0 {LEFT + SIDE + 24} {SIDE + BELOW}"
    return f'<svg class="plot" viewBox="{size}" role="img" aria-label="predicted and true">{"".join(parts)}</svg>'


def find_ticks(low: float, high: float, is_log: bool) -> list[float]:
    """Returns at most six round numbers in a range."""
    if is_log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [digit * 10.0**power for power in powers for digit in digits]
            found = [tick for tick in found if low <= tick <= high]
            if 2 <= len(found) <= 6:
                return found
    if high == low:
        return [low]
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(digit * size for digit in (1, 2, 5, 10) if digit * size >= rough)
    first = math.ceil(low / step)
    return [index * step for index in range(first, first + 6) if index * step <= high]


def draw_confusion(outcomes: Outcomes, names: Sequence[str]) -> str:
    """Returns a table of the number of rows of each true and each predicted category."""
    truths, guesses = np.array(outcomes.truths, dtype=int), np.array(outcomes.guesses, dtype=int)
    labels = list(names)
    if len(names) > MOST_CATEGORIES:
        counts = np.bincount(truths, minlength=len(names))
        chosen = sorted(counts.argsort(kind="stable")[::-1][:MOST_CATEGORIES].tolist())
        code_K = np.full(len(names), len(chosen))
        code_K[chosen] = range(len(chosen))
        truths, guesses = code_K[truths], code_K[guesses]
        labels = [*(names[index] for index in chosen), "others"]
    count = len(labels)
    table_KK = np.bincount(truths * count + guesses, minlength=count**2).reshape(count, count)
    rows = ["<tr><th>true \\ predicted</th>" + "".join(f"<th>{escape(label)}</th>" for label in labels) + "</tr>"]
    for label, row_K in zip(labels, table_KK, strict=True):
        total = max(1, int(row_K.sum()))
        cells = "".join(f'<td style="--w:{n / total:.2f}">{n:,}</td>' for n in row_K.tolist())
        rows.append(f"<tr><td>{escape(label)}</td>{cells}</tr>")
    return f'<table class="confusion">{"".join(rows)}</table>'


def draw_cases(explanation: Explanation) -> str:
    """Returns single rows, from the best to the worst."""
    model, rows = explanation.model, explanation.rows
    count, unit = len(explanation.cases), "row" if model.window is None else "window"
    cards = list[str]()
    for case in explanation.cases:
        place = rows.indices[case.row]
        title = f"{rows.table.unit} {rows.table.indices[place]}"
        if model.window is not None:
            title = f"{rows.cell(SERIES, case.row)}, from {show_time(rows.cell(TIME, case.row))}"
        answers = "".join(draw_answer(explanation, case, name) for name in model.output_columns)
        shares = case.shares()
        drawn_above = {column.follows for column in model.output_columns.values() if isinstance(column, Series)}
        largest = max(shares.values()) or 1.0
        cells = "".join(
            draw_cell(explanation, case, name, shares[name], shares[name] / largest, name in drawn_above)
            for name in model.input_columns
        )
        cards.append(
            f'<article class="card row"><header><h3>{escape(title)}</h3><span class="quiet">'
            f"loss {case.loss:.3g}, place {case.rank + 1:,} of {len(rows):,}</span></header>\n"
            f'{answers}\n<div class="cells">{cells}</div></article>'
        )
    return (
        f"<h2>{count} {unit}{'s'[: count != 1]}, from the best to the worst</h2>\n"
        "<p>The bar below the name of a column, and the figure, are its share of the attention with which the latents "
        "read the row, averaged over all latents and heads. In a text or a series, what they attend to has a "
        "background; in a picture, what they attend to more than on average is red. An input of many elements, such as "
        "a picture of many patches, has a large share if all are read equally. Attention is what is read, not what "
        "decides.</p>\n" + "\n".join(cards)
    )


def show_time(seconds: float) -> str:
    """Returns a time of a window: a date, or the number of a step."""
    if abs(seconds) < 1e7:  # times that are numbers, as the first months of 1970 would be
        return f"step {format_number(seconds)}"
    return str(datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)).removesuffix(" 00:00:00")


def draw_cell(
    explanation: Explanation, case: Case, name: str, share: float, fraction: float, is_drawn_above: bool
) -> str:
    """Returns a cell of a row with its share of the attention."""
    rows, column = explanation.rows, explanation.model.input_columns[name]
    cell = rows.cell(name, case.row)
    if cell is None:
        drawn = '<i class="missing">missing</i>'
    elif is_drawn_above:
        drawn = '<span class="quiet">drawn above</span>'
    else:
        drawn = column.draw(cell, rows.root, case.weights[name])
    title = f'<div class="name"><span>{escape(name)}</span><span class="share">{share:.1%}</span></div>'
    return f"<div>{title}{draw_bar(fraction)}<div>{drawn}</div></div>"


def draw_answer(explanation: Explanation, case: Case, name: str) -> str:
    """Returns the prediction of a column for a row beside the truth."""
    rows, column = explanation.rows, explanation.model.output_columns[name]
    cell = rows.cell(name, case.row)
    if isinstance(column, Series):
        return f'<div class="answers">{draw_forecast(explanation, case, name, column)}</div>'
    truth = '<i class="missing">missing</i>' if cell is None else column.draw(cell, rows.root)
    (written,) = column.write(case.answers[name])
    kind, more = "", ""
    if isinstance(column, Category):
        probability_K = case.answers[name][0]
        best = probability_K.topk(min(3, len(probability_K)))
        more = "".join(
            f"<span>{escape(column.names[index])}</span>{draw_bar(value)}<span>{value:.1%}</span>"
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        more = f'<div class="bars quiet" style="min-width:14rem">{more}</div>'
        if cell is not None:
            kind = "right" if column.read(cell, rows.root) == best.indices[0] + 1 else "wrong"
    elif len(written) > 1:
        fields = zip(list(column.fields(name))[1:], written[1:], strict=True)
        more = "".join(
            f'<div class="quiet">{escape(field.removeprefix(f"{name}_"))} {show_value(value)}</div>'
            for field, value in fields
        )
    guess = draw_chip("none") if written[0] in ("", None) else column.draw(written[0], rows.root)
    return (
        f'<div class="answers {kind}"><div><div class="quiet">{escape(name)}, predicted</div>'
        f'<div class="value">{guess}</div></div>'
        f'<div><div class="quiet">true</div><div class="value">{truth}</div></div>'
        f"{f'<div>{more}</div>' if more else ''}</div>"
    )


def show_value(value: Any) -> str:
    """Returns a value of a written prediction."""
    return format_number(value) if isinstance(value, int | float) else escape(str(value))


def draw_forecast(explanation: Explanation, case: Case, name: str, column: Series) -> str:
    """Returns the history and the future of a series as a line, and the forecast as another one."""
    model, rows, history = explanation.model, explanation.rows, str(column.follows)
    reader: Column = model.input_columns[history]
    assert isinstance(reader, Series)
    past = np.empty(0)
    if (cell := rows.cell(history, case.row)) is not None:
        past = reader.read_steps(cell, rows.root)[-reader.padded :]
    guess = case.answers[name][0].numpy()
    future = None if (cell := rows.cell(name, case.row)) is None else column.read_steps(cell, rows.root)
    if model.window is not None and (history, name) == (HISTORY, FUTURE):
        mean, std = rows.cell(SCALE, case.row)
        past, guess = past * std + mean, guess * std + mean
        future = None if future is None else future * std + mean
    last = past[-1:]  # so that lines meet
    begin = len(past) - len(last)
    lines = [("truth", begin, np.concatenate([last, future]))] if future is not None else []
    lines.append(("guess", begin, np.concatenate([last, guess])))
    if len(past):
        lines.insert(0, ("front", 0, past))
    bands = reader.bands(len(past), case.weights[history]) if len(past) else []
    key = '<i></i>history<i class="truth"></i>true<i class="guess"></i>predicted'
    drawn = draw_lines(lines, bands, f"history, truth and forecast of {name}")
    return f'<div class="forecast"><div class="quiet key">{escape(name)}:{key}</div>{drawn}</div>'


def draw_groups(explanation: Explanation) -> str:
    """Returns the metrics of groups of rows as tables, those that deviate most."""
    if not explanation.groups:
        return ""
    names = [name for name in explanation.metrics if name != "loss"]
    tables = list[str]()
    for column, groups in list(explanation.groups.items())[:MOST_GROUPED]:
        tables.append(f'<div class="card wide"><h3>{escape(column)}</h3>{draw_table(names, groups)}</div>')
    left = len(explanation.groups) - len(tables)
    more = f" {left} columns whose groups deviate less are left out." if left else ""
    return (
        "<h2>Errors by group</h2>\n<p>The metrics of the rows of each value, of numbers of each quartile with its "
        f"upper end; at least {LEAST_ROWS} rows. The last figure is by how many standard errors the mean loss of the "
        f"group is above that of all rows: between -2 and 2, it may be chance.{more}</p>\n"
        f'<div class="pair groups">{"".join(tables)}</div>'
    )


def draw_table(names: Sequence[str], groups: Iterable[Group]) -> str:
    """Returns the metrics of groups of a column as a table."""
    groups = list(groups)
    shown = sorted(groups, key=lambda group: -abs(group.deviation))[:MOST_GROUPS]
    rows = ["<tr><th></th><th>rows</th>" + "".join(f"<th>{escape(name)}</th>" for name in names) + "<th>loss</th></tr>"]
    for group in (group for group in groups if group in shown):
        kind = "worse" if group.deviation > 2 else "better" if group.deviation < -2 else ""
        figures = "".join(f"<td>{show_figure(group.metrics.get(name, math.nan))}</td>" for name in names)
        deviation = f'<td class="{kind}">{round(group.deviation, 1) + 0.0:+.1f}</td>'
        label = f'<td title="{escape(group.label)}">{escape(group.label)}</td>'
        rows.append(f"<tr>{label}<td>{group.rows:,}</td>{figures}{deviation}</tr>")
    left = len(groups) - len(shown)
    return f"<table>{''.join(rows)}</table>" + (f'<span class="quiet">and {left} more</span>' if left else "")
