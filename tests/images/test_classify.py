import json

import numpy as np
import pytest
import torch
from PIL import Image

import perceivers
from perceivers import PerceiversError
from perceivers.adapters import ArrayInput, LabelOutput
from perceivers.cli import main
from perceivers.images.classify import classify_image
from perceivers.inference import rank_classes
from tests.support.cli import fails
from tests.support.models import classifier, language

NAMES = [f"class {k}" for k in range(10)]


def make_image(path, height=12, width=12):
    pixels = np.random.default_rng(len(path.name)).integers(256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@torch.no_grad()
def probabilities(model, pixels_YXC):
    images = torch.from_numpy(pixels_YXC).permute(2, 0, 1)[None] / 255
    return model({"image": images})["label"][0].softmax(0).tolist()


def test_probabilities_are_those_of_the_model_sorted_and_named_as_stored(tmp_path):
    model = classifier(class_names=NAMES, crop=1.0)
    images = [make_image(tmp_path / name) for name in ("a.png", "bb.png")]
    answers = classify_image(model, [tmp_path / "a.png", str(tmp_path / "bb.png")])
    for answer, pixels in zip(answers, images, strict=True):
        assert answer == pytest.approx(dict(zip(NAMES, probabilities(model, pixels), strict=True)), rel=1e-4)
        assert list(answer.values()) == sorted(answer.values(), reverse=True)
        assert sum(answer.values()) == pytest.approx(1)
    assert answers[0] != answers[1]


def test_images_of_any_size_are_resized_and_cropped(tmp_path):
    pixels = np.zeros((48, 96, 3), dtype=np.uint8)
    pixels[12:36, 36:60] = 200  # the middle that a crop of 1/2 keeps
    Image.fromarray(pixels).save(tmp_path / "a.png")
    model = classifier(crop=0.5)
    (answer,) = classify_image(model, [tmp_path / "a.png"])
    assert max(answer, key=answer.get) == str(np.argmax(probabilities(model, np.full((12, 12, 3), 200, np.uint8))))


def test_given_names_replace_the_stored(tmp_path):
    make_image(tmp_path / "a.png")
    model = classifier(class_names=NAMES)
    (stored,), (given,) = (classify_image(model, [tmp_path / "a.png"], names) for names in (None, list("abcdefghij")))
    assert list(given) == ["abcdefghij"[NAMES.index(name)] for name in stored]
    (numbered,) = classify_image(classifier(), [tmp_path / "a.png"])
    assert set(numbered) == set("0123456789")
    with pytest.raises(PerceiversError, match="9 names of classes were given, but the model has 10"):
        classify_image(model, [tmp_path / "a.png"], NAMES[:9])


def test_classes_of_one_name_are_told_apart_by_number():
    logits_K = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    answer = rank_classes(logits_K, ["crane", "dog", "cat", "crane"])
    assert list(answer.items()) == [
        ("dog", pytest.approx(0.4)),
        ("crane (3)", pytest.approx(0.3)),
        ("cat", pytest.approx(0.2)),
        ("crane (0)", pytest.approx(0.1)),
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fewer_bits_give_the_same_class(tmp_path, dtype):
    make_image(tmp_path / "a.png")
    model = classifier()
    (exact,) = classify_image(model, [tmp_path / "a.png"])
    (rounded,) = classify_image(model, [tmp_path / "a.png"], dtype=dtype)
    assert next(iter(rounded)) == next(iter(exact))
    assert rounded == pytest.approx(exact, abs=0.05)
    assert rounded != exact


def test_files_that_cannot_be_read_and_other_models(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(PerceiversError, match=r"broken.png cannot be decoded"):
        classify_image(classifier(), [tmp_path / "broken.png"])
    with pytest.raises(PerceiversError, match=r"missing.png is not a readable file"):
        classify_image(classifier(), [tmp_path / "missing.png", tmp_path / "broken.png"])
    other = perceivers.PerceiverIO({"x": ArrayInput(3)}, {"y": LabelOutput(2, 8)}, latents=2, channels=8, depth=1)
    with pytest.raises(PerceiversError, match="does not classify images: it reads x and predicts y"):
        classify_image(other, [tmp_path / "broken.png"])


@pytest.fixture
def folder(tmp_path):
    classifier(class_names=NAMES).save(tmp_path / "model")
    for name in ("a.png", "bb.png"):
        make_image(tmp_path / name, 15, 20)
    (tmp_path / "names").write_text("\n".join("abcdefghij") + "\n")
    (tmp_path / "few").write_text("a\nb\n")
    return tmp_path


def test_the_command(folder, capsys):
    files = [str(folder / "a.png"), str(folder / "bb.png")]
    expected = classify_image(folder / "model", files)
    main(["classify-image", str(folder / "model"), *files, "--top", "2"])
    lines = capsys.readouterr().out.splitlines()
    for file, answer in zip(files, expected, strict=True):
        best = list(answer.items())[:2]
        assert [lines.pop(0) for _ in range(3)] == [file, *(f"{100 * p:8.2f}%  {name}" for name, p in best)]
    assert not lines
    main(["classify-image", str(folder / "model"), *files, "--json", "--classes", str(folder / "names")])
    answers = json.loads(capsys.readouterr().out)
    assert [answer["file"] for answer in answers] == files
    for answer, named in zip(answers, expected, strict=True):
        assert list(answer["classes"]) == ["abcdefghij"[NAMES.index(name)] for name in named][:5]
        assert list(answer["classes"].values()) == pytest.approx(list(named.values())[:5])


def test_a_broken_file_does_not_lose_the_others(folder, capsys):
    (folder / "sub").mkdir()
    (folder / "a.png").rename(folder / "sub" / "a.png")
    (folder / "sub" / "b.png").write_bytes(b"\x89PNG")
    model, files = str(folder / "model"), [str(folder / "sub" / "a.png"), str(folder / "sub" / "b.png")]
    (expected,) = classify_image(model, files[:1])
    with pytest.raises(SystemExit) as stop:
        main(["classify-image", model, str(folder / "sub"), str(folder / "bb.png"), "--json"])
    assert stop.value.code == 1
    first, broken, last = json.loads(capsys.readouterr().out)
    assert [first["file"], last["file"]] == [files[0], str(folder / "bb.png")]
    assert first["classes"] == pytest.approx(dict(list(expected.items())[:5]))
    assert broken == {"file": files[1], "error": f"{files[1]} cannot be decoded as an image."}
    with pytest.raises(SystemExit) as stop:
        main(["classify-image", model, str(folder / "sub"), "--top", "1"])
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines()[2:] == [files[1], f"  error: {files[1]} cannot be decoded as an image."]


def test_many_files_are_computed_in_batches(tmp_path, monkeypatch):
    model, sizes = classifier(), []
    model.inputs["image"].register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for name in (files := [f"{number:02d}.png" for number in range(20)]):
        make_image(tmp_path / name)
    classify_image(model, [tmp_path / name for name in files])
    assert sizes == [16, 4]


def test_what_the_command_cannot_do_ends_in_one_sentence(folder, capsys):
    model, image = str(folder / "model"), str(folder / "a.png")
    language().save(folder / "language")
    for arguments, message in [
        ([model, str(folder / "none.png")], "none.png is not a readable file"),
        ([model, image, "--classes", str(folder / "few")], "2 names of classes were given, but the model has 10"),
        ([model, image, "--classes", str(folder / "none")], "none is not a readable file"),
        ([model, image, "--classes", image], "a.png is not UTF-8 text: byte 0 is 0x89"),
        ([str(folder / "language"), image], "does not classify images: it reads text and predicts text"),
    ]:
        assert message in fails(capsys, "classify-image", *arguments)
    (folder / "empty").mkdir()
    assert "has no files to classify" in fails(capsys, "classify-image", model, str(folder / "empty"))
    for top in ("0", "-3"):
        with pytest.raises(SystemExit) as stop:
            main(["classify-image", model, image, f"--top={top}"])
        assert stop.value.code == 2
        assert f"argument --top: {top} is not allowed: it must be at least 1" in capsys.readouterr().err
