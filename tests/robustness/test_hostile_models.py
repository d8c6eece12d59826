"""Models and configs whose files promise what they do not hold, were changed, or are something else."""

import itertools
import json
import os
import pickle
import resource
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import perceivers
from perceivers.errors import PerceiversError
from perceivers.images.classify import classify_image
from perceivers.model.meta import build_on_meta
from perceivers.model.saving import describe_model
from perceivers.released.transformers import read_pickled
from perceivers.released.unpickling import read_pickle
from perceivers.text.tokenizers import SentencePiece
from perceivers.training.config import read_config
from tests.robustness.readers import YAML, binary, exported, haiku_pickle, image_file
from tests.support import models

HUGE = 10**9


@pytest.fixture
def folder(tmp_path):
    models.classifier().save(tmp_path / "model")
    return tmp_path / "model"


def change_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def refused_at_once(read, message):
    """Checks that reading fails with a message and in 100 MB at most: before anything of the size is made."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PerceiversError, match=message):
        read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**5


def test_a_changed_bit_of_the_weights_is_noticed(folder):
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(PerceiversError, match=r"model\.safetensors was changed after it was saved"):
        perceivers.load(folder)
    change_config(folder, lambda config: config.pop("sha256"))
    assert perceivers.load(folder).encoder.latents.shape == (6, 16), "folders of release 0.1 have no checksum"


def test_changed_arrays_are_noticed(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.latents"] = tensors["encoder.latents"] + 1
    save_file(tensors, file)
    with pytest.raises(PerceiversError, match=r"model\.safetensors was changed after it was saved"):
        perceivers.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite_are_named(tmp_path, value, dtype):
    model = models.classifier().to(dtype)
    model.encoder.latents.data[3, 5] = value
    model.save(tmp_path)
    with pytest.raises(PerceiversError, match=r"model\.safetensors: encoder\.latents has NaN or infinite values"):
        perceivers.load(tmp_path)


def test_weights_of_transformers_that_are_not_finite_are_named(tmp_path):
    model = models.optical(feature_channels=64, bands=64)
    model.encoder.latents.data[3, 5] = torch.nan
    with pytest.raises(PerceiversError, match=r"perceiver\.embeddings\.latents has NaN or infinite values"):
        perceivers.load(exported(lambda: model)(tmp_path))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_another_kind_are_refused(folder, dtype):
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.latents"] = tensors["encoder.latents"].to(dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(PerceiversError, match=f"encoder.latents has numbers of type {dtype}, but torch.float32"):
        perceivers.load(folder)


def test_answers_that_are_not_finite_name_the_output(tmp_path):
    model = models.classifier()
    model.heads["label"].weight.data[:] = torch.finfo(torch.float32).max
    image = image_file("x.png")(tmp_path)
    with pytest.raises(PerceiversError, match="the model's output 'label' has NaN or infinite values"):
        classify_image(model, [image])


@pytest.mark.parametrize("field", ["latents", "channels", "depth"])
@pytest.mark.parametrize("size", [HUGE, 10**18, 10**30])
def test_sizes_that_the_weights_do_not_have(folder, field, size):
    change_config(folder, lambda config: config["model"].update({field: size}))
    message = "belongs to another model|cannot be built|parameter arrays|more than 64 bits"
    refused_at_once(lambda: perceivers.load(folder), message)


@pytest.mark.parametrize(
    ("field", "size"),
    [("num_latents", HUGE), ("d_latents", HUGE), ("num_self_attends_per_block", HUGE), ("num_labels", HUGE)],
)
def test_sizes_that_the_weights_of_transformers_do_not_have(tmp_path, field, size):
    path = binary(tmp_path)

    def change(config):
        config.update({field: size})
        if field == "num_labels":
            del config["id2label"]

    change_config(path, change)
    refused_at_once(lambda: perceivers.load(path), "but its model needs|parameter arrays|no array|than a million")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"channels": HUGE}, "describes a model of [0-9]+ GB, but this machine has"),
        ({"latents": 10**18}, "larger than any memory"),
        ({"classes": 10**12}, "describes a model of [0-9]+ GB"),
        ({"num_blocks": 1, "depth": HUGE}, "more than 20000 parameter arrays"),
    ],
)
def test_sizes_that_no_memory_can_hold(sizes, message):
    with pytest.raises(PerceiversError, match=message):
        perceivers.create_model("imagenet_fourier", **sizes)


def test_configs_whose_model_no_memory_can_hold(tmp_path):
    (tmp_path / "x.yaml").write_text(YAML)
    run = read_config(tmp_path / "x.yaml", [f"--model.channels={HUGE}", f"--training.output={tmp_path / 'run'}"])
    with pytest.raises(PerceiversError, match="the config describes a model of"):
        run.run()
    assert not (tmp_path / "run").exists()


def test_classes_that_read_values_of_tensors_can_be_loaded():
    """Constructors of other packages may not work on the meta device."""
    layer = build_on_meta(lambda: torch.nn.Dropout(torch.linspace(0, 0.5, 3)[1].item()), 0, "x")
    assert layer.p == 0.25


def test_a_bin_that_states_more_than_it_holds(tmp_path):
    path, whole = tmp_path / "x.bin", tmp_path / "whole.bin"
    torch.save({"a": torch.ones(10**6)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:64] if name.endswith("data/0") else content)
    refused_at_once(lambda: read_pickled(path), "x.bin cannot be read")
    for is_zip in (True, False):
        torch.save({"a": torch.ones(1).expand(10**12)}, path, _use_new_zipfile_serialization=is_zip)
        refused_at_once(lambda: read_pickled(path), "does not hold all numbers of the array 'a'")
    torch.save({"a": torch.empty(10**12, device="meta")}, path)
    refused_at_once(lambda: read_pickled(path), "does not hold all numbers of the array 'a'")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02r\xff\xff\xff\x7f.",  # an index of 2 billion in the memo
        b"\x80\x04}r\xff\xff\xff\x7f.",
        b"\x80\x04\x8e\xff\xff\xff\xff\x0f\x00\x00\x00x.",  # 68 GB of bytes
        b"\x80\x04B\xff\xff\xff\xffx.",
        b"I" + b"9" * 10**5 + b"\n.",
    ],
)
def test_a_pickle_that_states_more_than_it_holds(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    refused_at_once(lambda: read_pickle(tmp_path / "x"), "is not a readable pickle")


class Repeated:
    """Is pickled as an array of numbers that all have one address."""

    def __reduce__(self):
        return np.ndarray, ((10**9,), np.dtype("f4"), bytes(4), 0, (0,))


def test_a_pickle_of_arrays_that_repeat_their_numbers(tmp_path):
    path = haiku_pickle(tmp_path)
    tree = pickle.loads(path.read_bytes())
    module = next(iter(tree))
    tree[module]["more"] = Repeated()
    path.write_bytes(pickle.dumps(tree))
    refused_at_once(lambda: perceivers.load(path), "arrays of more bytes than the file itself")


LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghijklmnopqrstu"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"x\.yaml has the alias \*a"),
        ("a: &a {x: 1}\nb: {<<: [*a, *a]}", r"x\.yaml has the alias \*a"),
        ("a: " + "[" * 5000, "nested more than 64 levels deep|not valid YAML"),
        ("a: " + "[" * 70 + "]" * 70, "nested more than 64 levels deep"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: 0x" + "f" * 5000, "an integer of more than 64 bits"),
        ("a: 2001-13-45", "experiment is None"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: !!timestamp x", "not valid YAML"),
        ("3: x\nexperiment: image_classification", "3 is not the name of a field"),
        ('a: "\\0"', "zero byte"),
        ("\ufeff" + YAML.replace("depth: 1", "depth: x"), "model.depth"),
    ],
)
def test_hostile_configs(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    refused_at_once(lambda: read_config(tmp_path / "x.yaml"), message)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b'{"a": "\xff"}', b"[" * 10**5, b'{"format": ' + b"9" * 5000 + b"}", b"3", b""]
)
def test_hostile_configs_of_models(folder, content):
    (folder / "config.json").write_bytes(content)
    refused_at_once(lambda: perceivers.load(folder), r"config\.json")


def test_pipes_are_not_waited_for(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        models.classifier().save(tmp_path / name)
        (tmp_path / name / name).unlink()
        os.mkfifo(tmp_path / name / name)
        refused_at_once(lambda name=name: perceivers.load(tmp_path / name), f"has no {name}")
    os.mkfifo(tmp_path / "x")
    refused_at_once(lambda: perceivers.load(tmp_path / "x"), "x is in no format that can be read")
    refused_at_once(lambda: perceivers.load("/dev/zero"), "/dev/zero is in no format that can be read")
    refused_at_once(lambda: read_config(tmp_path / "x"), "there is no config file")
    refused_at_once(lambda: SentencePiece(tmp_path / "x"), "x is not a readable file")


def test_a_part_of_a_model_names_the_whole(folder, tmp_path):
    assert describe_model(perceivers.load(folder / "config.json")) == describe_model(perceivers.load(folder))
    shards = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model-00001-of-00002.bin")
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in shards:
        (parts / name).write_bytes(b"PK")
        with pytest.raises(PerceiversError, match=f"{name} is one file of a saved model: give its folder, {parts}"):
            perceivers.load(parts / name)
    (parts / "config.json").write_text('{"model_type": "perceiver"}')
    with pytest.raises(PerceiversError, match="has its weights in several files"):
        perceivers.load(parts)


def test_the_folder_of_a_run_names_the_model(tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "run/checkpoints/last.ckpt").write_bytes(b"PK")
    (tmp_path / "run/config.json").write_text('{"experiment": "image_classification"}')
    with pytest.raises(PerceiversError, match="run is the folder of a training run that has saved no model yet"):
        perceivers.load(tmp_path / "run")
    models.classifier().save(tmp_path / "run/model")
    assert describe_model(perceivers.load(tmp_path / "run")) == describe_model(perceivers.load(tmp_path / "run/model"))
    with pytest.raises(PerceiversError, match=r"last\.ckpt is truncated or damaged"):
        perceivers.load(tmp_path / "run/checkpoints/last.ckpt")


def test_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    models.classifier().save(tmp_path / "model")
    assert perceivers.load("~/model").encoder.latents.shape == (6, 16)
    (tmp_path / "x.yaml").write_text(YAML.replace("path: digits", "path: ~/images"))
    run = read_config(tmp_path / "x.yaml", ["--training.output=~/run"])
    assert (run.data.path, run.training.output) == (f"{tmp_path}/images", f"{tmp_path}/run")
