"""Into which kinds of operators the time of a call goes."""

import re
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

KINDS = {
    "products": r"(add|badd|)b?mm|_linear_pointwise|(mkldnn_)?convolution\w*",
    "fused attention": r"_scaled_dot_product\w+",
    "softmax": r"_(log_)?softmax\w*",
    "norms": r"native_(layer|batch)_norm\w*",
    "GELU": r"gelu\w*",
    "sums, factors": r"(add|sub|mul|div|sum|addcmul)_?",
    "copies": r"copy_|cat|fill_|index\w*|_index_put\w*|gather|scatter\w*|constant_pad\w*|embedding\w*",
}
"""Patterns of the names of torch's operators by kind; all others only arrange memory, or are Python."""


def kind_of(operator: str) -> str:
    """The kind of an operator such as "aten::mm"."""
    name = operator.rpartition("::")[2]
    return next((kind for kind, pattern in KINDS.items() if re.fullmatch(pattern, name)), "other")


def profile_operators(call: Callable[[], object]) -> dict[str, float]:
    """The fraction of the time of a call on the CPU that each kind takes."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        call()
    totals = dict.fromkeys((*KINDS, "other"), 0.0)
    for event in profiler.key_averages():
        totals[kind_of(event.key)] += event.self_cpu_time_total
    whole = sum(totals.values())
    return {kind: total / whole for kind, total in totals.items()}
