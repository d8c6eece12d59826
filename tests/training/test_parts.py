import pytest
import torch

from perceivers import PerceiversError
from perceivers.training.optimization import Optimization
from perceivers.training.parts import distance_from_output, freeze_parts
from tests.support.causal import causal
from tests.support.fine_tuning import config
from tests.support.models import classifier, coder
from tests.support.starcraft import small_policy


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_parts_are_beginnings_of_names():
    model = coder()
    names = trained(model)
    freeze_parts(model, None, None)
    assert trained(model) == names
    freeze_parts(model, ["head", "encoder.layers.0.mlp"], None)
    beginnings = ("projection.", "heads.", "outputs.", "encoder.layers.0.mlp.")
    assert trained(model) == {name for name in names if name.startswith(beginnings)}
    assert {name.partition(".")[0] for name in trained(model)} == {"projection", "heads", "outputs", "encoder"}
    freeze_parts(model, None, ["input_padding", "encoder.layers.0.mlp.hidden.weight"])
    frozen = {name for name in names if name.startswith("input_padding.")} | {"encoder.layers.0.mlp.hidden.weight"}
    assert trained(model) == names - frozen


def test_frozen_batch_normalization_keeps_its_statistics():
    model = classifier(preprocessing="conv", feature_channels=6, image_size=16).train()
    norm = model.inputs["image"].features.norm
    for parts, changes in ((["head"], False), (["inputs"], True)):
        freeze_parts(model.train(), parts, None)
        before = norm.running_mean.clone()
        model({"image": torch.rand(4, 3, 16, 16)})
        assert torch.equal(before, norm.running_mean) == (not changes)


@pytest.mark.parametrize(
    ("train", "freeze", "message"),
    [
        (["decoder", "hed"], None, r"model\.train: the model has no part 'hed': did you mean 'head'\?"),
        (
            None,
            ["encoder.layer"],
            r"model\.freeze: the model has no part 'encoder\.layer': did you mean 'encoder\.layers'",
        ),
        (["enc"], None, "has no part 'enc'"),
        (["head"], ["encoder"], r"model\.freeze = .* is not allowed: it must be left out if model\.train is given"),
        ([], None, r"model\.train = \[\] is not allowed: it must be parts that leave something to train"),
    ],
)
def test_parts_that_do_not_exist(train, freeze, message):
    with pytest.raises(PerceiversError, match=message):
        freeze_parts(classifier(), train, freeze)


def test_learning_rates_fall_with_the_distance_from_the_output():
    model = classifier(depth=3, preprocessing="conv", feature_channels=6, image_size=16)
    freeze_parts(model, None, ["encoder.layers.1"])
    for optimizer in ("adamw", "lamb", "muon"):
        ((built,), _) = Optimization(optimizer=optimizer, lr=0.8, layer_decay=0.5).build(model, 10)
        rates = {parameter: group["initial_lr"] for group in built.param_groups for parameter in group["params"]}
        found = {name: rates.get(parameter) for name, parameter in model.named_parameters()}
        expected = {
            "heads.label.weight": 0.8,
            "decoder.norm_x.weight": 0.8,
            "encoder.layers.1.mlp.hidden.weight": None,
            "encoder.layers.0.mlp.hidden.weight": 0.1,
            "encoder.latents": 0.05,
            "encoder.cross_attentions.0.norm_x.bias": 0.05,
            "inputs.image.features.convolution.weight": 0.025,
        }
        assert {name: found[name] for name in expected} == expected
        assert found["encoder.layers.2.mlp.hidden.weight"] == 0.4
        assert set(rates) == {parameter for parameter in model.parameters() if parameter.requires_grad}


def test_distances_in_other_models():
    bert = config("bert_bytes").build()
    names = ["inputs.text.embedding.weight", "norm_x.weight", "layers.0.mlp.hidden.weight", "norm.weight"]
    assert [distance_from_output(name, bert) for name in names] == [3, 3, 1, 0]
    names = [
        "embedding.weight",
        "cross_attention.mlp.hidden.weight",
        "layers.1.norm_h.bias",
        "norm.bias",
        "output.bias",
    ]
    assert [distance_from_output(name, causal()) for name in names] == [4, 3, 1, 0, 0]
    policy = small_policy()
    names = [name for name, _ in policy.named_parameters() if distance_from_output(name, policy) == 3]
    assert {name.partition(".")[0] for name in names} == {"units", "numbers", "encoder"}
    assert distance_from_output("encoder.perceiver.encoder.layers.0.mlp.hidden.weight", policy) == 1
    assert distance_from_output("selection.query.weight", policy) == 0
