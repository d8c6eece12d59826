"""Paths of all kinds of data that are no files or folders, or too long: each is refused in one sentence, at once."""

import os

import pytest

from perceivers import PerceiversError
from perceivers.clips.data import ClipData
from perceivers.clips.lists import read_classes, read_list
from perceivers.command import read_text
from perceivers.data.image_files import read_frame
from perceivers.data.video import measure, read_clip, read_frames
from perceivers.flow.datasets import open_pairs
from perceivers.flow.files import read_flow
from perceivers.flow.textures import make_textures
from perceivers.images.data import ImageData
from perceivers.starcraft.data import DecisionData, read_split
from perceivers.starcraft.replays import open_replay
from perceivers.text.byte_windows import ByteData
from perceivers.text.glue_data import GlueData
from perceivers.text.labeled import LabeledTextData
from perceivers.text.stream import TextData
from perceivers.text.tokenizers import SentencePiece

FILES = {
    "a.png": read_frame,
    "a.flo": read_flow,
    "b.png": read_flow,
    "a.npy": read_flow,
    "a.flo5": read_flow,
    "a.pfm": read_flow,
    "a.mkv": read_frames,
    "b.mkv": read_clip,
    "a.wav": lambda path: measure(path, False, True),
    "a.SC2Replay": open_replay,
    "list.csv": read_list,
    "classes.csv": read_classes,
    "split.json": read_split,
    "a.csv": lambda path: LabeledTextData(str(path)).open(),
    "a.parquet": lambda path: LabeledTextData(str(path)).open(),
    "a.model": SentencePiece,
    "a.txt": lambda path: read_text(None, str(path), "fill-mask"),
}
FOLDERS = {
    "images": lambda path: ImageData(str(path)).open(),
    "clips": lambda path: ClipData(str(path)).open(),
    "unlabeled": lambda path: ClipData(str(path)).open(labeled=False),
    "flow": open_pairs,
    "textures": lambda path: make_textures(path, 1, 0),
    "texts": lambda path: LabeledTextData(str(path)).open(),
    "text": lambda path: TextData(str(path)).open(0),
    "bytes": lambda path: ByteData(str(path)).open(),
    "glue": lambda path: GlueData(str(path)).open(),
    "tables": lambda path: DecisionData(str(path), str(path) + ".json").open(),
}


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "nothing", "long"])
@pytest.mark.parametrize("name", FILES)
def test_only_regular_files_are_read(tmp_path, name, kind):
    path = tmp_path / (name if kind != "long" else "x" * 5000 + name)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(PerceiversError):
        FILES[name](path)


@pytest.mark.parametrize("kind", ["fifo", "device", "nothing", "long"])
@pytest.mark.parametrize("name", FOLDERS)
def test_folders_are_folders(tmp_path, name, kind, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    path = tmp_path / (name if kind != "long" else "x" * 5000 + name)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(PerceiversError):
        FOLDERS[name](path)


@pytest.mark.parametrize("name", ["images", "clips", "text", "texts"])
def test_a_fifo_in_a_folder_of_tables_is_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / "train.parquet")
    with pytest.raises(PerceiversError):
        FOLDERS[name](tmp_path)
