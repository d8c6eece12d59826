"""Makes the document of what `run.py` measured: tables, pictures, and which targets are reached.

python benchmarks/report.py                                      # benchmarks/performance*.json -> docs/performance.md
python benchmarks/report.py runs/bench/performance.json --output runs/bench/performance.md
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import plots, rows
from benchmarks.run import FILES, name_of
from benchmarks.targets import Run, Target, fraction, measured_rows, peak_of, seconds, targets
from benchmarks.texts import LIMITS, METHOD, NO_BFLOAT16, NO_GPU, PROFILE, REASONS, TRIED

ROOT = Path(__file__).parents[1]
TITLES = {
    "cpu": "On a CPU",
    "cpu_without_bfloat16": "On a CPU without instructions for bfloat16",
    "cuda": "On a GPU",
}
MEASURED = [ROOT / f"benchmarks/{name}.json" for name in FILES.values()]


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def side_of(run: Run, row: dict[str, Any], side: str) -> list[str]:
    """Time, memory, FLOPs and fraction of a side of a row."""
    found = row["sides"][side]
    return [
        f"{seconds(row, side):.3g} s",
        f"{found['peak'] / 1e9:.2f} GB",
        f"{found['flops'] / 1e9:,.0f}" if found["flops"] >= 1e10 else f"{found['flops'] / 1e9:.3g}",
        f"{fraction(run, row, side):.0%}",
    ]


def rows_table(run: Run, chosen: Sequence[dict[str, Any]], first: str, second: str) -> str:
    """A line a row: both sides, and how many times as fast the second is."""
    columns = [f"{name}: {what}" for name in ("theirs", "ours") for what in ("time", "peak", "GFLOPs", "of the peak")]
    lines = []
    for row in chosen:
        ratio = row["ratios"][second]
        difference = f"{row['difference']:.0e}" if "difference" in row else ""
        lines.append(
            [
                *[row["work"], str(row["batch"]), row["dtype"]],
                *[*side_of(run, row, first), *side_of(run, row, second)],
                f"**{ratio['median']:.2f}** ({ratio['lowest']:.2f} to {ratio['highest']:.2f})",
                *[str(row["rounds"]), difference],
            ]
        )
    return table(["work", "batch", "precision", *columns, "times as fast", "rounds", "difference"], lines)


def others_table(run: Run, chosen: Sequence[dict[str, Any]]) -> str:
    """The rows beside `perceiver-pytorch`, with the ratio per FLOP as well."""
    lines = []
    for row in chosen:
        theirs, ours = row["sides"]["theirs"]["flops"], row["sides"]["ours"]["flops"]
        ratio = row["ratios"]["ours"]["median"]
        lines.append(
            [
                *[row["work"], str(row["batch"]), row["dtype"]],
                *[*side_of(run, row, "theirs"), *side_of(run, row, "ours")],
                *[f"**{ratio:.2f}**", f"{ratio * ours / theirs:.2f}"],
            ]
        )
    columns = [f"{name}: {what}" for name in ("theirs", "ours") for what in ("time", "peak", "GFLOPs", "of the peak")]
    return table(["work", "batch", "precision", *columns, "times as fast", "per FLOP"], lines)


def compiled_table(run: Run, chosen: Sequence[dict[str, Any]]) -> str:
    """The rows of compiled models beside the same ones eager."""
    lines = [
        [
            *[row["work"], row["dtype"], *side_of(run, row, "ours"), *side_of(run, row, "ours compiled")],
            f"**{row['ratios']['ours compiled']['median']:.2f}**",
            f"{row['sides']['ours compiled']['first']:.0f} s",
        ]
        for row in chosen
    ]
    columns = [
        f"{name}: {what}" for name in ("eager", "compiled") for what in ("time", "peak", "GFLOPs", "of the peak")
    ]
    return table(["work", "precision", *columns, "times as fast", "compiling"], lines)


def operators_table(chosen: Sequence[dict[str, Any]]) -> str:
    """A line a row: the fraction of our time of each kind of operator."""
    lines = [
        [row["work"], str(row["batch"]), row["dtype"], *(f"{part:.0%}" for part in row["operators"].values())]
        for row in chosen
    ]
    return table(["work", "batch", "precision", *chosen[0]["operators"]], lines)


def gpu_table(run: Run, chosen: Sequence[dict[str, Any]]) -> str:
    """The rows on a GPU, with up to four sides each."""
    lines = []
    for row in chosen:
        for side in row["sides"]:
            ratio = f"**{row['ratios'][side]['median']:.2f}**" if side in row["ratios"] else "1"
            first = f"{row['sides'][side]['first']:.0f} s" if side.endswith("compiled") else ""
            start = [row["work"], str(row["batch"]), row["dtype"], name_of(side, row)]
            lines.append([*start, *side_of(run, row, side), ratio, first])
    columns = ["time", "peak", "GFLOPs", "of the peak", "times as fast", "compiling"]
    return table(["work", "batch", "precision", "side", *columns], lines)


def targets_table(found: Sequence[Target]) -> str:
    """The targets, what was measured, and whether that reaches them."""
    said = {True: "**reached**", False: "**not reached**", None: "not measured"}
    return table(
        ["work", "precision", "target", "measured", ""],
        [[one.work, one.dtype, one.wanted, one.measured, said[one.reached]] for one in found],
    )


def missed(found: Sequence[Target]) -> str:
    """A line for each target that was not reached: how far it is, and what is known of the limit."""
    lines = []
    for one in found:
        if one.reached is False:
            limit = f" {LIMITS[one.key]}" if LIMITS.get(one.key) else ""
            lines.append(f"- **{one.key}**: {one.remark}.{limit}")
    return "\n".join(lines)


def about(run: Run) -> str:
    """Command, machine, versions, date, duration and the machine's peak."""
    parts = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    where = run["machine"]
    gpu = f"{where['gpu']}, " if "gpu" in where else ""
    speeds = "; ".join(
        f"{dtype} {peak_of(run, dtype) / 1e9:,.0f} GFLOP/s ("
        + ", ".join(
            f"{when}: {peak[dtype]['flops'] / 1e9:,.0f} by {peak[dtype]['way']}" for when, peak in run["peaks"].items()
        )
        + ")"
        for dtype in ("float32", "bfloat16")
    )
    lines = [
        f"```\n{run['command']}\n```\n",
        f"{gpu}{where['processor']}, {where['cores']} cores, {where['threads']} threads; {parts};",
        f"{run['date']}, {run['seconds'] / 60:.1f} minutes. Best matrix product: {speeds}.",
    ]
    return "\n".join(lines)


