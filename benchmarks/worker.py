"""One side of the measurements, in a process of its own: does the works it is told of, one call at a time.

    python -m benchmarks.worker theirs --device cpu --models FOLDER

It reads a request a line from standard input, as JSON, and answers each with a line on standard output:

    {"do": "prepare", "row": {...}}     -> {"resident": bytes}   model and inputs of a row (`rows.py`)
    {"do": "scale", "what", "count"}    -> {"resident": bytes}   the same for the scaling (`others.py`)
    {"do": "warm"}, {"do": "run"}       -> {"seconds": s}        of the whole work, also if a part stands for it
    {"do": "finish", "answer": file}    -> {"peak": bytes}       since "prepare"; the last answer goes to the file
    {"do": "profile", "row"}            -> {"operators": {...}}  fraction of the time of each kind (`operators.py`)
    {"do": "flops", "row", "side"}      -> {"flops": n}          of a row on a side, counted without computing it

or with {"error": "...", "memory": true if it was for lack of memory}.
"""

import argparse
import ctypes
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from benchmarks import calls, models, others
from benchmarks.calls import Work
from benchmarks.operators import profile_operators
from benchmarks.rows import Row
from perceivers.model.kernels.tuning import MAX_KEPT_BYTES
from perceivers.model.memory import keep_freed_memory

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def status(field: str) -> int:
    """A field of the process's status in bytes."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def reset_peak(device: str) -> int:
    """Frees what can be freed, starts the measurement of peak memory anew, and returns what is in use."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if not CLEAR.exists():
        return 0
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # the kernel's high-water mark starts from what is resident now
    return status("VmRSS")


