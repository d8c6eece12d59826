"""The section `trainer` of a config, and what its arguments do to a run."""

import inspect
import json

import pytest
import torch
from lightning import Callback, Trainer

import perceivers
from perceivers import PerceiversError
from perceivers.cli import main
from perceivers.training.config import read_config
from perceivers.training.trainer import RESERVED, count_max_epochs, describe_arguments, parse_trainer
from tests.support.images import small_run
from tests.support.runs import assert_equal_results, interrupt_at, read_results, record_steps

STOPPING = {"class_path": "EarlyStopping", "init_args": {"monitor": "val_top1", "mode": "max", "patience": 1}}


def test_every_argument_of_lightning_can_be_set_or_says_why_not():
    known = set(inspect.signature(Trainer).parameters)
    assert {name for name, *_ in describe_arguments()} | RESERVED.keys() == known
    for name in RESERVED:
        with pytest.raises(PerceiversError, match=rf"^trainer.{name} cannot be set: .*\.$"):
            parse_trainer({name: 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_step": 3}, r"there is no field 'trainer.max_step': did you mean 'max_steps'"),
        ({"max_steps": "many"}, r"trainer.max_steps = 'many' is not allowed: it must be of type int\."),
        ({"precision": "12"}, r"trainer.precision = '12' is not allowed: it must be of type "),
        ({"callbacks": [{"class_path": "json.JSONDecoder"}]}, r"trainer.callbacks: json.JSONDecoder is no Callback\."),
        ({"callbacks": [{"class_path": "nowhere.Printer"}]}, r"callbacks: 'nowhere.Printer' cannot be used: No module"),
        ({"callbacks": [{"class_path": "EarlyStopping"}]}, r"EarlyStopping' cannot be used: .* required: monitor\."),
        (
            {"callbacks": [STOPPING | {"init_args": {"monitor": "a", "wait": 3}}]},
            r"EarlyStopping' cannot be used: Option 'wait' is not accepted\.",
        ),
        ({"logger": {"class_path": "lightning.pytorch.Trainer"}}, "lightning.pytorch.Trainer is no Logger"),
    ],
)
def test_arguments_that_are_not_allowed(values, message):
    with pytest.raises(PerceiversError, match=message) as error:
        parse_trainer(values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "epochs"),
    [({}, 10), ({"max_steps": 3}, -1), ({"max_time": "00:01:00:00"}, -1), ({"max_steps": 3, "max_epochs": 2}, 2)],
)
def test_a_run_has_ten_epochs_unless_it_is_limited_otherwise(values, epochs):
    assert count_max_epochs(values) == epochs


def test_the_trainer_refuses_what_is_not_there(tmp_path):
    with pytest.raises(PerceiversError, match=r"^trainer.devices = 4000 is not allowed: it must be at most \d+, the"):
        small_run(tmp_path / "run", devices=4000).run()
    with pytest.raises(PerceiversError, match=r"^trainer.num_nodes = 2 needs a process on each machine: start the "):
        small_run(tmp_path / "run", num_nodes=2).run()
    assert not (tmp_path / "run").exists()


def test_steps_may_limit_a_run(tmp_path):
    """The last step, in the middle of an epoch of nine, is evaluated, saved, and resumed from."""
    small_run(tmp_path, max_epochs=-1, max_steps=13).run()
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 13
    found = json.loads((tmp_path / "model" / "config.json").read_text())
    assert found["step"] == 13
    assert found["metrics"]["val_top1"] == json.loads((tmp_path / "metrics.json").read_text())["val_top1"]
    with pytest.raises(PerceiversError, match=r"is finished: set trainer.max_steps to more than 13\."):
        small_run(tmp_path, max_epochs=-1, max_steps=13, resume=True).run()
    small_run(tmp_path, max_epochs=-1, max_steps=15, resume=True).run()
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 15


LIMITED = [
    {"max_epochs": -1, "max_steps": 13},
    {"val_check_interval": 4},
    {"val_check_interval": 4, "ema": 0.9},
    {"val_check_interval": 4, "accumulate_grad_batches": 2},
    {"check_val_every_n_epoch": 2},
    {"check_val_every_n_epoch": 3, "max_epochs": 2},
    {"limit_train_batches": 5, "save_every_n_steps": 2},
]


@pytest.fixture(scope="module", params=LIMITED, ids=lambda settings: "-".join(settings))
def whole_run(request, tmp_path_factory):
    """Returns settings, and the results of a run with them that is not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    small_run(folder, **request.param).run()
    return request.param, read_results(folder)


@pytest.mark.parametrize("step", [3, 7, 8])
def test_runs_with_other_evaluations_resume_exactly(tmp_path, monkeypatch, whole_run, step):
    settings, expected = whole_run
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(SystemExit):
            small_run(tmp_path / "run", **settings).run()
    steps = record_steps(monkeypatch)
    small_run(tmp_path / "run", resume=True, **settings).run()
    assert steps[0] == step + 1
    assert_equal_results(read_results(tmp_path / "run"), expected)


class KilledError(Exception):
    pass


class Kill(Callback):
    """Ends the run before an update, without a chance to save."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise KilledError


