"""Pairs of frames for training and evaluation: read from a data set, or seeds of pairs to be generated.

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
from perceivers.flow.scenes import SceneConfig

VALIDATION_SEED = 2**31  # the first seed of validation scenes, above all that training draws


@dataclass
class FlowData(Checked):
    """The pairs of a training run.

    Attributes:
        path: a folder of pairs with known flow, in the layout of a published data set; by default, pairs are generated
            during training, each once.
        layout, split: of the folder, as in `open_pairs`.
        validation: a folder of validation pairs; by default they are generated.
        validation_layout, validation_split: of that folder.
        scenes: the appearance of generated pairs.
        pairs: number of pairs generated in one epoch.
        validation_pairs: number of pairs generated for validation.
    """

    section = "data."

    path: str | None = None
    layout: str | None = None
    split: str = "training"
    validation: str | None = None
    validation_layout: str | None = None
    validation_split: str = "training"
    scenes: SceneConfig = field(default_factory=SceneConfig)
    pairs: Count = 10000
    validation_pairs: Count = 64

    def open(self) -> tuple[Samples, Samples]:
        """Returns training and validation pairs; raises errors of `open_pairs`."""
        training: Samples = SeededPairs(self.pairs)
        validation: Samples = SeededPairs(self.validation_pairs, VALIDATION_SEED)
        if self.path is not None:
            training = StoredPairs(open_pairs(self.path, self.layout, self.split))
        if self.validation is not None:
            validation = StoredPairs(open_pairs(self.validation, self.validation_layout, self.validation_split))
        return training, validation


class SeededPairs(Samples):
    """Seeds of pairs, which are generated on the device: from `first` on, or by default new in every epoch."""

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
    """Pairs that are read from files. Evaluation batches hold one pair, since pairs may differ in size."""

    def __init__(self, pairs: FlowPairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: SampleIndex) -> FlowPair:
        return self.pairs[item.sample]

    def collate(self, pairs: list[FlowPair]) -> dict[str, Tensor]:
        """-> "frames" bytes [B, 2, 3, Y, X]; "flow" [B, 2, Y, X] in pixels; "known" bool [B, Y, X].

        Smaller pairs are extended to the right and below by their last pixels, whose flow is unknown.
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
