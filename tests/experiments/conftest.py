import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Models so small are slower on several threads, by far where other processes have the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
