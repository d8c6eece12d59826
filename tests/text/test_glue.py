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
from perceivers.text.fine_tuning import Pretrained
from perceivers.text.glue import (
    Glue,
    Sweep,
    best_scores,
    delete_other_models,
    format_table,
    limit_training,
    read_results,
)
from perceivers.text.labelled import LabelledTexts, TextTask
from perceivers.training import experiment
from perceivers.training.config import read_config
from perceivers.training.evaluation import find_experiment
from tests.support.cli import fails
from tests.support.glue import small_sweep, write_glue

METHODS = ["shared_token", "task_tokens", "multitask_query"]


@pytest.fixture
def language(tmp_path):
    model = create_model("language_bytes", length=24, latents=4, channels=16, depth=1, v_channels=16)
    model.save(tmp_path / "language")
    return tmp_path / "language"


@pytest.fixture
def data(tmp_path):
    return write_glue(tmp_path / "glue")


def content(folder):
    """What is in the files of the finished runs, but for their time."""
    return {
        str(path.relative_to(folder)): {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
        for path in sorted(folder.glob("*/*/metrics.json"))
    }


def test_a_sweep_runs_every_combination_once_and_picks_the_best_mean(tmp_path, capsys, language, data):
    settings = {"lrs": [1e-2, 1e-3], "seeds": [0, 3]}
    output = small_sweep(language, data, tmp_path / "run", ["RTE", "CoLA", "QQP"], sweep=settings).run()
    printed = capsys.readouterr().out
    assert f"Not in {data}, and left out: QQP." in printed
    assert [line for line in printed.splitlines() if line.startswith("Run ")][:5] == [
        "Run 1 of 8: CoLA, batch size 8, learning rate 0.01, seed 0",
        "Run 2 of 8: CoLA, batch size 8, learning rate 0.01, seed 3",
        "Run 3 of 8: CoLA, batch size 8, learning rate 0.001, seed 0",
        "Run 4 of 8: CoLA, batch size 8, learning rate 0.001, seed 3",
        "Run 5 of 8: RTE, batch size 8, learning rate 0.01, seed 0",
    ]
    runs = content(output)
    assert len(runs) == 8
    scores = json.loads((output / "metrics.json").read_text())
    assert list(scores) == ["CoLA", "RTE"]
    for task in scores:
        of = {
            f"batch8_lr{lr}": [runs[f"{task}/batch8_lr{lr}_seed{seed}/metrics.json"][f"test_{task}"] for seed in (0, 3)]
            for lr in ("0.01", "0.001")
        }
        assert scores[task]["mean"] == pytest.approx(max(map(statistics.mean, of.values())))
        assert scores[task]["seeds"] == of[scores[task]["setting"]]
        assert len(list((output / task).glob("*/model/model.safetensors"))) == 1
        assert not list((output / task).glob("*/checkpoints"))
    trained = load_model(next(output.glob("RTE/*/model")))
    assert trained.outputs["label"].heads.names == {"RTE": ["entailment", "not_entailment"]}
    assert f"| this (single_task) | {100 * scores['CoLA']['mean']:.1f} ± " in printed

    times = {path: path.stat().st_mtime_ns for path in output.glob("*/*/metrics.json")}
    more = settings | {"seeds": [0, 3, 4], "lrs": [1e-2]}
    small_sweep(language, data, tmp_path / "run", ["RTE", "CoLA", "QQP"], sweep=more, workers=0, resume=True).run()
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if line.startswith("Run ")] == [
        "Run 3 of 6: CoLA, batch size 8, learning rate 0.01, seed 4",
        "Run 6 of 6: RTE, batch size 8, learning rate 0.01, seed 4",
    ]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_a_task_without_a_result_does_not_keep_another_from_the_table(tmp_path, language, data):
    output = tmp_path / "run"
    (output / "CoLA" / "batch8_lr0.01_seed0" / "checkpoints").mkdir(parents=True)
    small_sweep(language, data, output, ["RTE"], sweep={"lrs": [1e-2]}).run()
    assert list(json.loads((output / "metrics.json").read_text())) == ["RTE"]


