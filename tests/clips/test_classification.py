import json
import re

import numpy as np
import pytest
import torch

from perceivers import PerceiversError
from perceivers.checkpoints.load import load_model

pytest.importorskip("av")
from perceivers.cli import main
from perceivers.clips.classification import ClipClassifier, evaluate
from perceivers.clips.classify import classify_clip
from perceivers.clips.data import ClipData, ClipDataset, LabeledClips, evenly_spaced, listed_clips
from perceivers.clips.model import ClipClassifierConfig, Window, get_window
from perceivers.data.labeled_files import open_evaluation
from perceivers.data.loader import SampleIndex
from perceivers.training.config import read_config
from tests.data.test_video import make, ramp, tone
from tests.support.cli import fails
from tests.support.clips import BOTH, CONV, MEL, SOUND, wav, write_tones
from tests.support.clips import classification_run as small_run


@pytest.fixture
def tones(tmp_path):
    return write_tones(tmp_path / "tones")


def build(settings, **own):
    return ClipClassifierConfig(**(settings | own)).build()


@pytest.mark.parametrize(("settings", "epochs"), [(SOUND, 12), (CONV, 6), (MEL, 6)])
def test_tones_are_told_apart(tmp_path, tones, settings, epochs):
    output = small_run(tmp_path / "run", tones, settings, max_epochs=epochs).run()
    figures = json.loads((output / "metrics.json").read_text())
    assert figures["val_top1"] == 1
    model = load_model(output / "model")
    assert model.outputs["label"].names == ["high", "low"]
    evaluation = ClipData(str(tones), validation_fraction=0.2).open().evaluation
    dataset = ClipDataset(evaluation, get_window(model), evenly_spaced(1))
    batch = dataset.collate([dataset[SampleIndex(place, 0)] for place in range(len(evaluation))])
    assert model({"audio": batch["audio"]})["label"].argmax(1).tolist() == batch["label"].tolist()


def test_video_and_sound_train_together_and_what_cannot_be_read_is_left_out(tmp_path, capsys):
    for label in ("a", "b"):
        (tmp_path / "clips" / "train" / label).mkdir(parents=True)
        (tmp_path / "clips" / "val" / label).mkdir(parents=True)
        for number in range(2):
            make(tmp_path / "clips" / "train" / label / f"{number}.mkv", ramp(8), wave=tone(0.3, 48000)[None])
        make(tmp_path / "clips" / "val" / label / "0.mkv", ramp(8))  # without sound
    (tmp_path / "clips" / "train" / "a" / "broken.mkv").write_bytes(b"nothing")
    output = small_run(tmp_path / "run", tmp_path / "clips", BOTH, batch_size=2).run()
    assert "Skipped: " in capsys.readouterr().err
    assert json.loads((output / "metrics.json").read_text())["val_top1"] in (0, 0.5, 1)
    (tmp_path / "clips" / "val" / "b" / "0.mkv").write_bytes(b"nothing")
    with pytest.raises(PerceiversError, match=r"val/b/0\.mkv cannot be read"):
        small_run(tmp_path / "other", tmp_path / "clips", BOTH, batch_size=2).run()


def module(settings=SOUND, clips=3, **own):
    return ClipClassifier(build(settings, **own), clips).eval()


def test_what_is_masked_changes_nothing():
    chosen = module(BOTH, classes=4)
    batch = {"video": torch.rand(2, 4, 3, 8, 8), "video_mask": torch.ones(2, 4, dtype=torch.bool),
             "audio": torch.rand(2, 7680), "audio_mask": torch.ones(2, 7680, dtype=torch.bool)}  # fmt: skip
    batch["video_mask"][0, 2:] = False
    batch["audio_mask"][0, 64:] = False
    batch["audio_mask"][1] = False
    answer = chosen.predict(batch)
    for name, there in (("video", "video_mask"), ("audio", "audio_mask")):
        noise = torch.rand_like(batch[name])
        seen = batch[there].view(*batch[there].shape, *[1] * (noise.dim() - 2))
        torch.testing.assert_close(chosen.predict(batch | {name: torch.where(seen, batch[name], noise)}), answer)
        assert not torch.allclose(chosen.predict(batch | {name: noise})[0], answer[0], atol=1e-4)


def test_answers_of_a_clips_windows_are_averaged(monkeypatch):
    chosen = module(clips=2, classes=2, multilabel=False)
    probabilities = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.2, 0.8], [0.7, 0.3], [0.7, 0.3]])
    batches = [
        {"clip": torch.tensor([0, 0, 0, 1]), "label": torch.tensor([1, 1, 1, 0]), "problems": []},
        {"clip": torch.tensor([1, 1]), "label": torch.tensor([0, 0]), "problems": []},
    ]
    parts = iter(probabilities.log().split([4, 2]))
    monkeypatch.setattr(chosen, "predict", lambda batch: next(parts))
    for number, batch in enumerate(batches):
        chosen.validation_step(batch, number)
    torch.testing.assert_close(chosen.metrics.score_LK, torch.tensor([[1.3, 1.7], [1.6, 1.4]]))
    assert chosen.metrics.compute() == {"top1": 1.0}


