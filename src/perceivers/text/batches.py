"""Labeled texts of one or more tasks as batches of tokens.

Shape suffixes: B batch, M tokens
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perceivers.data.loader import SampleIndex, Samples
from perceivers.text.labeled import LabeledTexts
from perceivers.text.masking import mask_words
from perceivers.text.tokenizers import Tokenizer


@dataclass(frozen=True)
class TextEncoding:
    """The form in which a model reads texts: at most `length` tokens, after the prefix token of their task, if any."""

    tokenizer: Tokenizer
    length: int
    prefix_tokens: Sequence[int] | None = None

    def encode(self, texts: Sequence[str], task: int = 0) -> NDArray[np.int32]:
        """Returns tokens [M]: the prefix token, if any, and the text, or the two texts of a pair with a separator."""
        return self.join(map(self.tokenizer.encode, texts), task)

    def truncate(self, texts: Sequence[str], task: int) -> NDArray[np.int32]:
        """Returns at most `length` tokens: texts lose tokens at their ends, of a pair the longer text first."""
        parts = [self.tokenizer.encode(text) for text in texts]
        room = self.length - (self.prefix_tokens is not None) - (len(parts) - 1)
        total = sum(map(len, parts))
        return self.join((part[: max(room // len(parts), room - (total - len(part)))] for part in parts), task)

    def join(self, parts: Iterable[NDArray[np.int32]], task: int) -> NDArray[np.int32]:
        """Joins the tokens of texts."""
        arrays: list[Any] = [[] if self.prefix_tokens is None else [self.prefix_tokens[task]]]
        for index, part in enumerate(parts):
            arrays += [[self.tokenizer.sep] * (index > 0), part]
        return np.concatenate([np.asarray(array, np.int32) for array in arrays])


def pad_tokens(texts: Sequence[NDArray[np.int32]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns tokens of several texts as one tensor [B, M], padded to the longest, and the mask of those of texts."""
    length_B = torch.tensor([len(token_M) for token_M in texts])
    mask_BM = torch.arange(max(1, int(length_B.max()))) < length_B[:, None]
    token_BM = torch.full(mask_BM.shape, pad)
    token_BM[mask_BM] = torch.from_numpy(np.concatenate(list(texts))).long()
    return token_BM, mask_BM


class TaskTexts(Samples):
    """Sets of examples, one after another, as tokens.

    Args:
        sets: the name of each set, the index of its task, and its examples.
        encoding: how texts become tokens; longer ones are truncated.
        mask_rate: probability with which each word is masked, others each time.
        least: repeat all examples until there are so many.
    """

    def __init__(
        self,
        sets: Sequence[tuple[str, int, LabeledTexts]],
        encoding: TextEncoding,
        mask_rate: float = 0.0,
        least: int = 0,
    ) -> None:
        self.encoding, self.mask_rate = encoding, mask_rate
        self.examples: list[dict[str, Any]] = []
        for index, (name, task, examples) in enumerate(sets):
            truncated = 0
            for texts, label in zip(examples.texts, examples.labels, strict=True):
                token_M = encoding.encode(texts, task)
                if len(token_M) > encoding.length:
                    token_M = encoding.truncate(texts, task)
                    truncated += 1
                self.examples.append({"text": token_M, "label": label, "task": task, "set": index})
            if truncated:
                print(
                    f"{name}: {truncated} of {len(examples)} texts are longer than the {encoding.length} tokens "
                    f"that the model reads; their ends are left out.",
                    file=sys.stderr,
                )
        self.examples *= max(1, -(-least // max(1, len(self.examples))))
        self.lengths: Sequence[int] = [len(example["text"]) for example in self.examples]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: SampleIndex) -> dict[str, Any]:
        example = self.examples[item.sample]
        if not self.mask_rate:
            return example
        token_M, start = example["text"].copy(), int(self.encoding.prefix_tokens is not None)
        generator = np.random.default_rng(item.seed)
        masked = mask_words(token_M[None, start:], self.encoding.tokenizer, self.mask_rate, len(token_M), generator)
        token_M[start:] = masked.token_BM[0]
        return example | {"text": token_M}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns "text" [B, M], padded to the longest, its "mask", and "label", "task" and "set" [B]."""
        token_BM, mask_BM = pad_tokens([sample["text"] for sample in samples], self.encoding.tokenizer.pad)
        indices = {name: torch.tensor([sample[name] for sample in samples]) for name in ("task", "set")}
        label_B = torch.tensor([float(sample["label"]) for sample in samples])
        return {"text": token_BM, "mask": mask_BM, "label": label_B, **indices}
