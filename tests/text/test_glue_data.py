from collections import Counter

import pytest

from perceivers import PerceiversError
from perceivers.text.glue_data import TASKS, GlueData
from perceivers.text.labeled import LabeledTexts
from tests.support.glue import header, write_rows

MNLI = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
    "sentence1 sentence2 {}gold_label"
)


def make_rte(folder, *dev):
    write_rows(
        folder / "train.tsv", header("index sentence1 sentence2 label"), "0|a|b|entailment", "1|c|d|not_entailment"
    )
    write_rows(folder / "dev.tsv", header("index sentence1 sentence2 label"), *dev)


def make_parquet(path, labels, names=None, **texts):
    datasets = pytest.importorskip("datasets")
    label = datasets.ClassLabel(names=names) if names else datasets.Value("float32" if "stsb" in str(path) else "int64")
    features = {name: datasets.Value("string") for name in texts} | {"label": label, "idx": datasets.Value("int32")}
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = texts | {"label": labels, "idx": list(range(len(labels)))}
    datasets.Dataset.from_dict(columns, datasets.Features(features)).to_parquet(path)


def test_real_files(shared_data):
    data = GlueData(str(shared_data / "glue"))
    tasks = data.open()
    assert data.missing() == ["MNLI", "QNLI", "QQP"]
    assert list(tasks) == ["CoLA", "MRPC", "RTE", "SST-2", "STS-B"]
    assert all(list(splits.evaluation) == [name] for name, splits in tasks.items())
    # the hub's MRPC has 3668 to train on; the file here lacks one of class 1
    counts = {
        "CoLA": ({0: 2528, 1: 6023}, {0: 322, 1: 721}),
        "MRPC": ({0: 1194, 1: 2473}, {0: 129, 1: 279}),
        "RTE": ({0: 1249, 1: 1241}, {0: 146, 1: 131}),
        "SST-2": ({0: 29780, 1: 37569}, {0: 428, 1: 444}),
    }
    for name, expected in counts.items():
        splits = tasks[name]
        assert (Counter(splits.training.labels), Counter(splits.evaluation[name].labels)) == expected, name
    scores = tasks["STS-B"].training.labels, tasks["STS-B"].evaluation["STS-B"].labels
    assert [len(part) for part in scores] == [5749, 1500]
    assert [sum(part) / len(part) for part in scores] == pytest.approx([2.7010, 2.3639], abs=1e-4)
    assert tasks["CoLA"].training.texts[0][0].startswith("Our friends won't buy this analysis")
    assert tasks["MRPC"].evaluation["MRPC"].texts[0][1].startswith('" The foodservice pie business')
    assert tasks["STS-B"].evaluation["STS-B"].texts[1] == (
        "A young child is riding a horse.",
        "A child is riding a horse.",
    )
    assert all(part for splits in tasks.values() for text in splits.training.texts for part in text)


