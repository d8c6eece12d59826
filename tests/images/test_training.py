import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import perceivers
from perceivers import PerceiversError
from perceivers.images.augmentation import Augment, Augmentation
from perceivers.images.data import ImageData
from perceivers.images.model import ImageClassifierConfig
from perceivers.images.training import Accuracy, ImageClassification, evaluate

SMALL = {"image_size": 8, "mean": [0.3], "std": [0.4], "crop": 1.0, "bands": 2, "latents": 4, "channels": 8,
         "depth": 1, "num_blocks": 1, "heads": 1, "query_channels": 8}  # fmt: skip


def small_classifier(**settings):
    return perceivers.create_model("imagenet_fourier", **SMALL, classes=10, **settings).eval()


def test_accuracy_counts():
    logits = torch.tensor([[3.0, 2, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5], [9, 0, 0, 0, 0, 1]])
    accuracy = Accuracy(6)
    accuracy.update(logits[:2], torch.tensor([0, 0]))
    accuracy.update(logits[2:], torch.tensor([5]))
    result = accuracy.compute()
    assert result["top1"] == pytest.approx(1 / 3)
    assert result["top5"] == pytest.approx(2 / 3)
    assert result["loss"] == pytest.approx(float(F.cross_entropy(logits, torch.tensor([0, 0, 5]))))


def test_evaluate_equals_the_plain_loop():
    model, images = small_classifier(), ImageData("digits").open().evaluation
    result = evaluate(model, images.subset(range(50)), batch_size=16)
    right = 0
    for index in range(50):
        pixels = torch.from_numpy(np.array(images.read(index, in_channels=1)))
        right += int(model({"image": pixels[None, None]})["label"].argmax()) == images.labels[index]
    assert result["top1"] == pytest.approx(right / 50)
    assert result["images"] == 50


def test_evaluation_needs_the_models_classes_and_images_that_can_be_read(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "data" / name / "1.png")
    (tmp_path / "data" / "a" / "1.png").write_bytes(b"")
    with pytest.raises(PerceiversError, match="the data has 2 classes, but the model knows 10"):
        evaluate(small_classifier(), ImageData(str(tmp_path / "data")).open().training)
    folder = ImageData(str(tmp_path / "data"), validation_fraction=0.5).open()
    two = perceivers.create_model("imagenet_fourier", **SMALL, classes=2)
    broken = folder.training if "/a/" in folder.training.describe(0) else folder.evaluation
    with pytest.raises(PerceiversError, match=r"a/1.png cannot be decoded"):
        evaluate(two, broken)
    named = perceivers.create_model("imagenet_fourier", **SMALL, classes=2, class_names=["a", "c"])
    with pytest.raises(PerceiversError, match="the data has the class 'b' where the model knows 'c'"):
        evaluate(named, broken)


def test_images_that_cannot_be_read_are_skipped_in_training(tmp_path, capsys):
    for label in range(2):
        (tmp_path / "data" / str(label)).mkdir(parents=True)
        for index in range(8):
            Image.new("L", (8, 8), 100 * label + index).save(tmp_path / "data" / str(label) / f"{index}.png")
    data = ImageData(str(tmp_path / "data"))
    broken = data.open().training.describe(3)
    open(broken, "wb").close()
    run = ImageClassification(model=ImageClassifierConfig(**SMALL), data=data)
    run.trainer["max_epochs"], run.training.batch_size, run.training.output = 2, 4, str(tmp_path / "run")
    run.run()
    err = capsys.readouterr().err
    assert err.count(f"Skipped: {broken} cannot be decoded") == 1
    assert "1 samples could not be read and were skipped" in err


def test_augmentation_without_anything_scales_bytes():
    images, labels = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    got, targets = Augment(Augmentation(), (8, 8), 3)(images, labels)
    torch.testing.assert_close(got, images / 255)
    assert torch.equal(targets, F.one_hot(labels, 3).float())


def test_mixup_mixes_images_and_labels_alike():
    images = torch.arange(4, dtype=torch.uint8).mul(60).view(4, 1, 1, 1).expand(4, 1, 8, 8)
    got, targets = Augment(Augmentation(mixup=0.8), (8, 8), 4)(images, torch.arange(4))
    torch.testing.assert_close(targets.sum(-1), torch.ones(4))
    torch.testing.assert_close(got[:, 0, 0, 0], targets @ torch.arange(4.0) * 60 / 255)
    assert len(targets.max(-1).values.unique()) > 2  # every image has a ratio of its own


def test_cutmix_labels_by_area():
    images = torch.arange(4, dtype=torch.uint8).mul(60).view(4, 1, 1, 1).expand(4, 1, 16, 16)
    augment = Augment(Augmentation(cutmix=1.0), (16, 16), 4)
    mixed = 0
    for _ in range(10):
        got, targets = augment(images, torch.arange(4))
        assert set(got.mul(255 / 60).round().unique().tolist()) <= {0, 1, 2, 3}
        torch.testing.assert_close(got.mean((1, 2, 3)), targets @ torch.arange(4.0) * 60 / 255)
        mixed += int((targets.max(-1).values < 1).any())
    assert mixed


def test_with_both_each_gets_half_of_a_batch():
    images = torch.arange(6, dtype=torch.uint8).mul(50).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    got, targets = Augment(Augmentation(mixup=1.0, cutmix=1.0), (8, 8), 6)(images, torch.arange(6))
    assert (targets[:3, 3:] == 0).all()
    assert (targets[3:, :3] == 0).all()
    assert all(len(image.unique()) == 1 for image in got[:3])
    assert any(len(image.unique()) == 2 for image in got[3:])


def test_crops_flips_and_randaugment_keep_size_and_range():
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    config = Augmentation(shift=2, flip=True, layers=4, magnitude=5, cutmix=1.0, mixup=0.2)
    got, _ = Augment(config, (16, 16), 4)(images, torch.arange(4))
    assert got.shape == (4, 3, 16, 16)
    assert got.min() >= 0
    assert got.max() <= 1
    flipped, _ = Augment(Augmentation(flip=True), (16, 16), 4)(images, torch.arange(4))
    plain = images / 255
    for a, b in zip(flipped, plain, strict=True):
        assert torch.equal(a, b) or torch.equal(a, b.flip(-1))
