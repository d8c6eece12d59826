"""Loads models from files, folders or the Hugging Face Hub, in any installed format."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from perceivers import plugins
from perceivers.checkpoints.adapter import apply_adapter
from perceivers.checkpoints.format import Format
from perceivers.checkpoints.run import describe_run, model_weights, open_checkpoint, verify_checkpoint
from perceivers.checkpoints.settings import change_model, find_config, list_config_types
from perceivers.errors import PerceiversError, did_you_mean
from perceivers.model.adapter import Adapters
from perceivers.model.config import Configurable, import_path
from perceivers.model.device import check_dtype, move_model
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import CONFIG, FORMAT, TOKENIZER, WEIGHTS, Model, build_model, read_config, read_model
from perceivers.model.sizes import ModelConfig


def load(
    source: str | Path,
    *,
    device: str | None = None,
    dtype: str | None = None,
    adapter: str | Path | None = None,
    custom_classes: Sequence[type[Configurable]] = (),
    **settings: Any,
) -> PerceiverIO:
    """Loads a Perceiver IO in evaluation mode. The format is detected from the content.

    Args:
        source: a folder written by `model.save`, or one of its files; the folder of a training run, or its checkpoint;
            a folder in the format of `transformers`; the name of a repository with either on the Hub; or a file of the
            original code (`.pystate`, `.pickle`).
        device: device, such as "cuda:1"; the CPU by default.
        dtype: "float32", "bfloat16" or "float16"; that of the file by default.
        adapter: folder of an adapter that a training run with `model.lora` wrote, if `source` is the model that the run
            started from.
        custom_classes: your own Python classes that the model consists of; not needed if their package declares an
            entry point of perceivers.
        settings: fields of the model's config that are changed, such as `classes=3` or `image_size=64`, or that are
            missing in a file of the original code, such as `heads=4`. Weights that fit are kept; a warning names those
            that are fresh, such as a head for other classes.

    Raises:
        PerceiversError: the source does not exist; a file is missing, truncated, of unknown format or of another model;
            a setting is unknown or has no effect; or the model names a class that may not be imported.

    Examples:
        >>> import torch
        >>> from perceivers.flow.estimate import BUNDLED_MODEL
        >>> model = load(BUNDLED_MODEL, dtype="bfloat16")
        >>> list(model.inputs), list(model.outputs), model.dtype
        (['frames'], ['flow'], torch.bfloat16)
    """
    check_dtype(dtype)
    model = load_model(source, custom_classes, **settings)
    if adapter is not None:
        folder = Path(os.path.expanduser(adapter))
        model = apply_adapter(model, folder, lambda name: find_class(name, custom_classes, folder))
    if not isinstance(model, PerceiverIO):
        raise PerceiversError(f"{source} holds a {type(model).__name__}, not a PerceiverIO: give another model.")
    return move_model(model, device, dtype)


def load_model(source: str | Path, custom_classes: Sequence[type[Configurable]] = (), **settings: Any) -> Model:
    """Loads any model, on the CPU: like `load`, but also baselines, set encoders, and models of other packages."""
    if isinstance(settings.get("classes"), type | Sequence):
        raise PerceiversError("classes is the number of classes: pass your own Python classes as custom_classes=[...].")
    path = locate(source)
    if is_own(path):
        model = load_own(path, custom_classes)
        return change_model(model, settings, path) if settings else model
    formats = plugins.find_entry_points("formats")
    for name in formats:
        other = find_format(name)
        if other.recognizes(path):
            return other.read(path, settings)
    if path.is_dir():
        raise PerceiversError(f"{path / CONFIG} was not written by perceivers: it has no format {FORMAT!r}.")
    raise PerceiversError(f"{path} is in no format that can be read: {', '.join(formats)}.")


def pretrained_config(source: str | Path, *kinds: type[ModelConfig]) -> Any:
    """Returns the config of a saved model with that model as `init`: a run with it starts from those weights.

    Args:
        source: as in `load`.
        kinds: the classes of model configs that may describe the model; by default those of all installed models.

    Raises:
        PerceiversError: the model cannot be loaded, or is of another kind.
    """
    model = load_model(source)
    kinds = kinds or tuple(list_config_types())
    config = find_config(model, kinds)
    if config is None:
        parts = [getattr(model, part, None) for part in ("inputs", "outputs")]
        reads, predicts = (", ".join(part) if isinstance(part, Adapters) else "other data" for part in parts)
        raise PerceiversError(
            f"{source} is a model of another domain, which reads {reads} and predicts {predicts}: "
            f"give one that {' or '.join(kind.__name__ for kind in kinds)} describes."
        )
    return replace(config, init=str(source))


def load_own(path: Path, custom_classes: Sequence[type[Configurable]]) -> Model:
    """Loads a model in the library's own format."""

    def find(name: str) -> type[Configurable]:
        return find_class(name, custom_classes, path)

    if not is_checkpoint(path):
        return read_model(path, find)
    checkpoint = verify_checkpoint(path)
    return build_model(describe_run(checkpoint)["model"], model_weights(checkpoint), path, path, find)


