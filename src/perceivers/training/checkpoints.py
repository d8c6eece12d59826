"""Checkpoints of training runs: written completely or not at all, verified when read, and of one run at a time."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.saving import atomic_write

CONFIG, METRICS, BEST, LAST = "config.json", "metrics.json", "best.ckpt", "last.ckpt"
"""Names of the files of a run."""
CHECKSUM = "sha256"
"""The field of a checkpoint with the checksum of all others."""

FREE = ("resume", "output", "epochs", "workers", "devices", "nodes", "accelerator", "compile")
"""Settings of `training` with which a resumed run ends right, even if they are not those it was begun with."""


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


def open_checkpoint(path: Path, mmap: bool = True) -> dict[str, Any]:
    """Opens a checkpoint, whose tensors are read when they are used, unless they are not mapped.

    Raises:
        PerceiversError: the file is damaged, or was not written by this release.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except Exception as error:  # what is raised depends on which bytes are damaged
        raise PerceiversError(f"{path} is truncated or damaged: start again with another training.output.") from error
    if not isinstance(checkpoint, dict) or CHECKSUM not in checkpoint:
        raise PerceiversError(
            f"{path} has no checksum: it was written by another release, with which the run can be resumed, "
            f"or start again with another training.output."
        )
    return checkpoint


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """Opens a checkpoint and compares its content with its checksum.

    Raises:
        PerceiversError: the file is damaged, was changed, or was not written by this release.
    """
    checkpoint = open_checkpoint(path)
    if compute_checksum(checkpoint) != checkpoint[CHECKSUM]:
        raise PerceiversError(
            f"{path} was changed after it was saved, as its checksum shows: start again with another training.output."
        )
    return checkpoint


def compute_checksum(checkpoint: Mapping[str, Any]) -> str:
    """Returns the SHA-256 checksum of everything in a checkpoint but its own checksum."""
    total = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            total.update(f"{value.dtype} {tuple(value.shape)}".encode())
            total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(value, Mapping):
            for key, item in value.items():
                total.update(repr(key).encode())
                add(item)
        elif isinstance(value, list | tuple):
            total.update(b"[")
            for item in value:
                add(item)
        else:
            total.update(repr(value).encode())

    add({name: value for name, value in checkpoint.items() if name != CHECKSUM})
    return total.hexdigest()


def count_epochs(checkpoint: Mapping[str, Any]) -> int:
    """Returns the number of epochs whose updates the run of a checkpoint has done."""
    loop = checkpoint["loops"]["fit_loop"]
    return int(loop["epoch_progress"]["current"]["processed"]) + loop["epoch_loop.batch_progress"]["is_last_batch"]


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises a PerceiversError for a setting that is not the one with which a run was begun."""
    old, new = flatten(before), flatten(now)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name) and name not in (f"training.{free}" for free in FREE):
            was, given = json.dumps(old.get(name)), json.dumps(new.get(name))
            raise PerceiversError(
                f"{name} = {given}, but the run was begun with {was}: resume with that, or choose another "
                f"training.output."
            )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields of a config by their full names, without those that a sweep and a move may change."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            fields |= flatten(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    free = ("import_from", "data.tasks", "sweep")
    return {name: value for name, value in fields.items() if not name.startswith(free)}


def is_first_process() -> bool:
    """Returns whether this is the first process of a run, before there is a trainer."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, until the end of the block or of the process.

    Raises:
        PerceiversError: another run holds the folder, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise PerceiversError(f"cannot write to {folder}: {error.strerror}; choose another output path.") from error
    with file:
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
