import copy
import csv
import json
import math
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torchmetrics import MeanMetric, MetricCollection

import perceivers
from perceivers import PerceiverIO, PerceiversError
from perceivers.adapters import ArrayInput, ArrayOutput
from perceivers.clips.autoencoding import ClipAutoencoder
from perceivers.clips.classification import ClipClassifier
from perceivers.data.loader import Samples
from perceivers.flow.training import FlowEstimator
from perceivers.images.training import ImageClassifier
from perceivers.model.positions import LearnedPositions
from perceivers.starcraft.policy import PolicyConfig
from perceivers.starcraft.training import PolicyLearner
from perceivers.text.fine_tuning import TextTasks
from perceivers.text.pretraining import MaskedLanguageModel
from perceivers.training.learner import Learner
from perceivers.training.loop import Training, average_weights, train
from perceivers.training.optimization import Optimization, parameter_groups
from tests.support.images import small_run
from tests.support.models import classifier, coder, hearer, labels, language, optical


def test_a_run_ends_with_everything(tmp_path):
    small_run(tmp_path).run()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model", "best", "checkpoints", "metrics.json", "config.json", "csv", "tensorboard"}
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents*"))
    rows = list(csv.DictReader((tmp_path / "csv" / "version_0" / "metrics.csv").open()))
    assert [row["epoch"] for row in rows if row["val_top1"]] == ["0", "1"]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt"}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"val_top1", "val_top5", "val_loss", "seconds", "parameters", "seed"}
    with pytest.raises(PerceiversError, match="holds a run already"):
        small_run(tmp_path).run()
    with pytest.raises(PerceiversError, match=r"is finished: set trainer.max_epochs to more than 2"):
        small_run(tmp_path, resume=True).run()
    with pytest.raises(PerceiversError, match="nothing to resume"):
        small_run(tmp_path / "other", resume=True).run()


def test_ema_saves_the_average_of_the_weights(tmp_path, recwarn):
    small_run(tmp_path / "plain").run()
    small_run(tmp_path / "average", ema=0.99).run()
    assert not [warning for warning in recwarn if "WeightAveraging" in str(warning.message)]
    latents = {name: perceivers.load(tmp_path / name / "model").encoder.latents for name in ("plain", "average")}
    torch.manual_seed(0)
    run = small_run(tmp_path / "start")
    start = replace(run.model, classes=10).build().encoder.latents
    moved = {name: (array - start).norm() for name, array in latents.items()}
    assert 0 < moved["average"] < 0.95 * moved["plain"]


def test_the_average_forgets_the_first_weights_soon_and_then_decays_as_configured():
    def average(value, weight, updates):
        averages = [torch.tensor(value)]
        average_weights(0.99, averages, [torch.tensor(weight)], updates)
        return averages[0].item()

    assert average(8.0, 1.0, 0) == pytest.approx(0.1 * 8 + 0.9 * 1)
    assert average(8.0, 1.0, 8) == 0.5 * 8 + 0.5 * 1
    assert average(0.3, 0.3, 5) == torch.tensor(0.3), "a frozen weight"
    assert average(8.0, 1.0, 10**4) == pytest.approx(0.99 * 8 + 0.01)
    assert average(3, 7, 10) == 7, "a count"
    value = 8.0
    for updates in range(300):
        value = average(value, 1.0, updates)
    assert value == pytest.approx(1, abs=1e-3)


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    small_run(tmp_path).run()
    other = small_run(tmp_path, resume=True)
    other.model, other.trainer["max_epochs"] = replace(other.model, latents=5), 3
    with pytest.raises(PerceiversError, match=r"belongs to another model: model.encoder.latents is \(4, 8\)"):
        other.run()
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.raises(PerceiversError, match=r"last.ckpt is truncated or damaged"):
        small_run(tmp_path, resume=True).run()


def test_an_unwritable_output_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PerceiversError, match=r"cannot write to .*choose another output path"):
        small_run(tmp_path / "file" / "run").run()


