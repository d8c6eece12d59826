"""Muon on CPUs that have no instructions for bfloat16."""

from typing import Any

import pytorch_optimizer
import torch
from pytorch_optimizer.optimizer.utils import matrix
from torch import Tensor

from perceivers.model.kernels.half_precision import has_fast_products


class Muon(pytorch_optimizer.Muon):  # type: ignore[misc]
    """The library's Muon, which orthogonalizes updates in bfloat16, or here in float32 where that is faster."""

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: list[Tensor]) -> list[Tensor]:
        if not updates[0].is_cpu or has_fast_products(torch.bfloat16):
            found: list[Tensor] = pytorch_optimizer.Muon._orthogonalize(group, updates)
            return found
        options = {"num_steps": group["ns_steps"], "weights": group["ns_coeffs"], "dtype": torch.float32}
        if group.get("ns_method") == "gram_newton_schulz":
            options["reset_steps"] = group["ns_reset_steps"]
            return [matrix.zero_power_via_gram_newton_schulz(x.flatten(1), **options) for x in updates]
        return [matrix.zero_power_via_newton_schulz_5(x.flatten(1), **options) for x in updates]
