"""Learned vectors by name, such as those of sessions, units or sensors, to which names can be added.

Shape suffixes: C channels
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from perceivers.errors import PerceiversError, did_you_mean
from perceivers.model.config import Configurable
from perceivers.model.linear import trunc_normal_parameter


class NamedEmbedding(Configurable, nn.Module):
    """A learned vector for each name.

    A model that is trained from another one (`model.init`) takes the vectors of the names that both have.

    Args:
        names: the names, such as those of sessions; all different.
        channels: C.

    Examples:
        >>> sensors = NamedEmbedding(["north", "south"], channels=8)
        >>> sensors(sensors.indices(["south", "south", "north"])).shape
        torch.Size([3, 8])
    """

    def __init__(self, names: Sequence[str], channels: int) -> None:
        super().__init__()
        self.names: list[str] = []
        self.channels = channels
        self.weight = nn.Parameter(torch.empty(0, channels))
        self.extend(names)

    @torch.no_grad()
    def extend(self, names: Iterable[str]) -> None:
        """Adds names with fresh vectors; vectors of the others stay. Make the optimizer afterwards: it is a new array.

        Raises:
            PerceiversError: a name is there already, or twice.
        """
        added = list(names)
        for index, name in enumerate(added):
            if name in self.names or name in added[:index]:
                raise PerceiversError(f"the name {name!r} is given twice: leave one out.")
        fresh = trunc_normal_parameter(len(added), self.channels).to(self.weight)
        self.weight = nn.Parameter(torch.cat([self.weight, fresh]), self.weight.requires_grad)
        self.names += added
        self.config["names"] = list(self.names)

    def indices(self, names: Iterable[str]) -> Tensor:
        """Returns the indices of names, in their order; raises a PerceiversError if one is unknown."""
        index_of = {name: index for index, name in enumerate(self.names)}
        found = []
        for name in names:
            if name not in index_of:
                raise PerceiversError(f"there is no vector of {name!r}: {did_you_mean(name, self.names)}")
            found.append(index_of[name])
        return torch.tensor(found, dtype=torch.long, device=self.weight.device)

    def forward(self, indices: Tensor) -> Tensor:
        """Returns the vectors at indices; [...] -> [..., C]."""
        return nn.functional.embedding(indices, self.weight)

    def index_names(self) -> dict[str, tuple[int, list[str]]]:
        """Returns the names of the vectors, by which fine-tuning keeps them."""
        return {"weight": (0, self.names)}
