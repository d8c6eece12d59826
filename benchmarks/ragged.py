"""Ragged batches beside padded ones with masks: time and memory of a forward pass and of a training step on CPU.

    python benchmarks/ragged.py [--repeats 5]

Both take turns in one process; times are medians, memory is the peak of what is allocated beyond the weights. The table
goes into docs/recipes.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perceivers import InputArray, PerceiverIO, Ragged
from perceivers.adapters import ArrayInput, SetOutput, TextInput, TextOutput

ROOT = Path(__file__).parents[1]
START, END = "<!-- ragged: start -->\n", "<!-- ragged: end -->"
SIZES = {"latents": 128, "channels": 256, "depth": 4, "heads": 8}
BATCHES = {
    "texts of 64 to 2,048 bytes": ("text", [64, 128, 200, 300, 450, 700, 1100, 2048]),
    "texts of 512 bytes": ("text", [512] * 8),
    "sets of 10 to 5,000 elements": ("set", [10, 30, 80, 200, 450, 1000, 2200, 5000]),
    "sets of 1,000 elements": ("set", [1000] * 8),
}


def make_model(kind: str) -> PerceiverIO:
    """Returns a model of texts, or of sets, with an answer for each element."""
    torch.manual_seed(0)
    if kind == "text":
        return PerceiverIO({"x": TextInput(256, 2048, 256)}, {"x": TextOutput("x")}, **SIZES)
    return PerceiverIO({"x": ArrayInput(128)}, {"x": SetOutput("x", 16)}, **SIZES)


def make_batches(kind: str, lengths: list[int]) -> dict[str, Any]:
    """Returns the same examples as a ragged batch and as a padded one."""
    generator = torch.Generator().manual_seed(0)
    arrays = [
        torch.randint(256, (length,), generator=generator)
        if kind == "text"
        else torch.randn(length, 128, generator=generator)
        for length in lengths
    ]
    padded = torch.nn.utils.rnn.pad_sequence(arrays, batch_first=True)
    mask_BM = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"ragged": Ragged.stack(arrays), "padded": InputArray(padded, mask_BM)}


def answer(model: PerceiverIO, batch: Any) -> Tensor:
    """Returns the predictions of all real elements, [T, E]."""
    found = model({"x": batch})["x"]
    return found.values if isinstance(found, Ragged) else found[batch.mask_BM]


def run(model: PerceiverIO, batch: Any, train: bool) -> None:
    """Computes a forward pass, or a training step without the optimizer."""
    if train:
        model.zero_grad()
        answer(model, batch).square().mean().backward()
    else:
        with torch.no_grad():
            answer(model, batch)


def peak_megabytes(function: Callable[[], None]) -> float:
    """Returns the peak of the memory that a function allocates."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    held = peak = 0
    assert profile.profiler is not None
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="number of times that both take turns")
    parser.add_argument(
        "--document", type=Path, default=ROOT / "docs/recipes.md", help="document to write the table to"
    )
    arguments = parser.parse_args()
    lines = [
        "| batch of 8 | real elements | pass | ragged | padded, masks | time ratio | memory, ragged | padded |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, (kind, lengths) in BATCHES.items():
        model, batches = make_model(kind), make_batches(kind, lengths)
        torch.testing.assert_close(
            answer(model, batches["ragged"]), answer(model, batches["padded"]), atol=1e-4, rtol=1e-4
        )
        share = sum(lengths) / (len(lengths) * max(lengths))
        for train in (False, True):
            seconds: dict[str, list[float]] = {side: [] for side in batches}
            for _ in range(arguments.repeats):
                for side, batch in batches.items():
                    started = time.perf_counter()
                    run(model, batch, train)
                    seconds[side].append(time.perf_counter() - started)
            ragged, padded = (statistics.median(seconds[side]) for side in ("ragged", "padded"))
            memory = [peak_megabytes(partial(run, model, batch, train)) for batch in batches.values()]
            lines.append(
                f"| {name} | {share:.0%} | {'training step' if train else 'forward'} | {1000 * ragged:.0f} ms "
                f"| {1000 * padded:.0f} ms | {padded / ragged:.2f} | {memory[0]:.0f} MB | {memory[1]:.0f} MB |"
            )
            print(lines[-1], flush=True)
    text = arguments.document.read_text()
    before, rest = text.split(START)
    table = "\n".join(lines) + "\n"
    arguments.document.write_text(f"{before}{START}{table}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
