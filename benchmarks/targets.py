"""What is to be reached, and whether a run has reached it."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import rows

Run = dict[str, Any]
"""What `run.py` writes."""


@dataclass(frozen=True)
class Target:
    """A line of the table.

    Attributes:
        key: its name, of which there is one.
        work, dtype: what it is about.
        wanted: the target in words.
        measured: what was measured, in words.
        reached: None, if it was not measured.
        remark: what follows from the figures about a target that was not reached.
    """

    key: str
    work: str
    dtype: str
    wanted: str
    measured: str = "not measured"
    reached: bool | None = None
    remark: str = ""


RATIOS = ((rows.FLOW, 2.5, 3.5), (rows.CLIP, 15.0, 15.0))
"""How many times as fast as `transformers` at batch 1, in float32 and in bfloat16."""

EVERY = {"float32": 1.3, "bfloat16": 1.05}
"""How many times as fast as the other implementation in every row."""

FLOW_PEAK = 1.2e9
MEMORY = ((rows.LANGUAGE_STEP, 0.85), (rows.FOURIER_STEP, 0.7))
"""Peak memory at most, in bytes and, of a training step, as a part of that of `transformers`; in float32."""

FRACTION = {"float32": 0.85, "bfloat16": 0.8}
LARGE = 100e9
"""Of the machine's peak in a matrix product: the median of the rows of so many FLOPs."""

EXPONENT, EXPONENT_WITHIN = 1.0, 0.05
PIPELINE = 20e6
"""Bytes of text a second, from a file to masked batches."""

FLOW_PAIRS = {"cpu": 15, "cuda": 500}
"""Pairs of flow a second that are to be generated, on two cores and on a large GPU."""

MILLION, BEYOND = 1048576, 2e9

GPU_RATIOS = ((rows.FLOW, 3.0, 1), (rows.FOURIER_STEP, 1.5, 64))
GPU_FRACTION = 0.5
"""On one H200 in bfloat16: ratios, from which batch on, and the fraction of the peak of both."""


def measured_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of a run that were not left out."""
    return [row for row in run["rows"] if "skipped" not in row]


def find(run: Run, work: str, dtype: str, batch: int | None = 1) -> dict[str, Any] | None:
    """The row of a work beside another implementation, if it was measured."""
    for row in measured_rows(run):
        same = row["work"] == work and row["dtype"] == dtype and batch in (None, row["batch"])
        if same and "theirs" in row["sides"]:
            return row
    return None


def seconds(row: dict[str, Any], side: str) -> float:
    """The median time of a side."""
    return statistics.median(row["sides"][side]["seconds"])


def peak_of(run: Run, dtype: str) -> float:
    """FLOPs per second of the best matrix product of the run, at its beginning or its end."""
    return max(peaks[dtype]["flops"] for peaks in run["peaks"].values())


def fraction(run: Run, row: dict[str, Any], side: str) -> float:
    """What part of the machine's peak a side reached: the FLOPs it executes, by its time and the peak."""
    return row["sides"][side]["flops"] / seconds(row, side) / peak_of(run, row["dtype"])


def targets(run: Run) -> list[Target]:
    """All targets with what a run has found."""
    if run["device"] == "cuda":
        found = [target for work, ratio, batch in GPU_RATIOS for target in gpu(run, work, ratio, batch)]
        return [*found, flow_pairs(run)]
    found = []
    for work, *wanted in RATIOS:
        for dtype, ratio in zip(EVERY, wanted, strict=True):
            found.append(speed(run, work, dtype, ratio))
    found += [speeds(run, dtype, ratio) for dtype, ratio in EVERY.items()]
    found.append(flow_memory(run))
    found += [memory(run, work, part) for work, part in MEMORY]
    found += [fractions(run, dtype, part) for dtype, part in FRACTION.items()]
    for what in ("inputs", "outputs"):
        found += [exponent(run, what, "seconds", "time"), exponent(run, what, "peak", "memory")]
    return [*found, million(run), pipeline(run), flow_pairs(run)]


