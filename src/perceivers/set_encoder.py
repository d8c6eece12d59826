"""Sets of any size: a vector for each element in view of all others, and one for the whole (section 4.5).

Made for the units of StarCraft II in AlphaStar's place, in time linear in their number; what the elements are does not
matter.

Shape suffixes: B batch, M elements, C channels of an element, D channels inside, E channels of the answers
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from perceivers.adapters.array import ArrayInput
from perceivers.adapters.set import SetOutput
from perceivers.model import kernels
from perceivers.model.adapter import InputArray
from perceivers.model.linear import Linear
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.saving import Model


class SetEncoding(NamedTuple):
    """A vector for each element, 0 for padding, and one for the whole set; AlphaStar's names are in brackets."""

    elements_BME: Tensor
    """(`entity_embeddings`)"""
    whole_BE: Tensor
    """(`embedded_entity`)"""


class SetHeads(nn.Module):
    """What AlphaStar reads of its entities: each through ReLU and a linear layer; the mean through one, and ReLU."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.element = Linear(width, channels)
        self.whole = Linear(width, channels)

    def forward(self, y_BMD: Tensor, mask_BM: Tensor) -> SetEncoding:
        """Vectors, and which of them are elements -> what is read of them; the mean of none is 0."""
        real_BM1 = mask_BM[..., None].to(y_BMD.dtype)
        mean_BD = (y_BMD * real_BM1).sum(1) / real_BM1.sum(1).clamp_min(1)
        return SetEncoding(self.element(y_BMD.relu()) * real_BM1, self.whole(mean_BD).relu())


class SetEncoder(Model):
    """Perceiver IO on a set, whose elements are its queries too.

    The defaults are the paper's entity encoder: 512 elements of 128 channels, 32 latents, 3 layers. It says no more of
    it; latents of 512 channels, with MLPs of four times that in the layers alone, need its 0.93B FLOPs.

    Args:
        channels: C of an element as it comes.
        answer_channels: E.
        width: D, channels of elements inside, and of queries.
        latents, latent_channels: number and channels of latents.
        depth: layers of self-attention.
        heads: heads of each, and of both cross-attentions.
        widening_factor: width of the layers' MLPs, in channels; those of the cross-attentions have 1.
    """

    def __init__(
        self,
        channels: int,
        answer_channels: int = 256,
        width: int = 128,
        latents: int = 32,
        latent_channels: int = 512,
        depth: int = 3,
        heads: int = 2,
        widening_factor: int = 4,
    ) -> None:
        super().__init__()
        self.embedding = Linear(channels, width)
        self.perceiver = PerceiverIO(
            inputs={"elements": ArrayInput(width)},
            outputs={"elements": SetOutput("elements")},
            latents=latents,
            channels=latent_channels,
            depth=depth,
            heads=heads,
            widening_factor=widening_factor,
            cross_heads=heads,
            decoder_heads=heads,
        )
        self.heads = SetHeads(width, answer_channels)
        kernels.optimize(self)

    def forward(self, x_BMC: Tensor, mask_BM: Tensor | None = None) -> SetEncoding:
        """Takes elements, and which of them are real (all, if not given)."""
        mask_BM = torch.ones(x_BMC.shape[:2], dtype=torch.bool, device=x_BMC.device) if mask_BM is None else mask_BM
        y_BMD = self.perceiver({"elements": InputArray(self.embedding(x_BMC), mask_BM)})["elements"]
        return self.heads(y_BMD, mask_BM)
