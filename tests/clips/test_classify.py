import json

import pytest
import torch

from perceivers import PerceiversError
from perceivers.cli import main
from perceivers.clips.classify import classify_clip
from perceivers.clips.data import evenly_spaced
from perceivers.clips.model import Window
from perceivers.clips.windows import read_window
from perceivers.model.adapter import InputArray
from tests.clips.test_reconstruct import make_clip
from tests.support.cli import fails
from tests.support.models import classifier, hearer

WINDOW = Window(4, (16, 16), samples=1280, sample_rate=8000)
NAMES = list("abcde")


@pytest.fixture
def clip(tmp_path):
    return make_clip(tmp_path / "clip.mp4", frames=20)


@torch.no_grad()
def logits(model, clip, place):
    seen = read_window(clip, WINDOW, place)
    video = InputArray(seen.video[None], seen.video_mask[None])
    return model({"video": video, "audio": InputArray(seen.audio[None], seen.audio_mask[None])})["label"][0]


@pytest.mark.parametrize("multilabel", [False, True])
def test_probabilities_are_the_mean_over_windows(clip, multilabel):
    model = hearer(class_names=NAMES, multilabel=multilabel)
    (answer,) = classify_clip(model, [clip], windows=3)
    each = torch.stack([logits(model, clip, place) for place in evenly_spaced(3)])
    expected = (each.sigmoid() if multilabel else each.softmax(1)).mean(0)
    assert answer == pytest.approx(dict(zip(NAMES, expected.tolist(), strict=True)), rel=1e-4)
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    assert (sum(answer.values()) == pytest.approx(1)) != multilabel
    (middle,) = classify_clip(model, [clip])
    assert middle != pytest.approx(answer, rel=1e-3)


def test_several_clips_are_each_by_itself(tmp_path, clip):
    model, other = hearer(class_names=NAMES), make_clip(tmp_path / "other.mp4", sound=False)
    both = classify_clip(model, [clip, other], windows=3)
    alone = [*classify_clip(model, [clip], windows=3), *classify_clip(model, [other], windows=3)]
    assert [pytest.approx(each, rel=1e-4) for each in both] == alone
    assert both[0] != pytest.approx(both[1], rel=1e-3)


def test_a_missing_modality_is_masked(tmp_path):
    model, silent = hearer(class_names=NAMES), make_clip(tmp_path / "silent.mp4", sound=False)
    (answer,) = classify_clip(model, [silent])
    seen = read_window(silent, WINDOW, 0.5)
    noise = InputArray(torch.rand(1, 1280), torch.zeros(1, 1280, dtype=torch.bool))
    with torch.no_grad():
        expected = model({"video": seen.video[None], "audio": noise})["label"][0].sigmoid().tolist()
    assert answer == pytest.approx(dict(zip(NAMES, expected, strict=True)), rel=1e-4)


def test_sound_alone(clip):
    (answer,) = classify_clip(hearer(frames=None), [clip])
    assert set(answer) == set("01234")


def test_the_command(tmp_path, clip, capsys):
    hearer(class_names=NAMES).save(tmp_path / "model")
    other = make_clip(tmp_path / "other.mkv")
    files = [str(clip), str(other)]
    expected = classify_clip(tmp_path / "model", files, windows=2)
    main(["classify-clip", str(tmp_path / "model"), *files, "--top", "2", "--windows", "2"])
    lines = capsys.readouterr().out.splitlines()
    for file, answer in zip(files, expected, strict=True):
        best = list(answer.items())[:2]
        assert [lines.pop(0) for _ in range(3)] == [file, *(f"{100 * p:8.2f}%  {name}" for name, p in best)]
    main(["classify-clip", str(tmp_path / "model"), *files, "--json"])
    assert [answer["file"] for answer in json.loads(capsys.readouterr().out)] == files


def test_a_broken_clip_does_not_lose_the_others(tmp_path, clip, capsys):
    hearer(class_names=NAMES).save(tmp_path / "model")
    (tmp_path / "aaa.mp4").write_bytes(b"nothing")
    (expected,) = classify_clip(tmp_path / "model", [clip], windows=2)
    with pytest.raises(SystemExit) as stop:
        main(["classify-clip", str(tmp_path / "model"), str(tmp_path), "--windows", "2", "--json"])
    assert stop.value.code == 1
    broken, good = json.loads(capsys.readouterr().out)
    assert broken["file"] == str(tmp_path / "aaa.mp4")
    assert "aaa.mp4 cannot be read" in broken["error"]
    assert good == {"file": str(clip), "classes": pytest.approx(expected, rel=1e-4)}


def test_what_cannot_be_classified_ends_in_one_sentence(tmp_path, clip, capsys):
    hearer().save(tmp_path / "model")
    classifier().save(tmp_path / "images")
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    model = str(tmp_path / "model")
    for arguments, message in [
        ([model, str(tmp_path / "none.mp4")], "none.mp4 is not a readable file"),
        ([model, str(tmp_path / "broken.mp4")], "broken.mp4 cannot be read"),
        ([str(tmp_path / "images"), str(clip)], "does not classify clips: it reads image and predicts label"),
    ]:
        assert message in fails(capsys, "classify-clip", *arguments)
    with pytest.raises(PerceiversError, match="windows = 0 is not allowed"):
        classify_clip(model, [clip], windows=0)