def speed(run: Run, work: str, dtype: str, wanted: float, side: str = "ours", batch: int | None = 1) -> Target:
    """A ratio of times."""
    target = Target(f"{work}, {dtype}", work, dtype, f"at least {wanted:g} x")
    row = find(run, work, dtype, batch)
    if row is None:
        return target
    ratio = row["ratios"][side]
    limit = seconds(row, "theirs") * peak_of(run, dtype) / row["sides"][side]["flops"]
    remark = (
        f"{1 - ratio['median'] / wanted:.0%} short, at {fraction(run, row, side):.0%} of the machine's peak; "
        f"the {row['sides'][side]['flops'] / 1e9:,.0f} GFLOPs that are executed would take all of it for {limit:.2f} x"
    )
    said = f"{ratio['median']:.2f} x ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
    return judged(target, ratio["median"] >= wanted, said, remark)


def judged(target: Target, reached: bool, measured: str, remark: str) -> Target:
    """The target with what was measured; the remark if it was not reached."""
    return Target(target.key, target.work, target.dtype, target.wanted, measured, reached, "" if reached else remark)


def flow_memory(run: Run) -> Target:
    """Peak memory of the process that computes flow."""
    target = Target("flow peak memory", rows.FLOW, "float32", f"peak at most {FLOW_PEAK / 1e9:g} GB")
    row = find(run, rows.FLOW, "float32")
    if row is None:
        return target
    peak = row["sides"]["ours"]["peak"]
    return judged(target, peak <= FLOW_PEAK, f"{peak / 1e9:.2f} GB", f"{(peak - FLOW_PEAK) / 1e9:.2f} GB too much")


def memory(run: Run, work: str, wanted: float) -> Target:
    """Peak memory of a training step as a part of the other side's, float32."""
    target = Target(f"{work}, memory", work, "float32", f"memory at most {wanted:g} x")
    row = find(run, work, "float32")
    if row is None:
        return target
    part = row["sides"]["ours"]["peak"] / row["sides"]["theirs"]["peak"]
    return judged(target, part <= wanted, f"{part:.2f} x", f"{part / wanted - 1:.0%} too much")


def speeds(run: Run, dtype: str, wanted: float) -> Target:
    """How many rows are so many times as fast as the other implementation."""
    target = Target(f"every row, {dtype}", "every row: times as fast", dtype, f"at least {wanted:g} x")
    each = {
        row["key"]: row["ratios"]["ours"]["median"]
        for row in measured_rows(run)
        if row["dtype"] == dtype and "ours" in row["ratios"]
    }
    if not each:
        return target
    reaching = sum(ratio >= wanted for ratio in each.values())
    lowest = min(each, key=lambda key: each[key])
    said = (
        f"{reaching} of {len(each)} rows; lowest {each[lowest]:.2f} x ({lowest}), median {median(each.values()):.2f} x"
    )
    below = [f"{key} {ratio:.2f}" for key, ratio in sorted(each.items(), key=lambda item: item[1]) if ratio < wanted]
    return judged(target, reaching == len(each), said, "below it: " + "; ".join(below))


def fractions(run: Run, dtype: str, wanted: float) -> Target:
    """The median of the fractions of the machine's peak that large rows reach."""
    target = Target(
        f"fraction of the peak, {dtype}",
        f"rows of over {LARGE / 1e9:.0f} GFLOPs: fraction of the peak",
        dtype,
        f"median at least {wanted:.0%}",
    )
    each = {
        row["key"]: fraction(run, row, "ours")
        for row in measured_rows(run)
        if row["dtype"] == dtype and "theirs" in row["sides"] and row["sides"]["ours"]["flops"] > LARGE
    }
    if not each:
        return target
    lowest = min(each, key=lambda key: each[key])
    said = f"median of {len(each)} rows {median(each.values()):.0%}; lowest {each[lowest]:.0%} ({lowest})"
    below = [f"{key} {part:.0%}" for key, part in sorted(each.items(), key=lambda item: item[1]) if part < wanted]
    return judged(target, median(each.values()) >= wanted, said, "below it: " + "; ".join(below))


