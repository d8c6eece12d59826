import numpy as np
import pytest

from perceivers.text.masking import IGNORE_INDEX, mask_words
from perceivers.text.tokenizers import Bytes, SentencePiece, train_tokenizer
from tests.support.pretraining import sample
from tests.text.test_tokenizers import crop

SPACES = [" ", "\n", "\u3000", "\xa0", "\u2003", "\r\n"]
WORDS = ["a", "plain", "œuvre", "русский", "日本語の", "文", "हिन्दी", "🙂🙃", "été,"]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(sample(), file, 400)
    return SentencePiece(file)


def multilingual(count, seed=0):
    choose = np.random.default_rng(seed)
    return "".join(str(choose.choice(WORDS)) + str(choose.choice(SPACES)) for _ in range(count))


def windows(tokenizer, text, length):
    """Without regard for where a character ends."""
    token_M = tokenizer.encode(text)
    return token_M[: len(token_M) // length * length].reshape(-1, length)


def letters(sizes):
    """Words of these many letters with a blank behind each, as bytes [M]."""
    return Bytes().encode("".join("x" * size + " " for size in sizes))


def mask(token_BM, rate, places, seed=0, tokenizer=None):
    return mask_words(token_BM, tokenizer or Bytes(), rate, places, np.random.default_rng(seed))


def within(count, total, rate):
    """Whether a count is binomial, within 4 standard errors."""
    return abs(count - total * rate) <= 4 * np.sqrt(total * rate * (1 - rate))


def test_words_of_any_writing_are_hidden_whole():
    text, length = multilingual(3000), 61
    token_BM = windows(Bytes(), text, length)
    content = text.encode()
    assert any(content[row * length] & 0xC0 == 0x80 for row in range(len(token_BM))), "cut within a character"
    hidden_BM = mask(token_BM, 0.3, 20).token_BM == Bytes().mask
    whole = 0
    for row, hidden_M in enumerate(hidden_BM):
        word_M = np.array(crop(text, row * length, (row + 1) * length))
        assert not hidden_M[word_M < 0].any()
        for word in range(word_M.max() + 1):
            assert len(set(hidden_M[word_M == word])) == 1, (row, word)
            whole += hidden_M[word_M == word].all()
    assert whole > 600


def test_pieces_of_words_are_hidden_whole(pieces):
    token_BM = windows(pieces, " ".join(sample(60)), 24)
    masked = mask(token_BM, 0.3, 12, tokenizer=pieces)
    begins_BM = np.array([[pieces.pieces.id_to_piece(int(token)).startswith("▁") for token in row] for row in token_BM])
    begins_BM[:, 0] = True
    word_BM = begins_BM.cumsum(1)
    hidden_BM = masked.token_BM == pieces.mask
    for hidden_M, word_M in zip(hidden_BM, word_BM, strict=True):
        assert all(len(set(hidden_M[word_M == word])) == 1 for word in set(word_M))
    assert 0.15 < hidden_BM.mean() < 0.35
    assert (np.unique(word_BM[hidden_BM], return_counts=True)[1] > 1).any()


def test_each_word_is_hidden_at_the_rate_whatever_its_neighbors_and_its_length_are():
    rate, sizes = 0.15, [1, 4, 9, 2] * 5
    token_BM = np.tile(letters(sizes), (2000, 1))
    starts = np.cumsum([0, *(size + 1 for size in sizes)])[:-1]
    hidden_BW = (mask(token_BM, rate, token_BM.shape[1]).token_BM == Bytes().mask)[:, starts]
    assert within(hidden_BW.sum(), hidden_BW.size, rate)
    for kind in range(4):
        assert within(hidden_BW[:, kind::4].sum(), hidden_BW[:, kind::4].size, rate)
    both = hidden_BW[:, 1:] & hidden_BW[:, :-1]
    assert within(both.sum(), both.size, rate**2)  # of neighbors
    both = hidden_BW[1:] & hidden_BW[:-1]
    assert within(both.sum(), both.size, rate**2)  # in neighboring rows


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_places_and_labels_give_the_text_back(pieces, kind):
    tokenizer = Bytes() if kind == "bytes" else pieces
    token_BM = windows(tokenizer, multilingual(1000), 50)
    masked = mask(token_BM, 0.15, 10, tokenizer=tokenizer)
    assert masked.index_BP.shape == masked.label_BP.shape == (len(token_BM), 10)
    assert {array.dtype for array in masked} == {np.dtype(np.int32)}
    restored_BM = masked.token_BM.copy()
    for row, (place_P, label_P) in enumerate(zip(masked.index_BP, masked.label_BP, strict=True)):
        hidden = np.flatnonzero(masked.token_BM[row] == tokenizer.mask)
        count = len(hidden)
        assert place_P.tolist() == hidden.tolist() + [0] * (10 - count)
        assert (label_P[:count] != IGNORE_INDEX).all()
        assert (label_P[count:] == IGNORE_INDEX).all()
        restored_BM[row, hidden] = label_P[:count]
    assert np.array_equal(restored_BM, token_BM)
    assert {int((row != IGNORE_INDEX).sum()) for row in masked.label_BP} >= {0, 5, 10}


def test_of_too_many_words_any_are_left_out():
    """Ten words of three tokens, nearly all drawn, with room for four and a bit: each is kept equally often."""
    token_BM = np.tile(letters([3] * 10), (3000, 1))
    hidden_BM = mask(token_BM, 0.999, 14).token_BM == Bytes().mask
    assert (hidden_BM.sum(1) == 12).all()
    hidden_BW = hidden_BM[:, ::4]
    for word in range(10):
        assert within(hidden_BW[:, word].sum(), 3000, 0.4)


def test_where_a_long_word_has_no_room_a_short_one_has():
    token_BM = np.tile(letters([6, 2]), (200, 1))
    hidden_BM = mask(token_BM, 0.999, 7).token_BM == Bytes().mask
    assert {tuple(row) for row in hidden_BM[:, [0, 7]].tolist()} == {(True, False), (False, True)}


def test_a_word_longer_than_the_bound_stays():
    token_BM = np.tile(letters([9, 3]), (100, 1))
    masked = mask(token_BM, 0.999, 8)
    hidden_BM = masked.token_BM == Bytes().mask
    assert not hidden_BM[:, :9].any()
    assert hidden_BM[:, 10:13].sum() > 280
    assert masked.label_BP.shape == (100, 8)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_special_tokens_are_never_hidden(pieces, kind):
    tokenizer = Bytes() if kind == "bytes" else pieces
    words = tokenizer.encode("word")
    special = [tokenizer.cls, tokenizer.sep, tokenizer.pad]
    token_M = np.concatenate([[tokenizer.cls], words, [tokenizer.sep], words, [tokenizer.sep, tokenizer.pad]])
    masked = mask(np.tile(token_M, (50, 1)), 0.5, len(token_M), tokenizer=tokenizer)
    assert not np.isin(masked.label_BP, special).any()
    places = np.isin(token_M, special)
    assert (masked.token_BM[:, places] == token_M[places]).all()
    alone = masked.token_BM[:, 1] != masked.token_BM[:, 2 + len(words)]
    assert alone.any(), "the separator delimits words"


def test_the_same_generator_hides_the_same():
    token_BM = windows(Bytes(), multilingual(500), 50)
    first, again, other = (mask(token_BM, 0.15, 10, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.token_BM, other.token_BM)
