"""Memory that a training step frees and the next one needs again."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""

MAX_MMAP_THRESHOLD = 2**25
"""Largest value that glibc accepts, in bytes."""


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory for the process; by default, it returns and requests much of it in every step.

    Each request costs a page fault for every 4 KB. Other C libraries, which lack `mallopt`, are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
        library.mallopt(TRIM_THRESHOLD, 2**31 - 1)
