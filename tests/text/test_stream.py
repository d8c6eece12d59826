import itertools
import json
from collections import deque

import numpy as np
import pytest

from perceivers import PerceiversError
from perceivers.data.loader import SampleIndex
from perceivers.files import read_text
from perceivers.text import documents as module
from perceivers.text.documents import TextFiles, TextRows, next_boundary
from perceivers.text.stream import HeldOutText, Stream, StreamedText, StreamLoader, TextData, pack, read_windows
from perceivers.text.tokenizers import SEP, Bytes

datasets = pytest.importorskip("datasets")


def documents_of(count, seed=0, name="document"):
    """Texts of several lines, each of which says whose it is."""
    choose = np.random.default_rng(seed)
    return [
        "\n".join(f"{name} {number} línea {line} 日本語" for line in range(choose.integers(1, 6)))
        for number in range(count)
    ]


def write(path, documents):
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


def first_epoch(source, readers=1):
    """The documents of the pieces of the first epoch, by reader."""
    source.per_block = 1
    shares = []
    for reader in range(readers):
        count = len(range(reader, len(source.pieces), readers))
        blocks = itertools.islice(source.blocks({}, reader, readers), count)
        shares.append([document for documents, _ in blocks for document in documents])
    return shares


@pytest.fixture
def files(tmp_path):
    """Two files of 120 kB together."""
    folder = tmp_path / "texts"
    folder.mkdir()
    texts = documents_of(600), documents_of(300, seed=1, name="other")
    paths = [write(folder / f"{name}.txt", text) for name, text in zip("ab", texts, strict=True)]
    return paths, [*texts[0], *texts[1]]


@pytest.mark.parametrize("readers", [1, 2, 5])
def test_readers_have_every_document_once_but_those_held_out(files, readers):
    paths, documents = files
    source = TextFiles(paths, 0.1, seed=3)
    shares = first_epoch(source, readers)
    held_out = list(itertools.chain(*source.held_out_documents()))
    assert sorted([*itertools.chain(*shares), *held_out]) == sorted(documents)
    assert 0.04 < len(held_out) / len(documents) < 0.2
    assert all(len(share) > 0.5 * len(documents) / readers for share in shares)


def test_each_epoch_has_its_own_order_and_seeds_differ_but_what_is_held_out_does_not(files):
    paths, _ = files
    source, other = TextFiles(paths, 0.1, seed=3), TextFiles(paths, 0.1, seed=4)
    source.per_block = other.per_block = len(source.pieces)
    blocks = source.blocks({}, 0, 1)
    (first, _), (second, state) = next(blocks), next(blocks)
    assert first != second
    assert sorted(first) == sorted(second)
    assert state == {"pieces": 2 * len(source.pieces)}
    assert next(source.blocks({"pieces": len(source.pieces)}, 0, 1)) == (second, state)
    assert first != next(other.blocks({}, 0, 1))[0]
    assert list(source.held_out_documents()) == list(other.held_out_documents())


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ", ""])
def test_pieces_are_the_whole_text(tmp_path, separator):
    """Of documents, lines, words, or one word alone; none is cut within a character."""
    text = separator.join(["日本語のテキスト"] * 3000)
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    places = [next_boundary(path, offset) for offset in range(0, path.stat().st_size + 1024, 1024)]
    parts = [read_text(path, start, end) for start, end in itertools.pairwise(places)]
    assert "".join(parts) == text
    assert len(parts) > 60
    assert sum(not part for part in parts) == 0
    if separator:
        assert all(part.endswith(separator) for part in parts[:-1])


def test_bounds_do_not_go_back_and_split_no_document(files):
    (path, _), documents = files
    last = path.stat().st_size - len(documents[599].encode())
    bounds = [next_boundary(path, offset) for offset in range(last + 1)]
    assert bounds == sorted(bounds)
    content = path.read_bytes()
    assert all(content[place - 2 : place] == b"\n\n" for place in set(bounds[1:-1]))
    assert len(set(bounds)) == 600 + 1
    assert next_boundary(path, len(content)) == len(content)
    assert next_boundary(path, len(content) + 5) == len(content) + 5


