"""`perceivers.load`: a model from a folder or from the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from perceivers import adapters
from perceivers.model.config import Configured
from perceivers.model.errors import PerceiversError
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.positions import FourierPositions, LearnedPositions
from perceivers.model.saving import CONFIG, WEIGHTS, read

CLASSES: tuple[type[Configured], ...] = (
    PerceiverIO,
    FourierPositions,
    LearnedPositions,
    *(getattr(adapters, name) for name in adapters.__all__),
)


def load(source: str | Path, classes: Sequence[type[Configured]] = ()) -> PerceiverIO:
    """Loads a saved model, on the CPU and in evaluation mode.

    Args:
        source: a folder that `model.save` or a training run wrote, or the name of such a repository on the hub.
        classes: your own adapters, if the model has any.

    Raises:
        PerceiversError: there is nothing of that name, or a file is missing, truncated, not ours, or of another model.
    """
    folder = Path(source)
    if not folder.exists():
        folder = download(str(source))
    model = read(folder, (*CLASSES, *classes))
    if not isinstance(model, PerceiverIO):
        raise PerceiversError(f"{folder / CONFIG} describes a {type(model).__name__}, not a PerceiverIO.")
    return model


def download(name: str) -> Path:
    """Fetches a saved model from the hub into the local cache."""
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PerceiversError(f"{name} is neither a folder here nor a model on the hub ({reason}).") from error
