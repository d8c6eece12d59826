"""Masks whole words of a text, to be predicted (section 4.1; section 3 of the appendix).

Shape suffixes: B batch, M tokens, P masked tokens
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceivers.text.tokenizers import Tokenizer

IGNORE_INDEX = -100
"""The label of an index that only fills its row; `torch.nn.functional.cross_entropy` ignores it."""


class Masked(NamedTuple):
    """A batch with masked words, as 32-bit integers: half as much to send from worker to model.

    Attributes:
        token_BM: the tokens, with the mask token in masked words.
        index_BP: the indices of masked tokens in order; rows with fewer than P are filled with index 0.
        label_BP: the tokens that were masked; `IGNORE_INDEX` where a row is filled.
    """

    token_BM: NDArray[np.int32]
    index_BP: NDArray[np.int32]
    label_BP: NDArray[np.int32]


def mask_words(
    token_BM: NDArray[np.integer], tokenizer: Tokenizer, rate: float, max_masked: int, generator: np.random.Generator
) -> Masked:
    """Masks each word, delimited by white space, independently with probability `rate`.

    At most `max_masked` tokens of a row are masked, so that shapes are constant: if more are drawn, random words are
    dropped. A word with more tokens than that, as in writing without white space, is never masked.
    """
    word_BM = tokenizer.words(token_BM)
    drawn_BM = generator.random(token_BM.shape) < rate  # by word; there are at most as many as tokens
    hidden_BM = (word_BM >= 0) & np.take_along_axis(drawn_BM, np.maximum(word_BM, 0), 1)
    for row in np.flatnonzero(hidden_BM.sum(1) > max_masked):
        hidden_BM[row] = drop_excess_words(word_BM[row], hidden_BM[row], max_masked, generator)
    index_BP = np.argsort(~hidden_BM, axis=1, kind="stable")[:, :max_masked]
    is_hidden_BP = np.take_along_axis(hidden_BM, index_BP, 1)
    label_BP = np.where(is_hidden_BP, np.take_along_axis(token_BM, index_BP, 1), IGNORE_INDEX)
    masked_BM = np.where(hidden_BM, tokenizer.mask, token_BM)
    arrays = masked_BM, np.where(is_hidden_BP, index_BP, 0), label_BP
    return Masked(*(array.astype(np.int32) for array in arrays))


def drop_excess_words(
    word_M: NDArray[np.integer], hidden_M: NDArray[np.bool_], max_masked: int, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Keeps as many hidden words of a row as fit, in random order."""
    words, sizes = np.unique(word_M[hidden_M], return_counts=True)
    kept, room = [], max_masked
    for index in generator.permutation(len(words)):
        if sizes[index] <= room:
            kept.append(words[index])
            room -= sizes[index]
    return hidden_M & np.isin(word_M, kept)
