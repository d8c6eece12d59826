"""Checkpoints: written completely or not at all, verified, resumed with the same settings, by one run at a time."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from perceivers.checkpoints.run import verify_checkpoint
from perceivers.errors import PerceiversError
from perceivers.images.training import ImageClassifier
from perceivers.training.checkpoints import hold_folder
from tests.support.images import small_run
from tests.support.runs import assert_equal_results, interrupt_at, read_results


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The folder of a run that was stopped in its first epoch."""
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        with pytest.raises(SystemExit):
            small_run(tmp_path).run()
    return tmp_path


def test_a_changed_checkpoint_is_noticed(stopped):
    last = stopped / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["state_dict"]["model.encoder.latents"][0, 0] += 1e-3
    torch.save(checkpoint, last)
    with pytest.raises(PerceiversError, match=r"last\.ckpt was changed after it was saved"):
        small_run(stopped, resume=True).run()
    del checkpoint["sha256"]
    torch.save(checkpoint, last)
    with pytest.raises(PerceiversError, match=r"last\.ckpt has no checksum: it was written by another release"):
        small_run(stopped, resume=True).run()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("training.batch_size", 64, r"training.batch_size = 64, but the run was begun with 128"),
        ("training.seed", 5, r"training.seed = 5, but the run was begun with 0"),
        ("trainer.accumulate_grad_batches", 2, r"trainer.accumulate_grad_batches = 2, but .* with 1"),
        ("training.ema", 0.9, r"training.ema = 0.9, but the run was begun with null"),
        ("optimization.lr", 1.0, r"optimization.lr = 1.0, but the run was begun with 0.00"),
        ("optimization.optimizer", "lamb", r'optimization.optimizer = "lamb", but the run was begun with "adamw"'),
        ("augmentation.shift", 3, r"augmentation.shift = 3, but the run was begun with"),
        ("label_smoothing", 0.3, r"label_smoothing = 0.3, but the run was begun with"),
    ],
)
def test_a_resumed_run_refuses_other_settings(stopped, field, value, message):
    run = small_run(stopped, resume=True)
    section, _, name = field.rpartition(".")
    if section == "trainer":
        run.trainer[name] = value
    else:
        setattr(getattr(run, section) if section else run, name, value)
    before = (stopped / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(PerceiversError, match=message):
        run.run()
    assert (stopped / "checkpoints" / "last.ckpt").read_bytes() == before


def test_a_finished_run_may_have_more_epochs(tmp_path):
    small_run(tmp_path / "run").run()
    more = small_run(tmp_path / "run", resume=True)
    more.trainer["max_epochs"] = 3
    more.run()
    steps = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert steps == 27


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch, code, capsys):
    original = os.replace

    def fail(source, target):
        if str(target).endswith("last.ckpt"):
            raise OSError(code, os.strerror(code))
        original(source, target)

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(PerceiversError, match=rf"cannot write .*last\.ckpt: {os.strerror(code)}"):
        small_run(tmp_path).run()
    assert "saved" not in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_the_previous_checkpoint_stays_until_the_next_is_complete(stopped, monkeypatch):
    before = (stopped / "checkpoints" / "last.ckpt").read_bytes()

    def fail(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.save", fail)
    with pytest.raises(PerceiversError, match="No space left on device"):
        small_run(stopped, resume=True).run()
    assert (stopped / "checkpoints" / "last.ckpt").read_bytes() == before
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["last.ckpt"]
    verify_checkpoint(stopped / "checkpoints" / "last.ckpt")


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from perceivers.training.checkpoints import hold_folder\n"
        "with hold_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(PerceiversError, match="another run is writing to"):
            small_run(tmp_path).run()
        other.kill()
    with hold_folder(tmp_path):  # the lock ends with its process
        pass
    small_run(tmp_path).run()


def test_missing_results_of_a_run_are_written(tmp_path):
    small_run(tmp_path).run()
    expected = read_results(tmp_path)
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "model" / "model.safetensors").unlink()
    small_run(tmp_path, resume=True).run()
    assert_equal_results(read_results(tmp_path), expected)


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    original = ImageClassifier.on_before_optimizer_step

    def spoil(self, optimizer):
        original(self, optimizer)
        if self.global_step == 8:  # the last of the first epoch
            self.model.encoder.latents.grad[0, 0] = torch.inf

    monkeypatch.setattr(ImageClassifier, "on_before_optimizer_step", spoil)
    with pytest.raises(PerceiversError, match=r"step 9: model\.encoder\.latents has NaN or infinite values"):
        small_run(tmp_path).run()
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_refused_run_writes_nothing(tmp_path):
    run = small_run(tmp_path / "run")
    run.training.batch_size = 10**6
    with pytest.raises(PerceiversError, match="batch_size is larger than the training set"):
        run.run()
    assert not (tmp_path / "run").exists()


def test_metrics_are_valid_json(tmp_path, monkeypatch):
    def log(self):
        self.log_dict({"val_top1": 1.0, "val_loss": torch.inf})

    monkeypatch.setattr(ImageClassifier, "on_validation_epoch_end", log)
    small_run(tmp_path).run()
    found = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert (found["val_top1"], found["val_loss"]) == (1.0, None)


def test_a_metric_that_is_nan_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageClassifier, "on_validation_epoch_end", lambda self: self.log("val_loss", torch.nan))
    with pytest.raises(PerceiversError, match="val_loss is NaN: the weights have diverged"):
        small_run(tmp_path).run()
    assert not (tmp_path / "metrics.json").exists()
