"""Shows how far a command has come: a bar with the time left on a terminal, lines otherwise, nothing with --quiet.

Functions track their loops; a command, and not the library that it calls, decides whether that is shown.
"""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Self, TypeVar

from tqdm import tqdm

T = TypeVar("T")

FIRST_LINE, NEXT_LINE = 2.0, 10.0
"""Seconds until the first line, and from one line to the next."""


class Shown:
    """What is shown: `loops` within a command; `runs`, the steps of training, unless it is quiet."""

    loops = False
    runs = True


@contextmanager
def show_progress(loops: bool, runs: bool = True) -> Iterator[None]:
    """Shows the progress of the loops and training runs within, or hides it."""
    before = Shown.loops, Shown.runs
    Shown.loops, Shown.runs = loops, runs
    try:
        yield
    finally:
        Shown.loops, Shown.runs = before


class Progress:
    """The progress of a loop, on standard error; loops within it are hidden until it is closed.

    Args:
        unit: what is counted, such as "images".
        total: number of all, if known.
        done: number of those that were done before.
        is_first: whether this process is the one that shows it.
    """

    def __init__(self, unit: str, total: int | None = None, done: int = 0, is_first: bool = True) -> None:
        self.unit, self.total, self.done, self.before = unit, total, done, done
        self.is_shown = is_first and Shown.loops
        self.start = time.perf_counter() if self.is_shown else 0.0
        self.next_line = self.start + FIRST_LINE
        Shown.loops = Shown.loops and not self.is_shown
        on_terminal = self.is_shown and sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=unit, initial=done, unit="", delay=0.5) if on_terminal else None

    def update(self, count: int = 1) -> None:
        """Counts some more as done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif self.is_shown and (now := time.perf_counter()) >= self.next_line:
            of = f" of {self.total:,}, {self.time_left(now)} left" if self.total else ""
            print(f"{self.unit}: {self.done:,}{of}", file=sys.stderr, flush=True)
            self.next_line = now + NEXT_LINE

    def time_left(self, now: float) -> str:
        """Returns the time that the rest takes at the speed so far, such as "01:40"."""
        rest = (self.total or 0) - self.done
        return str(tqdm.format_interval(rest * (now - self.start) / (self.done - self.before)))

    def close(self) -> None:
        """Ends the bar."""
        Shown.loops = Shown.loops or self.is_shown
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def track(items: Iterable[T], unit: str) -> Iterator[T]:
    """Yields items and shows the progress through them."""
    with Progress(unit, len(items) if isinstance(items, Sized) else None) as progress:
        for item in items:
            yield item
            progress.update()