def test_a_run_killed_before_its_result_is_done_again(tmp_path, monkeypatch, language, data):
    output = tmp_path / "run"
    train = experiment.train

    def killed(*arguments):
        (train(*arguments) / "metrics.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        small_sweep(language, data, output, ["RTE"], sweep={"lrs": [1e-2]}).run()
    assert list(output.glob("RTE/*/checkpoints/last.ckpt"))
    monkeypatch.undo()
    small_sweep(language, data, output, ["RTE"], sweep={"lrs": [1e-2]}).run()
    assert list(json.loads((output / "metrics.json").read_text())) == ["RTE"]


def test_a_folder_of_another_sweep_is_refused(tmp_path, language, data):
    small_sweep(language, data, tmp_path / "run", ["RTE"]).run()
    create_model("bert_bytes", length=24, channels=16, depth=1, heads=2).save(tmp_path / "other")
    other = small_sweep(tmp_path / "other", data, tmp_path / "run", ["RTE"])
    with pytest.raises(PerceiversError, match=r"run has a sweep with another model: choose another training\.output"):
        other.run()
    other = small_sweep(language, data, tmp_path / "run", ["RTE"], method="multitask_query", examples=3)
    with pytest.raises(PerceiversError, match="has a sweep with another method and examples"):
        other.run()
    (tmp_path / "run").rename(tmp_path / "moved")
    small_sweep(language, data, tmp_path / "moved", ["RTE", "CoLA"]).run()
    assert set(json.loads((tmp_path / "moved" / "metrics.json").read_text())) == {"CoLA", "RTE"}


@pytest.mark.parametrize("method", METHODS)
def test_one_model_for_all_tasks(tmp_path, capsys, monkeypatch, language, data, method):
    began = []
    text_tasks = fine_tuning.text_tasks
    monkeypatch.setattr(
        fine_tuning, "text_tasks", lambda model, *rest: (began.append(model.state_dict()), text_tasks(model, *rest))[1]
    )
    output = small_sweep(language, data, tmp_path / "run", method=method).run()
    _, weights = began  # to make samples, on the meta device, and to train
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_model(language).state_dict().items())
    run = output / "all" / "batch8_lr0.01_seed0"
    metrics = json.loads((run / "metrics.json").read_text())
    scores = json.loads((output / "metrics.json").read_text())
    assert list(scores) == ["CoLA", "MNLI", "RTE", "STS-B"]
    assert scores["MNLI"]["mean"] == pytest.approx((metrics["val_MNLI_matched"] + metrics["val_MNLI_mismatched"]) / 2)
    assert metrics["val_mean"] == pytest.approx(statistics.mean(score["mean"] for score in scores.values()))
    model = load_model(run / "model")
    assert model.outputs["label"].heads.tasks == list(scores)
    assert model.outputs["label"].shared == (method != "multitask_query")
    assert len(model.inputs["text"].embedding.weight) == 262 + 4 * (method == "task_tokens")
    assert f"| this ({method}) |" in capsys.readouterr().out


def test_a_model_in_the_format_of_transformers_is_fine_tuned(tmp_path, data):
    model = create_model("language_bytes", length=24, latents=4, channels=16, depth=1, v_channels=16)
    to_transformers(model, tmp_path / "port")
    output = small_sweep(tmp_path / "port", data, tmp_path / "run", ["RTE"], examples=8).run()
    trained = load_model(next(output.glob("RTE/*/model"))).state_dict()
    assert trained.keys() - model.state_dict().keys() == {name for name in trained if name.startswith("outputs.label")}
    changed = (trained["encoder.latents"] - model.state_dict()["encoder.latents"]).abs().max()
    assert 0 < changed < 0.1, "two updates from the pretrained weights"


def results():
    """Two settings of two seeds: the first has the best run, the second the best mean."""
    return {
        "a": {
            "9": {
                "val_mean": 0.9,
                "val_MNLI_matched": 0.8,
                "val_MNLI_mismatched": 1.0,
                "val_RTE": 0.9,
                "seconds": 4,
            },
            "10": {
                "val_mean": 0.1,
                "val_MNLI_matched": 0.1,
                "val_MNLI_mismatched": 0.1,
                "val_RTE": 0.1,
                "seconds": 4,
            },
        },
        "b": {
            "9": {
                "val_mean": 0.6,
                "val_MNLI_matched": 0.4,
                "val_MNLI_mismatched": 0.6,
                "val_RTE": 0.7,
                "seconds": 1,
            },
            "10": {
                "val_mean": 0.8,
                "val_MNLI_matched": 0.8,
                "val_MNLI_mismatched": 0.9,
                "val_RTE": 0.75,
                "seconds": 3,
            },
        },
    }


def test_the_best_setting_is_that_of_the_best_mean_over_seeds():
    scores = best_scores(results())
    assert list(scores) == ["MNLI", "RTE"]
    assert scores["MNLI"] == {
        "mean": pytest.approx(0.675),
        "seeds": [pytest.approx(0.5), pytest.approx(0.85)],
        "setting": "b",
        "seconds": 2,
    }
    assert scores["RTE"]["mean"] == pytest.approx(0.725)


