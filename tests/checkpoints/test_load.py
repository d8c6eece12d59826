"""What `load` is given is seen from its content; whatever is wrong with it is said in a sentence that names it."""

import json
import pickle
import re
from functools import partial

import pytest
import torch
import transformers as hub
from safetensors.torch import load_file, save_file

import perceivers
from perceivers.checkpoints import haiku
from perceivers.checkpoints import transformers as port
from perceivers.model.config import to_tree
from perceivers.model.errors import PerceiversError
from perceivers.tasks import autoencoder, image_classifier, language_model, optical_flow

TRUNK = {"latents": 4, "channels": 16, "depth": 2, "heads": 4}
IMAGES = TRUNK | {"image_size": 16, "query_channels": 12, "classes": 5, "blocks": 2}
ORIGINALS = {
    "fourier": (haiku.FOURIER, partial(image_classifier, bands=3, **IMAGES), {"image_size": 16}),
    "learned": (
        haiku.LEARNED,
        partial(image_classifier, positions="learned", feature_channels=6, position_channels=8, query_residual=False,
                **IMAGES),
        {},
    ),
    "conv": (
        haiku.CONV,
        partial(image_classifier, preprocessing="conv", feature_channels=6, bands=3, **IMAGES),
        {"image_size": 16},
    ),
    "language": (
        haiku.LANGUAGE,
        partial(language_model, length=9, embedding_channels=12, cross_heads=2, decoder_heads=2, qk_channels=8,
                v_channels=16, decoder_qk_channels=8, decoder_v_channels=12, **TRUNK),
        {"cross_heads": 2, "decoder_heads": 2},
    ),
    "flow": (haiku.FLOW, partial(optical_flow, image_size=(8, 12), bands=3, **TRUNK), {"image_size": (8, 12)}),
    "autoencoder": (
        haiku.AUTOENCODER,
        partial(autoencoder, frames=2, image_size=(8, 8), samples_per_frame=32, video_bands=2, audio_bands=4,
                classes=9, label_query_channels=8, output_channels=10, **TRUNK),
        {"frames": 2, "image_size": (8, 8), "samples_per_frame": 32},
    ),
}  # fmt: skip
"""The original's names of a small model's arrays, the model, and what the file does not tell beside the heads."""


@pytest.fixture(params=ORIGINALS)
def original(request, tmp_path):
    """A small model, its arrays as the original stores them, and the settings that its file does not tell."""
    modules, build, untold = ORIGINALS[request.param]
    if build.func is image_classifier:
        untold = untold | {"blocks": 2}
    model = build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tree = {}
    for name, tensor in model.state_dict().items():
        module, leaf = haiku.rename(name, modules).split(" ")
        if leaf == "w":
            tensor = tensor.T if tensor.dim() == 2 else tensor.permute(2, 3, 1, 0)
        if name == haiku_flow:
            tensor = pixels_to_frames(tensor)
        tree.setdefault(module, {})[leaf] = tensor.numpy().copy()
    return model, tree, untold | {"heads": 4}


haiku_flow = "inputs.frames.image.features.projection.weight"


def pixels_to_frames(weight_VF):
    """Patch values of both frames, from [pixel, frame, colour] as ours has them to [frame, pixel, colour]."""
    return weight_VF.unflatten(0, (9, 2, 3)).transpose(0, 1).flatten(0, 2)


def dump(tree, path):
    path.write_bytes(pickle.dumps(tree))
    return path


@pytest.mark.parametrize("name", ["checkpoint.pystate", "model.safetensors", "config.json", "without_suffix"])
def test_a_file_of_the_original_may_have_any_name(original, tmp_path, name):
    model, tree, settings = original
    loaded = perceivers.load(dump(tree, tmp_path / name), **settings)
    assert not loaded.training
    assert to_tree(loaded) == to_tree(model)
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_parameters_and_state_may_lie_apart(original, tmp_path):
    model, tree, settings = original
    state = {module: tree.pop(module) for module in list(tree) if module.endswith("_ema")}
    loaded = perceivers.load(dump({"params": tree, "state": state}, tmp_path / "file"), **settings)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def arrays_of(tree):
    return [(module, leaf) for module, leaves in tree.items() for leaf in leaves]


