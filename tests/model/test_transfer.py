"""Weights of a pretrained model go where they belong, and the report says which do not."""

import pytest
import torch

import perceivers
from perceivers import PerceiversError
from perceivers.adapters import ArrayOutput, LabelOutput
from perceivers.checkpoints.load import load_model
from perceivers.clips.model import AutoencoderConfig, ClipClassifierConfig
from perceivers.model.config import to_config
from perceivers.model.positions import FourierPositions, LearnedPositions
from perceivers.model.transfer import transfer_weights
from perceivers.presets import find_preset, list_models
from perceivers.starcraft.policy import PolicyConfig
from tests.support.models import classifier, coder, hearer, labels, language, optical, shaken
from tests.support.starcraft import small_policy


@pytest.mark.parametrize("name", list_models())
def test_a_config_is_read_from_the_model_that_it_builds(name):
    config = find_preset(name).config
    with torch.device("meta"):
        assert type(config).from_model(config.build()) == config


SMALL = {"latents": 4, "channels": 8, "depth": 1, "heads": 2}


@pytest.mark.parametrize(
    "config",
    [
        ClipClassifierConfig(**SMALL, frames=None, sound="conv", filters=5, samples=256, samples_per_patch=16),
        ClipClassifierConfig(**SMALL, sound=None, multilabel=False, classes=2, class_names=["a", "b"]),
        AutoencoderConfig(**SMALL, samples_per_frame=None, classes=None, image_size=(8, 12), frames=3),
        PolicyConfig(kinds=("a", "b"), abilities=("c",), scalars=("d", "e"), encoder="transformer"),
    ],
    ids=["conv", "silent", "video", "policy"],
)
def test_a_config_with_parts_left_out_is_read(config, tmp_path):
    model = config.build()
    assert type(config).from_model(model) == config
    model.save(tmp_path)
    assert type(config).from_model(load_model(tmp_path)) == config


def test_a_model_of_another_kind_has_no_such_config():
    kinds = {type(find_preset(name).config) for name in list_models()} | {PolicyConfig}
    for make in (classifier, optical, coder, hearer, language, small_policy):
        assert sum(kind.from_model(make()) is not None for kind in kinds) == 1, make
    other = classifier(mean=(0.5,), std=(0.5,))
    other.inputs["image"].config["positions"].config["endpoint"] = False
    assert all(kind.from_model(other) is None for kind in kinds)


def equal(one, other, name):
    return torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_a_head_for_other_classes_is_fresh_and_everything_else_is_taken():
    old, new = classifier(classes=3, class_names=["a", "b", "c"]), classifier(classes=2, class_names=["x", "y"])
    fresh = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    found = transfer_weights(old, new)
    heads = ["heads.label.weight", "heads.label.bias"]
    assert found.fresh == dict.fromkeys(heads, "2 instead of 3")
    assert found.taken.keys() | heads == fresh.keys()
    assert found.partial | found.resized | found.left_over == {}
    for name, tensor in fresh.items():
        assert torch.equal(new.state_dict()[name], tensor) if name in heads else equal(old, new, name)
    assert found.describe() == [
        f"taken: {len(found.taken)} weights",
        "fresh: heads.label.weight, heads.label.bias (2 instead of 3)",
    ]
    with pytest.raises(
        PerceiversError, match=r"x does not have exactly .* \(fresh: heads\.label\.weight, heads\.label"
    ):
        found.check_complete("x")


def test_classes_go_by_their_names():
    old = classifier(classes=3, class_names=["crane", "b", "crane"])
    new = classifier(classes=3, class_names=["b", "crane", "crane"])
    found = transfer_weights(old, new)
    assert torch.equal(new.heads["label"].weight, old.heads["label"].weight[[1, 0, 2]])
    assert torch.equal(new.heads["label"].bias, old.heads["label"].bias[[1, 0, 2]])
    found.check_complete("x")
    more = classifier(classes=4, class_names=["x", "b", "y", "z"])
    fresh = more.heads["label"].weight.clone()
    found = transfer_weights(old, more)
    assert torch.equal(more.heads["label"].weight[1], old.heads["label"].weight[1])
    assert torch.equal(more.heads["label"].weight[[0, 2, 3]], fresh[[0, 2, 3]])
    assert found.partial["heads.label.weight"] == "1 of 4 kept"


def test_the_prediction_for_another_image_size_uses_the_frequencies_of_training():
    old = classifier(image_size=12)
    new = classifier(image_size=16)
    transfer_weights(old, new).check_complete("x")
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(new({"image": images})["label"], old({"image": images})["label"])
    assert new.inputs["image"].size == (16, 16)


def test_the_frequencies_of_a_pretrained_model_are_saved(tmp_path):
    old, new = classifier(image_size=12), classifier(image_size=16)
    transfer_weights(old, new)
    new.save(tmp_path)
    again = perceivers.load(tmp_path)
    assert again.inputs["image"].positions.resolution == (12, 12)
    smaller = perceivers.load(tmp_path, image_size=8)
    assert smaller.inputs["image"].positions.resolution == (12, 12)
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(smaller({"image": images})["label"], old({"image": images})["label"])


