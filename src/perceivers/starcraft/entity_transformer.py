"""AlphaStar's Transformer of units (Vinyals et al., 2019), which the paper replaces by Perceiver IO (section 4.5).

It is called like `SetEncoder`, and shares its attention, MLPs and heads. Layers are pre-norm, as in Perceiver IO.
"""

import torch
from torch import Tensor, nn

from perceivers.model import kernels
from perceivers.model.adapter import InputArray, read_array
from perceivers.model.attention import SelfAttention
from perceivers.model.linear import Linear
from perceivers.model.saving import Model
from perceivers.set_encoder import SetEncoding, SetHeads


class EntityTransformer(Model):
    """Self-attention between all units, in time quadratic in their number; arguments as of `SetEncoder`."""

    def __init__(
        self,
        channels: int,
        output_channels: int = 256,
        width: int = 256,
        depth: int = 3,
        heads: int = 2,
        widening_factor: int = 4,
    ) -> None:
        super().__init__()
        self.embedding = Linear(channels, width)
        self.layers = nn.ModuleList(SelfAttention(width, heads, widening_factor=widening_factor) for _ in range(depth))
        self.heads = SetHeads(width, output_channels)
        kernels.optimize(self)

    def forward(self, x_BMC: Tensor, mask_BM: Tensor | None = None) -> SetEncoding:
        """Takes units and the mask of those that are not padding (by default all)."""
        x_BMC, mask_BM = read_array(InputArray(x_BMC, mask_BM), channel_dims=1)
        mask_BM = torch.ones(x_BMC.shape[:2], dtype=torch.bool, device=x_BMC.device) if mask_BM is None else mask_BM
        h_BMD = self.embedding(x_BMC)
        for layer in self.layers:
            h_BMD = layer(h_BMD, mask_BM)
        return self.heads(h_BMD, mask_BM)
