"""The command `perceivers`: reads arguments, calls the library, prints what it returns."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import perceivers
from perceivers.model.errors import PerceiversError

EXAMPLES = """\
examples:
  perceivers demo                                     train on handwritten digits, in minutes
  perceivers models                                   the paper's models, with parameters and FLOPs
  perceivers fit configs/image_classification/digits.yaml --training.epochs=5
  perceivers fit CONFIG --help                        every field of that experiment's config
  perceivers evaluate runs/demo/model --data digits
  perceivers classify-image runs/demo/model picture.png
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        "perceivers", description=perceivers.__doc__, epilog=EXAMPLES, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--version", action="version", version=perceivers.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    models = commands.add_parser("models", help="list the paper's models, measured, beside the paper's figures")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(run=list_models)

    fit = commands.add_parser("fit", help="train as a config file says", add_help=False)
    fit.add_argument("config", nargs="?", metavar="CONFIG", help="a YAML or JSON file, see configs/")
    fit.add_argument("-h", "--help", action="store_true", dest="teach")
    fit.set_defaults(run=fit_config)

    evaluate = commands.add_parser("evaluate", help="measure a saved image classifier on labelled images")
    evaluate.add_argument("model", metavar="MODEL", help="folder of a saved model, or its name on the hub")
    evaluate.add_argument(
        "--data",
        required=True,
        help="'digits', a folder, or a data set of the hub; measured on its evaluation split, or held-out part",
    )
    evaluate.add_argument("--batch-size", type=int, default=64)
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=evaluate_images)

    classify = commands.add_parser("classify-image", help="say what is in image files")
    classify.add_argument("model", metavar="MODEL", help="folder of a saved model, or its name on the hub")
    classify.add_argument("files", metavar="FILE", nargs="+")
    classify.add_argument("--top", type=int, default=5, help="how many classes to print for each file (5)")
    classify.add_argument("--json", action="store_true", help="print JSON")
    classify.set_defaults(run=classify_images)

    demo = commands.add_parser("demo", help="train a small Perceiver IO on handwritten digits and show what it does")
    demo.add_argument("--output", default="runs/demo", help="folder to write to (runs/demo)")
    demo.add_argument("--epochs", type=int, default=None, help="passes over the training digits")
    demo.set_defaults(run=run_demo)
    return parser


def list_models(arguments: argparse.Namespace) -> None:
    from perceivers.presets import PRESETS, create_model, measure

    models = [
        (name, preset, measure(partial(create_model, name), preset.inputs, preset.outputs))
        for name, preset in PRESETS.items()
    ]
    if arguments.json:
        rows = [
            {
                "name": name,
                "experiment": preset.experiment,
                "paper_row": preset.row,
                "parameters": size.parameters,
                "paper_parameters": int(preset.paper_parameters),
                "flops": size.flops,
                "paper_flops": int(preset.paper_flops),
            }
            for name, preset, size in models
        ]
        print(json.dumps(rows, indent=2))
        return
    print_table(
        ["name", "experiment", "in the paper", "parameters", "paper", "FLOPs", "paper"],
        [
            [
                name,
                preset.experiment,
                preset.row,
                f"{size.parameters / 1e6:.1f}M",
                f"{preset.paper_parameters / 1e6:.1f}M",
                f"{size.flops / 1e9:.0f}B",
                f"{preset.paper_flops / 1e9:.0f}B",
            ]
            for name, preset, size in models
        ],
    )
    print("\nFLOPs of one forward pass of one example. Where figures differ, docs/image_classification.md says why.")


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Prints columns side by side, numbers to the right."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        cells = [
            cell.rjust(width) if any(r[column][:1].isdigit() for r in table[1:]) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def fit_config(arguments: argparse.Namespace) -> None:
    from perceivers.experiments.configuration import describe, read_config

    if arguments.config is None:
        print("usage: perceivers fit CONFIG [--any.field=value ...]\n\n" + EXAMPLES)
        if not arguments.teach:
            raise PerceiversError("fit needs a config file, such as configs/image_classification/digits.yaml.")
    elif arguments.teach:
        print(describe(Path(arguments.config)))
    else:
        run = read_config(Path(arguments.config), arguments.overrides).run()
        print(f"\nTrained. The model is in {run / 'model'}, its figures in {run / 'metrics.json'}.")


def load(name: str) -> perceivers.PerceiverIO:
    """A saved model, on the accelerator if there is one."""
    return perceivers.load(name).to(torch.accelerator.current_accelerator(check_available=True) or "cpu")


def evaluate_images(arguments: argparse.Namespace) -> None:
    from perceivers.data.images import ImageData
    from perceivers.experiments.image_classification import evaluate

    results = evaluate(load(arguments.model), ImageData(arguments.data).open().evaluation, arguments.batch_size)
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        accuracy = f"top-1 {results['top1']:.2%}, top-5 {results['top5']:.2%}"
        print(f"{results['images']} images kept for evaluation: {accuracy}, loss {results['loss']:.4f}")


def classify_images(arguments: argparse.Namespace) -> None:
    from perceivers.experiments.image_classification import classify

    answers = classify(load(arguments.model), arguments.files)
    top: list[dict[str, Any]] = [
        {"file": file, "classes": dict(list(answer.items())[: arguments.top])}
        for file, answer in zip(arguments.files, answers, strict=True)
    ]
    if arguments.json:
        print(json.dumps(top, indent=2))
        return
    for answer in top:
        print(answer["file"])
        for name, probability in answer["classes"].items():
            print(f"  {probability:7.2%}  {name}")


def run_demo(arguments: argparse.Namespace) -> None:
    from perceivers.experiments.demo import demo

    demo(Path(arguments.output), arguments.epochs)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what the user can put right ends in one sentence and exit status 2."""
    parser = build_parser()
    arguments, overrides = parser.parse_known_args(argv)
    if arguments.command != "fit" and overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    arguments.overrides = overrides
    try:
        arguments.run(arguments)
    except PerceiversError as error:
        print(f"perceivers: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