def test_text_that_is_not_utf8_is_named_by_file_and_offset(tmp_path):
    content = "\n\n".join(documents_of(300)).encode()
    place = content.index(b"document 250")
    path = tmp_path / "a.txt"
    path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    source = TextFiles([path], 0.02, seed=0)
    with pytest.raises(PerceiversError, match=rf"a\.txt is not UTF-8 text: byte {place} is 0xff; .*data\.leave_out"):
        deque(source.blocks({}, 0, 1))


def test_tiny_texts(tmp_path):
    path = write(tmp_path / "a.txt", ["x" * 500] * 4)
    source = TextFiles([path], 0.02, seed=0)
    assert (len(source.pieces), len(source.held_out_pieces)) == (1, 1)
    documents, _ = next(source.blocks({}, 0, 1))
    assert set(documents) == {"x" * 500}
    path.write_text("x" * 1000)
    with pytest.raises(PerceiversError, match=r"a\.txt has 1000 bytes of text, too few to train on and evaluate"):
        TextFiles([path], 0.02, seed=0).held_out_documents()
    split, documents = TextFiles([path], 0.02, seed=0).split_documents(None)
    assert (split, list(documents)) == (None, [["x" * 1000]])


def slow_pack(documents, length, count, starts):
    """Token by token: documents joined until there are `count` of them and enough for a window."""
    windows, starts = [], iter(starts)
    tokens, joined = [], 0
    for index, document in enumerate(documents):
        tokens += [*Bytes().encode(document).tolist(), SEP]
        joined += 1
        last = index == len(documents) - 1
        if len(tokens) >= length and (joined >= count or last):
            start = next(starts)
            while start + length <= len(tokens):
                windows.append(tokens[start : start + length])
                start += length
            tokens, joined = [], 0
    return windows


@pytest.mark.parametrize("length", [16, 700, 5000])
def test_packing_is_the_plain_formula(length):
    documents = documents_of(47)
    starts = []

    class Recorded:
        def integers(self, high):
            starts.append(int(np.random.default_rng(len(starts)).integers(high)))
            return starts[-1]

    windows = pack(documents, Bytes(), length, 10, Recorded())
    assert windows.tolist() == slow_pack(documents, length, 10, starts)
    assert windows.dtype == np.int32
    if length == 16:
        assert len(starts) == 5
        assert len(set(starts)) > 2
        total = sum(len(document.encode()) + 1 for document in documents)
        assert total - 5 * 15 <= windows.size <= total
        assert (windows == SEP).sum() > 40


def test_the_first_window_begins_anywhere():
    """What is left over is shared between both ends at random."""
    begins = [pack(["abcdefghij" * 3], Bytes(), 20, 1, np.random.default_rng(seed))[0, 0] for seed in range(500)]
    counts = np.unique(begins, return_counts=True)[1]
    assert len(counts) == 10  # of the letters; 12 places: 31 tokens have 11 more than a window
    assert counts.min() > 20


def test_no_window_where_the_text_is_shorter():
    assert pack(["abc"], Bytes(), 5, 10, np.random.default_rng(0)).shape == (0, 5)
    assert pack([], Bytes(), 5, 10, np.random.default_rng(0)).shape == (0, 5)


class Numbered:
    """Documents of one word that no other has, in blocks of 7."""

    def __init__(self, name):
        self.name = name

    def blocks(self, state, reader, readers):
        for block in itertools.count(state.get("block", 0)):
            numbers = range(block * 7 * readers + reader, (block + 1) * 7 * readers + reader, readers)
            yield [f"{self.name}{number:015}" for number in numbers], {"block": block + 1}

    def held_out_documents(self):
        yield ["held out"] * 20


def stream(sources=None, workers=0, rank=0, world=1, batch_size=4, length=16, documents=1, seed=5):
    sources = {"a": (Numbered("a"), 1.0)} if sources is None else sources
    data = TextData(documents_per_pack=documents, mask_rate=0.3, max_masked_fraction=4 / length)
    return Stream(StreamedText(sources, Bytes(), length, data, 0), batch_size, seed, rank, world, workers)


def loader(workers=0, batches=6, **settings):
    return StreamLoader(stream(workers=workers, **settings), batches, workers)


def values(batch):
    return {name: tensor.tolist() for name, tensor in batch.items()}


