"""The command `export`."""

from pathlib import Path
from typing import Annotated, Literal

from perceivers.command import Json, Metavar, ModelArgument, print_json

Part = Literal["model", "encode", "decode"]

SPEEDS = {"float32": "the model", "bfloat16": "the model in bfloat16", "onnx": "ONNX in float32"}
"""What int8 is compared with, by the names of `Quantization.seconds`."""


def export(
    model: ModelArgument,
    out: Annotated[Path, "file to write, which ends in .onnx or .pt2", Metavar("OUT")],
    *,
    to: Annotated[Literal["onnx", "pt2"], "ONNX, or a program of torch.export"],
    part: Annotated[Part, "from inputs to outputs, from inputs to latents, or from latents to outputs"] = "model",
    int8: Annotated[bool, "quantize to int8 (ONNX only); refused if that is slower or changes too much"] = False,
    json: Json = False,
) -> None:
    """Writes a model as ONNX or as a program of torch, and checks the file."""
    from perceivers.export.export import export_model

    found = export_model(model, out, to, part, int8)
    if json:
        quantization = found.quantization and vars(found.quantization)
        print_json({"file": str(out), "differences": found.differences, "quantization": quantization})
        return
    for name, difference in found.differences.items():
        print(f"{name}: at most {difference:.2g} from the model's, for batches of two sizes")
    if found.quantization is not None:
        seconds, errors = found.quantization.seconds, found.quantization.errors
        for name, error in errors.items():
            print(f"{name}: changed by {error:.2%} of its standard deviation")
        for name, what in SPEEDS.items():
            print(f"{what}: {seconds[name]:.3g} s; int8 is {seconds[name] / seconds['int8']:.2f} times as fast")
        print(f"int8: {seconds['int8']:.3g} s for one example")
    print(f"{out} is written.")
