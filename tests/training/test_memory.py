"""Memory is kept between training steps."""

import platform
import subprocess
import sys

import pytest

RESIDENT = """
import ctypes, resource
from pathlib import Path
from perceivers.training.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
before = resident()
for _ in range(3):
    arrays = [library.malloc(2**22) for _ in range(40)]  # 160 MiB
    for array in arrays:
        ctypes.memset(array, 1, 2**22)
    for array in arrays:
        library.free(array)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_stays_with_the_process():
    """Steps of 160 MiB leave them resident; by default, they are returned to the system."""
    commands = [[sys.executable, "-c", RESIDENT.format(keep=keep)] for keep in (True, False)]
    kept, returned = (int(subprocess.run(each, capture_output=True, check=True).stdout) for each in commands)
    assert kept > 150 * 2**20
    assert returned < 50 * 2**20
