"""Loads models that read text, Perceiver IO or BERT, with their tokenizers."""

from pathlib import Path

from perceivers.checkpoints.load import load_model, locate
from perceivers.errors import PerceiversError
from perceivers.inference import check_dtype, choose_device, move_model
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text.bert import BERT
from perceivers.text.model import text_input
from perceivers.text.tokenizers import Tokenizer, find_tokenizer


def load_text_model(
    source: str | Path, device: str | None = "cpu", dtype: str | None = None
) -> tuple[PerceiverIO | BERT, Tokenizer]:
    """Returns a saved model that reads text, in evaluation mode, and its tokenizer.

    Args:
        source: the model, in any format.
        device: where to put the model; None for the accelerator, if there is one.
        dtype: as in `load_for_inference`.

    Raises:
        PerceiversError: the model is of another kind, or its tokenizer is missing.
    """
    check_dtype(dtype)
    model = load_model(source)
    if not isinstance(model, PerceiverIO | BERT):
        raise PerceiversError(f"{source} has a {type(model).__name__}: a pretrained language model is needed.")
    tokenizer = find_tokenizer(locate(source), text_input(model).vocabulary)
    return move_model(model, device or choose_device(), dtype), tokenizer
