"""The library's format of saved models: a folder with `config.json`, to build the model, and `model.safetensors`.

The config has a checksum of the weights' file, which is verified when the model is loaded.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.config import Configurable, from_config, to_config
from perceivers.model.meta import build_on_meta
from perceivers.renames import update_saved
from perceivers.values import read_json

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER = "tokenizer.model"  # beside these, for a model with a subword tokenizer
FORMAT = "perceivers"
VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 names classes without their modules."""
CHECKSUM = "sha256"
"""The field of the config with the checksum of the weights' file; folders of release 0.1 have none."""
PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
PART = ".part"
"""The end of the names of files that are being written."""


class Model(Configurable, nn.Module):
    """Base of whole models, which are saved to a folder and loaded from it by `perceivers.load`.

    Attributes:
        head: parts that make predictions of what the rest of the model returns, and are often trained alone.
        folder: the folder from which the model was loaded, if it was.
    """

    head: ClassVar[tuple[str, ...]] = ("projection", "heads", "outputs")
    folder: Path | None = None

    def save(self, path: str | Path, experiment: str | None = None) -> None:
        """Saves config and weights to a folder, overwriting an earlier model.

        Args:
            path: the folder.
            experiment: name of the experiment that trained the model, by which `perceivers evaluate` finds it.

        Raises:
            PerceiversError: the folder cannot be written to, or the model cannot be rebuilt from its arguments.
        """
        save_model(Path(path), describe_model(self, experiment), self.state_dict())

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None, **options: Any) -> Self:
        """Loads a model of this class: `perceivers.load` by the name that other libraries use.

        Args:
            source: as in `perceivers.load`, such as the name of a repository on the Hub.
            revision: branch, tag or commit of the repository; the latest commit of "main" by default.
            options: other arguments of `perceivers.load`.
        """
        from perceivers import hub

        return hub.from_pretrained(cls, source, revision, **options)

    def save_pretrained(self, path: str | Path, *, license: str | None = None, example: Any = None) -> None:
        """Saves the model as `save` does, and beside it a model card (README.md), written from its training run.

        Args:
            path: the folder.
            license: license of the weights, such as "apache-2.0".
            example: inputs of one example, as in a call of the model; the card then has the FLOPs.
        """
        from perceivers import hub

        hub.save_pretrained(self, path, license=license, example=example)

    def push_to_hub(self, name: str, **options: Any) -> str:
        """Uploads the model with its model card to the Hugging Face Hub, and returns the URL of the commit.

        The card has the metrics, data and seed of the training run from whose folder the model was loaded, as long as
        its weights have not been changed.

        Args:
            name: the repository, "USER/MODEL", which is created.
            options: `private`: whether only its owner sees it; `token`: by default HF_TOKEN, or that of `hf auth
                login`; `exist_ok`: add a version to a repository that exists; `commit_message`; `license`, `example`:
                as in `save_pretrained`.

        Raises:
            PerceiversError: there is no token or no right, the repository exists, or the Hub cannot be reached.
        """
        from perceivers import hub

        return hub.push_to_hub(self, name, **options)


