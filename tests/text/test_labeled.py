import json
import pickle

import pytest

from perceivers import PerceiversError
from perceivers.text.labeled import LabeledTextData, LabeledTexts


def make(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def make_parquet(path, columns):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(columns), path)
    return str(path)


def rows(count, header="text,label"):
    """CSV of texts t0, t1, ... with the labels a, b, a, b, ..."""
    return "\n".join([header, *(f"t{i},{'ab'[i % 2]}" for i in range(count))]) + "\n"


def together(splits):
    """All examples, those that are held out last."""
    return splits.training.texts + splits.evaluation.texts, splits.training.labels + splits.evaluation.labels


def test_csv_with_quotes_line_ends_in_fields_and_a_byte_order_mark(tmp_path):
    content = '\ufefflabel,text\r\npos,"a ""b"", c"\r\n\r\nneg,"two\r\nlines"\r\n pos ,grün\r\nneg,d\r\n'
    texts, labels = together(LabeledTextData(make(tmp_path / "a.csv", content)).open())
    assert dict(zip(texts, labels, strict=True)) == {('a "b", c',): 1, ("two\r\nlines",): 0, ("grün",): 1, ("d",): 0}


def test_a_part_is_held_out_at_random_and_always_the_same(tmp_path):
    data = LabeledTextData(make(tmp_path / "a.csv", rows(40)), validation_fraction=0.2)
    splits = data.open()
    assert (len(splits.training), len(splits.evaluation)) == (32, 8)
    assert len({*splits.training.texts, *splits.evaluation.texts}) == 40
    assert sorted(splits.evaluation.texts) != sorted((f"t{i}",) for i in range(8))
    assert all(label == int(text[1:]) % 2 for (text,), label in zip(*together(splits), strict=True))
    assert data.open() == splits
    assert len(LabeledTextData(data.path, validation_fraction=0.99).open().training) == 1
    assert pickle.loads(pickle.dumps(splits)) == splits


def test_a_part_of_the_examples():
    texts = LabeledTexts([("a",), ("b",), ("c",)], [0.5, 1.5, 2.5], None)
    assert texts.subset([2, 0]) == LabeledTexts([("c",), ("a",)], [2.5, 0.5], None)
    assert len(texts) == 3


def test_every_kind_of_file_gives_the_same(tmp_path):
    texts, labels = ["b c", "d", "e", "f"], [10, 9, 9, 10]
    pairs = list(zip(texts, labels, strict=True))
    paths = [
        make(tmp_path / "a.csv", "text,label\n" + "".join(f"{t},{n}\n" for t, n in pairs)),
        make(tmp_path / "a.TSV", "text\tlabel\n" + "".join(f"{t}\t{n}\n" for t, n in pairs)),
        make(tmp_path / "a.jsonl", "\n\n".join(json.dumps({"text": t, "label": n}) for t, n in pairs)),
        make(tmp_path / "a.json", "".join(json.dumps({"label": n, "text": t}) + "\r\n" for t, n in pairs)),
        make_parquet(tmp_path / "a.parquet", {"text": texts, "label": labels}),
    ]
    opened = [LabeledTextData(path).open() for path in paths]
    assert all(splits == opened[0] for splits in opened)
    assert opened[0].training.classes == ["9", "10"]
    assert dict(zip(*together(opened[0]), strict=True)) == {("b c",): 1, ("d",): 0, ("e",): 0, ("f",): 1}


@pytest.mark.parametrize("name", ["dev", "validation", "val", "valid", "test"])
def test_folder_with_splits(tmp_path, name):
    make(tmp_path / "train.csv", rows(6))
    make(tmp_path / f"{name}.csv", "label,text\nb,x\n")
    make(tmp_path / "README.md", "no table")
    splits = LabeledTextData(str(tmp_path)).open()
    assert splits.training.texts == [(f"t{i}",) for i in range(6)]
    assert splits.evaluation == LabeledTexts([("x",)], [1], ["a", "b"])


