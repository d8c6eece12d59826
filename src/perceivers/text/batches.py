"""Labelled texts of one or several tasks as batches of tokens.

Shape suffixes: B batch, M tokens
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perceivers.data.loader import SampleIndex, Samples
from perceivers.text.labelled import LabelledTexts
from perceivers.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class TextCode:
    """How texts become tokens.

    Attributes:
        tokenizer: makes tokens of a text.
        length: the most tokens the model reads.
        first: the token in front of the texts of each task, if there is one.
    """

    tokenizer: Tokenizer
    length: int
    first: Sequence[int] | None = None

    def encode(self, texts: Sequence[str], task: int = 0) -> NDArray[np.int32]:
        """-> tokens [M]: the first token, if there is one; the text; of a pair, the separator and the other text."""
        front = [] if self.first is None else [self.first[task]]
        parts = [np.array(front, np.int32)]
        for index, text in enumerate(texts):
            parts += [np.array([self.tokenizer.sep] * (index > 0), np.int32), self.tokenizer.encode(text)]
        return np.concatenate(parts)

    def fit(self, texts: Sequence[str], task: int) -> tuple[NDArray[np.int32], bool]:
        """The same, but what is longer than the model reads loses tokens at the ends of its texts; and whether it did.

        Of a pair, the longer text loses them first.
        """
        token_M = self.encode(texts, task)
        if len(token_M) <= self.length:
            return token_M, False
        room = self.length - (self.first is not None) - (len(texts) - 1)
        counts = [len(self.tokenizer.encode(text)) for text in texts]
        kept = [min(count, max(room // len(texts), room - (sum(counts) - count))) for count in counts]
        start, parts = int(self.first is not None), [token_M[: self.first is not None]]
        for index, (count, keep) in enumerate(zip(counts, kept, strict=True)):
            parts += [token_M[start - 1 : start] if index else token_M[:0], token_M[start : start + keep]]
            start += count + 1
        return np.concatenate(parts), True


class TaskTexts(Samples):
    """Sets of examples, one set after another, as tokens.

    Args:
        sets: of each its name, the number of its task, and the examples.
        code: how texts become tokens.
    """

    def __init__(self, sets: Sequence[tuple[str, int, LabelledTexts]], code: TextCode) -> None:
        self.pad = code.tokenizer.pad
        self.examples: list[dict[str, Any]] = []
        for number, (name, task, examples) in enumerate(sets):
            coded = [code.fit(texts, task) for texts in examples.texts]
            cut = sum(was_cut for _, was_cut in coded)
            if cut:
                print(
                    f"{name}: {cut} of {len(coded)} texts are longer than the {code.length} tokens "
                    f"that the model reads; their ends are left out.",
                    file=sys.stderr,
                )
            self.examples += [
                {"text": token_M, "label": label, "task": task, "set": number}
                for (token_M, _), label in zip(coded, examples.labels, strict=True)
            ]
        self.lengths: Sequence[int] = [len(example["text"]) for example in self.examples]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        return self.examples[item.sample]

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """-> "text" [B, M], padded to the longest, its "mask", and "label", "task" and "set" [B]."""
        longest = max(1, max(len(sample["text"]) for sample in samples))
        token_BM = torch.full((len(samples), longest), self.pad)
        mask_BM = torch.zeros(len(samples), longest, dtype=torch.bool)
        for row, sample in enumerate(samples):
            count = len(sample["text"])
            token_BM[row, :count] = torch.from_numpy(sample["text"])
            mask_BM[row, :count] = True
        numbers = {name: torch.tensor([sample[name] for sample in samples]) for name in ("task", "set")}
        label_B = torch.tensor([float(sample["label"]) for sample in samples])
        return {"text": token_BM, "mask": mask_BM, "label": label_B, **numbers}
