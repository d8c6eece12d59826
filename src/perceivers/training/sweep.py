"""Sweeps: runs of an experiment with different settings, each a trial of an Optuna study.

Any number of processes, on one or several machines, may work on a sweep at the same time: each takes the next trial. A
trial that was interrupted is resumed by the next process that looks for one in the same folder.
"""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import optuna
import torch
from lightning import Callback, LightningModule, Trainer
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState

from perceivers.checks import Checked, Count, Range, check_field
from perceivers.config_files import find_config_file
from perceivers.errors import PerceiversError, quote
from perceivers.training.checkpoints import METRICS, check_settings, is_first_process, open_lock
from perceivers.training.config import check_keys, describe_fields, read_config, read_yaml, split_overrides, summarize
from perceivers.training.experiment import Experiment, TrialResult
from perceivers.training.guard import program_name
from perceivers.training.learner import Monitor
from perceivers.training.search_space import (
    check_space,
    list_combinations,
    list_examples,
    list_overrides,
    read_numbers,
    suggest,
)
from perceivers.values import describe_values, parse_yaml

TASK = "PERCEIVERS_TRIAL"
"""Environment variable with the task of the processes that Lightning starts for a trial on several devices."""

PRUNERS: dict[str | None, Any] = {
    None: optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}


class Task(NamedTuple):
    """A trial, as all processes of its run know it: its number, the values of the fields, and what is optimized."""

    number: int
    values: dict[str, Any]
    metric: str
    mode: Literal["min", "max"]


