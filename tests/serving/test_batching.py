import threading
import time
from concurrent.futures import CancelledError

import pytest

from perceivers.serving.batching import Batcher


class Recorder:
    """Doubles numbers, and keeps the batches; waits until it is told to go."""

    def __init__(self):
        self.batches, self.go = [], threading.Event()

    def __call__(self, items):
        assert self.go.wait(5)
        self.batches.append(list(items))
        return [1 / (item - 3) and 2 * item for item in items]  # 3 fails


@pytest.fixture
def recorder():
    return Recorder()


def submit_while_busy(batcher, recorder, items):
    """Submits items while the first one, alone, is computed."""
    first = batcher.submit(0)
    while not batcher.jobs.empty():
        time.sleep(0.001)
    time.sleep(2 * batcher.wait)
    answers = [batcher.submit(item) for item in items]
    return first, answers


def test_requests_that_wait_are_computed_together_in_order(recorder):
    batcher = Batcher(recorder, 4, wait=0.005)
    first, answers = submit_while_busy(batcher, recorder, [1, 2, 4, 5, 6])
    recorder.go.set()
    assert [answer.result(5) for answer in (first, *answers)] == [0, 2, 4, 8, 10, 12]
    assert recorder.batches == [[0], [1, 2, 4, 5], [6]]
    batcher.close()


def test_a_request_that_fails_does_no_harm_to_others(recorder):
    batcher = Batcher(recorder, 4)
    _, answers = submit_while_busy(batcher, recorder, [1, 3, 4])
    recorder.go.set()
    assert [answers[0].result(5), answers[2].result(5)] == [2, 8]
    assert isinstance(answers[1].exception(5), ZeroDivisionError)
    assert recorder.batches == [[0], [1, 3, 4], [1], [3], [4]]
    batcher.close()


def test_what_nobody_waits_for_is_not_computed(recorder):
    batcher = Batcher(recorder, 4)
    _, answers = submit_while_busy(batcher, recorder, [1, 2, 4])
    answers[1].cancel()
    recorder.go.set()
    assert [answers[0].result(5), answers[2].result(5)] == [2, 8]
    with pytest.raises(CancelledError):
        answers[1].result(5)
    assert recorder.batches == [[0], [1, 4]]
    batcher.close()


def test_all_that_was_submitted_is_answered_before_it_closes(recorder):
    batcher = Batcher(recorder, 2)
    _, answers = submit_while_busy(batcher, recorder, [1, 2, 4])
    recorder.go.set()
    batcher.close()
    assert [answer.result(0) for answer in answers] == [2, 4, 8]
    assert not batcher.thread.is_alive()
