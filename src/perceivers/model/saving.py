"""Our own format: a folder with `config.json` (what the model is built of) and `model.safetensors` (its weights)."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.config import Configured, from_tree, to_tree
from perceivers.renames import update_saved

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER = "tokenizer.model"  # beside these, for a model with a subword tokenizer
FORMAT = "perceivers"
VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 names classes without their modules."""


class Model(Configured, nn.Module):
    """Base of whole models, which are saved to a folder and loaded from it by `perceivers.load`."""

    def save(self, path: str | Path, experiment: str | None = None) -> None:
        """Writes config and weights to a folder; an earlier model there is replaced.

        Args:
            path: the folder.
            experiment: the name of the experiment that trained the model, by which `perceivers evaluate` finds it.

        Raises:
            PerceiversError: the folder cannot be written to, or the model cannot be built again from its arguments.
        """
        path = Path(path)
        config = describe(self) | ({} if experiment is None else {"experiment": experiment})
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write(path / WEIGHTS, lambda file: save_file(tensors, file))
        write(path / CONFIG, lambda file: file.write_text(json.dumps(config, indent=2) + "\n"))


def write(path: Path, fill: Callable[[Path], Any]) -> None:
    """Writes a file whole or not at all: `fill` writes to a temporary name, which is then renamed.

    Raises:
        PerceiversError: the path cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
    except OSError as error:
        raise PerceiversError(f"cannot write {path}: {error.strerror}; choose another output path.") from error
    try:
        fill(Path(temporary))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def describe(model: nn.Module) -> dict[str, Any]:
    """The config that is saved with a model.

    Raises:
        PerceiversError: the model cannot be built again from its arguments, or two of its parts share weights.
    """
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(parameter), name)
        if first != name:
            raise PerceiversError(f"{name} and {first} are one array: build a module of its own for each place.")
    return {"format": FORMAT, "version": VERSION, "model": to_tree(model)}


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """The config in the folder of a saved model, a JSON object.

    Raises:
        PerceiversError: there is none, or it is not a JSON object.
    """
    file = folder / name
    if not file.is_file():
        raise PerceiversError(f"{folder} is not a saved model: it has no {name}.")
    try:
        config = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PerceiversError(f"{file} is not valid JSON ({error}): the file is damaged.") from error
    if not isinstance(config, dict):
        raise PerceiversError(f"{file} holds a {type(config).__name__} instead of an object: the file is damaged.")
    return config


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The arrays of a safetensors file, by name.

    Raises:
        PerceiversError: there is no such file, or it cannot be read.
    """
    if not file.is_file():
        raise PerceiversError(f"{file.parent} is not a saved model: it has no {file.name}.")
    try:
        return {name: align(tensor) for name, tensor in load_file(file).items()}
    except (safetensors.SafetensorError, OSError) as error:
        raise PerceiversError(f"{file} cannot be read ({error}): it is truncated or damaged.") from error


def align(tensor: Tensor) -> Tensor:
    """Copies a tensor whose memory is not 64-byte aligned: products of such tensors can round differently."""
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


def read(path: str | Path, find_class: Callable[[str], type[Configured]]) -> Model:
    """Builds the model that a folder holds, with its weights, on the CPU and in evaluation mode.

    Args:
        path: a folder that `Model.save` wrote.
        find_class: returns the class of a name in the config, or raises a PerceiversError.

    Raises:
        PerceiversError: a file is missing, truncated, not ours, or of another model.
    """
    path = Path(path)
    config = read_config(path)
    if config.get("format") != FORMAT:
        raise PerceiversError(f"{path / CONFIG} was not written by perceivers: it has no format {FORMAT!r}.")
    if config.get("version") not in READABLE_VERSIONS:
        raise PerceiversError(
            f"{path / CONFIG} has version {config.get('version')} of the format, "
            f"but this release reads up to version {VERSION}: install the release that wrote it."
        )
    if "model" not in config:
        raise PerceiversError(f"{path / CONFIG} has no 'model': the file is damaged.")
    tree = update_saved(config["model"]) if config["version"] == 1 else config["model"]
    model = from_tree(tree, find_class)
    if not isinstance(model, Model):
        raise PerceiversError(f"{path / CONFIG} describes a {type(model).__name__}, not a model.")
    tensors = read_tensors(path / WEIGHTS)
    check_tensors(tensors, model, path / WEIGHTS)
    model.load_state_dict(tensors, assign=True)  # keeps the precision it was saved in
    return model.eval()


def check_tensors(tensors: Mapping[str, Tensor], model: nn.Module, source: Path) -> None:
    """Raises a PerceiversError unless `tensors`, from the file `source`, are those of the model, by name and shape."""
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        have = tuple(tensors[name].shape) if name in tensors else "missing"
        want = tuple(wanted[name].shape) if name in wanted else "no such tensor"
        if have != want:
            raise PerceiversError(f"{source} belongs to another model: {name} is {have}, but its config wants {want}.")
