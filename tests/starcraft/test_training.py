import json
import random

import pytest
import torch

from perceivers import PerceiversError
from perceivers.checkpoints import load_model
from perceivers.cli import main

pytest.importorskip("sc2reader")
pytest.importorskip("datasets")
import datasets
import pyarrow
from pyarrow import parquet

from perceivers.data.loader import Item
from perceivers.starcraft.data import DecisionData, collate
from perceivers.starcraft.policy import UnitPolicy
from perceivers.starcraft.tables import SCHEMA, STATISTICS, VOCABULARY
from perceivers.starcraft.training import (
    BehaviouralCloning,
    Numbers,
    PolicyLearner,
    PolicyScores,
    evaluate,
    losses_of,
    references,
)
from perceivers.training.config import read_config
from perceivers.training.loop import Training
from perceivers.training.optimization import Optimization
from tests.starcraft.test_data import row
from tests.support.cli import fails
from tests.support.runs import interrupt_at, state

SIZES = {"width": 16, "latents": 4, "latent_channels": 16, "depth": 1, "heads": 2}
KINDS, ABILITIES = ["Probe", "Zealot", "Nexus"], ["Attack", "Move"]


def decision(generator):
    """Rich players select their Zealots, poor ones their Probes; who has Zealots selected attacks the enemy's Nexus."""
    kinds = [generator.randrange(2) for _ in range(generator.randint(3, 6))] + [0, 1, 2]
    rich, commands = generator.random() < 0.5, generator.random() < 0.3
    chosen = [place for place, kind in enumerate(kinds[:-1]) if kind == rich]
    made = row(generator.randrange(9999), kinds, chosen, int(not rich) if commands else -1)
    made["owner"][-1], made["scalars"] = 2, [5000.0 if rich else 0.0, 2.0]
    made["flags"] = [4 if commands and place in chosen else 0 for place in range(len(kinds))]
    made["target"] = len(kinds) - 1 if commands and rich else -1
    return made


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    generator = random.Random(0)
    for name, count in (("a", 400), ("b", 80), ("c", 80)):
        table = pyarrow.Table.from_pylist([decision(generator) for _ in range(count)], SCHEMA)
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    names = {"kinds": KINDS, "abilities": ABILITIES, "scalars": ["minerals", "vespene"]}
    (tmp_path / VOCABULARY).write_text(json.dumps(names))
    (tmp_path / STATISTICS).write_text(json.dumps({"replays": {name: {} for name in "abc"}, "refused": {}}))
    (tmp_path / "split.json").write_text(json.dumps({"training": ["a"], "validation": ["b"], "test": ["c"]}))
    return DecisionData(str(tmp_path), str(tmp_path / "split.json"))


def small_run(output, tables, model=None, **training):
    training = {"epochs": 2, "batch_size": 16, "accelerator": "cpu", "output": str(output)} | training
    return BehaviouralCloning(SIZES | (model or {}), tables, Optimization(lr=5e-3), Training(**training))


@pytest.mark.parametrize(
    "model",
    [{"encoder": "perceiver"}, {"encoder": "transformer"}, {"encoder": "perceiver", "selection": "separate"}],
    ids=["perceiver", "transformer", "separate"],
)
def test_decisions_are_learned(tmp_path, tables, model):
    output = small_run(tmp_path / "run", tables, model, epochs=8).run()
    figures = json.loads((output / "metrics.json").read_text())
    policy, test = load_model(output / "model"), tables.open()["test"]
    found = evaluate(policy, test)
    assert found["f1"] > 0.9
    assert found["ability"] > 0.95
    assert found["target"] > 0.95
    assert figures["test_f1"] == pytest.approx(found["f1"], abs=0.1)
    simple = references(test)
    assert simple["as before"]["f1"] == 0  # nothing is selected before in these
    assert all(0 < simple[name]["f1"] < 0.8 for name in ("most frequent type", "one at random"))


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, tables, monkeypatch):
    small_run(tmp_path / "whole", tables).run()
    with monkeypatch.context() as patch:
        interrupt_at(30, patch)
        with pytest.raises(SystemExit):
            small_run(tmp_path / "parts", tables).run()
    small_run(tmp_path / "parts", tables, resume=True).run()
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def policy(**changes):
    names = {"kinds": ["Zealot", "Probe"], "abilities": ["Move"], "scalars": ["minerals", "vespene"]}
    return UnitPolicy(**(names | SIZES | changes)).eval()


def test_names_of_tables_and_model_are_brought_together(tables):
    decisions = tables.open()["test"]
    batch = collate([decisions[Item(place, 0)] for place in range(40)])
    found = Numbers(policy(), decisions)(batch)
    assert torch.equal(found["kind"], torch.tensor([2, 1, 0])[batch["kind"]])
    assert torch.equal(found["ability"], torch.tensor([-1, 0, 1])[batch["ability"] + 1])
    with pytest.raises(PerceiversError, match="tables have the numbers minerals, vespene, the model reads minerals"):
        Numbers(policy(scalars=["minerals"]), decisions)


