import json
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from scipy.stats import pearsonr
from sklearn.metrics import matthews_corrcoef, roc_auc_score

from benchmarks import text_classification as benchmark
from benchmarks.text_classification import (
    OURS,
    PRETRAINED,
    TASKS,
    TFIDF,
    UNTRAINED,
    Task,
    find_others,
    first_rows,
    measure,
    report,
    report_pretrained,
    run,
)
from perceivers.cli import main
from perceivers.text.model import BertConfig, LanguageConfig
from tests.support.fine_tuning import PERCEIVER
from tests.support.fine_tuning import SMALL_BERT as BERT

GLUE = {
    "SST-2": "sentence\tlabel\n{a}\t{y}\n",
    "CoLA": "src\t{y}\t\t{a}\n",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n{y}\t1\t2\t{a}\t{b}\n",
    "RTE": "index\tsentence1\tsentence2\tlabel\n0\t{a}\t{b}\t{name}\n",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    "0\tg\tf\t2012\t1\tn\tn\t{a}\t{b}\t{score}\n",
}


def write_data(folder, count):
    """The original layouts, of texts that have the word good or bad, with a quote that CSV would need closed."""
    for task, layout in GLUE.items():
        *head, row = layout.splitlines(keepends=True)
        (folder / "glue" / task).mkdir(parents=True)
        for split in ("train", "dev"):
            lines = [
                row.format(a=f'a {["bad", "good"][k % 2]} "{k}', b=f"one {k % 5}", y=k % 2,
                           name=("entailment", "not_entailment")[k % 2], score=f"{k % 2 * 5 / 2:.3f}")
                for k in range(count)
            ]  # fmt: skip
            (folder / "glue" / task / f"{split}.tsv").write_text("".join([*head, *lines]))
    (folder / "tables/clothes").mkdir(parents=True)
    texts = [f"{['bad', 'good'][k % 2]} {k}" if k % 7 else None for k in range(count)]
    frame = pd.DataFrame({"Review Text": texts, "Recommended IND": [k % 2 for k in range(count)]})
    frame.to_csv(folder / "tables/clothes/reviews.csv")


def test_tasks_are_read_from_their_files(tmp_path):
    write_data(tmp_path, 30)
    for name, task in TASKS.items():
        parts = task.read(tmp_path)
        assert len(parts) == (5 if name == "clothes" else 1)
        for training, evaluation in parts:
            assert list(evaluation) == (["a", "b", "label"] if name in ("MRPC", "RTE", "STS-B") else ["a", "label"])
            assert len(training) == (30 if name != "clothes" else 20)
    first = TASKS["RTE"].read(tmp_path)[0][0].iloc[3]
    assert first.tolist() == ['a good "3', "one 3", "not_entailment"]
    together = [evaluation.index for _, evaluation in TASKS["clothes"].read(tmp_path)]
    assert sorted(np.concatenate(together)) == [k for k in range(30) if k % 7]
    some = first_rows(7, TASKS["SST-2"].read)(tmp_path)[0][0]
    whole = TASKS["SST-2"].read(tmp_path)[0][0]
    assert len(some) == 7
    assert some.equals(whole.loc[some.index])
    assert list(some.index) != list(range(7))


