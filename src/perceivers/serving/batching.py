"""Answers concurrent requests in batches, on one thread."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, NamedTuple

WAIT = 0.005
"""Seconds that a request waits for others, at most; those that come during a batch have waited already."""


class Job(NamedTuple):
    """A request, when it came, and where its answer goes."""

    item: Any
    time: float
    answer: "Future[Any]"


class Batcher:
    """Computes on a thread of its own, several requests at once.

    If a batch fails, each of its requests is computed alone, so that one that fails does no harm to others.

    Args:
        compute: returns the answers of several items, in order.
        max_batch: largest number of items.
        wait: seconds that an item waits for others, at most, before it is computed.
    """

    def __init__(self, compute: Callable[[Sequence[Any]], Sequence[Any]], max_batch: int, wait: float = WAIT) -> None:
        self.compute, self.max_batch, self.wait = compute, max_batch, wait
        self.jobs = SimpleQueue[Job | None]()
        self.thread = Thread(target=self.run, name="compute", daemon=True)
        self.thread.start()

    def submit(self, item: Any) -> "Future[Any]":
        """Returns the future answer of an item; cancel it if nobody waits for it any more."""
        job = Job(item, monotonic(), Future())
        self.jobs.put(job)
        return job.answer

    def close(self) -> None:
        """Ends the thread after all items that were submitted."""
        self.jobs.put(None)
        self.thread.join()

    def run(self) -> None:
        """Answers batches until the batcher is closed."""
        while batch := self.collect():
            if waited_for := [job for job in batch if job.answer.set_running_or_notify_cancel()]:
                self.answer(waited_for)

    def collect(self) -> list[Job]:
        """Waits for an item, and a moment for more; returns none if the batcher is closed."""
        job, batch = self.jobs.get(), list[Job]()
        while job is not None:
            batch.append(job)
            if len(batch) == self.max_batch:
                return batch
            try:
                job = self.jobs.get(timeout=max(0, batch[0].time + self.wait - monotonic()))
            except Empty:
                return batch
        if batch:
            self.jobs.put(None)
        return batch

    def answer(self, batch: Sequence[Job]) -> None:
        """Computes a batch."""
        try:
            answers = self.compute([job.item for job in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            for job in batch:
                self.answer([job])
            return
        for job, answer in zip(batch, answers, strict=True):
            job.answer.set_result(answer)
