import numpy as np
import pytest
import torch

from perceivers import PerceiversError
from perceivers.data.loader import SampleIndex
from perceivers.text.byte_windows import AllWindows, ByteData, ByteText, RandomWindows

CONTENT = bytes(range(100))


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_bytes(CONTENT)
    return ByteText([tmp_path / "text.txt"])


def test_files_are_read_as_one_text(tmp_path):
    parts = [CONTENT[:1], CONTENT[1:40], CONTENT[40:41], CONTENT[41:]]
    paths = [tmp_path / f"{index}.txt" for index in range(4)]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    text = ByteText(paths)
    assert len(text) == 100
    for start, end in [(0, 100), (0, 1), (1, 2), (39, 42), (40, 41), (41, 100), (99, 100), (5, 60)]:
        assert text.read(start, end).tobytes() == CONTENT[start:end], (start, end)
    paths[1].write_bytes(CONTENT[1:30])
    assert text.read(60, 70).tobytes() == CONTENT[60:70]
    with pytest.raises(PerceiversError, match=r"1\.txt is shorter than before: do not change it while it is read"):
        text.read(35, 60)


def test_a_folder_is_read_in_the_order_of_names_and_every_byte_counts(tmp_path):
    content = {"b.txt": "é\r\n\r\n ".encode(), "a.md": b"\n\n x\xff", "sub/c.text": b"\xef\xbb\xbfc", "d.pdf": b"no"}
    (tmp_path / "sub").mkdir()
    for name, part in content.items():
        (tmp_path / name).write_bytes(part)
    text = ByteData(str(tmp_path)).open()
    assert text.read(0, len(text)).tobytes() == b"".join(content[name] for name in ("a.md", "b.txt", "sub/c.text"))
    assert len(ByteData(str(tmp_path), leave_out=["b*"]).open()) == len(text) - 7


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "data.path is missing: give a text file, or a folder"),
        ("none", r"none is neither a file nor a folder with text files \(\.txt, \.text, \.md\): give one"),
        ("folder", "folder is neither a file nor a folder with text files"),
        ("empty.txt", "empty.txt is empty: remove it"),
    ],
)
def test_paths_without_text(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.pdf").write_bytes(b"x")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(PerceiversError, match=message):
        ByteData(path).open()


def test_the_last_tenth_of_the_bytes_is_held_out_as_in_others_splits_of_tiny_shakespeare():
    class Text:
        def __len__(self):
            return 1_115_394

    assert ByteData().split(Text()) == 1_003_854


def test_windows_come_from_all_of_the_training_text_and_from_nothing_else(text):
    samples = RandomWindows(text, 40, 10, 7)
    assert len(samples) == 7
    windows = [samples[SampleIndex(0, seed)]["text"] for seed in range(1000)]
    assert {tuple(window.tolist()) for window in windows} == {tuple(range(k, k + 11)) for k in range(30)}
    assert torch.equal(windows[3], samples[SampleIndex(5, 3)]["text"]), "by the seed alone"


def test_a_text_shorter_than_a_window(text):
    assert RandomWindows(text, 11, 10, 7)[SampleIndex(0, 0)]["text"].tolist() == list(range(11))
    with pytest.raises(PerceiversError, match="to train on has 10 bytes, fewer than a window of 11: give more text"):
        RandomWindows(text, 10, 10, 7)
    with pytest.raises(PerceiversError, match="to evaluate has 1 bytes: give more text, or raise data"):
        AllWindows(text, 99, 10, 4, 2)


@pytest.mark.parametrize("start", [0, 37])
@pytest.mark.parametrize(
    ("length", "latents", "stride"), [(12, 5, 2), (12, 5, 5), (12, 5, 1), (8, 8, 4), (8, 8, 8), (200, 150, 20)]
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_byte_but_the_first_is_predicted_once_with_the_promised_context(
    text, start, length, latents, stride, batch_size
):
    samples = AllWindows(text, start, length, latents, stride)
    batches = [batch for rank in (0, 1) for batch in samples.loader(batch_size, rank=rank, world_size=2)]
    found = {}
    for batch in batches:
        assert len(batch["text"]) <= batch_size
        assert batch["text"].dtype == torch.uint8
        for window in batch["text"].tolist():
            assert window == list(range(window[0], window[0] + len(window)))
            for byte in window[-batch["predicted"] :]:
                context = byte - window[0]
                assert byte not in found
                found[byte] = context, context - max(0, len(window) - 1 - latents)
    assert sorted(found) == list(range(start + 1, 100))
    for byte, (context, own) in found.items():
        before = byte - start
        assert min(before, length - stride + 1) <= context <= length
        assert min(before, latents - stride + 1) <= own <= latents
    assert sum(len(batch["text"]) for batch in batches) == len(samples)


def test_windows_are_samples_too(text):
    sample = AllWindows(text, 0, 12, 5, 2)[SampleIndex(9, 0)]
    assert sample["predicted"] == 2
    np.testing.assert_array_equal(sample["text"], [list(range(11, 24))])


def test_a_stride_beyond_the_latents(text):
    with pytest.raises(PerceiversError, match=r"data\.stride = 6 is not allowed: it must be at most 5, as many as"):
        AllWindows(text, 0, 12, 5, 6)
