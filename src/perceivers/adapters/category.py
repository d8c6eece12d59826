"""Categories as learned vectors. Shape suffixes as in `perceivers.model.adapter`."""

from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputAdapter, InputArray, read_array
from perceivers.model.arguments import check_range
from perceivers.model.linear import lecun_normal_


class CategoryInput(InputAdapter):
    """A category as one element, or the set of categories that apply as several: a learned vector for each.

    Args:
        categories: number of categories, including one for those that are unknown, if there may be some.
        channels: C.

    Examples:
        >>> import torch
        >>> CategoryInput(categories=10, channels=16)(torch.tensor([3, 7])).x_BMC.shape
        torch.Size([2, 1, 16])
    """

    def __init__(self, categories: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.embedding = nn.Embedding(categories, channels)
        lecun_normal_(self.embedding.weight)

    def forward(self, data: Tensor | InputArray) -> InputArray:
        """Takes indices [B] or, for sets, [B, M] with a mask of those that are real."""
        indices, mask_BM = read_array(data)
        if indices.dim() not in (1, 2) or indices.is_floating_point():
            raise PerceiversError(
                f"categories of shape {tuple(indices.shape)} and type {indices.dtype} were given, "
                f"but integers of shape [batch] or [batch, set] are expected."
            )
        check_range("categories", indices, 0, self.embedding.num_embeddings - 1)
        x = self.embedding(indices)
        return InputArray(x[:, None] if indices.dim() == 1 else x, mask_BM)
