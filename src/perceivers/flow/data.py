"""Pairs of optical flow for training and to evaluate on: read from a data set, or named by seeds, to be generated.

Shape suffixes: B batch, Y rows, X columns
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from perceivers.checks import Checked, Count
from perceivers.data.loader import SampleIndex, Samples
from perceivers.flow.datasets import FlowPair, FlowPairs, open_pairs
from perceivers.flow.scenes import Scenes

HELD_OUT = 2**31
"""Seeds of held-out scenes start here, beyond all that training draws."""


@dataclass
class FlowData(Checked):
    """The pairs of a training run.

    Attributes:
        path: a folder of pairs whose flow is known, in the layout of a published data set; if not given, pairs are
            generated while training, each once.
        layout, split: of the folder, as in `open_pairs`.
        validation: a folder of held-out pairs; generated ones, if not given.
        validation_layout, validation_split: of that folder.
        scenes: what generated pairs look like.
        pairs: generated in one epoch.
        held_out: generated pairs to evaluate on.
    """

    section = "data."

    path: str | None = None
    layout: str | None = None
    split: str = "training"
    validation: str | None = None
    validation_layout: str | None = None
    validation_split: str = "training"
    scenes: Scenes = field(default_factory=Scenes)
    pairs: Count = 10000
    held_out: Count = 64

    @property
    def generates(self) -> bool:
        """Whether any of the pairs are generated."""
        return self.path is None or self.validation is None

    def open(self) -> tuple[Samples, Samples]:
        """Returns training and held-out pairs.

        Raises:
            PerceiversError: as in `open_pairs`.
        """
        training: Samples = SeededPairs(self.pairs)
        held_out: Samples = SeededPairs(self.held_out, HELD_OUT)
        if self.path is not None:
            training = StoredPairs(open_pairs(self.path, self.layout, self.split))
        if self.validation is not None:
            held_out = StoredPairs(open_pairs(self.validation, self.validation_layout, self.validation_split))
        return training, held_out


class SeededPairs(Samples):
    """Seeds of pairs, which are generated where they are needed: on the device.

    Args:
        count: number of pairs.
        first: the first of the seeds; if not given, they are those of the items, others in every epoch.
    """

    def __init__(self, count: int, first: int | None = None) -> None:
        self.count, self.first = count, first

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: SampleIndex) -> int:
        return item.seed if self.first is None else self.first + item.sample

    def collate(self, seeds: list[int]) -> dict[str, Tensor]:
        """-> "seed" [B]."""
        return {"seed": torch.tensor(seeds)}


class StoredPairs(Samples):
    """Pairs that are read from files.

    They may differ in size: batches to evaluate on hold one each, those to train on are padded, see `collate`.
    """

    def __init__(self, pairs: FlowPairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: SampleIndex) -> FlowPair:
        return self.pairs[item.sample]

    def collate(self, pairs: list[FlowPair]) -> dict[str, Tensor]:
        """-> "frames" bytes [B, 2, 3, Y, X]; "flow" [B, 2, Y, X] in pixels; and where it is "known", bool [B, Y, X].

        Smaller pairs are continued to the right and below by their last pixels, whose flow is not known.
        """
        height, width = (max(pair.frames.shape[side] for pair in pairs) for side in (-2, -1))
        edges = [(0, width - pair.frames.shape[-1], 0, height - pair.frames.shape[-2]) for pair in pairs]
        flow = torch.stack([F.pad(pair.flow, edge, value=torch.nan) for pair, edge in zip(pairs, edges, strict=True)])
        frames = [F.pad(pair.frames, edge, "replicate") for pair, edge in zip(pairs, edges, strict=True)]
        return {"frames": torch.stack(frames), "flow": flow.nan_to_num(), "known": ~flow.isnan().any(1)}

    def loader(
        self, batch_size: int, seed: int | None = None, workers: int = 0, rank: int = 0, world_size: int = 1
    ) -> DataLoader[Any]:
        return super().loader(1 if seed is None else batch_size, seed, workers, rank, world_size)
