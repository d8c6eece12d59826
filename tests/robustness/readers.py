"""Every format that is read: a small valid sample, and the function that reads it. A new reader is one line."""

import copy
import csv
import json
import pickle
import random
import shutil
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import torch
import yaml
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file

import perceivers
from perceivers.clips.data import ClipData
from perceivers.clips.lists import read_classes
from perceivers.clips.model import Window
from perceivers.data.image_files import read_frame
from perceivers.data.loader import SampleIndex
from perceivers.data.video import measure, read_clip, read_frames, read_sound
from perceivers.data.video_writer import write_video
from perceivers.files import read_lines
from perceivers.flow.datasets import FlowPair, open_all_layouts, write_pair
from perceivers.flow.files import read_flow, write_flow
from perceivers.images.data import ImageData, ImageDataset
from perceivers.released import haiku
from perceivers.released.export import to_transformers
from perceivers.starcraft.data import DecisionData
from perceivers.starcraft.tables import Vocabulary, make_table
from perceivers.tables.columns import TYPES, make_column
from perceivers.tables.data import TableData
from perceivers.tables.guess import guess_columns
from perceivers.tables.rows import TableSamples
from perceivers.text.documents import TextFiles
from perceivers.text.glue_data import GlueData
from perceivers.text.labeled import LabeledTextData
from perceivers.text.stream import TextData
from perceivers.text.tokenizers import SentencePiece, tokenizer_of, train_tokenizer
from perceivers.training.config import read_config
from tests.robustness.fuzz import Reader, damage
from tests.support import clips, models, starcraft, tables

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
optimization: {lr: 1.0e-3, schedule: flat_cosine}
trainer:
  max_epochs: 2
  gradient_clip_val: 1.0
  callbacks: [{class_path: EarlyStopping, init_args: {monitor: val_top1}}]
training: {batch_size: 8, output: runs/x}
augmentation: {shift: 1, area: [0.5, 1.0]}
"""
TABLE = """experiment: table
model: {latents: 4, channels: 16, depth: 1, heads: 2}
data: {path: x.csv, validation: '2024-01-20', time: day, hide: 0.2}
inputs:
  a: number
  b: {type: category, names: [x, y], smoothing: 0.1}
  c: {type: image, size: 16, patch: 4, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}
  d: {type: text, length: 20}
  e: {type: series, patch: 8}
outputs:
  f: {type: number, quantiles: [0.1, 0.9], weight: 2.0}
  g: {type: categories, separator: "|"}
class_weights: balanced
training: {batch_size: 8, output: runs/x}
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
    for examples in (splits.training, splits.evaluation):
        for index in range(len(examples)):
            ImageDataset(examples, (8, 8), 3, 1.0)[SampleIndex(index, 0)]


def clip(folder: Path) -> Path:
    source = clips.write_clips(folder / "all")
    shutil.copy(source / "bright" / "0.mkv", folder / "clip.mkv")
    shutil.rmtree(source)
    return folder / "clip.mkv"


def mp4(folder: Path) -> Path:
    tone = torch.from_numpy(np.sin(np.arange(4800) / 9)).float()
    write_video(folder / "clip.mp4", torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8), 25, tone)
    return folder / "clip.mp4"


def read_media(path: Path) -> None:
    timeline = measure(path, True, True)
    assert timeline.duration >= 0
    read_clip(path, frames=3, size=8, sample_rate=8000)


def clip_folder(folder: Path) -> Path:
    for label in ("low", "high"):
        (folder / "clips" / label).mkdir(parents=True)
        for number in range(2):
            sound(folder / "clips" / label).rename(folder / "clips" / label / f"{number}.wav")
    return folder / "clips"


def clip_list(text):
    """Returns a function that writes a folder of clips with a list of them."""

    def write(folder: Path) -> Path:
        (clip_folder(folder).parent / "list.csv").write_text(text)
        return folder / "list.csv"

    return write


def read_clip_list(path: Path) -> None:
    read_clips(path.with_name("clips"), training_list=str(path), skip_missing=True)


def read_clips(path: Path, **options) -> None:
    data = ClipData(str(path), validation_fraction=0.5, **options)
    for samples in data.datasets(data.open(), Window(samples=100, sample_rate=8000)):
        for index in range(len(samples)):
            samples[SampleIndex(index, 0)]


