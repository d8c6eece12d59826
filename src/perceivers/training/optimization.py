"""Optimizers, weight decay and learning-rate schedules, the same for all experiments."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from pytorch_optimizer import Lamb, Muon
from torch import Tensor, nn

from perceivers.checks import Checked, Fraction, Range
from perceivers.model.attention import MLP, Attention


@dataclass
class Optimization(Checked):
    """Settings of the optimizer and its schedule.

    Attributes:
        optimizer: "lamb" as in the paper; "adamw"; or "muon", which orthogonalizes the updates of the weights of
            attention and MLPs (Jordan et al., 2024), scaled to the size of AdamW's, and uses AdamW for all others.
        lr: peak learning rate.
        weight_decay: coefficient of the weight decay, which is multiplied by the learning rate.
        decayed_parameters: "weights" of linear and convolutional layers; "arrays", these and the learned latents,
            positions and queries; or "all", biases and norms as well.
        schedule: "flat_cosine" (flat, then cosine to 0) or "warmup_cosine" (linear from 0, then cosine to 0).
        flat_fraction: fraction of the steps of "flat_cosine" before the cosine starts.
        warmup_steps: steps of "warmup_cosine" before the cosine starts.
        beta2: decay rate of the second moment (the first's is 0.9).
    """

    section = "optimization."

    optimizer: Literal["lamb", "adamw", "muon"] = "adamw"
    lr: Annotated[float, Range(above=0)] = 1e-3
    weight_decay: Annotated[float, Range(least=0)] = 0.1
    decayed_parameters: Literal["weights", "arrays", "all"] = "weights"
    schedule: Literal["flat_cosine", "warmup_cosine"] = "warmup_cosine"
    flat_fraction: Fraction = 0.5
    warmup_steps: Annotated[int, Range(least=0)] = 0
    beta2: Annotated[float, Range(least=0, below=1)] = 0.999

    def build(self, module: nn.Module, steps: int) -> OptimizerLRScheduler:
        """Returns the optimizer and its schedule over `steps` steps, in the form that Lightning expects."""
        groups = parameter_groups(module, self.weight_decay, self.decayed_parameters)
        optimizer: torch.optim.Optimizer
        if self.optimizer == "lamb":
            # The published update has decay inside the trust ratio, no bound on the norm of a weight, and no
            # correction of the first moment's bias, which this implementation would apply outside the trust ratio.
            optimizer = Lamb(groups, self.lr, (0.9, self.beta2), weight_decouple=False, adam_debias=True)
            optimizer.clamp = math.inf  # type: ignore[attr-defined]
        elif self.optimizer == "muon":
            own = {"lr": self.lr, "betas": (0.9, self.beta2), "eps": 1e-8, "use_adjusted_lr": True}
            optimizer = Muon([group | own for group in split_for_muon(groups, hidden_weights(module))])
        else:
            optimizer = torch.optim.AdamW(groups, self.lr, (0.9, self.beta2))
        scale = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_factor(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scale, "interval": "step"}}

    def lr_factor(self, step: int, steps: int) -> float:
        """Returns the learning rate of a step, as a fraction of the peak."""
        start = round(self.flat_fraction * steps) if self.schedule == "flat_cosine" else self.warmup_steps
        if step < start:
            return 1.0 if self.schedule == "flat_cosine" else (step + 1) / (start + 1)
        return (1 + math.cos(math.pi * min(1.0, (step - start) / max(1, steps - start)))) / 2


def parameter_groups(module: nn.Module, weight_decay: float, decayed_parameters: str) -> list[dict[str, Any]]:
    """Returns the parameters with and without weight decay, see `Optimization.decayed_parameters`."""
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            is_weight = name == "weight" and isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
            is_array = name not in ("weight", "bias")
            has_decay = decayed_parameters == "all" or is_weight or (decayed_parameters == "arrays" and is_array)
            (with_decay if has_decay else without).append(parameter)
    groups = [{"params": with_decay, "weight_decay": weight_decay}, {"params": without, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def hidden_weights(module: nn.Module) -> set[Tensor]:
    """Returns the weights of attention and MLPs, the matrices between hidden channels."""
    parts = (part for part in module.modules() if isinstance(part, Attention | MLP))
    return {layer.weight for part in parts for layer in part.modules() if isinstance(layer, nn.Linear)}


def split_for_muon(groups: list[dict[str, Any]], matrices: set[Tensor]) -> list[dict[str, Any]]:
    """Splits each group into the parameters whose updates are orthogonalized and the others."""
    parts = [
        group | {"params": [p for p in group["params"] if (p in matrices) == orthogonal], "use_muon": orthogonal}
        for group in groups
        for orthogonal in (True, False)
    ]
    return [group for group in parts if group["params"]]
