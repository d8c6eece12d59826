"""Tables of all types of columns, small models of them, and their batches."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage

from perceivers.data.loader import SampleIndex
from perceivers.data.tables import Table
from perceivers.data.video_writer import write_video
from perceivers.tables.columns import TYPES
from perceivers.tables.model import TableModel
from perceivers.tables.predict import compute_answers, write_answers
from perceivers.tables.rows import Rows, TableSamples
from tests.support.clips import wav
from tests.support.models import shaken

SIZES = {"latents": 4, "channels": 16, "depth": 1, "heads": 2}


def as_rows(columns, root=Path(), name="the table"):
    """Cells by the name of the column, as rows."""
    count = len(next(iter(columns.values())))
    return Rows(Table(name, dict(columns), "row", range(count)), range(count), root)


def learned(kind, cells, root=Path(), **settings):
    """A column of a type that has learned from cells."""
    return TYPES[kind](**settings).learn([cell for cell in cells if cell is not None], root)


def small_model(inputs, outputs, **settings):
    """A model with random weights that leave no column without effect."""
    return shaken(TableModel(inputs, outputs, **SIZES, **settings))


def collate(model, rows, has_targets=True, hide=None, seed=0):
    """All rows as one batch."""
    samples = TableSamples(rows, model.input_columns, model.output_columns, hide, has_targets)
    return samples.collate([samples[SampleIndex(row, seed + row)] for row in range(len(rows))])


@torch.inference_mode()
def answer(model, rows):
    """The answers for all rows, by the name of the column."""
    return compute_answers(model, collate(model, rows, has_targets=False))[0]


def write(model, rows):
    """The cells of the predictions of all rows."""
    return write_answers(model, rows, list(range(len(rows))), answer(model, rows))


def write_picture(path, seed, size=(12, 10)):
    """Writes a smooth picture, of random colors in its corners."""
    corners = np.random.default_rng(seed).integers(256, size=(2, 2, 3), dtype=np.uint8)
    PillowImage.fromarray(corners).resize(size, PillowImage.Resampling.BILINEAR).save(path)
    return path


def write_sound(path, seed, seconds=0.2):
    time = np.arange(round(8000 * seconds)) / 8000
    path.write_bytes(wav(0.5 * np.sin(2 * math.pi * (300 + 200 * seed) * time)))
    return path


def write_clip(path, seed):
    frames = [torch.full((3, 16, 16), 20 * seed + 5 * index, dtype=torch.uint8) for index in range(6)]
    write_video(path, frames, 10)
    return path


def cells_of_all_types(folder):
    """Three different cells of each type, with files in a folder, and the settings of a small column.

    Returns:
        By the name of the type, its settings and its cells.
    """
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for seed in range(3):
        write_picture(folder / f"{seed}.png", seed)
        write_sound(folder / f"{seed}.wav", seed)
        write_clip(folder / f"{seed}.mkv", seed)
        np.save(folder / f"{seed}.npy", random.normal(5, 2, (3, 4)))
    return {
        "number": ({}, [1.5, -2, 7]),
        "yes_no": ({}, ["yes", "no", "yes"]),
        "category": ({}, ["red", "green", "blue"]),
        "categories": ({}, ["a, b", "b", "c, a"]),
        "text": ({"hashes": 100, "width": 8}, ["a short text", "another one, longer than that", "words"]),
        "masked_text": ({}, ["some bytes", "more of them", "x"]),
        "date": ({}, ["2024-01-31", "2025-07-01", "1999-12-24"]),
        "image": ({"size": 8, "patch": 4}, ["0.png", "1.png", "2.png"]),
        "sound": ({"sample_rate": 8000, "bands": 16}, ["0.wav", "1.wav", "2.wav"]),
        "video": ({"frames": 4, "size": 8}, ["0.mkv", "1.mkv", "2.mkv"]),
        "array": ({}, ["0.npy", "1.npy", "2.npy"]),
        "series": ({"patch": 4}, [[1, 2, 4, 3, 5], [3, 1, 2], [9, 8, 7, 9, 7, 6]]),
    }


PREDICTED = ("number", "yes_no", "category", "categories", "masked_text", "image", "array")
"""The types that can be predicted from any others."""