def measured(run: Run, pictures: str) -> str:
    """The tables of a run."""
    done = measured_rows(run)
    beside = [row for row in done if row["sides"].keys() == set(rows.BOTH) and row["equal"]]
    sections = []
    if run["device"] == "cuda":
        sections += ["### Rows\n", gpu_table(run, done)] if done else []
    elif beside:
        sections.append(f"### Beside `transformers`\n\n![How many times as fast]({pictures}_ratios.png)\n")
        for mode, title in (("forward", "Forward"), ("train", "Training step")):
            if chosen := [row for row in beside if row["mode"] == mode]:
                sections.append(f"#### {title}\n\n{rows_table(run, chosen, *rows.BOTH)}\n")
    if run["device"] == "cpu":
        if chosen := [row for row in done if not row["equal"]]:
            sections.append(f"### Beside `perceiver-pytorch`\n\n{others_table(run, chosen)}\n")
        if chosen := [row for row in done if tuple(row["sides"]) == rows.COMPILED]:
            sections.append(f"### Compiled\n\n{compiled_table(run, chosen)}\n")
        if chosen := [row for row in done if "operators" in row and tuple(row["sides"]) == rows.BOTH]:
            sections.append(f"### Where the time goes\n\n{PROFILE}\n\n{operators_table(chosen)}\n")
    if left := [row for row in run["rows"] if "skipped" in row]:
        sections.append("### Left out\n\n" + "\n".join(f"- {row['key']}: {row['skipped']}" for row in left) + "\n")
    if any(series["points"] for series in run["scaling"].values()):
        sections.append(
            f"### Scaling\n\n![Time and memory]({pictures}_scaling.png)\n\n{scaling_table(run['scaling'])}\n"
        )
    if run["choices"]:
        sections.append(f"### Kernels that were chosen\n\n{choices_table(run['choices'])}\n")
    return "\n".join(sections)


def choices_table(choices: Sequence[Sequence[str]]) -> str:
    """A line for each class of shapes: what was measured to be the fastest."""
    return table(
        ["operation and shapes", "candidates", "chosen"], [[*key.split(": ", 1), name] for key, name in choices]
    )


def scaling_table(series: dict[str, Any]) -> str:
    """All points of the scaling, and why a series ended."""
    lines = [
        [
            *[plots.LABELS[what], f"{point['count']:,}", f"{point['seconds']:.3g} s"],
            *[f"{point['peak'] / 1e9:.2f} GB", f"{point['beyond'] / 1e9:.3f} GB"],
        ]
        for what, found in series.items()
        for point in found["points"]
    ]
    ends = [f"\n{plots.LABELS[what]}: {found['ended']}." for what, found in series.items() if found["ended"]]
    header = ["what grows", "elements", "time", "peak", "peak beyond model and input"]
    return table(header, lines) + "\n" + "".join(ends)


def document(runs: Mapping[str, Run]) -> str:
    """The document of some runs, by what the names of their pictures begin with."""
    parts = ["# Performance\n\nThis page is generated by `make bench`; figures are never typed."]
    for pictures, run in runs.items():
        found = targets(run)
        parts.append(f"## {TITLES[run['kind']]}\n")
        if run["kind"] == "cpu_without_bfloat16":
            parts.append(NO_BFLOAT16)
        if run["tiny"]:
            parts.append("**Toy models, to try the benchmark: none of these figures says anything.**\n")
        elif run["quick"]:
            parts.append("The quick run: a few short rows.\n")
        parts += [about(run), f"### Targets\n\n{targets_table(found)}\n"]
        if lines := missed(found):
            parts.append(f"What is missing:\n\n{lines}\n")
        parts.append(measured(run, pictures))
    if all(run["device"] == "cpu" for run in runs.values()):
        parts.append(f"## On a GPU\n{NO_GPU}")
    parts += [f"## What makes the difference\n{REASONS}", f"## What was tried and did not pay\n{TRIED}"]
    parts.append(f"## How it is measured\n{METHOD}")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def main() -> None:
    """Reads the files, writes the document and its pictures beside it, and prints the targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="what run.py wrote (benchmarks/performance*.json)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/performance.md", help="the document")
    arguments = parser.parse_args()
    files = arguments.files or [file for file in MEASURED if file.exists()]
    runs = {file.stem: json.loads(file.read_text()) for file in files}
    output = arguments.output
    output.write_text(document(runs))
    for pictures, run in runs.items():
        print(targets_table(targets(run)))
        if run["device"] == "cuda":
            continue
        bars = [
            (row["key"], row["dtype"], row["ratios"]["ours"]) for row in measured_rows(run) if "ours" in row["ratios"]
        ]
        plots.ratios(bars, output.with_name(f"{pictures}_ratios.png"))
        plots.scaling(run["scaling"], output.with_name(f"{pictures}_scaling.png"))
    print(f"written to {output}")


if __name__ == "__main__":
    main()