def test_names_and_metrics_of_the_tasks():
    assert list(TASKS) == ["CoLA", "MNLI", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B"]
    assert {name: task.metric for name, task in TASKS.items() if task.metric != "accuracy"} == {
        "CoLA": "matthews",
        "STS-B": "pearson",
    }


def test_tsv_of_mnli_qnli_and_qqp(tmp_path, capsys):
    cells = "0|1|1e|fiction|( a )|( b )|(a|b)|"
    write_rows(
        tmp_path / "MNLI" / "train.tsv", header(MNLI.format("label1 ")), cells + 'say "x|y|neutral|contradiction'
    )
    for kind, label in (("matched", "neutral"), ("mismatched", "entailment")):
        columns = header(MNLI.format("label1 label2 "))
        write_rows(tmp_path / "MNLI" / f"dev_{kind}.tsv", columns, cells + f"{kind}|z|entailment|neutral|{label}")
    columns = header("index question sentence label")
    write_rows(tmp_path / "qnli" / "train.tsv", columns, "0|why?|so|not_entailment", '1|"who|me"|entailment')
    write_rows(tmp_path / "qnli" / "dev.tsv", columns, "0|where?|here|entailment")
    columns = header("id qid1 qid2 question1 question2 is_duplicate")
    write_rows(tmp_path / "QQP" / "train.tsv", columns, "1|2|3|what?|which?|1", "4|5|6|broken", "7", "8|9|10||no?|0")
    write_rows(tmp_path / "QQP" / "dev.tsv", columns, "1|2|3|a|b|0")
    tasks = GlueData(str(tmp_path)).open()
    assert list(tasks) == ["MNLI", "QNLI", "QQP"]
    classes = ["entailment", "neutral", "contradiction"]
    assert tasks["MNLI"].training == LabeledTexts([('say "x', "y")], [2], classes)
    assert tasks["MNLI"].evaluation == {
        "MNLI_matched": LabeledTexts([("matched", "z")], [1], classes),
        "MNLI_mismatched": LabeledTexts([("mismatched", "z")], [0], classes),
    }
    assert tasks["QNLI"].training.texts == [("why?", "so"), ('"who', 'me"')]
    assert (tasks["QNLI"].training.labels, tasks["QNLI"].evaluation["QNLI"].labels) == ([1, 0], [0])
    assert tasks["QQP"].training == LabeledTexts(
        [("what?", "which?"), ("", "no?")], [1, 0], ["not_duplicate", "duplicate"]
    )
    assert capsys.readouterr().err == f"Skipped: 2 rows of {tmp_path}/QQP/train.tsv that have too few fields.\n"


def test_files_of_the_hub_in_a_folder(tmp_path):
    classes = ["entailment", "neutral", "contradiction"]
    for split, labels in (("train", [2, 0]), ("validation_matched", [1]), ("validation_mismatched", [0])):
        texts = [f"{split}{i}" for i in range(len(labels))]
        path = tmp_path / "mnli" / f"{split}-00000-of-00001.parquet"
        make_parquet(path, labels, classes, premise=texts, hypothesis=["h"] * len(labels))
    for split, scores in (("train", [0.0, 3.8]), ("validation", [5.0])):
        texts = ["a"] * len(scores)
        path = tmp_path / "stsb" / f"{split}-00000-of-00001.parquet"
        make_parquet(path, scores, sentence1=texts, sentence2=texts)
    for split, labels in (("train", [1, 0]), ("validation", [1]), ("test", [-1])):  # without the names of the classes
        make_parquet(tmp_path / "sst2" / f"{split}-00000-of-00001.parquet", labels, sentence=["s "] * len(labels))
    tasks = GlueData(str(tmp_path)).open()
    assert list(tasks) == ["MNLI", "SST-2", "STS-B"]
    assert tasks["MNLI"].training == LabeledTexts([("train0", "h"), ("train1", "h")], [2, 0], classes)
    assert tasks["MNLI"].evaluation["MNLI_matched"].texts == [("validation_matched0", "h")]
    assert tasks["MNLI"].evaluation["MNLI_mismatched"].labels == [0]
    assert tasks["STS-B"].training.labels == pytest.approx([0.0, 3.8])
    assert tasks["STS-B"].evaluation["STS-B"].classes is None
    assert tasks["SST-2"].training == LabeledTexts([("s ",), ("s ",)], [1, 0], ["negative", "positive"])
    (tmp_path / "mnli" / "validation_mismatched-00000-of-00001.parquet").unlink()
    with pytest.raises(
        PerceiversError, match=r"mnli/validation_mismatched-00000-of-00001.parquet does not exist; MNLI"
    ):
        GlueData(str(tmp_path)).open()


def test_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, configuration):
        asked.append((name, configuration))
        text, label = datasets.Value("string"), datasets.ClassLabel(names=TASKS[configuration.upper()].classes)
        features = datasets.Features({"sentence1": text, "sentence2": text, "label": label})
        split = datasets.Dataset.from_dict({"sentence1": ["a"], "sentence2": ["b"], "label": [1]}, features)
        return {"train": split, "validation": split} if configuration == "rte" else {"train": split}

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = GlueData(tasks=["rte"])
    assert data.missing() == []
    assert data.open()["RTE"].evaluation["RTE"] == LabeledTexts([("a", "b")], [1], ["entailment", "not_entailment"])
    assert asked == [("nyu-mll/glue", "rte")]
    with pytest.raises(PerceiversError, match=r"nyu-mll/glue has no split 'validation' of MRPC; it has train\."):
        GlueData(tasks=["MRPC"]).open()


