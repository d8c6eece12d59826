"""Faster ways to compute what `perceivers.model` writes as formulas: same weights, same results up to rounding.

`optimize(model)` chooses a kernel for each layer by its shape when a model is built; `reset(model)` undoes it.
"""

from torch import nn

from perceivers.model.attention import Attention, Kernel
from perceivers.model.kernels.folding import FoldIntoInputs, FoldIntoQueries, FusedAttention
from perceivers.model.kernels.onednn import linear


def optimize(model: nn.Module) -> None:
    """Chooses a kernel for each `Attention` and `Linear` of a model."""
    for layer in model.modules():
        if type(layer) is Attention:
            layer.kernel = choose_kernel(layer)
        if hasattr(layer, "linear_kernel"):
            layer.__dict__["linear_kernel"] = linear


def choose_kernel(attention: Attention) -> Kernel:
    """Returns the kernel of an attention layer: one head is folded into the shorter array where that saves work."""
    channels = min(attention.key.out_features, attention.value.out_features)
    if attention.heads == 1 and attention.longer == "inputs" and attention.key.in_features <= channels:
        return FoldIntoQueries()
    if attention.heads == 1 and attention.longer == "queries" and attention.query.in_features < channels:
        return FoldIntoInputs()
    return FusedAttention()


def reset(model: nn.Module) -> None:
    """Restores the formulas in all layers of a model; attention then stores all scores."""
    for layer in model.modules():
        for name in ("kernel", "linear_kernel"):
            vars(layer).pop(name, None)