def test_validation_goes_before_test_and_a_folder_without_both_holds_out(tmp_path):
    make(tmp_path / "train.csv", rows(10))
    assert len(LabeledTextData(str(tmp_path), validation_fraction=0.3).open().evaluation) == 3
    make(tmp_path / "test.csv", "text,label\nx,a\n")
    make(tmp_path / "valid.csv", "text,label\ny,a\n")
    assert LabeledTextData(str(tmp_path)).open().evaluation.texts == [("y",)]


def test_parquet_in_parts_with_class_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"review": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    for part in range(2):
        columns = {"review": [f"{part}{i}" for i in "xyz"], "label": [1, 0, part]}
        datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / f"train-0000{part}-of-00002.parquet")
    texts, labels = together(LabeledTextData(str(tmp_path)).open())
    assert dict(zip(texts, labels, strict=True)) == {
        ("0x",): 1, ("0y",): 0, ("0z",): 0, ("1x",): 1, ("1y",): 0, ("1z",): 1,
    }  # fmt: skip
    (tmp_path / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(
        PerceiversError, match=r"train-00001-of-00002.parquet is one of several files, but only 1 exist"
    ):
        LabeledTextData(str(tmp_path)).open()


def test_data_set_of_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["z", "a"])})

    def load(name, configuration):
        assert (name, configuration) == ("some/name", "small")
        splits = {"train": [0, 1, 1, 0], "unsupervised": [-1], "test": [1]}
        return {
            key: datasets.Dataset.from_dict({"text": [key] * len(labels), "label": labels}, features)
            for key, labels in splits.items()
        }

    monkeypatch.setattr(datasets, "load_dataset", load)
    splits = LabeledTextData("some/name:small").open()
    assert splits.training.classes == ["a", "z"]
    assert (splits.training.labels, splits.evaluation.labels) == ([1, 0, 0, 1], [0])


def test_a_label_below_0_is_none(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    columns = {"text": list("abcde"), "label": [1, -1, 0, 0, 1]}
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "a.parquet")
    texts, _ = together(LabeledTextData(str(tmp_path / "a.parquet")).open())
    assert sorted(texts) == [("a",), ("c",), ("d",), ("e",)]


@pytest.mark.parametrize(
    ("header", "fields"),
    [
        ("Review,Sentiment,words", {}),  # usual names
        ("headline,label,id", {}),  # the only text
        ("headline,genre,label", {"text": ["headline"]}),
        ("headline,label,genre", {"text": ["headline"], "label": "label"}),
        ("text,genre,class", {"label": "genre"}),
    ],
)
def test_columns_are_found_or_given(tmp_path, header, fields):
    label = fields.get("label") or next(n for n in header.split(",") if n in ("Sentiment", "label", "class"))
    place = header.split(",").index(label)
    lines = [header]
    for i in range(6):
        cells = [f"t{i}", "w", "w"] if "id" not in header else [f"t{i}", "", f"-{i}.5e2"]
        cells[place] = "ab"[i % 2]
        lines.append(",".join(cells))
    texts, labels = together(LabeledTextData(make(tmp_path / "a.csv", "\n".join(lines)), **fields).open())
    assert dict(zip(texts, labels, strict=True)) == {(f"t{i}",): i % 2 for i in range(6)}


def test_pairs(tmp_path):
    content = "premise,label,hypothesis\n" + "".join(f"p{i},{'ab'[i % 2]},h{i}\n" for i in range(4))
    splits = LabeledTextData(make(tmp_path / "a.csv", content), ["hypothesis", "premise"]).open()
    assert sorted(splits.training.texts + splits.evaluation.texts) == [(f"h{i}", f"p{i}") for i in range(4)]


def test_long_texts(tmp_path):
    path = make(tmp_path / "a.csv", rows(4) + "x" * 200_000 + ",a\n")
    assert max(len(text) for (text,) in together(LabeledTextData(path).open())[0]) == 200_000


