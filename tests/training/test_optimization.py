"""Optimizers and schedules of other libraries, and the arguments that a config may give them."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import lr_scheduler

from perceivers import PerceiversError
from perceivers.training.optimization import Optimization
from tests.support.images import small_run
from tests.support.runs import assert_equal_results, interrupt_at, read_results


def learning_rates(settings, steps):
    """The learning rate of each update."""
    layer = nn.Linear(2, 2)
    (optimizer,), (found,) = settings.build(layer, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        found["scheduler"].step()
    return rates


def updated(settings):
    """A weight of 2, with the gradient 3, after an update."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2)
    layer.weight.grad = torch.tensor([[3.0]])
    optimizer = settings.build_optimizer(layer)
    optimizer.step()
    return optimizer, layer.weight.item()


def test_an_optimizer_of_torch_gets_its_arguments_and_the_weight_decay():
    settings = Optimization(
        "sgd", {"momentum": 0.9, "nesterov": True}, lr=0.1, weight_decay=0.5, decayed_parameters="weights"
    )
    optimizer, weight = updated(settings)
    assert type(optimizer) is torch.optim.SGD
    assert weight == pytest.approx(2 - 0.1 * (3 + 0.5 * 2) * 1.9)


def test_an_optimizer_of_pytorch_optimizer_and_its_second_moment():
    optimizer, weight = updated(Optimization("Lion", lr=0.1, weight_decay=0, beta2=0.5))
    assert (type(optimizer).__name__, optimizer.param_groups[0]["betas"]) == ("Lion", (0.9, 0.5))
    assert weight == pytest.approx(1.9)
    assert updated(Optimization("adamw"))[0].param_groups[0]["betas"] == (0.9, 0.999)
    assert updated(Optimization("adamw", beta2=0.98))[0].param_groups[0]["betas"] == (0.9, 0.98)
    assert updated(Optimization("adamw", {"eps": 0.5}, lr=1, weight_decay=0))[1] == pytest.approx(2 - 3 / 3.5)
    assert updated(Optimization("lamb", {"eps": 0.5}))[0].param_groups[0]["eps"] == 0.5


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("adamw", {}), ("adam", {"amsgrad": True}), ("sgd", {"momentum": 0.9, "nesterov": True}), ("adagrad", {})],
)
def test_a_fused_optimizer_updates_as_a_loop_over_the_weights(name, arguments):
    weights = []
    for loop in ({}, {"foreach": False}):
        torch.manual_seed(0)
        layer = nn.Linear(40, 30)
        optimizer = Optimization(name, arguments | loop, lr=0.1, weight_decay=0.2).build_optimizer(layer)
        assert optimizer.defaults["fused"] is (None if loop else True)
        for _ in range(5):
            layer(torch.randn(8, 40)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append([parameter.detach() for parameter in layer.parameters()])
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize(
    ("settings", "weight"),
    [
        (Optimization("adamw", {"fused": False}), torch.zeros(2)),
        (Optimization("adamw", {"foreach": True}), torch.zeros(2)),
        (Optimization("rmsprop", weight_decay=0), torch.zeros(2)),
        (Optimization("lion"), torch.zeros(2)),
        (Optimization("adamw"), torch.zeros(2, dtype=torch.complex64)),
        (Optimization("adagrad"), torch.zeros(2, device="meta")),  # there is such a kernel for CPUs only
    ],
)
def test_what_cannot_be_fused_is_not(settings, weight):
    optimizer = settings.build_optimizer(nn.ParameterList([weight]))
    assert not optimizer.defaults.get("fused")


@pytest.mark.parametrize("clip", [1e-6, 1.0])
def test_gradients_are_clipped_in_mixed_precision_before_a_fused_update(tmp_path, clip):
    """Further updates of a learning rate of 1 move the weights by at most the norm of their gradients."""
    for steps in (1, 4):
        run = small_run(tmp_path / str(steps), max_steps=steps, precision="bf16-mixed", gradient_clip_val=clip)
        run.optimization = Optimization("sgd", lr=1, weight_decay=0, schedule="constant")
        run.run()
    first, last = (load_file(tmp_path / name / "model/model.safetensors") for name in ("1", "4"))
    distance = sum((last[name] - first[name]).square().sum() for name in first).sqrt()
    assert 0.01 * clip < distance < 3.01 * clip


def test_an_optimizer_by_its_import_path(tmp_path, monkeypatch):
    (tmp_path / "descent.py").write_text("import torch\n\nclass Descent(torch.optim.SGD):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    optimizer, weight = updated(Optimization("descent:Descent", lr=0.5, weight_decay=0))
    assert (type(optimizer).__name__, weight) == ("Descent", 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sdg"}, "optimizer = 'sdg' is unknown: did you mean 'sgd'"),
        ({"optimizer": "torch:Tensor"}, "is the class Tensor, but a subclass of torch.optim.Optimizer is expected"),
        ({"optimizer": "LBFGS"}, "LBFGS needs a training step of its own"),
        ({"optimizer": "SAM"}, "SAM needs a training step of its own"),
        ({"optimizer": "AdaHessian"}, "AdaHessian needs a training step of its own"),
        ({"optimizer": "ScheduleFreeAdamW"}, "ScheduleFreeAdamW needs a training step of its own"),
        ({"optimizer": "sgd", "optimizer_arguments": {"momentun": 0.9}}, "no argument 'momentun': did you mean 'mom"),
        ({"optimizer": "sgd", "optimizer_arguments": {"momentum": "much"}}, "momentum = 'much' is not allowed: it"),
        ({"optimizer": "sgd", "optimizer_arguments": {"momentum": -1}}, "sgd is not possible with its arguments: Inv"),
        ({"optimizer_arguments": {"lr": 0.1}}, "arguments.lr cannot be set: set optimization.lr"),
        ({"optimizer": "sgd", "beta2": 0.9}, "sgd has no moments: leave out optimization.beta2"),
        ({"beta2": 0.9, "optimizer_arguments": {"betas": [0.9, 0.9]}}, "are both given: leave one out"),
        ({"optimizer": "rprop"}, "rprop has no weight decay: set optimization.weight_decay to 0"),
        ({"schedule": "cosine"}, "schedule = 'cosine' is unknown: did you mean 'flat_cosine'"),
        ({"schedule": "LambdaLR"}, "schedule = 'LambdaLR' is unknown"),
        ({"schedule": "StepLR"}, "schedule_arguments lacks 'step_size', which StepLR needs"),
        ({"schedule": "StepLR", "schedule_arguments": {"step_size": 0.5}}, "step_size = 0.5 is not allowed: it must"),
        ({"schedule": "StepLR", "schedule_arguments": {"last_epoch": 3}}, "last_epoch cannot be set: the run decides"),
        ({"schedule": "linear", "schedule_arguments": {"gamma": 3}}, "it must be empty for 'linear'"),
        ({"warmup_steps": 1.5}, "warmup_steps = 1.5 is not allowed: it must be a whole number, or a fraction below 1"),
    ],
)
def test_optimizers_and_schedules_that_are_not_possible(settings, message):
    with pytest.raises(PerceiversError, match=message):
        Optimization(**settings)


def test_checking_an_optimizer_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Optimization("sgd", {"momentum": 0.9}, weight_decay=0, schedule="OneCycleLR", schedule_arguments={"max_lr": 1.0})
    assert torch.equal(torch.rand(3), expected)


def test_own_schedules_after_a_warm_up():
    assert learning_rates(Optimization("sgd", lr=1, schedule="constant", warmup_steps=3), 5) == [0.25, 0.5, 0.75, 1, 1]
    linear = Optimization("sgd", lr=1, schedule="linear", warmup_steps=0.25)
    assert learning_rates(linear, 8) == pytest.approx([1 / 3, 2 / 3, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    flat = Optimization("sgd", lr=1, schedule="flat_cosine", flat_fraction=0.5, warmup_steps=1)
    assert learning_rates(flat, 4) == pytest.approx([0.5, 1, 1, 0.5])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("StepLR", {"step_size": 2, "gamma": 0.5}),
        ("MultiStepLR", {"milestones": [1, 3]}),
        ("ExponentialLR", {"gamma": 0.5}),
        ("ConstantLR", {"factor": 0.5, "total_iters": 2}),
        ("CosineAnnealingLR", {"T_max": 6}),
        ("PolynomialLR", {"total_iters": 6, "power": 2}),
        ("CosineAnnealingWarmRestarts", {"T_0": 2}),
    ],
)
def test_a_schedule_of_torch_begins_after_the_warm_up(name, arguments):
    settings = Optimization("sgd", lr=0.8, schedule=name, schedule_arguments=arguments, warmup_steps=3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.8)
    alone, expected = getattr(lr_scheduler, name)(optimizer, **arguments), [0.2, 0.4, 0.6]
    for _ in range(6):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        alone.step()
    assert learning_rates(settings, 9) == pytest.approx(expected)


def test_a_schedule_of_torch_is_by_default_as_long_as_the_run():
    cosine = Optimization("sgd", lr=1, schedule="cosineannealinglr", warmup_steps=0.2)
    assert learning_rates(cosine, 10) == pytest.approx(learning_rates(Optimization("sgd", lr=1, warmup_steps=2), 10))
    cycle = Optimization("sgd", {"momentum": 0.9}, schedule="OneCycleLR", schedule_arguments={"max_lr": 0.5})
    rates = learning_rates(cycle, 20)
    assert (max(rates), rates[0]) == (pytest.approx(0.5, rel=1e-2), pytest.approx(0.5 / 25))
    assert rates[-1] < 0.01


def run_with(folder, resume=False, **settings):
    run = small_run(folder, resume=resume)
    run.optimization = Optimization(lr=1e-3, **settings)
    return run


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "optimizer_arguments": {"momentum": 0.9}, "schedule": "linear", "warmup_steps": 0.5},
        {"optimizer": "Lion", "schedule": "StepLR", "schedule_arguments": {"step_size": 4}, "warmup_steps": 3},
        {"schedule": "MultiStepLR", "schedule_arguments": {"milestones": [3, 12]}},
        {"schedule": "OneCycleLR", "schedule_arguments": {"max_lr": 0.01}},
        {
            "schedule": "ReduceLROnPlateau",
            "schedule_arguments": {"patience": 0, "threshold": 0.5, "factor": 0.1},
            "warmup_steps": 12,
        },
    ],
    ids=lambda settings: settings["schedule"],
)
def test_a_run_interrupted_and_resumed_ends_like_one_that_was_not(tmp_path, monkeypatch, settings):
    run_with(tmp_path / "whole", **settings).run()
    interrupt_at(10, monkeypatch)
    with pytest.raises(SystemExit):
        run_with(tmp_path / "stopped", **settings).run()
    monkeypatch.undo()
    run_with(tmp_path / "stopped", resume=True, **settings).run()
    assert_equal_results(read_results(tmp_path / "stopped"), read_results(tmp_path / "whole"))


