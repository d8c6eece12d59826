"""StarCraft II at mini scale: AlphaStar's Transformer and the paper's Perceiver IO on units, three seeds each.

What is measured goes into docs/starcraft.md.

    python benchmarks/starcraft.py --tables FOLDER    # what `perceivers prepare-replays` wrote; an hour on two cores

Runs are kept in `runs/starcraft` and skipped when the same command is called again; what was interrupted goes on.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.side_by_side import cores, side_by_side
from benchmarks.starcraft_pictures import draw_attention, draw_selections
from benchmarks.worker import peak, reset_peak
from perceivers.checkpoints import load_model
from perceivers.data.loader import SampleIndex
from perceivers.errors import PerceiversError
from perceivers.model import kernels
from perceivers.starcraft.data import DecisionData, Decisions, PolicyDecisions
from perceivers.starcraft.policy import UnitPolicy
from perceivers.starcraft.training import compute_losses, evaluate, evaluate_references
from perceivers.training.checkpoints import LAST
from perceivers.training.config import read_config

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs/starcraft"
ENCODERS = {
    "Transformer": ("transformer.yaml", []),
    "Perceiver IO, 32 latents": ("perceiver.yaml", []),
    "Perceiver IO, 64 latents": ("perceiver.yaml", ["--model.latents=64"]),
    "Perceiver IO, 32 latents, units by themselves": ("perceiver.yaml", ["--model.selection=independent"]),
}
CHANGES = ["--model.history=false", "--trainer.max_epochs=1"]
"""Changes of all configs: the policies read what the paper's encoder is given, for one epoch."""
PICTURED = ("Transformer", "Perceiver IO, 32 latents")
SEEDS = (0, 1, 2)
BATCH = 64
"""Decisions of a batch when encoders are timed."""
FIGURES = ("f1", "precision", "recall", "exact", "first", "ability", "target")

START, END = "<!-- measured by benchmarks/starcraft.py -->\n", "<!-- end -->\n"


def folder(runs: Path, encoder: str, seed: int) -> Path:
    """Returns where a run is kept."""
    return runs / f"{encoder.replace(', ', '_').replace(' ', '_')}_{seed}"


def train(encoder: str, seed: int, runs: Path, tables: Path) -> None:
    """Trains a run, or goes on with it, unless it is done."""
    output, (config, changes) = folder(runs, encoder, seed), ENCODERS[encoder]
    if not (output / "metrics.json").is_file():
        resume = str((output / "checkpoints" / LAST).is_file()).lower()
        own = [f"--data.path={tables}", f"--data.split={CONFIGS / 'split.json'}", f"--training.seed={seed}"]
        own += [f"--training.output={output}", f"--training.resume={resume}"]
        read_config(CONFIGS / config, [*CHANGES, *changes, *own]).run()


def tested(run: Path, decisions: Decisions) -> dict[str, float]:
    """Returns a run's figures on the test replays, computed once."""
    file = run / "test.json"
    if not file.is_file():
        policy = load_model(run / "model")
        assert isinstance(policy, UnitPolicy)
        file.write_text(json.dumps(evaluate(policy, decisions)))
    found: dict[str, float] = json.loads(file.read_text())
    return found


def flops(policy: UnitPolicy, units: int) -> int:
    """Returns the FLOPs of the encoder for one decision of so many units."""
    with torch.device("meta"):
        encoder = type(policy.encoder)(**policy.encoder.config).eval().requires_grad_(False)
        kernels.reset(encoder)
        with FlopCounterMode(display=False) as counter:
            encoder(torch.empty(1, units, policy.units.channels), torch.ones(1, units, dtype=torch.bool))
    return counter.get_total_flops()


