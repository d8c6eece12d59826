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
    """Trains as `perceivers fit` does; returns updates a second, and the mean loss of their last quarter."""
    watch = Stopwatch()
    read_config(Path(config), overrides).run([watch])
    speed = (len(watch.times) - 1 - WARMUP) / (watch.times[-1] - watch.times[WARMUP])
    return {"updates_per_second": speed, "loss": statistics.mean(watch.losses[-len(watch.losses) // 4 :])}


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1], sys.argv[2:])))
