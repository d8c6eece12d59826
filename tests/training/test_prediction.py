"""Tables of predictions: `perceivers predict`."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from perceivers.checkpoints.load import load_model
from perceivers.cli import main
from perceivers.clips.classify import classify_clip
from perceivers.clips.data import ClipDataset, LabeledClips
from perceivers.clips.model import get_inputs, get_window
from perceivers.data.loader import SampleIndex
from perceivers.images.classify import ImagePredictor, classify_image
from perceivers.images.data import choose_digits
from perceivers.text.bert import BERT
from perceivers.text.classify import classify_text
from perceivers.text.model import text_tasks
from perceivers.text.tokenizers import Bytes
from perceivers.training import prediction
from tests.clips.test_reconstruct import make_clip
from tests.support.cli import fails
from tests.support.images import small_run
from tests.support.models import classifier, coder, hearer, labels, language, optical

NAMES = [f"class {k}" for k in range(10)]


@pytest.fixture
def folder(tmp_path):
    """Nine images and a broken one, and a model."""
    classifier(class_names=NAMES).save(tmp_path / "model")
    (tmp_path / "images").mkdir()
    for number in range(10):
        pixels = np.random.default_rng(number).integers(256, size=(12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "4.png").write_bytes(b"\x89PNG")
    return tmp_path


def predict(model, data, out, *options):
    """The rows that the command writes."""
    main(["predict", *map(str, (model, "--data", data, "--out", out, *options)), "--accelerator", "cpu"])
    return read(out)


def read(file):
    if file.suffix == ".jsonl":
        return [json.loads(line) for line in file.read_text().splitlines()]
    if file.suffix == ".csv":
        return list(csv.DictReader(file.open(newline="")))
    return pq.read_table(file).to_pylist()


def test_each_file_is_a_row_in_order_and_a_broken_one_has_its_reason(folder, capsys):
    rows = predict(folder / "model", folder / "images", folder / "out.jsonl", "--batch-size", 4, "--top", 2)
    assert [row["file"] for row in rows] == [str(folder / "images" / f"{number}.png") for number in range(10)]
    broken = rows.pop(4)
    assert broken.pop("file") == str(folder / "images" / "4.png")
    assert broken.pop("error") == f"{folder / 'images' / '4.png'} cannot be decoded as an image."
    assert broken == dict.fromkeys(["class", "probability", "class_2", "probability_2"])
    for row, answer in zip(rows, classify_image(folder / "model", [row["file"] for row in rows]), strict=True):
        first, second, *_ = answer.items()
        assert (row["class"], row["probability"]) == (first[0], pytest.approx(first[1], rel=1e-4))
        assert (row["class_2"], row["probability_2"]) == (second[0], pytest.approx(second[1], rel=1e-4))
        assert row["error"] is None
    assert f"{folder}/out.jsonl: 10 of 10 images; 1 could not be read, see the column error." in capsys.readouterr().out
    assert not (folder / "out.jsonl.parts").exists()


def test_every_kind_of_table_has_the_same_rows(folder):
    options = ("--latents", "mean", "--batch-size", 3)
    wanted = predict(folder / "model", folder / "images", folder / "out.jsonl", *options)
    assert predict(folder / "model", folder / "images", folder / "out.parquet", *options) == wanted
    cells = predict(folder / "model", folder / "images", folder / "out.csv", *options)
    for row, cell in zip(wanted, cells, strict=True):
        assert list(cell) == ["file", "class", "probability", "latents", "error"]
        assert cell["class"] == (row["class"] or "")
        assert json.loads(cell["latents"] or "null") == row["latents"]


@torch.no_grad()
def test_latents_are_those_of_the_model(folder):
    model = load_model(folder / "model")
    rows = predict(folder / "model", folder / "images", folder / "all.parquet", "--latents", "all")
    means = predict(folder / "model", folder / "images", folder / "mean.parquet", "--latents", "mean")
    predictor = ImagePredictor(model)
    inputs = predictor.open(str(folder / "images"))
    for index, (row, mean) in enumerate(zip(rows, means, strict=True)):
        if index == 4:
            assert row["latents"] is mean["latents"] is None
            continue
        sample = inputs.samples.collate([inputs.samples[SampleIndex(index, 0)]])
        latents_ND = model.encode({"image": sample["image"]}).latents[0]
        torch.testing.assert_close(torch.tensor(row["latents"]), latents_ND, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.tensor(mean["latents"]), latents_ND.mean(0), rtol=1e-4, atol=1e-5)


def test_rows_that_do_not_fit_into_memory_are_put_in_order_block_by_block(folder, monkeypatch):
    wanted = predict(folder / "model", folder / "images", folder / "out.jsonl")
    monkeypatch.setattr(prediction, "SECONDS_PER_PART", 0)
    monkeypatch.setattr(prediction, "BYTES_PER_BLOCK", 1000)
    for suffix in ("jsonl", "parquet"):
        rows = predict(folder / "model", folder / "images", folder / f"blocks.{suffix}", "--batch-size", 2)
        assert [row["file"] for row in rows] == [row["file"] for row in wanted]
        assert [row["class"] for row in rows] == [row["class"] for row in wanted]


def stop_after(monkeypatch, batches, error):
    """Raises an error in a batch."""
    compute, done = ImagePredictor.compute, []

    def fail(self, batch):
        if len(done) == batches:
            raise error
        done.append(len(batch["image"]))
        return compute(self, batch)

    monkeypatch.setattr(ImagePredictor, "compute", fail)
    return done


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_what_was_predicted_is_not_predicted_again(folder, monkeypatch, capsys, error):
    wanted = predict(folder / "model", folder / "images", folder / "whole.parquet", "--batch-size", 2)
    with monkeypatch.context() as patch:
        stop_after(patch, 2, error)
        with pytest.raises((RuntimeError, SystemExit)):
            predict(folder / "model", folder / "images", folder / "out.parquet", "--batch-size", 2)
    if isinstance(error, KeyboardInterrupt):
        assert "Stopped: the same command continues" in capsys.readouterr().err
    assert not (folder / "out.parquet").exists()
    done = stop_after(monkeypatch, 100, error)
    rows = predict(folder / "model", folder / "images", folder / "out.parquet", "--batch-size", 3)
    for row in wanted:
        if row["probability"] is not None:
            row["probability"] = pytest.approx(row["probability"], rel=1e-5)  # other batches round differently
    assert rows == wanted
    assert sum(done) == 9 - 4


def test_other_settings_rows_or_models_do_not_continue(folder, monkeypatch, capsys):
    model, data = str(folder / "model"), str(folder / "images")
    command = ["predict", model, "--data", data, "--out", str(folder / "out.csv"), "--accelerator", "cpu"]
    with monkeypatch.context() as patch:
        stop_after(patch, 1, RuntimeError("broken"))
        with pytest.raises(RuntimeError):
            main([*command, "--batch-size", "2"])
    message = "out.csv cannot be continued: top = 2, but it was begun with 1; give another --out"
    assert message in fails(capsys, *command, "--top", "2")
    assert "latents = 'mean', but it was begun with None" in fails(capsys, *command, "--latents", "mean")
    moved = folder / "images" / "0.png"
    content = moved.read_bytes()
    moved.unlink()
    assert f"the rows of {data} are not what it was begun with" in fails(capsys, *command)
    moved.write_bytes(content)  # at another time
    assert f"the rows of {data} are not what it was begun with" in fails(capsys, *command)
    classifier(class_names=NAMES).save(folder / "model")
    assert "the model is not what it was begun with" in fails(capsys, *command)


def test_what_cannot_be_predicted_is_refused(folder, capsys):
    model, data, out = str(folder / "model"), str(folder / "images"), folder / "out.csv"
    out.write_text("mine")
    assert "out.csv exists: delete it, or give another --out" in fails(
        capsys, "predict", model, "--data", data, "--out", str(out)
    )
    assert out.read_text() == "mine"
    optical().save(folder / "flow")
    coder().save(folder / "coder")
    language().save(folder / "language")
    text_tasks(BERT(262, 16, 8, 1, 1), {"mood": 2}).save(folder / "bert")
    (folder / "a.txt").write_text("text\n")
    for arguments, message in [
        ([model, "--data", data, "--out", f"{folder}/x.xlsx"], "its name must end in .parquet, .csv, .jsonl"),
        ([model, "--data", data, "--out", f"{folder}/none/x.csv"], "there is no folder"),
        ([model, "--data", data, "--out", f"{folder}/x.csv", "--split", "val"], "has no split 'val', nor any other"),
        ([model, "--data", "digits", "--out", f"{folder}/x.csv", "--split", "val"], "no split 'val', only train and"),
        ([f"{folder}/flow", "--data", data, "--out", f"{folder}/x.csv"], "not rows of a table: use perceivers flow."),
        (
            [f"{folder}/coder", "--data", data, "--out", f"{folder}/x.csv"],
            "perceivers autoencode, or add --latents",
        ),
        (
            [f"{folder}/language", "--data", data, "--out", f"{folder}/x.csv"],
            "perceivers fill-mask, or add",
        ),
        (
            [f"{folder}/bert", "--data", f"{folder}/a.txt", "--out", f"{folder}/x.csv", "--latents", "mean"],
            "is a BERT, without latents: omit --latents",
        ),
        ([], "predict needs a model"),
    ]:
        assert message in fails(capsys, "predict", *arguments)
    assert not list(folder.glob("x.*"))


def test_a_row_of_a_table_without_text_has_its_reason_and_long_ones_are_truncated(tmp_path):
    model = labels({"mood": 2, "alike": 1}, {"mood": ["bad", "good"]})
    model.save(tmp_path / "model", "glue")
    texts = ["first", " ", "a longer text", "x" * 60]
    lines = [json.dumps({"text": text, "other": "o", "label": "l"}) for text in texts] + [json.dumps({"other": "p"})]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    rows = predict(tmp_path / "model", tmp_path / "data.jsonl", tmp_path / "out.parquet", "--task", "mood", "--top", 9)
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["error"] for row in rows[1::3]] == [f"text {k} is empty: give one with words." for k in (2, 5)]
    answers = classify_text(model, ["first", "a longer text", "x" * 48], "mood")
    for row, answer in zip((rows[0], rows[2], rows[3]), answers, strict=True):
        found = {row["class"]: row["probability"], row["class_2"]: row["probability_2"]}
        assert found == pytest.approx(answer, rel=1e-4)
        assert list(found) == list(answer)
    pairs = ("--task", "alike", "--text", "text", "other")
    rows = predict(tmp_path / "model", tmp_path / "data.jsonl", tmp_path / "pairs.jsonl", *pairs)
    (answer,) = classify_text(model, [("first", "o")], "alike")
    assert rows[0] == {"line": 1, "score": pytest.approx(answer["score"], rel=1e-4), "error": None}
    assert rows[1]["score"] is None


def test_lines_of_a_text_file_have_the_latents_of_a_language_model(tmp_path):
    model = language()
    model.save(tmp_path / "model")
    (tmp_path / "lines.txt").write_text("a longer line\nshort\n")
    rows = predict(tmp_path / "model", tmp_path / "lines.txt", tmp_path / "out.jsonl", "--latents", "mean")
    for row, line in zip(rows, ("a longer line", "short"), strict=True):
        token_BM = torch.from_numpy(Bytes().encode(line))[None]
        with torch.no_grad():
            expected_D = model.encode({"text": token_BM}).latents[0].mean(0)
        torch.testing.assert_close(torch.tensor(row["latents"]), expected_D, rtol=1e-4, atol=1e-5)
    assert [list(row) for row in rows] == [["line", "latents", "error"]] * 2


def test_clips_have_the_mean_over_their_windows(tmp_path):
    model = hearer()
    model.save(tmp_path / "model")
    (tmp_path / "clips").mkdir()
    files = [make_clip(tmp_path / "clips" / f"{name}.mp4", frames=20, sound=name == "a") for name in "ac"]
    (tmp_path / "clips" / "b.mp4").write_bytes(b"nothing")
    rows = predict(tmp_path / "model", tmp_path / "clips", tmp_path / "out.jsonl", "--windows", 3, "--top", 2)
    assert "b.mp4 cannot be read" in rows.pop(1)["error"]
    for row, answer in zip(rows, classify_clip(model, files, windows=3), strict=True):
        assert (row["class"], row["class_2"]) == tuple(answer)[:2]
        assert row["probability"] == pytest.approx(max(answer.values()), rel=1e-4)


def test_the_latents_of_an_autoencoder_do_not_see_a_label(tmp_path):
    model = coder()
    model.save(tmp_path / "model")
    (tmp_path / "clips").mkdir()
    make_clip(tmp_path / "clips" / "a.mp4", frames=20)
    (row,) = predict(tmp_path / "model", tmp_path / "clips", tmp_path / "out.jsonl", "--latents", "mean")
    clips = ClipDataset(LabeledClips.from_files([tmp_path / "clips" / "a.mp4"]), get_window(model), [0.5])
    data = dict(get_inputs(model, clips.collate([clips[SampleIndex(0, 0)]])))
    for label in (0, 3):
        hidden = {"label": torch.ones(1, 1, dtype=torch.bool)}
        with torch.no_grad():
            latents = model.encode(data | {"label": torch.tensor([label])}, hidden).latents[0].mean(0)
        torch.testing.assert_close(torch.tensor(row["latents"]), latents, rtol=1e-4, atol=1e-5)


SLOW = """
import sys, time
from perceivers.cli import main
from perceivers.images.classify import ImagePredictor
from perceivers.training import prediction
compute = ImagePredictor.compute
def slow(self, batch):
    time.sleep(0.3)
    return compute(self, batch)
