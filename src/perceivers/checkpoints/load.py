"""`perceivers.load`: a model from a file, from a folder or from the Hugging Face hub, in any of the formats we read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from perceivers import adapters
from perceivers.errors import PerceiversError
from perceivers.model.config import Configured
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.positions import FourierPositions, LearnedPositions
from perceivers.model.saving import CONFIG, FORMAT, TOKENIZER, WEIGHTS, read, read_config
from perceivers.released import haiku, transformers
from perceivers.released.conversion import build
from perceivers.set_encoder import SetEncoder
from perceivers.starcraft.entity_transformer import EntityTransformer
from perceivers.starcraft.policy import UnitPolicy
from perceivers.text.bert import BERT

AnyModel = PerceiverIO | BERT | SetEncoder | EntityTransformer | UnitPolicy

CLASSES: tuple[type[Configured], ...] = (
    PerceiverIO,
    BERT,
    SetEncoder,
    EntityTransformer,
    UnitPolicy,
    FourierPositions,
    LearnedPositions,
    *(getattr(adapters, name) for name in adapters.__all__),
)


def load(source: str | Path, classes: Sequence[type[Configured]] = (), **settings: Any) -> PerceiverIO:
    """Loads a model, on the CPU and in evaluation mode. What `source` is, is seen from its content.

    Args:
        source: a folder that `model.save` or a training run wrote; a folder in the format of `transformers`; the name
            of a repository with either on the hub; or a file of the original code (`.pystate`, `.pickle`).
        classes: your own adapters, if the model has any.
        settings: of the two foreign formats, settings to change, or those that a file does not tell, such as
            `heads=4`: arguments of the model's function in `perceivers.tasks`.

    Raises:
        PerceiversError: there is nothing of that name, or a file is missing, truncated, in none of these formats,
            or of another model.
    """
    model = load_any(source, classes, **settings)
    if not isinstance(model, PerceiverIO):
        raise PerceiversError(f"{source} holds a {type(model).__name__}, not a PerceiverIO: give another model.")
    return model


def load_any(source: str | Path, classes: Sequence[type[Configured]] = (), **settings: Any) -> AnyModel:
    """The same, for what is to work with the paper's baselines and with encoders of sets as well."""
    path = locate(source)
    if path.is_file():
        return build(haiku.read(path, settings), settings)
    config = read_config(path)
    if config.get("format") != FORMAT and "model_type" in config:
        return build(transformers.read(path, config), settings)
    if settings:
        raise PerceiversError(f"{path} tells all its settings: {', '.join(settings)} cannot be given.")
    model = read(path, (*CLASSES, *classes))
    if not isinstance(model, AnyModel):
        raise PerceiversError(f"{path / CONFIG} describes a {type(model).__name__}, not a model.")
    return model


def holds(source: str | Path, name: str) -> bool:
    """Whether there is a folder here that holds a model of ours of the class of that name."""
    path = Path(source)
    if not (path / CONFIG).is_file():
        return False
    model = read_config(path).get("model")
    return isinstance(model, dict) and model.get("class") == name


def locate(source: str | Path) -> Path:
    """The folder or file of a model; what is on the hub is fetched first.

    Raises:
        PerceiversError: there is nothing of that name.
    """
    path = Path(source)
    return path if path.exists() else download(str(source))


def download(name: str) -> Path:
    """Fetches a saved model from the hub into the local cache."""
    beside = [CONFIG, TOKENIZER, transformers.PREPROCESSOR]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*beside, WEIGHTS]))
        if not (folder / WEIGHTS).exists():
            folder = Path(snapshot_download(name, allow_patterns=[*beside, transformers.PICKLED_WEIGHTS]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PerceiversError(f"{name} is neither a folder or file here nor a model on the hub ({reason}).") from error
    return folder
