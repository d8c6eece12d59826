"""Texts: words to read, bytes to fill in. Shape suffixes: B batch, M words or bytes, H hashes, V vocabulary."""

import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self
from zlib import crc32

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MeanMetric, Metric

from perceivers.adapters.text import TextInput, TextOutput
from perceivers.adapters.words import WordInput
from perceivers.checks import Count, Fraction, Range
from perceivers.model.adapter import InputAdapter, InputArray
from perceivers.tables.columns.column import Column
from perceivers.tables.columns.drawing import draw_shaded

WORD = re.compile(r"\w{1,24}|[^\w\s]")
NGRAMS = (3, 4, 5)
MOST_HASHES = 24
"""Longest pieces of text that are a word; lengths of the parts of a word that are hashed; most hashes of a word."""


MANY = 5000
"""Training cells from which on training changes the vectors of words."""

SAMPLE = 20_000
"""Training cells that the vectors of words are made from at most."""

LONGEST_REST = 200
"""Characters that are drawn of what is not read of a text."""

CERTAIN = 1e4
"""The logit of a byte that is shown."""


class Text(Column):
    """A text, read as words: each is the sum of vectors of the word, its parts, and the pair with the one before it.

    Args:
        length: most words that are read; learned: the 95th percentile of the training cells, at most `longest`.
        longest: most words that are learned as length.
        hashes: number of vectors, which words share by their hashes.
        width: channels of the vectors.
        train_vectors: whether training changes the vectors, which are made from the training cells without their
            targets; learned: from `MANY` cells on.
        dropout: fraction of words that training leaves out.
    """

    kind = "text"

    def __init__(
        self,
        length: Count | None = None,
        longest: Count = 128,
        hashes: Annotated[int, Range(least=2)] = 2**14,
        width: Count = 64,
        train_vectors: bool | None = None,
        dropout: Annotated[float, Range(least=0, below=1)] = 0.2,
    ) -> None:
        self.length, self.longest, self.hashes, self.width, self.dropout = length, longest, hashes, width, dropout
        self.train_vectors = train_vectors

    def learn(self, cells: Iterable[Any], root: Path) -> Self:
        counts = [len(WORD.findall(str(cell))) for cell in cells]
        length = self.length or (int(np.clip(np.quantile(counts, 0.95), 1, self.longest)) if counts else 1)
        train_vectors = len(counts) >= MANY if self.train_vectors is None else self.train_vectors
        return self.change(length=length, train_vectors=train_vectors)

    def read(self, cell: Any, root: Path) -> Tensor:
        """Returns the hashes of each word [M, H]."""
        if not isinstance(cell, str | int | float):
            raise self.refuse(cell, "a text")
        return hash_words(self.words(str(cell)), self.hashes)

    def words(self, text: str) -> list[str]:
        """Returns the words that are read of a text, in lower case."""
        return WORD.findall(text.lower())[: self.length] or [""]

    def augment(self, value: Tensor, generator: torch.Generator) -> Tensor:
        kept = torch.rand(len(value), generator=generator) >= self.dropout
        return value[kept] if kept.any() else value

    def blank(self, is_target: bool = False) -> Tensor:
        return torch.zeros(1, MOST_HASHES, dtype=torch.int32)

    def collate(self, values: Sequence[Tensor]) -> InputArray:
        return pad(values)

    def input_adapter(self, channels: int) -> InputAdapter:
        return WordInput(self.hashes, self.width, self.length or 1, channels, self.train_vectors is not False)

    def initialize(self, adapter: InputAdapter, cells: Iterable[Any]) -> None:
        """Makes the sum of the vectors of a text its latent semantic analysis, see `analyze`."""
        assert isinstance(adapter, WordInput)
        counts = [
            Counter(self.read(cell, Path()).flatten().tolist()) for cell, _ in zip(cells, range(SAMPLE), strict=False)
        ]
        vectors = analyze(counts, self.hashes, self.width)
        with torch.no_grad():
            adapter.embedding.weight[:, : vectors.shape[1]] = vectors

    def draw(self, cell: Any, root: Path, weights: Tensor | None = None) -> str:
        """Returns the text with the words that are read on a background of their weight; others are pale.

        The first weight is that of the text as a whole.
        """
        text, lower = str(cell), str(cell).lower()
        text = text if len(lower) == len(text) else lower  # a few letters become two
        places = [match.span() for match in WORD.finditer(lower)][: self.length]
        shares = [0.0] * len(places) if weights is None else weights[1:].tolist()
        largest = max(shares, default=0.0)
        parts, end = list[str](), 0
        for (first, last), share in zip(places, shares, strict=False):
            parts += [html.escape(text[end:first]), draw_shaded(text[first:last], share, largest)]
            end = last
        rest = text[end:].strip()
        if rest:
            rest = rest if len(rest) <= LONGEST_REST else f"{rest[:LONGEST_REST]} ..."
            parts.append(f' <span class="quiet" title="not read">{html.escape(rest)}</span>')
        whole = "" if weights is None else f'<span class="quiet">the text as a whole: {float(weights[0]):.1%}</span>'
        return f'<div class="text" dir="auto">{"".join(parts)}</div>{whole}'


