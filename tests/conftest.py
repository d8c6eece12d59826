import math
import os
from pathlib import Path

import pytest
import torch

from perceivers import progress

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PERCEIVERS_AUTOTUNE"] = "0"  # tests do not depend on what was measured; test_tuning.py turns it on

LONG = ("signals", "page", "docs", "processes", "extending", "sweep", "prediction", "resume", "trainer", "kills")
"""Modules with long tests."""

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items):
    """Begins with long tests, so that of two processes none waits for the other in the end."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_lines_of_progress(monkeypatch):
    """Commands print nothing more where the machine is busy and they take longer."""
    monkeypatch.setattr(progress, "FIRST_LINE", math.inf)


@pytest.fixture(autouse=True)
def one_thread(request):
    """Models so small are slower on several threads, by far where other processes have the cores too."""
    threads = torch.get_num_threads()
    if request.node.get_closest_marker("slow") is None:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shared_data():
    """Real data beside the checkout; not part of the project."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data in {folder}")
    return folder


@pytest.fixture
def shared_fixtures():
    """Reference outputs of the original code beside the checkout; not part of the project."""
    folder = SHARED / "fixtures"
    if not folder.is_dir():
        pytest.skip(f"needs the reference outputs in {folder}")
    return folder
