import csv
import json
from pathlib import Path

import pytest
import torch

from perceivers import PerceiversError
from perceivers.checkpoints.load import load_model
from perceivers.data.loader import SampleIndex
from perceivers.flow.data import VALIDATION_SEED, FlowData, SeededPairs, StoredPairs
from perceivers.flow.datasets import FlowPair, open_pairs, write_pair
from perceivers.flow.generator import FlowGenerator
from perceivers.flow.inverse import inverse_flow
from perceivers.flow.scenes import SceneConfig
from perceivers.flow.training import Curriculum, FlowEstimator, compute_lengths
from perceivers.training.config import read_config
from perceivers.training.learner import evaluate
from tests.support.flow import SCENES, SIZE, small_run, use_few_textures


@pytest.fixture(autouse=True)
def few_textures(monkeypatch):
    use_few_textures(monkeypatch)


@pytest.fixture
def stored(tmp_path):
    """Six pairs on disk, some of whose flow is not known."""
    pairs = FlowGenerator(SCENES).generate(range(6))
    for number, (frames, flow) in enumerate(zip(pairs.frames, pairs.forward, strict=True), 1):
        flow = flow.clone()
        flow[:, : number + 1, 3] = torch.nan
        write_pair(tmp_path / "chairs", number, FlowPair((255 * frames).round().byte(), flow, None))
    return tmp_path / "chairs"


def estimator(**settings):
    """A module outside of a run, with its generator."""
    config = small_run("unused", **settings)
    module = config.learner(config.model.build())
    module.generator = FlowGenerator(SCENES)
    return module


def test_the_curriculum_grows_from_none_to_all():
    curriculum = Curriculum(0.2, 0.4)
    assert [curriculum.is_warmup(part) for part in (0.0, 0.19, 0.2, 0.9)] == [True, True, False, False]
    strengths = [curriculum.strength(part) for part in (0.0, 0.19, 0.2, 0.3, 0.6, 0.99)]
    assert strengths == pytest.approx([0, 0, 0, 0.25, 1, 1])
    assert Curriculum(0.0, 0.0).strength(0.0) == 1


def test_a_run_writes_model_figures_and_pictures(tmp_path):
    output = small_run(tmp_path / "run").run()
    figures = json.loads((output / "metrics.json").read_text())
    pairs = FlowGenerator(SCENES).generate([VALIDATION_SEED, VALIDATION_SEED + 1, VALIDATION_SEED + 2])
    assert figures["val_zero"] == pytest.approx(float(pairs.forward.norm(dim=1).mean()), rel=1e-4)
    predicted = load_model(output / "model")({"frames": pairs.frames})["flow"]
    error = (predicted - pairs.forward).norm(dim=1)
    assert figures["val_epe"] == pytest.approx(float(error.mean()), rel=1e-4)
    assert figures["val_over1px"] == pytest.approx(float((error > 1).float().mean()), rel=1e-4)
    rows = list(csv.DictReader((output / "csv" / "version_0" / "metrics.csv").open()))
    assert any(row["val_epe"] for row in rows)
    written = b"".join(path.read_bytes() for path in (output / "tensorboard").glob("*"))
    assert b"validation_2" in written
    assert b"validation_3" not in written  # there are three


def test_the_flow_of_a_data_set_is_learned_from_and_validated_on(tmp_path, stored):
    data = FlowData(path=str(stored), validation=str(stored))
    output = small_run(tmp_path / "run", data).run()
    pairs = open_pairs(stored)
    model = load_model(output / "model")
    errors = []
    for pair in (pairs[index] for index in range(len(pairs))):
        predicted = model({"frames": pair.frames[None]})["flow"][0]
        errors.append((predicted - pair.flow).norm(dim=0).nanmean())
    figures = json.loads((output / "metrics.json").read_text())
    assert figures["val_epe"] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-4)