ImagePredictor.compute, prediction.SECONDS_PER_PART = slow, 0.0
main(sys.argv[1:])
"""


def test_a_killed_prediction_continues_and_equals_evaluate(tmp_path, shared_data, capsys):
    """200 of the images of CIFAR-10, in a folder for each class."""
    table = pq.read_table(shared_data / "cifar10/plain_text/test-00000-of-00001.parquet").slice(0, 200).to_pylist()
    for number, row in enumerate(table):
        file = tmp_path / "images" / str(row["label"]) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["img"]["bytes"])
    classifier(crop=1.0).save(tmp_path / "model")
    command = ["predict", str(tmp_path / "model"), "--data", str(tmp_path / "images"), "--accelerator", "cpu"]
    command += ["--out", str(tmp_path / "out.parquet"), "--batch-size", "20"]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *command], stderr=subprocess.DEVNULL)
    while not (parts := list(tmp_path.glob("out.parquet.parts/*.parquet"))) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(parts) < 10
    assert not (tmp_path / "out.parquet").exists()
    main(command)
    rows = read(tmp_path / "out.parquet")
    assert [row["file"] for row in rows] == [str(file) for file in sorted(tmp_path.glob("images/*/*"))]
    accuracy = np.mean([row["class"] == Path(row["file"]).parent.name for row in rows])
    capsys.readouterr()
    main(["evaluate", str(tmp_path / "model"), "--data", str(tmp_path / "images"), "--json"])
    measured = json.loads(capsys.readouterr().out)
    assert measured["images"] == 200
    assert accuracy == pytest.approx(measured["top1"])


def test_two_processes_predict_what_one_does(folder):
    """On the CPU: each takes every second row."""
    (folder / "images" / "3.png").unlink()  # the processes have different numbers of rows
    data = ["--data", str(folder / "images"), "--batch-size", "2", "--accelerator", "cpu", "--devices", "2"]
    command = [sys.executable, "-m", "perceivers", "predict", str(folder / "model"), *data]
    done = subprocess.run([*command, "--out", str(folder / "two.csv")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one = predict(folder / "model", folder / "images", folder / "one.csv", "--batch-size", 2)
    two = read(folder / "two.csv")
    assert [row["file"] for row in two] == [row["file"] for row in one]
    assert [row["class"] for row in two] == [row["class"] for row in one]
    assert done.stdout.count("9 of 9 images") == 1


def test_digits_are_predicted_as_they_are_evaluated(tmp_path, capsys):
    """The third for testing, with a model that was trained."""
    output = small_run(tmp_path / "run").run()
    rows = predict(output, "digits", tmp_path / "out.csv", "--batch-size", 100)
    metrics = json.loads((output / "metrics.json").read_text())
    images, _ = choose_digits(None)
    assert [int(row["row"]) for row in rows] == list(images.indices)
    right = [row["class"] == images.classes[label] for row, label in zip(rows, images.labels, strict=True)]
    assert np.mean(right) == pytest.approx(metrics["val_top1"])
