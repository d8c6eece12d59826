"""Publishes models on the Hugging Face Hub, each with a model card that is written from its training run."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from perceivers.checkpoints.load import download, load, load_model
from perceivers.errors import PerceiversError
from perceivers.model.costs import count_parameters, measure_parts
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import CHECKSUM, CONFIG, TOKENIZER, Model, atomic_write, read_config
from perceivers.values import read_json

M = TypeVar("M", bound=Model)

CARD = "README.md"
PROJECT = "https://github.com/perceivers/perceivers"

PIPELINES = {
    "image_classification": "image-classification",
    "masked_language": "fill-mask",
    "causal_language": "text-generation",
    "text_classification": "text-classification",
    "glue": "text-classification",
    "clip_classification": "video-classification",
}
"""The Hub's name for the task of an experiment, where it has one."""

HOW_TO_USE = """\
```python
import perceivers  # pip install perceivers
model = perceivers.load({name!r})
outputs = model({{{inputs}}})
```
"""

LIMITS = """\
It takes and gives what is listed above, in the kinds and sizes that it was trained with, and nothing else. The figures
are those of the run, on its own split of its data. Nothing else was checked: neither other data nor damaged, rare or
hostile inputs, neither fairness between groups nor whether probabilities are calibrated. Before you rely on it, measure
it on your own data: `perceivers evaluate {name} --data DATA`.
"""


def from_pretrained(kind: type[M], source: str | Path, revision: str | None = None, **options: Any) -> M:
    """Loads a model of a class; see `Model.from_pretrained`."""
    if revision is not None:
        source = download(str(source), revision)
    model: Model = load(source, **options) if issubclass(PerceiverIO, kind) else load_model(source, **options)
    if not isinstance(model, kind):
        raise PerceiversError(f"{source} holds a {type(model).__name__}, not a {kind.__name__}.")
    return model


def save_pretrained(
    model: Model, folder: str | Path, *, name: str | None = None, license: str | None = None, example: Any = None
) -> None:
    """Saves a model with its model card, README.md; see `Model.save_pretrained`."""
    folder, run = Path(folder), dict[str, Any]()
    if model.folder is None or not (model.folder / CONFIG).is_file():
        model.save(folder)
    else:
        loaded = read_config(model.folder)
        model.save(folder, loaded.get("experiment"))
        if (model.folder / TOKENIZER).is_file():
            content = (model.folder / TOKENIZER).read_bytes()
            atomic_write(folder / TOKENIZER, lambda file: file.write_bytes(content))
        if read_config(folder)[CHECKSUM] == loaded.get(CHECKSUM):  # the weights are those that were loaded
            text = json.dumps(loaded, indent=2) + "\n"
            atomic_write(folder / CONFIG, lambda file: file.write_text(text))  # with step and metrics
            run = describe_run(model.folder, loaded)
    card = write_card(model, name or folder.name, run, license, example)
    atomic_write(folder / CARD, lambda file: file.write_text(card, encoding="utf-8"))


