"""Tokenizers: bytes in UTF-8 (tables 5 and 6), or SentencePiece (table 7).

Shape suffixes: B batch, M tokens, V vocabulary
"""

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perceivers.checkpoints.load import locate
from perceivers.errors import PerceiversError
from perceivers.extras import require_extra
from perceivers.files import require_file
from perceivers.model.saving import TOKENIZER, Model, atomic_write

PAD, BOS, EOS, MASK, CLS, SEP = range(6)
"""The special tokens of the byte vocabulary."""

FIRST_BYTE, BYTE_VOCABULARY = 6, 6 + 256
"""The token of byte 0, and the number of tokens."""

SPACE = "▁"
"""White space in SentencePiece's pieces."""

LINES, LINE = 500_000, 256
"""Maximum number and bytes of lines that SentencePiece is trained on: 128 MB of text."""

SPACES = [character.encode() for character in map(chr, range(0x10000)) if character.isspace()]
"""White space in UTF-8, one to three bytes each."""

WIDE_SPACES = {
    first: np.array([first + bytes([last]) in SPACES for last in range(256)])
    for first in {space[:-1] for space in SPACES if len(space) > 1}
}
"""White space of several bytes: for its first bytes, whether each last byte completes it."""

NAMES = (("<pad>", "[PAD]"), ("[MASK]", "<mask>"), ("[CLS]", "<cls>", "<s>"), ("[SEP]", "<sep>", "</s>"))
"""Usual names of the special tokens: pad, mask, cls, sep."""


class Tokenizer(ABC):
    """Base of tokenizers.

    Attributes:
        size: V, number of tokens, special ones included.
        pad, mask, cls, sep: special tokens.
        byte_counts_V: bytes of text of each token, without white space; 0 for special ones.
    """

    size: int
    pad: int
    mask: int
    cls: int
    sep: int
    byte_counts_V: NDArray[np.int64]

    @abstractmethod
    def encode(self, text: str) -> NDArray[np.int32]:
        """Returns tokens [M], without special ones; raises a PerceiversError if the text is not valid Unicode."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, without special ones; invalid UTF-8 is replaced by a mark."""

    @abstractmethod
    def words(self, token_BM: NDArray[Any]) -> NDArray[np.int32]:
        """Returns the word index [B, M] of each token, from 0 in each row; -1 outside of words.

        Words are delimited by white space or special tokens; a row may begin and end within one.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes to the folder of a saved model what `find_tokenizer` needs."""


class Bytes(Tokenizer):
    """The bytes of a text in UTF-8, after 6 special tokens.

    White space is defined by `str.isspace`. If a row has only some of the bytes of a white-space character, they belong
    to a word; `byte_counts_V` counts white space of several bytes as text.
    """

    def __init__(self) -> None:
        self.size = BYTE_VOCABULARY
        self.pad, self.mask, self.cls, self.sep = PAD, MASK, CLS, SEP
        self.outside_V = np.zeros(BYTE_VOCABULARY, dtype=np.bool_)
        self.outside_V[:FIRST_BYTE] = True
        self.outside_V[[FIRST_BYTE + space[0] for space in SPACES if len(space) == 1]] = True
        self.byte_counts_V = (~self.outside_V).astype(np.int64)
        self.separators = [token for token in np.flatnonzero(self.outside_V).tolist() if token != MASK]

    def encode(self, text: str) -> NDArray[np.int32]:
        check_unicode(text)
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) + FIRST_BYTE

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token - FIRST_BYTE for token in tokens if token >= FIRST_BYTE).decode(errors="replace")

    def words(self, token_BM: NDArray[Any]) -> NDArray[np.int32]:
        outside_BM = self.outside_V[token_BM]
        if token_BM.size and token_BM.max() >= FIRST_BYTE + 0x80:
            byte_BM = (token_BM - FIRST_BYTE).astype(np.uint8)  # special tokens become bytes that UTF-8 never has
            for first, last_256 in WIDE_SPACES.items():
                count = len(first)
                found = byte_BM[:, :-count] == first[0]
                for index in range(1, count):
                    found &= byte_BM[:, index : index - count] == first[index]
                if found.any():
                    found &= last_256[byte_BM[:, count:]]
                    for index in range(count + 1):
                        outside_BM[:, index : index + found.shape[1]] |= found
        return count_words(outside_BM)

    def save(self, folder: Path) -> None:
        """Writes nothing: bytes need no file."""


