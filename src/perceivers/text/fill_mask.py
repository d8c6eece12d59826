"""Fills in masked bytes of a text: `perceivers fill-mask`."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from perceivers.adapters.text import TextInput, TextOutput
from perceivers.errors import PerceiversError
from perceivers.inference import check_answers, find_adapter, get_device, load_for_inference
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text.tokenizers import BYTE_VOCABULARY, FIRST_BYTE, MASK, Bytes, Tokenizer

MARK = re.compile(r"\[MASK(?:\*(\d+))?\]")


@dataclass(frozen=True)
class Filled:
    """A text whose masked bytes a model has filled in.

    Attributes:
        text: the text with the most probable bytes; invalid UTF-8 is replaced by a mark.
        masked: the indices of the masked bytes, counted in bytes.
        candidates: the most probable bytes of each, with their probabilities, most probable first; a byte that is not
            printable is written as in Python, such as "\\xc3".
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
            includes the space before it.
        top: number of candidates to return for each byte.

    Raises:
        PerceiversError: the text has no mask or is too long, or the model is of another kind.
    """
    model = load_for_inference(model, device, dtype)
    name, language = find_adapter(model.inputs, TextInput, "fill-mask")
    output, _ = find_adapter(model.outputs, TextOutput, "fill-mask")
    if (size := language.embedding.num_embeddings) != BYTE_VOCABULARY:
        raise PerceiversError(f"fill-mask needs a model of bytes, with {BYTE_VOCABULARY} tokens: this one has {size}.")
    if not 1 <= top <= BYTE_VOCABULARY - FIRST_BYTE:
        raise PerceiversError(f"top = {top} is not allowed: it must be from 1 to 256.")
    if not MARK.search(text):
        raise PerceiversError("the text has no mask: write [MASK] in place of a byte, or [MASK*9] in place of nine.")
    tokens = mask_tokens(text, Bytes(), language.length, "bytes")
    masked = [index for index, token in enumerate(tokens) if token == MASK]
    token_BM = torch.tensor([tokens], device=get_device(model))
    index_P = torch.tensor(masked, device=get_device(model))
    logits_BPV = check_answers(model({name: token_BM}, {output: index_P}))[output]
    values_PK, bytes_PK = logits_BPV[0, :, FIRST_BYTE:].float().softmax(-1).topk(top)
    for index, best in zip(masked, bytes_PK[:, 0].tolist(), strict=True):
        tokens[index] = FIRST_BYTE + best
    candidates = [
        {show_byte(byte): value for byte, value in zip(bytes_K, values_K, strict=True)}
        for bytes_K, values_K in zip(bytes_PK.tolist(), values_PK.tolist(), strict=True)
    ]
    return Filled(Bytes().decode(tokens), masked, candidates)


def mask_tokens(text: str, tokenizer: Tokenizer, length: int, unit: str = "tokens") -> list[int]:
    """Returns the tokens of a text with marks, at most `length`; an error calls them `unit`."""
    parts = MARK.split(text)
    counts = [int(count or 1) for count in parts[1::2]]
    if 0 in counts:
        raise PerceiversError("[MASK*0] masks nothing: write [MASK] for one token, [MASK*9] for nine.")
    encoded = [tokenizer.encode(part).tolist() for part in parts[::2]]
    size = sum(map(len, encoded)) + sum(counts)  # before any masks are made: a mark may ask for any number
    if size > length:
        raise PerceiversError(f"the text has {size} {unit}, but the model reads at most {length}: shorten it.")
    tokens: list[int] = encoded[0]
    for count, part in zip(counts, encoded[1:], strict=True):
        tokens += [tokenizer.mask] * count + part
    return tokens


def show_byte(byte: int) -> str:
    """Returns a byte as a printable character, or as Python writes it."""
    return chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"
