"""The commands of StarCraft II: `prepare-replays`, and `evaluate` for its policies."""

from pathlib import Path
from typing import Annotated, Literal

from perceivers.checks import Count
from perceivers.command import Device, Json, Metavar, ModelArgument, print_json, print_table


def prepare_replays(
    source: Annotated[Path, "a folder with .SC2Replay files", Metavar("IN")],
    out: Annotated[Path, "the folder to write; replays that are there already are kept", Metavar("OUT")],
    *,
    team_games: Annotated[bool, "take games of more than two players, too"] = False,
) -> None:
    """Writes the decisions in StarCraft II replays as tables."""
    from perceivers.starcraft.tables import write_replays

    statistics = write_replays(source, out, team_games, progress=True)
    for reason in statistics["refused"].values():
        print(f"Refused: {reason}")
    replays = statistics["replays"].values()
    total = {
        name: sum(each[name] for each in replays) for name in ("decisions", "selections", "cut", "unknown_abilities")
    }
    print(
        f"{out}: {total['decisions']:,} decisions of {len(replays)} replays, {total['selections']:,} of them "
        f"selections. Units were left out of {total['cut']:,} that had too many; {total['unknown_abilities']:,} are "
        f"commands that sc2reader does not know."
    )


def evaluate(
    model: ModelArgument,
    *,
    data: Annotated[str, "the folder that `perceivers prepare-replays` wrote", Metavar("FOLDER")],
    split: Annotated[Literal["training", "validation", "test"], "which part of the replays"] = "test",
    list: Annotated[
        str, "JSON file that says which replays belong to which part", Metavar("FILE")
    ] = "configs/starcraft/split.json",
    batch_size: Annotated[Count, "decisions computed at a time"] = 64,
    device: Device = None,
    json: Json = False,
) -> None:
    """Measures a policy beside simple rules: how well it predicts what players select, command and aim at."""
    from perceivers.starcraft.data import DecisionData
    from perceivers.starcraft.policy import load_policy
    from perceivers.starcraft.training import evaluate, references

    decisions = DecisionData(data, list).open()[split]
    figures = evaluate(load_policy(model, device), decisions, batch_size)
    results = {"model": figures} | references(decisions)
    if json:
        print_json(results | {"decisions": len(decisions)})
        return
    print_table(
        [f"{split}, {len(decisions):,} decisions", *figures],
        [[name, *(f"{row[key]:.2%}" if key in row else "" for key in figures)] for name, row in results.items()],
    )