class SentencePiece(Tokenizer):
    """The pieces of a SentencePiece model, written by `train_tokenizer` or another, such as T5's.

    The amount and kind of white space is not encoded; "▁" counts as white space. Special tokens are found by their
    usual names; missing ones follow the file's last token.

    Raises:
        PerceiversError: the file does not exist or is not a SentencePiece model.
    """

    def __init__(self, file: str | Path) -> None:
        require_extra("text")
        from sentencepiece import SentencePieceProcessor

        advice = "give 'bytes', or a file that perceivers train-tokenizer wrote"
        try:
            self.content = require_file(file).read_bytes()
            self.pieces = SentencePieceProcessor(model_proto=self.content or b"empty")  # no bytes would mean no model
            names = [self.pieces.id_to_piece(token) for token in range(self.pieces.get_piece_size())]
        except OSError as error:
            raise PerceiversError(f"{file} cannot be read as a tokenizer ({error.strerror}): {advice}.") from error
        except (RuntimeError, UnicodeDecodeError) as error:  # its message may quote the file
            raise PerceiversError(f"{file} is damaged or not a SentencePiece model: {advice}.") from error
        tokens = {name: token for token, name in enumerate(names)}
        self.size, special = len(names), []
        for usual in NAMES:
            found = next((tokens[name] for name in usual if name in tokens), self.size)
            self.size = max(self.size, found + 1)
            special.append(found)
        self.pad, self.mask, self.cls, self.sep = special
        self.special_V = np.ones(self.size, dtype=np.bool_)
        self.special_V[: len(names)] = [self.pieces.is_control(token) for token in range(len(names))]
        self.special_V[special] = True
        self.begins_V = np.zeros(self.size, dtype=np.bool_)
        self.byte_counts_V = np.zeros(self.size, dtype=np.int64)
        for token in np.flatnonzero(~self.special_V).tolist():
            if self.pieces.is_byte(token):
                self.byte_counts_V[token] = 1
            elif not self.pieces.is_unknown(token):  # the unknown token may stand for any text
                self.begins_V[token] = names[token].startswith(SPACE)
                self.byte_counts_V[token] = len(names[token].replace(SPACE, "").encode())

    def encode(self, text: str) -> NDArray[np.int32]:
        check_unicode(text)
        return np.array(self.pieces.encode(normalize(text)), dtype=np.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.pieces.decode([int(token) for token in tokens if not self.special_V[token]]))

    def words(self, token_BM: NDArray[Any]) -> NDArray[np.int32]:
        return count_words(self.special_V[token_BM], self.begins_V[token_BM])

    def save(self, folder: Path) -> None:
        atomic_write(folder / TOKENIZER, lambda file: file.write_bytes(self.content))


def count_words(outside_BM: NDArray[np.bool_], begins_BM: NDArray[np.bool_] | None = None) -> NDArray[np.int32]:
    """Returns the word index [B, M] of each token, from 0 in each row; -1 outside of words.

    Args:
        outside_BM: whether a token is outside of words.
        begins_BM: whether a token begins a word, besides those at the start of a row or after one outside of words.
    """
    start_BM = ~outside_BM
    start_BM[:, 1:] &= outside_BM[:, :-1] if begins_BM is None else outside_BM[:, :-1] | begins_BM[:, 1:]
    word_BM = np.cumsum(start_BM, axis=1, dtype=np.int32)
    word_BM -= 1
    word_BM[outside_BM] = -1
    return word_BM