def test_frames_of_another_size_are_validated_in_tiles(tmp_path, stored):
    data = FlowData(scenes=SceneConfig((8, 12), shapes=(1, 1), motion=1.0), pairs=4, validation=str(stored))
    model = {"image_size": (8, 12)}
    import perceivers.flow.training as experiment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "OVERLAP", 2)
        small_run(tmp_path / "run", data, model, max_epochs=1).run()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["val_epe"] > 0


def test_in_the_first_phase_every_pair_is_also_reversed():
    module = estimator()
    frames, flow = module.make_pairs({"seed": torch.tensor([3, 4])}, reversed=True)
    made = module.generator.generate([3, 4])
    assert torch.equal(frames, torch.cat([made.frames, made.frames[:, [1, 0]]]))
    assert torch.equal(flow, torch.cat([made.forward, made.backward]))
    frames, flow = module.make_pairs({"seed": torch.tensor([3, 4])}, reversed=False)
    assert torch.equal(frames, made.frames)
    assert torch.equal(flow, made.forward)


def test_the_phases_follow_each_other_within_a_run(tmp_path, monkeypatch):
    """Of eight steps two in the first phase, with every pair also reversed, then four in which augmentation grows."""
    seen = []
    whole_error = FlowEstimator.compute_error

    def error(self, frames, flow):
        seen.append((len(frames), self.curriculum.strength(self.progress())))
        return whole_error(self, frames, flow)

    monkeypatch.setattr(FlowEstimator, "compute_error", error)
    output = small_run(tmp_path / "run", curriculum=Curriculum(0.25, 0.5)).run()
    assert [count for count, _ in seen] == [4, 4, 2, 2, 2, 2, 2, 2]
    assert [strength for _, strength in seen] == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1])
    rows = csv.DictReader((output / "csv" / "version_0" / "metrics.csv").open())
    errors = [float(row["val_epe"]) for row in rows if row["val_epe"]]
    best = json.loads((output / "best" / "config.json").read_text())
    assert errors[0] != errors[1]
    assert best["step"] == 4 * (errors.index(min(errors)) + 1)


def test_the_reversed_flow_of_stored_pairs_is_the_mean_of_what_ends_in_a_pixel(stored):
    pairs = StoredPairs(open_pairs(stored))
    batch = pairs.collate([pairs[SampleIndex(0, 0)], pairs[SampleIndex(1, 0)]])
    frames, flow = estimator().make_pairs(batch, reversed=True)
    assert torch.equal(frames[2:, 0], batch["frames"][:, 1])
    assert flow[:2, 0, 0, 3].isnan().all()
    torch.testing.assert_close(flow[2:], inverse_flow(flow[:2]), equal_nan=True)


def test_the_loss_is_the_mean_error_of_known_pixels():
    module = estimator()
    frames, flow = torch.rand(2, 2, 3, *SIZE), torch.randn(2, 2, *SIZE)
    flow[0, :, :5] = torch.nan
    error = (module.model({"frames": frames})["flow"] - flow).norm(dim=1)
    torch.testing.assert_close(module.compute_error(frames, flow), error.nanmean())
    unknown = module.compute_error(frames, torch.full_like(flow, torch.nan))
    unknown.backward()
    assert unknown == 0
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters() if parameter.grad is not None)


def test_some_pixels_are_compared_with_their_own_flow():
    module = estimator(pixels=40)
    frames, flow = torch.rand(2, 2, 3, *SIZE), torch.randn(2, 2, *SIZE)
    torch.manual_seed(5)
    loss = module.compute_error(frames, flow)
    torch.manual_seed(5)
    points = torch.randint(SIZE[0] * SIZE[1], (40,))
    error = (module.model({"frames": frames})["flow"] - flow).norm(dim=1)
    torch.testing.assert_close(loss, error.flatten(1)[:, points].mean())


def test_some_pixels_drawn_at_random_have_the_same_loss_on_average():
    module = estimator(pixels=40)
    frames, flow = torch.rand(1, 2, 3, *SIZE), torch.randn(1, 2, *SIZE)
    flow[:, :, 7, 3] = torch.nan
    with torch.no_grad():
        some = torch.stack([module.compute_error(frames, flow) for _ in range(300)])
    whole = (module.model({"frames": frames})["flow"] - flow).norm(dim=1).nanmean()
    assert float(some.mean()) == pytest.approx(float(whole), rel=0.02)
    assert some.std() > 0.01