class ReportTrial(Callback):
    """Reports each evaluation of a run to its trial, and stops the run if the trial is pruned.

    Args:
        metric: name of the metric to report.
        trial: the trial; None in other processes than the first.
    """

    def __init__(self, metric: str, trial: Trial | None) -> None:
        self.metric, self.trial = metric, trial
        self.evaluations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"evaluations": self.evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.evaluations = state_dict["evaluations"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.evaluations += 1
        is_pruned = False
        if self.trial is not None:
            self.trial.report(float(trainer.callback_metrics[self.metric]), self.evaluations)
            if is_pruned := self.trial.should_prune():
                self.trial.set_user_attr("pruned", True)
        if trainer.strategy.broadcast(is_pruned):
            trainer.should_stop = True


@dataclass(kw_only=True)
class Sweep(Checked):
    """Runs an experiment with different settings, and finds the best ones.

    Attributes:
        config: the config file of the experiment, or the name of a shipped one.
        fields: the fields to vary, such as optimization.lr, each with a list of values, or {low, high} and, if need be,
            log (true: uniform in the logarithm) and step; whole numbers as bounds give whole numbers.
        settings: values of other fields of the config, for all trials; on the command line, those of its fields.
        output: folder of the sweep, with a folder for each trial; it also names the sweep in the storage.
        trials: number of runs; by default all combinations of a grid.
        sampler: "tpe" (tree-structured Parzen estimator), "random", or "grid", all combinations of the values.
        pruner: rule by which a trial is stopped after an evaluation, since others are better: "median", "halving"
            (successive halving) or "hyperband"; by default, none is stopped.
        metric: the metric to optimize; by default the one that selects the best weights of a run. The value of a trial
            is that of its best evaluation.
        mode: whether the "min" or the "max" of `metric` is best.
        storage: URL of Optuna's database, such as postgresql://host/name; by default an SQLite file in `output`.
        seed: seed of the sampler.
        keep: "all" models, or only the "best"; then checkpoints are deleted, too.
    """

    config: str
    fields: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    output: str = "runs/sweep"
    trials: Count | None = None
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruner: Literal["median", "halving", "hyperband"] | None = None
    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    storage: str | None = None
    seed: Annotated[int, Range(least=0)] = 0
    keep: Literal["all", "best"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.folder = Path(self.output)
        if (self.metric is None) != (self.mode is None):
            raise PerceiversError("metric and mode belong together: give both, or none.")
        check_field("trials", self.trials, self.trials is not None or self.sampler == "grid", "the number of runs")
        check_field("fields", self.fields, len(self.fields) > 0, "one field of the config, at least")
        self.fields = {name: read_numbers(space) for name, space in self.fields.items()}
        for name in ("training.output", "training.resume"):
            if name in self.fields or name in self.settings:
                raise PerceiversError(f"{name} cannot be set, since each trial has its own: leave it out.")
        for name, space in self.fields.items():
            check_space(name, space, self.sampler == "grid")

    def run(self) -> list[TrialResult]:
        """Runs what is left of the sweep; prints and returns its finished trials, best first.

        Raises:
            PerceiversError: a field or a value does not exist, or the folder holds another sweep.
        """
        base = read_config(Path(self.config), list_overrides(self.settings))
        for name, space in self.fields.items():
            for value in list_examples(space):
                self.make_experiment(0, {name: value})
        if not is_first_process():
            self.join_trials()
            return []
        study = self.open_study(base)
        while self.run_next(study):
            pass
        return self.collect_results(study, base)

    def make_experiment(self, number: int, values: Mapping[str, Any]) -> Experiment:
        """Returns the experiment of a trial."""
        own = {"training.output": str(self.find_folder(number)), "training.resume": "auto"}
        return read_config(Path(self.config), list_overrides({**self.settings, **values, **own}))

    def find_folder(self, number: int) -> Path:
        """Returns the folder of a trial."""
        return self.folder / f"trial_{number:03d}"

    def open_study(self, base: Experiment) -> Study:
        """Opens the study of the sweep, or begins it."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with hold_lock(self.folder):
            url = f"sqlite:///{self.folder / 'sweep.db'}" if self.storage is None else self.storage
            patience = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None
            try:
                storage = RDBStorage(url, patience)
            except Exception as error:  # each database raises its own
                reason = " ".join(str(error).split())
                raise PerceiversError(f"storage = {quote(url)} cannot be opened: {reason}") from error
            begin = {"study_name": self.output, "storage": storage, "pruner": PRUNERS[self.pruner]()}
            if self.output in optuna.get_all_study_names(storage):
                study = optuna.load_study(**begin)
            else:
                metric, mode = (self.metric, self.mode) if self.metric else self.find_monitor()
                study = optuna.create_study(**begin, direction="maximize" if mode == "max" else "minimize")
                study.set_user_attr("metric", metric)
                study.set_user_attr("mode", mode)
            self.check_same(study, base)
            for values in list_combinations(self.fields) if self.sampler == "grid" else ():
                study.enqueue_trial(values, skip_if_exists=True)
        return study

    def check_same(self, study: Study, base: Experiment) -> None:
        """Raises a PerceiversError if the study was begun with other settings."""
        own = {"fields": self.fields, "sampler": self.sampler, "metric": self.metric or study.user_attrs["metric"]}
        for name, value in own.items():
            before = study.user_attrs.get(name, value)
            if before != value:
                was = f"the sweep in {self.output} was begun with {quote(before)}"
                raise PerceiversError(f"{name} = {quote(value)}, but {was}: choose another output.")
            study.set_user_attr(name, value)
        config = base.to_config()
        check_settings(study.user_attrs.get("config", config), config)
        study.set_user_attr("config", config)

    def run_next(self, study: Study) -> bool:
        """Runs a trial that was interrupted, or else the next one; returns whether there was one."""
        with ExitStack() as held:
            with hold_lock(self.folder):
                trial = self.find_interrupted(study, held) or self.begin_trial(study, held)
            if trial is None:
                share(None)
                return False
            values = {name: suggest(trial, name, space) for name, space in self.fields.items()}
            task = Task(trial.number, values, study.user_attrs["metric"], study.user_attrs["mode"])
            print(f"\nTrial {task.number}: {describe_values(values)}", flush=True)
            share(task)
            try:
                self.run_task(task, trial)
                self.tell_result(study, task)
            except PerceiversError as error:
                if torch.distributed.is_initialized():
                    raise  # the other processes have ended, too
                print(f"\nTrial {task.number} failed: {error}", file=sys.stderr)
                study.tell(trial, state=TrialState.FAIL)
            if self.keep == "best":
                shutil.rmtree(self.find_folder(task.number) / "checkpoints", ignore_errors=True)
        return True

    def tell_result(self, study: Study, task: Task) -> None:
        """Tells the study how a trial has ended."""
        trial = study.get_trials(deepcopy=False)[task.number]
        if not trial.intermediate_values:
            raise PerceiversError("it was never evaluated: see trainer.limit_val_batches.")
        if trial.user_attrs.get("pruned"):
            print(f"Trial {task.number} was stopped, since others are better.")
            study.tell(task.number, state=TrialState.PRUNED)
        else:
            study.tell(task.number, (max if task.mode == "max" else min)(trial.intermediate_values.values()))

    def run_task(self, task: Task, trial: Trial | None) -> None:
        """Runs a trial, or resumes it."""
        experiment = self.make_experiment(task.number, task.values)
        experiment.run([ReportTrial(task.metric, trial)], (task.metric, task.mode))

    def join_trials(self) -> None:
        """Takes part in the trials of the first process, which has started this one."""
        if TASK not in os.environ:
            raise PerceiversError("start a sweep as one process per trial: Lightning starts those for trainer.devices.")
        task: Task | None = Task(*json.loads(os.environ[TASK]))
        while task is not None:
            self.run_task(task, None)
            task = share(None)

    def find_interrupted(self, study: Study, held: ExitStack) -> Trial | None:
        """Returns a trial of this folder that has begun, but that no process works on."""
        for found in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            is_here = self.storage is None or self.find_folder(found.number).is_dir()
            if is_here and take_trial(self.find_folder(found.number), held):
                return Trial(study, found._trial_id)
        return None

    def begin_trial(self, study: Study, held: ExitStack) -> Trial | None:
        """Returns the next trial, unless all have begun."""
        trials = study.get_trials(deepcopy=False)
        waiting = sum(trial.state == TrialState.WAITING for trial in trials)  # of a grid
        begun = len(trials) - waiting
        if (self.sampler == "grid" and not waiting) or (self.trials is not None and begun >= self.trials):
            return None
        seed = self.seed + begun  # each process would draw the same values
        is_tpe, samplers = self.sampler == "tpe", optuna.samplers
        study.sampler = samplers.TPESampler(seed=seed, constant_liar=True) if is_tpe else samplers.RandomSampler(seed)
        trial = study.ask()
        take_trial(self.find_folder(trial.number), held)
        return trial

    def find_monitor(self) -> Monitor:
        """Returns the metric that selects the best weights of the experiment."""
        experiment = self.make_experiment(0, {name: list_examples(space)[0] for name, space in self.fields.items()})
        setup = experiment.prepare()
        with torch.device("meta"):
            return experiment.learner(setup.build()).monitor

    def collect_results(self, study: Study, base: Experiment) -> list[TrialResult]:
        """Prints a table of the finished trials, best first, and the commands that evaluate the best models."""
        trials, metric, mode = study.get_trials(), study.user_attrs["metric"], study.user_attrs["mode"]
        results = [self.read_result(trial) for trial in trials if trial.state == TrialState.COMPLETE]
        results.sort(key=lambda result: result.value, reverse=mode == "max")
        print(f"\n{'trial':<8}{metric:<16}fields")
        for result in results:
            print(f"{result.number:<8}{result.value:<16.6g}{describe_values(result.values)}")
        numbers = {state: [trial.number for trial in trials if trial.state == state] for state in TrialState}
        ends = {TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed", TrialState.RUNNING: "still running"}
        for state, end in ends.items():
            if numbers[state]:
                print(f"{end}: {', '.join(map(str, numbers[state]))}")
        best = base.summarize_sweep(results)
        if self.keep == "best" and not numbers[TrialState.RUNNING]:
            models = (self.find_folder(trial.number) / name for trial in trials for name in ("model", "best"))
            for model in set(models) - set(best):
                shutil.rmtree(model, ignore_errors=True)
        data = getattr(getattr(base, "data", None), "path", None) or "DATA"
        print("\nEvaluate the best model with:" if best else "\nNo trial is finished.")
        for model in best:
            print(f"  {program_name()} evaluate {model} --data {data}")
        return results

    def read_result(self, trial: FrozenTrial) -> TrialResult:
        """Returns the result of a finished trial; its metrics are empty if its folder is on another machine."""
        stored, folder = FixedTrial(trial.params), self.find_folder(trial.number)
        values = {name: suggest(stored, name, space) for name, space in self.fields.items()}
        has_metrics = (folder / METRICS).is_file()
        metrics = json.loads((folder / METRICS).read_text()) if has_metrics else {}
        return TrialResult(trial.number, values, trial.values[0], metrics, folder)


@contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Waits until no other process chooses a trial in the folder of a sweep, and keeps others from it."""
    with open_lock(folder) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def take_trial(folder: Path, held: ExitStack) -> bool:
    """Takes the folder of a trial until the end of `held`; returns whether no other process has it."""
    file = open_lock(folder, ".trial")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    held.enter_context(file)
    return True


def share(task: Task | None) -> Task | None:
    """Returns the task of the first process in all processes that Lightning has started; those to come find it, too."""
    if torch.distributed.is_initialized():
        tasks = [task]
        torch.distributed.broadcast_object_list(tasks)
        return tasks[0]
    os.environ[TASK] = json.dumps(task)
    return task


def read_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Builds the sweep that a file describes.

    Args:
        path: a YAML or JSON file with the fields of `Sweep`, or the name of a shipped one.
        overrides: `--field=value` or `--field value`, which replace values of the file, or of the config that it names.

    Raises:
        PerceiversError: a field is unknown, or a value has the wrong type or is not allowed.
    """
    path = find_config_file(path, sweep=True)
    values = read_yaml(path)
    names = [item.name for item in fields(Sweep)]
    for key, value in split_overrides(overrides):
        section = values if key in names else values.setdefault("settings", {})
        section[key] = parse_yaml(value, f"--{key}={value}")
    check_keys(values, Sweep, path)
    for name in ("config", "fields"):
        if name not in values:
            raise PerceiversError(f"{path}: the field {name!r} is missing.")
    return Sweep(**values)


def describe_sweep() -> str:
    """Returns help on the fields of a sweep."""
    defaults: Any = vars(Sweep(config="", fields={"field": [0]}, trials=1)) | dict.fromkeys(
        ("config", "fields", "trials")
    )
    lines = ["usage: perceivers sweep SWEEP [--FIELD VALUE ...]", "", f"{summarize(Sweep)} SWEEP is a YAML file with:"]
    return "\n".join(lines + describe_fields(Sweep, defaults))
