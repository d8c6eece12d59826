"""What `load` is given is seen from its content; whatever is wrong with it is said in a sentence that names it."""

import contextlib
import json
import os
import pickle
import random
import re
from functools import partial

import numpy as np
import pytest
import torch
import transformers as hub
from safetensors.torch import load_file, save_file

import perceivers
from perceivers.adapters import ArrayInput, LabelOutput
from perceivers.adapters.image import IMAGENET_MEAN, IMAGENET_STD
from perceivers.clips.model import AutoencoderConfig
from perceivers.errors import PerceiversError
from perceivers.flow.model import OpticalFlowConfig
from perceivers.images.model import ImageClassifierConfig
from perceivers.model.config import to_config
from perceivers.released import haiku
from perceivers.released import transformers as port
from perceivers.text.model import LanguageConfig

TRUNK = {"latents": 4, "channels": 16, "depth": 2, "heads": 4}
IMAGES = TRUNK | {"image_size": 16, "query_channels": 12, "classes": 5, "num_blocks": 2}
ORIGINALS = {
    "fourier": (haiku.FOURIER, partial(ImageClassifierConfig, bands=3, **IMAGES), {"image_size": 16}),
    "learned": (
        haiku.LEARNED,
        partial(ImageClassifierConfig, positions="learned", feature_channels=6, position_channels=8,
                query_residual=False, **IMAGES),
        {},
    ),
    "conv": (
        haiku.CONV,
        partial(ImageClassifierConfig, preprocessing="conv", feature_channels=6, bands=3, **IMAGES),
        {"image_size": 16},
    ),
    "language": (
        haiku.LANGUAGE,
        partial(LanguageConfig, length=9, embedding_channels=12, cross_heads=2, decoder_heads=2, qk_channels=8,
                v_channels=16, decoder_qk_channels=8, decoder_v_channels=12, **TRUNK),
        {"cross_heads": 2, "decoder_heads": 2},
    ),
    "flow": (haiku.FLOW, partial(OpticalFlowConfig, image_size=(8, 12), bands=3, **TRUNK), {"image_size": (8, 12)}),
    "autoencoder": (
        haiku.AUTOENCODER,
        partial(AutoencoderConfig, frames=2, image_size=(8, 8), samples_per_frame=32, video_bands=2, audio_bands=4,
                classes=9, label_query_channels=8, output_channels=10, **TRUNK),
        {"frames": 2, "image_size": (8, 8), "samples_per_frame": 32},
    ),
}  # fmt: skip
"""The original's names of a small model's arrays, the model, and what the file does not tell beside the heads."""


@pytest.fixture(params=ORIGINALS)
def original(request, tmp_path):
    """A small model, its arrays as the original stores them, and the settings that its file does not tell."""
    modules, build, untold = ORIGINALS[request.param]
    if build.func is ImageClassifierConfig:
        untold = untold | {"num_blocks": 2}
    model = build().build().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tree = {}
    for name, tensor in model.state_dict().items():
        module, leaf = haiku.rename_array(name, modules).split(" ")
        if leaf == "w":
            tensor = tensor.T if tensor.dim() == 2 else tensor.permute(2, 3, 1, 0)
        if name == "inputs.frames.image.features.projection.weight":
            tensor = pixels_to_frames(tensor)
        if leaf == "pos_embs":
            tensor = tensor.reshape(-1, tensor.shape[-1])
        tree.setdefault(module, {})[leaf] = tensor.numpy().copy()
    return model, tree, untold | {"heads": 4}


def pixels_to_frames(weight_VF):
    """Patch values of both frames, from [pixel, frame, color] as ours has them to [frame, pixel, color]."""
    return weight_VF.unflatten(0, (9, 2, 3)).transpose(0, 1).flatten(0, 2)


def dump(tree, path):
    path.write_bytes(pickle.dumps(tree))
    return path


