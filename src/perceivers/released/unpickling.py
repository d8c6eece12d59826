"""Reads the pickles of the original code without running code in them.

A pickle is a program that may call anything it can import. Here it may only name what published checkpoints consist of
(numpy arrays, plain containers, Haiku's immutable mappings, jax's arrays), and gets functions of ours or numpy's.
Any other name ends the reading before anything is called. Neither haiku nor jax is needed.
"""

import pickle
import pickletools
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]

from perceivers.errors import PerceiversError


class FlatMapping(dict[str, Any]):
    """Haiku's immutable mapping, pickled as a call with a dict, or with its fields as state."""

    def __setstate__(self, state: Any) -> None:
        fields = state[1] if isinstance(state, tuple) else state
        self.update(fields["_mapping"])


def rebuild_jax_array(rebuild: Callable[..., np.ndarray], arguments: Any, state: Any, _: Any) -> np.ndarray:
    """Rebuilds a jax array, which is pickled as a numpy array and jax's type information."""
    array = rebuild(*arguments)
    array.__setstate__(state)
    return array


def encode(text: str, encoding: str) -> bytes:
    """Converts text to bytes: pickles of protocol 2 hold bytes as text in Latin-1."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text is encoded as {encoding!r} instead of 'latin1'")
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): encode,
    ("builtins", "dict"): dict,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("haiku._src.data_structures", "FlatMap"): FlatMapping,
    ("haiku._src.data_structures", "FlatMapping"): FlatMapping,
    ("jax._src.array", "_reconstruct_array"): rebuild_jax_array,
    ("jax._src.device_array", "reconstruct_device_array"): rebuild_jax_array,
    ("jax.interpreters.xla", "reconstruct_device_array"): rebuild_jax_array,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
}
"""Names that a pickle may use, and the objects it gets for them."""


class Unpickler(pickle.Unpickler):
    """An unpickler restricted to `ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise PerceiversError(f"it names {module}.{name}") from None


def check_sizes(path: Path) -> None:
    """Raises a ValueError for a pickle that states sizes larger than its file, for which memory would be allocated."""
    with open(path, "rb") as file:
        for opcode, argument, _ in pickletools.genops(file):  # fails if bytes are missing
            if opcode.name in ("LONG_BINPUT", "PUT", "FRAME") and int(argument or 0) > path.stat().st_size:
                raise ValueError(f"{opcode.name} of {argument}")


def read_pickle(path: Path) -> dict[str, Any]:
    """Reads a pickled checkpoint: nested dicts with numpy arrays.

    Raises:
        PerceiversError: the file is truncated, not a pickle, not a dict, or names anything that is not allowed.
    """
    try:
        check_sizes(path)
        with open(path, "rb") as file:
            contents = Unpickler(file).load()
    except PerceiversError as error:
        raise PerceiversError(
            f"{path} is not loaded, because {error}, which does not belong in a checkpoint and might run code: "
            f"only arrays in plain containers are read, as the original code wrote them."
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise PerceiversError(f"{path} is not a readable pickle ({error}): it is truncated or damaged.") from error
    if not isinstance(contents, dict):
        raise PerceiversError(f"{path} holds a {type(contents).__name__}, not the parameters of a model.")
    return contents
