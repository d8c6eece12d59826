"""A single number as an element. Shape suffixes: B batch, E edges; others as in `perceivers.model.adapter`."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputAdapter, InputArray, read_array
from perceivers.model.linear import Linear

FARTHEST = 10.0
"""Standardized numbers are clamped to this distance from 0."""


class NumberInput(InputAdapter):
    """A standardized number as one element: a linear layer of it and of its piecewise linear encoding.

    The encoding has a channel for each interval between two edges: 0 below the interval, 1 above it, and rising
    linearly within it (Gorishniy et al., 2022, "On Embeddings for Numerical Features in Tabular Deep Learning").

    Args:
        edges: increasing edges of the intervals, such as quantiles of the training numbers; at least two.
        channels: C.

    Examples:
        >>> import torch
        >>> number = NumberInput([-1.0, 0.0, 1.0], channels=16)
        >>> number.encode(torch.tensor([0.25]))  # the number; above the first interval; a quarter of the second
        tensor([[0.2500, 1.0000, 0.2500]])
        >>> number(torch.tensor([0.25])).x_BMC.shape
        torch.Size([1, 1, 16])
    """

    def __init__(self, edges: Sequence[float], channels: int) -> None:
        super().__init__()
        if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
            raise PerceiversError("the edges of a number input must increase, and there must be at least two.")
        self.channels = channels
        self.edges = tuple(edges)
        self.linear = Linear(len(edges), channels)

    def forward(self, data: Tensor | InputArray) -> InputArray:
        """Takes standardized numbers [B]."""
        number_B, _ = read_array(data)
        if number_B.dim() != 1:
            raise PerceiversError(f"numbers of shape {tuple(number_B.shape)} were given, but [batch] is expected.")
        return InputArray(self.linear(self.encode(number_B.float()).to(self.linear.weight.dtype))[:, None])

    def encode(self, number_B: Tensor) -> Tensor:
        """Returns the number and its piecewise linear encoding; [B] -> [B, E]."""
        edge_E = torch.tensor(self.edges, dtype=torch.float32, device=number_B.device)
        place_BE = (number_B[:, None] - edge_E[:-1]) / edge_E.diff()
        return torch.cat([number_B.clamp(-FARTHEST, FARTHEST)[:, None], place_BE.clamp(0, 1)], 1)
