import pytest

from tests.robustness.fuzz import fuzz
from tests.robustness.readers import READERS

CASES = 15


@pytest.mark.parametrize("name", READERS)
def test_samples_are_read(tmp_path, name):
    READERS[name].read(READERS[name].write(tmp_path))


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_in_one_sentence(tmp_path, name):
    outcomes = fuzz(name, READERS[name], CASES, seed=0, folder=tmp_path)
    assert outcomes["failed"] == 0
    assert outcomes["read"] + outcomes["refused"] == CASES