GOOD = rows(4)


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"),
    [
        ("a.csv", "", {}, "a.csv has no rows"),
        ("a.csv", "text,label\n\n", {}, "a.csv has no rows"),
        ("a.jsonl", "\n", {}, "a.jsonl has no rows"),
        ("a.csv", GOOD + "x\n", {}, "line 6 of .*a.csv has 1 fields, but the file has 2 columns"),
        ("a.csv", 'text,label\n"x\n\ny",a\nx,y,b\n', {}, "line 5 of .*a.csv has 3 fields, but the file has 2 columns"),
        ("a.csv", GOOD + '"x,a\ny,b\n', {}, "line 6 of .*a.csv cannot be read .*has to end with one"),
        ("a.csv", "text,label,text\nx,y,z\n", {}, "has the column 'text' twice"),
        ("a.csv", GOOD.encode() + "né,a\n".encode("latin-1"), {}, "a.csv is not UTF-8 text: byte 32 is 0xe9"),
        ("a.csv", b"\xef\xbb\xbf\xff", {}, "byte 3 is 0xff"),
        ("a.csv", rows(4, "text,kind"), {}, "has the columns 'text', 'kind': say with data.label"),
        ("a.csv", "text,label,class\nx,y,z\n", {}, "say with data.label"),
        ("a.csv", "label,a,b\nx,y,z\n", {}, "has the columns 'label', 'a', 'b': say with data.text"),
        ("a.csv", "label,text,review\nx,y,z\n", {}, "say with data.text"),
        ("a.csv", "label,number\nx,1\n", {}, "say with data.text"),
        ("a.csv", GOOD, {"text": ["txt"]}, r"data.text: .*a.csv has no column 'txt'; it has 'text', 'label'\."),
        ("a.csv", GOOD, {"label": "class"}, "data.label: .*a.csv has no column 'class'; it has 'text', 'label'"),
        ("a.csv", "so " * 50 + ",b\nx,y\n", {}, r"has the columns '(so )+so\.\.\.', 'b'"),
        ("a.csv", "text,label\nx,a\ny,a\n", {}, "has only the class 'a': a classifier needs at least two"),
        ("a.csv", "text,label\nx,a\ny,b\nz,c\nz,c\nz,c\n", {}, "has 3 different labels for 5 texts .*data.label"),
        ("a.jsonl", '{"text": "x", "label": 1}\n\n{"text"\n', {}, "line 3 of .*a.jsonl is not a JSON object"),
        ("a.json", '[{"text": "x", "label": 1}, 7]', {}, "row 1 of .*a.json is not a JSON object"),
        ("a.json", '[{"text": "x", "label": 1}', {}, "a.json is not valid JSON"),
        ("a.json", "[" * 100_000, {}, "a.json is not valid JSON"),
        ("a.jsonl", '{"text": "x", "label": ' + "9" * 5000 + "}", {}, "line 1 of .*a.jsonl is not a JSON object"),
        (
            "a.jsonl",
            '{"text": "x", "label": [' + "1, " * 5000 + "1]}",
            {},
            r"line 1 of .* has \[1.{,250} instead of a text",
        ),
        ("a.csv", "text label\nx a\n", {}, "a.csv has the single column 'text label': separate columns by"),
        ("a.csv", "text,label\n,a\nx,\n", {}, "a.csv has no row with text and label"),
        ("a.jsonl", '{"text": "x", "label": [1]}', {}, r"line 1 of .* has \[1\] in column 'label'"),
        ("a.parquet", b"PAR1", {}, "a.parquet cannot be read as parquet"),
        ("a.xlsx", "", {}, "a.xlsx is not a table: a file with the suffix .csv, "),
        ("train.csv/a.txt", "", {}, "has no file .* called 'train'"),
    ],
)
def test_unusable_data_is_refused(tmp_path, name, content, fields, message):
    path = make(tmp_path / name, content)
    with pytest.raises(PerceiversError, match=message):
        LabeledTextData(str(tmp_path / "train.csv") if "/" in name else path, **fields).open()


MISSING = [("a.csv", GOOD + content) for content in (" ,a\n", '"\n\n",a\n', "x, \n", "x,\n")] + [
    ("a.jsonl", "".join(json.dumps({"text": str(k), "label": k % 2}) + "\n" for k in range(4)) + last)
    for last in (
        '{"text": "y"}',
        '{"text": "y", "label": NaN}',
        '{"text": null, "label": 1}',
        '{"text": " ", "label": 1}',
    )
]