def test_a_file_of_the_original_is_known_by_its_content(original, tmp_path):
    model, tree, settings = original
    loaded = perceivers.load(dump(tree, tmp_path / "model.safetensors"), **settings)
    assert not loaded.training
    assert to_config(loaded) == to_config(model)
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_parameters_and_state_may_lie_apart(original, tmp_path):
    model, tree, settings = original
    state = {module: tree.pop(module) for module in list(tree) if module.endswith("_ema")}
    loaded = perceivers.load(dump({"params": tree, "state": state}, tmp_path / "file"), **settings)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def some_arrays(tree, count):
    arrays = [(module, leaf) for module, leaves in tree.items() for leaf in leaves]
    return random.Random(0).sample(arrays, count)


def test_a_missing_array_of_the_original_is_named(original, tmp_path):
    _, tree, settings = original
    told = ("scale", "offset", "b", "average")  # of other arrays the shape is looked at, or they mark the kind of file
    arrays = [(module, leaf) for module, leaf in some_arrays(tree, 16) if leaf in told][:5]
    for module, leaf in arrays:
        incomplete = {name: dict(leaves) for name, leaves in tree.items()}
        del incomplete[module][leaf]
        message = re.escape(f"{tmp_path}/file has no array '{module} {leaf}', which its model needs with shape")
        with pytest.raises(PerceiversError, match=message):
            perceivers.load(dump(incomplete, tmp_path / "file"), **settings)


def test_an_array_of_the_original_with_another_shape_is_an_error(original, tmp_path):
    _, tree, settings = original
    for module, leaf in some_arrays(tree, 5):
        array = tree[module][leaf]
        changed = tree | {module: tree[module] | {leaf: np.concatenate([np.atleast_1d(array)] * 2, -1)}}
        with pytest.raises(PerceiversError, match=f"{tmp_path}/file: the array|cannot be split|is not allowed"):
            perceivers.load(dump(changed, tmp_path / "file"), **settings)


def test_whatever_array_of_the_original_is_missing_or_misshapen_reading_ends_in_a_sentence(original, tmp_path):
    _, tree, settings = original
    for module, leaf in some_arrays(tree, sum(map(len, tree.values()))):
        array = np.atleast_1d(tree[module][leaf])
        for wrong in (None, array[None], array[:, None], array[:0], array.sum(), np.concatenate([array] * 3, -1)):
            damaged = tree | {module: {**tree[module], leaf: wrong}}
            if wrong is None:
                damaged[module].pop(leaf)
            with contextlib.suppress(PerceiversError):
                haiku.read_checkpoint(dump(damaged, tmp_path / "file"), settings)


def test_a_module_that_the_model_does_not_have_is_an_error(original, tmp_path):
    _, tree, settings = original
    tree["another/linear"] = {"w": torch.ones(2, 3).numpy()}
    with pytest.raises(PerceiversError, match="file has an array 'another/linear w', which its model does not have"):
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


def test_the_statistics_of_batch_normalization_are_needed(tmp_path):
    modules, build, _ = ORIGINALS["conv"]
    tree = {}
    for name, tensor in build().build().state_dict().items():
        module, leaf = haiku.rename_array(name, modules).split(" ")
        tensor = tensor.T if tensor.dim() == 2 else tensor.permute(2, 3, 1, 0) if tensor.dim() == 4 else tensor
        tree.setdefault(module, {})[leaf] = tensor.numpy().copy()
    params = {module: leaves for module, leaves in tree.items() if not module.endswith("_ema")}
    with pytest.raises(PerceiversError, match=r"has no array '\S+/batchnorm/~/mean_ema average', .* shape \(6,\)"):
        perceivers.load(dump({"params": params, "state": {}}, tmp_path / "file"), heads=4, num_blocks=2, image_size=16)


def test_settings_of_the_original_can_be_given_and_wrong_ones_are_refused(original, tmp_path):
    _, tree, settings = original
    file = dump(tree, tmp_path / "file")
    loaded = perceivers.load(file, **(settings | {"heads": 2, "dropout": 0.5}))
    assert loaded.encoder.layers[0].attention.heads == 2
    assert loaded.encoder.layers[0].attention.dropout.p == 0.5
    with pytest.raises(PerceiversError, match=r"has no argument 'head': did you mean 'heads'\?"):
        perceivers.load(file, **settings, head=2)
    with pytest.raises(PerceiversError, match="heads = 'four' is not allowed: it must be of type int"):
        perceivers.load(file, **(settings | {"heads": "four"}))
    with pytest.raises(PerceiversError, match=r"channels = \d+ cannot be split over heads = 3"):
        perceivers.load(file, **(settings | {"heads": 3}))
    with pytest.warns(UserWarning, match=r"file: partial: encoder.latents \(4 x 16 to 5 x 16\)\.$"):
        more = perceivers.load(file, **(settings | {"latents": 5}))
    torch.testing.assert_close(more.encoder.latents[:4], loaded.encoder.latents)


