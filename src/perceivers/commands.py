"""The commands `models`, `configs` and `completion`."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from perceivers import plugins
from perceivers.command import Choices, Json, print_json, print_table
from perceivers.config_files import describe_config_file, find_config_file, list_configs
from perceivers.errors import PerceiversError
from perceivers.files import read_text


def models(
    name: Annotated[
        str | None,
        "one of the models, to list the cost of its parts",
        Choices(partial(plugins.find_entry_points, "models")),
    ] = None,
    *,
    json: Json = False,
) -> None:
    """Lists the models by name, with their size and FLOPs beside the paper's figures."""
    from perceivers.presets import create_model, find_preset, list_models, measure_cost
    from perceivers.progress import track

    if name is not None:
        print_parts(name, json)
        return
    found: list[dict[str, Any]] = []
    for name in track(list_models(), "models"):
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


def print_parts(name: str, json: bool) -> None:
    """Prints the parameters and FLOPs of the parts of a model."""
    from perceivers.model.costs import measure_parts, summarize
    from perceivers.model.meta import check_memory
    from perceivers.model.perceiver_io import PerceiverIO
    from perceivers.presets import find_preset

    preset = find_preset(name)
    model = check_memory(preset.config.build, name)
    if not isinstance(model, PerceiverIO):
        raise PerceiversError(f"{name} is a {type(model).__name__}: only a PerceiverIO is measured by parts.")
    if json:
        parts = measure_parts(model, preset.inputs, preset.outputs)
        print_json({part: cost._asdict() for part, cost in parts.items()})
    else:
        print(summarize(model, preset.inputs, preset.outputs))


def configs(
    name: Annotated[str | None, "one of the configs, to print its file", Choices(list_configs)] = None,
    *,
    copy: Annotated[Path | None, "write the file of a config here, to change it"] = None,
    json: Json = False,
) -> None:
    """Lists the configs of the package, which `fit` and `sweep` take by name, or prints one."""
    if name is None:
        if copy is not None:
            raise PerceiversError("--copy needs the name of a config: `perceivers configs` lists them.")
        found = {config: describe_config_file(path) for config, path in list_configs().items()}
        if json:
            print_json([{"name": config, "description": text} for config, text in found.items()])
        else:
            print_table(["name", "description"], [[config, text] for config, text in found.items()])
        return
    text = read_text(find_config_file(name))
    if json:
        print_json({"name": name, "text": text})
    elif copy is None:
        print(text, end="")
    elif os.path.exists(copy):
        raise PerceiversError(f"{copy} exists already: choose another path.")
    else:
        from perceivers.model.saving import atomic_write

        atomic_write(copy, lambda file: file.write_text(text))
        print(f"{copy} holds the config {name}: train with `perceivers fit {copy}`.")


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], "the shell that runs the script"],
) -> None:
    """Prints a script by which a shell completes commands, options and names of configs and models."""
    from perceivers.cli import find_command
    from perceivers.completion import write_script

    found = {name: find_command(name) for name in plugins.find_entry_points("commands")}
    print(write_script(shell, found), end="")