def test_the_learning_rate_falls_after_each_evaluation_that_is_not_better(tmp_path):
    arguments = {"patience": 0, "threshold": 10.0, "threshold_mode": "abs", "factor": 0.1}
    run = run_with(tmp_path, schedule="ReduceLROnPlateau", schedule_arguments=arguments)
    run.trainer["max_epochs"] = 3
    run.run()
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    (group, _) = checkpoint["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(1e-4)  # the last save is before the last evaluation
    assert checkpoint["lr_schedulers"][0]["mode"] == "max"


def test_a_run_shorter_than_its_warm_up_is_warned_of(tmp_path, capsys):
    run_with(tmp_path / "short", warmup_steps=19).run()
    assert "The run has 18 updates, but its warm-up 19: lower optimization.warmup_steps." in capsys.readouterr().err
    run_with(tmp_path / "long", warmup_steps=18).run()
    assert "warm-up" not in capsys.readouterr().err


def test_a_run_without_an_end_needs_a_schedule_without_one(tmp_path):
    endless = run_with(tmp_path / "cosine")
    endless.trainer |= {"max_epochs": -1, "max_time": "00:00:00:01"}
    with pytest.raises(PerceiversError, match="the schedule needs the number of updates"):
        endless.run()
    endless = run_with(tmp_path / "constant", schedule="constant", warmup_steps=2)
    endless.trainer |= {"max_epochs": -1, "max_time": "00:00:00:01"}
    endless.run()
    assert (tmp_path / "constant" / "metrics.json").exists()