KILL = [{"class_path": "tests.training.test_trainer.Kill", "init_args": {"step": 7}}]


@pytest.mark.parametrize(
    ("settings", "step"),
    [({"save_every_n_steps": 3}, 6), ({"save_every_n_minutes": 1e-9}, 7), ({"val_check_interval": 5}, 5), ({}, 0)],
)
def test_a_killed_run_loses_what_came_after_its_last_checkpoint(tmp_path, monkeypatch, settings, step):
    """With `resume: auto`, the same command goes on, from the beginning if nothing was saved."""
    small_run(tmp_path / "whole", **settings).run()
    with pytest.raises(KilledError):
        small_run(tmp_path / "run", resume="auto", callbacks=KILL, **settings).run()
    steps = record_steps(monkeypatch)
    small_run(tmp_path / "run", resume="auto", **settings).run()
    assert steps[0] == step
    assert_equal_results(read_results(tmp_path / "run"), read_results(tmp_path / "whole"))


def test_a_finished_run_is_left_as_it_is(tmp_path, capsys):
    small_run(tmp_path, resume="auto").run()
    before = read_results(tmp_path)
    capsys.readouterr()
    small_run(tmp_path, resume="auto").run()
    assert "Nothing to do: the run in" in capsys.readouterr().out
    assert_equal_results(read_results(tmp_path), before)


def test_a_run_may_have_no_logger(tmp_path):
    small_run(tmp_path, max_epochs=1, logger=False).run()
    assert not {"csv", "tensorboard"} & {path.name for path in tmp_path.iterdir()}


def test_callbacks_and_loggers_are_those_of_the_config(tmp_path):
    """A run that does not get better stops after two evaluations more, and logs where it is told to."""
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "own"), "name": "", "version": ""}}
    run = small_run(tmp_path / "run", max_epochs=9, callbacks=[STOPPING], logger=logger)
    run.optimization.lr = 1e-12
    run.run()
    metrics = (tmp_path / "own" / "metrics.csv").read_text()
    assert "val_top1" in metrics.splitlines()[0]
    assert not (tmp_path / "run" / "csv").exists()
    assert "batch_size: 128" in (tmp_path / "own" / "hparams.yaml").read_text()
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 18
    with pytest.raises(PerceiversError, match=r"is finished: set trainer.max_epochs to more than 9"):
        small_run(tmp_path / "run", max_epochs=9, callbacks=[STOPPING], logger=logger, resume=True).run()


def test_a_config_names_a_callback_by_its_path_and_so_does_the_resumed_run(tmp_path):
    config = small_run(tmp_path / "run").to_config()
    config["trainer"] |= {"callbacks": KILL}
    del config["model"]["classes"], config["model"]["class_names"]
    (tmp_path / "run.json").write_text(json.dumps(config))
    with pytest.raises(KilledError):
        read_config(tmp_path / "run.json", ["--training.save_every_n_steps=3"]).run()
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert saved["trainer"]["callbacks"] == KILL
    with pytest.raises(KilledError):
        read_config(tmp_path / "run/config.json", ["--training.resume=true"]).run()


@pytest.mark.parametrize("part", ["", "model", "best", "model/model.safetensors", "checkpoints/last.ckpt"])
def test_all_parts_of_a_run_load(finished, part):
    model = perceivers.load(finished / part)
    expected = perceivers.load(finished / ("best" if part == "best" else "model"))
    image = torch.rand(2, 1, 8, 8)
    assert torch.equal(model({"image": image})["label"], expected({"image": image})["label"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("run")).run()


def test_a_checkpoint_is_evaluated(finished, capsys):
    main(["evaluate", str(finished / "checkpoints" / "last.ckpt"), "--data", "digits", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["top1"] == json.loads((finished / "metrics.json").read_text())["val_top1"]


def test_the_whole_config_is_printed(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("experiment: image_classification\nmodel: {latents: 4, channels: 8, image_size: 8}\n")
    main(["fit", str(config), "--trainer.max_steps", "7", "--print_config", "--training.output", "~/run"])
    text = capsys.readouterr().out
    assert "trainer:\n  max_steps: 7\n" in text
    assert "latents: 4" in text
    assert "output: ~/run" not in text
    config.write_text(text)
    main(["fit", str(config), "--print_config"])
    assert capsys.readouterr().out == text


def test_help_describes_the_arguments(tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("experiment: image_classification\nmodel: {latents: 4, channels: 8, image_size: 8}\n")
    main(["fit", str(config), "--help"])
    text = capsys.readouterr().out
    assert "  --trainer.max_steps (int; default: -1)\n        Stop training after this number of steps." in text
    assert "  --trainer.callbacks (" in text


def test_sharding_needs_several_processes(tmp_path):
    with pytest.raises(PerceiversError, match=r"'fsdp' shards weights over several processes: set trainer"):
        small_run(tmp_path / "run", strategy="fsdp", devices=1).run()
    with pytest.raises(PerceiversError, match=r"training.ema = 0.9 is not allowed: it must be left out where trainer"):
        small_run(tmp_path / "run", strategy="fsdp", devices=2, ema=0.9).run()