def peak(device: str) -> int:
    """Peak memory in bytes since `reset_peak`; without /proc, since the process began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if CLEAR.exists():
        return status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Worker:
    """What the process does.

    Args:
        side: "theirs" or "ours", or one of them followed by " compiled".
        device: "cpu" or "cuda".
        folder: where the models are that `models.make` wrote.
        tiny: whether these are tiny ones.
    """

    def __init__(self, side: str, device: str, folder: Path, tiny: bool) -> None:
        self.side = side.removesuffix(" compiled")
        self.compiled = side != self.side
        self.device = device
        self.folder = folder
        self.tiny = tiny
        self.loaded: tuple[Any, ...] | None = None
        self.model: nn.Module | None = None
        self.row: Row | None = None
        self.work: Work | None = None
        self.answer: Tensor | None = None

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers a request."""
        arguments = {name: value for name, value in request.items() if name != "do"}
        try:
            return getattr(self, request["do"])(**arguments)
        except Exception as error:
            message = (str(error).strip() or type(error).__name__).splitlines()[0]
            memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in message
        self.free()  # not before the error is gone, which holds what it failed with
        reset_peak(self.device)
        return {"error": message, "memory": memory}

    def free(self) -> None:
        """Forgets the row, but not the model."""
        self.work = self.answer = None
        if self.model is not None:
            self.model.zero_grad(set_to_none=True)

    def prepare(self, row: dict[str, Any]) -> dict[str, Any]:
        """Loads the model, if it is another one or compiled, and makes the inputs."""
        self.free()
        self.row = Row.from_json(row)
        wanted = (self.row.model, self.row.dtype, self.crop(self.row))
        if self.compiled or wanted != self.loaded:
            self.loaded = self.model = None
            gc.collect()
            self.model = self.load(self.row)
            self.loaded = wanted
            if self.compiled:
                torch.compiler.reset()
                self.model.compile()
        assert self.model is not None
        self.model.train(self.row.mode == "train")
        self.work = make(self.row, self.side, self.model, self.device, self.tiny)
        return {"resident": reset_peak(self.device)}

    def load(self, row: Row) -> nn.Module:
        """The model of a row."""
        if row.model == "perceiver_pytorch":
            return others.perceiver_pytorch_model(self.side, row.dtype, self.device, self.tiny)
        return models.load(row.model, self.side, self.folder / row.model, row.dtype, self.device, self.crop(row))

    def crop(self, row: Row) -> tuple[int, ...] | None:
        """The image size a model is built for instead of its own: flow is trained on a crop."""
        if row.model != "flow" or row.mode != "train":
            return None
        return models.crop_of(models.MODELS["flow"].tiny_size if self.tiny else models.MODELS["flow"].size)

    def scale(self, what: str, count: int) -> dict[str, Any]:
        """Makes a model of the scaling and its inputs."""
        self.row = self.loaded = self.model = None
        self.free()
        model = others.scaling_model(what, count).to(self.device)
        self.work = others.scaling_work(what, count, model, self.device)
        return {"resident": reset_peak(self.device)}

    def timed(self, warm: bool) -> dict[str, Any]:
        """Runs the work or its warm-up once."""
        assert self.work is not None
        training = self.row is not None and self.row.mode == "train"
        call, times = (self.work.warm, 1.0) if warm else (self.work.call, self.work.times)
        with torch.enable_grad() if training else torch.inference_mode():
            start = self.now()
            answer = call()
            seconds = self.now() - start
        if not warm:
            assert isinstance(answer, Tensor)
            self.answer = answer
        return {"seconds": seconds * times}

    def now(self) -> float:
        """The time at which everything asked for so far is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def warm(self) -> dict[str, Any]:
        """Runs the warm-up."""
        return self.timed(warm=True)

    def run(self) -> dict[str, Any]:
        """Runs the work."""
        return self.timed(warm=False)

    def finish(self, answer: str | None = None) -> dict[str, Any]:
        """Ends the row: its peak, and its answer to a file."""
        found = {"peak": peak(self.device)}
        if answer is not None and self.answer is not None:
            torch.save(self.answer.detach().float().cpu().clone(), answer)
        self.free()
        return found

    def profile(self, row: dict[str, Any]) -> dict[str, Any]:
        """Runs the work of a row once more, with torch's profiler, which would count in its time and memory."""
        self.prepare(row)
        assert self.work is not None
        with torch.set_grad_enabled(row["mode"] == "train"):
            found = profile_operators(self.work.call)
        self.free()
        return {"operators": found}

    def flops(self, row: dict[str, Any], side: str) -> dict[str, Any]:
        """Counts the FLOPs of a row, mostly by running the same code on the meta device, which computes nothing.

        This is asked of a process that measures nothing: what the counter imports takes 100 MB.
        """
        from torch.utils.flop_counter import FlopCounterMode

        counted = Row.from_json(row)
        # What is left out of padding depends on the values of a mask, which the meta device has not: computed, then.
        device = "cpu" if side == "ours" and len(set(counted.lengths)) > 1 else "meta"
        if counted.model == "perceiver_pytorch":
            with torch.device("meta"):
                model = others.perceiver_pytorch_model(side, counted.dtype, "meta", self.tiny)
        elif device == "meta":
            model = models.empty(counted.model, side, self.folder / counted.model, counted.dtype, self.crop(counted))
        else:
            model = models.load(counted.model, side, self.folder / counted.model, counted.dtype, device, None)
        training = counted.mode == "train"
        model.train(training).requires_grad_(training)  # the counter fails on weights that would get no gradient
        work = make(counted, side, model, device, self.tiny)
        counter = FlopCounterMode(display=False)
        with torch.set_grad_enabled(training), models.masks_not_built(side), counter:
            work.call()
        return {"flops": work.times * counter.get_total_flops()}


def make(row: Row, side: str, model: nn.Module, device: str, tiny: bool) -> Work:
    """The work of a row with a model on a device."""
    maker = others.perceiver_pytorch_work if row.model == "perceiver_pytorch" else calls.prepare
    return maker(row, side, model, device, tiny)


def serve(worker: Worker, requests: TextIO, answers: TextIO) -> None:
    """Answers requests until there are no more."""
    for line in requests:
        print(json.dumps(worker.handle(json.loads(line))), file=answers, flush=True)


def main() -> None:
    """Reads the arguments and serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    keep_freed_memory(MAX_KEPT_BYTES)  # as ours does by itself: theirs is not to wait for the system either
    serve(Worker(arguments.side, arguments.device, arguments.models, arguments.tiny), sys.stdin, answers)


if __name__ == "__main__":
    main()