def text_of(batch):
    """The tokens before words were hidden."""
    token_BM = batch["text"].clone()
    real_BP = batch["labels"] >= 0
    token_BM[real_BP.nonzero()[:, 0], batch["indices"][real_BP]] = batch["labels"][real_BP]
    return [Bytes().decode(row) for row in token_BM.tolist()]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_resumed_stream_goes_on_where_it_stopped(files, workers):
    """Six batches an epoch; stopped in the first, in the second and at their ends."""
    paths, _ = files

    def make():
        sources = {"files": (TextFiles(paths, 0.1, 0), 2.0), "a": (Numbered("a"), 1.0)}
        for source, _ in sources.values():
            source.per_block = 3
        return loader(workers, sources=sources, length=64, documents=3, batch_size=16)

    want = [values(batch) for epoch in [make()] for _ in range(4) for batch in epoch]
    assert len(want) == 24
    assert len(set(map(str, want))) == 24
    for stop in (1, 6, 9):
        interrupted = make()
        batches = itertools.chain.from_iterable(itertools.repeat(interrupted))
        done = [values(batch) for batch in itertools.islice(batches, stop)]
        state = json.loads(json.dumps(interrupted.state_dict()))
        resumed = make()
        resumed.load_state_dict(state)
        rest = [values(batch) for batch in resumed]
        assert len(rest) == 6 - stop % 6
        rest += [values(batch) for batch in resumed]
        assert done + rest == want[: len(done) + len(rest)], stop


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_any_number_of_workers_is_as_good_as_none(workers):
    """One worker's batches are those without; of several each has its own share, taken in turn."""
    batches = [text_of(batch) for batch in loader(workers, batches=6)]
    readers = max(1, workers)
    alone = [text_of(batch) for batch in loader(batches=6)]
    assert (batches == alone) == (readers == 1)
    numbers = [int(window[1:16]) for batch in batches for window in batch if window[0] == "a"]
    assert {number % readers for number in numbers} == set(range(readers))
    for place, batch in enumerate(batches):
        assert {int(window[1:16]) % readers for window in batch} == {place % readers}


def test_ranks_and_workers_share_the_text_without_overlap():
    """Windows are as long as a document with its separator: each holds one."""
    seen = []
    for rank in range(3):
        batches = list(loader(workers=2, batches=10, rank=rank, world=3, length=17))
        seen.append([window for batch in batches for window in text_of(batch)])
    assert [len(windows) for windows in seen] == [40, 40, 40]
    assert len({window for windows in seen for window in windows}) == 120
    assert {int(window[1:]) % 6 for window in seen[1]} == {2, 3}


def test_a_run_is_resumed_with_as_many_processes():
    state = loader(workers=2).state_dict()
    with pytest.raises(PerceiversError, match=r"training\.workers: the run was begun with 2, not 3"):
        loader(workers=3).load_state_dict(state)
    with pytest.raises(PerceiversError, match=r"devices and nodes: the run was begun with 1, not 2"):
        loader(workers=2, world=2).load_state_dict(state)


def test_sources_are_mixed_by_their_shares_of_tokens():
    sources = {name: (Numbered(name), share) for name, share in (("a", 3.0), ("b", 1.0), ("c", 6.0))}
    batches = [text_of(batch) for batch in loader(batches=60, sources=sources, batch_size=20, length=17)]
    counts = [[sum(window[0] == name for window in batch) for name in "abc"] for batch in batches]
    total = np.sum(counts, 0)
    for count, share in zip(total, (0.3, 0.1, 0.6), strict=True):
        assert abs(count - 1200 * share) < 4 * np.sqrt(1200 * share * (1 - share))
    assert len(set(map(tuple, counts))) > 10, "drawn anew in each batch"
    mine = sorted(int(window[1:]) for batch in batches for window in batch if window[0] == "c")
    assert mine[-50] < total[2], "each source is read in its own order from its start on"


