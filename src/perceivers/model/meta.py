"""Builds models on the meta device, to compare their sizes before any memory is allocated."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from perceivers.errors import PerceiversError, shorten

T = TypeVar("T")

MOST_ARRAYS = 20_000
"""Largest number of parameter arrays of a model without a file."""


def build_on_meta(build: Callable[[], T], arrays: int, source: object) -> T:
    """Builds a model on the meta device, to compare its shapes with those of `arrays` arrays before it needs memory.

    Raises:
        PerceiversError: it cannot be built, or has many more arrays; `source` is the file that describes it.
    """
    try:
        with torch.device("meta"), limit_parameters(2 * arrays + 100, source):
            return build()
    except PerceiversError:
        raise
    except Exception as error:  # constructors may raise anything, given arguments of any kind
        if "meta" in str(error):  # a class of another package reads values of its tensors
            return build()
        reason = f"{type(error).__name__}: {shorten(str(error), 300)}"
        raise PerceiversError(f"{source} describes a model that cannot be built ({reason}).") from error


@contextmanager
def limit_parameters(most: int, source: object) -> Iterator[None]:
    """Raises a PerceiversError when this thread builds modules with more than `most` parameters in the context."""
    counter, owner = itertools.count(1), threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if threading.get_ident() == owner and parameter is not None and next(counter) > most:
            raise PerceiversError(f"{source} describes a model of more than {most} parameter arrays: a size is wrong.")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def check_memory(build: Callable[[], T], source: str) -> T:
    """Builds a model on the meta device, and returns it if this machine's memory can hold its weights.

    Raises:
        PerceiversError: it cannot; `source` says where the sizes come from.
    """
    try:
        with torch.device("meta"), limit_parameters(MOST_ARRAYS, source):
            model = build()
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        if "overflow" not in str(error).lower() and not isinstance(error, OverflowError | MemoryError):
            raise
        raise PerceiversError(f"{source} describes a model larger than any memory: a size is wrong.") from error
    if isinstance(model, nn.Module):
        needed = sum(tensor.nbytes for tensor in itertools.chain(model.parameters(), model.buffers()))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > memory and torch.get_default_device().type != "meta":
            raise PerceiversError(
                f"{source} describes a model of {needed / 1e9:.0f} GB, but this machine has {memory / 1e9:.0f} GB "
                f"of memory: make it smaller."
            )
    return model
