import json

import PIL.Image
import pytest

pytest.importorskip("sc2reader")
pytest.importorskip("datasets")
from benchmarks import starcraft
from benchmarks.starcraft import CONFIGS, ENCODERS, PICTURED, flops, folder, measured, report, spread, usual_batch
from benchmarks.starcraft_pictures import draw_attention, draw_selections, selected, some_selections
from perceivers.starcraft.metrics import own_units
from perceivers.starcraft.policy import UnitPolicy
from perceivers.training.config import read_config
from tests.support.starcraft import small_policy, small_run, write_tables


@pytest.fixture
def tables(tmp_path, monkeypatch):
    return write_tables(tmp_path, monkeypatch, training=160)


def test_every_run_is_a_config():
    for name, (config, changes) in ENCODERS.items():
        model = read_config(CONFIGS / config, changes).model
        assert model.encoder == ("transformer" if name == "Transformer" else "perceiver")
        assert model.encoder == "transformer" or f"{model.latents} latents" in name


def test_flops_are_those_of_the_encoder_at_its_number_of_units():
    few, many = flops(small_policy(), 100), flops(small_policy(), 200)
    assert few < many < 2 * few  # linear but for the latents
    quadratic = [flops(small_policy(encoder="transformer"), units) for units in (1000, 2000)]
    assert quadratic[1] > 2.5 * quadratic[0]


def test_figures_of_several_seeds():
    assert spread([0.5, 0.6, 0.7]) == "60.0 ± 10.0"
    assert spread([0.5]) == "50.0"


@pytest.mark.parametrize("encoder", ENCODERS)
def test_policies_are_trained_as_the_page_says(encoder, tmp_path, monkeypatch):
    """Without history, for one epoch; the configs have more of both."""
    trained = []
    monkeypatch.setattr(type(read_config(CONFIGS / ENCODERS[encoder][0])), "run", lambda config: trained.append(config))
    starcraft.train(encoder, 1, tmp_path, tmp_path)
    (config,) = trained
    assert (config.model.history, config.trainer["max_epochs"], config.training.seed) == (False, 1, 1)


def test_the_report(tmp_path, tables, monkeypatch):
    monkeypatch.setattr(starcraft, "ENCODERS", {"Transformer": ("transformer.yaml", [])})
    monkeypatch.setattr(starcraft, "DecisionData", lambda path, split: tables)
    for seed in (0, 1):
        output = folder(tmp_path / "runs", "Transformer", seed)
        small_run(output, tables, {"encoder": "transformer"}, max_epochs=1, seed=seed).run()
    text = report(tmp_path / "runs", tmp_path)
    assert text.startswith("On the 80 decisions of the test replays")
    row = next(line for line in text.splitlines() if line.startswith("| Transformer |"))
    assert row.count("±") == 7
    figures = [
        json.loads((folder(tmp_path / "runs", "Transformer", seed) / "test.json").read_text())["f1"] for seed in (0, 1)
    ]
    assert row.split(" | ")[1] == spread(figures)
    assert "| most frequent type |" in text


def test_selections_of_pictures_are_several_units_and_always_the_same(tables):
    test = tables.open()["test"]
    batch = some_selections(test, 3)
    assert (batch["ability"] < 0).all()
    assert (batch["chosen"].sum(1) >= 3).all()
    assert all((batch[name] == value).all() for name, value in some_selections(test, 3).items())
    found = selected(small_policy(), test, batch)
    assert found.any(1).all()
    assert not (found & ~own_units(batch)).any()


def test_pictures(tmp_path, tables):
    test = tables.open()["test"]
    policies = {"Transformer": small_policy(encoder="transformer"), "Perceiver IO": small_policy()}
    draw_selections(policies, test, tmp_path / "selections.png", states=2)
    draw_attention(policies["Perceiver IO"], test, tmp_path / "attention.png", latents=3)
    assert PIL.Image.open(tmp_path / "selections.png").size == (832, 840)
    assert PIL.Image.open(tmp_path / "attention.png").size == (960, 672)


def test_costs_are_of_the_same_batch(tables):
    test = tables.open()["test"]
    batch = usual_batch(test)
    middle = sorted(test.lengths)[8:72]
    assert sorted(batch["real"].sum(1).tolist()) == middle
    large: UnitPolicy = small_policy(latents=64, latent_channels=64)
    found = measured({"small": small_policy(), "large": large}, test, rounds=2)
    assert found["small"].trained > found["large"].trained
    assert found["small"].encoded > found["large"].encoded
    assert found["small"].trained < found["small"].encoded
    assert found["small"].memory <= found["large"].memory


def test_the_pictured_encoders_are_measured():
    assert set(PICTURED) < set(ENCODERS)
