import json
from pathlib import Path

import pytest
import torch
import yaml

from perceivers import PerceiversError, SetEncoder
from perceivers.checkpoints import load_model
from perceivers.cli import main

pytest.importorskip("sc2reader")
pytest.importorskip("datasets")
from perceivers.data.loader import SampleIndex
from perceivers.model.sizes import TRAINING_FIELDS
from perceivers.starcraft.data import PolicyDecisions
from perceivers.starcraft.metrics import PolicyScores
from perceivers.starcraft.policy import PolicyConfig, load_policy
from perceivers.starcraft.training import BehavioralCloning, compute_losses, evaluate, evaluate_references
from perceivers.training.config import read_config
from tests.support.cli import fails
from tests.support.starcraft import SIZES, small_policy, small_run, write_tables


@pytest.fixture
def tables(tmp_path, monkeypatch):
    return write_tables(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "model",
    [{"encoder": "perceiver"}, {"encoder": "transformer"}, {"encoder": "perceiver", "selection": "independent"}],
    ids=["perceiver", "transformer", "independent"],
)
def test_decisions_are_learned(tmp_path, tables, model):
    output = small_run(tmp_path / "run", tables, model, max_epochs=8).run()
    figures = json.loads((output / "metrics.json").read_text())
    policy, test = load_model(output / "model"), tables.open()["test"]
    found = evaluate(policy, test)
    assert found["f1"] > 0.9
    assert found["ability"] > 0.95
    assert found["target"] > 0.95
    assert figures["val_f1"] == pytest.approx(found["f1"], abs=0.1)
    simple = evaluate_references(test)
    assert simple["as before"]["f1"] == 0  # nothing is selected before in these
    assert all(0 < simple[name]["f1"] < 0.8 for name in ("most frequent type", "one at random"))


def sample_batch(decisions, count):
    return decisions.collate([decisions[SampleIndex(place, 0)] for place in range(count)])


@torch.no_grad()
def test_losses_are_those_of_each_kind_of_decision(tables):
    model = small_policy()
    batch = sample_batch(PolicyDecisions(tables.open()["test"], model), 30)
    losses = compute_losses(model, batch)
    observation = model(batch)
    own = batch["real"] & (batch["owner"] == 0)
    log, steps = model.selection.log_likelihood(
        observation.encoding.elements_BME, observation.context_BC, own, batch["chosen"]
    )
    selects, aims = batch["ability"] < 0, batch["target"] >= 0
    assert float(losses["selection"]) == pytest.approx(float(-log[selects].sum() / steps[selects].sum()), rel=1e-4)
    ability = model.ability_logits(observation, batch["chosen"]).log_softmax(1)[~selects]
    expected = -ability.gather(1, batch["ability"][~selects, None]).mean()
    assert float(losses["ability"]) == pytest.approx(float(expected), rel=1e-4)
    target = model.target_logits(observation, batch["chosen"], batch["ability"].clamp_min(0)).log_softmax(1)[aims]
    expected = -target.gather(1, batch["target"][aims, None]).mean()
    assert float(losses["target"]) == pytest.approx(float(expected), rel=1e-4)
    only = {name: value[selects] for name, value in batch.items()}
    found = compute_losses(model, only)
    assert (float(found["ability"]), float(found["target"])) == (0, 0)
    assert float(found["selection"]) == pytest.approx(float(losses["selection"]), rel=1e-4)


@torch.no_grad()
def test_what_counts_in_training(tables):
    model, logged = small_policy(), {}
    run = BehavioralCloning(model=PolicyConfig(**SIZES), data=tables, ability_weight=0.25, target_weight=3.0)
    learner = run.learner(model)
    learner.log = lambda name, value, **_: logged.update({name: value})
    batch = sample_batch(PolicyDecisions(tables.open()["training"], model), 40)
    losses = compute_losses(model, batch)
    expected = losses["selection"] + 0.25 * losses["ability"] + 3 * losses["target"]
    assert min(losses.values()) > 0
    torch.testing.assert_close(learner.training_step(batch, 0), expected)
    torch.testing.assert_close(
        logged, {f"train_{name}": loss for name, loss in losses.items()} | {"train_loss": expected}
    )