def test_windows_of_a_block_come_in_random_order_each_once():
    text = StreamedText({}, Bytes(), 17, TextData(documents_per_pack=1), 0)
    windows = itertools.islice(read_windows(Numbered("a"), text, 0, 0, 1, {}), 70)
    numbers = [int(Bytes().decode(window_M.tolist())[1:]) for window_M, _ in windows]
    blocks = [numbers[start : start + 7] for start in range(0, 70, 7)]
    assert [sorted(block) for block in blocks] == [list(range(start, start + 7)) for start in range(0, 70, 7)]
    assert len({tuple(np.argsort(block)) for block in blocks}) > 5


def test_text_without_a_window_is_an_error_and_not_an_endless_search():
    with pytest.raises(PerceiversError, match=r"ten consecutive blocks .* shorter than one window \(500 tokens\)"):
        next(iter(loader(length=500)))


def parquet(folder, name, documents, shards=1, column="text"):
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        part = datasets.Dataset.from_dict(
            {column: documents[shard::shards], "length": [1] * len(documents[shard::shards])}
        )
        part.to_parquet(folder / f"{name}-{shard:05}-of-{shards:05}.parquet")
    return folder


def json_lines(folder, name, documents, shards=1, column="text"):
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        rows = [json.dumps({column: document, "length": 1}) + "\n" for document in documents[shard::shards]]
        (folder / f"{name}-{shard:05}-of-{shards:05}.jsonl").write_text("".join(rows))
    return folder


FORMATS = pytest.mark.parametrize("write_rows", [parquet, json_lines])


def rows_of_an_epoch(source, reader, readers):
    documents = []
    for block, state in source.blocks({}, reader, readers):
        if state["epoch"]:
            return documents
        documents += block
    return documents


@FORMATS
@pytest.mark.parametrize(("shards", "readers"), [(1, 1), (1, 3), (4, 2), (3, 2)])
def test_readers_have_every_row_once(tmp_path, monkeypatch, write_rows, shards, readers):
    monkeypatch.setattr(module, "BLOCK", 2000)
    documents = documents_of(300)
    write_rows(tmp_path / "rows", "train", documents, shards)
    write_rows(tmp_path / "rows", "validation", ["one", " ", "two "])
    source = TextData(str(tmp_path / "rows")).open(0)[str(tmp_path / "rows")][0]
    assert isinstance(source, TextRows)
    shares = [rows_of_an_epoch(source, reader, readers) for reader in range(readers)]
    assert sorted(itertools.chain(*shares)) == sorted(documents)
    assert all(len(share) > 60 for share in shares)
    assert list(source.held_out_documents()) == [["one", "two"]]


@FORMATS
def test_the_first_rows_are_held_out_where_no_split_is(tmp_path, monkeypatch, write_rows):
    monkeypatch.setattr(module, "HELD_OUT_ROWS", 30)
    documents = documents_of(200)
    source = TextRows(str(write_rows(tmp_path / "rows", "train", documents, column="content")))
    assert source.column == "content"
    assert list(itertools.chain(*source.held_out_documents())) == documents[:30]
    assert rows_of_an_epoch(source, 0, 1) == documents[30:]
    assert list(itertools.chain(*source.all_documents())) == documents[30:]
    shares = [rows_of_an_epoch(source, reader, 2) for reader in range(2)]
    assert sorted(itertools.chain(*shares)) == sorted(documents[30:])


@FORMATS
@pytest.mark.parametrize(("shards", "workers"), [(1, 0), (3, 0), (3, 2), (4, 2)])
def test_a_resumed_stream_of_rows_goes_on_where_it_stopped(tmp_path, monkeypatch, write_rows, shards, workers):
    """Blocks of few rows, and several times through all of them."""
    monkeypatch.setattr(module, "BLOCK", 3000)
    monkeypatch.setattr(module, "HELD_OUT_ROWS", 20)
    folder = write_rows(tmp_path / "rows", "train", documents_of(220), shards)

    def make():
        return loader(
            workers, 5, sources={"rows": (TextRows(str(folder)), 1.0)}, length=128, documents=2, batch_size=30
        )

    want = [values(batch) for epoch in [make()] for _ in range(3) for batch in epoch]
    for stop in (4, 5):
        interrupted = make()
        batches = itertools.chain.from_iterable(itertools.repeat(interrupted))
        done = [values(batch) for batch in itertools.islice(batches, stop)]
        state = json.loads(json.dumps(interrupted.state_dict()))
        resumed = make()
        resumed.load_state_dict(state)
        done += [values(batch) for _ in range(2) for batch in resumed]
        assert done == want[: len(done)], stop
    epochs = [worker["sources"]["rows"]["before"]["epoch"] for worker in state["ranks"][0]["workers"]]
    assert min(epochs) > 0, "it went through all rows more than once"


