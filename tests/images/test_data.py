import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from perceivers import PerceiversError
from perceivers.data.image_files import evaluation_view, to_tensor, training_view
from perceivers.data.labeled import Files
from perceivers.data.labeled_files import labeled_folder
from perceivers.data.loader import SampleIndex
from perceivers.images.data import (
    ImageData,
    ImageDataset,
    LabeledImages,
)


def picture(color, size=(6, 6)):
    return Image.new("RGB", size, color)


def make_folder(root, classes=("cat", "dog"), count=3):
    for name in classes:
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture((40 * index, 0, 0)).save(root / name / f"{index}.png")
    return root


def broken_parquet(path):
    path.mkdir()
    (path / "train.parquet").write_bytes(b"PAR1 and no more")


def test_digits_have_a_fixed_third_held_out():
    splits = ImageData("digits").open()
    assert (len(splits.training), len(splits.evaluation)) == (1198, 599)
    assert splits.training.classes == list("0123456789")
    again = ImageData("digits", validation_fraction=0.9).open()
    assert again.evaluation.labels == splits.evaluation.labels
    names = {splits.training.describe(i) for i in range(1198)} | {splits.evaluation.describe(i) for i in range(599)}
    assert len(names) == 1797
    image = splits.evaluation.read(0, in_channels=1)
    assert image.size == (8, 8)
    assert np.asarray(image).max() == 255


def test_image_folder_with_and_without_splits(tmp_path):
    plain = ImageData(str(make_folder(tmp_path / "plain", count=5)), validation_fraction=0.2).open()
    assert (len(plain.training), len(plain.evaluation)) == (8, 2)
    make_folder(tmp_path / "split" / "train")
    make_folder(tmp_path / "split" / "val", classes=("dog",), count=1)
    split = ImageData(str(tmp_path / "split")).open()
    assert (len(split.training), len(split.evaluation)) == (6, 1)
    assert split.evaluation.labels == [1]
    assert split.training.describe(5).endswith("dog/2.png")


def test_a_class_that_training_does_not_have_is_refused(tmp_path):
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "val", classes=("cat", "cow"))
    with pytest.raises(PerceiversError, match="val has the class 'cow', which the training split does not have"):
        ImageData(str(tmp_path)).open()


def test_hugging_face_data_set_from_a_local_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["red", "blue"])})
    for split, count in (("train", 4), ("test", 2)):
        rows = {"img": [picture((9 * i, 1, 2)) for i in range(count)], "label": [i % 2 for i in range(count)]}
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    splits = ImageData(str(tmp_path / "data")).open()
    assert splits.training.classes == ["red", "blue"]
    assert splits.evaluation.labels == [0, 1]
    assert splits.training.read(3, 3).getpixel((0, 0)) == (27, 1, 2)
    with pytest.raises(PerceiversError, match=r"data.image_column: .* has no column 'image'"):
        ImageData(str(tmp_path / "data"), image_column="image").open()


def test_plain_labels_are_numbered_by_the_training_split(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    for split, labels in (("train", ["c", "a", "b"]), ("validation", ["b", "c"])):
        rows = {"image": [picture((0, 0, 0))] * len(labels), "label": labels}
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    splits = ImageData(str(tmp_path / "data")).open()
    assert splits.training.classes == ["a", "b", "c"]
    assert (splits.training.labels, splits.evaluation.labels) == ([2, 0, 1], [1, 2])


def test_every_kind_of_data_can_go_to_another_process(tmp_path):
    for path in ("digits", str(make_folder(tmp_path / "data"))):
        images = ImageData(path).open().training
        copy = pickle.loads(pickle.dumps(ImageDataset(images, (4, 4), 3, 1.0)))
        assert torch.equal(
            copy[SampleIndex(0, 0)]["image"], ImageDataset(images, (4, 4), 3, 1.0)[SampleIndex(0, 0)]["image"]
        )


def test_transparent_and_16_bit_images(tmp_path):
    drawing = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    drawing.putpixel((1, 2), (10, 20, 30, 255))
    drawing.save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 257 * 90, dtype=np.uint16)).save(tmp_path / "b.png")
    images = LabeledImages(["x"], [0, 0], Files([tmp_path / "a.png", tmp_path / "b.png"]), range(2))
    assert images.read(0, 3).getpixel((0, 0)) == (255, 255, 255)
    assert images.read(0, 3).getpixel((1, 2)) == (10, 20, 30)
    assert images.read(1, 1).getpixel((3, 3)) == 90


def test_real_images(shared_data):
    splits = ImageData(str(shared_data / "imagenet_samples")).open()
    assert len(splits.training) + len(splits.evaluation) == 120
    dataset = ImageDataset(splits.training, (224, 224), 3, 224 / 256)
    assert dataset[SampleIndex(0, 0)]["image"].shape == (3, 224, 224)


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: path.mkdir(), "has no images"),
        (lambda path: make_folder(path, classes=("cat",)), "has only the class 'cat'"),
        (lambda path: (make_folder(path, classes=("cat",)) / "empty").mkdir(), "has only the class 'cat'"),
        (broken_parquet, "cannot be read as a data set"),
        (lambda path: path.write_text(""), "is a file: give the folder"),
        (lambda path: None, "neither here nor on the Hub"),
    ],
)
def test_unusable_data_is_refused(tmp_path, prepare, message):
    prepare(tmp_path / "data")
    with pytest.raises(PerceiversError, match=message):
        ImageData(str(tmp_path / "data")).open()


def test_undecodable_images_are_named_and_left_out(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "cat" / "1.png").write_bytes(b"not an image")
    whole = (tmp_path / "dog" / "0.png").read_bytes()
    (tmp_path / "dog" / "0.png").write_bytes(whole[: len(whole) // 2])
    dataset = ImageDataset(labeled_folder(LabeledImages, tmp_path), (4, 4), 3, 1.0)
    batch = dataset.collate([dataset[SampleIndex(index, 0)] for index in range(6)])
    assert batch["problems"] == [
        f"{tmp_path / name} cannot be decoded as an image." for name in ("cat/1.png", "dog/0.png")
    ]
    assert batch["label"].tolist() == [0, 0, 1, 1]
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 80, 40, 80]
    assert dataset.collate([{"problem": "x"}]) == {"problems": ["x"]}


def test_evaluation_view_is_the_middle():
    image = Image.new("L", (256, 512))
    image.paste(255, (16, 144, 240, 368))  # the middle 224 x 224
    view = evaluation_view(image, (224, 224), 224 / 256)
    assert view.size == (224, 224)
    assert np.asarray(view).min() == 255
    assert evaluation_view(picture((1, 2, 3), (30, 7)), (8, 16), 1.0).size == (16, 8)


def test_training_view_is_a_random_part_repeatable_by_seed():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))
    views = [training_view(image, (16, 16), (0.1, 1.0), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert views[0].tobytes() == views[1].tobytes() != views[2].tobytes()
    assert views[0].size == (16, 16)
    whole = training_view(picture((5, 6, 7), (16, 16)), (16, 16), (1.0, 1.0), torch.Generator().manual_seed(0))
    assert whole.size == (16, 16)


def test_tensors_keep_every_pixel():
    rgb = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    assert torch.equal(to_tensor(Image.fromarray(rgb)), torch.from_numpy(rgb).permute(2, 0, 1))
    buffer = io.BytesIO()
    Image.fromarray(rgb[..., 0]).save(buffer, "png")
    assert to_tensor(Image.open(buffer)).shape == (1, 4, 5)
