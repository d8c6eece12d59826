"""A training run whose updates are timed, by whichever version of the library Python finds; see throughput.py.

python benchmarks/stopwatch.py CONFIG [--field=value ...]
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import Callback

from perceivers.training.config import read_config

WARMUP = 20
"""Updates before the clock starts: kernels are chosen, files are read for the first time."""


class Stopwatch(Callback):
    """Keeps the time and the loss of each update."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(float(outputs["loss"]))


def train(config: str, overrides: Sequence[str]) -> dict[str, float]:
    """Trains as `perceivers fit` does.

    Returns:
        "first_update", the time of day of the first update in seconds; "loss", the mean of the last quarter of the
        updates; and, of a longer run, "updates_per_second".
    """
    watch = Stopwatch()
    read_config(Path(config), overrides).run([watch])
    since_first = time.perf_counter() - watch.times[0]
    found = {
        "first_update": time.time() - since_first,
        "loss": statistics.mean(watch.losses[-len(watch.losses) // 4 :]),
    }
    if (updates := len(watch.times) - 1 - WARMUP) > 0:
        found["updates_per_second"] = updates / (watch.times[-1] - watch.times[WARMUP])
    return found


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1], sys.argv[2:])))
