"""The interface of file formats of models, for packages that add others."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perceivers.errors import PerceiversError
from perceivers.model.saving import Model


class Format(ABC):
    """A file format other than ours: an instance of a subclass is an entry point in the group `perceivers.formats`."""

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Returns whether a file or folder is in this format, from names and configs alone."""

    @abstractmethod
    def read(self, path: Path, settings: Mapping[str, Any]) -> Model:
        """Reads a model, on the CPU and in evaluation mode.

        Args:
            path: the file or folder.
            settings: fields of the model's config that are changed, or missing in the file.
        """

    def write(self, model: Model, folder: Path) -> None:
        """Writes a model to a new folder."""
        raise PerceiversError(f"{type(self).__name__} cannot write models, only read them.")
