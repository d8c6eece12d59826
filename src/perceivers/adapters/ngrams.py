"""Hash n-gram embeddings of tokens (Pagnoni et al., 2024, "Byte Latent Transformer", section 3.2.1).

The tokens of an n-gram, or of a word, are the coefficients of a polynomial modulo 2^64. A hash of its value is the
index of a learned vector. 64-bit integers overflow in the same way on all devices.

Shape suffixes: B batch, M tokens, H hashes of a token, R base or its inverse, K digits, D values of a digit; others as
in `perceivers.model.adapter`
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

STEPS_RK = [[(pow(base, 4096**k, 2**64) ^ 2**63) - 2**63 for k in range(2)] for base in (BASE, pow(BASE, -1, 2**64))]
POWERS_RKD = F.pad(torch.tensor(STEPS_RK, device="cpu")[..., None].expand(2, 2, 4095), (1, 0), value=1).cumprod(-1)
"""`BASE` and its inverse to the power of each digit of exponents in base 4096, the last digit first."""


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
        if torch.compiler.is_exporting():  # ONNX would loop over the bags
            return self.linear(self.embedding(hash_BMH).sum(-2))
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
            hashes.append(hash_words(symbol_BM, index_M, self.is_between(symbol_BM)))
        kinds_H = torch.arange(len(hashes), device=token_BM.device)
        return mix(torch.stack(hashes, -1) + kinds_H * BASE) % self.embedding.num_embeddings

    def is_between(self, symbol_BM: Tensor) -> Tensor:
        """Returns whether symbols are between words; [B, M]."""
        between = {0, *(token + 1 for token in self.separators)}
        is_between_V = [symbol in between for symbol in range(max(between) + 2)]  # the last stands for all above
        return torch.tensor(is_between_V, device=symbol_BM.device)[symbol_BM.clamp(max=len(is_between_V) - 1)]


def hash_ngrams(symbol_BM: Tensor, index_M: Tensor, sizes: range) -> list[Tensor]:
    """Returns the polynomials of the n-grams of each size that end at each symbol, the last symbol times 1; [B, M]."""
    factor_M = (index_M > 0) * BASE
    hash_BM = torch.zeros_like(symbol_BM)
    hashes: list[Tensor] = []  # torch.export traces no list[Tensor]()
    for size in range(1, sizes.stop):
        hash_BM = F.pad(hash_BM, (1, 0))[:, :-1] * factor_M + symbol_BM
        if size in sizes:
            hashes.append(hash_BM)
    return hashes


def hash_words(symbol_BM: Tensor, index_M: Tensor, is_between_BM: Tensor) -> Tensor:
    """Returns the polynomial of the word of each symbol, the first symbol times `BASE`; 0 between words; [B, M]."""
    power_M, inverse_M = raise_base(index_M + 1).unbind()
    is_start_M = index_M == 0
    # Each symbol between words begins a number that the word after it has, too.
    word_BM = (is_between_BM | is_start_M).cumsum(1) - 1
    zero_BM = torch.zeros_like(symbol_BM)
    sum_BM = zero_BM.scatter_add(1, word_BM, torch.where(is_between_BM, 0, symbol_BM * power_M))
    shift_BM = zero_BM.scatter_add(1, word_BM, torch.where(is_between_BM, inverse_M, is_start_M.long()))
    return (sum_BM * shift_BM).gather(1, word_BM).masked_fill(is_between_BM, 0)


def raise_base(exponent_M: Tensor) -> Tensor:
    """Returns `BASE` and its inverse to the power of exponents below 2^24; ONNX has no cumulative product; [R, M]."""
    low_RD, high_RD = POWERS_RKD.to(exponent_M.device).unbind(1)
    return low_RD.index_select(1, exponent_M & 4095) * high_RD.index_select(1, exponent_M >> 12)


def mix(hash: Tensor) -> Tensor:
    """Returns 31 bits, each of which depends on all bits of a hash."""
    return ((hash ^ (hash >> 32)) * FACTOR >> 33) & (2**31 - 1)