def check_unicode(text: str) -> None:
    """Raises a PerceiversError if a text has half a surrogate pair, which UTF-8 cannot represent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character = f"character {error.start} is {text[error.start]!a}"
        raise PerceiversError(f"the text cannot be written in UTF-8: {character}.") from error


def normalize(text: str) -> str:
    """Returns the words of a text, separated by single blanks."""
    return " ".join(text.replace(SPACE, " ").split())


def open_tokenizer(name: str | Path) -> Tokenizer:
    """Returns the tokenizer of a name: "bytes", or the file of a SentencePiece model."""
    return Bytes() if str(name) == "bytes" else SentencePiece(name)


def find_tokenizer(folder: Path, vocabulary: int) -> Tokenizer:
    """Returns the tokenizer of a saved model, or bytes; raises a PerceiversError if it has not that many tokens."""
    file = folder / TOKENIZER
    tokenizer = SentencePiece(file) if file.exists() else Bytes()
    if tokenizer.size != vocabulary:
        problem = f"{file} has {tokenizer.size} tokens, but the model in {folder} has {vocabulary}"
        if isinstance(tokenizer, Bytes):
            problem = (
                f"{folder} has no {TOKENIZER}, and the model's {vocabulary} tokens are not bytes ({tokenizer.size})"
            )
        raise PerceiversError(f"{problem}: copy the model's own tokenizer to {file}.")
    return tokenizer


def train_tokenizer(texts: Iterable[str], file: Path, vocabulary: int = 32000) -> None:
    """Trains a unigram SentencePiece model with byte fallback, so that no text is lost.

    Texts are cut into lines of at most 256 bytes, of which at most 500,000 are sampled; the same texts give the same
    file.

    The vocabulary includes 7 special tokens and 256 bytes.

    Raises:
        PerceiversError: the vocabulary is too large or too small for the texts, or a text cannot be read.
    """
    require_extra("text")
    from sentencepiece import SentencePieceTrainer

    content, failures = io.BytesIO(), list[BaseException]()

    def lines() -> Iterator[str]:
        """Keeps exceptions: SentencePiece passes on only their message."""
        try:
            for text in texts:
                check_unicode(text)
                yield from split_lines(text)
        except (Exception, KeyboardInterrupt) as error:
            failures.append(error)
            raise

    try:
        SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=content,
            model_type="unigram",
            vocab_size=vocabulary,
            input_sentence_size=LINES,
            shuffle_input_sentence=True,  # a random sample, always the same
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            control_symbols=["[MASK]", "[CLS]", "[SEP]"],  # they get the first free ids: 3, 4, 5
            unk_id=6,
            num_threads=16,  # the result depends on it
            minloglevel=2,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        raise PerceiversError(explain_failure(str(error), vocabulary)) from error
    atomic_write(file, lambda path: path.write_bytes(content.getvalue()))


def split_lines(text: str) -> Iterator[str]:
    """Yields the lines of a text, normalized, in parts of at most `LINE` bytes, cut between words if possible."""
    for line in text.splitlines():
        rest = normalize(line).encode()
        start = 0
        while len(rest) - start > LINE:
            end = rest.rfind(b" ", start + 1, start + LINE + 1)
            if end < 0:
                end = start + LINE
                while rest[end] & 0xC0 == 0x80:  # within a character
                    end -= 1
            yield rest[start:end].decode()
            start = end + (rest[end] == ord(" "))
        if start < len(rest):
            yield rest[start:].decode()


def explain_failure(message: str, vocabulary: int) -> str:
    """Returns an error message in plain words for SentencePiece's."""
    if largest := re.search(r"value <= (\d+)", message):
        return f"there is too little text for {vocabulary} tokens: give more, or ask for at most {largest[1]}."
    if smallest := re.search(r"required_chars\. -?\d+ vs (\d+)", message):
        return f"{vocabulary} tokens are too few: special ones, bytes and the characters of the text are {smallest[1]}."
    if vocabulary < 1:
        return f"a vocabulary of {vocabulary} tokens is not allowed: it must be at least 263, special ones and bytes."
    if "sentences_.empty()" in message:
        return "there is no text to train a tokenizer on: give some with words."
    return f"SentencePiece cannot train a tokenizer on this text: {message}"


def bytes_per_token(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """Returns the average bytes of text of a token, without white space; 0 without any text."""
    counts = [tokenizer.byte_counts_V[tokenizer.encode(text)] for text in texts]
    return sum(int(count_M.sum()) for count_M in counts) / max(sum(map(len, counts)), 1)


def tokenizer_of(model: Model | str | Path, vocabulary: int) -> Tokenizer:
    """Returns the tokenizer of a model, or of anything that `perceivers.load` takes, see `find_tokenizer`."""
    if not isinstance(model, Model):
        return find_tokenizer(locate(model), vocabulary)
    if vocabulary != BYTE_VOCABULARY:
        raise PerceiversError(
            f"the model's {vocabulary} tokens are not bytes ({BYTE_VOCABULARY}): "
            f"give the folder of the saved model, with its tokenizer, instead of the model."
        )
    return Bytes()
