import io
import json
import shutil

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from perceivers import PerceiversError
from perceivers.clips.data import ClipData
from perceivers.data.loader import SampleIndex
from perceivers.data.tables import hub_splits
from perceivers.images.data import ImageData, ImageDataset
from tests.support import clips

datasets = pytest.importorskip("datasets")


def picture(path, level=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level, 0, 0)).save(path)


def fill(root, names, count=4):
    for name in names:
        for number in range(count):
            picture(root / name / f"{number}.png")
    return root


def names_of(examples):
    return sorted({examples.classes[label] for label in examples.labels})


def test_hidden_folders_are_no_classes(tmp_path):
    fill(tmp_path, ["a", "b", ".ipynb_checkpoints", "__MACOSX/a"])
    picture(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "x.png").rename(tmp_path / "a" / "._0.png")
    splits = ImageData(str(tmp_path)).open()
    assert splits.training.classes == ["a", "b"]
    assert len(splits.training) + len(splits.evaluation) == 8


def test_splits_have_any_case_and_other_folders_are_named(tmp_path, capsys):
    fill(tmp_path / "Train", ["a", "b"], 3)
    fill(tmp_path / "VAL", ["a", "b"], 1)
    fill(tmp_path / "extra", ["c"])
    splits = ImageData(str(tmp_path)).open()
    assert (len(splits.training), len(splits.evaluation), splits.training.classes) == (6, 2, ["a", "b"])
    assert capsys.readouterr().err == f"Left out of {tmp_path}: folders that are not splits, extra.\n"
    fill(tmp_path / "train", ["a"])
    with pytest.raises(PerceiversError, match="are of the same split: keep one of them"):
        ImageData(str(tmp_path)).open()


def test_what_is_left_out_is_named_and_counted(tmp_path, capsys):
    fill(tmp_path, ["a", "b"])
    for number in range(3):
        picture(tmp_path / "c" / f"{number}.jpg")
        (tmp_path / "c" / f"{number}.jpg").rename(tmp_path / "c" / f"{number}.JFIF")
        (tmp_path / "d").mkdir(exist_ok=True)
        (tmp_path / "d" / f"{number}.heic").write_bytes(b"x")
    picture(tmp_path / "x.pgm")
    assert ImageData(str(tmp_path)).open().training.classes == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines() == [
        f"Left out of {tmp_path}: 3 of 15 files, 3 .heic.",
        f"Left out of {tmp_path}: 1 of 12 images, beside the folders of classes.",
        f"Left out of {tmp_path}: folders without images, d.",
    ]


def test_a_folder_without_labels_is_not_evaluated_on(tmp_path, capsys):
    fill(tmp_path / "train", ["a", "b"], 10)
    picture(tmp_path / "test" / "1.png")
    splits = ImageData(str(tmp_path)).open()
    assert (len(splits.training), len(splits.evaluation)) == (18, 2)
    assert "The split 'test' has no labels: it is not evaluated on." in capsys.readouterr().err


def test_metadata_lists_files(tmp_path, capsys):
    lines = ["file_name,label"]
    for number in range(10):
        picture(tmp_path / "all" / f"{number}.png", 20 * number)
        lines.append(f"all/{number}.png,{'ab'[number % 2]}")
    (tmp_path / "Metadata.csv").write_text("\ufeff" + "\n".join([*lines, "all/0.png,", ",a"]))
    splits = ImageData(str(tmp_path), validation_fraction=0.2).open()
    assert (len(splits.training), len(splits.evaluation), splits.training.classes) == (8, 2, ["a", "b"])
    for index, label in enumerate(splits.training.labels):
        assert splits.training.read(index, 3).getpixel((0, 0))[0] // 20 % 2 == label
    assert "Metadata.csv: 2 of 12 rows, without file_name or label." in capsys.readouterr().err
    for name, message in (("../x.png", "which is outside of"), ("none.png", "which does not exist")):
        picture(tmp_path.parent / "x.png")
        (tmp_path / "Metadata.csv").write_text("\n".join([*lines, f"{name},a"]))
        with pytest.raises(PerceiversError, match=f"line 12 of .* names the file .*, {message}"):
            ImageData(str(tmp_path)).open()