@pytest.mark.parametrize(("name", "content"), MISSING)
def test_rows_without_text_or_label_are_left_out_and_counted(tmp_path, capsys, name, content):
    splits = LabeledTextData(make(tmp_path / name, content)).open()
    assert (len(splits.training), len(splits.evaluation)) == (3, 1)
    assert f"Left out of {tmp_path / name}: 1 of 5 rows, without text or label." in capsys.readouterr().err


def test_texts_are_not_numbers(tmp_path):
    content = "".join(
        json.dumps({"text": text, "label": label}) + "\n" for text, label in (("x", 0), ("y", 1), (7, 0), ("z", 1))
    )
    with pytest.raises(PerceiversError, match=r"line 3 of .* has 7 in column 'text' instead of text"):
        LabeledTextData(make(tmp_path / "a.jsonl", content)).open()


def test_parquet_rows_without_text_or_any(tmp_path):
    path = make_parquet(tmp_path / "a.parquet", {"text": ["x", "y", None, "z", "w"], "label": [0, 0, 1, 1, 1]})
    assert sorted(together(LabeledTextData(path).open())[0]) == [("w",), ("x",), ("y",), ("z",)]
    with pytest.raises(PerceiversError, match=r"b.parquet has no rows"):
        LabeledTextData(make_parquet(tmp_path / "b.parquet", {"text": [], "label": []})).open()


def test_parquet_files_that_announce_many_rows_are_not_read(tmp_path, monkeypatch):
    path = make_parquet(tmp_path / "a.parquet", {"text": ["x"] * 1000, "label": ["a", "b"] * 500})
    monkeypatch.setenv("PERCEIVERS_MAX_VALUES", "999")
    with pytest.raises(PerceiversError, match=r"a\.parquet has 1,000 rows, more than 999: set PERCEIVERS_MAX_VALUES"):
        LabeledTextData(path).open()
    monkeypatch.setenv("PERCEIVERS_MAX_VALUES", "1000")
    assert len(LabeledTextData(path).open().training) == 900


def test_quotes_in_tsv_are_characters(tmp_path):
    content = 'text\tlabel\nfine film\tpos\n"I loved it\tpos\nwent twice\tpos\nand again"\tneg\na "b" c\tneg\n'
    texts, labels = together(LabeledTextData(make(tmp_path / "a.tsv", content)).open())
    found = dict(zip(texts, labels, strict=True))
    assert found == {
        ("fine film",): 1, ('"I loved it',): 1, ("went twice",): 1, ('and again"',): 0, ('a "b" c',): 0
    }  # fmt: skip


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
def test_other_separators_and_arrays_are_read(tmp_path, name):
    rows = [(f"a, {k}", "xy"[k % 2]) for k in range(4)]
    content = "text;label\n" + "".join(f"{text};{label}\n" for text, label in rows)
    if name == "a.json":
        content = json.dumps([{"text": text, "label": label} for text, label in rows])
    texts, labels = together(LabeledTextData(make(tmp_path / name, content)).open())
    assert sorted(zip(texts, labels, strict=True)) == [((text,), "xy".index(label)) for text, label in rows]


def test_whole_numbers_beside_a_missing_one_are_the_same_classes(tmp_path):
    make_parquet(tmp_path / "train.parquet", {"text": list("abcde"), "label": [0.0, 1.0, 0.0, 1.0, float("nan")]})
    make_parquet(tmp_path / "test.parquet", {"text": list("ab"), "label": [0, 1]})
    splits = LabeledTextData(str(tmp_path)).open()
    assert (splits.training.classes, splits.evaluation.labels) == (["0", "1"], [0, 1])


@pytest.mark.parametrize("content", ["text\nx\ny\n", "text,label\nx,\ny, \n"])
def test_a_split_without_labels_is_not_evaluated_on(tmp_path, capsys, content):
    make(tmp_path / "Train.CSV", rows(10))
    make(tmp_path / "test.csv", content)
    splits = LabeledTextData(str(tmp_path)).open()
    assert (len(splits.training), len(splits.evaluation)) == (9, 1)
    assert "test.csv has no labels: it is not evaluated on." in capsys.readouterr().err


