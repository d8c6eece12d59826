"""Every format that is read: a small valid sample, and the function that reads it. A new reader is one line."""

import copy
import json
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import torch
import yaml
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file

import perceivers
from perceivers.data.image_files import read_frame
from perceivers.data.video import measure, read_clip, read_frames
from perceivers.flow.files import read_flow, write_flow
from perceivers.images.data import ImageData
from perceivers.released import haiku
from perceivers.released.export import to_transformers
from perceivers.text.documents import TextFiles
from perceivers.text.labelled import LabelledTextData
from perceivers.text.tokenizers import SentencePiece, tokenizer_of, train_tokenizer
from perceivers.training.config import read_config
from tests.robustness.fuzz import Reader, damage
from tests.support import clips, models, starcraft

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "while",
    "many",
    "small",
    "birds",
    "sing",
    "in",
    "old",
    "green",
    "trees",
]
YAML = """experiment: image_classification
model: {latents: 8, channels: 16, depth: 1, heads: 2, classes: 10, image_size: [8, 8], mean: [0.5], std: [0.5]}
data: {path: digits, validation_fraction: 0.2}
optimization: {lr: 1.0e-3, schedule: flat_cosine, clip_norm: 1.0}
training: {epochs: 2, batch_size: 8, precision: 32-true, output: runs/x}
augmentation: {shift: 1, area: [0.5, 1.0]}
"""


def text_file(name, content):
    """Returns a function that writes a text file."""

    def write(folder: Path) -> Path:
        (folder / name).write_text(content)
        return folder / name

    return write


def image_file(name, mode="RGB", **options):
    """Returns a function that writes a small image."""

    def write(folder: Path) -> Path:
        pixels = np.random.default_rng(0).integers(256, size=(12, 16, len(Image.new(mode, (1, 1)).getbands())))
        Image.fromarray(pixels.astype(np.uint8).squeeze(), mode).save(folder / name, **options)
        return folder / name

    return write


def flow_file(suffix):
    """Returns a function that writes a small flow file."""

    def write(folder: Path) -> Path:
        write_flow(folder / f"x{suffix}", torch.randn(2, 6, 8))
        return folder / f"x{suffix}"

    return write


def image_folder(folder: Path) -> Path:
    for split in ("train", "val"):
        for label in ("a", "b"):
            (folder / "images" / split / label).mkdir(parents=True)
            for number in range(2):
                image_file(f"{number}.png")(folder / "images" / split / label)
    return folder / "images"


def image_parquet(folder: Path) -> Path:
    content = image_file("x.png")(folder).read_bytes()
    rows = {"image": [{"bytes": content, "path": "x.png"}] * 4, "label": [0, 1, 0, 1]}
    (folder / "images").mkdir()
    parquet.write_table(pyarrow.table(rows), folder / "images" / "train-00000-of-00001.parquet")
    return folder / "images"


def read_images(path: Path) -> None:
    splits = ImageData(str(path)).open()
    for examples in (splits.training, splits.validation):
        for index in range(len(examples)):
            examples.read(index)


def clip(folder: Path) -> Path:
    source = clips.write_clips(folder / "all")
    shutil.copy(source / "bright" / "0.mkv", folder / "clip.mkv")
    shutil.rmtree(source)
    return folder / "clip.mkv"


def sound(folder: Path) -> Path:
    (folder / "x.wav").write_bytes(clips.wav(np.sin(np.arange(4000) / 9)))
    return folder / "x.wav"


def read_sound(path: Path) -> None:
    timeline = measure(path, False, True)
    read_clip(path, timeline.start, None, 1000, 8000) if hasattr(timeline, "start") else None


def table(suffix):
    """Returns a function that writes labelled texts."""
    rows = [(f"{WORDS[row % 9]} {WORDS[row % 7]} {row}", ("no", "yes")[row % 2]) for row in range(12)]

    def write(folder: Path) -> Path:
        path = folder / f"x{suffix}"
        if suffix == ".parquet":
            parquet.write_table(
                pyarrow.table({"text": [text for text, _ in rows], "label": [k for _, k in rows]}), path
            )
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
        else:
            cut = "," if suffix == ".csv" else "\t"
            path.write_text("\n".join(cut.join(row) for row in [("text", "label"), *rows]) + "\n")
        return path

    return write


def read_labelled(path: Path) -> None:
    LabelledTextData(str(path)).open()


def words(folder: Path) -> Path:
    (folder / "x.txt").write_text("\n\n".join(" ".join(WORDS[k:] * 9) for k in range(9)))
    return folder / "x.txt"


def read_words(path: Path) -> None:
    source = TextFiles([path], 0.2, 0)
    source.held_out_documents()
    for documents in source.all_documents():
        list(documents)


def tokenizer(folder: Path) -> Path:
    train_tokenizer([" ".join(WORDS) * 20], folder / "x.model", 300)
    return folder / "x.model"


def saved(build):
    """Returns a function that saves a model of `tests.support.models`."""

    def write(folder: Path) -> Path:
        build().save(folder / "model")
        return folder / "model"

    return write


def exported(build):
    """Returns a function that exports a model of `tests.support.models` to the format of `transformers`."""

    def write(folder: Path) -> Path:
        to_transformers(build(), folder / "model")
        return folder / "model"

    return write


def binary(folder: Path) -> Path:
    path = exported(THEIRS["learned"])(folder)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    return path


