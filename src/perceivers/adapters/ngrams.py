"""Hash n-gram embeddings of tokens (Pagnoni et al., 2024, "Byte Latent Transformer", section 3.2.1).

The tokens of an n-gram, or of a word, are the coefficients of a polynomial modulo 2^64. A hash of its value is the
index of a learned vector. 64-bit integers overflow in the same way on all devices.

Shape suffixes: B batch, M tokens, H hashes of a token; others as in `perceivers.model.adapter`
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.model.config import Configurable
from perceivers.model.linear import Linear, trunc_normal_parameter

BASE = 0x9E3779B97F4A7C15 - 2**64
"""The argument of the polynomials: odd, so that no power of it is 0 modulo 2^64."""

FACTOR = 0xBF58476D1CE4E5B9 - 2**64
"""The factor that mixes bits (Steele et al., 2014, "Fast Splittable Pseudorandom Number Generators")."""


class HashedNgrams(Configurable, nn.Module):
    """The sum of the vectors of the n-grams that end at a token, and of the whole word that it belongs to.

    Args:
        channels: C of the result.
        sizes: tokens of the shortest and of the longest n-gram.
        hashes: number of vectors, which n-grams and words share by their hashes.
        width: channels of the vectors, which a linear layer projects.
        separators: tokens between words, such as white space; without any, no words are hashed.
    """

    def __init__(
        self,
        channels: int,
        sizes: tuple[int, int] = (3, 6),
        hashes: int = 2**15,
        width: int = 64,
        separators: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.sizes = range(sizes[0], sizes[1] + 1)
        self.separators = list(separators)
        self.embedding = nn.Embedding(hashes, width, _weight=trunc_normal_parameter(hashes, width))
        self.linear = Linear(width, channels)

    def forward(self, token_BM: Tensor, index_M: Tensor, is_text_BM: Tensor | None = None) -> Tensor:
        """[B, M] -> [B, M, C]; arguments as in `hash`."""
        hash_BMH = self.hash(token_BM, index_M, is_text_BM)
        sum_LW = F.embedding_bag(hash_BMH.flatten(0, 1), self.embedding.weight, mode="sum")
        return self.linear(sum_LW.unflatten(0, token_BM.shape))

    def hash(self, token_BM: Tensor, index_M: Tensor, is_text_BM: Tensor | None = None) -> Tensor:
        """Returns the rows of the n-grams that end at each token, shortest first, and of its word; [B, M, H].

        Args:
            token_BM: tokens.
            index_M: the index of each token in its text.
            is_text_BM: False for tokens that are hashed as if nothing were there, such as padding.
        """
        symbol_BM = token_BM.long() + 1  # 0 stands for nothing, as before a text
        if is_text_BM is not None:
            symbol_BM = symbol_BM * is_text_BM
        hashes = hash_ngrams(symbol_BM, index_M, self.sizes)
        if self.separators:
            separators = torch.tensor([-1, *self.separators], device=token_BM.device) + 1
            hashes.append(hash_words(symbol_BM, index_M, torch.isin(symbol_BM, separators)))
        kinds_H = torch.arange(len(hashes), device=token_BM.device)
        return mix(torch.stack(hashes, -1) + kinds_H * BASE) % self.embedding.num_embeddings


def hash_ngrams(symbol_BM: Tensor, index_M: Tensor, sizes: range) -> list[Tensor]:
    """Returns the polynomials of the n-grams of each size that end at each symbol, the last symbol times 1; [B, M]."""
    hash_BM = torch.zeros_like(symbol_BM)
    hashes: list[Tensor] = []  # torch.export traces no list[Tensor]()
    for size in range(1, sizes.stop):
        before_BM = F.pad(hash_BM, (1, 0))[:, :-1] * (index_M > 0)
        hash_BM = before_BM * BASE + symbol_BM
        if size in sizes:
            hashes.append(hash_BM)
    return hashes


def hash_words(symbol_BM: Tensor, index_M: Tensor, is_between_BM: Tensor) -> Tensor:
    """Returns the polynomial of the word of each symbol, the first symbol times `BASE`; 0 between words; [B, M]."""
    is_first_BM = ~is_between_BM & (F.pad(is_between_BM, (1, 0), value=True)[:, :-1] | (index_M == 0))
    order_M = torch.arange(symbol_BM.shape[1], device=symbol_BM.device)
    first_BM = (order_M * is_first_BM).cummax(1).values
    power_M = torch.full_like(order_M, BASE).cumprod(0)
    term_BM = symbol_BM * power_M[order_M - first_BM] * ~is_between_BM
    sum_BM = torch.zeros_like(symbol_BM).scatter_add(1, first_BM, term_BM)
    return sum_BM.gather(1, first_BM) * ~is_between_BM


def mix(hash: Tensor) -> Tensor:
    """Returns 31 bits, each of which depends on all bits of a hash."""
    return ((hash ^ (hash >> 32)) * FACTOR >> 33) & (2**31 - 1)