def find_class(name: str, custom_classes: Sequence[type[Configurable]], source: Path) -> type[Configurable]:
    """Returns the class that a saved model names, if it is among those given or its package may be imported.

    The name is an import path "package.module:Class" or, in version 1 of the format, that of the class alone.
    """
    given = {import_path(kind): kind for kind in custom_classes}
    if name in given:
        return given[name]
    module, _, qualified = name.rpartition(":")
    if module in ("", "__main__"):  # the name alone does not identify the class
        same = [kind for kind in custom_classes if kind.__qualname__.rpartition(".")[2] == qualified.rpartition(".")[2]]
        if len(same) == 1:
            return same[0]
        raise PerceiversError(
            f"{source} names the class {name!r}, which is not one of this package: "
            f"if it is yours, pass it with load(..., custom_classes=[{qualified}])."
        )
    package = module.split(".")[0]
    if not plugins.is_trusted(package):
        raise PerceiversError(
            f"{source} names the class {name!r}, and {package!r} declares no entry point of perceivers: if you trust "
            f"its code, pass load(..., custom_classes=[{qualified}]), or --trust {package} on the command line."
        )
    kind = plugins.import_object(name, "class")
    if not isinstance(kind, type) or not issubclass(kind, Configurable):
        raise PerceiversError(f"{source} names {name!r}, which is not a part of a model.")
    return kind


def find_format(name: str) -> Format:
    """Returns the file format of a name, or of an import path "package.module:object"; or raises a PerceiversError."""
    formats = plugins.find_entry_points("formats")
    if name not in formats and ":" not in name:
        raise PerceiversError(f"there is no format {name!r}: {did_you_mean(name, ['perceivers', *formats])}")
    return plugins.find_instance("formats", name, Format)  # type: ignore[type-abstract]


def is_checkpoint(path: Path) -> bool:
    """Returns whether a path is a checkpoint of a training run."""
    return path.is_file() and path.suffix == ".ckpt"


def is_own(path: Path) -> bool:
    """Returns whether a model is in the library's own format."""
    return is_checkpoint(path) or (path.is_dir() and read_config(path).get("format") == FORMAT)


def describe_source(path: Path) -> Mapping[str, Any]:
    """Returns the description of a model in the library's own format, see `saving.describe_model`."""
    description: Mapping[str, Any] = (
        describe_run(open_checkpoint(path))["model"] if is_checkpoint(path) else read_config(path)
    )
    return description


def locate(source: str | Path) -> Path:
    """Returns the folder or file of a model, after downloading it if it is on the Hub.

    The folder of a training run stands for its model, and a file of a saved model for its folder.

    Raises:
        PerceiversError: there is no model, or it cannot be read.
    """
    path = Path(os.path.expanduser(source))
    try:
        if path.is_dir():
            os.scandir(path).close()
            return find_model_folder(path)
        if path.is_file():
            open(path, "rb").close()
            return find_whole(path)
        return path if path.exists() else download(str(source))
    except OSError as error:
        raise PerceiversError(f"{source} cannot be read: {error.strerror}.") from error


def find_model_folder(path: Path) -> Path:
    """Returns the model in the folder of a training run, or the folder itself; or raises a PerceiversError."""
    if (path / "model" / CONFIG).is_file():
        return path / "model"
    if (path / "checkpoints").is_dir() and not (path / WEIGHTS).is_file():
        last = path / "checkpoints" / "last.ckpt"
        hint = f"resume it, or give {last}" if last.is_file() else "resume it"
        raise PerceiversError(f"{path} is the folder of a training run that has saved no model yet: {hint}.")
    if any(path.glob("*.index.json")) and not (path / WEIGHTS).is_file():
        raise PerceiversError(f"{path} has its weights in several files: save it again with a larger max_shard_size.")
    return path


def find_whole(file: Path) -> Path:
    """Returns the folder of a saved model that a file belongs to, or else the file; or raises a PerceiversError."""
    with open(file, "rb") as content:
        if content.read(1) == b"\x80":
            return file  # a pickle of the original code may have any name
    if file.name in (CONFIG, WEIGHTS) and (file.parent / CONFIG).is_file():
        return find_model_folder(file.parent)
    if file.name == CONFIG or file.name.endswith((".safetensors", ".bin", ".index.json")):
        raise PerceiversError(f"{file} is one file of a saved model: give its folder, {file.parent}.")
    return file


def download(name: str, revision: str | None = None) -> Path:
    """Downloads a saved model from the Hub to the local cache; -> its folder there."""
    from huggingface_hub import snapshot_download  # takes a quarter of a second
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    beside = ["*.json", TOKENIZER]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*beside, WEIGHTS]))
        if not (folder / WEIGHTS).exists():
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*beside, "*.bin"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        is_known = isinstance(error, HFValidationError | RepositoryNotFoundError)
        rest = " nor a model on the Hub" if is_known else ", and the Hub cannot be reached to find a model of that name"
        raise PerceiversError(f"{name} is neither a folder nor a file here{rest}.") from error
    return folder
