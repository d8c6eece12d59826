"""Optimizers, weight decay and learning-rate schedules, the same for all experiments."""

import inspect
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pytorch_optimizer import Lamb
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from perceivers.checks import Checked, Fraction, ProperFraction, Range, check_field
from perceivers.errors import PerceiversError
from perceivers.model.attention import MLP, Attention
from perceivers.training.muon import Muon
from perceivers.training.optimizers import check_arguments, find_optimizer, find_schedule, needs_special_step
from perceivers.training.parts import distance_from_output

SCHEDULES = ("warmup_cosine", "flat_cosine", "linear", "constant")

DECIDED = {
    "params": "these are the weights of the model",
    "lr": "set optimization.lr",
    "weight_decay": "set optimization.weight_decay",
} | {f"adamw_{name}": "muon takes those of optimization" for name in ("lr", "wd", "betas", "eps")}
"""Arguments of optimizers that are no `optimizer_arguments`."""


@dataclass
class Optimization(Checked):
    """Settings of the optimizer and its schedule.

    Attributes:
        optimizer: "adamw"; "lamb" as in the paper; "muon", which orthogonalizes the updates of the weights of attention
            and MLPs (Jordan et al., 2024), scaled to the size of AdamW's, and uses AdamW for all others; any other
            optimizer of torch or pytorch_optimizer by its name; or the import path of one, such as my_module:MySGD.
        optimizer_arguments: other arguments of the optimizer, such as momentum.
        lr: peak learning rate.
        weight_decay: coefficient of the weight decay, as the optimizer applies it: "adamw", "lamb" and "muon" multiply
            it by the learning rate.
        decayed_parameters: "weights" of linear and convolutional layers; "arrays", these and the learned latents,
            positions and queries; or "all", biases and norms as well.
        schedule: the learning rate after the warm-up: "warmup_cosine" (cosine to 0), "flat_cosine" (flat, then cosine
            to 0), "linear" (to 0), "constant"; or a class of torch.optim.lr_scheduler by its name, which is stepped
            after every update, or, if it is ReduceLROnPlateau, after every evaluation by the monitored metric.
        schedule_arguments: arguments of the class; T_max and total_steps are by default the updates after the warm-up.
        flat_fraction: fraction of the updates of "flat_cosine" before the cosine starts.
        warmup_steps: updates in which the learning rate rises linearly from 0, or, below 1, their fraction of all.
        beta2: decay rate of the second moment, for an optimizer that has one; by default the optimizer's, 0.999 for
            "adamw", "lamb" and "muon" (the first moment's is 0.9).
        layer_decay: factor of the learning rate from each layer of the encoder to the one before it, so that those
            near the output, see `distance_from_output`, learn faster; for fine-tuning, such as 0.75.
    """

    section = "optimization."

    optimizer: str = "adamw"
    optimizer_arguments: dict[str, Any] = field(default_factory=dict)
    lr: Annotated[float, Range(above=0)] = 1e-3
    weight_decay: Annotated[float, Range(least=0)] = 0.1
    decayed_parameters: Literal["weights", "arrays", "all"] = "weights"
    schedule: str = "warmup_cosine"
    schedule_arguments: dict[str, Any] = field(default_factory=dict)
    flat_fraction: Fraction = 0.5
    warmup_steps: Annotated[float, Range(least=0)] = 0
    beta2: Annotated[float, Range(least=0, below=1)] | None = None
    layer_decay: ProperFraction | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        is_count = self.warmup_steps < 1 or self.warmup_steps == int(self.warmup_steps)
        check_field("optimization.warmup_steps", self.warmup_steps, is_count, "a whole number, or a fraction below 1")
        self.check_optimizer()
        self.check_schedule()

    def check_optimizer(self) -> None:
        """Makes an update of a few numbers; raises a PerceiversError for what the optimizer does not accept."""
        kind = {"lamb": Lamb, "muon": Muon}.get(self.optimizer) or find_optimizer(self.optimizer)
        check_arguments("optimization.optimizer_arguments", kind, self.optimizer_arguments, DECIDED)
        parameters, name = inspect.signature(kind).parameters, f"optimization.optimizer = {self.optimizer}"
        if self.beta2 is not None and "betas" in self.optimizer_arguments:
            raise PerceiversError("optimization.beta2 and optimizer_arguments.betas are both given: leave one out.")
        if self.beta2 is not None and "betas" not in parameters and kind is not Muon:
            raise PerceiversError(f"{name} has no moments: leave out optimization.beta2.")
        if self.weight_decay and "weight_decay" not in parameters:
            raise PerceiversError(f"{name} has no weight decay: set optimization.weight_decay to 0.")
        weights = nn.ParameterList([torch.zeros(2, 2), torch.zeros(3)])  # without drawing random numbers
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        with torch.random.fork_rng(devices=()):
            try:
                optimizer = self.build_optimizer(weights)
            except Exception as error:  # a library's own checks raise anything
                raise PerceiversError(f"{name} is not possible with its arguments: {error}") from error
            try:
                optimizer.step()
            except Exception as error:
                raise needs_special_step(self.optimizer) from error

    def check_schedule(self) -> None:
        """Raises a PerceiversError for an unknown schedule, or arguments that it does not accept."""
        field = "optimization.schedule_arguments"
        if self.schedule in SCHEDULES:
            check_field(field, self.schedule_arguments, not self.schedule_arguments, f"empty for {self.schedule!r}")
            return
        kind = find_schedule(self.schedule, SCHEDULES)
        decided = {"optimizer": "it is that of optimization", "last_epoch": "the run decides it"}
        if kind is ReduceLROnPlateau:
            decided["mode"] = "the metric of the experiment decides it"
        given = self.schedule_arguments_over(kind, 1)
        check_arguments(field, kind, given, decided)
        try:
            kind(self.build_optimizer(nn.ParameterList([torch.zeros(2)])), **given)
        except Exception as error:
            raise PerceiversError(f"{field} = {self.schedule_arguments} is not possible: {error}") from error

    def check_endless(self) -> int:
        """Returns the updates of a run without an end; raises a PerceiversError if the schedule needs their number."""
        if self.schedule in SCHEDULES[:3] or 0 < self.warmup_steps < 1:
            raise PerceiversError(
                "the schedule needs the number of updates, but trainer limits neither epochs nor steps: set "
                "trainer.max_steps, or optimization.schedule to 'constant' and warmup_steps to a whole number."
            )
        return sys.maxsize

    def build(
        self, module: nn.Module, steps: int, mode: Literal["min", "max"] = "min"
    ) -> tuple[list[Optimizer], list[Any]]:
        """Returns the optimizer and its schedule in the form that Lightning expects.

        Args:
            module: the model.
            steps: number of updates of the run.
            mode: whether a small or a large value of the monitored metric is good.
        """
        optimizer, warmup = self.build_optimizer(module), self.count_warmup(steps)
        if self.schedule in SCHEDULES:
            return [optimizer], [by_update(LambdaLR(optimizer, lambda step: self.lr_factor(step, steps)))]
        kind = find_schedule(self.schedule, SCHEDULES)
        arguments = self.schedule_arguments_over(kind, max(1, steps - warmup))
        if kind is ReduceLROnPlateau:
            rise = [by_update(rise_linearly(optimizer, warmup))] * (warmup > 0)
            # The learner steps it after each evaluation; Lightning would at the end of an epoch.
            plateau = {"scheduler": ReduceLROnPlateau(optimizer, mode, **arguments), "monitor": "", "interval": "epoch"}
            return [optimizer], [*rise, plateau | {"frequency": sys.maxsize}]
        main = kind(optimizer, **arguments)
        if warmup:
            main = SequentialLR(optimizer, [rise_linearly(optimizer, warmup), main], [warmup])
        return [optimizer], [by_update(main)]

    def build_optimizer(self, module: nn.Module) -> Optimizer:
        """Returns the optimizer of a model."""
        groups = parameter_groups(module, self.weight_decay, self.decayed_parameters)
        if self.layer_decay is not None:
            groups = split_by_depth(groups, module, self.lr, self.layer_decay)
        arguments = self.optimizer_arguments
        beta2 = 0.999 if self.beta2 is None else self.beta2
        if self.optimizer == "lamb":
            # The published update has decay inside the trust ratio, no bound on the norm of a weight, and no
            # correction of the first moment's bias, which this implementation would apply outside the trust ratio.
            own = {"betas": (0.9, beta2), "weight_decouple": False, "adam_debias": True}
            lamb = Lamb(groups, self.lr, **own | arguments)
            lamb.clamp = math.inf
            return lamb
        if self.optimizer == "muon":
            own = {"lr": self.lr, "betas": (0.9, beta2), "eps": 1e-8, "use_adjusted_lr": True} | arguments
            return Muon([own | group for group in split_for_muon(groups, hidden_weights(module))], **arguments)
        kind = find_optimizer(self.optimizer)
        if self.beta2 is not None:
            beta1, _, *others = inspect.signature(kind).parameters["betas"].default
            arguments = arguments | {"betas": (beta1, self.beta2, *others)}
        if not can_fuse(kind, groups, arguments):
            return kind(groups, lr=self.lr, **arguments)  # type: ignore[call-arg]
        optimizer = kind(groups, lr=self.lr, fused=True, **arguments)  # type: ignore[call-arg]
        # Gradients are never scaled when it gets them; else Lightning would not clip them.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer

    def schedule_arguments_over(self, kind: type[LRScheduler], steps: int) -> dict[str, Any]:
        """Returns the arguments of a schedule over a number of updates."""
        decided = {name: steps for name in ("T_max", "total_steps") if name in inspect.signature(kind).parameters}
        return decided | self.schedule_arguments

    def count_warmup(self, steps: int) -> int:
        """Returns the number of updates of the warm-up in a run of `steps` updates."""
        return round(self.warmup_steps * steps if self.warmup_steps < 1 else self.warmup_steps)

    def lr_factor(self, step: int, steps: int) -> float:
        """Returns the learning rate of a step of one of `SCHEDULES`, as a fraction of the peak."""
        warmup = self.count_warmup(steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        start = max(warmup, round(self.flat_fraction * steps)) if self.schedule == "flat_cosine" else warmup
        done = min(1.0, max(0, step - start) / max(1, steps - start))
        if self.schedule == "constant":
            return 1.0
        return 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2


def can_fuse(kind: type[Optimizer], groups: list[dict[str, Any]], arguments: Mapping[str, Any]) -> bool:
    """Returns whether an optimizer can update all weights on a CPU in one kernel; by default, torch loops over them.

    On accelerators, torch's default is not a loop, and some optimizers have no such kernel.
    """
    weights = [weight for group in groups for weight in group["params"]]
    return (
        kind.__module__.startswith("torch.optim")
        and "fused" in inspect.signature(kind).parameters
        and {"fused", "foreach", "differentiable"}.isdisjoint(arguments)
        and all(weight.is_cpu and weight.is_floating_point() for weight in weights)
        and not any(isinstance(weight, DTensor) for weight in weights)  # sharded, see `perceivers.training.sharding`
    )


def by_update(scheduler: LRScheduler) -> dict[str, Any]:
    """Returns a schedule that Lightning is to step after every update."""
    return {"scheduler": scheduler, "interval": "step"}


def rise_linearly(optimizer: Optimizer, steps: int) -> LinearLR:
    """Returns a schedule that multiplies the learning rate by 1 / (steps + 1), 2 / (steps + 1), ..., 1, 1, ..."""
    return LinearLR(optimizer, 1 / (steps + 1), total_iters=steps)


def parameter_groups(module: nn.Module, weight_decay: float, decayed_parameters: str) -> list[dict[str, Any]]:
    """Returns the parameters to train with and without weight decay, see `Optimization.decayed_parameters`."""
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            is_weight = name == "weight" and isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
            is_array = name not in ("weight", "bias")
            has_decay = decayed_parameters == "all" or is_weight or (decayed_parameters == "arrays" and is_array)
            (with_decay if has_decay else without).append(parameter)
    groups = [{"params": with_decay, "weight_decay": weight_decay}, {"params": without, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def split_by_depth(
    groups: list[dict[str, Any]], module: nn.Module, lr: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Splits each group by the distance from the output, with the learning rate of each part."""
    distances = {parameter: distance_from_output(name, module) for name, parameter in module.named_parameters()}
    return [
        group | {"params": [p for p in group["params"] if distances[p] == distance], "lr": lr * layer_decay**distance}
        for group in groups
        for distance in sorted({distances[p] for p in group["params"]})
    ]


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
