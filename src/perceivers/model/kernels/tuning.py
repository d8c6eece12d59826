"""Chooses the fastest of several implementations of the same computation, by timing them on this machine.

The candidates are timed once for each class of shapes, on a part of the first such arrays. The choice is kept in
`perceivers/kernels.json` in the user's cache folder, by processor or GPU, threads, and version of torch, so that later
runs on this machine choose the same and give equal results. Before the first choice, the process is made to keep some
freed memory, since requesting it again takes as long as some computations (`perceivers.model.memory`). With the
environment variable `PERCEIVERS_AUTOTUNE=0`, nothing is timed or kept, and the first candidate is chosen; it is chosen,
too, where the file cannot be written.
"""

import json
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from perceivers.errors import PerceiversError
from perceivers.model.eager import is_eager
from perceivers.model.memory import keep_freed_memory
from perceivers.model.saving import atomic_write

AUTOTUNE = "PERCEIVERS_AUTOTUNE"
"""Environment variable: 0 to time nothing."""

CHOICES = "perceivers/kernels.json"
"""The file of choices in the user's cache folder."""

MAX_TIMED_PRODUCTS = 2**28
"""Largest number of multiplications that are timed: some milliseconds on a CPU of two cores."""

MIN_TIMED_PRODUCTS = 2**22
"""Smallest number of multiplications of a computation that is worth timing."""

ROUNDS = 5
"""How often each candidate is timed; the shortest time counts."""

MAX_KEPT_BYTES = 2**27
"""Bytes of freed memory that the process keeps."""

MAX_RATIO = 1.5
"""A candidate that takes this many times as long as another, after two rounds, is not timed again."""

MARGIN = 0.97
"""Largest fraction of the first candidate's time that another may take to be chosen instead."""

Implementation = Callable[..., Tensor]

lock = threading.RLock()  # what is timed may make choices itself
choices: dict[Hashable, str] = {}
"""Names of the chosen candidates by key, as far as they were asked for in this process."""


def choose(
    key: tuple[Hashable, ...],
    products: int,
    candidates: Mapping[str, Implementation],
    sample: Callable[[], Sequence[object]],
) -> Implementation:
    """Returns the fastest of several functions that compute the same.

    Args:
        key: what the time depends on: operation, type, class of shapes (see `size_class`).
        products: number of multiplications of the computation.
        candidates: the functions by name, of the same arguments; the first is chosen where nothing is timed.
        sample: returns arguments for the timing. Tensors that require gradients are differentiated.
    """
    first = next(iter(candidates))
    if len(candidates) == 1 or products < MIN_TIMED_PRODUCTS or not can_time():
        return candidates[first]
    threads = torch.get_num_threads()
    full_key = *key, *candidates, threads
    if full_key not in choices:
        with lock:
            if full_key not in choices:
                keep_freed_memory(MAX_KEPT_BYTES)
                text = f"{' '.join(map(str, key))}, {threads} threads: {', '.join(candidates)}"
                choices[full_key] = read_or_measure(text, candidates, sample)
    return candidates[choices[full_key]]


def can_time() -> bool:
    """Returns whether candidates may be timed: not if operators are recorded, transformed or counted."""
    return (
        os.environ.get(AUTOTUNE) != "0"
        and is_eager()
        and torch._C._len_torch_dispatch_stack() == 0
        and not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    )


def size_class(size: int) -> int:
    """Returns the power of two at or below a size, whose class it belongs to."""
    return 1 << size.bit_length() >> 1


def read_or_measure(key: str, candidates: Mapping[str, Implementation], sample: Callable[[], Sequence[object]]) -> str:
    """Returns the name of a candidate from the file, or else of the fastest, which is added to the file."""
    machine = describe_machine()
    try:
        file = get_file()
        known = read_choices(file).get(machine, {})
        if known.get(key) in candidates:
            return known[key]
        file.parent.mkdir(parents=True, exist_ok=True)
        if os.access(file.parent, os.W_OK):
            devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
            with torch.random.fork_rng(devices):  # candidates may drop weights
                fastest = measure(candidates, sample())
            found = read_choices(file)
            of_machine = found.setdefault(machine, {})
            if of_machine.get(key) in candidates:  # another process was here
                return of_machine[key]
            of_machine[key] = fastest
            atomic_write(file, lambda path: path.write_text(json.dumps(found, indent=1) + "\n"))
            return fastest
    except (OSError, RuntimeError, PerceiversError):  # no home folder, a full disk or memory
        pass
    return next(iter(candidates))


def get_file() -> Path:
    """Returns the path of the file of choices."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / CHOICES


def read_choices(file: Path) -> dict[str, dict[str, str]]:
    """Returns the choices in a file by machine; none if it is not there or damaged."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    machines = found.items() if isinstance(found, dict) else ()
    return {
        machine: {key: name for key, name in of_machine.items() if isinstance(name, str)}
        for machine, of_machine in machines
        if isinstance(of_machine, dict)
    }


@cache
def describe_machine() -> str:
    """Returns the names of the processor and the GPU, and the version of torch."""
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([name_processor(), torch.backends.cpu.get_cpu_capability(), *gpu, f"torch {torch.__version__}"])


def name_processor() -> str:
    """Returns the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(candidates: Mapping[str, Implementation], arguments: Sequence[object]) -> str:
    """Returns the name of the candidate that is the fastest for some arguments; the first if others are not faster."""
    leaves = [array for array in arguments if isinstance(array, Tensor) and array.requires_grad]
    first = next(iter(candidates))
    times: dict[str, float] = {}
    for name, implementation in candidates.items():  # memory is allocated, and code generated
        with suppress(RuntimeError):  # an implementation that this GPU does not have
            compute(implementation, arguments, leaves)
            times[name] = math.inf
    for index in range(ROUNDS):
        for name, shortest in times.items():
            if index < 2 or shortest < MAX_RATIO * min(times.values()):  # other work may have slowed a first call
                start = time.perf_counter()
                compute(candidates[name], arguments, leaves)
                times[name] = min(shortest, time.perf_counter() - start)
    fastest = min(times, key=lambda name: times[name], default=first)
    return fastest if first not in times or times[fastest] < MARGIN * times[first] else first


def compute(implementation: Implementation, arguments: Sequence[object], leaves: list[Tensor]) -> None:
    """Computes once, with the gradients of leaves if there are any, hidden from hooks of the caller."""
    with torch.set_grad_enabled(bool(leaves)), saved_tensors_hooks(lambda array: array, lambda array: array):
        result = implementation(*arguments)
        if leaves:
            torch.autograd.grad(result, leaves, torch.ones_like(result))
    if result.is_cuda:
        torch.cuda.synchronize()