SMALL = {
    "num_latents": 4,
    "d_latents": 16,
    "num_blocks": 2,
    "num_self_attends_per_block": 1,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
    "image_size": 6,
    "num_labels": 3,
    "architectures": [port.LEARNED],
    "model_type": "perceiver",
}
"""A small model of `transformers`: which one is told by the config."""

PREPROCESSING = {
    "size": {"height": 6, "width": 6},
    "crop_size": {"height": 8, "width": 8},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
}


@pytest.fixture(scope="module")
def their_arrays():
    torch.manual_seed(3)
    config = hub.PerceiverConfig(**{name: value for name, value in SMALL.items() if name != "model_type"})
    return hub.PerceiverForImageClassificationLearned(config).state_dict()


@pytest.fixture
def folder(tmp_path, their_arrays):
    save_file(their_arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    return tmp_path


def configure(folder, **changes):
    config = {name: value for name, value in (SMALL | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))


def in_a_bin(folder, contents):
    (folder / "model.safetensors").unlink()
    torch.save(contents, folder / "pytorch_model.bin")


def latents(model):
    return model.encoder.latents


def test_a_folder_of_transformers_is_known_by_its_config(folder, their_arrays):
    model = perceivers.load(folder)
    assert not model.training
    assert torch.equal(latents(model), their_arrays["perceiver.embeddings.latents"])
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(a.numel() for a in their_arrays.values())


def test_a_folder_of_ours_is_known_by_its_config(folder):
    model = perceivers.load(folder)
    model.save(folder)
    assert json.loads((folder / "config.json").read_text())["format"] == "perceivers"
    assert to_config(perceivers.load(str(folder))) == to_config(model)


def test_pickled_weights_of_transformers_are_the_same_model(folder, their_arrays):
    want = perceivers.load(folder).state_dict()
    in_a_bin(folder, their_arrays)
    assert not (folder / "model.safetensors").exists()
    got = perceivers.load(folder).state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


class Command:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_weights_run_nothing(folder, their_arrays, legacy):
    contents = their_arrays | {"more": Command(folder / "ran")}
    (folder / "model.safetensors").unlink()
    torch.save(contents, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(PerceiversError, match=f"{folder}/pytorch_model.bin cannot be read .* holds more than arrays"):
        perceivers.load(folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("contents", [[torch.ones(2)], torch.ones(2), {"a": 1}, {"a": [torch.ones(2)]}])
def test_pickled_weights_that_are_not_arrays_by_name_are_refused(folder, contents):
    in_a_bin(folder, contents)
    with pytest.raises(PerceiversError, match=r"pytorch_model\.bin does not hold the arrays of a model by their names"):
        perceivers.load(folder)


@pytest.mark.parametrize("contents", [b"", b"text", b"PK\x03\x04", pickle.dumps({"a": 1}), b"\x80\x02]q", b"\n\n"])
def test_damaged_pickled_weights_are_refused(folder, contents):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(contents)
    with pytest.raises(PerceiversError, match=r"pytorch_model\.bin (cannot be read|does not hold)"):
        perceivers.load(folder)


def test_truncated_pickled_weights_are_refused(folder, their_arrays):
    in_a_bin(folder, their_arrays)
    file = folder / "pytorch_model.bin"
    whole = file.read_bytes()
    for length in (len(whole) // 2, len(whole) - 10):
        file.write_bytes(whole[:length])
        with pytest.raises(PerceiversError, match=r"pytorch_model\.bin cannot be read"):
            perceivers.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bert"}, "config.json describes a model of type 'bert', but only 'perceiver' can be loaded"),
        ({"architectures": ["PerceiverForSequenceClassification"]}, "'PerceiverForSequenceClassification', which is"),
        ({"architectures": ...}, "architecture None, which is not one of PerceiverForMaskedLM, "),
        ({"architectures": []}, "architecture None, which is not one of"),
        ({"architectures": None}, "architecture None, which is not one of"),
        ({"cross_attention_shape_for_attention": "q"}, "cross_attention_shape_for_attention = 'q' is not .*only 'kv'"),
        ({"use_query_residual": False}, "use_query_residual = False is not supported, only True"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported, only 'gelu' or 'gelu_new' or"),
        (
            {"num_latents": 5},
            r"array 'perceiver.embeddings.latents' has shape \(4, 16\), but its model needs \(5, 16\)",
        ),
        ({"num_self_attends_per_block": 2}, "has no array 'perceiver.encoder.self_attends.1.attention.self.layernorm1"),
        ({"num_latents": "many"}, "latents = 'many' is not allowed: it must be of type int"),
        ({"architectures": [port.FOURIER]}, "safetensors has no array|safetensors: the array"),
        ({"id2label": ["a", "b", "c"]}, "config.json has a field of the wrong type .*damaged"),
        ({"id2label": {"first": "a"}}, "config.json has a field of the wrong type .*'first'"),
        ({"num_labels": "three"}, "config.json has a field of the wrong type .*damaged"),
        ({"architectures": [port.AUTOENCODER], "output_shape": 3}, "config.json has a field of the wrong type .*dam"),
    ],
)
def test_configs_of_models_that_are_not_ours_are_refused(folder, changes, message):
    configure(folder, **changes)
    with pytest.raises(PerceiversError, match=message):
        perceivers.load(folder)


def edit(folder, change):
    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


WEIGHT = "perceiver.decoder.decoder.final_layer.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors cannot be read .* truncated or"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-50]),
            "model.safetensors cannot be read .* truncated or damaged",
        ),
        (lambda f: edit(f, lambda a: a.pop(WEIGHT)), rf"has no array '{WEIGHT}', .* with shape \(3, 16\)"),
        (
            lambda f: edit(f, lambda a: a.update(more=torch.ones(1))),
            "has an array 'more', which its model does not have",
        ),
        (
            lambda f: edit(f, lambda a: a.update({WEIGHT: a[WEIGHT].T.contiguous()})),
            rf"the array '{WEIGHT}' has shape \(16, 3\), but its model needs \(3, 16\)",
        ),
        (
            lambda f: edit(f, lambda a: a.update({WEIGHT: a[WEIGHT][:, :0].contiguous()})),
            rf"the array '{WEIGHT}' has shape \(3, 0\), but its model needs \(3, 16\)",
        ),
    ],
)
def test_damaged_folders_of_transformers_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(PerceiversError, match=message):
        perceivers.load(folder)


