"""Every format that is read: a small valid sample, and the function that reads it. A new reader is one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import torch
from PIL import Image
from pyarrow import parquet

import perceivers
from perceivers.data.image_files import read_frame
from perceivers.data.video import measure, read_clip, read_frames
from perceivers.flow.files import read_flow, write_flow
from perceivers.images.data import ImageData
from perceivers.released.export import to_transformers
from perceivers.text.documents import TextFiles
from perceivers.text.labelled import LabelledTextData
from perceivers.text.tokenizers import SentencePiece, train_tokenizer
from perceivers.training.config import read_config
from tests.robustness.fuzz import Reader
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


def exported(folder: Path) -> Path:
    to_transformers(models.optical(), folder / "model")
    return folder / "model"


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
    "transformers model": Reader(exported, perceivers.load),
}
"""By name, the formats."""


def png16(folder: Path) -> Path:
    Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300).save(folder / "x.png")
    return folder / "x.png"
