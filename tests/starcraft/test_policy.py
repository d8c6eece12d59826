import inspect

import pytest
import torch

from perceivers import PerceiversError
from perceivers.checkpoints import load_model
from perceivers.starcraft.policy import PolicyConfig, UnitPolicy
from tests.support.models import shaken

SIZES = {"width": 16, "latents": 4, "latent_channels": 16, "depth": 1, "heads": 2}
NAMED = ("kinds", "abilities", "scalars")
NAMES = (["Probe", "Zealot"], ["Attack", "Move", "Stop"], ["minerals", "vespene"])


def batch():
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    return {
        "real": real, "kind": torch.randint(3, (2, 6)), "owner": torch.randint(4, (2, 6)),
        "flags": torch.randint(8, (2, 6)), "groups": torch.randint(1024, (2, 6)), "x": 256 * torch.rand(2, 6),
        "y": 256 * torch.rand(2, 6), "age": torch.randint(9999, (2, 6)), "unseen": torch.randint(999, (2, 6)),
        "scalars": 1000 * torch.rand(2, 2), "race": torch.tensor([0, 2]), "enemy_race": torch.tensor([1, -1]),
        "loop": torch.tensor([100, 9000]), "unselected": torch.randint(999, (2, 6)),
        "uncommanded": torch.randint(999, (2, 6)), "camera": 256 * torch.rand(2, 2),
        "last_ability": torch.tensor([-1, 2]), "idle": torch.tensor([57600, 3]),
    }  # fmt: skip


@pytest.fixture(params=["perceiver", "transformer", "perceiver with history"])
def policy(request):
    encoder, _, history = request.param.partition(" ")
    return shaken(UnitPolicy(*NAMES, encoder=encoder, history=bool(history), **SIZES))


@torch.no_grad()
def test_order_of_units_and_padding_do_not_matter(policy):
    data = batch()
    order = torch.tensor([5, 2, 0, 1, 3, 4])
    moved = {name: value[:, order] if value.shape[1:] == (6,) else value for name, value in data.items()}
    other = moved | {"kind": moved["kind"].where(moved["real"], 1), "x": moved["x"].where(moved["real"], 7.0)}
    chosen = torch.rand(2, 6) < 0.5
    chosen &= data["real"]
    ability = torch.tensor([1, 3])
    found, also = policy(data), policy(other)
    torch.testing.assert_close(
        policy.ability_logits(also, chosen[:, order]), policy.ability_logits(found, chosen), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        policy.target_logits(also, chosen[:, order], ability), policy.target_logits(found, chosen, ability)[:, order],
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    assert policy.target_logits(found, chosen, ability)[1, 4:].tolist() == [-torch.inf] * 2
    assert policy.ability_logits(found, chosen).shape == (2, 4)


@torch.no_grad()
def test_what_is_commanded_depends_on_who_is_selected_and_where_on_the_ability(policy):
    data = batch()
    found, one, other = policy(data), torch.eye(6)[[0, 0]].bool(), torch.eye(6)[[1, 1]].bool()
    assert not torch.allclose(policy.ability_logits(found, one), policy.ability_logits(found, other))
    target = [policy.target_logits(found, one, torch.tensor([ability, ability])) for ability in (0, 2)]
    assert not torch.allclose(*target)
    nobody = torch.zeros(2, 6, dtype=torch.bool)
    assert (policy.append_selected_mean(found, nobody)[:, found.context_BC.shape[1] :] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("name", ["unselected", "uncommanded", "camera", "last_ability", "idle"])
def test_a_policy_reads_what_the_player_did_before_if_it_should(name):
    data = batch()
    other = data | {name: data[name].roll(1, -1) + (name == "idle")}
    for history in (False, True):
        policy = shaken(UnitPolicy(*NAMES, history=history, **SIZES))
        assert torch.equal(policy(data).context_BC, policy(other).context_BC) != history


@pytest.mark.parametrize("selection", ["pointer", "independent"])
def test_a_saved_policy_answers_the_same(policy, selection, tmp_path):
    policy = shaken(UnitPolicy(**(policy.config | {"selection": selection})))
    policy.save(tmp_path / "model")
    found, data = load_model(tmp_path / "model"), batch()
    with torch.no_grad():
        ours, theirs = policy(data), found(data)
        torch.testing.assert_close(theirs.context_BC, ours.context_BC)
        chosen, own = data["real"] & (torch.arange(6) == 2), data["real"]
        answers = [
            model.selection.log_likelihood(known.encoding.elements_BME, known.context_BC, own, chosen)[0]
            for model, known in ((policy, ours), (found, theirs))
        ]
    torch.testing.assert_close(*answers)
    assert found.units.kinds == NAMES[0]


@pytest.mark.parametrize("field", ["encoder", "selection"])
def test_values_that_are_not_allowed(field):
    with pytest.raises(PerceiversError, match=f"{field} = 'other' is not allowed: it must be '"):
        UnitPolicy(*NAMES, **(SIZES | {field: "other"}))


def test_a_config_has_the_arguments_of_its_policy():
    arguments = dict(inspect.signature(UnitPolicy).parameters)
    assert list(PolicyConfig().settings()) == list(arguments)
    defaults = {name: argument.default for name, argument in arguments.items() if name not in NAMED}
    assert {name: getattr(PolicyConfig(), name) for name in defaults} == defaults
    built = PolicyConfig(**dict(zip(NAMED, map(tuple, NAMES), strict=True)), **SIZES).build()
    assert (built.kinds, built.abilities, built.scalars) == NAMES
    assert {name: built.config[name] for name in SIZES} == SIZES