def median(values: Sequence[float] | Any) -> float:
    """The median of some values."""
    return statistics.median(list(values))


def exponent(run: Run, what: str, field: str, name: str) -> Target:
    """The exponent of time or memory in the number of inputs or outputs."""
    work = f"scaling exponent in {what}: {name}"
    target = Target(work, work, "float32", f"{EXPONENT} ± {EXPONENT_WITHIN}")
    fits = run["scaling"].get(what, {}).get("fits")
    if fits is None:
        return target
    value = fits[field]["exponent"]
    reached = abs(value - EXPONENT) <= EXPONENT_WITHIN
    points = run["scaling"][what]["points"]
    return judged(
        target,
        reached,
        f"{value:.3f} ({points[0]['count']:,} to {points[-1]['count']:,}; measured points within "
        f"{fits[field]['error']:.0%} of the fit)",
        f"{abs(value - EXPONENT):.3f} off",
    )


def million(run: Run) -> Target:
    """Memory for the longest input."""
    target = Target(
        "a million inputs", "1,048,576 inputs of 64 channels to 256 latents", "float32", "under 2 GB beyond them"
    )
    points = run["scaling"].get("inputs", {}).get("points", [])
    beyond = [point["beyond"] for point in points if point["count"] == MILLION]
    if not beyond:
        return target
    return judged(
        target, beyond[0] < BEYOND, f"{beyond[0] / 1e9:.2f} GB", f"{(beyond[0] - BEYOND) / 1e9:.2f} GB too much"
    )


def pipeline(run: Run) -> Target:
    """How fast text is read and masked."""
    target = Target(
        "text pipeline", "text to masked batches of bytes, no model", "", f"at least {PIPELINE / 1e6:g} MB/s"
    )
    if "pipeline" not in run:
        return target
    speed = run["pipeline"]
    return judged(target, speed >= PIPELINE, f"{speed / 1e6:.0f} MB/s", f"{1 - speed / PIPELINE:.0%} too slow")


def flow_pairs(run: Run) -> Target:
    """How fast pairs of frames with exact flow are generated."""
    wanted = FLOW_PAIRS[run["device"]]
    target = Target("flow pairs", "pairs of 368 x 496 generated, no model", "float32", f"at least {wanted} a second")
    if "flow pairs" not in run:
        return target
    speed = run["flow pairs"]
    return judged(target, speed >= wanted, f"{speed:.0f} a second", f"{1 - speed / wanted:.0%} too slow")


def gpu(run: Run, work: str, wanted: float, batch: int) -> list[Target]:
    """A ratio and a fraction on a GPU, of the faster of ours, eager and compiled, beside theirs eager."""
    dtype = "bfloat16"
    row = find(run, work, dtype, batch=None)
    if row is None or row["batch"] < batch:
        return [
            Target(f"{work}, GPU", work, dtype, f"at least {wanted:g} x"),
            Target(f"{work}, GPU, fraction", work, dtype, f"at least {GPU_FRACTION:.0%} of the peak"),
        ]
    side = min((name for name in row["sides"] if name.startswith("ours")), key=lambda name: seconds(row, name))
    part = fraction(run, row, side)
    of_peak = Target(f"{work}, GPU, fraction", work, dtype, f"at least {GPU_FRACTION:.0%} of the peak")
    return [
        speed(run, work, dtype, wanted, side, batch=None),
        judged(of_peak, part >= GPU_FRACTION, f"{part:.0%} ({side})", f"{GPU_FRACTION - part:.0%} short"),
    ]
