"""Missing bytes of a text: `perceivers fill-mask`."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from perceivers.adapters.text import TextInput, TextOutput
from perceivers.errors import PerceiversError
from perceivers.inference import find_adapter, get_device, load_for_inference
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text.tokenizers import BYTE_VOCABULARY, FIRST_BYTE, MASK, to_text, to_tokens

MARK = re.compile(r"\[MASK(?:\*(\d+))?\]")


@dataclass(frozen=True)
class Filled:
    """A text whose masked bytes a model has filled in.

    Attributes:
        text: the text with the most probable byte at each place; what is then no UTF-8 is replaced by a mark.
        masked: the places of the masked bytes, counted in bytes.
        candidates: for each of them, the most probable bytes with their probabilities, from the most probable on;
            a byte that is no printable character is written as in Python, such as "\\\\xc3".
    """

    text: str
    masked: list[int]
    candidates: list[dict[str, float]]


@torch.no_grad()
def fill_mask(
    model: PerceiverIO | str | Path, text: str, top: int = 5, device: str | None = None, dtype: str | None = None
) -> Filled:
    """Fills in the masked bytes of a text (section 4.1). Only these are decoded, and nothing is padded.

    Args:
        model, device, dtype: as in `load_for_inference`; a language model of bytes.
        text: `[MASK]` stands for one masked byte, `[MASK*9]` for nine. Models predict better if a masked word
            includes the space in front of it.
        top: how many candidates to return for each byte.

    Raises:
        PerceiversError: the text has no mask or is too long, or the model is of another kind.
    """
    model = load_for_inference(model, device, dtype)
    name, language = find_adapter(model.inputs, TextInput, "fill-mask")
    output, _ = find_adapter(model.outputs, TextOutput, "fill-mask")
    if language.embedding.num_embeddings != BYTE_VOCABULARY:
        raise PerceiversError(
            f"fill-mask needs a model of bytes, with {BYTE_VOCABULARY} tokens: "
            f"this one has {language.embedding.num_embeddings}."
        )
    if not 1 <= top <= BYTE_VOCABULARY - FIRST_BYTE:
        raise PerceiversError(f"top = {top} is not allowed: it must be from 1 to 256.")
    tokens = mask(text, language.length)
    masked = [place for place, token in enumerate(tokens) if token == MASK]
    token_BM = torch.tensor([tokens], device=get_device(model))
    place_P = torch.tensor(masked, device=get_device(model))
    logits_BPV = model({name: token_BM}, {output: place_P})[output]
    probability_PV = logits_BPV[0, :, FIRST_BYTE:].float().softmax(-1)
    values_PK, bytes_PK = probability_PV.topk(top)
    for place, best in zip(masked, bytes_PK[:, 0].tolist(), strict=True):
        tokens[place] = FIRST_BYTE + best
    candidates = [
        {spell(byte): value for byte, value in zip(bytes_K, values_K, strict=True)}
        for bytes_K, values_K in zip(bytes_PK.tolist(), values_PK.tolist(), strict=True)
    ]
    return Filled(to_text(tokens), masked, candidates)


def mask(text: str, length: int) -> list[int]:
    """The tokens of a text with marks, `length` at most; they are counted before any mask is made."""
    parts, counts = split(text)
    try:
        known = [to_tokens(part) for part in parts]
    except UnicodeEncodeError as error:
        raise PerceiversError(f"the text cannot be written in UTF-8 ({error.reason}).") from error
    if not counts:
        raise PerceiversError("the text has no mask: write [MASK] in place of a byte, or [MASK*9] in place of nine.")
    size = sum(map(len, known)) + sum(counts)
    if size > length:
        raise PerceiversError(f"the text has {size} bytes, but the model reads at most {length}.")
    tokens = known[0]
    for count, part in zip(counts, known[1:], strict=True):
        tokens += [MASK] * count + part
    return tokens


def split(text: str) -> tuple[list[str], list[int]]:
    """The parts of a text between its marks, and the number of masks at each mark."""
    parts = MARK.split(text)
    counts = [1 if count is None else int(count) for count in parts[1::2]]
    if 0 in counts:
        raise PerceiversError("[MASK*0] masks nothing: write [MASK] for one token, [MASK*9] for nine.")
    return parts[::2], counts


def spell(byte: int) -> str:
    """A byte as a printable character, or as Python writes it."""
    return chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"
