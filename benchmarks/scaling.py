"""Time and memory against the number of inputs and of outputs, and beside a Transformer encoder."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.measure import Side, SideError, Sides

COUNTS = (1024, 4096, 16384, 65536, 262144, 1048576)
QUICK_COUNTS = COUNTS[:4]
TINY_COUNTS = (128, 256, 512, 1024)
TOO_LONG, QUICK_TOO_LONG = 60.0, 5.0
"""Seconds a call of the Transformer may be expected to take."""
SERIES = ("inputs", "outputs", "transformer")


class Fit(NamedTuple):
    """y = fixed + factor * count ** exponent; `error` is the largest relative difference of a measured point."""

    fixed: float
    factor: float
    exponent: float
    error: float


def fit(counts: Sequence[int], values: Sequence[float]) -> Fit:
    """Fits a fixed part and a power to positive values, by least squares of relative residuals.

    For a given exponent the rest is linear; the exponent itself is searched for on a grid, then by golden section.
    """
    largest = max(counts)  # exponents are of counts relative to it, so that factors stay of one size

    def loss(exponent: float) -> float:
        return solve(counts, values, exponent, largest)[2]

    steps = [0.05 * step for step in range(2, 61)]
    best = min(steps, key=loss)
    exponent = golden(loss, best - 0.05, best + 0.05)
    fixed, factor, _ = solve(counts, values, exponent, largest)
    errors = [
        abs(fixed + factor * (count / largest) ** exponent - y) / y for count, y in zip(counts, values, strict=True)
    ]
    return Fit(fixed, factor / largest**exponent, exponent, max(errors))


def solve(counts: Sequence[int], values: Sequence[float], exponent: float, largest: int) -> tuple[float, float, float]:
    """The best fixed part (not below 0) and factor for an exponent, and the sum of squared relative residuals."""
    rows = [(1 / y, (count / largest) ** exponent / y) for count, y in zip(counts, values, strict=True)]
    aa, ab, bb = sum(a * a for a, _ in rows), sum(a * b for a, b in rows), sum(b * b for _, b in rows)
    a1, b1 = sum(a for a, _ in rows), sum(b for _, b in rows)
    determinant = aa * bb - ab * ab
    fixed = (a1 * bb - b1 * ab) / determinant
    factor = (b1 * aa - a1 * ab) / determinant
    if fixed < 0:
        fixed, factor = 0.0, b1 / bb
    return fixed, factor, sum((fixed * a + factor * b - 1) ** 2 for a, b in rows)


def golden(loss: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum between two points has it."""
    part = (5**0.5 - 1) / 2
    while high - low > 1e-5:
        left, right = high - part * (high - low), low + part * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return (low + high) / 2


def predicted(points: Sequence[dict[str, Any]], count: int) -> float:
    """Seconds that a larger count will take, going on as the last two points do."""
    if len(points) < 2:
        return 0.0
    (m1, t1), (m2, t2) = [(point["count"], point["seconds"]) for point in points[-2:]]
    growth = max(1.0, t2 / t1)
    steps = 0
    while m2 * (m2 // m1) ** steps < count:
        steps += 1
    return t2 * growth**steps


def one(side: Side, what: str, count: int) -> dict[str, Any]:
    """Measures a point: the median of some calls after one, and peak memory."""
    resident = side.ask("scale", what=what, count=count)["resident"]
    warm = side.ask("warm")["seconds"]
    rounds = 25 if warm < 0.1 else 9 if warm < 1 else 3
    measured = [side.ask("run")["seconds"] for _ in range(rounds)] if warm < 5 else [warm]  # warming up is little of it
    seconds = statistics.median(measured)
    peak = side.ask("finish")["peak"]
    return {"count": count, "seconds": seconds, "resident": resident, "peak": peak, "beyond": peak - resident}


def series(what: str, counts: Sequence[int], sides: Sides, too_long: float = TOO_LONG) -> dict[str, Any]:
    """Measures one of `SERIES` and fits it; it ends where memory does, and the Transformer where it takes too long."""
    points: list[dict[str, Any]] = []
    ended = ""
    for count in counts:
        if what == "transformer" and (expected := predicted(points, count)) > too_long:
            ended = f"{count:,} inputs would take about {expected:.0f} s"
            break
        try:
            points.append(one(sides.get(f"scaling in {what}", "ours"), what, count))  # a process a series
        except SideError as error:
            ended = f"{count:,}: {error}"
            break
    found: dict[str, Any] = {"points": points, "ended": ended}
    if len(points) >= 4:
        measured = [point["count"] for point in points]
        found["fits"] = {
            field: fit(measured, [point[field] for point in points])._asdict() for field in ("seconds", "peak")
        }
    return found
