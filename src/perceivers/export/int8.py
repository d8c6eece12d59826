"""Exports with int8 weights and activations, if that pays: `perceivers export --int8`.

ONNX Runtime quantizes the weights of linear layers once, and their inputs at each call. Attention stays in float32.
"""

import copy
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.export.arguments import LARGEST
from perceivers.export.formats import open_file, quiet
from perceivers.export.graphs import Graph

MAX_ERROR = 0.1
"""Largest root mean square error of an output, as a fraction of its standard deviation, that is accepted."""

LEAST_REPEATS, LEAST_SECONDS = 5, 2.0
"""Measurements are repeated at least so often, and at least for so long; the median counts."""


@dataclass(frozen=True)
class Quantization:
    """What int8 gains and costs.

    Attributes:
        seconds: median seconds of a forward pass of one example by the model in "float32" and "bfloat16", and by the
            files "onnx" and "int8", measured side by side.
        errors: root mean square error of each output, as a fraction of its standard deviation.
    """

    seconds: dict[str, float]
    errors: dict[str, float]

    def check(self) -> None:
        """Raises a PerceiversError if int8 is not faster than float32 in the same format, or changes too much."""
        speed = self.seconds["onnx"] / self.seconds["int8"]
        name, error = max(self.errors.items(), key=lambda item: item[1])
        if error > MAX_ERROR:
            raise PerceiversError(
                f"int8 does not pay: it changes the output {name!r} by {error:.0%} of its standard deviation, more "
                f"than {MAX_ERROR:.0%}; export without --int8."
            )
        if speed <= 1:
            raise PerceiversError(
                f"int8 does not pay: it is {speed:.2f} times as fast as float32 here; export without --int8."
            )


def quantize(source: Path, target: Path) -> None:
    """Writes an ONNX file with int8 weights, and int8 inputs of linear layers.

    Weights are integers from -64 to 64: CPUs without VNNI add two products in 16 bits, which larger ones overflow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with quiet(), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        folded = Path(folder) / "folded.onnx"  # with transposed weights, which only then are constants
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        kinds = ["MatMul", "Gemm"]
        options = {"per_channel": True, "reduce_range": True, "extra_options": {"WeightSymmetric": False}}
        quantize_dynamic(folded, target, kinds, weight_type=QuantType.QInt8, **options)


def measure(graph: Graph, plain: Path, quantized: Path) -> Quantization:
    """Measures a quantized file beside the file in float32 and the model, with one example of the largest size."""
    tensors, low = graph.draw(LARGEST), copy.deepcopy(graph).bfloat16()
    low_tensors = {name: x.bfloat16() if x.is_floating_point() else x for name, x in tensors.items()}
    open_plain, open_quantized = (open_file(file, "onnx") for file in (plain, quantized))
    runs = {
        "float32": partial(graph, tensors),
        "bfloat16": partial(low, low_tensors),
        "onnx": partial(open_plain, tensors),
        "int8": partial(open_quantized, tensors),
    }
    results = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    while len(seconds["int8"]) < LEAST_REPEATS or time.perf_counter() < begin + LEAST_SECONDS:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    errors = {
        name: relative_error(results["int8"][name], right)
        for name, right in results["float32"].items()
        if right.is_floating_point()
    }
    return Quantization({name: statistics.median(times) for name, times in seconds.items()}, errors)


def relative_error(found: Tensor, right: Tensor) -> float:
    """Returns the root mean square error as a fraction of the standard deviation."""
    return float((found - right).double().square().mean().sqrt() / right.double().std().clamp_min(1e-12))
