"""Texts as words. Shape suffixes: B batch, M words, H hashes of a word; others as in `perceivers.model.adapter`."""

import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputAdapter, InputArray, read_array
from perceivers.model.arguments import check_range
from perceivers.model.linear import Linear, trunc_normal_parameter
from perceivers.model.positions import LearnedPositions


class WordInput(InputAdapter):
    """Words as sums of learned vectors, one for each hash of a word and its parts, and of learned positions.

    Words that were never seen share the vectors of their parts with known ones (Bojanowski et al., 2017, "Enriching
    Word Vectors with Subword Information").

    Args:
        hashes: number of vectors, of which the first stands for no hash and is 0.
        width: channels of the vectors, which a linear layer projects.
        length: maximum number of words of a text.
        channels: C.
    """

    def __init__(self, hashes: int, width: int, length: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.length = length
        self.embedding = nn.Embedding(hashes, width, _weight=trunc_normal_parameter(hashes, width))
        self.linear = Linear(width, channels)
        self.positions = LearnedPositions([length], channels)

    def forward(self, data: Tensor | InputArray) -> InputArray:
        """Takes hashes [B, M, H], 0 for none; or `InputArray(hashes, mask_BM)` for texts of different lengths."""
        hash_BMH, mask_BM = read_array(data, channel_dims=1)
        if hash_BMH.dim() != 3 or hash_BMH.is_floating_point():
            raise PerceiversError(
                f"words of shape {tuple(hash_BMH.shape)} and type {hash_BMH.dtype} were given, "
                f"but integers of shape [batch, words, hashes] are expected."
            )
        if hash_BMH.shape[1] > self.length:
            raise PerceiversError(f"a text of {hash_BMH.shape[1]} words was given: at most {self.length} are read.")
        check_range("hashes", hash_BMH, self.embedding.num_embeddings)
        words_BMC = F.embedding_bag(hash_BMH.flatten(0, 1), self.embedding.weight, mode="sum", padding_idx=0)
        x_BMC = self.linear(words_BMC).unflatten(0, hash_BMH.shape[:2])
        return InputArray(x_BMC + self.positions.table_SF[: hash_BMH.shape[1]], mask_BM)
