"""What explains a model of a table: the worth of columns, attention, groups, and the report."""

import base64
import html
import io
import json
import re
import wave
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from perceivers.cli import main
from perceivers.data.loader import SampleIndex
from perceivers.data.tables import Table
from perceivers.errors import PerceiversError
from perceivers.tables.columns import (
    Array,
    Categories,
    Category,
    Date,
    Image,
    MaskedText,
    Number,
    Series,
    Sound,
    Text,
    Video,
    YesNo,
)
from perceivers.tables.columns.drawing import draw_lines, format_number
from perceivers.tables.data import all_rows
from perceivers.tables.evaluation import evaluate_rows
from perceivers.tables.explain import explain_rows, explain_table
from perceivers.tables.model import TableModel
from perceivers.tables.predict import predict_rows
from perceivers.tables.report import find_ticks, make_report
from perceivers.tables.rows import TableSamples
from perceivers.tables.training import RowLearner
from perceivers.tables.windows import Window

HERE = Path()


def make_rows(columns):
    count = len(next(iter(columns.values())))
    return all_rows(Table("made.csv", columns, "line", range(2, count + 2)), HERE)


def make_model(rows, inputs, outputs, **sizes):
    """A tiny model whose columns have learned of rows."""
    learned = [{name: rows.learn(name, column) for name, column in part.items()} for part in (inputs, outputs)]
    sizes = {"latents": 4, "channels": 16, "depth": 1, "cross_heads": 2} | sizes
    return TableModel(*learned, **sizes, qk_channels=16, v_channels=16).eval()


