"""Inference beside `transformers`: the same weights, the same input, the same precision, one run.

    .venv/bin/python benchmarks/inference.py                 # all three, about 9 minutes on two cores
    .venv/bin/python benchmarks/inference.py flow --rounds 1

Every measurement is a process of its own, ours and theirs in turn, so that each has its own peak of memory. Weights are
random, of the published sizes. It prints the median of the rounds, the ratios, and how far the answers differ.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "fill-mask": ("PerceiverForMaskedLM", {"qk_channels": 256, "v_channels": 1280}),
    "flow": (
        "PerceiverForOpticalFlow",
        {"num_latents": 2048, "d_latents": 512, "num_self_attends_per_block": 24}
        | {"num_self_attention_heads": 16, "num_cross_attention_heads": 1},
    ),
    "autoencode": (
        "PerceiverForMultimodalAutoencoding",
        {"num_latents": 784, "d_latents": 512, "num_self_attends_per_block": 8}
        | {"num_self_attention_heads": 8, "num_cross_attention_heads": 1, "num_labels": 700},
    ),
}
WHAT = {
    "fill-mask": "9 masked bytes of a text of 64 (theirs pads it to 2,048)",
    "flow": "one pair of 368 x 496 frames",
    "autoencode": "16 frames of 224 x 224 and 30,720 samples, encoded and decoded",
}
PARTS = 128
"""Into how many parts the autoencoder of `transformers` has to cut its outputs, each with an encoding of its own."""
MEASURED_PARTS = 4
REPEATS = {"fill-mask": 10, "flow": 1, "autoencode": 1}
"""Calls of a measurement, after one that is not counted where calls are short."""


def make(task: str, folder: Path) -> None:
    """Writes a model as `transformers` does, with random weights large enough for answers to vary."""
    import transformers

    name, config = SIZES[task]
    torch.manual_seed(0)
    model = getattr(transformers, name)(transformers.PerceiverConfig(**config))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)


def text() -> torch.Tensor:
    """A text of 64 bytes as tokens, of which 9 are masked."""
    tokens = torch.randint(6, 262, (1, 64))
    tokens[:, 50:59] = 3
    return tokens


def ours(task: str, folder: Path) -> Callable[[], torch.Tensor]:
    """The task with this library."""
    import perceivers

    model = perceivers.load(folder)
    if task == "fill-mask":
        tokens, masked = text(), torch.arange(50, 59)
        return lambda: model({"text": tokens}, {"text": masked})["text"]
    if task == "flow":
        frames = torch.rand(1, 2, 3, 368, 496)
        return lambda: model({"frames": frames})["flow"]
    data = {"video": torch.rand(1, 16, 3, 224, 224), "audio": torch.rand(1, 30720), "label": torch.tensor([0])}

    def autoencode() -> torch.Tensor:
        answers = model(data, masked={"label": torch.tensor([[True]])})
        return answers["video"].movedim(2, -1).flatten(1, 3)[:, : MEASURED_PARTS * 16 * 224 * 224 // PARTS]

    return autoencode


def theirs(task: str, folder: Path) -> Callable[[], torch.Tensor]:
    """The task with `transformers`."""
    import transformers

    model = getattr(transformers, SIZES[task][0]).from_pretrained(folder).eval()
    if task == "fill-mask":
        tokens = torch.zeros(1, 2048, dtype=torch.long)
        tokens[:, :64] = text()
        mask = (torch.arange(2048) < 64).long()[None]
        return lambda: model(inputs=tokens, attention_mask=mask).logits[:, 50:59]
    if task == "flow":
        frames = torch.nn.functional.pad(2 * torch.rand(1, 2, 3, 368, 496) - 1, (1, 1, 1, 1))
        shifted = [frames[..., y : y + 368, x : x + 496] for y in range(3) for x in range(3)]
        patches = torch.cat(shifted, 2)
        return lambda: 20 * model(inputs=patches).logits.movedim(-1, 1)
    video, audio = torch.rand(1, 16, 3, 224, 224), torch.rand(1, 30720)
    inputs = {"image": video, "audio": audio[..., None], "label": torch.zeros(1, 700)}
    pixels, patches_of_sound = 16 * 224 * 224 // PARTS, 1920 // PARTS

    def autoencode() -> torch.Tensor:
        parts = []
        for part in range(MEASURED_PARTS):
            points = {
                "image": torch.arange(part * pixels, (part + 1) * pixels),
                "audio": torch.arange(part * patches_of_sound, (part + 1) * patches_of_sound),
                "label": None,
            }
            parts.append(model(inputs=inputs, subsampled_output_points=points).logits["image"])
        return torch.cat(parts, 1)

    return autoencode


@torch.inference_mode()
def measure(task: str, side: str, folder: Path, answer: Path) -> None:
    """Measures one side in this process and prints seconds a call and the peak of memory."""
    torch.manual_seed(1)
    call = {"ours": ours, "theirs": theirs}[side](task, folder)
    if REPEATS[task] > 1 or (task, side) == ("autoencode", "theirs"):  # whose parts stand for many more
        call()
    seconds = []
    for _ in range(REPEATS[task]):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    torch.save(result.clone(), answer)
    whole = PARTS / MEASURED_PARTS if (task, side) == ("autoencode", "theirs") else 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": whole * statistics.median(seconds), "peak": peak}))


def compare(task: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Measures both sides in turn."""
    model, sides = folder / task, ("theirs", "ours")
    make(task, model)
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            command = [sys.executable, __file__, task, "--measure", side, "--models", str(folder)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[side].append(json.loads(output.splitlines()[-1]))
    answers = [torch.load(folder / f"{task}.{side}.pt") for side in sides]
    row: dict[str, Any] = {"task": task, "what": WHAT[task], "rounds": rounds}
    for side in sides:
        row[f"{side}_seconds"] = statistics.median(one["seconds"] for one in found[side])
        row[f"{side}_peak"] = max(one["peak"] for one in found[side])
    row["ratio"] = row["theirs_seconds"] / row["ours_seconds"]
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(*found.values(), strict=True)]
    row["ratios"] = [min(ratios), max(ratios)]
    row["difference"] = float((answers[0] - answers[1]).abs().max() / answers[0].std())
    return row


def main() -> None:
    """Reads the arguments and prints a row a task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(SIZES), help=f"of {', '.join(SIZES)} (all)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side (3)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--measure", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.tasks) - set(SIZES):
        parser.error(f"there is no task {', '.join(unknown)}: there are {', '.join(SIZES)}")
    if arguments.measure:
        (task,) = arguments.tasks
        answer = arguments.models / f"{task}.{arguments.measure}.pt"
        measure(task, arguments.measure, arguments.models / task, answer)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, batch 1")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for task in arguments.tasks:
            row = compare(task, arguments.rounds, Path(folder))
            rows.append(row)
            print(
                f"{task}, {row['what']}:\n"
                f"  transformers {row['theirs_seconds']:.3g} s, {row['theirs_peak'] / 1e9:.2f} GB; "
                f"perceivers {row['ours_seconds']:.3g} s, {row['ours_peak'] / 1e9:.2f} GB; "
                f"{row['ratio']:.2f} times faster ({row['ratios'][0]:.2f} to {row['ratios'][1]:.2f} over "
                f"{row['rounds']} rounds); answers differ by {row['difference']:.0e} of their standard deviation"
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