def test_training_draws_other_scenes_in_every_epoch_and_none_that_is_held_out():
    pairs, held_out = SeededPairs(10), SeededPairs(10, VALIDATION_SEED)
    assert pairs[SampleIndex(3, 77)] == 77
    assert [held_out[SampleIndex(place, 0)] for place in (0, 9)] == [VALIDATION_SEED, VALIDATION_SEED + 9]


def test_pairs_of_different_size_are_continued_without_flow():
    frames = torch.randint(256, (2, 3, 4, 6), dtype=torch.uint8)
    small = FlowPair(frames[..., :3, :5], torch.ones(2, 3, 5), None)
    large = FlowPair(frames, torch.full((2, 4, 6), 2.0), None)
    batch = StoredPairs.collate(None, [small, large])
    assert batch["frames"].shape == (2, 2, 3, 4, 6)
    assert torch.equal(batch["frames"][0, ..., 3, :5], frames[..., 2, :5])
    assert torch.equal(batch["frames"][0, ..., :3, 5], frames[..., :3, 4])
    known = torch.zeros(4, 6, dtype=torch.bool)
    known[:3, :5] = True
    assert torch.equal(batch["known"][0], known)
    assert batch["known"][1].all()
    assert not batch["flow"].isnan().any()


def test_a_model_is_evaluated_without_its_run(tmp_path, stored):
    output = small_run(tmp_path / "run", FlowData(path=str(stored), validation=str(stored))).run()
    model = load_model(output / "model")
    figures = evaluate(FlowEstimator(model), StoredPairs(open_pairs(stored)), batch_size=4)
    logged = json.loads((output / "metrics.json").read_text())
    assert {f"val_{name}": value for name, value in figures.items()} == pytest.approx(
        {name: value for name, value in logged.items() if name.startswith("val_")}, rel=1e-6
    )


def test_stored_pairs_are_evaluated_one_by_one(stored):
    pairs = StoredPairs(open_pairs(stored))
    assert pairs.loader(4).batch_size == 1
    assert pairs.loader(4, seed=0).batch_size == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": {"image_size": (24, 24)}}, "16 x 20"),
        ({"pixels": 0}, "pixels = 0 is not allowed: it must be at least 1"),
        ({"pixels": 9, "model": {"downsampling": "conv"}}, "pixels = 9 is not allowed: it must be left out"),
        ({"data": FlowData(path="nowhere")}, "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_trained(tmp_path, changes, expected):
    with pytest.raises(PerceiversError, match=expected):
        small_run(tmp_path / "run", **changes).run()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("--model.preset=imagenet_conv", "model.preset = imagenet_conv is of image_classification"),
        ("--model.initialization=near", "model.initialization"),
        (
            "--curriculum.warmup_fraction=1.5",
            "curriculum.warmup_fraction = 1.5 is not allowed: it must be at least 0 and at most 1",
        ),
        ("--data.validation_pairs=0", "data.validation_pairs = 0 is not allowed: it must be at least 1"),
        ("--data.scenes.motion=-1", "scenes.motion = -1.0 is not allowed: it must be at least 0"),
    ],
)
def test_a_config_that_is_wrong(override, expected):
    with pytest.raises(PerceiversError, match=expected):
        read_config(Path(__file__).parents[2] / "configs/flow/mini.yaml", [override])


def test_lengths_and_their_gradients_are_those_of_the_norm():
    vectors = torch.randn(3, 2, 5)
    vectors[0, :, 0] = 0
    results = []
    for function in (compute_lengths, lambda array: array.norm(dim=1)):
        array = vectors.clone().requires_grad_()
        lengths = function(array)
        results.append((lengths, *torch.autograd.grad(lengths.square().sum() + lengths.sum(), array)))
    torch.testing.assert_close(*results)