class Regression(Learner):
    def __init__(self, model, optimization):
        super().__init__(model, optimization)
        self.metrics = MetricCollection({"loss": MeanMetric()})

    def loss(self, batch):
        return (self.model({"x": batch["x"]})["y"] - batch["x"]).square().mean()

    def evaluate_batch(self, batch):
        self.metrics.update(self.loss(batch))


class Arrays(Samples):
    def __init__(self, arrays):
        self.arrays = arrays

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, item):
        return {"x": self.arrays[item.sample]}


def regression(optimization=None):
    model = PerceiverIO(
        {"x": ArrayInput(2)}, {"y": ArrayOutput(2, LearnedPositions((3,), 4))}, latents=2, channels=8, depth=1
    )
    return Regression(model, optimization or Optimization())


class Score(nn.Module):
    """A figure that is largest in the second of four epochs."""

    def __init__(self):
        super().__init__()
        self.epoch = 0

    def compute(self):
        return {"score": torch.tensor([1.0, 3.0, 2.0, 0.0][self.epoch])}

    def reset(self):
        self.epoch += 1


@pytest.mark.parametrize(("mode", "epoch"), [("max", 1), ("min", 3)])
def test_the_best_weights_are_those_of_the_best_figure(tmp_path, mode, epoch):
    class Scored(Regression):
        monitor = ("val_score", mode)

        def __init__(self, model, optimization):
            super().__init__(model, optimization)
            self.metrics = Score()

        def evaluate_batch(self, batch):
            pass

    samples = Arrays(torch.randn(4, 3, 2))
    learner = Scored(regression().model, Optimization())
    train(learner, samples, samples, Training(batch_size=2, output=str(tmp_path)), {"max_epochs": 4}, {})
    best = json.loads((tmp_path / "best" / "config.json").read_text())
    assert best["step"] == 2 * (epoch + 1)
    assert best["metrics"] == {"val_score": [1.0, 3.0, 2.0, 0.0][epoch]}


def test_what_each_experiment_is_judged_by():
    """Higher accuracy and PSNR are better, fewer pixels and bits are; read off one model each."""
    judged = {"image": ImageClassifier(classifier()), "flow": FlowEstimator(optical())}
    judged |= {"clips": ClipClassifier(hearer(), 3), "code": ClipAutoencoder(coder()), "text": TextTasks(labels())}
    judged |= {"policy": PolicyLearner(PolicyConfig().build()), "words": MaskedLanguageModel(language())}
    assert {name: learner.monitor for name, learner in judged.items()} == {
        "image": ("val_top1", "max"),
        "flow": ("val_epe", "min"),
        "clips": ("val_map", "max"),
        "code": ("val_video_psnr", "max"),
        "text": ("val_mean", "max"),
        "policy": ("val_f1", "max"),
        "words": ("val_bits_per_byte", "min"),
    }


def test_nan_in_a_batch_names_step_and_field(tmp_path):
    arrays = torch.randn(8, 3, 2)
    samples = Arrays(arrays)
    order = [item.sample for item in samples.loader(2, seed=0).order]
    arrays[order[5], 1, 0] = math.nan
    with pytest.raises(PerceiversError, match="step 2: the batch's 'x' has NaN or infinite values"):
        train(regression(), samples, samples, Training(batch_size=2, output=str(tmp_path)), {"max_epochs": 1}, {})


def test_a_diverged_loss_is_an_error(tmp_path):
    samples = Arrays(torch.randn(8, 3, 2) * 1e30)
    with pytest.raises(PerceiversError, match=r"the loss is (inf|nan): lower optimization.lr"):
        train(regression(), samples, samples, Training(batch_size=2, output=str(tmp_path)), {"max_epochs": 1}, {})


def test_schedules():
    flat = Optimization(schedule="flat_cosine", flat_fraction=0.5)
    assert [flat.lr_factor(step, 100) for step in (0, 49, 50, 75, 100)] == pytest.approx([1, 1, 1, 0.5, 0])
    warm = Optimization(schedule="warmup_cosine", warmup_steps=9)
    assert [warm.lr_factor(step, 109) for step in (0, 4, 9, 59, 109)] == pytest.approx([0.1, 0.5, 1, 0.5, 0])