def usual_batch(decisions: Decisions) -> dict[str, torch.Tensor]:
    """Returns the batch in the middle, by number of units."""
    ordered = sorted(range(len(decisions)), key=decisions.lengths.__getitem__)
    begin = max(0, (len(ordered) - BATCH) // 2)
    return decisions.collate([decisions[SampleIndex(place, 0)] for place in ordered[begin : begin + BATCH]])


def train_step(policy: UnitPolicy, batch: dict[str, torch.Tensor]) -> None:
    """Losses and gradients of the whole policy, in the precision of the runs."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.stack(list(compute_losses(policy, batch).values())).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    policy.zero_grad()


@torch.inference_mode()
def encode(policy: UnitPolicy, batch: dict[str, torch.Tensor]) -> None:
    """The encoder alone."""
    with torch.autocast("cpu", torch.bfloat16):
        policy.encoder(policy.units(batch), batch["real"])


class Costs(NamedTuple):
    """Decisions that are trained on and encoded in a second, and bytes that a training step needs."""

    trained: float
    encoded: float
    memory: int


def measured(policies: dict[str, UnitPolicy], decisions: Decisions, rounds: int = 7) -> dict[str, Costs]:
    """Costs of each policy, of the same batch, in turns.

    Speeds are medians; memory is the peak of the process above what it held before the step.
    """
    known = usual_batch(decisions)
    batches = {name: PolicyDecisions(decisions, policy).translate(known) for name, policy in policies.items()}
    found: dict[str, Costs] = {}
    seconds: dict[tuple[str, Any], list[float]] = {(name, do): [] for do in (train_step, encode) for name in policies}
    for turn in range(rounds + 1):
        for (name, do), times in seconds.items():
            started = time.perf_counter()
            do(policies[name], batches[name])
            if turn:  # the first is to warm up
                times.append(time.perf_counter() - started)
    for name, policy in policies.items():
        before = reset_peak("cpu")
        train_step(policy, batches[name])
        memory = peak("cpu") - before
        trained, encoded = (len(known["real"]) / statistics.median(seconds[name, do]) for do in (train_step, encode))
        found[name] = Costs(trained, encoded, memory)
    return found


def spread(values: list[float]) -> str:
    """Mean and standard deviation, in percent."""
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def report(runs: Path, tables: Path) -> str:
    """Figures on the test replays and costs of each encoder, as tables."""
    decisions = DecisionData(str(tables), str(CONFIGS / "split.json")).open()["test"]
    rows = ["| | " + " | ".join(FIGURES) + " |", "| --- |" + " --- |" * len(FIGURES)]
    costs = [
        "| encoder | parameters | FLOPs of 512 units | trained on a second | encoded a second | memory of a step |",
        "| --- |" + " --- |" * 5,
    ]
    policies = {}
    for encoder in ENCODERS:
        done = [run for run in (folder(runs, encoder, seed) for seed in SEEDS) if (run / "metrics.json").is_file()]
        if not done:
            continue
        found = [tested(run, decisions) for run in done]
        rows.append(f"| {encoder} | " + " | ".join(spread([each[key] for each in found]) for key in FIGURES) + " |")
        policy = load_model(done[0] / "model")
        assert isinstance(policy, UnitPolicy)
        policies[encoder] = policy
    for name, figures in evaluate_references(decisions).items():
        rows.append(
            f"| {name} | " + " | ".join(f"{100 * figures[k]:.1f}" if k in figures else "" for k in FIGURES) + " |"
        )
    costs_of = measured(policies, decisions)
    for name, policy in policies.items():
        parameters = sum(parameter.numel() for parameter in policy.encoder.parameters())
        cost = costs_of[name]
        costs.append(
            f"| {name} | {parameters / 1e6:.2f}M | {flops(policy, 512) / 1e9:.3f}B | {cost.trained:.0f} | "
            f"{cost.encoded:.0f} | {cost.memory / 1e6:.0f} MB |"
        )
    if policies.keys() >= set(PICTURED):
        draw_selections({name: policies[name] for name in PICTURED}, decisions, ROOT / "docs/starcraft_selections.png")
        draw_attention(policies[PICTURED[1]], decisions, ROOT / "docs/starcraft_attention.png")
    title = (
        f"On the {len(decisions):,} decisions of the test replays, in percent, mean and standard deviation over seeds:"
    )
    return title + "\n\n" + "\n".join(rows) + "\n\n" + "\n".join(costs) + "\n"


def main() -> None:
    """Runs what is not done yet and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="what `perceivers prepare-replays` wrote")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/starcraft", help="where runs are kept")
    parser.add_argument("--only", nargs=2, metavar=("ENCODER", "SEED"), help="train one, in this process")
    parser.add_argument("--jobs", type=int, default=1 if torch.cuda.is_available() else cores())
    arguments = parser.parse_args()
    try:
        if arguments.only:
            train(arguments.only[0], int(arguments.only[1]), arguments.runs, arguments.tables)
            return
        arguments.runs.mkdir(parents=True, exist_ok=True)
        own = [sys.executable, __file__, "--runs", str(arguments.runs), "--tables", str(arguments.tables), "--only"]
        commands = {f"{name} {seed}": [*own, name, str(seed)] for seed in SEEDS for name in ENCODERS}
        failed = side_by_side(commands, arguments.runs, arguments.jobs)
        if failed:
            sys.exit(f"starcraft.py: not finished: {', '.join(failed)}; their logs are in {arguments.runs}.")
        tables = report(arguments.runs, arguments.tables)
    except PerceiversError as error:
        sys.exit(f"starcraft.py: {error}")
    page = ROOT / "docs/starcraft.md"
    before, _, rest = page.read_text().partition(START)
    page.write_text(before + START + tables + END + rest.partition(END)[2])
    print("\n" + tables)


if __name__ == "__main__":
    main()