def test_the_column_of_the_text(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    datasets.Dataset.from_dict({"a": ["x"], "b": ["y"]}).to_parquet(folder / "train.parquet")
    with pytest.raises(PerceiversError, match="has the columns a, b: one called 'text' is expected"):
        TextRows(str(folder))
    datasets.Dataset.from_dict({"a": ["x"], "text": ["y"]}).to_parquet(folder / "train.parquet")
    assert TextRows(str(folder)).column == "text"
    datasets.Dataset.from_dict({"a": [1], "b": [2.0]}).to_parquet(folder / "train.parquet")
    with pytest.raises(PerceiversError, match="has the columns a, b"):
        TextRows(str(folder))


def test_data_sets_that_cannot_be_had(tmp_path):
    with pytest.raises(PerceiversError, match=r"data\.path = nobody/nothing:en is neither here nor on the Hub"):
        TextRows("nobody/nothing:en")
    with pytest.raises(PerceiversError, match=rf"data\.path = {tmp_path} cannot be read as a data set"):
        TextData(str(tmp_path)).open(0)
    folder = parquet(tmp_path / "rows", "test", ["a"])
    with pytest.raises(PerceiversError, match="has no split 'train', but test"):
        TextRows(str(folder))


def test_too_few_rows(tmp_path):
    source = TextRows(str(parquet(tmp_path / "rows", "train", ["a"] * 20)))
    with pytest.raises(PerceiversError, match=r"has no text for reader 1 of 1: give more text, or fewer workers"):
        next(source.blocks({}, 0, 1))
    empty = parquet(tmp_path / "empty", "train", ["a"] * 20)
    parquet(empty, "validation", [" "])
    data = TextData(str(empty))
    with pytest.raises(PerceiversError, match="held out for evaluation is shorter than a window of 16 tokens"):
        HeldOutText(data.open(0), Bytes(), 16, data)


def test_evaluation_is_always_the_same_and_not_of_the_training_text(files, monkeypatch):
    paths, _ = files
    monkeypatch.setattr(module, "BLOCK", 4000)
    data = TextData(str(paths[0].parent), validation_fraction=0.1, eval_windows=50)
    batches = [HeldOutText(data.open(seed), Bytes(), 64, data).batches(16) for seed in (0, 0, 1)]
    first = [values(batch) for batch in batches[0]]
    assert all([values(batch) for batch in other] == first for other in batches[1:])
    assert [batch["text"].shape for batch in batches[0]] == [(16, 64)] * 3 + [(2, 64)]
    assert all(batch["indices"].shape == (len(batch["text"]), 13) for batch in batches[0])
    assert len({window for batch in batches[0] for window in text_of(batch)}) == 50
    ((source, _),) = data.open(0).values()
    training = set(first_epoch(source)[0])
    held_out = list(itertools.chain(*source.held_out_documents()))
    assert not training & set(held_out)
    joined = "".join(held_out)
    for batch in batches[0]:
        for window in text_of(batch):  # the separator decodes to nothing, characters at the ends may be cut
            assert window.strip("\ufffd") in joined


def test_held_out_windows_are_split_over_processes(files):
    paths, _ = files
    data = TextData(str(paths[0].parent), validation_fraction=0.1, eval_windows=50)
    held_out = HeldOutText(data.open(0), Bytes(), 64, data)
    assert len(held_out) == 50
    assert held_out[SampleIndex(3, 0)]["text"].shape == (64,)
    alone = [values(batch) for batch in held_out.loader(8)]
    assert alone == [values(batch) for batch in held_out.batches(8)]
    shares = [[values(batch) for batch in held_out.loader(8, rank=rank, world_size=3)] for rank in range(3)]
    assert [len(share) for share in shares] == [3, 2, 2]
    assert all(share == alone[rank::3] for rank, share in enumerate(shares))


def test_an_epoch_of_streamed_text_is_so_many_windows_for_any_number_of_processes(files):
    paths, _ = files
    data = TextData(str(paths[0].parent))
    text = StreamedText(data.open(0), Bytes(), 64, data, 96)
    assert len(text) == 96
    assert [len(text.loader(8, 5, 0, 0, world)) for world in (1, 2, 3)] == [12, 6, 4]
    want = StreamLoader(stream(data.open(0), batch_size=8, length=64, documents=10), 12, 0)
    want.stream.text.data = data
    assert [values(batch) for batch in text.loader(8, 5)] == [values(batch) for batch in want]
    with pytest.raises(TypeError, match="no numbered windows"):
        text[SampleIndex(0, 0)]


def test_evaluation_has_as_many_windows_as_asked_for_or_as_there_are(files):
    paths, _ = files
    sources = TextData(str(paths[0].parent)).open(0)
    for most, want in ((7, 7), (10000, None)):
        batches = HeldOutText(sources, Bytes(), 64, TextData("x", eval_windows=most)).batches(4)
        count = sum(len(batch["text"]) for batch in batches)
        assert count == want or 20 < count < 100
    with pytest.raises(PerceiversError, match="shorter than a window of 100000 tokens"):
        HeldOutText(sources, Bytes(), 100000, TextData("x"))


def test_which_files_are_read(tmp_path):
    for name in ("a.txt", "b.md", "sub/c.text", "sub/d.html", "sub/e.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name * 1000)
    (source,) = [source for source, _ in TextData(str(tmp_path), leave_out=["e.*"]).open(0).values()]
    assert [path.name for path in source.paths] == ["a.txt", "b.md", "c.text"]
    (source,) = [source for source, _ in TextData(str(tmp_path / "sub" / "d.html")).open(0).values()]
    assert [path.name for path in source.paths] == ["d.html"]
    with pytest.raises(PerceiversError, match=r"data\.leave_out leaves no text file"):
        TextData(str(tmp_path), leave_out=["*"]).open(0)
    (tmp_path / "f.txt").write_text("")
    with pytest.raises(PerceiversError, match=r"f\.txt is empty: remove it, or leave it out with data\.leave_out"):
        TextData(str(tmp_path)).open(0)
    TextData(str(tmp_path), leave_out=["f.txt"]).open(0)


def test_several_paths_with_their_shares(files):
    paths, _ = files
    data = TextData({str(path): share for path, share in zip(paths, (1, 3), strict=True)})
    sources = data.open(0)
    assert [(source.paths, share) for source, share in sources.values()] == [([paths[0]], 1), ([paths[1]], 3)]
    windows = [window for batch in HeldOutText(sources, Bytes(), 64, data).batches(4) for window in text_of(batch)]
    assert {kind for window in windows for kind in ("document", "other") if kind in window} == {"document", "other"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_rate": 0}, r"data\.mask_rate = 0 is not allowed: it must be above 0 and below 1"),
        ({"max_masked_fraction": 1}, r"data\.max_masked_fraction = 1 is not allowed"),
        ({"validation_fraction": -0.1}, r"data\.validation_fraction = -0\.1 is not allowed"),
        ({"documents_per_pack": 0}, r"data\.documents_per_pack = 0 is not allowed: it must be at least 1"),
        ({"eval_windows": 0}, r"data\.eval_windows = 0 is not allowed"),
        ({"steps_per_epoch": 0}, r"data\.steps_per_epoch = 0 is not allowed"),
        ({"path": {"a": 1.0, "b": 0}}, r"data\.path: the share of b is 0, but it must be larger than 0"),
    ],
)
def test_settings_that_are_not_allowed(settings, message):
    with pytest.raises(PerceiversError, match=message):
        TextData(**settings)


def test_text_has_to_be_named():
    with pytest.raises(PerceiversError, match=r"data\.path is missing"):
        TextData().open(0)


def test_the_number_of_masked_tokens_is_rounded_up():
    data = TextData(max_masked_fraction=0.2)
    batches = [data.mask(np.full((1, length), 70), Bytes(), np.random.default_rng(0)) for length in (1, 5, 6, 2048)]
    assert [batch["indices"].shape[1] for batch in batches] == [1, 1, 2, 410]
