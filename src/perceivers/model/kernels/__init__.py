"""Faster ways to compute what `perceivers.model` writes as formulas: same weights, same results up to rounding.

`optimize(model)` chooses a kernel for each layer by its shape when a model is built; `reset(model)` undoes it.
"""

from torch import nn

from perceivers.model.attention import Attention, Kernel
from perceivers.model.kernels.folding import FoldIntoInputs, FoldIntoQueries, FusedAttention
from perceivers.model.kernels.onednn import linear


def optimize(model: nn.Module) -> None:
    """Chooses a kernel for each attention and linear layer of a model, those of subclasses excepted."""
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
    """Lets all layers of a model compute the formulas as written, which stores all scores: to compare with."""
    for layer in model.modules():
        for name in ("kernel", "linear_kernel"):
            vars(layer).pop(name, None)
