"""Freed memory that the next layer, call or training step needs again."""

import ctypes
import sys
import threading

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""

MAX_MMAP_THRESHOLD = 2**25
"""Largest value that glibc accepts, in bytes."""

KEEP_ALL = 2**31 - 1
"""Size that keeps all freed memory: the largest that glibc accepts."""

lock = threading.Lock()
largest_size = 0
"""Largest size that was asked for in this process."""


def keep_freed_memory(size: int) -> None:
    """Makes glibc return freed memory to the system only when more than `size` bytes are free at the end of the heap.

    By default, it returns much of what a layer frees, and requests it again for the next layer. Each request costs a
    page fault for every 4 KB, which can double the time of a forward pass. Arrays above 32 MB are always returned. A
    smaller size than before changes nothing. Other C libraries, which lack `mallopt`, are left as they are.
    """
    global largest_size
    with lock:
        if size <= largest_size or not sys.platform.startswith("linux"):
            return
        largest_size = size
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):
            library.mallopt(MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
            library.mallopt(TRIM_THRESHOLD, size)
