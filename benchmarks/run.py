"""Measures this library beside `transformers` and `perceiver-pytorch`, and writes what was found as JSON.

    python benchmarks/run.py                  # everything, about 25 minutes on two cores: make bench
    python benchmarks/run.py --quick          # a dozen short rows, 3 minutes: make bench-quick
    python benchmarks/run.py --only flow clip # rows whose name contains one of these, "scaling" among them
    python benchmarks/run.py --device cuda    # on a GPU

The file is written anew after every row, so that an interrupted run keeps what it has. `report.py` makes a document
of it.
The exit status is 1 if the answers of two sides with equal weights differ.
"""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import machine, pipeline, scaling
from benchmarks.measure import TOLERANCE, Sides, agrees, measure
from benchmarks.rows import Row, cpu_rows, cuda_rows, rows_without_bfloat16, tiny
from perceivers.model.kernels.tuning import CHOICES, read_choices

FOLDER = Path(__file__).parent
ROWS = {"cpu": cpu_rows, "cpu_without_bfloat16": rows_without_bfloat16, "cuda": cuda_rows}
"""The rows of each kind of machine."""
FILES = {"cpu": "performance", "cpu_without_bfloat16": "performance_without_bfloat16", "cuda": "performance_cuda"}
"""Names of the files of each kind of machine."""
NAMES = {"theirs": "transformers", "ours": "perceivers"}


def chosen(rows: list[Row], quick: bool, only: list[str]) -> list[Row]:
    """The rows of a run."""
    rows = [row for row in rows if row.quick or not quick]
    return [row for row in rows if not only or any(part.lower() in row.key.lower() for part in only)]


def write(run: dict[str, Any], file: Path) -> None:
    """Writes the file at once or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".part")
    new.write_text(json.dumps(run, indent=1) + "\n")
    os.replace(new, file)


def name_of(side: str, row: dict[str, Any]) -> str:
    """What a side of a row is called."""
    if row["model"] == "perceiver_pytorch" and side == "theirs":
        return "perceiver-pytorch"
    base = side.removesuffix(" compiled")
    return NAMES[base] + side.removeprefix(base)


def line_of(row: dict[str, Any], peaks: dict[str, Any]) -> str:
    """A row as it is printed while the run goes on; the peak is that of the run's beginning."""
    if "skipped" in row:
        return f"left out: {row['skipped']}"
    words = []
    for side, found in row["sides"].items():
        seconds = sorted(found["seconds"])[len(found["seconds"]) // 2]
        part = found["flops"] / seconds / peaks[row["dtype"]]["flops"]
        ratio = f", {row['ratios'][side]['median']:.2f} x" if side in row["ratios"] else ""
        words.append(f"{name_of(side, row)} {seconds:.3g} s, {found['peak'] / 1e9:.2f} GB, {part:.0%}{ratio}")
    words += [f"{name_of(side, row)} left out: {why}" for side, why in row["left_out"].items()]
    if "difference" in row:
        words.append(f"difference {row['difference']:.0e}")
    return "; ".join(words)


def run(arguments: argparse.Namespace) -> int:
    """Measures everything asked for; returns the number of rows whose answers differ."""
    started = time.perf_counter()
    rows = chosen(ROWS[arguments.kind](), arguments.quick, arguments.only)
    rows = [tiny(row) for row in rows] if arguments.tiny else rows
    counts = scaling.QUICK_COUNTS if arguments.quick else scaling.COUNTS
    counts = scaling.TINY_COUNTS if arguments.tiny else counts
    too_long = scaling.QUICK_TOO_LONG if arguments.quick else scaling.TOO_LONG
    wanted = not arguments.only or any(part.lower() in "scaling" for part in arguments.only)
    series = scaling.SERIES if wanted and arguments.device == "cpu" else ()
    side = 512 if arguments.tiny else machine.SIDE
    found: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]) if sys.argv[0].endswith(".py") else "",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "tiny": arguments.tiny,
        "quick": arguments.quick,
        "device": arguments.device,
        "kind": arguments.kind,
        "machine": machine.describe(arguments.device),
        "versions": machine.versions(),
        "peaks": {"start": machine.peaks(arguments.device, side)},
        "rows": [],
        "scaling": {},
        "choices": [],
    }
    if arguments.device == "cpu" and (not arguments.only or "pipeline" in arguments.only):
        found["pipeline"] = pipeline.bytes_per_second(2 if arguments.tiny else 400)
        print(f"text pipeline: {found['pipeline'] / 1e6:.0f} MB/s", flush=True)
    if not arguments.only or "flow pairs" in arguments.only:
        pairs = 512 if arguments.device == "cuda" else 64
        found["flow pairs"] = pipeline.pairs_per_second(arguments.device, 2 if arguments.tiny else pairs)
        print(f"flow pairs: {found['flow pairs']:.1f} a second", flush=True)
    for dtype, peak in found["peaks"]["start"].items():
        print(f"peak in {dtype}: {peak['flops'] / 1e9:,.0f} GFLOP/s ({peak['way']})", flush=True)
    total, differ = len(rows) + len(series), 0
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(Path(folder), arguments.device, arguments.tiny)
        try:
            for number, row in enumerate(rows, 1):
                print(f"[{number}/{total}, {time.perf_counter() - started:.0f} s] {row.key}", flush=True)
                before = time.perf_counter()
                result = measure(row, sides) | {"took": 0.0}
                result["took"] = time.perf_counter() - before
                found["rows"].append(result)
                print(f"    {line_of(result, found['peaks']['start'])}", flush=True)
                if not agrees(result):
                    differ += 1
                    print(f"    the answers differ by more than {TOLERANCE} of their standard deviation")
                write(found | {"seconds": time.perf_counter() - started}, arguments.output)
            for number, what in enumerate(series, len(rows) + 1):
                print(f"[{number}/{total}, {time.perf_counter() - started:.0f} s] scaling: {what}", flush=True)
                found["scaling"][what] = scaling.series(what, counts, sides, too_long)
                fits = found["scaling"][what].get("fits", {})
                print("    " + "; ".join(f"{field}: exponent {one['exponent']:.3f}" for field, one in fits.items()))
                write(found | {"seconds": time.perf_counter() - started}, arguments.output)
        finally:
            sides.close()
            machines = read_choices(Path(folder) / CHOICES).values()
            found["choices"] = [list(choice) for of_machine in machines for choice in of_machine.items()]
    found["peaks"]["end"] = machine.peaks(arguments.device, side)
    write(found | {"seconds": time.perf_counter() - started}, arguments.output)
    print(f"{time.perf_counter() - started:.0f} s; written to {arguments.output}")
    return differ


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a dozen short rows only")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", default=[], metavar="SUBSTRING", help="rows whose name contains it")
    parser.add_argument("--output", type=Path, help="the file (benchmarks/performance*.json)")
    parser.add_argument("--tiny", action="store_true", help="toy models: to try the benchmark itself in a minute")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use")
    has_bfloat16 = machine.is_fast("bfloat16", arguments.device)
    arguments.kind = arguments.device if has_bfloat16 else f"{arguments.device}_without_bfloat16"
    if arguments.output is None:
        arguments.output = FOLDER / f"{FILES[arguments.kind]}.json"
    sys.exit(1 if run(arguments) else 0)


if __name__ == "__main__":
    main()