def save_model(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Saves the description of a model, see `describe_model`, and its weights to a folder.

    Raises:
        PerceiversError: the folder cannot be written to.
    """
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    checksum = ""

    def write_weights(file: Path) -> None:
        nonlocal checksum
        save_file(contiguous, file)
        checksum = compute_checksum(file)

    atomic_write(path / WEIGHTS, write_weights)
    text = json.dumps({**config, CHECKSUM: checksum}, indent=2) + "\n"
    atomic_write(path / CONFIG, lambda file: file.write_text(text))


def atomic_write(path: Path, write_to: Callable[[Path], Any]) -> None:
    """Writes a file completely or not at all: `write_to` writes to a temporary file, which is then renamed.

    An earlier file of this name stays until the new one is on the disk.

    Raises:
        PerceiversError: the path cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        os.close(handle)
        temporary = Path(name)
        try:
            write_to(temporary)
            temporary.chmod(0o644)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PerceiversError(f"cannot write {path}: {reason}; choose another output path.") from error


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def describe_model(model: nn.Module, experiment: str | None = None) -> dict[str, Any]:
    """Returns the config that is saved with a model, and with the name of the experiment that trained it.

    Raises:
        PerceiversError: the model cannot be rebuilt from its arguments, or two of its modules share a parameter.
    """
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = owners.setdefault(id(parameter), name)
        if first != name:
            raise PerceiversError(f"{name} and {first} share one parameter: build a separate module for each.")
    trained_by = {} if experiment is None else {"experiment": experiment}
    return {"format": FORMAT, "version": VERSION, "model": to_config(model), **trained_by}


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Reads the config in the folder of a saved model.

    Raises:
        PerceiversError: the file is missing, or is not a JSON object.
    """
    file = folder / name
    if not os.path.isfile(file):
        raise PerceiversError(f"{folder} is not a saved model: it has no {name}.")
    config = read_json(file)
    if not isinstance(config, dict):
        raise PerceiversError(f"{file} holds a {type(config).__name__} instead of an object: the file is damaged.")
    return config


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file, by name.

    Raises:
        PerceiversError: the file is missing, or cannot be read.
    """
    if not os.path.isfile(file):
        raise PerceiversError(f"{file.parent} is not a saved model: it has no {file.name}.")
    try:
        # Tensors whose memory is not 64-byte aligned are copied: products of them can round differently.
        return {
            name: tensor if tensor.data_ptr() % 64 == 0 else tensor.clone() for name, tensor in load_file(file).items()
        }
    except (safetensors.SafetensorError, OSError) as error:
        raise PerceiversError(f"{file} cannot be read ({error}): it is truncated or damaged.") from error


def read_model(path: str | Path, find_class: Callable[[str], type[Configurable]]) -> Model:
    """Builds the model of a folder, with its weights, on the CPU and in evaluation mode.

    Args:
        path: a folder that `Model.save` wrote.
        find_class: returns the class of a name in the config, or raises a PerceiversError.

    Raises:
        PerceiversError: a file is missing, truncated, in another format, or belongs to another model.
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
    if config["version"] == 1:
        config["model"] = update_saved(config["model"])
    file = path / WEIGHTS
    model = build_model(config, read_tensors(file), path / CONFIG, file, find_class)
    model.folder = path
    return model


def build_model(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    config_file: Path,
    file: Path,
    find_class: Callable[[str], type[Configurable]],
) -> Model:
    """Builds the model of a config, see `describe_model`, with the tensors that were read from a file.

    Raises:
        PerceiversError: the tensors belong to another model, or the file was changed after it was saved.
    """

    def build() -> Any:
        return from_config(config["model"], find_class)

    model = build_on_meta(build, len(tensors), config_file)
    if not isinstance(model, Model):
        raise PerceiversError(f"{config_file} describes a {type(model).__name__}, not a model.")
    check_tensors(tensors, model, file)
    if CHECKSUM in config and config[CHECKSUM] != compute_checksum(file):
        raise PerceiversError(
            f"{file} was changed after it was saved, as its checksum is not the one in {CONFIG}: copy both files again."
        )
    model = build()
    model.load_state_dict(tensors, assign=True)  # keeps the saved precision
    return model.eval()


def compute_checksum(file: Path) -> str:
    """Returns the SHA-256 checksum of a file."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check_tensors(tensors: Mapping[str, Tensor], model: nn.Module, source: Path) -> None:
    """Raises a PerceiversError unless the tensors of the file `source` have the names and shapes of the model's.

    Their numbers must be of the same kind, and finite.
    """
    wanted = model.state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        have = tuple(tensors[name].shape) if name in tensors else "missing"
        want = tuple(wanted[name].shape) if name in wanted else "no such tensor"
        if have != want:
            raise PerceiversError(f"{source} belongs to another model: {name} is {have}, but its config wants {want}.")
        check_numbers(tensors[name], wanted[name].dtype, f"{source}: {name}")


def check_numbers(tensor: Tensor, dtype: torch.dtype, name: str) -> None:
    """Raises a PerceiversError unless a tensor has finite numbers of the kind of `dtype`."""
    kinds = PRECISIONS if dtype in PRECISIONS else [dtype] if dtype.is_floating_point or dtype.is_complex else INTEGERS
    if tensor.dtype not in kinds:
        raise PerceiversError(f"{name} has numbers of type {tensor.dtype}, but {dtype} is expected.")
    if tensor.dtype in PRECISIONS and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
        raise PerceiversError(f"{name} has NaN or infinite values: the training has diverged, or the file is damaged.")