def test_what_decays():
    model = regression().model
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def decayed(decay):
        with_decay, without = parameter_groups(model, 0.1, decay)
        assert (with_decay["weight_decay"], without["weight_decay"]) == (0.1, 0.0)
        assert len(with_decay["params"]) + len(without["params"]) == len(names)
        return {names[id(parameter)] for parameter in with_decay["params"]}

    weights, arrays = decayed("weights"), decayed("arrays")
    assert all(name.endswith("weight") and "norm" not in name for name in weights)
    assert arrays - weights == {"encoder.latents", "outputs.y.positions.table_SF"}
    assert len(weights) == 3 * 4 + 3 * 2 + 1  # attention and MLP of three blocks, and the head
    (everything,) = parameter_groups(model, 0.1, "all")
    assert len(everything["params"]) == len(names)


def test_lamb_is_the_published_update():
    """You et al. (2020), algorithm 2, without bias correction: the trust ratio scales Adam's step plus the decay."""
    layer = nn.Linear(30, 20)
    nn.init.normal_(layer.weight, std=5)  # a norm far above 10, where some implementations cut the ratio
    optimizer = Optimization("lamb", lr=0.1, weight_decay=0.3).build_optimizer(layer)
    gradient = torch.randn(20, 30)
    before = layer.weight.detach().clone()
    layer.weight.grad, layer.bias.grad = gradient.clone(), torch.zeros(20)
    optimizer.step()
    adam = 0.1 * gradient / ((0.001 * gradient.square()).sqrt() + 1e-6)
    update = adam + 0.3 * before
    want = before - 0.1 * before.norm() / update.norm() * update
    torch.testing.assert_close(layer.weight.detach(), want, rtol=1e-4, atol=1e-4)


def test_muon_makes_updates_of_attention_and_mlps_orthogonal_and_leaves_the_rest_to_adamw():
    """A step along the gradient with all singular values near 1, as large as 0.2 in each entry on average."""
    model = regression().model
    copied = copy.deepcopy(model)
    for p, other in zip(model.parameters(), copied.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        other.grad = p.grad.clone()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    muon, adamw = (
        Optimization(name, lr=0.1, weight_decay=0.5).build_optimizer(changed)
        for name, changed in (("muon", model), ("adamw", copied))
    )
    muon.step()
    adamw.step()
    by_adamw = dict(copied.named_parameters())
    matrices = 0
    for name, p in model.named_parameters():
        if not name.endswith("weight") or not (".attention." in name or ".mlp." in name):
            torch.testing.assert_close(p, by_adamw[name])
            continue
        matrices += 1
        update = (0.95 * before[name] - p.detach()) / (0.1 * 0.2 * math.sqrt(max(p.shape)))
        left, _, right = torch.linalg.svd(by_adamw[name].grad)
        rank = min(p.shape)
        values = left[:, :rank].mT @ update @ right[:rank].mT
        assert (values - values.diag().diag()).abs().max() < 0.1  # the same directions
        assert 0.6 < values.diag().min() <= values.diag().max() < 1.3
    assert matrices == 3 * 4 + 3 * 2
    for p, other in zip(model.parameters(), copied.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        other.grad = p.grad.clone()
    muon.step()
    adamw.step()
    latents = model.encoder.latents
    torch.testing.assert_close(latents, by_adamw["encoder.latents"])  # whose moments are those of two steps
    assert (latents - before["encoder.latents"]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Training(batch_size=0), "training.batch_size = 0 is not allowed: it must be at least 1"),
        (lambda: Training(ema=1.5), "training.ema = 1.5"),
        (lambda: Optimization(lr=-1), "optimization.lr = -1"),
        (lambda: Optimization(flat_fraction=2), "optimization.flat_fraction = 2"),
        (
            lambda: Training(batch_size=10).batch_per_process(Mock(world_size=2, accumulate_grad_batches=3)),
            "multiple of 6",
        ),
    ],
)
def test_values_that_are_not_allowed(make, message):
    with pytest.raises(PerceiversError, match=message):
        make()
