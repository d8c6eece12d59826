"""Game states as maps: which units a policy selects beside those that the player did, and what latents look at."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from perceivers.data.loader import SampleIndex
from perceivers.model.intermediates import record_attention
from perceivers.starcraft.data import Decisions, PolicyDecisions
from perceivers.starcraft.metrics import indices_to_mask
from perceivers.starcraft.policy import UnitPolicy
from perceivers.starcraft.replays import BUILDING, LOOPS
from perceivers.starcraft.training import selection_inputs

COLORS = ("#1b6ca8", "#2a9d5c", "#c4472b", "#b9b9b9")
OWNERS = ("own units", "an ally's", "the enemy's", "nobody's")
PREDICTED = "#e09f3e"
Batch = dict[str, Tensor]


def some_selections(decisions: Decisions, count: int, fewest: int = 3) -> Batch:
    """Selections of several units, drawn at random, always the same."""
    order = torch.randperm(len(decisions), generator=torch.Generator().manual_seed(0)).tolist()
    rows = (decisions[SampleIndex(place, 0)] for place in order)
    wanted = (row for row in rows if row["ability"] < 0 and len(row["chosen"]) >= fewest)
    return decisions.collate([row for row, _ in zip(wanted, range(count), strict=False)])


@torch.inference_mode()
def selected(policy: UnitPolicy, decisions: Decisions, batch: Batch) -> Tensor:
    """Which units a policy selects, [B, M]."""
    known = PolicyDecisions(decisions, policy).translate(batch)
    index_BT = policy.selection.greedy_select(*selection_inputs(policy(known), known))
    return indices_to_mask(index_BT, known["real"].shape[1])


def draw_selections(policies: dict[str, UnitPolicy], decisions: Decisions, file: Path, states: int = 3) -> None:
    """A row a state, a column a policy: all units, those that the player selected next and those predicted."""
    batch = some_selections(decisions, states)
    found = {name: selected(policy, decisions, batch) for name, policy in policies.items()}
    rows = len(batch["real"])
    figure = Figure(figsize=(5.2 * len(found), 5 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, len(found), squeeze=False)
    for state in range(rows):
        for column, (name, found_BM) in enumerate(found.items()):
            axis = axes[state][column]
            chosen_M, found_M = batch["chosen"][state], found_BM[state]
            units_of(axis, batch, state)
            mark(axis, batch, state, chosen_M, s=70, facecolors="none", edgecolors="black")
            mark(axis, batch, state, found_M, s=45, marker="x", color=PREDICTED)
            right = int((chosen_M & found_M).sum())
            axis.set_title(f"{name}: {right} of {int(found_M.sum())} right, {int(chosen_M.sum())} were selected")
            if not column:
                minutes, seconds = divmod(int(batch["loop"][state]) // LOOPS, 60)
                axis.set_ylabel(f"{minutes}:{seconds:02}, selected {types(decisions, batch, state, chosen_M)}")
    figure.legend(
        handles=[
            *(Line2D([], [], marker="o", linestyle="", color=c, label=n) for c, n in zip(COLORS, OWNERS, strict=True)),
            Line2D([], [], marker="o", linestyle="", color="black", markerfacecolor="none", label="player selected"),
            Line2D([], [], marker="x", linestyle="", color=PREDICTED, label="predicted"),
        ],
        loc="outside lower center",
        ncols=6,
    )
    figure.savefig(file, dpi=80)


@torch.inference_mode()
def draw_attention(policy: UnitPolicy, decisions: Decisions, file: Path, latents: int = 6) -> None:
    """What the most concentrated latents look at in one state: bigger and darker where a latent reads more."""
    batch = some_selections(decisions, 1)
    known = PolicyDecisions(decisions, policy).translate(batch)
    with record_attention(policy.encoder) as maps:
        policy.encoder(policy.units(known), known["real"])
    (name,) = [name for name in maps if "encoder" in name and "cross" in name]
    weight_NM = maps[name][0][0].mean(0)
    entropy_N = torch.special.entr(weight_NM).sum(1)
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    for axis, latent in zip(figure.subplots(2, 3).flat, entropy_N.argsort()[:latents].tolist(), strict=False):
        units_of(axis, batch, 0)
        weight_M = weight_NM[latent]
        axis.scatter(batch["x"][0], batch["y"][0], 400 * weight_M / weight_M.max(), color="black", alpha=0.35)
        read = Counter[str]()
        for place, weight in enumerate(weight_M.tolist()):
            read[decisions.vocabulary.kinds[int(batch["kind"][0, place])]] += weight
        most = ", ".join(f"{kind} {share:.0%}" for kind, share in read.most_common(2))
        axis.set_title(f"latent {latent}\n{most}", fontsize=8)
    figure.savefig(file, dpi=80)


def units_of(axis: Axes, batch: Batch, state: int) -> None:
    """All units of a state in their places; buildings are squares."""
    building_M = (batch["flags"][state] & BUILDING).bool()
    for owner in reversed(range(len(COLORS))):
        owner_M = batch["real"][state] & (batch["owner"][state] == owner)
        mark(axis, batch, state, owner_M & building_M, s=16, marker="s", color=COLORS[owner])
        mark(axis, batch, state, owner_M & ~building_M, s=8, color=COLORS[owner])
    axis.set(aspect="equal", xticks=[], yticks=[])


def mark(axis: Axes, batch: Batch, state: int, which_M: Tensor, **style: Any) -> None:
    """Signs at some of the units."""
    axis.scatter(batch["x"][state][which_M], batch["y"][state][which_M], **style)


def types(decisions: Decisions, batch: Batch, state: int, which_M: Tensor) -> str:
    """Units by type, in words."""
    found = Counter(decisions.vocabulary.kinds[kind] for kind in batch["kind"][state][which_M].tolist())
    return ", ".join(f"{count} {kind}" for kind, count in found.most_common(3))
