"""How fast training data is made, without a model: masked batches of bytes from text, and pairs of flow."""

import itertools
import os
import random
import tempfile
import time
from pathlib import Path

from perceivers.flow.generator import FlowGenerator
from perceivers.flow.scenes import SceneConfig
from perceivers.text.stream import Stream, StreamedText, StreamLoader, TextData
from perceivers.text.tokenizers import Bytes

LENGTH, BATCH = 2048, 64
"""Bytes of a window, as the paper's model reads, and windows of a batch."""


def bytes_per_second(batches: int = 400) -> float:
    """Bytes of text a second that the loader of a pretraining run delivers with a worker for each core."""
    workers = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder, "text.txt"), 32 * 2**20)
        data = TextData(path=folder)
        text = StreamedText(data.open(0), Bytes(), LENGTH, data, batches * BATCH)
        stream = Stream(text, BATCH, seed=0, rank=0, world_size=1, workers=workers)
        loader = iter(StreamLoader(stream, batches + workers, workers))
        for _ in range(workers):  # each has started
            next(loader)
        started = time.perf_counter()
        for _ in itertools.islice(loader, batches):
            pass
        return batches * BATCH * LENGTH / (time.perf_counter() - started)


def pairs_per_second(device: str, pairs: int = 64) -> float:
    """Pairs of 368 x 496 pixels a second that are generated."""
    generator = FlowGenerator(SceneConfig(), device)
    generator.generate(range(pairs))
    started = time.perf_counter()
    float(generator.generate(range(pairs, 2 * pairs)).forward.sum())  # waits for the device
    return pairs / (time.perf_counter() - started)


def write_text(file: Path, size: int) -> None:
    """Writes documents of words of 1 to 10 letters, two of a hundred of them accented, about `size` bytes."""
    generator = random.Random(0)
    letters = "etaoinshrdlcumwfgypbvkjxqz"
    words = ["".join(generator.choices(letters, k=generator.randint(1, 10))) for _ in range(5000)]
    words += [word + "é" for word in words[:100]]
    documents = [" ".join(generator.choices(words, k=generator.randint(100, 600))) for _ in range(200)]
    text = "\n\n".join(documents) + "\n\n"
    with file.open("w") as stream:
        for _ in range(1 + size // len(text)):
            stream.write(text)