def test_an_empty_array_is_not_taken_for_one_number(folder):
    bias = WEIGHT.replace("weight", "bias")
    edit(folder, lambda a: a.update({WEIGHT: torch.ones(1, 16), bias: torch.ones(0)}))
    configure(folder, num_labels=1)
    with pytest.raises(PerceiversError, match=rf"'{bias}' has shape \(0,\), but its model needs \(1,\)"):
        perceivers.load(folder)


def test_labels_are_named_in_the_order_of_their_numbers(folder):
    edit(folder, lambda a: a.update({WEIGHT: torch.ones(12, 16), WEIGHT.replace("weight", "bias"): torch.ones(12)}))
    names = {str(index): f"name {index}" for index in (11, 2, 10, 9, 0, 1, 3, 4, 5, 6, 7, 8)}
    configure(folder, num_labels=..., id2label=names)
    label = perceivers.load(folder).outputs["label"]
    assert label.names == [f"name {index}" for index in range(12)]
    assert label.classes == 12


def test_labels_without_names_stay_without(folder):
    assert perceivers.load(folder).outputs["label"].names is None
    configure(folder, num_labels=..., id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    assert perceivers.load(folder).outputs["label"].names is None


def test_preprocessing_arrives(folder):
    without = perceivers.load(folder).inputs["image"]
    assert (without.normalization, without.crop) == ((IMAGENET_MEAN, IMAGENET_STD), 224 / 256)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    image = perceivers.load(folder).inputs["image"]
    assert image.normalization == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert image.crop == 6 / 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 224}, "preprocessor_config.json does not say .* as expected"),
        ({"size": ...}, "preprocessor_config.json does not say .* as expected"),
        ({"crop_size": {"width": 8}}, "preprocessor_config.json does not say .* as expected"),
        ({"crop_size": {"height": 0}}, "preprocessor_config.json does not say .* as expected"),
        ({"crop_size": {"height": "8"}}, "preprocessor_config.json does not say .* as expected"),
        ({"image_mean": 0.5}, "preprocessor_config.json does not say .* as expected"),
        ({"image_mean": None}, "preprocessor_config.json does not say .* as expected"),
        ({"image_std": ["a", "b", "c"]}, "std = .* is not allowed"),
        ({"image_std": [1.0]}, "mean has 3 colors, but std has 1"),
    ],
)
def test_damaged_preprocessing_is_refused(folder, changes, message):
    config = {name: value for name, value in (PREPROCESSING | changes).items() if value is not ...}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(PerceiversError, match=message):
        perceivers.load(folder)