def test_results_are_read_and_only_the_best_model_is_kept(tmp_path):
    for setting, runs in results().items():
        for seed, run in runs.items():
            folder = tmp_path / f"{setting}_seed{seed}"
            (folder / "model").mkdir(parents=True)
            (folder / "metrics.json").write_text(json.dumps(run))
    (tmp_path / "c_seed0").mkdir()
    read = read_results(tmp_path)
    assert read == results()
    delete_other_models(tmp_path, read)
    assert [path.parent.name for path in tmp_path.glob("*/model")] == ["b_seed10"]


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
    texts = LabelledTexts([(str(number),) for number in range(50)], [number % 2 for number in range(50)], ["a", "b"])
    task = TextTask(texts, {"RTE": texts}, "accuracy")
    some = limit_training(task, 10)
    assert some.training == limit_training(task, 10).training
    assert len(set(some.training.texts)) == 10
    assert some.training.texts != texts.texts[:10]
    assert all(int(text) % 2 == label for (text,), label in zip(some.training.texts, some.training.labels, strict=True))
    assert (some.evaluation, some.metric) == (task.evaluation, task.metric)
    assert limit_training(task, None).training == limit_training(task, 50).training == texts


def test_sweeps_that_are_not_allowed(tmp_path, data):
    with pytest.raises(PerceiversError, match=r"sweep\.lrs = \[\] is not allowed"):
        Sweep(lrs=[])
    for name, values in (("batch_sizes", [8, 0]), ("lrs", [0.1, 0.0]), ("seeds", [-1])):
        with pytest.raises(PerceiversError, match=rf"sweep\.{name} = .* is not allowed"):
            Sweep(**{name: values})
    with pytest.raises(PerceiversError, match="examples = 0 is not allowed: it must be at least 1"):
        Glue(model=Pretrained("x"), examples=0)
    for model, message in [
        ({}, r"model\.init"),
        ({"preset": "language_bytes"}, "Glue trains a model of Pretrained"),
        ({"init": "x", "depth": 3}, r"there is no field 'model\.depth'"),
    ]:
        (tmp_path / "config.yaml").write_text(json.dumps({"experiment": "glue", "model": model}))
        with pytest.raises(PerceiversError, match=message):
            read_config(tmp_path / "config.yaml")
    with pytest.raises(PerceiversError, match="no/such/model is neither a folder nor a file here"):
        small_sweep("no/such/model", data, tmp_path / "run").run()
    assert not (tmp_path / "run").exists()


def test_single_runs_hold_the_config_of_the_sweep_and_their_models_the_experiment(tmp_path, language, data):
    output = small_sweep(language, data, tmp_path / "run", ["RTE"], sweep={"batch_sizes": [4]}).run()
    run = output / "RTE" / "batch4_lr0.01_seed0"
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "csv", "metrics.json", "model", "tensorboard"]
    assert (run / "config.json").read_text() == (output / "config.json").read_text()
    config = json.loads((run / "config.json").read_text())
    assert (config["experiment"], config["model"]) == ("glue", {"init": str(language)})
    assert config["training"]["output"] == str(output)
    assert find_experiment(run / "model") is Glue
    again = read_config(run / "config.json")
    assert again.to_config() == config


def measure(capsys, *argv):
    """What `perceivers evaluate` finds."""
    capsys.readouterr()
    main(["evaluate", *map(str, argv), "--device", "cpu", "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("method", ["task_tokens", "multitask_query"])
def test_the_command_evaluate_gives_the_figures_of_the_run(tmp_path, capsys, language, data, method):
    run = small_sweep(language, data, tmp_path / "run", method=method).run() / "all" / "batch8_lr0.01_seed0"
    figures = {
        name.removeprefix("test_"): pytest.approx(value, abs=1e-5)
        for name, value in json.loads((run / "metrics.json").read_text()).items()
        if name.startswith("test_")
    }
    assert len(figures) == 6
    for file in data.glob("*/train.tsv"):
        file.unlink()  # they are not needed
    model = run / "model"
    assert measure(capsys, model, "--data", data) == figures
    some = measure(capsys, model, "--data", data, "--tasks", "mnli", "STS-B")
    for name in ("MNLI_matched", "MNLI_mismatched", "STS-B"):
        assert some.pop(name) == figures[name]
    assert list(some) == ["mean"]
    main(["evaluate", str(model), "--data", str(data), "--tasks", "CoLA"])
    score = json.loads((run / "metrics.json").read_text())["val_CoLA"]
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["task", "result"],
        ["CoLA", f"{100 * score:.1f}"],
        ["mean", f"{100 * score:.1f}"],
    ]
    (data / "RTE" / "dev.tsv").unlink()
    assert "RTE/dev.tsv does not exist" in fails(capsys, "evaluate", str(model), "--data", str(data))


def test_a_model_of_one_task_is_evaluated_on_it_alone(tmp_path, capsys, language, data):
    run = next(small_sweep(language, data, tmp_path / "run", ["CoLA"]).run().glob("CoLA/*/model")).parent
    score = json.loads((run / "metrics.json").read_text())["val_CoLA"]
    assert measure(capsys, run / "model", "--data", data) == {
        "CoLA": pytest.approx(score),
        "mean": pytest.approx(score),
    }
    err = fails(capsys, "evaluate", str(run / "model"), "--data", str(data), "--tasks", "RTE", "CoLA")
    assert "the model has no task 'RTE': it has CoLA" in err
