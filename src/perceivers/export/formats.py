"""The formats of exported graphs: how a file is written, and how it is run."""

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from perceivers.errors import PerceiversError

FormatName = Literal["onnx", "pt2"]
Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def write_file(program: ExportedProgram, file: Path, form: FormatName, results: Sequence[str]) -> None:
    """Writes a program that takes a dict of tensors; `results` are the names of those that it returns.

    Raises:
        PerceiversError: ONNX cannot express the program.
    """
    if form == "pt2":
        with file.open("wb") as opened:
            torch.export.save(program, opened)
        return
    (example,), _ = program.example_inputs
    try:
        with quiet():
            exported: Any = torch.onnx.export(
                program, dynamo=True, input_names=list(example), output_names=list(results), verbose=False
            )
    except torch.onnx.OnnxExporterError as error:
        operator = re.search(r"No ONNX function found for <OpOverload\(op='([^']*)'", str(error))
        reason = (
            f"ONNX has no {operator[1]}" if operator else str(error.__cause__ or type(error).__name__).splitlines()[0]
        )
        raise PerceiversError(f"this model cannot be written as ONNX: {reason}; write it as pt2.") from error
    exported.save(file)


def open_file(file: Path, form: FormatName) -> Run:
    """Returns the function that runs a file, with as many threads as torch has."""
    if form == "pt2":
        with file.open("rb") as opened:
            return torch.export.load(opened).module()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # otherwise one for each core, also of those that others use
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        arrays: Sequence[np.ndarray] = session.run(names, {name: tensor.numpy() for name, tensor in tensors.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    return run


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the warnings of the exporter: they are about packages that are not used, and about its own code."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
