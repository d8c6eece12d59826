"""Texts as words. Shape suffixes: B batch, M words, H hashes of a word; others as in `perceivers.model.adapter`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputAdapter, InputArray, read_array
from perceivers.model.arguments import check_range
from perceivers.model.linear import Linear, trunc_normal_parameter
from perceivers.model.positions import LearnedPositions


class WordInput(InputAdapter):
    """A text as a whole, and its words: sums of vectors, one for each hash of a word and its parts.

    Words that were never seen share the vectors of their parts with known ones (Bojanowski et al., 2017, "Enriching
    Word Vectors with Subword Information"). The first element is the sum of all words, over the square root of their
    number; those after it are the words, with learned positions.

    Args:
        hashes: number of vectors, of which the first stands for no hash and is 0.
        width: channels of the vectors, which a linear layer projects.
        length: maximum number of words of a text.
        channels: C.
        is_trained: whether training changes the vectors of hashes.

    Examples:
        >>> import torch
        >>> words = WordInput(hashes=1000, width=16, length=20, channels=32)
        >>> words(torch.tensor([[[5, 17, 0], [8, 0, 0]]])).x_BMC.shape  # two words: their sum, and each of them
        torch.Size([1, 3, 32])
    """

    def __init__(self, hashes: int, width: int, length: int, channels: int, is_trained: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.length = length
        self.embedding = nn.Embedding(hashes, width, _weight=trunc_normal_parameter(hashes, width))
        self.embedding.requires_grad_(is_trained)
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
        check_range("hashes", hash_BMH, 0, self.embedding.num_embeddings - 1)
        bags = F.embedding_bag(hash_BMH.flatten(0, 1), self.embedding.weight, mode="sum", padding_idx=0)
        word_BMW = bags.unflatten(0, hash_BMH.shape[:2])  # padding has no hashes, and the vector 0
        count_B1 = (hash_BMH[..., 0] != 0).sum(1, keepdim=True).clamp_min(1)
        whole_B1W = (word_BMW.sum(1) / count_B1.sqrt().to(word_BMW.dtype))[:, None]
        whole_B1C, word_BMC = self.linear(whole_B1W), self.linear(word_BMW)
        x_BMC = torch.cat([whole_B1C, word_BMC + self.positions.table_SF[: word_BMC.shape[1]]], 1)
        return InputArray(x_BMC, None if mask_BM is None else F.pad(mask_BM, (1, 0), value=True))
