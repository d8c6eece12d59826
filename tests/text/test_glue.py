import json
import statistics

import pytest
import torch

from perceivers import PerceiversError
from perceivers.checkpoints.load import load_model
from perceivers.cli import main
from perceivers.presets import create_model
from perceivers.released.export import to_transformers
from perceivers.text import fine_tuning
from perceivers.text.glue import Glue, best_scores, format_table, group_by_tasks, limit_training
from perceivers.text.labeled import LabeledTexts, TextTask
from perceivers.text.model import LanguageConfig
from perceivers.training.config import read_config
from perceivers.training.evaluation import find_experiment
from perceivers.training.experiment import TrialResult
from tests.support.cli import fails
from tests.support.glue import small_run, small_sweep, write_glue

METHODS = ["shared_token", "task_tokens", "multitask_query"]


@pytest.fixture
def language(tmp_path):
    model = create_model("language_bytes", length=24, latents=4, channels=16, depth=1, v_channels=16)
    model.save(tmp_path / "language")
    return tmp_path / "language"


@pytest.fixture
def data(tmp_path):
    return write_glue(tmp_path / "glue")


def read_metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_a_sweep_picks_the_best_mean_over_seeds_for_each_task(tmp_path, capsys, language, data):
    fields = {
        "data.tasks": [["CoLA"], ["QQP"], ["RTE"]],
        "optimization.lr": [1e-2, 1e-3],
        "training.seed": [0, 3],
    }
    fast = {"trainer.max_epochs": 1}
    sweep = small_sweep(language, data, tmp_path / "run", fields, **fast)
    results = sweep.run()
    output = capsys.readouterr()
    assert "Trial 4 failed: " in output.err  # QQP is not there
    assert len(results) == 8
    runs = [read_metrics(sweep.folder / f"trial_{number:03d}") for number in (0, 1, 2, 3, 8, 9, 10, 11)]
    kept = []
    for task, runs_of_task, first in (("CoLA", runs[:4], 0), ("RTE", runs[4:], 8)):
        found = [run[f"val_{task}"] for run in runs_of_task]
        means = [statistics.mean(found[:2]), statistics.mean(found[2:])]
        seeds = found[:2] if means[0] >= means[1] else found[2:]
        assert f" {100 * max(means):.1f} ± {100 * statistics.stdev(seeds):.1f} |" in output.out
        kept.append(first + found.index(max(seeds), 0 if means[0] >= means[1] else 2))
    assert "| this (single_task) | " in output.out
    models = sorted(sweep.folder.glob("*/*/model.safetensors"))
    assert [path.parts[-3:-1] for path in models] == [(f"trial_{number:03d}", "model") for number in kept]
    trained = load_model(models[-1].parent)
    assert trained.outputs["label"].heads.names == {"RTE": ["entailment", "not_entailment"]}
    assert find_experiment(models[-1].parent) is Glue
    assert f"evaluate {models[0].parent} --data {data}" in output.out


def test_one_model_learns_one_task_unless_the_method_is_another(tmp_path, capsys, language, data):
    with pytest.raises(PerceiversError, match="method = single_task trains one task, but there are CoLA, RTE: name on"):
        small_run(language, data, tmp_path / "run", ["RTE", "CoLA"]).run()
    small_run(language, data, tmp_path / "run", ["RTE", "QQP"]).run()
    assert f"Not in {data}, and left out: QQP." in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_one_model_for_all_tasks(tmp_path, monkeypatch, language, data, method):
    began = []
    text_tasks = fine_tuning.text_tasks
    monkeypatch.setattr(
        fine_tuning, "text_tasks", lambda model, *rest: (began.append(model.state_dict()), text_tasks(model, *rest))[1]
    )
    run = small_run(language, data, tmp_path / "run", method=method).run()
    _, weights = began  # to make samples, on the meta device, and to train
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_model(language).state_dict().items())
    metrics = read_metrics(run)
    scores = best_scores({"lr 0.01": {0: TrialResult(0, {}, 0.0, metrics, run)}})
    assert list(scores) == ["CoLA", "MNLI", "RTE", "STS-B"]
    assert scores["MNLI"]["mean"] == pytest.approx((metrics["val_MNLI_matched"] + metrics["val_MNLI_mismatched"]) / 2)
    assert metrics["val_mean"] == pytest.approx(statistics.mean(score["mean"] for score in scores.values()))
    model = load_model(run / "model")
    assert model.outputs["label"].heads.tasks == list(scores)
    assert model.outputs["label"].shared == (method != "multitask_query")
    assert len(model.inputs["text"].embedding.weight) == 262 + 4 * (method == "task_tokens")