def test_metrics_are_of_the_last_class():
    choose = np.random.default_rng(0)
    label, values = pd.Series(choose.choice(["no", "yes"], 40)), choose.random(40)
    is_yes = (label == "yes").to_numpy()
    assert measure("accuracy", label, values) == np.mean(is_yes == (values > 0.5))
    assert measure("matthews", label, values) == pytest.approx(matthews_corrcoef(is_yes, values > 0.5))
    assert measure("auroc", label, values) == pytest.approx(roc_auc_score(is_yes, values))
    score = pd.Series([f"{value:.2f}" for value in choose.random(40)])
    assert measure("pearson", score, values) == pytest.approx(pearsonr(score.astype(float), values)[0])
    assert measure("pearson", score, np.zeros(40)) == 0


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Data, a small config, and the commands that a benchmark of them calls, in this process."""
    write_data(tmp_path, 40)
    settings = yaml.safe_load(benchmark.CONFIG.read_text())
    settings["model"] |= PERCEIVER | {"ngram_hashes": 500}
    settings["optimization"]["lr"], settings["trainer"] = 1e-2, {"max_epochs": 10, "accelerator": "cpu"}
    settings["training"]["batch_size"], settings["min_examples"] = 8, 400
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(settings))
    calls = []

    def call(*arguments):
        calls.append([str(argument) for argument in arguments])
        main(calls[-1])

    monkeypatch.setattr(benchmark, "call", call)
    monkeypatch.setattr(benchmark, "CONFIG", config)
    monkeypatch.setattr(benchmark, "SEEDS", (0,))
    return calls


def test_small_tasks_are_measured_once_and_reported(tmp_path, calls):
    tasks = {
        "CoLA": TASKS["CoLA"],
        "STS-B": TASKS["STS-B"],
        "clothes": Task(lambda data: TASKS["clothes"].read(data)[:1], "auroc"),
    }
    for _ in range(2):
        for name, task in tasks.items():
            run(name, task, tmp_path, tmp_path / "run", tmp_path / "results.json", {})
    assert [call[0] for call in calls] == ["fit", "predict"] * 3, "the second time, nothing is left to do"
    results = json.loads((tmp_path / "results.json").read_text())
    values = {(result["task"], result["method"]): result["value"] for result in results.values()}
    assert values["CoLA", OURS] == values["CoLA", TFIDF] == values["clothes", TFIDF] == 1
    assert values["STS-B", TFIDF] > 0.95
    assert values["STS-B", OURS] > 0.9
    assert values["clothes", OURS] > 0.9
    ours = results[f"CoLA / 0 / {OURS} / 0"]
    assert ours["config"]["model"]["ngrams"] == [3, 6]
    assert ours["seconds"] >= 0
    assert ours["rows"] == [40, 40]
    rows = [line.split(" | ") for line in report(results).splitlines()[2:]]
    assert [row[0] for row in rows] == ["| CoLA", "| STS-B", "| clothes"]
    assert rows[0][1:6] == ["40", "matthews", "100.0", "100.0", "100.0"]
    del results[f"CoLA / 0 / {OURS} / 0"]
    assert "CoLA" not in report(results), "a row has all of its seeds"


def test_pretrained_models_are_fine_tuned_and_reported_beside_untrained_ones(tmp_path, calls, monkeypatch):
    torch.manual_seed(0)
    ngrams = {"ngrams": (3, 6), "ngram_hashes": 500, "ngram_channels": 12}
    models = {
        "masked_bytes": LanguageConfig(**PERCEIVER, **ngrams),
        "masked_bytes_bert": BertConfig(vocabulary=262, **BERT, **ngrams),
    }
    for name, model in models.items():
        model.build().save(tmp_path / f"runs/{name}_seed0/model")
    pretraining = tmp_path / "pretraining.yaml"
    sizes = PERCEIVER | ngrams | {"ngrams": [3, 5], "initialization": "local"}
    pretraining.write_text(yaml.safe_dump({"model": {"preset": "language_bytes", **sizes}}))
    monkeypatch.setattr(benchmark, "PRETRAINING", pretraining)
    others = find_others(tmp_path / "runs")
    assert list(others) == [(UNTRAINED, 0), ("pretrained Perceiver IO", 0), ("pretrained BERT", 0)]
    for name in ("CoLA", "STS-B"):
        run(name, TASKS[name], tmp_path, tmp_path / "run", tmp_path / "results.json", others)
    assert f'--model.init="{tmp_path}/runs/masked_bytes_bert_seed0/model"' in calls[6]
    assert len(calls) == 2 * 4 * 2
    results = json.loads((tmp_path / "results.json").read_text())
    for name, method in product(("CoLA", "STS-B"), PRETRAINED):
        found = results[f"{name} / 0 / {method} / 0"]
        assert found["config"]["model"]["init"] == "pretrained"
        assert found["config"]["model"]["ngram_channels"] == 12, "the sizes are those of the pretrained model"
        assert found["value"] > 0.9
        untrained = results[f"{name} / 0 / {UNTRAINED} / 0"]["config"]["model"]
        assert untrained["ngrams"] == [3, 5], "the sizes are those of the config of pretraining"
        assert untrained["init"] == (None if name == "CoLA" else "untrained")
        assert name != "CoLA" or untrained["initialization"] == "normal"
    results["CoLA / 0 / pretrained BERT / 0"] |= {"value": 0.5, "seconds": 7.2}
    rows = [line.split(" | ") for line in report_pretrained(results).splitlines()[2:]]
    assert [row[0] for row in rows] == ["| CoLA", "| STS-B"]
    assert rows[0][1:5] == ["40", "matthews", "100.0", "100.0"]
    assert rows[0][7] == "50.0 (50.0; 7 s) |"
    del results["CoLA / 0 / pretrained BERT / 0"]
    assert "CoLA" not in report_pretrained(results)