def test_a_window_is_what_the_model_was_built_for():
    assert get_window(build(SOUND)) == Window(None, (0, 0), 25.0, 800, 8000)
    assert get_window(build(CONV)) == Window(None, (0, 0), 25.0, 800, 8000)
    assert get_window(build(MEL)) == Window(None, (0, 0), 25.0, 800, 8000)
    assert get_window(build(BOTH)) == Window(4, (8, 8), 25.0, 7680, 48000)
    assert get_window(build(BOTH, sound=None)).samples is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("preset=optical_flow", "model.preset = optical_flow is of optical_flow: ClipClassification trains a model of"),
        ("classes=7", "model.classes = 7 is not allowed: it must be 2, as in the data"),
        ("multilabel=true", "model.multilabel = True is not allowed: it must be False, as in the data"),
        ("samples=801", "samples_per_patch"),
        ("pictures=null", "pictures"),
    ],
)
def test_what_cannot_be_trained(tmp_path, tones, change, message):
    config = {"experiment": "clip_classification", "model": {"preset": "audioset_raw"} | SOUND}
    config |= {"data": {"path": str(tones)}, "training": {"output": str(tmp_path / "run")}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PerceiversError, match=message):
        read_config(tmp_path / "config.json", [f"--model.{change}"]).run()


def chords(root):
    """Recordings of a high tone, a low one, both or none, and the list that says so."""
    random = np.random.default_rng(0)
    root.mkdir()
    lines = ["file,labels"]
    for number in range(60):
        there = random.random(2) < 0.5
        time = np.arange(1200) / 8000
        tones = [np.sin(2 * np.pi * (f * time + random.random())) for f in (1500, 300)]
        (root / f"{number}.wav").write_bytes(wav(0.4 * sum(a * b for a, b in zip(tones, there, strict=True))))
        lines.append(f'{number}.wav,"{",".join(np.array(["high", "low"])[there])}"')
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    return root


def test_several_classes_of_a_clip_are_told(tmp_path):
    root = chords(tmp_path / "chords")
    run = small_run(tmp_path / "run", root, MEL, max_epochs=15)
    run.data.training_list = str(root / "list.csv")
    figures = json.loads((run.run() / "metrics.json").read_text())
    assert figures["val_map"] > 0.95
    assert "val_d_prime" in figures
    model = load_model(tmp_path / "run" / "model")
    assert model.outputs["label"].multilabel
    answers = classify_clip(model, [root / f"{number}.wav" for number in range(20)])
    told = [{name for name, probability in answer.items() if probability > 0.5} for answer in answers]
    lines = (root / "list.csv").read_text().splitlines()[1:21]
    wanted = [set(line.split('"')[1].split(",")) - {""} for line in lines]
    assert sum(ours == theirs for ours, theirs in zip(told, wanted, strict=True)) > 16
    clips = listed_clips(root / "list.csv", root, {"high": "high", "low": "low"}, skip_missing=False)
    assert evaluate(model, clips)["map"] > 0.95
    run.label_smoothing = 0.1
    with pytest.raises(PerceiversError, match=r"label_smoothing = 0\.1 is not allowed: it must be 0 where clips have"):
        run.run()


def test_what_is_evaluated_is_what_was_trained(tmp_path, tones):
    output = small_run(tmp_path / "run", tones, SOUND).run()
    model, clips = load_model(output / "model"), ClipData(str(tones), validation_fraction=0.2).open().evaluation
    figures = json.loads((output / "metrics.json").read_text())
    assert evaluate(model, clips) == {"top1": pytest.approx(figures["val_top1"])}
    assert evaluate(model, clips, windows=3, batch_size=5)["top1"] == evaluate(model, clips, windows=3)["top1"]
    with pytest.raises(PerceiversError, match="the data has 2 classes, but the model knows 5"):
        evaluate(build(SOUND, classes=5, multilabel=False), clips)
    with pytest.raises(PerceiversError, match="one class per clip, but the model several"):
        evaluate(build(SOUND, classes=2), clips)


def test_the_command_evaluates_classifiers_of_clips(tmp_path, tones, capsys):
    model, clips = build(SOUND, classes=2, class_names=["high", "low"], multilabel=False), str(tones)
    model.save(tmp_path / "model")
    expected = evaluate(model.eval(), open_evaluation(LabeledClips, clips)[0], 2)["top1"]
    main(["evaluate", str(tmp_path / "model"), "--data", clips, "--windows", "2"])
    assert capsys.readouterr().out == f"60 of 60 clips, 2 windows of each: top-1 {expected:.2%}\n"
    (tmp_path / "list.csv").write_text("file,label\n0.wav,high\n1.wav,low\n")
    listed = ["evaluate", str(tmp_path / "model"), "--data", clips, "--list", str(tmp_path / "list.csv")]
    main([*listed, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found == {"top1": found["top1"], "clips": 2, "total": 2, "split": None, "windows": 1}
    (tmp_path / "list.csv").write_text("file,label\n0.wav,high\n1.wav,lower\n")
    (tmp_path / "classes").write_text("lower\nhigh\n")
    assert "the data has the class 'lower', which the model does not know: did you mean 'low'?" in fails(
        capsys, *listed, "--classes", str(tmp_path / "classes")
    )
    multilabel = build(SOUND, classes=2, class_names=["high", "low"])
    multilabel.save(tmp_path / "multilabel")
    (tmp_path / "list.csv").write_text('file,labels\n0.wav,"high,low"\n1.wav,low\n2.wav,\n')
    main(["evaluate", str(tmp_path / "multilabel"), *listed[2:]])
    assert re.fullmatch(
        r"3 of 3 clips, 1 window of each: mean average precision [\d.]+%, d-prime -?[\d.inf]+\n",
        capsys.readouterr().out,
    )
    message = "--classes gives the classes of a --list: give both"
    assert message in fails(capsys, *listed[:4], "--classes", "names")
    assert "list.csv has no split 'val', nor any other" in fails(capsys, *listed, "--split", "val")
