"""AlphaStar's Transformer of units (Vinyals et al., 2019), in whose place the paper puts Perceiver IO (section 4.5).

It has the attention, the MLP and the heads of `SetEncoder`, and the same call. Layers are normalized before attention
and MLP, as Perceiver IO's are.
"""

import torch
from torch import Tensor, nn

from perceivers.model import kernels
from perceivers.model.attention import SelfAttention
from perceivers.model.linear import Linear
from perceivers.model.saving import Model
from perceivers.set_encoder import SetEncoding, SetHeads


class EntityTransformer(Model):
    """Units that attend to each other, in time that grows with the square of their number.

    Args:
        channels: C of a unit.
        answer_channels: E.
        width: D of the units inside.
        depth: layers of self-attention.
        heads: heads of each.
        widening_factor: width of their MLPs, in channels.
    """

    def __init__(
        self,
        channels: int,
        answer_channels: int = 256,
        width: int = 256,
        depth: int = 3,
        heads: int = 2,
        widening_factor: int = 4,
    ) -> None:
        super().__init__()
        self.embedding = Linear(channels, width)
        self.layers = nn.ModuleList(SelfAttention(width, heads, widening_factor=widening_factor) for _ in range(depth))
        self.heads = SetHeads(width, answer_channels)
        kernels.optimize(self)

    def forward(self, x_BMC: Tensor, mask_BM: Tensor | None = None) -> SetEncoding:
        """Takes units, and which of them are real (all, if not given)."""
        mask_BM = torch.ones(x_BMC.shape[:2], dtype=torch.bool, device=x_BMC.device) if mask_BM is None else mask_BM
        h_BMD = self.embedding(x_BMC)
        for layer in self.layers:
            h_BMD = layer(h_BMD, mask_BM)
        return self.heads(h_BMD, mask_BM)
