"""Traces a part of a model, writes it to a file, and checks the file: `perceivers export`.

`perceivers.released.export` is something else: it writes a model's weights in the format of `transformers`.
"""

import copy
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from perceivers.checkpoints import load
from perceivers.errors import PerceiversError
from perceivers.export.arguments import CHECKED, TRACED, Argument, Size
from perceivers.export.formats import FormatName, Run, open_file, quiet, write_file
from perceivers.export.graphs import PARTS, Graph, Part
from perceivers.export.int8 import Quantization, measure, quantize
from perceivers.extras import require_extra
from perceivers.model import kernels
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import atomic_write

TOLERANCE = 1e-3
"""Largest difference between a file and its model that is rounding, relative to the largest value of an output."""


class Exported(NamedTuple):
    """What was found about a file that was written.

    Attributes:
        differences: the largest absolute difference of each output from the model's, for random inputs of two sizes.
        quantization: what int8 gains and costs, if it was asked for.
    """

    differences: dict[str, float]
    quantization: Quantization | None = None


@torch.no_grad()
def export_model(
    model: PerceiverIO | str | Path, path: str | Path, to: FormatName, part: Part = "model", int8: bool = False
) -> Exported:
    """Writes a part of a model to a file that runs without this package.

    The file gets its name after a check: it computes what the model does, for batches of other sizes than the traced.

    Args:
        model: a model, or anything that `perceivers.load` takes.
        path: the file to write; its suffix is the format.
        to: "onnx", for ONNX Runtime and others, or "pt2", for `torch.export.load`.
        part: "model" from inputs to outputs, "encode" from inputs to latents, or "decode" from latents to outputs.
        int8: whether to quantize the weights of linear layers and their inputs to int8, in ONNX only; otherwise all is
            float32.

    Raises:
        PerceiversError: the file exists or cannot be written, this part of the model cannot be exported, or int8 does
            not pay.
    """
    require_extra("export")
    path = check_target(path, to)
    if int8 and to != "onnx":
        raise PerceiversError("int8 is written as ONNX only: export --to onnx, or without --int8.")
    graph = make_graph(model, part)
    trials = [graph.draw(trial) for trial in CHECKED]
    expected = [graph(tensors) for tensors in trials]
    program = trace(graph, part)
    found = Exported({})

    def write(file: Path) -> None:
        nonlocal found
        write_file(program, file, to, list(expected[0]))
        found = Exported(compare(open_file(file, to), trials, expected, TOLERANCE))
        if int8:
            plain = file.with_suffix(".float32")
            try:
                file.rename(plain)
                quantize(plain, file)
                quantization = measure(graph, plain, file)
            finally:
                plain.unlink(missing_ok=True)
            quantization.check()
            found = Exported(compare(open_file(file, to), trials, expected, math.inf), quantization)

    atomic_write(path, write)
    return found


def check_target(path: str | Path, to: FormatName) -> Path:
    """Returns the path of the file to write; raises a PerceiversError if it exists or has another suffix."""
    path = Path(os.path.expanduser(path))
    if path.suffix != f".{to}":
        raise PerceiversError(f"{path} does not end in .{to}: name a file that does, or choose another format.")
    if os.path.lexists(path):
        raise PerceiversError(f"{path} exists already: choose a new file.")
    return path


def make_graph(model: PerceiverIO | str | Path, part: Part) -> Graph:
    """Returns a part of a model in float32 on the CPU; a model that is given as an object stays as it is."""
    if isinstance(model, PerceiverIO):
        model = copy.deepcopy(model).cpu().float().eval()
    else:
        model = load(model, dtype="float32")
    if model.rotary is not None or not len(model.encoder.latents):
        reason = "rotary positions" if model.rotary is not None else "no latents of its own"
        raise PerceiversError(f"the model cannot be exported: it has {reason}, so that its latents are the caller's.")
    return PARTS[part](model)


def trace(graph: Graph, part: Part) -> ExportedProgram:
    """Traces a graph with all its variable sizes; raises a PerceiversError that says what cannot be traced."""
    dims: dict[str, Any] = {}
    shapes = {argument.name: variable_dims(argument, dims) for argument in graph.arguments}
    example = graph.draw(TRACED)
    kernels.reset(graph)  # the formulas: kernels choose by sizes
    try:
        with quiet():
            return torch.export.export(graph, (example,), dynamic_shapes=(shapes,), strict=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise PerceiversError(f"the part {part!r} of the model cannot be exported: {reason}") from error
    finally:
        kernels.optimize(graph)


def variable_dims(argument: Argument, dims: dict[str, Any]) -> dict[int, Any]:
    """Returns the variable dimensions of an argument; those of one name are the same in all arguments."""
    found = {}
    for index, size in enumerate(argument.shape):
        if isinstance(size, Size):
            found[index] = dims.setdefault(size.name, Dim(size.name, min=1, max=size.most))
    return found


def compare(
    run: Run, trials: Sequence[Mapping[str, Tensor]], expected: Sequence[Mapping[str, Tensor]], tolerance: float
) -> dict[str, float]:
    """Returns the largest difference of each output over all trials; raises a PerceiversError above a tolerance."""
    differences: dict[str, float] = {}
    for tensors, right in zip(trials, expected, strict=True):
        found = run(tensors)
        for name, value in right.items():
            if found[name].shape != value.shape:
                shapes = f"{list(found[name].shape)} instead of {list(value.shape)}"
                raise PerceiversError(f"the written file is wrong, and is deleted: its output {name!r} is {shapes}.")
            difference = float((found[name].double() - value.double()).abs().max())
            if not difference <= tolerance * float(value.double().abs().max().clamp_min(1e-6)):
                raise PerceiversError(
                    f"the written file is wrong, and is deleted: its output {name!r} differs from the model's by "
                    f"{difference:.3g}."
                )
            differences[name] = max(difference, differences.get(name, 0))
    return differences
