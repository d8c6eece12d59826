"""What commands share: a model, where it is to run, the part that the task needs, its tokenizer, and classes in order.

Shape suffixes: K classes
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from perceivers.checkpoints import load
from perceivers.checkpoints.load import locate
from perceivers.errors import PerceiversError, nearest
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text.tokenizers import BYTE_VOCABULARY, Bytes, Tokenizer, find_tokenizer

T = TypeVar("T", bound=nn.Module)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def prepare(model: PerceiverIO | str | Path, device: str | None = None, dtype: str | None = None) -> PerceiverIO:
    """A model ready to answer, in evaluation mode. A model that is given as an object is itself moved and changed.

    Args:
        model: a model, or anything that `perceivers.load` takes.
        device: where it is to run, such as "cpu" or "cuda:1"; if not given, a model that has to be loaded runs on the
            accelerator if there is one, and any other where it is.
        dtype: "float32", "bfloat16" or "float16"; as it is, if not given.

    Raises:
        PerceiversError: the model cannot be loaded, or there is no such device or dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise PerceiversError(f"dtype = {dtype!r} is not allowed: {nearest(dtype, DTYPES)}")
    if not isinstance(model, PerceiverIO):
        model = load(model)
        device = device or str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        model.to(device=device, dtype=None if dtype is None else DTYPES[dtype])
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise PerceiversError(f"device = {device!r} cannot be used here ({reason}): try 'cpu'.") from error
    return model.eval()


def device_of(model: PerceiverIO) -> torch.device:
    """Where a model is."""
    return model.encoder.latents.device


def only(parts: nn.ModuleDict, kind: type[T], task: str) -> tuple[str, T]:
    """Name and adapter of the one input or output of a kind.

    Raises:
        PerceiversError: there is not exactly one, so that the model cannot do the task.
    """
    found = [(name, part) for name, part in parts.items() if isinstance(part, kind)]
    if len(found) != 1:
        have = ", ".join(f"{name!r} ({type(part).__name__})" for name, part in parts.items())
        raise PerceiversError(f"this model cannot do {task}, which needs one {kind.__name__}: it has {have}.")
    return found[0]


def tokenizer_of(model: PerceiverIO | str | Path, vocabulary: int) -> Tokenizer:
    """The tokenizer of a model: the one that is saved with it, or bytes.

    Args:
        model: a model, or anything that `perceivers.load` takes.
        vocabulary: its number of tokens.

    Raises:
        PerceiversError: it has none, or another number of tokens.
    """
    if not isinstance(model, PerceiverIO):
        return find_tokenizer(locate(model), vocabulary)
    if vocabulary != BYTE_VOCABULARY:
        raise PerceiversError(
            f"the model's {vocabulary} tokens are not bytes ({BYTE_VOCABULARY}): "
            f"give the folder that it is saved in, with its tokenizer, in place of the model."
        )
    return Bytes()


def rank(logits_K: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Probabilities of the classes, as `sort` names and sorts them."""
    return sort(logits_K.float().softmax(-1), names)


def sort(probability_K: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Classes, most probable first; names that several share are told apart by number."""
    count = Counter(names)
    unique = [name if count[name] == 1 else f"{name} ({index})" for index, name in enumerate(names)]
    probability_K, class_K = probability_K.sort(descending=True)
    return {unique[k]: value for k, value in zip(class_K.tolist(), probability_K.tolist(), strict=True)}


def check_folder(path: str | Path) -> None:
    """Raises a PerceiversError, before any work is done, if a file to be written has no folder or is one itself."""
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise PerceiversError(f"cannot write {path}: there is no folder {folder}; make it, or choose another path.")
    if Path(path).is_dir():
        raise PerceiversError(f"cannot write {path}: it is a folder; give the path of a file in it.")
