import numpy as np
import pytest
import torch

from perceivers import PerceiversError

pytest.importorskip("av")
from perceivers.clips.data import ClipData, ClipDataset, evenly_spaced, hold_out_windows
from perceivers.clips.model import Window
from perceivers.clips.windows import read_window
from perceivers.data.loader import SampleIndex
from tests.clips.test_windows import BOTH, SOUND, stairs, wav
from tests.data.test_video import make, ramp


def make_folder(root):
    """Two classes of three recordings; the first sample of each but a broken one tells which it is."""
    for label, name in enumerate(("high", "low")):
        (root / name).mkdir(parents=True)
        for number in range(3):
            samples = np.full(1000, (3 * label + number + 1) / 10)
            (root / name / f"{number}.wav").write_bytes(wav(samples))
    (root / "low" / "1.wav").write_bytes(b"nothing")
    return root


def test_clips_of_a_folder_become_batches_without_those_that_cannot_be_read(tmp_path):
    clips = ClipData(str(make_folder(tmp_path / "data"))).open()
    assert clips.training.classes == ["high", "low"]
    assert (len(clips.training), len(clips.evaluation)) == (5, 1)
    every = ClipData(str(tmp_path / "data"), validation_fraction=0.5).open()
    order = [int(every.training.describe(i)[-5]) + 3 * every.training.labels[i] for i in range(3)]
    dataset = ClipDataset(every.training, SOUND, evenly_spaced(1))
    batch = dataset.collate([dataset[SampleIndex(i, 0)] for i in range(3)])
    readable = [number for number in order if number != 4]
    torch.testing.assert_close(batch["audio"][:, 400], (torch.tensor(readable) + 1) / 10, atol=1e-3, rtol=0)
    assert batch["label"].tolist() == [number // 3 for number in readable]
    assert [problem for problem in batch["problems"] if "low/1.wav cannot be read" not in problem] == []
    assert len(batch["problems"]) == (4 in order)
    assert "video" not in batch
    assert set(dataset.collate([{"problem": "broken"}])) == {"problems"}


def test_training_places_windows_at_random_and_evaluation_evenly(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.wav").write_bytes(wav(stairs(2000)))
    clips = ClipData(str(tmp_path), validation_fraction=0.5).open().training

    def first(windows, *item):
        return round(
            float(ClipDataset(clips, SOUND, windows and evenly_spaced(windows))[SampleIndex(*item)]["audio"][0]) * 4096
        )

    assert [first(3, number, 0) for number in range(3)] == [0, 600, 1200]
    assert first(1, 0, 0) == 600
    places = {first(None, 0, seed) for seed in range(20)}
    assert len(places) > 15
    assert min(places) < 300 < 900 < max(places) <= 1200
    assert first(None, 0, 7) == first(None, 0, 7)
    dataset = ClipDataset(clips, SOUND, evenly_spaced(3))
    assert (len(dataset), dataset[SampleIndex(2, 0)]["clip"]) == (3, 0)


def test_recordings_in_a_column_of_a_data_set(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"audio": datasets.Audio(), "label": datasets.ClassLabel(names=["low", "high"])})
    (tmp_path / "data").mkdir()
    for split, count in (("train", 4), ("test", 2)):
        sounds = [{"bytes": wav(np.full(900, (i + 1) / 10)), "path": f"{i}.wav"} for i in range(count)]
        rows = [{"audio": sound, "label": i % 2} for i, sound in enumerate(sounds)]
        table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
        parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    splits = ClipData(str(tmp_path / "data")).open()
    assert splits.training.classes == ["low", "high"]
    assert splits.evaluation.labels == [0, 1]
    torch.testing.assert_close(
        read_window(splits.training.media(3), SOUND, 0.5).audio, torch.full((800,), 0.4), atol=1e-3, rtol=0
    )
    with pytest.raises(PerceiversError, match=r"data.clip_column: .* has no column 'sound'"):
        ClipData(str(tmp_path / "data"), clip_column="sound").open()


def test_the_spoken_digits(shared_data, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    splits = ClipData(str(shared_data / "spoken_digits")).open()
    assert (len(splits.training), len(splits.evaluation)) == (2700, 300)
    assert splits.training.classes == list("0123456789")
    seen = read_window(splits.evaluation.media(0), Window(samples=8000, sample_rate=8000), 0.5)
    assert 1000 < seen.audio_mask.sum() <= 8000
    assert seen.audio[seen.audio_mask].std() > 0.01


def test_rows_of_some_values_are_held_out(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "audio": datasets.Audio(),
            "label": datasets.ClassLabel(names=["low", "high"]),
            "speaker": datasets.Value("string"),
        }
    )
    (tmp_path / "data").mkdir()
    for split, first in (("train", 0), ("test", 4)):
        rows = [
            {
                "audio": {"bytes": wav(np.full(900, (first + i + 1) / 10)), "path": None},
                "label": i % 2,
                "speaker": "ab"[i // 2],
            }
            for i in range(4)
        ]
        table = pyarrow.Table.from_pylist(rows, schema=features.arrow_schema)
        parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    splits = ClipData(str(tmp_path / "data"), validation_filter={"speaker": "b"}).open()

    def rows_of(clips):
        return [round(float(read_window(clips.media(i), SOUND, 0.5).audio[0]) * 10) - 1 for i in range(len(clips))]

    assert (rows_of(splits.training), rows_of(splits.evaluation)) == ([0, 1, 4, 5], [2, 3, 6, 7])
    both = ClipData(str(tmp_path / "data"), validation_filter={"speaker": "b", "label": 1}).open()
    assert rows_of(both.evaluation) == [3, 7]
    for where, message in (
        ({"speeker": "b"}, "has no column 'speeker': did you mean 'speaker'"),
        ({"speaker": "c"}, "holds for no row"),
    ):
        with pytest.raises(PerceiversError, match=message):
            ClipData(str(tmp_path / "data"), validation_filter=where).open()
    with pytest.raises(PerceiversError, match=r"data\.validation_filter is for data sets with columns"):
        ClipData(str(make_folder(tmp_path / "folder")), validation_filter={"speaker": "b"}).open()


def test_a_list_tells_the_classes_of_clips_of_a_folder(tmp_path):
    root = make_folder(tmp_path / "data")
    (tmp_path / "a.csv").write_text('file,labels\nhigh/0.wav,"dog,cat"\nlow/2.wav,\nhigh/1.wav,bird\n')
    (tmp_path / "b.csv").write_text("file,labels\nlow/0.wav,cat\n")
    splits = ClipData(str(root), str(tmp_path / "a.csv"), str(tmp_path / "b.csv")).open()
    assert splits.training.classes == ["bird", "cat", "dog"]
    assert splits.training.multilabel
    assert [splits.training.target(i).tolist() for i in range(3)] == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert splits.evaluation.target(0).tolist() == [0, 1, 0]
    dataset = ClipDataset(splits.training, SOUND, evenly_spaced(1))
    batch = dataset.collate([dataset[SampleIndex(i, 0)] for i in range(3)])
    torch.testing.assert_close(batch["audio"][:, 400], torch.tensor([0.1, 0.6, 0.2]), atol=1e-3, rtol=0)
    assert batch["label"].tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    (tmp_path / "c.csv").write_text("file,label\nhigh/0.wav,dog\nhigh/none.wav,cat\nlow/0.wav,cat\n")
    with pytest.raises(PerceiversError, match=r"c\.csv, line 3: there is no clip high/none\.wav .*1 of 3 are missing"):
        ClipData(str(root), str(tmp_path / "c.csv")).open()
    parts = ClipData(str(root), str(tmp_path / "c.csv"), skip_missing=True, validation_fraction=0.5).open()
    assert not parts.training.multilabel
    assert sorted([*parts.training.labels, *parts.evaluation.labels]) == [0, 1]
    (tmp_path / "classes.txt").write_text("dog\n\nzebra\ncat\n")
    own = ClipData(str(root), str(tmp_path / "c.csv"), None, str(tmp_path / "classes.txt"), skip_missing=True).open()
    assert own.training.classes == ["dog", "zebra", "cat"]
    with pytest.raises(PerceiversError, match=r"c\.csv is not a folder"):
        ClipData(str(tmp_path / "c.csv"), str(tmp_path / "c.csv")).open()
    (tmp_path / "d.csv").write_text("file,label\nnone.wav,dog\n")
    with pytest.raises(PerceiversError, match=r"has none of the clips of .*d\.csv"):
        ClipData(str(root), str(tmp_path / "d.csv"), skip_missing=True).open()
    with pytest.raises(PerceiversError, match=r"data\.training_list is not given"):
        ClipData(str(root), evaluation_list="a.csv")
    with pytest.raises(
        PerceiversError, match=r"validation_filter is for data sets with columns, but data\.training_list"
    ):
        ClipData(str(root), "a.csv", validation_filter={"speaker": "b"})


def test_windows_of_one_clip_are_held_out_without_overlap(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(stairs(8500) % 1))
    spans, positions = hold_out_windows(str(tmp_path / "a.wav"), SOUND, 0.25)  # ten windows: 2 and 6 are held out
    assert positions == pytest.approx([2 / 9, 6 / 9])
    assert [position for span in spans for position in span] == pytest.approx([0, 1 / 9, 3 / 9, 5 / 9, 7 / 9, 1])
    data = ClipData(str(tmp_path / "a.wav"), validation_fraction=0.25, windows_per_epoch=300)
    training, evaluation = data.datasets(data.open(labeled=False), SOUND)
    assert (len(training), len(evaluation)) == (300, 2)
    free = 8500 - 800

    def begins(dataset, count):
        generator = torch.Generator().manual_seed(0)
        return [
            free * (dataset.draw_position(generator) if dataset.positions is None else dataset.positions[number])
            for number in range(count)
        ]

    held = begins(evaluation, 2)
    drawn = begins(training, 300)
    assert all(abs(begin - other) >= 800 for begin in drawn for other in held)
    assert sum(begin < held[0] for begin in drawn) == pytest.approx(300 / 5, rel=0.3)  # spans are 1, 2 and 2 long
    assert sum(begin > held[1] for begin in drawn) == pytest.approx(300 * 2 / 5, rel=0.3)
    with pytest.raises(PerceiversError, match=r"a\.wav has 10 windows of 0\.10 s, too few"):
        hold_out_windows(str(tmp_path / "a.wav"), SOUND, 0.04)


def test_spans_of_single_places_are_drawn_from():
    clips = ClipDataset(None, SOUND, spans=[(0.0, 0.0), (1.0, 1.0)])
    assert {clips.draw_position(torch.Generator().manual_seed(seed)) for seed in range(20)} == {0.0, 1.0}


def test_clips_without_classes(tmp_path):
    root = make_folder(tmp_path / "data")
    splits = ClipData(str(root), validation_fraction=0.5).open(labeled=False)
    assert (len(splits.training), len(splits.evaluation)) == (3, 3)
    assert set(splits.training.labels) == {0}
    (tmp_path / "parts" / "train").mkdir(parents=True)
    (tmp_path / "parts" / "val").mkdir()
    for name in ("train/a.wav", "train/b.wav", "val/c.wav"):
        (tmp_path / "parts" / name).write_bytes(wav(stairs(1000)))
    splits = ClipData(str(tmp_path / "parts")).open(labeled=False)
    assert (len(splits.training), splits.evaluation.describe(0)) == (2, str(tmp_path / "parts/val/c.wav"))
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", "empty has no clips"),
        (tmp_path / "none", "none is neither a folder of clips nor a clip"),
        (tmp_path / "parts" / "val", "val has only one clip: give its path"),
    ):
        with pytest.raises(PerceiversError, match=message):
            ClipData(str(path)).open(labeled=False)


def test_clips_that_fit_are_kept_and_decoded_once(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        make(tmp_path / name / "1.mkv", ramp(10))
    clips = ClipData(str(tmp_path), validation_fraction=0.5).open().training
    both = ClipData(str(tmp_path)).open(labeled=False)
    size = 10 * 3 * 16 * 16
    kept = ClipDataset(clips, BOTH, evenly_spaced(3), cache_bytes=1.5 * size)
    expected = [ClipDataset(clips, BOTH, evenly_spaced(3))[SampleIndex(i, 0)]["video"] for i in range(3)]
    assert torch.equal(kept[SampleIndex(0, 0)]["video"], expected[0])
    (tmp_path / "a" / "1.mkv").write_bytes(b"gone")
    (tmp_path / "b" / "1.mkv").write_bytes(b"gone")
    assert torch.equal(kept[SampleIndex(2, 0)]["video"], expected[2])
    assert "cannot be read" in ClipDataset(clips, BOTH, evenly_spaced(3))[SampleIndex(0, 0)]["problem"]
    assert kept.free_bytes == pytest.approx(0.5 * size)
    assert len(both.training) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"validation_fraction": 1.0}, "data.validation_fraction = 1.0 is not allowed"),
        ({"windows": 0}, "data.windows = 0 is not allowed"),
        ({"windows_per_epoch": 0}, "data.windows_per_epoch = 0 is not allowed"),
        ({"cache_gb": -1.0}, "data.cache_gb = -1.0 is not allowed"),
    ],
)
def test_values_that_are_not_allowed(fields, message):
    with pytest.raises(PerceiversError, match=message):
        ClipData("clips", **fields)
    with pytest.raises(PerceiversError, match=r"data\.path is not given"):
        ClipData().open()
