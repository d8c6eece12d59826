"""The command `models`."""

from functools import partial

from perceivers.command import Json, print_json, print_table


def models(*, json: Json = False) -> None:
    """Lists the models by name, measured, beside the paper's figures."""
    from perceivers.presets import create_model, find_preset, list_models, measure

    rows = []
    for name in list_models():
        model = find_preset(name)
        rows.append((name, model, measure(partial(create_model, name), model.inputs, model.outputs)))
    if json:
        print_json(
            [
                {
                    "name": name,
                    "experiment": model.experiment,
                    "paper_row": model.paper_row,
                    "parameters": size.parameters,
                    "paper_parameters": model.paper_parameters and int(model.paper_parameters),
                    "flops": size.flops,
                    "paper_flops": model.paper_flops and int(model.paper_flops),
                }
                for name, model, size in rows
            ]
        )
        return
    print_table(
        ["name", "experiment", "in the paper", "parameters", "paper", "FLOPs", "paper"],
        [
            [
                name,
                model.experiment,
                model.paper_row,
                f"{size.parameters / 1e6:.1f}M",
                f"{model.paper_parameters / 1e6:.1f}M" if model.paper_parameters else "-",
                f"{size.flops / 1e9:.0f}B",
                f"{model.paper_flops / 1e9:.0f}B" if model.paper_flops else "-",
            ]
            for name, model, size in rows
        ],
    )
    print("\nFLOPs of one forward pass of one example. docs/ says where and why figures differ.")
