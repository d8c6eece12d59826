"""The command `export`."""

from pathlib import Path
from typing import Annotated, Literal

from perceivers.command import Json, Metavar, ModelArgument, print_json


def export(
    model: ModelArgument,
    out: Annotated[Path, "file to write, which ends in .onnx or .pt2", Metavar("OUT")],
    *,
    to: Annotated[Literal["onnx", "pt2"], "ONNX, or a program of torch.export"],
    part: Annotated[Literal["model", "encode", "decode"], "from inputs to outputs, to latents, or from latents"] = "model",
    json: Json = False,
) -> None:
    """Writes a model as a graph that runs without this package, and checks it."""
    from perceivers.export.export import export_model

    differences = export_model(model, out, to, part)
    if json:
        print_json({"file": str(out), "differences": differences})
        return
    print(f"{out} computes what the model does, for two batches of random inputs of other sizes. Largest difference:")
    for name, difference in differences.items():
        print(f"  {name:<20}{difference:.1e}")