def test_learned_positions_of_an_image_are_interpolated():
    old = classifier(positions="learned", image_size=6, position_channels=4)
    new = classifier(positions="learned", image_size=12, position_channels=4)
    ramp = torch.arange(6.0)
    table = torch.stack([ramp[:, None].expand(6, 6), ramp.expand(6, 6)], -1).flatten(0, 1).repeat(1, 2)
    old.inputs["image"].positions.table_SF.data = table
    found = transfer_weights(old, new)
    assert found.resized == {"inputs.image.positions.table_SF": "12 x 12 instead of 6 x 6"}
    found.check_complete("x")
    resized = new.inputs["image"].positions.table_SF.unflatten(0, (12, 12))
    between = (torch.arange(12) + 0.5) / 2 - 0.5  # of the inner pixels; at the border it is flat
    torch.testing.assert_close(resized[3:9, 3:9, 0], between[3:9, None].expand(6, 6), atol=1e-4, rtol=0)
    torch.testing.assert_close(resized[3:9, 3:9, 1], between[3:9].expand(6, 6), atol=1e-4, rtol=0)


def test_a_longer_text_keeps_the_vectors_of_its_first_tokens():
    old, longer, shorter = language(length=20), language(length=30), language(length=10)
    tokens = torch.randint(6, 262, (2, 10))
    assert set(transfer_weights(old, longer).partial) == set(transfer_weights(old, shorter).partial)
    for new in (longer, shorter):
        torch.testing.assert_close(new({"text": tokens})["text"], old({"text": tokens})["text"])


def test_task_heads_go_by_tasks_and_class_names():
    old = labels({"CoLA": 2, "RTE": 2}, {"RTE": ["yes", "no"]})
    new = labels({"RTE": 2, "MNLI": 3}, {"RTE": ["yes", "no"]})
    fresh = [parameter.clone() for parameter in new.outputs["label"].parameters()]
    transfer_weights(old, new)
    query, *heads = new.outputs["label"].parameters()
    assert torch.equal(query[0, 0], old.outputs["label"].query[0, 1])
    assert torch.equal(query[0, 1], fresh[0][0, 1])
    assert all(map(torch.equal, heads, fresh[1:]))  # the first task was CoLA, which is another
    same = labels({"CoLA": 2, "RTE": 2}, {"RTE": ["no", "yes"]})
    transfer_weights(old, same)
    assert torch.equal(
        same.outputs["label"].heads.heads[1][2].weight, old.outputs["label"].heads.heads[1][2].weight.flip(0)
    )


def test_modalities_are_left_out_and_added():
    old = coder()
    without = coder(classes=None, samples_per_frame=None)
    found = transfer_weights(old, without)
    assert not found.fresh
    assert equal(old, without, "encoder.layers.0.mlp.hidden.weight")
    assert {name.split(".")[-1] for name in found.left_over if "padding" in name} >= {"label", "audio"}
    again = coder()
    found = transfer_weights(without, again)
    assert "input_padding.masks.label" in found.fresh
    assert equal(again, without, "encoder.latents")


def test_the_padding_of_a_modality_keeps_its_channels():
    old, new = coder(classes=5), coder(classes=7)
    assert old.input_padding.channels == new.input_padding.channels
    transfer_weights(old, new)
    assert torch.equal(new.input_padding.vectors["label"], old.input_padding.vectors["label"][2:])


def test_a_policy_knows_units_and_abilities_by_name():
    old, new = shaken(small_policy()), shaken(small_policy(kinds=["Nexus", "Probe"], scalars=["vespene", "supply"]))
    fresh = new.units.embedding.weight.clone()
    transfer_weights(old, new)
    assert torch.equal(new.units.embedding.weight[[0, 2]], old.units.embedding.weight[[0, 2]])
    assert torch.equal(new.units.embedding.weight[1], fresh[1])
    weight, before = new.numbers.layers[0].weight, old.numbers.layers[0].weight
    assert torch.equal(weight[:, 0], before[:, 1])
    assert torch.equal(weight[:, 2:], before[:, 2:])
    assert equal(old, new, "ability_vector")


def test_a_model_with_other_outputs_is_saved_and_loaded(tmp_path):
    old = classifier(classes=3, class_names=["a", "b", "c"]).to(torch.float64)
    outputs = {"label": LabelOutput(2, 16, ["c", "d"]), "map": ArrayOutput(1, FourierPositions((4,), 2))}
    new = old.with_outputs(outputs)
    assert new.encoder.latents.dtype == torch.float64
    assert not new.training
    images = torch.rand(2, 3, 12, 12)
    assert torch.equal(new.encode({"image": images}).latents, old.encode({"image": images}).latents)
    assert torch.equal(new.heads["label"].weight[0, :16], old.heads["label"].weight[2])
    new.save(tmp_path)
    again = perceivers.load(tmp_path)
    assert to_config(again) == to_config(new)
    torch.testing.assert_close(again({"image": images}), new({"image": images}))
    with torch.no_grad():
        new.encoder.latents += 1
        new.outputs["label"].query += 1
    assert not equal(old, new, "encoder.latents")
    same = old.with_outputs(dict(old.outputs.items()))
    torch.testing.assert_close(same({"image": images}), old({"image": images}))
    assert same.outputs["label"].query is not old.outputs["label"].query


def test_positions_of_another_kind_are_not_adopted():
    assert LearnedPositions((2, 2), 3).adopt(FourierPositions((4, 4), 1)) == {}
    fourier = FourierPositions((4, 4), 1)
    fourier.adopt(FourierPositions((3,), 1))
    assert fourier.resolution == (4, 4)