class MaskedText(Column):
    """A text whose hidden bytes are predicted: those that a cell gives as [MASK] or, of nine bytes, [MASK*9].

    Training hides bytes at random (section 4.1).

    Args:
        length: most bytes that are read; learned: the longest of the training cells, at most `longest`.
        longest: most bytes that are learned as length.
        fraction: of the bytes that training and evaluation hide.
    """

    kind = "masked_text"
    is_continued = True
    mask: ClassVar[int] = 256

    def __init__(self, length: Count | None = None, longest: Count = 512, fraction: Fraction = 0.15) -> None:
        self.length, self.longest, self.fraction = length, longest, fraction

    def learn(self, cells: Iterable[Any], root: Path) -> Self:
        longest = max((len(encode(str(cell))) for cell in cells), default=1)
        return self.change(length=self.length or min(longest, self.longest))

    def read(self, cell: Any, root: Path) -> Tensor:
        """Returns the bytes [M], 256 for hidden ones."""
        if not isinstance(cell, str):
            raise self.refuse(cell, "a text")
        found: list[int] = []
        for part in re.split(r"(\[MASK(?:\*[1-9]\d{0,3})?\])", cell):
            count = re.fullmatch(r"\[MASK(?:\*([1-9]\d{0,3}))?\]", part)
            found += list(encode(part)) if count is None else [self.mask] * int(count[1] or 1)
        return torch.tensor(found[: self.length], dtype=torch.long)

    def blank(self, is_target: bool = False) -> Tensor:
        return torch.tensor([[self.mask, 0]] if is_target else [self.mask])

    def hide(self, value: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns the bytes with some hidden, and [M, 2]: all bytes, and which of them were hidden here."""
        chosen = torch.rand(len(value), generator=generator) < self.fraction
        chosen[torch.randint(len(value), (), generator=generator)] = True
        chosen &= value != self.mask
        return torch.where(chosen, self.mask, value), torch.stack([value, chosen.long()], 1)

    def collate(self, values: Sequence[Tensor]) -> InputArray:
        return pad(values)

    def input_adapter(self, channels: int) -> InputAdapter:
        return TextInput(257, self.length or 1, channels)

    def output_adapter(self, name: str, channels: int) -> TextOutput:
        return TextOutput(name)

    def loss(self, predicted: Tensor, target: InputArray, points: Tensor | None = None) -> Tensor:
        byte_BM, hidden_BM = target.x_BMC.unbind(-1)
        loss_BM = F.cross_entropy(predicted.mT, byte_BM, reduction="none") * hidden_BM
        return loss_BM.sum(1) / hidden_BM.sum(1).clamp_min(1)

    def answer(self, predicted: Tensor) -> Tensor:
        """Returns the logits of the bytes [B, M, V]."""
        return predicted.float()

    def complete(self, answers: Tensor, values: InputArray, missing_B: Tensor) -> Tensor:
        """Makes the logits certain of bytes that are shown, and of no byte after the end of a text."""
        byte_BM, mask_BM = values.x_BMC, values.mask_BM
        is_real_BM = ~missing_B[:, None] if mask_BM is None else mask_BM & ~missing_B[:, None]
        byte_BM = torch.where(is_real_BM, byte_BM, self.mask)
        certain_BMV = CERTAIN * F.one_hot(byte_BM, answers.shape[-1]).to(answers)
        is_guess_BM1 = ((byte_BM == self.mask) & is_real_BM)[..., None]
        return torch.where(is_guess_BM1, answers - certain_BMV, certain_BMV)

    def truth(self, target: InputArray) -> Tensor:
        return target.x_BMC

    def metrics(self) -> dict[str, Metric]:
        """Returns the accuracy of hidden bytes, and their cross-entropy in bits."""
        return {"accuracy": HiddenBytes("accuracy"), "bits": HiddenBytes("bits")}

    def write(self, answers: Tensor) -> list[list[Any]]:
        """Returns texts, without the places after their ends."""
        bytes_BM = answers.argmax(-1).tolist()
        return [[bytes(byte for byte in row if byte != self.mask).decode(errors="replace")] for row in bytes_BM]

    def draw(self, cell: Any, root: Path, weights: Tensor | None = None) -> str:
        """Returns the characters that are read on a background of their weight; hidden bytes have a frame."""
        byte_M = self.read(cell, root).tolist()
        shares = [0.0] * len(byte_M) if weights is None else weights.tolist()
        units = list[tuple[str, float]]()  # characters, "" for a hidden byte
        content, share = b"", 0.0
        for index, (byte, weight) in enumerate(zip(byte_M, shares, strict=False)):
            if byte == self.mask:
                units.append(("", weight))
                continue
            content, share = content + bytes([byte]), share + weight
            after = byte_M[index + 1] if index + 1 < len(byte_M) else self.mask
            if after == self.mask or not 0x80 <= after < 0xC0:  # not within a character
                units.append((content.decode(errors="replace"), share))
                content, share = b"", 0.0
        largest = max((weight for _, weight in units), default=0.0)
        parts = [
            draw_shaded(text, weight, largest) if text else f"<i>{draw_shaded('▒', weight, largest)}</i>"
            for text, weight in units
        ]
        return f'<div class="text" dir="auto">{"".join(parts)}</div>'


class HiddenBytes(MeanMetric):
    """The accuracy of bytes that were hidden, or their cross-entropy in bits.

    Args:
        kind: "accuracy" or "bits".
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def update(self, logits_BMV: Tensor, target_BM2: Tensor) -> None:  # type: ignore[override]
        byte_BM, hidden_BM = target_BM2.unbind(-1)
        if self.kind == "accuracy":
            value_BM = (logits_BMV.argmax(-1) == byte_BM).float()
        else:
            value_BM = F.cross_entropy(logits_BMV.mT, byte_BM, reduction="none") / np.log(2)
        super().update(value_BM, hidden_BM)


def encode(text: str) -> bytes:
    """Returns a text as UTF-8, also with halves of pairs that JSON may have."""
    return text.encode(errors="surrogatepass")


def analyze(counts: Sequence[Counter[int]], hashes: int, width: int) -> Tensor:
    """Returns vectors of hashes [hashes, at most width] by the latent semantic analysis of texts.

    They are the principal directions of the texts' TF-IDF (Deerwester et al., 1990), times the inverse document
    frequency, so that their sum over a text is its place along these directions, with a standard deviation of 1.
    """
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    pairs = [(row, key, np.sqrt(n)) for row, count in enumerate(counts) for key, n in count.items() if key]
    rows, keys, values = zip(*pairs, strict=True) if pairs else ((), (), ())
    table = csr_matrix((values, (rows, keys)), shape=(len(counts), hashes))
    components = min(width, len(counts) - 1)
    if components < 1 or not pairs:
        return torch.zeros(hashes, 0)
    weights = TfidfTransformer().fit(table)
    places = TruncatedSVD(components, random_state=0).fit(weights.transform(table))
    vectors = places.components_.T * weights.idf_[:, None]
    spread = np.sqrt(np.mean(np.square(table @ vectors))) or 1.0
    return torch.from_numpy((vectors / spread).astype(np.float32))


def hash_words(words: Sequence[str], hashes: int) -> Tensor:
    """Returns the hashes [M, H] from 1 of each word, of its parts, and of it with the word before it; 0 for none."""
    found = np.zeros((len(words), MOST_HASHES), dtype=np.int32)
    before = ""
    for row, word in zip(found, words, strict=True):
        padded = f"<{word}>"
        parts = [padded[i : i + n] for n in NGRAMS for i in range(len(padded) - n + 1)]
        keys = [f"w {word}", f"p {before} {word}", *parts][:MOST_HASHES]
        row[: len(keys)] = [crc32(encode(key)) % (hashes - 1) + 1 for key in keys]
        before = word
    return torch.from_numpy(found)


def pad(values: Sequence[Tensor]) -> InputArray:
    """Pads values of different lengths with zeros; -> [B, longest, ...] and their mask."""
    lengths = torch.tensor([len(value) for value in values])
    padded = pad_sequence(list(values), batch_first=True)
    return InputArray(padded, torch.arange(padded.shape[1]) < lengths[:, None])
