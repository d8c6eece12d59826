"""Training runs side by side, a process each, and their curves."""

import csv
import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(commands: Mapping[str, Sequence[str]], logs: Path, jobs: int) -> list[str]:
    """Runs commands, `jobs` at a time, which share the cores; what they say goes to a file each.

    Returns:
        The names of those that failed.
    """

    def run(name: str) -> int:
        environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores() // jobs))}
        with (logs / f"{name}.log").open("a") as log:
            print(f"{name}: tail -f {log.name}", flush=True)
            return subprocess.run(commands[name], stdout=log, stderr=log, env=environment, check=False).returncode

    with ThreadPoolExecutor(jobs) as pool:
        return [name for name, code in zip(commands, pool.map(run, commands), strict=True) if code]


def curve(folder: Path, column: str) -> list[tuple[int, float]]:
    """A metric of a run by step."""
    points: dict[int, float] = {}
    for file in sorted(folder.glob("csv/version_*/metrics.csv"), key=lambda file: int(file.parent.name[8:])):
        for row in csv.DictReader(file.open()):
            if row.get(column):
                points[int(row["step"]) + 1] = float(row[column])
    return sorted(points.items())
