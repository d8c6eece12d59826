"""Metrics in the text format of Prometheus."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """Counts of values up to each of some bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Adds a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> Iterator[str]:
        """Yields the lines of the metric of a name."""
        total = 0
        for bound, count in zip([*self.bounds, "+Inf"], self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum}"
        yield f"{name}_count {total}"


class Metrics:
    """What a server has done.

    Attributes:
        requests: number of predictions asked for, by the status of the answer.
        seconds: from a request to its answer.
        batch_sizes, compute_seconds: of each batch; written by the thread that computes.
        waiting: number of requests that have no answer yet.
    """

    def __init__(self) -> None:
        self.requests = Counter[int]()
        self.seconds, self.compute_seconds = Histogram(SECONDS), Histogram(SECONDS)
        self.batch_sizes = Histogram(SIZES)
        self.waiting = 0

    def observe_batch(self, size: int, seconds: float) -> None:
        """Counts a batch."""
        self.batch_sizes.observe(size)
        self.compute_seconds.observe(seconds)

    def observe_request(self, status: int, seconds: float) -> None:
        """Counts a request."""
        self.requests[status] += 1
        self.seconds.observe(seconds)

    def format(self) -> str:
        """Returns all metrics as text."""
        requests = [
            f'perceivers_requests_total{{status="{status}"}} {n}' for status, n in sorted(self.requests.items())
        ]
        metrics = {
            "requests_total": ("counter", "Predictions asked for, by the status of the answer.", requests),
            "waiting_requests": (
                "gauge",
                "Requests without an answer.",
                [f"perceivers_waiting_requests {self.waiting}"],
            ),
        }
        for name, help_text, histogram in (
            ("request_seconds", "Seconds from a request to its answer.", self.seconds),
            ("compute_seconds", "Seconds that a batch takes.", self.compute_seconds),
            ("batch_size", "Requests computed at once.", self.batch_sizes),
        ):
            metrics[name] = ("histogram", help_text, [*histogram.lines(f"perceivers_{name}")])
        lines = [
            line
            for name, (kind, help_text, values) in metrics.items()
            for line in (f"# HELP perceivers_{name} {help_text}", f"# TYPE perceivers_{name} {kind}", *values)
        ]
        return "\n".join([*lines, ""])
