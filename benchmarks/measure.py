"""A row is measured: the processes of its sides do its work in turn, call by call."""

import json
import math
import os
import selectors
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import models
from benchmarks.rows import Row

ROOT = Path(__file__).parents[1]
PATIENCE = 240.0
"""Seconds after which a call is given up; compiling is what may take so long."""
TOLERANCE = 1e-3
"""By how much of their standard deviation float32 answers of equal weights may differ."""


class SideError(Exception):
    """A side could not do what it was asked for; `memory`: for lack of memory."""

    def __init__(self, message: str, memory: bool = False) -> None:
        super().__init__(message)
        self.memory = memory


class Side:
    """The process of a side; arguments as in `worker.Worker`."""

    def __init__(self, side: str, device: str, folder: Path, tiny: bool) -> None:
        command = [sys.executable, "-m", "benchmarks.worker", side, "--device", device, "--models", str(folder)]
        # Compiled code and choices of kernels are kept for the run only: every run compiles, tells for how long, and
        # chooses.
        kept = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"), "XDG_CACHE_HOME": str(folder)}
        environment = os.environ | {"HF_HUB_OFFLINE": "1"} | kept
        self.log = (folder / f"{side.replace(' ', '_')}.log").open("a+b")
        self.process = subprocess.Popen(
            [*command, "--tiny"] if tiny else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            cwd=ROOT,
            env=environment,
        )
        self.answers = selectors.DefaultSelector()
        assert self.process.stdout is not None
        self.answers.register(self.process.stdout, selectors.EVENT_READ)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Sends a request and returns its answer.

        Raises:
            SideError: it answered with an error, or not at all.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise SideError(f"its process has ended: {self.last_words()}") from None
        if not self.answers.select(PATIENCE):
            self.process.kill()
            self.process.wait()
            raise SideError(f"it took more than {PATIENCE:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            killed = self.process.wait() == -9  # by the kernel, which was out of memory
            raise SideError("it was killed" if killed else f"its process has ended: {self.last_words()}", killed)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise SideError(answer["error"], answer["memory"])
        return answer

    def last_words(self) -> str:
        """The last line of what it printed."""
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.process.poll() is None

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        if self.alive():
            self.process.stdin.close()
        self.process.wait()
        self.answers.close()
        self.log.close()


class Sides:
    """The processes of all sides for one model at a time, and the folder with the models, made as they are needed."""

    def __init__(self, folder: Path, device: str, tiny: bool) -> None:
        self.folder = folder
        self.device = device
        self.tiny = tiny
        self.model: str | None = None
        self.running: dict[str, Side] = {}
        self.counter: Side | None = None

    def get(self, model: str, side: str) -> Side:
        """The process of a side; those of another model are ended, so that theirs is not in anybody's way."""
        if model != self.model:
            self.close_model()
            self.model = model
        if model in models.MODELS and not (self.folder / model).exists():
            models.make(model, self.folder / model, self.tiny)
        if side in self.running and not self.running[side].alive():
            self.running.pop(side).close()
        if side not in self.running:
            self.running[side] = Side(side, self.device, self.folder, self.tiny)
        return self.running[side]

    def flops(self, row: Row, side: str) -> float:
        """FLOPs of a row on a side, counted in a process that is there for this only."""
        if self.counter is None:
            self.counter = Side("counter", "cpu", self.folder, self.tiny)
        counted: float = self.counter.ask("flops", row=row.to_json(), side=side.removesuffix(" compiled"))["flops"]
        return counted

    def close_model(self) -> None:
        """Ends the processes of the model."""
        for side in self.running.values():
            side.close()
        self.running = {}

    def close(self) -> None:
        """Ends all processes."""
        self.close_model()
        if self.counter is not None:
            self.counter.close()
            self.counter = None


def measure(row: Row, sides: Sides) -> dict[str, Any]:
    """Measures a row; where memory does not suffice (on a GPU) with half the batch, and so on.

    Returns:
        The row, for each side its seconds and the rest, and the ratios; or why it was left out.
    """
    while True:
        try:
            return attempt(row, sides)
        except SideError as error:
            if not error.memory or row.batch == 1 or sides.device == "cpu":
                return row.to_json() | {"skipped": str(error)}
            row = replace(row, batch=row.batch // 2)


def attempt(row: Row, sides: Sides) -> dict[str, Any]:
    """Measures a row as it is.

    Raises:
        SideError: the first side, or all others, could not do it, or one for lack of memory.
    """
    found: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for name in row.sides:
        try:
            found[name] = start(sides.get(row.model, name), row)
        except SideError as error:
            if name == row.sides[0] or error.memory or len(row.sides) == 2:
                raise
            left_out[name] = str(error)
    for _ in range(row.rounds):
        for name, side in found.items():
            side["seconds"].append(sides.get(row.model, name).ask("run")["seconds"])
    for name, side in found.items():
        process = sides.get(row.model, name)
        side |= process.ask("finish", answer=str(sides.folder / f"{name}.pt"))
        side["flops"] = sides.flops(row, name)
    result = row.to_json() | {"sides": found, "left_out": left_out}
    if sides.device == "cpu" and "ours" in found:
        result |= sides.get(row.model, "ours").ask("profile", row=row.to_json())
    first, *rest = found
    result["ratios"] = {name: ratios(found[first]["seconds"], found[name]["seconds"]) for name in rest}
    if row.equal:
        answers = [torch.load(sides.folder / f"{name}.pt") for name in found]
        result["difference"] = max(difference(answers[0], answer) for answer in answers[1:])
    return result


def start(process: Side, row: Row) -> dict[str, Any]:
    """Prepares a row on a side and warms it up."""
    resident = process.ask("prepare", row=row.to_json())["resident"]
    return {"resident": resident, "first": process.ask("warm")["seconds"], "seconds": []}


def ratios(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """How many times as long the first takes, pair by pair: the median, the lowest and the highest."""
    each = [a / b for a, b in zip(first, second, strict=True)]
    return {"median": statistics.median(each), "lowest": min(each), "highest": max(each)}


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """The largest difference, in standard deviations of the first."""
    assert first.shape == second.shape, f"answers of {tuple(first.shape)} and {tuple(second.shape)}"
    return float((first - second).abs().max() / first.std())


def agrees(result: dict[str, Any]) -> bool:
    """Whether both sides computed the same, as far as can be told: in float32."""
    checked = result["dtype"] == "float32" and "difference" in result
    return not checked or (math.isfinite(result["difference"]) and result["difference"] <= TOLERANCE)
