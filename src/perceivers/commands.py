"""The command `models`."""

from functools import partial
from typing import Any

from perceivers.command import Json, print_json, print_table


def models(*, json: Json = False) -> None:
    """Lists the models by name, with their size and FLOPs beside the paper's figures."""
    from perceivers.presets import create_model, find_preset, list_models, measure_cost

    found: list[dict[str, Any]] = []
    for name in list_models():
        preset = find_preset(name)
        cost = measure_cost(partial(create_model, name), preset.inputs, preset.outputs)
        found.append(
            {
                "name": name,
                "experiment": preset.experiment,
                "paper_row": preset.paper_row,
                "parameters": cost.parameters,
                "paper_parameters": preset.paper_parameters and int(preset.paper_parameters),
                "flops": cost.flops,
                "paper_flops": preset.paper_flops and int(preset.paper_flops),
            }
        )
    if json:
        print_json(found)
        return
    rows = []
    for name, experiment, paper_row, *figures in (model.values() for model in found):
        parameters = [f"{figure / 1e6:.1f}M" if figure else "-" for figure in figures[:2]]
        flops = [f"{figure / 1e9:.0f}B" if figure else "-" for figure in figures[2:]]
        rows.append([name, experiment, paper_row, *parameters, *flops])
    print_table(["name", "experiment", "in the paper", "parameters", "paper", "FLOPs", "paper"], rows)
    print("\nFLOPs of one forward pass of one example. docs/ explains where and why figures differ.")
