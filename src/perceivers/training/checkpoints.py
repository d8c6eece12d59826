"""Writes the checkpoints of training runs, completely or not at all, and of one run at a time in a folder."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from perceivers.checkpoints.run import CHECKSUM, compute_checksum, open_checkpoint
from perceivers.errors import PerceiversError
from perceivers.model.saving import atomic_write

CONFIG, METRICS, LAST = "config.json", "metrics.json", "last.ckpt"
"""Names of the files of a run."""
FREE = ("resume", "output", "workers", "compile", "save_every_n_minutes", "save_every_n_steps")
"""Settings of `training` with which a resumed run ends right, even if they are not those it was begun with."""
FIXED = {
    "trainer.precision": "32-true",
    "trainer.accumulate_grad_batches": 1,
    "trainer.gradient_clip_val": None,
    "trainer.gradient_clip_algorithm": None,
    "trainer.limit_train_batches": None,
}
"""Arguments of the Trainer of which the same is not true, and their defaults."""
LIMITS = ("max_epochs", "max_steps", "max_time")
"""Arguments of the Trainer that limit a run."""


class CheckpointFiles(CheckpointIO):
    """Writes and reads the files of checkpoints.

    Attributes:
        error: of the last file, if it could not be written; other processes must hear of it before it is raised.
    """

    error: PerceiversError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = checkpoint | {CHECKSUM: compute_checksum(checkpoint)}

        def write(file: Path) -> None:
            with file.open("wb") as opened:
                try:
                    torch.save(content, opened)
                except RuntimeError as error:  # torch hides why the file could not be written
                    raise error.__context__ if isinstance(error.__context__, OSError) else error from None

        try:
            atomic_write(Path(path), write)
        except PerceiversError as error:
            self.error = error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return open_checkpoint(Path(path), mmap=False)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def count_epochs(checkpoint: Mapping[str, Any]) -> int:
    """Returns the number of epochs whose updates the run of a checkpoint has done."""
    loop = checkpoint["loops"]["fit_loop"]
    return int(loop["epoch_progress"]["current"]["processed"]) + loop["epoch_loop.batch_progress"]["is_last_batch"]


def have_same_limits(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Returns whether two configs limit a run in the same way."""
    first, second = before.get("trainer", {}), now.get("trainer", {})
    return all(first.get(name) == second.get(name) for name in LIMITS)


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises a PerceiversError for a setting that is not the one with which a run was begun."""
    old, new = FIXED | flatten(before), FIXED | flatten(now)
    for name in sorted(old.keys() | new.keys()):
        section, _, field = name.partition(".")
        if (section == "training" and field in FREE) or (section == "trainer" and name not in FIXED):
            continue
        if old.get(name) != new.get(name):
            was, given = json.dumps(old.get(name)), json.dumps(new.get(name))
            raise PerceiversError(
                f"{name} = {given}, but the run was begun with {was}: resume with that, or choose another "
                f"training.output."
            )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields of a config by their full names, without that which a move may change."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            fields |= flatten(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    fields.pop("import_from", None)
    return fields


def is_first_process() -> bool:
    """Returns whether this is the first process of a run, before there is a trainer."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def open_lock(folder: Path, name: str = ".lock") -> TextIO:
    """Opens the file in a folder, made if need be, that processes lock to keep others out of it.

    Raises:
        PerceiversError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return (folder / name).open("w")
    except OSError as error:
        raise PerceiversError(f"cannot write to {folder}: {error.strerror}; choose another output path.") from error


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, until the end of the block or of the process.

    Raises:
        PerceiversError: another run holds the folder, or it cannot be written to.
    """
    with open_lock(folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PerceiversError(
                f"another run is writing to {folder}: wait for its end, or choose another training.output."
            ) from error
        try:
            yield
        finally:
            Path(file.name).unlink(missing_ok=True)