def test_a_model_in_the_format_of_transformers_is_fine_tuned(tmp_path, data):
    model = create_model("language_bytes", length=24, latents=4, channels=16, depth=1, v_channels=16)
    to_transformers(model, tmp_path / "port")
    run = small_run(tmp_path / "port", data, tmp_path / "run", ["RTE"], examples=8).run()
    trained = load_model(run / "model").state_dict()
    assert trained.keys() - model.state_dict().keys() == {name for name in trained if name.startswith("outputs.label")}
    changed = (trained["encoder.latents"] - model.state_dict()["encoder.latents"]).abs().max()
    assert 0 < changed < 0.1, "two updates from the pretrained weights"


def results(tmp_path):
    """Two settings of two seeds: the first has the best run, the second the best mean."""
    metrics = [(0.9, 0.8, 1.0, 0.9, 4), (0.1, 0.1, 0.1, 0.1, 4), (0.6, 0.4, 0.6, 0.7, 1), (0.8, 0.8, 0.9, 0.75, 3)]
    names = ["val_mean", "val_MNLI_matched", "val_MNLI_mismatched", "val_RTE", "seconds"]
    return [
        TrialResult(
            number,
            {"data.tasks": ["MNLI", "RTE"], "optimization.lr": [1e-3, 1e-4][number // 2], "training.seed": number % 2},
            values[0],
            dict(zip(names, values, strict=True)),
            tmp_path / str(number),
        )
        for number, values in enumerate(metrics)
    ]


def test_the_best_setting_is_that_of_the_best_mean_over_seeds(tmp_path, language, capsys):
    found = results(tmp_path)
    (group,) = group_by_tasks(found)
    scores = best_scores(group)
    assert list(scores) == ["MNLI", "RTE"]
    assert scores["MNLI"] == {
        "mean": pytest.approx(0.675),
        "seeds": [pytest.approx(0.5), pytest.approx(0.85)],
        "setting": "optimization.lr 0.0001",
        "seconds": 2,
    }
    assert scores["RTE"]["mean"] == pytest.approx(0.725)
    elsewhere = TrialResult(4, found[0].values, 1.0, {}, tmp_path / "4")  # on another machine
    run = small_run(language, "data", tmp_path)
    assert run.summarize_sweep([elsewhere, *found]) == [tmp_path / "3" / "model"]
    assert run.summarize_sweep([]) == []


def test_the_table_has_the_papers_rows_and_means():
    scores = {
        "CoLA": {"mean": 0.5, "seeds": [0.4, 0.6]},
        "STS-B": {"mean": 0.877, "seeds": [0.877]},
    }
    lines = format_table({"mine": scores}).splitlines()
    assert lines[0] == "| model | CoLA | MNLI | MRPC | QNLI | QQP | RTE | SST-2 | STS-B | mean |"
    assert lines[1].count("---") == 10
    assert lines[2] == "| mine | 50.0 ± 14.1 |  |  |  |  |  |  | 87.7 | 68.8 |"
    assert lines[3:] == [
        "| paper: Perceiver IO, bytes | 50.2 | 83.6 | 87.2 | 91.7 | 90.1 | 64.8 | 93.2 | 86.8 | 81.0 |",
        "| paper: BERT, bytes | 20.1 | 74.8 | 77.0 | 85.8 | 88.2 | 53.9 | 89.0 | 82.8 | 71.5 |",
    ]


def test_at_most_so_many_examples_always_the_same():
    texts = LabeledTexts([(str(number),) for number in range(50)], [number % 2 for number in range(50)], ["a", "b"])
    task = TextTask(texts, {"RTE": texts}, "accuracy")
    some = limit_training(task, 10)
    assert some.training == limit_training(task, 10).training
    assert len(set(some.training.texts)) == 10
    assert some.training.texts != texts.texts[:10]
    assert all(int(text) % 2 == label for (text,), label in zip(some.training.texts, some.training.labels, strict=True))
    assert (some.evaluation, some.metric) == (task.evaluation, task.metric)
    assert limit_training(task, None).training == limit_training(task, 50).training == texts


def test_runs_that_are_not_allowed(tmp_path, data):
    with pytest.raises(PerceiversError, match="examples = 0 is not allowed: it must be at least 1"):
        Glue(model=LanguageConfig(init="x"), examples=0)
    for model, message in [
        ({}, r"model\.init"),
        ({"preset": "language_bytes"}, r"model\.init = None is not allowed: it must be a pretrained language model"),
        ({"init": "x"}, "x is neither a folder nor a file here"),
    ]:
        (tmp_path / "config.yaml").write_text(json.dumps({"experiment": "glue", "model": model}))
        with pytest.raises(PerceiversError, match=message):
            read_config(tmp_path / "config.yaml")
    with pytest.raises(PerceiversError, match="no/such/model is neither a folder nor a file here"):
        small_run("no/such/model", data, tmp_path / "run").run()
    assert not (tmp_path / "run").exists()


def measure(capsys, *argv):
    """What `perceivers evaluate` finds."""
    capsys.readouterr()
    main(["evaluate", *map(str, argv), "--device", "cpu", "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("method", ["task_tokens", "multitask_query"])
def test_the_command_evaluate_gives_the_figures_of_the_run(tmp_path, capsys, language, data, method):
    run = small_run(language, data, tmp_path / "run", method=method).run()
    figures = {
        name.removeprefix("val_"): pytest.approx(value, abs=1e-4)
        for name, value in json.loads((run / "metrics.json").read_text()).items()
        if name.startswith("val_")
    }
    assert len(figures) == 6
    for file in data.glob("*/train.tsv"):
        file.unlink()  # they are not needed
    model = run / "model"
    found = measure(capsys, model, "--data", data)
    assert (found.pop("split"), sum(found.pop("texts").values())) == ("val", 32)
    assert found == figures
    some = measure(capsys, model, "--data", data, "--tasks", "mnli", "STS-B")
    for name in ("MNLI_matched", "MNLI_mismatched", "STS-B"):
        assert some.pop(name) == figures[name]
    assert list(some) == ["mean", "texts", "split"]
    main(["evaluate", str(model), "--data", str(data), "--tasks", "CoLA"])
    score = json.loads((run / "metrics.json").read_text())["val_CoLA"]
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["task", "result", "texts", "(val)"],
        ["CoLA", f"{100 * score:.1f}", "8"],
        ["mean", f"{100 * score:.1f}", "8"],
    ]
    (data / "RTE" / "dev.tsv").unlink()
    assert "RTE/dev.tsv does not exist" in fails(capsys, "evaluate", str(model), "--data", str(data))


def test_a_model_of_one_task_is_evaluated_on_it_alone(tmp_path, capsys, language, data):
    run = small_run(language, data, tmp_path / "run", ["CoLA"]).run()
    score = json.loads((run / "metrics.json").read_text())["val_CoLA"]
    found = measure(capsys, run / "model", "--data", data)
    assert [found["CoLA"], found["mean"]] == pytest.approx([score, score])
    assert measure(capsys, run / "model", "--data", data, "--split", "train")["texts"] != found["texts"]
    assert "of GLUE are not published: use train or val" in fails(
        capsys, "evaluate", str(run / "model"), "--data", str(data), "--split", "test"
    )
    err = fails(capsys, "evaluate", str(run / "model"), "--data", str(data), "--tasks", "RTE", "CoLA")
    assert "the model has no task 'RTE': it has CoLA" in err
