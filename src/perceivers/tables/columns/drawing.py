"""HTML of cells: text in chips or on a background of its weight, and lines. Shape suffixes: M elements."""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

WIDTH, HEIGHT = 320, 80
"""Size of a drawn line; pages scale it."""

MOST_POINTS = 640
"""Most points of a drawn line; a longer one is drawn as the range of each of its parts."""

LEAST_SHADE = 0.005
"""Least fraction of the full color that is drawn."""


def format_number(number: float) -> str:
    """Returns a number with up to six digits, and commas between thousands from five digits on."""
    if not math.isfinite(number):
        return str(number)
    size = abs(number)
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{number:.4g}"
    if size >= 10_000:
        return f"{number:,.0f}"
    return f"{number:.6g}"


def shorten(number: float) -> str:
    """Returns a number with four digits, such as an end of a range."""
    return format_number(float(f"{number:.4g}"))


def draw_chip(text: str, weight: float | None = None, kind: str = "") -> str:
    """Returns a category as HTML, on a background of its weight from 0 to 1, if given."""
    style = "" if weight is None else f' style="--w:{weight:.2f}"'
    return f'<span class="{f"chip {kind}".strip()}"{style}>{html.escape(text)}</span>'


def draw_shaded(text: str, weight: float, largest: float) -> str:
    """Returns a part of a text as HTML, on a background as intense as its weight is of the largest one."""
    shade = weight / largest if largest > 0 else 0.0
    escaped = html.escape(text)
    return escaped if shade < LEAST_SHADE else f'<b style="--w:{shade:.2f}" title="{weight:.1%}">{escaped}</b>'


def relative(weight_M: Tensor | None, count: int) -> list[float] | None:
    """Returns weights as fractions of the largest one; None without weights, or if their number is not `count`."""
    if weight_M is None or len(weight_M) != count:
        return None
    return [float(weight) for weight in weight_M / weight_M.max().clamp_min(1e-9)]


def draw_lines(
    lines: Sequence[tuple[str, int, Sequence[float] | np.ndarray[Any, Any]]],
    bands: Sequence[tuple[float, float, float]] = (),
    label: str = "",
) -> str:
    """Returns lines over a common axis of steps as SVG, with its smallest and largest number.

    Args:
        lines: the class, the first step, and the numbers of each line.
        bands: first step, end, and weight from 0 to 1 of parts of the background.
        label: what the picture shows.
    """
    values = np.concatenate([np.asarray(numbers, dtype=np.float64) for _, _, numbers in lines])
    low, high = float(values.min()), float(values.max())
    end = max(first + len(numbers) for _, first, numbers in lines)
    span = max(1, end - 1)

    def place(step: float, number: float) -> str:
        height = 0.5 if high == low else (number - low) / (high - low)
        return f"{WIDTH * step / span:.1f},{HEIGHT - 4 - (HEIGHT - 8) * height:.1f}"

    parts = [
        f'<rect class="band" style="--w:{weight:.2f}" x="{WIDTH * first / span:.1f}" y="0" '
        f'width="{max(0.5, WIDTH * (min(last, end) - first) / span):.1f}" height="{HEIGHT}"/>'
        for first, last, weight in bands
        if weight >= LEAST_SHADE and first < end
    ]
    for kind, first, numbers in lines:
        points = " ".join(place(first + step, number) for step, number in thin(numbers))
        parts.append(f'<polyline class="{kind}" points="{points}"/>')
    picture = (
        f'<svg class="line" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
    )
    return f'{picture}<span class="quiet">{shorten(low)} to {shorten(high)}</span>'


def thin(numbers: Sequence[float] | np.ndarray[Any, Any]) -> list[tuple[float, float]]:
    """Returns the steps and numbers to draw: all, or the smallest and the largest of each of equal parts."""
    if len(numbers) <= MOST_POINTS:
        return list(enumerate(float(number) for number in numbers))
    found = list[tuple[float, float]]()
    for part in np.array_split(np.arange(len(numbers)), MOST_POINTS // 2):
        some = np.asarray(numbers)[part]
        extremes = sorted((int(part[some.argmin()]), int(part[some.argmax()])))
        found += [(step, float(numbers[step])) for step in extremes]
    return found


def split_bands(weights: Sequence[float] | None, width: float, start: float = 0) -> list[tuple[float, float, float]]:
    """Returns the bands of parts of equal width, see `draw_lines`."""
    places = (start + index * width for index in range(len(weights or ())))
    return [(max(0, place), place + width, weight) for place, weight in zip(places, weights or (), strict=True)]