THEIRS = {
    "language": lambda: models.language(decoder_heads=8, decoder_qk_channels=256),
    "fourier": lambda: models.classifier(bands=64, image_size=224),
    "learned": lambda: models.classifier(positions="learned", feature_channels=256, query_residual=False),
    "conv": lambda: models.classifier(
        preprocessing="conv", padding="transformers", feature_channels=64, bands=64, image_size=224
    ),
    "flow": lambda: models.optical(feature_channels=64, bands=64),
    "autoencoder": lambda: models.coder(video_bands=32, audio_bands=192),
}
"""Small models that `transformers` has, too."""


def haiku_pickle(folder: Path) -> Path:
    tree = {}
    for name, tensor in models.classifier(positions="learned", feature_channels=8).state_dict().items():
        module, leaf = haiku.rename_array(name, haiku.LEARNED).split(" ")
        tree.setdefault(module, {})[leaf] = (tensor.T if leaf == "w" else tensor).numpy()
    (folder / "x.pystate").write_bytes(pickle.dumps(tree))
    return folder / "x.pystate"


def read_haiku(path: Path) -> None:
    perceivers.load(path, heads=2, num_blocks=2)


def text_model(folder: Path) -> Path:
    words = SentencePiece(tokenizer(folder))
    models.language(vocabulary=words.size).save(folder / "model")
    words.save(folder / "model")
    (folder / "x.model").unlink()
    return folder / "model"


def read_text_model(path: Path) -> None:
    tokenizer_of(path, perceivers.load(path).inputs["text"].embedding.num_embeddings)


VALUES = [
    None,
    True,
    -1,
    0,
    3,
    10**9,
    10**18,
    10**4000,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x1b",
    [],
    {},
]
"""Values that replace any value of a config."""


def change_json(path: Path, chance: random.Random) -> None:
    """Replaces, removes, copies, nests or renames one or two values anywhere in a JSON file, or one below a folder."""
    file = chance.choice(sorted(path.rglob("*.json"))) if path.is_dir() else path
    values = json.loads(file.read_text())
    for _ in range(chance.choice([1, 1, 2])):
        owner = chance.choice(find_owners(values))
        key = chance.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
        kind = chance.randrange(8)
        if kind == 0 and len(owner) > 1:
            del owner[key]
        elif kind == 1:
            owner[key] = copy.deepcopy(chance.choice(find_owners(values)))
        elif kind == 2:
            for _ in range(chance.choice([1, 40, 100])):
                owner[key] = [owner[key]]
        elif kind == 3 and isinstance(owner, dict):
            owner[chance.choice(["x", "class", "\n", ""])] = owner.pop(key)
        else:
            owner[key] = chance.choice(VALUES)
    file.write_text(json.dumps(values))


def find_owners(value: object) -> list[dict | list]:
    """Returns all lists and dicts in a value that are not empty."""
    if not isinstance(value, dict | list) or not value:
        return []
    return [
        value,
        *(owner for item in (value.values() if isinstance(value, dict) else value) for owner in find_owners(item)),
    ]


def change_text(path: Path, chance: random.Random) -> None:
    path.write_bytes(damage(path.read_bytes(), chance))


def read_override(path: Path) -> None:
    config = path.with_name("config.yaml")
    config.write_text(YAML)
    read_config(config, [path.read_text(errors="surrogateescape")])


OVERRIDES = ("--model.mean=[0.5, 0.1]", "--training.epochs=3", "--data={path: digits}")


def tables_of_decisions(folder: Path) -> Path:
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        starcraft.write_tables(folder / "tables", patch, training=20)
    return folder / "tables"


READERS = {
    "png": Reader(image_file("x.png"), read_frame),
    "png 16 bit": Reader(lambda folder: png16(folder), read_frame),
    "jpg": Reader(image_file("x.jpg"), read_frame),
    "gif": Reader(image_file("x.gif", "L"), read_frame),
    "tif": Reader(image_file("x.tif"), read_frame),
    "webp": Reader(image_file("x.webp"), read_frame),
    "image folder": Reader(image_folder, read_images),
    "image parquet": Reader(image_parquet, read_images),
    **{f"flow {suffix}": Reader(flow_file(suffix), read_flow) for suffix in (".flo", ".png", ".npy", ".pfm", ".flo5")},
    "video": Reader(clip, lambda path: list(read_frames(path).frames)),
    **{f"texts {suffix}": Reader(table(suffix), read_labelled) for suffix in (".csv", ".tsv", ".jsonl", ".parquet")},
    "text": Reader(words, read_words),
    "tokenizer": Reader(tokenizer, SentencePiece),
    "config": Reader(text_file("x.yaml", YAML), read_config),
    "saved model": Reader(saved(models.language), perceivers.load),
    "config values": Reader(text_file("x.json", json.dumps(yaml.safe_load(YAML))), read_config, change_json),
    **{f"override {text}": Reader(text_file("x.txt", text), read_override, change_text) for text in OVERRIDES},
    "text model": Reader(text_model, read_text_model),
    **{f"{name} config": Reader(saved(build), perceivers.load, change_json) for name, build in models.MODELS.items()},
    **{f"transformers {name}": Reader(exported(build), perceivers.load) for name, build in THEIRS.items()},
    **{
        f"transformers {name} config": Reader(exported(build), perceivers.load, change_json)
        for name, build in THEIRS.items()
    },
    "transformers bin": Reader(binary, perceivers.load),
    "haiku pickle": Reader(haiku_pickle, read_haiku),
}
"""By name, the formats."""


def png16(folder: Path) -> Path:
    Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300).save(folder / "x.png")
    return folder / "x.png"
