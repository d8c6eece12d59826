"""Fills in masked bytes of a text: `perceivers fill-mask`.

Shape suffixes: B batch, M tokens, P masked ones, V vocabulary, K candidates
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from perceivers.adapters.text import TextInput, TextOutput
from perceivers.errors import PerceiversError
from perceivers.inference import check_answers, find_adapter, get_device, load_for_inference
from perceivers.model.adapter import InputArray
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.text.batches import pad_tokens
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


class MaskFiller:
    """A language model of bytes that fills in masked bytes (section 4.1). Only these are decoded.

    Args:
        model, device, dtype: as in `load_for_inference`.

    Raises:
        PerceiversError: the model is of another kind.
    """

    def __init__(self, model: PerceiverIO | str | Path, device: str | None = None, dtype: str | None = None) -> None:
        self.model = load_for_inference(model, device, dtype)
        self.input, self.language = find_adapter(self.model.inputs, TextInput, "fill-mask")
        self.output, _ = find_adapter(self.model.outputs, TextOutput, "fill-mask")
        if (size := self.language.embedding.num_embeddings) != BYTE_VOCABULARY:
            raise PerceiversError(
                f"fill-mask needs a model of bytes, with {BYTE_VOCABULARY} tokens: this one has {size}."
            )

    def read(self, text: str) -> NDArray[np.int32]:
        """Returns the tokens [M] of a text; raises a PerceiversError if it has no mask or is too long."""
        if not MARK.search(text):
            raise PerceiversError(
                "the text has no mask: write [MASK] in place of a byte, or [MASK*9] in place of nine."
            )
        return np.array(mask_tokens(text, Bytes(), self.language.length, "bytes"), np.int32)

    @torch.no_grad()
    def fill(self, texts: Sequence[NDArray[np.int32]], top: int) -> list[Filled]:
        """Fills in the masked bytes of the tokens of some texts.

        Args:
            texts: results of `read`; shorter ones are padded.
            top: number of candidates to return for each byte.
        """
        if not 1 <= top <= BYTE_VOCABULARY - FIRST_BYTE:
            raise PerceiversError(f"top = {top} is not allowed: it must be from 1 to 256.")
        token_BM, mask_BM = pad_tokens(texts, Bytes().pad)
        masked = [torch.from_numpy(token_M == MASK).nonzero()[:, 0] for token_M in texts]
        index_BP = pad_sequence(masked, batch_first=True).to(device := get_device(self.model))
        data = {self.input: InputArray(token_BM.to(device), mask_BM.to(device))}
        logits_BPV = check_answers(self.model(data, {self.output: index_BP}))[self.output]
        values_BPK, bytes_BPK = logits_BPV[..., FIRST_BYTE:].float().softmax(-1).topk(top)
        rows = zip(texts, masked, values_BPK.tolist(), bytes_BPK.tolist(), strict=True)
        return [fill_bytes(token_M, index_P.tolist(), values, best) for token_M, index_P, values, best in rows]


def fill_bytes(
    token_M: NDArray[np.int32], masked: list[int], values: list[list[float]], best: list[list[int]]
) -> Filled:
    """Returns tokens with the most probable bytes at the masked indices, and candidates with their probabilities."""
    tokens = token_M.tolist()
    for index, bytes_K in zip(masked, best, strict=False):  # further ones are padding
        tokens[index] = FIRST_BYTE + bytes_K[0]
    candidates = [
        {show_byte(byte): value for byte, value in zip(bytes_K, values_K, strict=True)}
        for _, bytes_K, values_K in zip(masked, best, values, strict=False)
    ]
    return Filled(Bytes().decode(tokens), masked, candidates)


def fill_mask(
    model: PerceiverIO | str | Path, text: str, top: int = 5, device: str | None = None, dtype: str | None = None
) -> Filled:
    """Fills in the masked bytes of a text, see `MaskFiller`. Nothing is padded.

    Args:
        model, device, dtype: as in `load_for_inference`; a language model of bytes.
        text: `[MASK]` stands for one masked byte, `[MASK*9]` for nine. Models predict better if a masked word
            includes the space before it.
        top: number of candidates to return for each byte.

    Raises:
        PerceiversError: the text has no mask or is too long, or the model is of another kind.
    """
    filler = MaskFiller(model, device, dtype)
    return filler.fill([filler.read(text)], top)[0]


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