def glue_folder(folder: Path) -> Path:
    for task in ("RTE", "STS-B", "CoLA"):
        (folder / "glue" / task).mkdir(parents=True)
        label, header = {"RTE": ("entailment", True), "STS-B": ("2.5", True), "CoLA": ("1", False)}[task]
        names = ["id", "sentence1", "sentence2", "score" if task == "STS-B" else "label"]
        row = ["0", "an old film", 'a "good" film', label] if header else ["x", label, "", "an old film"]
        lines = ["\t".join(names)] * header + ["\t".join(row)] * 4
        for name in ("train.tsv", "dev.tsv"):
            (folder / "glue" / task / name).write_text("\n".join(lines) + "\n")
    return folder / "glue"


def flow_folder(folder: Path) -> Path:
    """Writes one pair each of the layouts of FlyingChairs and Sintel."""
    frames, flow = torch.randint(256, (2, 3, 8, 12), dtype=torch.uint8), torch.randn(2, 8, 12)
    for number in (1, 2):
        write_pair(folder / "flow", number, FlowPair(frames, flow, torch.zeros(8, 12, dtype=torch.bool)))
    (folder / "flow" / "FlyingChairs_train_val.txt").write_text("1\n2\n")
    scene = "training/{}/alley"
    for kind in ("clean", "flow"):
        (folder / "flow" / scene.format(kind)).mkdir(parents=True)
    for number in (1, 2):
        shutil.copy(folder / "flow/00001_img1.png", folder / "flow" / scene.format("clean") / f"frame_000{number}.png")
    write_flow(folder / "flow" / scene.format("flow") / "frame_0001.flo", flow)
    return folder / "flow"


def read_flow_folder(path: Path) -> None:
    for pairs in open_all_layouts(path):
        for index in range(len(pairs)):
            pairs[index]


def metadata_folder(folder: Path) -> Path:
    (folder / "images").mkdir()
    for number in range(4):
        image_file(f"{number}.png")(folder / "images")
    lines = "".join(f"{number}.png,{'ab'[number % 2]}\n" for number in range(4))
    (folder / "images" / "metadata.csv").write_text("file_name,label\n" + lines)
    return folder / "images"


def replay(folder: Path) -> Path:
    shutil.copy(SHARED / "replays" / "3.1.0__1.SC2Replay", folder / "x.SC2Replay")
    return folder / "x.SC2Replay"


def read_decision_tables(path: Path) -> None:
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", path / "cache")
        for decisions in DecisionData(str(path), str(path / "split.json")).open().values():
            decisions.collate([decisions[SampleIndex(index, 0)] for index in range(min(len(decisions), 4))])
            decisions.list_names()


def sound(folder: Path) -> Path:
    (folder / "x.wav").write_bytes(clips.wav(np.sin(np.arange(4000) / 9)))
    return folder / "x.wav"


def read_wav(path: Path) -> None:
    timeline = measure(path, False, True)
    read_sound(path, timeline.origin, timeline.origin, 1000, 8000)


def table(suffix):
    """Returns a function that writes labeled texts."""
    rows = [(f"{WORDS[row % 9]} {WORDS[row % 7]} {row}", ("no", "yes")[row % 2]) for row in range(12)]

    def write(folder: Path) -> Path:
        path = folder / f"x{suffix}"
        if suffix == ".parquet":
            parquet.write_table(
                pyarrow.table({"text": [text for text, _ in rows], "label": [k for _, k in rows]}), path
            )
        elif suffix == ".json":
            path.write_text(json.dumps([{"text": text, "label": label} for text, label in rows]))
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
        else:
            cut = "," if suffix == ".csv" else "\t"
            path.write_text("\n".join(cut.join(row) for row in [("text", "label"), *rows]) + "\n")
        return path

    return write


def read_labeled(path: Path) -> None:
    LabeledTextData(str(path)).open()


def any_table(suffix):
    """Returns a function that writes a table of all types of columns, beside its files."""

    def write(folder: Path) -> Path:
        (folder / "table").mkdir()
        cells = {kind: values for kind, (_, values) in tables.cells_of_all_types(folder / "table").items()}
        cells = {kind: [*values, None] for kind, values in cells.items()}
        path = folder / "table" / f"x{suffix}"
        if suffix == ".parquet":
            parquet.write_table(pyarrow.table(cells), path)
        elif suffix == ".jsonl":
            rows = zip(*cells.values(), strict=True)
            path.write_text("".join(json.dumps(dict(zip(cells, row, strict=True))) + "\n" for row in rows))
        else:
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([[*cells], *zip(*cells.values(), strict=True)])
        return folder / "table"

    return write


