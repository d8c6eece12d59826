"""The part of a data set that a model is measured on."""

import numpy as np
import pytest
from PIL import Image

from perceivers import PerceiversError
from perceivers.data.labeled import match_classes
from perceivers.data.labeled_files import open_evaluation, open_unlabeled
from perceivers.data.splits import Part, choose_splits
from perceivers.images.data import LabeledImages, open_evaluation_images


def write_images(folder, counts):
    """Images in a folder for each class, whose level of gray is their number."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), number).save(folder / name / f"{number}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("names", "split", "chosen"),
    [
        ([], None, []),
        (["cats", "dogs"], None, []),
        (["train"], None, [("train", "train")]),
        (["train", "Test", "dev"], None, [("test", "Test"), ("val", "dev")]),
        (["validation", "training"], None, [("val", "validation")]),
        (["train", "test", "val"], "train", [("train", "train")]),
        (["train", "test", "val"], "val", [("val", "val")]),
    ],
)
def test_the_test_split_comes_first_then_validation(names, split, chosen):
    assert choose_splits(names, split, "data") == chosen


def test_a_split_that_is_not_there_names_those_that_are():
    with pytest.raises(PerceiversError, match=r"my/data has no split 'val', only train and test\."):
        choose_splits(["test", "train", "other"], "val", "my/data")
    with pytest.raises(
        PerceiversError, match="my/data has no split 'test', nor any other: leave out --split to use all"
    ):
        choose_splits(["cats"], "test", "my/data")


def test_all_of_a_folder_without_splits_is_measured_or_what_training_held_out(tmp_path):
    folder = write_images(tmp_path, {"cat": 3, "dog": 17})
    images, part = open_evaluation(LabeledImages, folder)
    assert (len(images), str(part)) == (20, "20 of 20 images")
    held_out, part = open_evaluation(LabeledImages, folder, validation_fraction=0.25)
    assert (len(held_out), part.fields()) == (5, {"images": 5, "total": 20, "split": None})


def test_a_split_of_a_folder_is_measured(tmp_path):
    write_images(tmp_path / "train", {"cat": 3, "dog": 4})
    folder = write_images(tmp_path / "test", {"dog": 2}) and str(tmp_path)
    images, part = open_evaluation(LabeledImages, folder)
    assert (images.classes, images.labels, str(part)) == (["dog"], [0, 0], "2 of 9 images (test)")
    assert str(open_evaluation(LabeledImages, folder, "train")[1]) == "7 of 9 images (train)"
    with pytest.raises(PerceiversError, match="no split 'val', only train and test"):
        open_evaluation(LabeledImages, folder, "val")


def test_a_split_without_labels_gives_way_unless_it_is_chosen(tmp_path, capsys):
    write_images(tmp_path / "val", {"cat": 2})
    folder = write_images(tmp_path, {"test": 3}) and str(tmp_path)
    assert str(open_evaluation(LabeledImages, folder)[1]) == "2 of 5 images (val)"
    assert "has no labels in its split 'test': it is not evaluated on" in capsys.readouterr().err
    with pytest.raises(PerceiversError, match="has no images with labels to evaluate on"):
        open_evaluation(LabeledImages, folder, "test")


def test_a_table_of_files_is_measured(tmp_path):
    write_images(tmp_path, {"x": 3})
    (tmp_path / "list.csv").write_text("file_name,label\nx/0.png,dog\nx/2.png,cat\nx/1.png,\n")
    images, part = open_evaluation(LabeledImages, str(tmp_path / "list.csv"))
    assert ([images.classes[k] for k in images.labels], str(part)) == (["dog", "cat"], "2 of 3 images")
    images, _ = open_unlabeled(LabeledImages, str(tmp_path / "list.csv"))
    assert [np.array(images.read(index, 1))[0, 0] for index in range(3)] == [0, 2, 1]
    assert images.describe(1) == str(tmp_path / "x" / "2.png")


def test_digits_have_a_third_for_testing():
    images, part = open_evaluation_images("digits")
    assert (len(images), str(part)) == (599, "599 of 1,797 images (test)")
    training, part = open_evaluation_images("digits", "train")
    assert (len(training), str(part)) == (1198, "1,198 of 1,797 images (train)")
    with pytest.raises(PerceiversError, match="digits has no split 'val', only train and test"):
        open_evaluation_images("digits", "val")


def make(classes, labels):
    return LabeledImages(classes, labels, None, range(len(labels)))


def test_classes_are_found_by_name():
    found = match_classes(make(["dog", "ant", "owl"], [0, 2, 0]), ["cat", "owl", "dog"])
    assert (found.labels, found.classes) == ([2, 1, 2], ["cat", "owl", "dog"])  # no example is of "ant"
    several = match_classes(make(["b", "a"], [(0, 1), ()]), ["a", "b", "c"])
    assert several.labels == [(1, 0), ()]
    crane = ["crane", "dog", "crane"]  # as in ImageNet
    assert match_classes(make(crane, [0, 2]), crane).labels == [0, 2]
    with pytest.raises(PerceiversError, match="the data has the class 'ox', which the model does not know: there are"):
        match_classes(make(["dog", "ox"], [0, 1]), ["cat", "dog"])


def test_classes_of_a_model_without_names_are_found_by_number():
    assert match_classes(make(["cat", "dog"], [1, 0]), ["0", "1"]).labels == [1, 0]
    assert match_classes(make(["1", "3"], [1, 0]), list("0123")).labels == [3, 1]
    with pytest.raises(PerceiversError, match="the data has 3 classes, but the model knows 2"):
        match_classes(make(["a", "b", "c"], [0]), ["0", "1"])


def test_parts_are_described():
    assert str(Part("clip", 1, 1)) == "1 of 1 clip"
    assert str(Part("window", 1234, None, "val")) == "1,234 windows (val)"
