import json

import pytest

pytest.importorskip("sc2reader")
from benchmarks import starcraft
from benchmarks.starcraft import CONFIGS, ENCODERS, flops, folder, report, spread
from perceivers.experiments.configuration import read_config
from tests.experiments.test_behavioural_cloning import policy, small_run, tables  # noqa: F401


def test_every_run_is_a_config():
    for name, (config, changes) in ENCODERS.items():
        model = read_config(CONFIGS / config, changes).model
        assert model["encoder"] == ("transformer" if name == "Transformer" else "perceiver")
        assert str(model.get("latents", "")) in name


def test_flops_are_those_of_the_encoder_at_its_number_of_units():
    few, many = flops(policy(), 100), flops(policy(), 200)
    assert few < many < 2 * few  # linear but for the latents
    quadratic = [flops(policy(encoder="transformer"), units) for units in (1000, 2000)]
    assert quadratic[1] > 2.5 * quadratic[0]


def test_figures_of_several_seeds():
    assert spread([0.5, 0.6, 0.7]) == "60.0 ± 10.0"
    assert spread([0.5]) == "50.0"


def test_the_report(tmp_path, tables, monkeypatch):  # noqa: F811
    monkeypatch.setattr(starcraft, "ENCODERS", {"Transformer": ("transformer.yaml", [])})
    monkeypatch.setattr(starcraft, "DecisionData", lambda path, split: tables)
    for seed in (0, 1):
        output = folder(tmp_path / "runs", "Transformer", seed)
        small_run(output, tables, {"encoder": "transformer"}, epochs=1, seed=seed).run()
    text = report(tmp_path / "runs", tmp_path)
    assert text.startswith("On the 80 decisions of the test replays")
    row = next(line for line in text.splitlines() if line.startswith("| Transformer |"))
    assert row.count("±") == 7
    figures = [
        json.loads((folder(tmp_path / "runs", "Transformer", seed) / "test.json").read_text())["f1"] for seed in (0, 1)
    ]
    assert row.split(" | ")[1] == spread(figures)
    assert "| most frequent type |" in text