def read_any_table(path: Path, suffix: str) -> None:
    """Guesses the types of columns, learns, and reads all rows as inputs and targets."""
    rows = TableData(str(path / f"x{suffix}"), validation=0.25).open().training
    guess_columns(rows.table)
    small = {"image": {"size": 8, "patch": 4}, "video": {"frames": 2, "size": 8}, "sound": {"seconds": 0.2}}
    columns = {kind: rows.learn(kind, make_column(kind, {"type": kind, **small.get(kind, {})})) for kind in TYPES}
    samples = TableSamples(rows, columns, {kind: columns[kind] for kind in tables.PREDICTED}, hide=0.1)
    samples.collate([samples[SampleIndex(row, 0)] for row in range(len(rows))])


def series_table(folder: Path) -> Path:
    days = [f"2024-01-{day:02d},{day % 7},{'' if day == 9 else day / 3:.3}" for day in range(1, 29)]
    (folder / "x.csv").write_text("\n".join(["day,sales,visits", *days]) + "\n")
    return folder / "x.csv"


def read_series_table(path: Path) -> None:
    parts = TableData(str(path), validation=0.3, window={"history": 4, "horizon": 2, "time": "day"}).open()
    for name in ("history", "future"):
        list(parts.training.cells(name))


def table_model(folder: Path) -> Path:
    cells = tables.cells_of_all_types(folder / "cells")
    columns = {
        kind: tables.learned(kind, values, folder / "cells", **settings) for kind, (settings, values) in cells.items()
    }
    outputs = {name: columns[name] for name in ("number", "categories", "masked_text", "image")}
    tables.small_model({name: column for name, column in columns.items() if name not in outputs}, outputs).save(
        folder / "model"
    )
    shutil.rmtree(folder / "cells")
    return folder / "model"


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


OVERRIDES = ("--model.mean=[0.5, 0.1]", "--trainer.max_epochs=3", "--data={path: digits}")


def tables_of_decisions(folder: Path) -> Path:
    import pytest

    (folder / "tables").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        starcraft.write_tables(folder / "tables", patch, training=20)
    return folder / "tables"


SHARED = Path(__file__).parents[3] / "shared" / "data"
LISTS = {
    "Kinetics": "label,youtube_id,time_start,time_end,split\nlow,0,0,10,train\nhigh,1,0,10,train\n",
    "AudioSet": "# a, b\n# YTID, start_seconds, end_seconds, positive_labels\n"
    '0, 0.0, 10.0, "low,x"\n1, 0.0, 10.0, "high"\n',
    "files": "file,label\nlow/0.wav,low\nhigh/0.wav,high\nhigh/1.wav,high\n",
}

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
    "image folder with metadata": Reader(metadata_folder, read_images),
    "flow folder": Reader(flow_folder, read_flow_folder),
    "video": Reader(clip, lambda path: list(read_frames(path).frames)),
    "mp4": Reader(mp4, read_media),
    "wav": Reader(sound, read_wav),
    "clip folder": Reader(clip_folder, read_clips),
    **{f"list of {name}": Reader(clip_list(text), read_clip_list) for name, text in LISTS.items()},
    "list of classes": Reader(text_file("x.csv", "index,mid,display_name\n0,/m/1,Low\n1,/m/2,High\n"), read_classes),
    "GLUE": Reader(glue_folder, lambda path: GlueData(str(path)).open()),
    "tables of decisions": Reader(tables_of_decisions, read_decision_tables),
    "lines": Reader(text_file("x.txt", "first\nsecond\n"), read_lines),
    "tokenized text": Reader(words, lambda path: list(TextData(str(path)).all_documents())),
    **({"replay": Reader(replay, lambda path: make_table(path, Vocabulary()))} if SHARED.is_dir() else {}),
    **{
        f"texts {suffix}": Reader(table(suffix), read_labeled)
        for suffix in (".csv", ".tsv", ".jsonl", ".json", ".parquet")
    },
    **{
        f"table {suffix}": Reader(any_table(suffix), partial(read_any_table, suffix=suffix))
        for suffix in (".csv", ".jsonl", ".parquet")
    },
    "table of series": Reader(series_table, read_series_table),
    "table config": Reader(text_file("x.yaml", TABLE), read_config),
    "table config values": Reader(text_file("x.json", json.dumps(yaml.safe_load(TABLE))), read_config, change_json),
    "table model": Reader(table_model, perceivers.load),
    "table model config": Reader(table_model, perceivers.load, change_json),
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