@torch.no_grad()
def test_losses_are_those_of_each_kind_of_decision(tables):
    decisions, model = tables.open()["test"], policy()
    batch = Numbers(model, decisions)(collate([decisions[Item(place, 0)] for place in range(30)]))
    losses = losses_of(model, batch)
    situation = model(batch)
    own = batch["real"] & (batch["owner"] == 0)
    log, steps = model.selection.log_likelihood(
        situation.encoding.elements_BME, situation.context_BC, own, batch["chosen"]
    )
    selects, aims = batch["ability"] < 0, batch["target"] >= 0
    assert float(losses["selection"]) == pytest.approx(float(-log[selects].sum() / steps[selects].sum()), rel=1e-4)
    ability = model.ability_logits(situation, batch["chosen"]).log_softmax(1)[~selects]
    expected = -ability.gather(1, batch["ability"][~selects, None]).mean()
    assert float(losses["ability"]) == pytest.approx(float(expected), rel=1e-4)
    target = model.target_logits(situation, batch["chosen"], batch["ability"].clamp_min(0)).log_softmax(1)[aims]
    expected = -target.gather(1, batch["target"][aims, None]).mean()
    assert float(losses["target"]) == pytest.approx(float(expected), rel=1e-4)
    only = {name: value[selects] for name, value in batch.items()}
    found = losses_of(model, only)
    assert (float(found["ability"]), float(found["target"])) == (0, 0)
    assert float(found["selection"]) == pytest.approx(float(losses["selection"]), rel=1e-4)


@torch.no_grad()
def test_what_counts_in_training(tables):
    model, decisions = policy(), tables.open()["training"]
    config = BehaviouralCloning(SIZES, tables, ability_weight=0.25, target_weight=3.0)
    learner = PolicyLearner(model, decisions, config)
    learner.log = lambda *_, **__: None
    batch = collate([decisions[Item(place, 0)] for place in range(40)])
    losses = losses_of(model, learner.numbers(batch))
    expected = losses["selection"] + 0.25 * losses["ability"] + 3 * losses["target"]
    assert min(losses.values()) > 0
    torch.testing.assert_close(learner.training_step(batch, 0), expected)


def test_figures_do_not_depend_on_batches(tables):
    decisions, model = tables.open()["test"], policy()
    found = evaluate(model, decisions, 7)
    assert found == {name: pytest.approx(value, nan_ok=True) for name, value in evaluate(model, decisions, 80).items()}
    scores = PolicyScores()
    assert float(scores.compute()["f1"]) == 0
    nothing_before = references(decisions)["as before"]
    assert nothing_before["first"] == nothing_before["recall"] == 0
    assert any(0 in decisions[Item(place, 0)]["chosen"] for place in range(len(decisions)))


@pytest.mark.parametrize("name", ["perceiver", "transformer"])
def test_the_configs_can_be_read(name):
    from pathlib import Path

    config = read_config(Path(__file__).parents[2] / f"configs/starcraft/{name}.yaml")
    assert config.model["encoder"] == name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ability_weight": -1}, "ability_weight = -1 is not allowed"),
        ({"model": {"kinds": ["Probe"]}}, r"model\.kinds = .* must be left out: it comes from the data"),
        ({"model": {"encoder": "other"}}, "encoder = 'other' is not allowed"),
        ({"model": {"widht": 3}}, "has no argument 'widht': did you mean 'width'"),
    ],
)
def test_values_that_are_not_allowed(fields, message):
    with pytest.raises(PerceiversError, match=message):
        BehaviouralCloning(**fields)


def test_the_command_evaluates_policies(tmp_path, tables, capsys):
    policy().save(tmp_path / "model")
    call = ["evaluate", str(tmp_path / "model"), "--data", tables.path, "--list", tables.split]
    main([*call, "--json"])
    results = json.loads(capsys.readouterr().out)
    assert results["decisions"] == 80
    found = evaluate(load_model(tmp_path / "model"), tables.open()["test"])
    assert results["model"] == {name: pytest.approx(value, nan_ok=True) for name, value in found.items()}
    main([*call, "--split", "validation"])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("validation, 80 decisions")
    assert [line.split("  ")[0] for line in rows] == ["model", "as before", "most frequent type", "one at random"]
    for options, message in (
        (["--split", "final"], "--split final is not allowed: it is training, validation, test."),
        (["--windows", "3"], "--windows is for models of clips, but"),
        (["--picture", "x"], "--picture is for models of optical flow, but"),
    ):
        assert message in fails(capsys, *call, *options)
