"""The commands of StarCraft II: `prepare-replays`, and `evaluate` for its policies."""

from pathlib import Path
from typing import Annotated

from perceivers.checks import Count
from perceivers.command import Device, Json, Metavar, ModelArgument, print_answer, print_json, print_table
from perceivers.data.splits import Part, SplitOption, choose_splits


def prepare_replays(
    source: Annotated[Path, "folder with .SC2Replay files", Metavar("IN")],
    out: Annotated[Path, "folder to write; replays that it already holds are kept", Metavar("OUT")],
    *,
    team_games: Annotated[bool, "also accept games of more than two players"] = False,
    json: Json = False,
) -> None:
    """Writes the decisions in StarCraft II replays as tables."""
    from perceivers.starcraft.tables import MAX_UNITS, write_replays

    statistics = write_replays(source, out, team_games)
    refused = list(statistics["refused"].values())
    replays = statistics["replays"].values()
    keys = ("decisions", "selections", "cut", "unknown_abilities")
    total = {key: sum(replay[key] for replay in replays) for key in keys}
    found = (
        f"{out}: {total['decisions']:,} decisions of {len(replays)} replays, {total['selections']:,} of them "
        f"selections. {total['cut']:,} had more than {MAX_UNITS} units and were truncated; "
        f"{total['unknown_abilities']:,} have abilities unknown to sc2reader."
    )
    answer = {"out": str(out), "replays": len(replays), **total, "refused": refused}
    print_answer(answer, "\n".join([*(f"Refused: {reason}" for reason in refused), found]), json)


def evaluate(
    model: ModelArgument,
    *,
    data: Annotated[str, "folder that `perceivers prepare-replays` wrote", Metavar("FOLDER")],
    split: SplitOption = None,
    list: Annotated[
        str, "JSON file that assigns replays to the parts", Metavar("FILE")
    ] = "configs/starcraft/split.json",
    batch_size: Annotated[Count, "decisions per batch"] = 64,
    device: Device = None,
    json: Json = False,
) -> None:
    """Measures how well a policy predicts what players select, command and aim at, beside simple rules."""
    from perceivers.starcraft.data import DecisionData
    from perceivers.starcraft.policy import load_policy
    from perceivers.starcraft.training import evaluate, evaluate_references

    parts = DecisionData(data, list).open()
    ((chosen, name), *_) = choose_splits(parts, split, data)
    decisions = parts[name]
    part = Part("decision", len(decisions), sum(map(len, parts.values())), chosen)
    figures = evaluate(load_policy(model, device), decisions, batch_size)
    results = {"model": figures} | evaluate_references(decisions)
    if json:
        print_json(results | part.fields())
        return
    print_table(
        [str(part), *figures],
        [[name, *(f"{row[key]:.2%}" if key in row else "" for key in figures)] for name, row in results.items()],
    )
