"""The machine: what it is, how many FLOPs a second it reaches in a large matrix product, and the versions compared."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.models import DTYPES
from perceivers.model.kernels.half_precision import has_fast_products
from perceivers.model.kernels.tuning import name_processor

PACKAGES = ("perceivers", "torch", "transformers", "perceiver-pytorch")
SIDE = 4096
SLOW_SIDE = 256
"""Side of the matrices of a precision that the CPU has no instructions for: a product of larger ones takes minutes."""
REPEATS = 4


def describe(device: str) -> dict[str, str | int]:
    """Processor or GPU, cores and threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found: dict[str, str | int] = {"processor": name_processor(), "cores": cores, "threads": torch.get_num_threads()}
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Versions of what is compared."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def find_commit() -> str:
    """Returns the commit of this checkout, "" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def products(a: Tensor, b: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The ways to compute a matrix product that there are on this machine, by name."""
    bias = torch.zeros(b.shape[0], dtype=b.dtype, device=b.device)
    ways = {"torch.matmul": lambda: a @ b, "linear": lambda: F.linear(a, b, bias)}
    if a.device.type == "cpu" and a.dtype == torch.float32 and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        ways["oneDNN linear"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return ways


@torch.inference_mode()
def peak(dtype: str, device: str, side: int = SIDE) -> dict[str, float | str]:
    """FLOPs per second of the fastest product of two square matrices, the best of its repeats, and which way it is."""
    a, b = (torch.randn(side, side, device=device).to(DTYPES[dtype]) for _ in range(2))
    best: dict[str, float] = {}
    for name, product in products(a, b).items():
        try:
            product()
        except (RuntimeError, NotImplementedError):
            continue  # there is no oneDNN in this build
        seconds = []
        for _ in range(REPEATS):
            start = now(device)
            product()
            seconds.append(now(device) - start)
        best[name] = 2 * side**3 / min(seconds)
    way = max(best, key=lambda name: best[name])
    return {"flops": best[way], "way": way}


def now(device: str) -> float:
    """The time at which everything asked for so far is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peaks(device: str, side: int = SIDE) -> dict[str, dict[str, float | str]]:
    """The peak in each precision."""
    return {name: peak(name, device, side if is_fast(name, device) else SLOW_SIDE) for name in DTYPES}


def is_fast(dtype: str, device: str) -> bool:
    """Whether there are instructions for products in a precision."""
    return device != "cpu" or dtype == "float32" or has_fast_products(DTYPES[dtype])
