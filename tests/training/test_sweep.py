"""Sweeps: several processes share the trials of one; an interrupted one is resumed; wrong fields are refused."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
import yaml

from perceivers import PerceiversError
from perceivers.training import sweep as sweeps
from perceivers.training.learner import Learner
from perceivers.training.loop import Training
from perceivers.training.search_space import list_overrides
from perceivers.training.sweep import Sweep, describe_sweep, read_sweep
from tests.support.runs import assert_equal_results, read_results

DIGITS = Path(__file__).parents[2] / "configs" / "image_classification" / "digits.yaml"
CONTEXT = multiprocessing.get_context("forkserver")
SIZES = {"latents": 4, "channels": 8, "depth": 1, "heads": 1, "query_channels": 8, "bands": 2}


@pytest.fixture
def config(tmp_path):
    """Digits: two epochs of nine updates, in the folder of the test."""
    values = yaml.safe_load(DIGITS.read_text())
    values["model"] |= SIZES
    values["trainer"] = {"max_epochs": 2, "accelerator": "cpu"}
    values["training"] = {"batch_size": 128}
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(values))
    return str(tmp_path / "digits.yaml")


def make_sweep(tmp_path, config, name="sweep", **settings):
    fields = {"optimization.lr": [1e-5, 3e-3], "model.latents": [4, 6]}
    return Sweep(**{"config": config, "fields": fields, "sampler": "grid", "output": str(tmp_path / name)} | settings)


def find_study(sweep):
    return optuna.load_study(study_name=sweep.output, storage=f"sqlite:///{sweep.folder / 'sweep.db'}")


def run_in_child(sweep, kill_at=None):
    """Starts a sweep in a process of its own, which kills itself before an update."""
    process = CONTEXT.Process(target=run_counted, args=(sweep, kill_at))
    process.start()
    return process


def run_counted(sweep, kill_at):
    """Runs a sweep, and writes the number of updates that this process has made."""
    torch.set_num_threads(1)
    updates = []

    def before_update(learner, batch, batch_idx):
        if len(updates) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        updates.append(batch_idx)

    Learner.on_train_batch_start = before_update
    sweep.run()
    (sweep.folder / f"{os.getpid()}.json").write_text(json.dumps(len(updates)))


def count_updates(sweep):
    return [json.loads(file.read_text()) for file in sweep.folder.glob("*.json")]


def test_two_processes_share_the_trials_of_a_sweep(tmp_path, config, capsys):
    sweep = make_sweep(tmp_path, config)
    processes = [run_in_child(sweep) for _ in range(2)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    updates = count_updates(sweep)
    assert sum(updates) == 4 * 18
    assert min(updates) >= 18  # each has run one trial at least
    trials = find_study(sweep).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    assert len({(trial.params["optimization.lr"], trial.params["model.latents"]) for trial in trials}) == 4
    for trial in trials:
        folder = sweep.folder / f"trial_{trial.number:03d}"
        run = json.loads((folder / "config.json").read_text())
        assert (run["optimization"]["lr"], run["model"]["latents"]) == tuple(trial.params.values())
        assert trial.value == json.loads((folder / "best" / "config.json").read_text())["metrics"]["val_top1"]
    capsys.readouterr()
    sweep.run()  # finished: only prints
    printed = capsys.readouterr().out
    values = [float(value) for value in re.findall(r"^\d +(0\.\d+)", printed, re.M)]
    assert values == pytest.approx(sorted((trial.value for trial in trials), reverse=True), rel=1e-5)
    best = max(trials, key=lambda trial: trial.value).number
    assert f"evaluate {sweep.folder}/trial_{best:03d}/best --data digits" in printed


def test_a_killed_sweep_resumes_its_trial_and_ends_like_one_that_was_not(tmp_path, config):
    settings = {"sampler": "tpe", "trials": 3, "fields": {"optimization.lr": {"low": 1e-4, "high": 1e-2, "log": True}}}
    whole = make_sweep(tmp_path, config, "whole", **settings)
    whole.run()
    sweep = make_sweep(tmp_path, config, "killed", **settings)
    process = run_in_child(sweep, kill_at=18 + 11)  # in the second epoch of the second trial
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [trial.state.name for trial in find_study(sweep).trials] == ["COMPLETE", "RUNNING"]
    process = run_in_child(sweep)
    process.join(120)
    assert process.exitcode == 0
    assert count_updates(sweep) == [9 + 18]  # from the checkpoint after the first epoch of the second trial
    found, expected = (find_study(each).trials for each in (sweep, whole))
    assert [(trial.params, trial.value) for trial in found] == [(trial.params, trial.value) for trial in expected]
    assert len({trial.params["optimization.lr"] for trial in found}) == 3
    assert_equal_results(read_results(sweep.folder), read_results(whole.folder))


def test_a_worse_trial_is_stopped_and_a_failed_one_does_not_end_the_sweep(tmp_path, config, capsys, monkeypatch):
    class WorseThanTheFirst(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            return trial.number == 1

    monkeypatch.setitem(sweeps.PRUNERS, "median", WorseThanTheFirst)
    sweep = make_sweep(tmp_path, config, pruner="median", keep="best", fields={"optimization.lr": [1e-3, 1e-5, 1e30]})
    sweep.run()
    output = capsys.readouterr()
    assert "Trial 1 was stopped, since others are better." in output.out
    assert "Trial 2 failed: step" in output.err
    trials = find_study(sweep).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert [len(trial.intermediate_values) for trial in trials] == [2, 1, 0]
    assert "stopped early: 1\n" in output.out
    assert "failed: 2\n" in output.out
    assert (sweep.folder / "trial_000" / "best" / "model.safetensors").exists()
    assert not list(sweep.folder.glob("trial_00[12]/*/model.safetensors"))
    assert not list(sweep.folder.glob("*/checkpoints"))


def test_another_metric_selects_the_best_weights(tmp_path, config):
    sweep = make_sweep(tmp_path, config, metric="val_loss", mode="min", fields={"optimization.lr": [0.1]})
    sweep.run()
    (trial,) = find_study(sweep).trials
    assert trial.value == min(trial.intermediate_values.values())
    best = json.loads((sweep.folder / "trial_000" / "best" / "config.json").read_text())
    assert best["metrics"]["val_loss"] == trial.value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fields": {"optimization.lrr": [1]}}, "there is no field 'optimization.lrr': did you mean 'lr'"),
        ({"fields": {"optimization.lr": [0.1, -1]}}, "optimization.lr = -1.0 is not allowed: it must be above 0"),
        ({"fields": {"optimization.lr": []}}, r"fields.optimization.lr = \[\] is not allowed: it must be a list of"),
        ({"fields": {"optimization.lr": {"low": 1, "high": 2}}}, "it must be a list of values, since a grid has all"),
        ({"fields": {"training.output": ["a"]}}, "training.output cannot be set, since each trial has its own"),
        ({"fields": {}}, r"fields = \{\} is not allowed: it must be one field of the config, at least"),
        ({"sampler": "tpe"}, "trials = None is not allowed: it must be the number of runs"),
        ({"metric": "val_top1"}, "metric and mode belong together"),
        ({"sampler": "cmaes"}, "sampler = 'cmaes' is not allowed"),
        ({"storage": "nowhere://host/name"}, "storage = 'nowhere://host/name' cannot be opened"),
    ],
)
def test_sweeps_that_are_not_allowed(tmp_path, config, settings, message):
    with pytest.raises(PerceiversError, match=message):
        make_sweep(tmp_path, config, **settings).run()
    assert not list((tmp_path / "sweep").glob("trial*"))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"low": 1}, "it must be a list of values, or {low, high}"),
        ({"low": 2, "high": 1}, "low must be below high"),
        ({"low": 1, "high": "many"}, "high = 'many' is not allowed: it must be a number"),
        ({"low": 1, "high": 2, "lag": True}, "lag"),
        ({"low": 0.0, "high": 1, "log": True}, "`low > 0` must hold"),
        (3, "it must be a list of values, or {low, high}"),
    ],
)
def test_spaces_that_are_not_allowed(tmp_path, config, space, message):
    with pytest.raises(PerceiversError, match=message):
        make_sweep(tmp_path, config, sampler="random", trials=2, fields={"optimization.lr": space})


def test_a_folder_of_another_sweep_is_refused(tmp_path, config):
    make_sweep(tmp_path, config, fields={"optimization.lr": [1e-3]}).run()
    with pytest.raises(PerceiversError, match=r"fields = .*, but the sweep in .* was begun with .*: choose another"):
        make_sweep(tmp_path, config).run()
    other = make_sweep(tmp_path, config, fields={"optimization.lr": [1e-3]})
    text = (tmp_path / "digits.yaml").read_text()
    (tmp_path / "digits.yaml").write_text(text.replace("batch_size: 128", "batch_size: 64"))
    with pytest.raises(PerceiversError, match=r"training.batch_size = 64, but the run was begun with 128"):
        other.run()


def test_a_file_describes_a_sweep(tmp_path, config):
    file = tmp_path / "sweep.yaml"
    file.write_text(f"config: {config}\nfields: {{optimization.lr: {{low: 1e-4, high: 1e-2, log: true}}}}\ntrials: 3\n")
    sweep = read_sweep(file, ["--trials=5", "--sampler", "random"])
    assert (sweep.trials, sweep.sampler) == (5, "random")
    assert sweep.fields == {"optimization.lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    sweep = read_sweep(file, ["--training.batch_size=64", "--trails=5"])  # a field of the config is for all trials
    assert sweep.settings == {"training.batch_size": 64, "trails": 5}
    with pytest.raises(PerceiversError, match="there is no field 'trails'"):
        sweep.run()
    assert not sweep.folder.exists()
    file.write_text(file.read_text().replace("trials", "trails"))
    with pytest.raises(PerceiversError, match="there is no field 'trails': did you mean 'trials'"):
        read_sweep(file)
    file.write_text("trials: 3\n")
    with pytest.raises(PerceiversError, match="the field 'config' is missing"):
        read_sweep(file)
    assert "--sampler ('tpe' | 'random' | 'grid'; default: \"tpe\")" in describe_sweep()


def test_values_of_fields_are_written_as_yaml():
    values = {"a": 1e-5, "b": None, "c": [1, "x"], "d": True, "e": "1e-5", "f": "null"}
    read = {text[2]: yaml.safe_load(text[4:]) for text in list_overrides(values)}
    assert read == values


def test_trials_need_no_resume(tmp_path, config):
    trial = make_sweep(tmp_path, config).make_experiment(3, {"model.latents": 5})
    assert trial.training == Training(batch_size=128, output=str(tmp_path / "sweep" / "trial_003"), resume="auto")


@pytest.mark.slow
def test_each_trial_may_have_two_processes(tmp_path, config):
    """Which Lightning starts as copies of the command."""
    values = {"config": config, "fields": {"optimization.lr": [1e-3, 3e-3]}, "sampler": "grid"}
    values |= {"settings": {"trainer.devices": 2}, "output": str(tmp_path / "sweep")}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "perceivers", "sweep", str(tmp_path / "sweep.yaml")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [trial.state.name for trial in find_study(Sweep(**values)).trials] == ["COMPLETE"] * 2
    assert done.stderr.count("GLOBAL_RANK: 1, MEMBER: 2/2") == 1  # the same process takes part in both trials