def train(model, rows, steps=40):
    learner, samples = RowLearner(model.train()), TableSamples(rows, model.input_columns, model.output_columns, 0.1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for epoch in range(steps):
        for batch in samples.loader(256, seed=epoch):
            optimizer.zero_grad()
            learner.loss(batch).backward()
            optimizer.step()
    model.eval()


@pytest.fixture(scope="module")
def explained():
    """A model of a price that the size decides, besides noise, and what explains it."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    size, noise = random.normal(size=256), random.normal(size=256)
    color = random.choice(["red", "blue", "rare"], size=256, p=[0.5, 0.49, 0.01])
    color[:3] = "rare"
    rows = make_rows(
        {
            "size": [None if row % 10 == 0 else value for row, value in enumerate(size.tolist())],
            "noise": noise.tolist(),
            "color": color.tolist(),
            "price": (3 * size).tolist(),
        }
    )
    model = make_model(rows, {"noise": Number(), "size": Number(), "color": Category()}, {"price": Number()})
    train(model, rows)
    return explain_rows(model, rows, 5)


def test_the_column_that_decides_is_worth_most_and_noise_nothing(explained):
    worth = {found.name: found for found in explained.worth["rmse"]}
    assert explained.worth["rmse"][0].name == "size"
    assert explained.mains == [("rmse", False)]
    assert worth["size"].loss > 1  # of a standard deviation of 3
    assert abs(worth["noise"].loss) < 0.1 * worth["size"].loss
    rows = explained.rows
    assert explained.metrics == pytest.approx(evaluate_rows(explained.model, rows))
    columns = rows.table.columns
    gone = make_rows({name: [None] * len(rows) if name == "size" else cells for name, cells in columns.items()})
    assert worth["size"].metrics == pytest.approx(evaluate_rows(explained.model, gone))  # as if cells were missing
    assert worth["size"].loss == pytest.approx(worth["size"].metrics["rmse"] - explained.metrics["rmse"])


def test_a_masked_text_is_a_missing_one():
    columns = {"text": ["some words", "more of them here", "few"] * 3, "age": [1, 2, 3] * 3, "price": list(range(9))}
    rows = make_rows(columns)
    model = make_model(rows, {"text": Text(hashes=64, width=8), "age": Number()}, {"price": Number()})
    worth = {found.name: found for found in explain_rows(model, rows, 1).worth["rmse"]}
    gone = evaluate_rows(model, make_rows(columns | {"text": [None] * 9}))
    assert worth["text"].metrics == pytest.approx(gone, rel=1e-6)


def test_each_output_is_judged_by_its_first_metric(explained):
    rows = explained.rows
    outputs = {"price": Number(), "color": Category(), "code": MaskedText(), "kind": MaskedText()}
    columns = rows.table.columns | {"code": ["ab"] * len(rows), "kind": ["c"] * len(rows)}
    rows = make_rows(columns)
    model = make_model(rows, {"size": Number(), "noise": Number()}, outputs)
    found = explain_rows(model, rows, 2)
    assert found.mains == [("price_rmse", False), ("color_accuracy", True), ("loss", False)]
    assert {"price_rmse", "color_accuracy", "loss"} <= set(found.metrics)
    for name, is_gain in found.mains:
        worth = found.worth[name]
        assert {one.name for one in worth} == {"size", "noise", "code", "kind"}
        assert [one.loss for one in worth] == sorted((one.loss for one in worth), reverse=True)
        for one in worth:
            assert one.loss == pytest.approx((one.metrics[name] - found.metrics[name]) * (-1 if is_gain else 1))
    page = make_report(found)
    assert re.findall("<h2>What each column is worth: (.*?)</h2>", page) == ["price_rmse", "color_accuracy", "loss"]
    model = make_model(rows, {"size": Number()}, {"color": Category()})
    found = explain_rows(model, rows, 2)
    assert found.mains == [("accuracy", True)]
    (red,) = (group for group in found.groups["color"] if group.label == "red")
    assert set(red.metrics) == {"accuracy"}  # a single category is compared with no other
    assert {"accuracy", "auroc", "f1"} == set(found.groups["size"][0].metrics)


def test_rows_are_evenly_from_the_best_to_the_worst(explained):
    rows, model = explained.rows, explained.model
    (price,) = model.output_columns.values()
    guess = torch.cat([answers["price"] for _, answers in predict_rows(model, rows)])
    truth = torch.tensor(rows.table.columns["price"])
    error = (((guess - truth) / price.std).abs()).tolist()
    order = sorted(range(len(rows)), key=lambda row: error[row])
    assert [case.rank for case in explained.cases] == [0, 64, 128, 191, 255]
    assert [case.row for case in explained.cases] == [order[case.rank] for case in explained.cases]
    for case in explained.cases:
        assert case.answers["price"].item() == pytest.approx(guess[case.row].item(), abs=1e-5)


def test_attention_is_split_by_the_elements_of_each_input():
    texts = ["good and cheap", "bad", "fine work"]
    rows = make_rows({"text": texts, "age": [1.0, None, 3.0], "tags": ["a,b", "b", "a"], "price": [1.0, 2.0, 4.0]})
    inputs = {"text": Text(length=8, hashes=64, width=8), "age": Number(), "tags": Categories()}
    model = make_model(rows, inputs, {"price": Number()}).eval()
    found = explain_rows(model, rows, 3)
    for case in found.cases:
        words = len(texts[case.row].split())
        tags = len(rows.table.columns["tags"][case.row].split(","))
        assert {name: len(weight) for name, weight in case.weights.items()} == {
            "text": 1 + words,
            "age": 1,
            "tags": tags,
        }
        assert sum(case.shares().values()) == pytest.approx(1, abs=1e-5)
        assert case.missing == ({"age"} if case.row == 1 else set())
        weight_M = attend(model, rows, case.row)
        assert torch.allclose(torch.cat(list(case.weights.values())), weight_M, atol=1e-5)
        assert case.shares()["age"] == pytest.approx(float(weight_M[1 + words]), abs=1e-5)


def attend(model, rows, row):
    """The attention of the latents to all elements of a row by the formula, averaged over heads and latents."""
    samples = TableSamples(rows, model.input_columns, model.output_columns)
    batch = samples.collate([samples[SampleIndex(row, 0)]])
    arrays = [
        model.input_padding(name, adapter(batch["inputs"][name]).x_BMC, batch["hidden"][name][:, None])
        for name, adapter in model.inputs.items()
    ]
    layer, taken = model.encoder.cross_attentions[0], {}
    for name in ("query", "key"):
        part = getattr(layer.attention, name)
        part.register_forward_hook(lambda _module, _inputs, output, name=name: taken.__setitem__(name, output[0]))
    with torch.no_grad():
        layer(model.encoder.latents[None], torch.cat(arrays, 1), None)
    query, key = (taken[name].unflatten(-1, (2, -1)).movedim(1, 0) for name in ("query", "key"))  # two heads
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1).mean((0, 1))


def test_metrics_of_groups_are_those_of_their_rows(explained):
    rows, model, columns = explained.rows, explained.model, explained.rows.table.columns
    guess = torch.cat([answers["price"] for _, answers in predict_rows(model, rows)]).numpy()
    error = np.abs(guess - np.array(columns["price"]))
    groups = {group.label: group for group in explained.groups["color"]}
    assert set(groups) == {"red", "blue"} | ({"rare"} if columns["color"].count("rare") >= 5 else set())
    for label, group in groups.items():
        mine = np.array(columns["color"]) == label
        assert group.rows == mine.sum()
        assert group.metrics["mae"] == pytest.approx(error[mine].mean(), rel=1e-4)
        assert group.metrics["rmse"] == pytest.approx(np.sqrt((error[mine] ** 2).mean()), rel=1e-4)
    size = {group.label: group for group in explained.groups["size"]}
    missing = np.array([cell is None for cell in columns["size"]])
    assert size["missing"].metrics["mae"] == pytest.approx(error[missing].mean(), rel=1e-4)
    assert size["missing"].deviation > 2
    assert next(iter(explained.groups)) in ("size", "price")  # they deviate more than color
    known = sorted(cell for cell in columns["size"] if cell is not None)
    quartiles = [group for label, group in size.items() if label != "missing"]
    assert [group.rows for group in quartiles] == pytest.approx([len(known) / 4] * 4, abs=1)
    lowest = np.array([cell is not None and cell <= np.quantile(known, 0.25) for cell in columns["size"]])
    assert quartiles[0].metrics["mae"] == pytest.approx(error[lowest].mean(), rel=1e-4)
    (price,) = model.output_columns.values()
    guess_B, truth_B = ((torch.tensor(n) - price.mean) / price.std for n in (guess, np.array(columns["price"])))
    loss = price.loss(guess_B[:, None, None], truth_B).numpy()
    mine = np.array(columns["color"]) == "red"
    expected = (loss[mine].mean() - loss.mean()) / (loss.std() / np.sqrt(mine.sum()))
    assert groups["red"].deviation == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_groups_may_be_of_any_column_and_of_several_categories(explained):
    rows = explained.rows
    columns = rows.table.columns | {
        "owner": ["x"] * 200 + ["y"] * 56,
        "year": [2000] * 100 + [2001] * 156,
        "tags": ["a, b"] * 10 + ["b"] * 246,
    }
    found = explain_rows(explained.model, make_rows(columns), 1, ["owner", "year"])
    counts = {name: {group.label: group.rows for group in groups} for name, groups in found.groups.items()}
    assert counts == {"owner": {"x": 200, "y": 56}, "year": {"2000": 100, "2001": 156}}
    model = make_model(make_rows(columns), {"tags": Categories()}, {"price": Number()})
    found = explain_rows(model, make_rows(columns), 1)
    assert {group.label: group.rows for group in found.groups["tags"]} == {"a": 10, "b": 256}
    with pytest.raises(PerceiversError, match=r"--group: made\.csv has no column 'ownr': did you mean 'owner'"):
        explain_rows(explained.model, make_rows(columns), 1, ["ownr"])


def test_of_many_rows_some_are_measured(explained, monkeypatch):
    monkeypatch.setattr("perceivers.tables.explain.MOST_ROWS", 64)
    found = explain_rows(explained.model, explained.rows, 1)
    assert (len(found.rows), found.total, found.rows.indices[-1]) == (64, 256, 255)
    assert "64 of 256 rows, at equal distances, of made.csv" in make_report(found)
    assert found.metrics == pytest.approx(evaluate_rows(explained.model, found.rows))


class Page(HTMLParser):
    """The tags of a page, and the text outside of styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += "" if self.open[-1:] == ["style"] else data


EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


def test_a_report_needs_nothing_else_and_escapes_cells(tmp_path):
    count = 12
    columns = {
        EVIL: [EVIL, None, *["plain words"] * (count - 2)],
        "kind": [EVIL, *["b"] * 5, *[EVIL] * 6],
        "tags": [[EVIL, "b"]] * count,
        "price": list(range(1, count + 1)),
        "<u>label": [EVIL, "other"] * (count // 2),
    }
    rows = make_rows(columns)
    inputs = {EVIL: Text(hashes=64, width=8), "kind": Category(), "tags": Categories()}
    model = make_model(rows, inputs, {"price": Number(quantiles=[0.1]), "<u>label": Category()})
    page = Page(report := make_report(explain_rows(model, rows, count)))
    assert page.open == []
    assert not {"script", "u"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?:|url\(|@import", report)
    for tag, attributes in page.tags:
        assert not {"onerror", "href"} & set(attributes)
        assert tag != "link"
        if tag == "img":
            assert attributes["src"].startswith("data:image/png;base64,")
    assert page.text.count(EVIL) > 5
    assert page.text.count("missing") >= 1 + 1  # of the explanation, and of the row
    assert report.count('<i class="missing">missing</i>') == 1
    assert f"{count} rows, from the best to the worst" in page.text
    assert "q10" in page.text


def test_windows_are_drawn_with_their_forecast():
    steps = np.arange(60)
    table = Table(
        "s.csv", {"date": steps.tolist(), "<u>load": (100 + 10 * np.sin(steps / 3)).tolist()}, "row", range(60)
    )
    series = Window(16, 8, "date").open(table)
    rows = all_rows(series.cut(), HERE)
    inputs, outputs = {"history": Series(patch=8), "series": Category()}, {"future": Series(patch=4, follows="history")}
    model = make_model(rows, inputs, outputs)
    model.window = series.window
    found = explain_rows(model, rows, 2)
    report = make_report(found)
    lines = re.findall(r'<polyline class="(\w+)" points="([^"]+)"', report)
    assert [kind for kind, _ in lines] == ["front", "truth", "guess"] * 2
    assert [len(points.split()) for _, points in lines[:3]] == [16, 9, 9]
    row = found.cases[0].row
    assert f"&lt;u&gt;load, from step {row + 16}" in report
    assert "<u>" not in report
    ends = [lines[0][1].split()[-1], lines[1][1].split()[0], lines[2][1].split()[0]]
    assert len(set(ends)) == 1  # they begin where the history ends
    low, high = re.search(r'<span class="quiet">([\d.]+) to ([\d.]+)</span>', report).groups()
    assert 80 < float(low) < float(high) < 120  # in units of the table


def test_numbers_and_categories_are_drawn():
    assert Number().draw("1234567.8", HERE) == "1,234,568"
    assert Number().draw(2014, HERE) == "2014"
    assert [format_number(n) for n in (0.1, 1e-9, 3.0, 1e20)] == ["0.1", "1e-09", "3", "1e+20"]
    known = Category(["<b>", "y"])
    assert known.draw("<b>", HERE) == '<span class="chip">&lt;b&gt;</span>'
    assert 'class="chip unknown"' in known.draw("z", HERE)
    assert "✓ Yes" in YesNo().draw("Yes", HERE)
    assert "✗ 0" in YesNo().draw(0, HERE)
    tags = Categories(["a", "b"], ",").draw("b, a, z", HERE, torch.tensor([0.1, 0.4, 0.2]))  # of unknown ones, a, b
    assert re.findall(r'class="([\w ]+)" style="--w:([\d.]+)">(\w)<', tags) == [
        ("chip", "0.50", "b"),
        ("chip", "1.00", "a"),
        ("chip unknown", "0.25", "z"),
    ]
    assert Date().draw("2026-01-31", HERE) == "2026-01-31"
    assert Date("%d/%m/%Y %H:%M").draw("31/01/2026 14:05", HERE) == "2026-01-31 14:05:00"


def test_texts_are_drawn_with_the_weights_of_words():
    drawn = Text(length=3).draw("Good <i>!", HERE, torch.tensor([0.4, 0.3, 0.15, 0.0]))
    assert '<b style="--w:1.00" title="30.0%">Good</b> <b style="--w:0.50" title="15.0%">&lt;</b>i' in drawn
    assert "the text as a whole: 40.0%" in drawn
    assert 'title="not read">&gt;!</span>' in drawn
    assert html.unescape(re.sub("<[^>]+>", "", Text(length=9).draw("İ am", HERE))) == "i̇ am"
    drawn = MaskedText(length=9).draw("é[MASK*2]<", HERE, torch.tensor([0.1, 0.1, 0.4, 0.0, 0.3]))
    assert '<b style="--w:0.50" title="20.0%">é</b>' in drawn  # both bytes
    assert drawn.count("▒") == 2
    assert "&lt;" in drawn


def find_picture(drawn):
    """The picture of an image as an array of colors."""
    content = base64.b64decode(re.search(r"base64,([^\"]+)", drawn)[1])
    return np.asarray(PillowImage.open(io.BytesIO(content)).convert("RGB")).astype(int)


def test_pictures_and_arrays_are_drawn_red_where_attention_is(tmp_path):
    PillowImage.fromarray(np.full((8, 8, 3), 100, dtype=np.uint8)).save(tmp_path / "gray.png")
    image = Image(size=8, patch=4)
    assert (find_picture(image.draw("gray.png", tmp_path)) == 100).all()
    colors = find_picture(image.draw("gray.png", tmp_path, torch.tensor([0.1, 0.7, 0.1, 0.1])))
    assert colors[0, 7].tolist() == pytest.approx([172, 58, 58], abs=1)  # 0.6 of red
    assert colors[7, 0].tolist() == [100, 100, 100]
    even = find_picture(image.draw("gray.png", tmp_path, torch.full((4,), 0.25)))
    assert (even == 100).all()
    heat = find_picture(Array(shape=[2, 3]).draw([[0, 1, 2], [3, 4, 5]], HERE))
    assert heat[..., 0].tolist() == [[0, 51, 102], [153, 204, 255]]
    assert "<polyline" in Array(shape=[3]).draw("[1, 2, 3]", HERE, torch.tensor([0.1, 0.2, 0.7]))
    assert "2 x 2 x 1 numbers" in Array(shape=[2, 2, 1]).draw([[[1], [2]], [[3], [4]]], HERE)


def test_series_are_drawn_with_the_weights_of_patches():
    column = Series(length=8, patch=4)
    drawn = column.draw(list(range(6)), HERE, torch.tensor([0.2, 0.8]))
    bands = re.findall(r'--w:([\d.]+)" x="([\d.]+)" y="0" width="([\d.]+)"', drawn)
    assert bands == [("0.25", "0.0", "128.0"), ("1.00", "128.0", "256.0")]  # the first patch begins before the series
    points = re.search(r'points="([^"]+)"', drawn)[1].split()
    assert (points[0], points[-1], len(points)) == ("0.0,76.0", "320.0,4.0", 6)
    long = draw_lines([("front", 0, np.sin(np.arange(100_000)))])
    assert len(long) < 20_000
    assert "-1 to 1" in long


def test_sounds_and_clips_are_drawn(tmp_path, monkeypatch):
    with wave.open(str(tmp_path / "beep.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes((8000 * np.sin(np.arange(4000))).astype("<i2").tobytes())
    sound = Sound(seconds=1.0, sample_rate=8000)
    drawn = sound.draw("beep.wav", tmp_path, torch.rand(sound.patches * 4))
    assert "sound of 0.5 s" in drawn
    assert drawn.count('class="band"') == 13  # of 40 ms
    content = re.search(r'<audio controls src="data:audio/wav;base64,([^"]+)"></audio>', drawn)[1]
    assert base64.b64decode(content) == (tmp_path / "beep.wav").read_bytes()
    monkeypatch.setattr("perceivers.tables.columns.sound.LARGEST_PLAYED", 8000)  # the file has 8,044 bytes
    assert "<audio" not in sound.draw("beep.wav", tmp_path)
    frames = [PillowImage.fromarray(np.full((16, 16, 3), 50, dtype=np.uint8)) for _ in range(4)]
    frames[3].putpixel((0, 0), (60, 50, 50))  # so that no frame is left out
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    strip = find_picture(Video(frames=4, size=8).draw("clip.gif", tmp_path, torch.tensor([0.1, 0.9])))
    assert strip.shape == (8, 32, 3)
    red = strip[4, 4::8, 0] - strip[4, 4::8, 1]
    assert red[:2].tolist() == pytest.approx([0, 0], abs=4)
    assert (red[2:] > 60).all()  # the frames of the second patch


def test_ticks_are_round_numbers_in_the_range():
    assert find_ticks(0, 10, False) == [0, 2, 4, 6, 8, 10]
    assert find_ticks(-0.4, 1.3, False) == [0, 0.5, 1.0]
    assert find_ticks(15_000, 5_900_000, True) == [30_000, 100_000, 300_000, 1_000_000, 3_000_000]
    assert find_ticks(7, 7, False) == [7]


def test_the_command_writes_a_report(explained, tmp_path, capsys):
    rows, out = explained.rows, tmp_path / "report.html"
    explained.model.save(tmp_path / "model")
    table = rows.table.columns
    lines = [json.dumps({name: cells[row] for name, cells in table.items()}) for row in range(len(rows))]
    (tmp_path / "test.jsonl").write_text("\n".join(lines) + "\n")
    command = ["explain", str(tmp_path / "model"), "--data", str(tmp_path / "test.jsonl"), "--out", str(out)]
    main([*command, "--rows", "3", "--group", "color", "--device", "cpu"])
    assert f"Written to {out}" in capsys.readouterr().out
    page = out.read_text()
    assert page.count("<article") == 3
    assert "How price is predicted" in page
    assert "256 rows of test.jsonl" in page
    with pytest.raises(PerceiversError, match="there is no folder"):
        explain_table(explained.model, str(tmp_path / "test.jsonl"), tmp_path / "none" / "report.html")
