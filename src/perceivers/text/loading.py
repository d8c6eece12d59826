"""Models of text with their tokenizers, whether Perceiver IO or BERT."""

from pathlib import Path

from perceivers.checkpoints.load import load_model, locate
from perceivers.errors import PerceiversError
from perceivers.inference import check_dtype, choose_device, move_model
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text.bert import BERT
from perceivers.text.model import text_input
from perceivers.text.tokenizers import Tokenizer, find_tokenizer


def load_text_model(source: str | Path) -> tuple[PerceiverIO | BERT, Tokenizer]:
    """Returns a saved model that reads text, on the CPU and in evaluation mode, and its tokenizer.

    Raises:
        PerceiversError: the model is of another kind, or its tokenizer is missing.
    """
    model = load_model(source)
    if not isinstance(model, PerceiverIO | BERT):
        raise PerceiversError(f"{source} holds a {type(model).__name__}: a pretrained language model is needed.")
    return model, find_tokenizer(locate(source), text_input(model).vocabulary)


def load_text_model_to(
    source: str | Path, device: str | None = None, dtype: str | None = None
) -> tuple[PerceiverIO | BERT, Tokenizer]:
    """Does the same, but puts the model where it is to run; `device` and `dtype` as in `load_for_inference`."""
    check_dtype(dtype)
    model, tokenizer = load_text_model(source)
    return move_model(model, device or choose_device(), dtype), tokenizer