@pytest.mark.parametrize("folder", ["STS-B", "STSB", "stsb", "sts_b"])
def test_folders_are_found_however_they_are_written(tmp_path, folder):
    write_rows(tmp_path / folder / "train.tsv", header("sentence1 sentence2 score"), "a|b|1.25")
    write_rows(tmp_path / folder / "dev.tsv", header("score sentence2 sentence1"), "5.000|b|a")
    (tmp_path / "WNLI").mkdir()
    splits = GlueData(str(tmp_path)).open()["STS-B"]
    assert splits.training == LabeledTexts([("a", "b")], [1.25], None)
    assert splits.evaluation == {"STS-B": LabeledTexts([("a", "b")], [5.0], None)}


def test_tasks_asked_for(tmp_path):
    make_rte(tmp_path / "RTE", "0|e|f|entailment")
    data = GlueData(str(tmp_path), ["SST-2", "rte", "CoLA"])
    assert list(data.open()) == ["RTE"]
    assert data.missing() == ["CoLA", "SST-2"]
    with pytest.raises(PerceiversError, match=r"has no folder for CoLA: one per task is expected, with train.tsv"):
        GlueData(str(tmp_path), ["CoLA"]).open()
    with pytest.raises(PerceiversError, match=r"there is no task 'MLNI': did you mean 'MNLI'\?"):
        GlueData(str(tmp_path), ["MLNI"])
    with pytest.raises(PerceiversError, match=r"data.tasks is empty"):
        GlueData(str(tmp_path), [])
    with pytest.raises(PerceiversError, match=r"dev.tsv is a file: give the folder"):
        GlueData(str(tmp_path / "RTE" / "dev.tsv")).open()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0|e|f|neutral", r"line 2 of .*dev.tsv has the label 'neutral', where RTE has entailment, not_entailment"),
        ("0|e|f|2", "line 2 of .*dev.tsv has the label '2'"),
        ("0|e|f|", "line 2 of .*dev.tsv has the label ''"),
        ("0|e|f", "line 2 of .*dev.tsv has 3 fields, but the file has 4 columns"),
        ("0|e|f|entailment|g", "line 2 of .*dev.tsv has 5 fields"),
    ],
)
def test_wrong_rows_are_named(tmp_path, row, message):
    make_rte(tmp_path / "RTE", row)
    with pytest.raises(PerceiversError, match=message):
        GlueData(str(tmp_path)).open()


@pytest.mark.parametrize("score", ["5.01", "-0.1", "nan", "", "high"])
def test_wrong_scores_are_named(tmp_path, score):
    columns = header("sentence1 sentence2 score")
    write_rows(tmp_path / "STS-B" / "train.tsv", columns, "a|b|0", "a|b|5", f"a|b|{score}")
    with pytest.raises(
        PerceiversError, match=rf"line 4 of .*train.tsv has the score '{score}', where STS-B has a numb"
    ):
        GlueData(str(tmp_path)).open()


def test_missing_files_and_columns_are_named(tmp_path):
    make_rte(tmp_path / "RTE", "0|e|f|entailment")
    write_rows(tmp_path / "RTE" / "dev.tsv", header("index sentence1 label"), "0|e|entailment")
    with pytest.raises(
        PerceiversError, match=r"dev.tsv has no column 'sentence2' of RTE; it has 'index', 'sentence1', 'label'"
    ):
        GlueData(str(tmp_path)).open()
    (tmp_path / "RTE" / "dev.tsv").unlink()
    with pytest.raises(PerceiversError, match=r"RTE/dev.tsv does not exist; RTE needs it"):
        GlueData(str(tmp_path)).open()