def test_whichever_array_of_the_original_is_missing_is_an_error(original, tmp_path):
    _, tree, settings = original
    for module, leaf in arrays_of(tree):
        incomplete = {name: dict(leaves) for name, leaves in tree.items()}
        del incomplete[module][leaf]
        with pytest.raises(PerceiversError, match=f"{tmp_path}/file (has no array|is of none|has an array)") as error:
            perceivers.load(dump(incomplete, tmp_path / "file"), **settings)
        if "has no array" in str(error.value) and "depth" not in settings:
            assert f"'{module} {leaf}'" in str(error.value)


def test_whichever_array_of_the_original_has_another_shape_is_an_error(original, tmp_path):
    _, tree, settings = original
    for module, leaf in arrays_of(tree):
        array = tree[module][leaf]
        for wrong in (array[None].repeat(3, 0), array.repeat(3, -1) if array.ndim else array[None].repeat(3)):
            changed = tree | {module: tree[module] | {leaf: wrong}}
            with pytest.raises(PerceiversError, match=f"{tmp_path}/file|cannot be split|not allowed"):
                perceivers.load(dump(changed, tmp_path / "file"), **settings)


def test_a_module_that_the_model_does_not_have_is_an_error(original, tmp_path):
    _, tree, settings = original
    tree["another/linear"] = {"w": torch.ones(2, 3).numpy()}
    with pytest.raises(PerceiversError, match="file has an array 'another/linear w', for which its model has no place"):
        perceivers.load(dump(tree, tmp_path / "file"), **settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"a": 1},
        {"a": [1, 2]},
        {1: {"w": 2}},
        {"params": [1], "state": {}},
        {"params": {}, "state": None},
        {"a": {"w": "text"}},
        {"a": {"w": [1.0]}},
        {"a": {"w": torch.ones(2, 2, 2).numpy()}},
        {"a": {"b": torch.ones(2).numpy().astype(">f4")}},
        {"a": {"b": torch.ones(2).numpy().astype(object)}},
        {"a": {"b": torch.ones(2).numpy().astype(str)}},
        {"a": {"b": torch.ones(2).numpy().view([("field", "f4")])}},
        {},
    ],
)
def test_pickles_of_something_else_are_refused(tmp_path, wrong):
    with pytest.raises(PerceiversError, match=f"^{tmp_path}/file (is|has)"):
        perceivers.load(dump(wrong, tmp_path / "file"))


def test_the_statistics_of_batch_normalisation_are_needed(tmp_path):
    modules, build, _ = ORIGINALS["conv"]
    tree = {}
    for name, tensor in build().state_dict().items():
        module, leaf = haiku.rename(name, modules).split(" ")
        tensor = tensor.T if tensor.dim() == 2 else tensor.permute(2, 3, 1, 0) if tensor.dim() == 4 else tensor
        tree.setdefault(module, {})[leaf] = tensor.numpy().copy()
    params = {module: leaves for module, leaves in tree.items() if not module.endswith("_ema")}
    with pytest.raises(PerceiversError, match=r"has no array '\S+/batchnorm/~/mean_ema average', .* shape \(6,\)"):
        perceivers.load(dump({"params": params, "state": {}}, tmp_path / "file"), heads=4, blocks=2, image_size=16)


def test_settings_of_the_original_can_be_given_and_wrong_ones_are_refused(original, tmp_path):
    model, tree, settings = original
    file = dump(tree, tmp_path / "file")
    loaded = perceivers.load(file, **(settings | {"heads": 2, "dropout": 0.5}))
    assert loaded.encoder.layers[0].attention.heads == 2
    assert loaded.encoder.layers[0].attention.dropout == 0.5
    with pytest.raises(PerceiversError, match=r"has no argument 'head': did you mean 'heads'\?"):
        perceivers.load(file, **settings, head=2)
    with pytest.raises(PerceiversError, match="heads = 'four' is not allowed: it must be of type int"):
        perceivers.load(file, **(settings | {"heads": "four"}))
    with pytest.raises(PerceiversError, match="channels = 16 cannot be split over heads = 3|cannot be split over"):
        perceivers.load(file, **(settings | {"heads": 3}))
    with pytest.raises(PerceiversError, match=r"file: the array '.+' has shape .+, but its model needs .+"):
        perceivers.load(file, **(settings | {"latents": 5}))
