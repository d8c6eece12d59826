"""Whole words of a text are hidden, to be predicted (section 4.1; section 3 of the appendix).

Shape suffixes: B batch, M tokens, P places that are decoded
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perceivers.text.tokenizers import Tokenizer

IGNORED = -100
"""The label of a place that is decoded to fill up its row only; `torch.nn.functional.cross_entropy` leaves it out."""


class Masked(NamedTuple):
    """A batch with hidden words; in numbers of 32 bits, half as much to bring from worker to model.

    Attributes:
        token_BM: the tokens, those of hidden words replaced by the mask token.
        place_BP: the places of hidden tokens in order; rows with fewer than P are filled up with place 0.
        label_BP: what is hidden there; `IGNORED` where a row is filled up.
    """

    token_BM: NDArray[np.int32]
    place_BP: NDArray[np.int32]
    label_BP: NDArray[np.int32]


def mask_words(
    token_BM: NDArray[np.integer], tokenizer: Tokenizer, rate: float, places: int, generator: np.random.Generator
) -> Masked:
    """Hides each word, delimited by white space, independently with probability `rate`.

    At most `places` tokens of a row are hidden, so that shapes are always the same: where more were drawn, words are
    left out at random until it is so. A word of more tokens than that, as in writing without white space, stays.
    """
    word_BM = tokenizer.words(token_BM)
    drawn_BM = generator.random(token_BM.shape) < rate  # by word; there are at most as many as tokens
    hidden_BM = (word_BM >= 0) & np.take_along_axis(drawn_BM, np.maximum(word_BM, 0), 1)
    for row in np.flatnonzero(hidden_BM.sum(1) > places):
        hidden_BM[row] = fitting(word_BM[row], hidden_BM[row], places, generator)
    place_BP = np.argsort(~hidden_BM, axis=1, kind="stable")[:, :places]
    real_BP = np.take_along_axis(hidden_BM, place_BP, 1)
    label_BP = np.where(real_BP, np.take_along_axis(token_BM, place_BP, 1), IGNORED)
    masked_BM = np.where(hidden_BM, tokenizer.mask, token_BM)
    arrays = masked_BM, np.where(real_BP, place_BP, 0), label_BP
    return Masked(*(array.astype(np.int32) for array in arrays))


def fitting(
    word_M: NDArray[np.integer], hidden_M: NDArray[np.bool_], places: int, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Hides of one row's hidden words as many as fit, in random order."""
    words, sizes = np.unique(word_M[hidden_M], return_counts=True)
    kept, room = [], places
    for index in generator.permutation(len(words)):
        if sizes[index] <= room:
            kept.append(words[index])
            room -= sizes[index]
    return hidden_M & np.isin(word_M, kept)