def test_preprocessing_that_is_no_json_is_refused(folder):
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(PerceiversError, match=r"preprocessor_config\.json is not valid JSON"):
        perceivers.load(folder)


def test_settings_of_transformers_can_be_changed(folder):
    model = perceivers.load(folder, heads=2, checkpointing=True, class_names=["a", "b", "c"])
    assert model.encoder.layers[0].attention.heads == 2
    assert model.encoder.checkpointing
    assert model.outputs["label"].names == ["a", "b", "c"]
    with pytest.raises(PerceiversError, match=r"ImageClassifierConfig has no argument 'head': did you mean 'heads'\?"):
        perceivers.load(folder, head=2)


def test_settings_of_our_own_models_can_be_changed_and_what_is_fresh_is_said(folder, recwarn):
    model = perceivers.load(folder)
    model.save(folder / "ours")
    same = perceivers.load(folder / "ours", heads=2, dropout=0.1, classes=3, dtype="bfloat16", device="cpu")
    assert (same.config["heads"], same.config["dropout"]) == (2, 0.1)
    assert same.encoder.latents.dtype == torch.bfloat16
    assert not recwarn.list
    for source in (folder, folder / "ours"):
        with pytest.warns(UserWarning, match=r"fresh: heads\.label\.weight, heads\.label\.bias \(2 instead of 3\)\.$"):
            other = perceivers.load(source, classes=2)
        assert other.outputs["label"].classes == len(other.heads["label"].weight) == 2
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]) or name.startswith("heads"), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bands": 7}, "ours holds a model on which bands has no effect: leave it out"),
        ({"head": 2}, r"ImageClassifierConfig has no argument 'head': did you mean 'heads'\?"),
        ({"classes": 2, "class_names": ["a"]}, "1 names were given for classes = 2"),
        ({"init": "x"}, "init is a setting of a training run, not of a model"),
        ({"classes": [LanguageConfig]}, "classes is the number of classes: pass your own Python classes as custom_cl"),
        ({"dtype": "float8"}, "dtype = 'float8' is not allowed"),
        ({"device": "gpu"}, "device = 'gpu' cannot be used here"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(folder, settings, message):
    perceivers.load(folder).save(folder / "ours")
    with pytest.raises(PerceiversError, match=message):
        perceivers.load(folder / "ours", **settings)


def test_settings_of_models_that_no_config_describes_are_refused(tmp_path):
    model = perceivers.PerceiverIO({"x": ArrayInput(3)}, {"y": LabelOutput(2)}, 4, 8, 1, heads=1)
    model.save(tmp_path)
    with pytest.raises(PerceiversError, match="holds a model that no installed config describes: heads cannot be giv"):
        perceivers.load(tmp_path, heads=2)


def test_a_name_that_is_not_in_the_cache_is_refused_offline():
    with pytest.raises(PerceiversError, match=r"^nobody/no-such-model is neither a folder nor a file here"):
        perceivers.load("nobody/no-such-model")
    with pytest.raises(PerceiversError, match=r"^no/such/folder is neither a folder nor a file here"):
        perceivers.load("no/such/folder")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(PerceiversError, match=f"{tmp_path} is not a saved model: it has no config.json"):
        perceivers.load(tmp_path)