def test_figures_do_not_depend_on_batches(tables):
    decisions, model = tables.open()["test"], small_policy()
    found = evaluate(model, decisions, 7)
    assert found == {name: pytest.approx(value, nan_ok=True) for name, value in evaluate(model, decisions, 80).items()}
    scores = PolicyScores()
    assert float(scores.compute()["f1"]) == 0
    nothing_before = evaluate_references(decisions)["as before"]
    assert nothing_before["first"] == nothing_before["recall"] == 0
    assert any(0 in decisions[SampleIndex(place, 0)]["chosen"] for place in range(len(decisions)))


@pytest.mark.parametrize("name", ["perceiver", "transformer"])
def test_the_configs_can_be_read(name):
    config = read_config(Path(__file__).parents[2] / f"configs/starcraft/{name}.yaml")
    assert config.model.encoder == name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ability_weight": -1}, r"ability_weight = -1\.0 is not allowed: it must be at least 0"),
        ({"model": {"kinds": ["Probe"]}}, r"model\.kinds = .* must be left out: it comes from the data"),
        ({"model": {"abilities": ["Move"]}}, r"model\.abilities = .* must be left out: it comes from the data"),
        ({"model": {"scalars": ["minerals"]}}, r"model\.scalars = .* must be left out: it comes from the data"),
        ({"model": {"encoder": "other"}}, r"model\.encoder.*'perceiver'.*'transformer'"),
        ({"model": {"latents": 0}}, r"model\.latents = 0 is not allowed: it must be at least 1"),
        ({"model": {"widht": 3}}, r"there is no field 'model\.widht': did you mean 'width'"),
    ],
)
def test_values_that_are_not_allowed(tmp_path, fields, message):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"experiment": "behavioral_cloning"} | fields))
    with pytest.raises(PerceiversError, match=message):
        read_config(tmp_path / "config.yaml")


def test_values_are_checked_without_a_file():
    with pytest.raises(PerceiversError, match="target_weight = -1 is not allowed: it must be at least 0"):
        BehavioralCloning(target_weight=-1)
    with pytest.raises(PerceiversError, match=r"model\.kinds = .* must be left out: it comes from the data"):
        BehavioralCloning(model=PolicyConfig(kinds=("Probe",)))
    with pytest.raises(PerceiversError, match=r"model\.encoder = 'other' is not allowed: it must be 'perceiver' or"):
        PolicyConfig(encoder="other")


def test_a_wrong_size_shows_before_data_is_read():
    with pytest.raises(PerceiversError, match="channels = 16 cannot be split over heads = 3"):
        BehavioralCloning(model=PolicyConfig(**(SIZES | {"heads": 3}))).prepare()


def test_a_run_writes_a_config_without_what_the_data_decides(tmp_path, tables):
    run = small_run(tmp_path / "run", tables)
    run.prepare()
    model = {name: value for name, value in run.to_config()["model"].items() if name not in TRAINING_FIELDS}
    assert model == SIZES | {"encoder": "perceiver", "selection": "pointer", "history": False}
    assert run.to_config()["experiment"] == "behavioral_cloning"


def test_the_command_evaluates_policies(tmp_path, tables, capsys):
    small_policy().save(tmp_path / "model")
    call = ["evaluate", str(tmp_path / "model"), "--data", tables.path, "--list", tables.split]
    main([*call, "--json"])
    results = json.loads(capsys.readouterr().out)
    assert results["decisions"] == 80
    found = evaluate(load_model(tmp_path / "model"), tables.open()["test"])
    assert results["model"] == {name: pytest.approx(value, nan_ok=True) for name, value in found.items()}
    main([*call, "--split", "val"])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("80 of 560 decisions (val)")
    assert [line.split("  ")[0] for line in rows] == ["model", "as before", "most frequent type", "one at random"]
    for options, message in (
        (["--split", "final"], "--split: invalid choice: 'final' (choose from 'train', 'val', 'test')"),
        (["--windows", "3"], "unrecognized arguments: --windows 3"),
        (["--batch-size", "0"], "--batch-size: 0 is not allowed: it must be at least 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*call, *options])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err.replace("choose from train, val, test", "choose from "
                                                          "'train', 'val', 'test'")  # fmt: skip
    assert "device = 'nowhere' cannot be used here" in fails(capsys, *call, "--device", "nowhere")


def test_policies_are_told_from_other_models(tmp_path):
    assert BehavioralCloning.evaluates(small_policy())
    other = SetEncoder(3, width=16, latents=4, latent_channels=16, depth=1)
    assert not BehavioralCloning.evaluates(other)
    other.save(tmp_path / "other")
    with pytest.raises(PerceiversError, match="other holds a SetEncoder, not a UnitPolicy"):
        load_policy(tmp_path / "other")