def describe_run(folder: Path, loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the config of a trained model and, if it is there, the folder of its run tell of the run.

    Returns:
        "experiment", "step" and "metrics" of the model, and "config" and "seed" of the run.
    """
    found: dict[str, Any] = {name: loaded[name] for name in ("experiment", "step", "metrics") if name in loaded}
    file, metrics = folder.parent / CONFIG, folder.parent / "metrics.json"
    config = read_json(file) if "step" in found and file.is_file() else None
    if isinstance(config, dict) and config.get("experiment") == found.get("experiment"):
        found |= {"config": config, "seed": config.get("training", {}).get("seed")}
        if folder.name == "model" and metrics.is_file():
            tested = {name: value for name, value in read_json(metrics).items() if name.startswith("test")}
            found["metrics"] = {**found.get("metrics", {}), **tested}
    return found


def write_card(model: Model, name: str, run: Mapping[str, Any], license: str | None, example: Any) -> str:
    """Returns the model card: metadata for the Hub, then what the model is, how it is used, and what was measured."""
    inputs, outputs = (dict(getattr(model, part, {})) for part in ("inputs", "outputs"))
    rows = {"task": f"`{run['experiment']}`" if "experiment" in run else None}
    rows |= {"inputs": describe_parts(inputs), "outputs": describe_parts(outputs)}
    rows |= {"parameters": f"{count_parameters(model):,}"}
    if example is not None and isinstance(model, PerceiverIO):
        flops = sum(part.flops for part in measure_parts(model, example).values())
        rows["FLOPs"] = f"{flops:,} for one example (a multiply-add counts as two)"
    if "step" in run:
        rows |= {"data": describe_data(run.get("config", {}).get("data")), "updates": f"{run['step']:,}"}
        rows["seed"] = run.get("seed")
    metrics = list(list_metrics(run))
    trained = f", trained by the experiment `{run['experiment']}`," if "experiment" in run else ""
    parts = [
        f"---\n{yaml.safe_dump(describe_for_hub(name, run, license), sort_keys=False).strip()}\n---",
        f"# {name.rpartition('/')[2]}",
        f"A `{type(model).__name__}`{trained} of [perceivers]({PROJECT}), an implementation of "
        "[Perceiver IO](https://arxiv.org/abs/2107.14795) in PyTorch.",
        write_table(["", ""], [[key, str(value)] for key, value in rows.items() if value not in (None, "")]),
        "## How to use it",
        HOW_TO_USE.format(name=name, inputs=", ".join(f'"{key}": {key}' for key in inputs)).strip(),
        "## What was measured",
        write_table(["metric", "split", "value"], [[metric, split, f"{value:.6g}"] for metric, split, value in metrics])
        if metrics
        else "Nothing that belongs to these weights: they were not saved by a training run, or were changed after it.",
        "## License",
        f"Of the weights: {license or 'not stated by their author'}. Of the code: Apache-2.0.",
        "## What it cannot do, and what was not checked",
        LIMITS.format(name=name).strip(),
    ]
    return "\n\n".join(parts) + "\n"


def describe_for_hub(name: str, run: Mapping[str, Any], license: str | None) -> dict[str, Any]:
    """Returns the metadata of a model card, in the Hub's terms."""
    pipeline = PIPELINES.get(run.get("experiment", ""))
    found: dict[str, Any] = {"library_name": "perceivers", "tags": ["perceiver", "perceiver-io", "pytorch"]}
    found |= {"license": license} if license else {}
    found |= {"pipeline_tag": pipeline} if pipeline else {}
    data = describe_data(run.get("config", {}).get("data"))
    if metrics := list(list_metrics(run)):
        result = {
            "task": {"type": pipeline or "other"},
            "dataset": {"type": data or "unknown", "name": data or "unknown"},
        }
        result["metrics"] = [
            {"type": metric, "name": f"{metric} ({split})", "value": value} for metric, split, value in metrics
        ]  # type: ignore[assignment]
        found["model-index"] = [{"name": name.rpartition("/")[2], "results": [result]}]
    return found


def list_metrics(run: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Yields name, split and value of each metric of a run."""
    for name, value in run.get("metrics", {}).items():
        if isinstance(value, float | int):
            split, _, metric = name.partition("_") if name.startswith(("val_", "test_")) else ("val", "", name)
            yield metric, {"val": "validation", "test": "test"}[split], float(value)


def describe_parts(parts: Mapping[str, Any]) -> str:
    """Returns the names of inputs or outputs, with the classes of their adapters and the number of classes."""
    counts = {name: getattr(part, "classes", None) for name, part in parts.items()}
    return ", ".join(
        f"`{name}` ({type(part).__name__}{f', {counts[name]} classes' if isinstance(counts[name], int) else ''})"
        for name, part in parts.items()
    )


def describe_data(data: Any) -> str:
    """Returns the path of a run's data, or its name alone if it is the path of a file or folder."""
    path = data.get("path", "") if isinstance(data, dict) else ""
    names = list(path) if isinstance(path, dict | list) else [path]
    return ", ".join(str(Path(str(item)).name if Path(str(item)).expanduser().exists() else item) for item in names)


def write_table(header: list[str], rows: list[list[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def push_to_hub(
    model: Model,
    name: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    exist_ok: bool = False,
    commit_message: str = "Upload a model of perceivers",
    license: str | None = None,
    example: Any = None,
) -> str:
    """Uploads a model with its card to the Hub; see `Model.push_to_hub`."""
    from huggingface_hub import HfApi, get_token

    if (token := token or get_token()) is None:
        raise PerceiversError("there is no token for the Hub: run `hf auth login`, set HF_TOKEN, or pass token=...")
    api = HfApi(token=token, library_name="perceivers")
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, name=name, license=license, example=example)
        try:
            api.create_repo(name, private=private, exist_ok=exist_ok)
            commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message=commit_message)
        except Exception as error:
            raise explain(error, name) or error from error
    return str(commit.commit_url)


def explain(error: Exception, name: str) -> PerceiversError | None:
    """Returns the error that says why a model could not be uploaded; None for one that is a bug."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(error, HFValidationError):
        return PerceiversError(f"{name!r} is not a name on the Hub: write USER/MODEL.")
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return PerceiversError("the Hub does not accept the token: make a new one, and run `hf auth login`.")
    if status in (403, 404):
        return PerceiversError(
            f"the token has no right to write {name} on the Hub: use one of its owner, with write access."
        )
    if status == 409:
        return PerceiversError(
            f"there is a model {name} on the Hub already: choose another name, or pass exist_ok=True."
        )
    if status is not None:
        return PerceiversError(f"the Hub refuses {name} (status {status}): {' '.join(str(error).split())}")
    if isinstance(error, OSError) or type(error).__module__.partition(".")[0].rstrip("2") in ("httpx", "requests"):
        return PerceiversError(f"the Hub cannot be reached to upload {name}: {' '.join(str(error).split())}")
    return None