def encode(level):
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def write(folder, split, labels, missing=(), names=("a", "b"), contents=encode):
    folder.mkdir(exist_ok=True)
    label = datasets.ClassLabel(names=list(names)) if names else datasets.Value("string")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    images = [None if row in missing else contents(10 * row) for row in range(len(labels))]
    table = datasets.Dataset.from_dict({"image": images, "label": labels}, features)
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("nothing", [-1, None])
def test_rows_without_label_or_image_are_left_out_and_counted(tmp_path, capsys, nothing):
    labels = [nothing, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    folder = write(tmp_path / "data", "train", labels, missing=(2, 3))
    splits = ImageData(str(folder)).open()
    assert (len(splits.training), len(splits.evaluation)) == (6, 1)
    for part in vars(splits).values():
        samples = ImageDataset(part, (4, 4), 3, 1.0)
        for index, row in enumerate(part.indices):
            sample = samples[SampleIndex(index, 0)]
            assert (sample["image"][0, 0, 0], sample["label"]) == (10 * row, labels[row])
    assert f"Left out of {folder} (train): 3 of 10 rows, without a label or image." in capsys.readouterr().err


@pytest.mark.parametrize("names", [("a", "b"), None])
def test_a_table_without_labels_is_not_evaluated_on(tmp_path, capsys, names):
    folder = write(tmp_path / "data", "train", [0, 1] * 5 if names else ["a", "b", "a", "b", None] * 2, names=names)
    write(folder, "test", [-1, -1] if names else [None, None], names=names)
    splits = ImageData(str(folder)).open()
    assert (len(splits.training) + len(splits.evaluation), splits.training.classes) == (10 if names else 8, ["a", "b"])
    assert "The split 'test' has no labels: it is not evaluated on." in capsys.readouterr().err


def test_the_rows_of_a_filter_are_those_with_its_value(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"]), "who": datasets.Value("string")}
    )
    rows = {"image": [encode(10 * k) for k in range(8)], "label": [-1, 1] + [0, 1] * 3, "who": list("xyxyxyxx")}
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / "train.parquet")
    data = ClipData(str(folder), validation_filter={"who": "y"}, clip_column="image")
    splits = data.open()
    assert (list(splits.training.indices), list(splits.evaluation.indices)) == ([2, 4, 6, 7], [1, 3, 5])


def test_tables_do_not_read_files_outside_of_their_folder(tmp_path):
    picture(tmp_path / "secret.png")
    outside = write(
        tmp_path / "data",
        "train",
        [0, 1] * 3,
        contents=lambda level: {"bytes": None, "path": str(tmp_path / "secret.png")},
    )
    examples = ImageData(str(outside)).open().training
    with pytest.raises(PerceiversError, match=r"row \d of .* names the file .*secret.png, which is outside of"):
        examples.read(0, 3)


def test_labels_without_a_name_are_refused(tmp_path):
    folder = write(tmp_path / "data", "train", [0, 1] * 3, names=("a", "b", "c"))
    table = datasets.Dataset.from_parquet(str(folder / "train-00000-of-00001.parquet"))
    shutil.rmtree(folder)
    content = table.data.table.set_column(1, "label", [[0, 1, 7, 0, 1, 0]])
    folder.mkdir()
    parquet.write_table(content, folder / "train.parquet")
    with pytest.raises(PerceiversError, match=r"has the label 7, but only 3 names of classes"):
        ImageData(str(folder)).open()


def test_sounds_without_a_label_are_left_out(tmp_path):
    features = {"audio": {"_type": "Audio"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    sound = {"bytes": clips.wav([0.0, 0.5] * 100), "path": "x.wav"}
    table = pyarrow.table({"audio": [sound] * 6, "label": [-1, 0, 1, 0, 1, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "train.parquet")
    splits = ClipData(str(tmp_path)).open()
    assert sorted([*splits.training.indices, *splits.evaluation.indices]) == [1, 2, 3, 4]


def test_bars_of_datasets_are_hidden_without_a_terminal(tmp_path, capsys):
    datasets.enable_progress_bars()
    parquet.write_table(pyarrow.table({"number": [1, 2]}), tmp_path / "train.parquet")
    assert hub_splits(str(tmp_path))["train"]["number"][:] == [1, 2]
    assert capsys.readouterr().err == ""
