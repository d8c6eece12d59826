"""The base of services: models that answer requests. Each domain defines those of its tasks."""

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema
from torch import nn

from perceivers import plugins
from perceivers.checkpoints.load import load_model
from perceivers.errors import PerceiversError
from perceivers.model.device import choose_device, move_model


class Message(BaseModel):
    """The base of requests and answers: their fields and descriptions are the schema of the API, and of the page."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def decode_base64(value: Any) -> bytes:
    """Returns the content of a file, which is base64 in JSON."""
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError("it must be the content of a file in base64") from error


def encode_base64(content: bytes) -> str:
    """Returns the content of a file for JSON."""
    return base64.b64encode(content).decode()


def file_type(media: str) -> Any:
    """Returns the type of a field with the content of a file, such as "image/png": base64 in JSON, bytes in Python."""
    schema = {"type": "string", "contentEncoding": "base64", "contentMediaType": media}
    to_json = PlainSerializer(encode_base64, return_type=str, when_used="json")
    return Annotated[bytes, BeforeValidator(decode_base64), to_json, WithJsonSchema(schema)]


Content = file_type("application/octet-stream")
"""A file of any type."""


class ClassProbability(Message):
    """A class and its probability."""

    name: str
    probability: float


def list_classes(probabilities: Mapping[str, float], top: int | None = None) -> list[ClassProbability]:
    """Returns the first classes, by default all, of probabilities by name."""
    return [ClassProbability(name=name, probability=value) for name, value in islice(probabilities.items(), top)]


class Service(ABC):
    """A model that answers requests of one task; found by the entry points `perceivers.services`.

    Attributes:
        task: name of the task.
        title: what the model does, in a few words.
        request, answer: the types of requests and answers.
        max_batch: largest number of requests that are worth computing at once; None for any.
        model: the model, in evaluation mode.
        classes: the names of the classes, if it has some.
        bundled: folder of a model of this task that comes with the package.
    """

    task: ClassVar[str]
    title: ClassVar[str]
    request: type[Message]
    answer: type[Message]
    max_batch: ClassVar[int | None] = None
    bundled: ClassVar[Path | None] = None
    model: Any
    classes: Sequence[str] | None = None

    @classmethod
    @abstractmethod
    def accepts(cls, model: nn.Module) -> bool:
        """Returns whether the service can serve a model."""

    @abstractmethod
    def __init__(self, model: Any, source: str | Path) -> None:
        """Takes a model in evaluation mode, on its device, and where it was loaded from.

        Raises:
            PerceiversError: the model cannot be served.
        """

    @abstractmethod
    def read(self, request: Any) -> Any:
        """Returns what `compute` takes of a request; called by several threads.

        Raises:
            PerceiversError: the request cannot be answered, such as that of a damaged picture.
        """

    @abstractmethod
    def compute(self, items: Sequence[Any]) -> Sequence[Message]:
        """Returns the answers to several requests; always called by the same thread."""

    def example(self) -> Message | None:
        """Returns a request to try, if there is one."""
        return None


def find_service(model: nn.Module) -> type[Service]:
    """Returns the class of the service for a model, or raises a PerceiversError."""
    names = plugins.find_entry_points("services")
    for name in names:
        kind = plugins.find_class("services", name, Service)  # type: ignore[type-abstract]
        if kind.accepts(model):
            return kind
    raise PerceiversError(f"this {type(model).__name__} cannot be served: there are services to {', '.join(names)}.")


def open_service(source: str | Path, device: str | None = None) -> Service:
    """Loads a model and returns its service.

    Args:
        source: anything that `perceivers.load` takes.
        device: device, such as "cuda:1"; by default the accelerator if there is one.

    Raises:
        PerceiversError: the model cannot be loaded or served, or there is no such device.
    """
    model = move_model(load_model(source), device or choose_device())
    return find_service(model)(model, source)