def test_splits_that_do_not_fit(tmp_path):
    make(tmp_path / "train.csv", rows(4))
    make(tmp_path / "dev.csv", "text,label\nx,a\n\ny,c\n")
    with pytest.raises(PerceiversError, match=r"line 4 of .*dev.csv has the label 'c', which the training texts do"):
        LabeledTextData(str(tmp_path)).open()
    make(tmp_path / "dev.csv", "txt,label\nx,a\n")
    with pytest.raises(PerceiversError, match=r"data.text: .*dev.csv has no column 'text'"):
        LabeledTextData(str(tmp_path)).open()
    make(tmp_path / "train.tsv", "text\tlabel\n")
    with pytest.raises(PerceiversError, match=r"train.csv and train.tsv are of the same split"):
        LabeledTextData(str(tmp_path)).open()


def test_what_a_model_is_evaluated_on(tmp_path):
    """Of a folder the split for it; of a file all, or what training held out of it."""
    path = make(tmp_path / "a.csv", rows(20))
    examples, part = LabeledTextData(path).open_evaluation(["b", "c", "a"])
    assert (len(examples), str(part)) == (20, "20 of 20 texts")
    assert (examples.labels[:3], examples.classes) == ([2, 0, 2], ["b", "c", "a"])
    held_out, part = LabeledTextData(path).open_evaluation(["a", "b"], validation_fraction=0.25)
    assert held_out == LabeledTextData(path, validation_fraction=0.25).open().evaluation
    assert str(part) == "5 of 20 texts"
    folder = tmp_path / "folder"
    make(folder / "test.csv", rows(3))
    data = LabeledTextData(str(folder))
    assert str(data.open_evaluation(["a", "b"])[1]) == "3 of 3 texts (test)"
    make(folder / "train.csv", rows(10))
    for fraction in (None, 0.5):
        assert str(data.open_evaluation(["a", "b"], None, fraction)[1]) == "3 of 13 texts (test)"
    assert str(data.open_evaluation(["a", "b"], "train")[1]) == "10 of 13 texts (train)"
    with pytest.raises(PerceiversError, match=r"folder has no split 'val', only train and test"):
        data.open_evaluation(["a", "b"], "val")
    (folder / "test.csv").unlink()
    assert str(data.open_evaluation(["a", "b"])[1]) == "10 of 10 texts (train)"
    assert str(data.open_evaluation(["a", "b"], None, 0.5)[1]) == "5 of 10 texts (train)"
    (folder / "train.csv").unlink()
    make(folder / "reviews.csv", rows(10))
    with pytest.raises(PerceiversError, match=r"folder has no table with labels called train, val, test: give a file"):
        data.open_evaluation(["a", "b"])
    with pytest.raises(PerceiversError, match=r"line 3 of .*a.csv has the label 'b', which the model does not know"):
        LabeledTextData(path).open_evaluation(["a", "c"])


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(PerceiversError, match=r"data.path is not given"):
        LabeledTextData().open()
    with pytest.raises(PerceiversError, match=r"a.csv does not exist"):
        LabeledTextData(str(tmp_path / "a.csv")).open()
    pytest.importorskip("datasets")
    with pytest.raises(PerceiversError, match=r"is neither here nor on the Hub"):
        LabeledTextData(str(tmp_path / "a")).open()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"validation_fraction": 0.0}, "data.validation_fraction = 0.0"),
        ({"validation_fraction": 1.0}, "data.validation_fraction = 1.0"),
        ({"text": []}, "one column, or two for pairs"),
        ({"text": ["a", "b", "c"]}, "one column, or two for pairs"),
        ({"text": ["a", "a"]}, "has a column twice"),
        ({"text": ["a"], "label": "a"}, "or that of data.label"),
    ],
)
def test_fields_that_are_not_allowed(fields, message):
    with pytest.raises(PerceiversError, match=message):
        LabeledTextData("a.csv", **fields)
