"""Parameters and FLOPs of the parts of a model, so that one sees what is expensive."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from perceivers.model import kernels
from perceivers.model.adapter import module_key
from perceivers.model.perceiver_io import PerceiverIO


class Cost(NamedTuple):
    """Number of parameters, and FLOPs of a forward pass (a multiply-add counts as two)."""

    parameters: int
    flops: int


def count_flops(function: Callable[[], Any]) -> tuple[Any, int]:
    """Calls a function; -> its result, and the FLOPs of its matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        result = function()
    return result, counter.get_total_flops()


def count_parameters(*modules: nn.Module | Tensor) -> int:
    """Returns the number of parameters of modules, and elements of arrays."""
    arrays = [[item] if isinstance(item, Tensor) else item.parameters() for item in modules]
    return sum(array.numel() for group in arrays for array in group)


def measure_parts(
    model: PerceiverIO, data: Mapping[str, Any], outputs: Mapping[str, Tensor | None] | None = None
) -> dict[str, Cost]:
    """Returns the cost of each part of a Perceiver IO, which add up to those of the whole model.

    Nothing is computed: a copy of the model on the meta device is called. FLOPs are those of the formulas as written,
    without the savings of the optimized kernels.

    Args:
        model: the model.
        data: inputs as in `PerceiverIO.encode`; FLOPs are those of this batch.
        outputs: outputs to decode, as in `PerceiverIO.decode`; all by default.

    Returns:
        By name: "input NAME" for each, "cross-attention", "self-attention", "decoder" for what all outputs share, and
        "output NAME" for each.
    """
    model = copy.deepcopy(model).to("meta").eval().requires_grad_(False)
    kernels.reset(model)
    outputs = dict.fromkeys(model.outputs) if outputs is None else outputs
    data, outputs = to_meta(data), to_meta(outputs)
    parts = {}
    for name, adapter in model.inputs.items():
        _, flops = count_flops(lambda adapter=adapter, name=name: adapter(data[name]))  # type: ignore[misc]
        parts[f"input {name}"] = Cost(count_parameters(adapter), flops)
    inputs = sum(part.flops for part in parts.values())
    encoded, encoding = count_flops(lambda: model.encode(data))
    latents = encoded.latents
    layers = model.encoder.layers
    _, block = count_flops(lambda: [layer(latents) for layer in layers])
    processing = block * model.encoder.num_blocks
    attending = count_parameters(model.encoder, model.input_padding) - count_parameters(layers)
    parts["cross-attention"] = Cost(attending, encoding - inputs - processing)
    parts["self-attention"] = Cost(count_parameters(layers), processing)
    shared = 0
    if hasattr(model, "decoder"):
        _, shared = count_flops(lambda: model.decoder.project_keys_values(latents))
        decoder = count_parameters(model.decoder, model.query_padding, model.projection)
        parts["decoder"] = Cost(decoder, shared)
    for name, indices in outputs.items():
        output, key = model.outputs[name], module_key(name)
        _, flops = count_flops(lambda name=name, indices=indices: model.decode(encoded, {name: indices}))  # type: ignore[misc]
        heads = [model.heads[key]] if key in model.heads else []
        has_query = output.query_channels is not None
        parts[f"output {name}"] = Cost(count_parameters(output, *heads), flops - (shared if has_query else 0))
    return parts


def to_meta(value: Any) -> Any:
    """Returns a value with its tensors on the meta device."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, Mapping):
        return {name: to_meta(item) for name, item in value.items()}
    if isinstance(value, tuple):
        items = map(to_meta, value)
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def summarize(model: PerceiverIO, data: Mapping[str, Any], outputs: Mapping[str, Tensor | None] | None = None) -> str:
    """Returns a table of the parameters and FLOPs of each part of a model; arguments as in `measure_parts`.

    Examples:
        >>> import torch
        >>> from perceivers import PerceiverIO
        >>> from perceivers.adapters import ArrayInput, LabelOutput
        >>> inputs, outputs = {"points": ArrayInput(3)}, {"label": LabelOutput(2)}
        >>> model = PerceiverIO(inputs, outputs, latents=8, channels=16, depth=1)
        >>> print(summarize(model, {"points": torch.zeros(1, 100, 3)}))
        part                 parameters  share               FLOPs  share
        ...
        all                       ... 100.0% ... 100.0%
    """
    parts = measure_parts(model, data, outputs)
    total = Cost(*map(sum, zip(*parts.values(), strict=True)))
    width = max(map(len, parts))
    lines = [f"{'part':{width}} {'parameters':>15} {'share':>6} {'FLOPs':>19} {'share':>6}"]
    for name, (parameters, flops) in {**parts, "all": total}.items():
        shares = [f"{part / (whole or 1):.1%}" for part, whole in zip((parameters, flops), total, strict=True)]
        lines.append(f"{name:{width}} {parameters:15,} {shares[0]:>6} {flops:19,} {shares[1]:>6}")
    return "\n".join(lines)
