"""Memory is kept between training steps."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from perceivers.training.memory import keep_freed_memory
if {keep}:
    keep_freed_memory()
def step():
    return [torch.ones(2**20) for _ in range(40)]  # 160 MB
def count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
step()
before = count()
for _ in range(3):
    step()
print(count() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_not_requested_again():
    """Three steps of 160 MB touch 122,880 pages of 4 KB, but are faulted in once."""
    commands = [[sys.executable, "-c", FAULTS.format(keep=keep)] for keep in (True, False)]
    kept, returned = (int(subprocess.run(each, capture_output=True, check=True).stdout) for each in commands)
    assert kept < returned / 4
