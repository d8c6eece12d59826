"""Encoders of sets: a vector for each element in view of all others, and one for the whole set (section 4.5).

The paper uses one in AlphaStar to encode the units of StarCraft II, in time linear in their number.

Shape suffixes: B batch, M elements, C input channels, D inner channels, E output channels
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perceivers.adapters.array import ArrayInput
from perceivers.adapters.set import SetOutput
from perceivers.model import kernels
from perceivers.model.adapter import InputArray, read_array
from perceivers.model.linear import Linear
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import Model


class SetEncoding(NamedTuple):
    """Encodings of a set.

    Attributes:
        elements_BME: a vector for each element, 0 for padding; AlphaStar's `entity_embeddings`.
        pooled_BE: a vector for the whole set; AlphaStar's `embedded_entity`.
    """

    elements_BME: Tensor
    pooled_BE: Tensor


class SetHeads(nn.Module):
    """AlphaStar's heads: elements through ReLU and a linear layer; their mean through a linear layer and ReLU."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.element = Linear(width, channels)
        self.whole = Linear(width, channels)

    def forward(self, y_BMD: Tensor, mask_BM: Tensor) -> SetEncoding:
        """Takes vectors and the mask of those that are elements; the mean of an empty set is 0."""
        mask_BM1 = mask_BM[..., None].to(y_BMD.dtype)
        mean_BD = (y_BMD * mask_BM1).sum(1) / mask_BM1.sum(1).clamp_min(1)
        return SetEncoding(self.element(y_BMD.relu()) * mask_BM1, self.whole(mean_BD).relu())


class SetEncoder(Model):
    """Perceiver IO on a set, whose elements are also its queries.

    The defaults are the paper's entity encoder: 512 elements of 128 channels, 32 latents, 3 layers. The paper gives no
    further sizes; 512-channel latents with 4x MLPs in the processor match its 0.93B FLOPs.

    Args:
        channels: C.
        output_channels: E.
        width: D, also the channels of queries.
        latents: number of latents.
        latent_channels: channels of each latent.
        depth: self-attention layers.
        heads: heads of all attentions.
        widening_factor: width of the MLPs of the self-attention layers, in channels; 1 in the cross-attentions.

    Examples:
        >>> import torch
        >>> encoder = SetEncoder(3, output_channels=8, width=16, latents=4, latent_channels=16, depth=1)
        >>> elements, whole = encoder(torch.randn(2, 50, 3))
        >>> elements.shape, whole.shape
        (torch.Size([2, 50, 8]), torch.Size([2, 8]))
    """

    def __init__(
        self,
        channels: int,
        output_channels: int = 256,
        width: int = 128,
        latents: int = 32,
        latent_channels: int = 512,
        depth: int = 3,
        heads: int = 2,
        widening_factor: int = 4,
    ) -> None:
        super().__init__()
        self.embedding = Linear(channels, width)
        inputs, outputs = {"elements": ArrayInput(width)}, {"elements": SetOutput("elements")}
        sizes: dict[str, Any] = {"cross_heads": heads, "decoder_heads": heads, "widening_factor": widening_factor}
        self.perceiver = PerceiverIO(inputs, outputs, latents, latent_channels, depth, heads=heads, **sizes)
        self.heads = SetHeads(width, output_channels)
        kernels.optimize(self)

    def forward(self, x_BMC: Tensor, mask_BM: Tensor | None = None) -> SetEncoding:
        """Takes elements and the mask of those that are not padding (by default all)."""
        x_BMC, mask_BM = read_array(InputArray(x_BMC, mask_BM), channel_dims=1)
        mask_BM = torch.ones(x_BMC.shape[:2], dtype=torch.bool, device=x_BMC.device) if mask_BM is None else mask_BM
        y_BMD = self.perceiver({"elements": InputArray(self.embedding(x_BMC), mask_BM)})["elements"]
        return self.heads(y_BMD, mask_BM)
