"""What a file format of models is, so that packages can add others."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceivers.errors import PerceiversError
from perceivers.model.saving import Model


class Format(ABC):
    """A file format other than ours; declared as an entry point of `perceivers.formats`, an object of a subclass."""

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Returns whether a file or folder is in this format; looks at names and configs only."""

    @abstractmethod
    def read(self, path: Path, settings: Mapping[str, Any]) -> Model:
        """Reads a model, on the CPU and in evaluation mode.

        Args:
            path: the file or folder.
            settings: fields of the model's config to change, or those that the file does not tell.
        """

    def write(self, model: Model, folder: Path) -> None:
        """Writes a model to a new folder."""
        raise PerceiversError(f"models cannot be written in the format of {type(self).__name__}, only read.")
