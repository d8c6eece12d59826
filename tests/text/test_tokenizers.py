import hashlib
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from perceivers import PerceiversError
from perceivers.cli import main
from perceivers.text import tokenizers
from perceivers.text.stream import TextData
from perceivers.text.tokenizers import (
    FIRST_BYTE,
    MASK,
    SEP,
    Bytes,
    SentencePiece,
    bytes_per_token,
    find_tokenizer,
    open_tokenizer,
    split_lines,
    train_tokenizer,
)
from tests.support.cli import fails
from tests.support.pretraining import sample

SPACES = " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2005\u200a\u2028\u2029\u202f\u205f\u3000"
LETTERS = (
    "aZ09.-\x00éßÂжאबไ中あ🙂𐍈\u200b\u200d\u2060\ufeff\u180e\u2581\u0300\u00c2\u0080\u0086\u00a1\u3001\u2010\u201f\u2030"
)
TEXTS = st.text(st.one_of(st.sampled_from(SPACES), st.sampled_from(LETTERS), st.characters(codec="utf-8")), max_size=40)
SPACE = "\u3000".encode()
SCRIPTS = [
    "plain words here",
    "naïve œuvre d'été",
    "русский текст",
    "日本語の　文章。",
    "עברית ועוד",
    "हिन्दी पाठ",
    "🙂🙃 ok",
]


def words_of(text):
    """For each byte of a text the index of its word, or -1: slowly, character by character."""
    words, count, inside = [], 0, False
    for character in text:
        space = character.isspace()
        count += not space and not inside
        inside = not space
        words += [-1 if space else count - 1] * len(character.encode())
    return words


def crop(text, start, end):
    """The words of a part of the bytes, counted from 0; a part of a white-space character is a word."""
    content, spaces, place = text.encode(), [], 0
    for character in text:
        size = len(character.encode())
        spaces += [character.isspace() and start <= place and place + size <= end] * size
        place += size
    words, count = [], 0
    for place in range(start, min(end, len(content))):
        count += not spaces[place] and (place == start or spaces[place - 1])
        words.append(-1 if spaces[place] else count - 1)
    return words


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "words.model"
    train_tokenizer(sample(), path, 400)
    return path


@pytest.fixture(scope="module")
def pieces(file):
    return SentencePiece(file)


def foreign(path, **settings):
    """A SentencePiece model as others train it."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample()), model_writer=content, vocab_size=100, minloglevel=2, **settings
    )
    path.write_bytes(content.getvalue())
    return path


def test_bytes_of_a_text():
    tokenizer = Bytes()
    assert tokenizer.size == 262
    assert (tokenizer.pad, tokenizer.mask, tokenizer.cls, tokenizer.sep) == (0, 3, 4, 5)
    tokens = tokenizer.encode("aé ")
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [6 + 0x61, 6 + 0xC3, 6 + 0xA9, 6 + 0x20]
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([4, *tokens, 3, 6 + 0xC3, 6 + 0x62, 5, 0]) == "aé \ufffdb"
    counts = tokenizer.byte_counts_V
    assert (counts.dtype, counts.shape, counts.sum()) == (np.int64, (262,), 256 - 10)
    assert counts[:6].tolist() == [0] * 6
    assert [byte for byte in range(256) if not counts[6 + byte]] == [*range(9, 14), *range(28, 33)]


def test_words_of_bytes():
    text = "\tfirst  s\u3000t\u00a0"
    got = Bytes().words(Bytes().encode(text)[None])
    assert got.dtype == np.int32
    assert got.tolist() == [[-1, 0, 0, 0, 0, 0, -1, -1, 1, -1, -1, -1, 2, -1, -1]]


def test_special_tokens_divide_words():
    row = [4, *Bytes().encode("ab"), MASK, *Bytes().encode("c d"), SEP, SEP, *Bytes().encode("\xe9"), 0, 0]
    assert Bytes().words(np.array([row])).tolist() == [[-1, 0, 0, -1, 1, -1, 2, -1, -1, 3, 3, -1, -1]]
    broken = [FIRST_BYTE + 0xE3, MASK, FIRST_BYTE + 0x80, FIRST_BYTE + 0x80]
    assert Bytes().words(np.array([broken])).tolist() == [[0, -1, 1, 1]]


@settings(deadline=None)
@given(TEXTS)
@example(SPACES)
@example(LETTERS)
@example("".join(letter + space for letter, space in zip(LETTERS, SPACES, strict=False)))
def test_words_of_bytes_are_those_that_white_space_divides(text):
    (got,) = Bytes().words(Bytes().encode(text)[None]).tolist()
    assert got == words_of(text)
    assert max(got, default=-1) + 1 == len(text.split())


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(0, 30), st.integers(1, 40))
def test_words_of_windows_cut_anywhere(texts, start, width):
    rows, want = [], []
    for text in texts:
        row = Bytes().encode(text)[start : start + width].tolist()
        words = crop(text, start, start + width)
        assert len(row) == len(words)
        rows.append(row + [0] * (width - len(row)))
        want.append(words + [-1] * (width - len(row)))
    assert Bytes().words(np.array(rows)).tolist() == want


@pytest.mark.parametrize("text", SCRIPTS)
def test_words_of_windows_are_those_of_the_text(text):
    whole = words_of(text)
    content, token_M = text.encode(), Bytes().encode(text)
    for start in range(len(whole)):
        for end in range(start, len(whole) + 1):
            cut_off = [content[:start], content[:end]]
            if any(SPACE[:count] == part[-count:] for part in cut_off for count in (1, 2)):
                continue  # through a space of three bytes
            part = [word - min(word for word in whole[start:] if word >= 0) for word in whole[start:end] if word >= 0]
            want = [-1 if word < 0 else part.pop(0) for word in whole[start:end]]
            assert Bytes().words(token_M[None, start:end]).tolist() == [want]


def test_no_window_is_too_small():
    for width in range(4):
        assert Bytes().words(np.full((2, width), FIRST_BYTE + 0xE3)).tolist() == [[0] * width] * 2
        assert Bytes().words(np.zeros((0, width), dtype=np.int32)).shape == (0, width)


def test_words_are_found_by_operations_on_arrays():
    text = "Les œuvres d'été — naïves。日本語の\u3000文章\u00a0и русский текст " * 300
    token_BM = Bytes().encode(text)[: 512 * 30].reshape(-1, 512)

    def count_calls(token_BM):
        calls = []
        sys.setprofile(lambda frame, event, argument: calls.append(event) if "call" in event else None)
        try:
            Bytes().words(token_BM)
        finally:
            sys.setprofile(None)
        return len(calls)

    assert count_calls(token_BM) == count_calls(token_BM[:2]) < 1000


def test_half_a_character_is_no_text(pieces):
    for tokenizer in (Bytes(), pieces):
        with pytest.raises(PerceiversError, match=r"cannot be written in UTF-8: character 2 is '\\udc80'"):
            tokenizer.encode("ab\udc80")


def test_special_pieces(pieces, file):
    assert (pieces.content, pieces.size) == (file.read_bytes(), 400)
    assert (pieces.pad, pieces.mask, pieces.cls, pieces.sep) == (0, 3, 4, 5)
    assert [pieces.pieces.id_to_piece(token) for token in range(8)] == [
        *("<pad>", "<s>", "</s>", "[MASK]", "[CLS]", "[SEP]", "<unk>", "<0x00>")
    ]
    text = "[MASK] <pad> </s> [CLS]"
    assert pieces.encode(text).min() > 6
    assert pieces.decode([4, *pieces.encode(text), 3, 5, 0]) == text


@settings(deadline=None)
@given(text=TEXTS)
@example(text=SPACES + LETTERS)
@example(text="\x00")
def test_pieces_lose_no_text(pieces, text):
    tokens = pieces.encode(text)
    words = text.replace("▁", " ").split()
    assert tokens.dtype == np.int32
    assert pieces.decode(tokens) == " ".join(words)
    assert pieces.byte_counts_V[tokens].sum() == sum(len(word.encode()) for word in words)
    (got,) = pieces.words(tokens[None]).tolist()
    assert got == sorted(got)
    assert [
        pieces.decode([token for token, word in zip(tokens, got, strict=True) if word == index])
        for index in range(max(got, default=-1) + 1)
    ] == words


def test_known_words_are_few_pieces(pieces):
    tokens = pieces.encode(" ".join(sample(50)))
    assert not any(pieces.pieces.is_byte(token) for token in tokens.tolist())
    assert bytes_per_token(pieces, sample(50)) == pytest.approx(
        len("".join(sample(50)).replace(" ", "").encode()) / len(tokens)
    )
    assert bytes_per_token(pieces, sample(50)) > 2
    assert bytes_per_token(Bytes(), ["a b", "c"]) == 3 / 4
    assert bytes_per_token(pieces, [" "]) == 0


def test_words_of_pieces_in_windows(pieces):
    text = sample()[0]
    tokens = pieces.encode(text)
    whole = pieces.words(tokens[None])[0]
    assert whole.max() + 1 == 12
    for start in range(len(tokens)):
        assert pieces.words(tokens[None, start:]).tolist() == [(whole[start:] - whole[start]).tolist()]
    inside = next(place for place in range(1, len(tokens)) if whole[place] == whole[place - 1])
    row = [4, *tokens[:inside], MASK, *tokens[inside:], SEP, 0]
    want = [-1, *whole[:inside], -1, *(whole[inside:] + 1), -1, -1]  # the mask divides a word
    assert pieces.words(np.array([row])).tolist() == [want]


def test_the_same_texts_give_the_same_file(file, tmp_path, monkeypatch):
    code = (
        "import sys; from pathlib import Path; from perceivers.text.tokenizers import train_tokenizer\n"
        "from tests.text.test_tokenizers import sample; train_tokenizer(sample(), Path(sys.argv[1]), 400)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "other.model")]
    done = subprocess.run(command, check=True, capture_output=True)
    assert done.stdout + done.stderr == b""
    assert (tmp_path / "other.model").read_bytes() == file.read_bytes()
    monkeypatch.setattr(tokenizers, "LINES", 200)  # drawn at random
    digests = set()
    for _ in range(2):
        train_tokenizer(sample(), tmp_path / "drawn.model", 400)
        digests.add(hashlib.sha256((tmp_path / "drawn.model").read_bytes()).hexdigest())
    assert len(digests) == 1
    assert (tmp_path / "drawn.model").read_bytes() != file.read_bytes()


def test_long_texts_are_cut_and_used_whole(file, tmp_path):
    train_tokenizer(["\n".join(sample())], tmp_path / "document.model", 400)
    assert (tmp_path / "document.model").read_bytes() == file.read_bytes()
    train_tokenizer([" ".join(sample())], tmp_path / "line.model", 400)  # far longer than a line may be
    assert SentencePiece(tmp_path / "line.model").size == 400


@settings(deadline=None)
@given(TEXTS, st.integers(4, 12))
def test_cut_keeps_words_whole(text, longest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "LINE", longest)
        lines = list(split_lines(text))
        words = text.replace("▁", " ").split()
        assert all(0 < len(line.encode()) <= longest for line in lines)
        assert "".join(lines).replace(" ", "") == "".join(words)
        for word in words:
            assert len(word.encode()) > longest or any(word in line.split(" ") for line in lines)


def test_cut_fills_lines():
    (first, second) = split_lines("ab " * 100)
    assert (len(first), len(second)) == (254, 44)
    assert list(map(len, split_lines(f"a {'x' * 254} y"))) == [256, 1]
    assert list(map(len, split_lines("x" * 600))) == [256, 256, 88]
    assert [len(part.encode()) for part in split_lines("中" * 100)] == [255, 45]


def test_a_saved_tokenizer_is_found(pieces, tmp_path):
    pieces.save(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["tokenizer.model"]
    found = find_tokenizer(tmp_path / "model", 400)
    assert isinstance(found, SentencePiece)
    assert found.encode(sample()[0]).tolist() == pieces.encode(sample()[0]).tolist()
    Bytes().save(tmp_path / "bytes")
    assert isinstance(find_tokenizer(tmp_path / "bytes", 262), Bytes)
    assert isinstance(open_tokenizer("bytes"), Bytes)
    with pytest.raises(
        PerceiversError, match=r"model/tokenizer.model has 400 tokens, but the model in .* has 262: copy"
    ):
        find_tokenizer(tmp_path / "model", 262)
    with pytest.raises(
        PerceiversError, match=r"has no tokenizer.model, and the model's 400 tokens are not bytes \(262\)"
    ):
        find_tokenizer(tmp_path / "bytes", 400)


def test_a_tokenizer_goes_to_other_processes(pieces):
    copy = pickle.loads(pickle.dumps(pieces))
    assert copy.encode(sample()[0]).tolist() == pieces.encode(sample()[0]).tolist()
    assert copy.words(copy.encode("a b")[None]).tolist() == pieces.words(pieces.encode("a b")[None]).tolist()


def test_models_of_others(tmp_path):
    t5 = foreign(tmp_path / "t5.model", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    tokenizer = open_tokenizer(t5)
    assert tokenizer.size == 102
    assert (tokenizer.pad, tokenizer.mask, tokenizer.cls, tokenizer.sep) == (0, 100, 101, 1)
    tokens = tokenizer.encode("ab 🙂 c")
    assert tokens.max() < 100
    assert tokenizer.byte_counts_V[2] == 0  # unknown
    assert tokenizer.byte_counts_V[tokens].sum() == 3
    words = tokenizer.words(np.array([[101, *tokens, 100, 1]]))[0].tolist()
    assert (words[0], words[1], words[-3:]) == (-1, 0, [2, -1, -1])
    assert tokenizer.decode([101, *tokenizer.encode("ab c"), 100, 1, 0]) == "ab c"

    xlmr = open_tokenizer(foreign(tmp_path / "xlmr.model", model_type="bpe"))  # <unk> <s> </s>
    assert xlmr.size == 102
    assert (xlmr.pad, xlmr.mask, xlmr.cls, xlmr.sep) == (100, 101, 1, 2)

    albert = open_tokenizer(
        foreign(
            tmp_path / "albert.model",
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols=["[CLS]", "[SEP]"],
            user_defined_symbols=["[MASK]"],
        )
    )
    assert albert.size == 100
    assert (albert.pad, albert.cls, albert.sep, albert.mask) == (0, 2, 3, 4)
    assert albert.byte_counts_V[:5].tolist() == [0] * 5
    assert albert.words(np.array([[2, 50, 4, 50, 3]])).tolist() == [[-1, 0, -1, 1, -1]]


def test_files_that_are_no_tokenizer(file, tmp_path):
    with pytest.raises(PerceiversError, match=r"none.model is not a readable file"):
        open_tokenizer(tmp_path / "none.model")
    with pytest.raises(PerceiversError, match=r"is not a readable file"):
        open_tokenizer(tmp_path)
    for content in (b"", b"some text\n", file.read_bytes()[:-7]):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(PerceiversError, match=r"bad.model is damaged or not a SentencePiece model: give 'bytes'"):
            open_tokenizer(tmp_path / "bad.model")


def test_vocabularies_that_do_not_fit_the_text(tmp_path):
    path = tmp_path / "words.model"

    def told(vocabulary, texts):
        with pytest.raises(PerceiversError) as error:
            train_tokenizer(texts, path, vocabulary)
        assert not path.exists()
        return str(error.value)

    large = told(32000, sample(40))
    assert large.startswith("there is too little text for 32000 tokens: give more, or ask for at most ")
    small = told(263, sample(40))
    assert small.startswith("263 tokens are too few: special ones, bytes and the characters of the text are ")
    limits = [int(message.removesuffix(".").split()[-1]) for message in (small, large)]
    assert 263 + len(set("".join(sample(40)))) - 1 < limits[0] < limits[1] < 1000
    for vocabulary in limits:
        train_tokenizer(sample(40), path, vocabulary)
        assert SentencePiece(path).size == vocabulary
        path.unlink()
    assert "263 tokens are too few" not in told(264, ["a"])
    assert told(0, sample(40)) == (
        "a vocabulary of 0 tokens is not allowed: it must be at least 263, special ones and bytes."
    )
    for nothing in ([], ["", " \n▁"]):
        assert told(400, nothing) == "there is no text to train a tokenizer on: give some with words."
    assert "character 1 is '\\ud800'" in told(400, [*sample(), "a\ud800"])


def test_what_interrupts_the_texts_is_passed_on(file, tmp_path, capfd):
    def texts(error):
        yield from sample()
        raise error

    path = tmp_path / "words.model"
    path.write_bytes(file.read_bytes())
    for error in (PerceiversError("broken file"), KeyboardInterrupt(), ZeroDivisionError()):
        with pytest.raises(type(error)) as raised:
            train_tokenizer(texts(error), path, 400)
        assert raised.value is error
    assert path.read_bytes() == file.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["words.model"]
    assert capfd.readouterr() == ("", "")


def test_the_command_writes_a_tokenizer(tmp_path, capfd):
    file = tmp_path / "same.model"
    (tmp_path / "text").mkdir()
    for part in range(3):
        lines = sample()[100 * part : 100 * (part + 1)]
        (tmp_path / "text" / f"{part}.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "words.model"
    out.write_text("an earlier one")
    with out.open() as earlier:
        main(["train-tokenizer", str(tmp_path / "text"), "--out", str(out), "--vocabulary", "400"])
        assert earlier.read() == "an earlier one"  # whoever reads it meanwhile
    texts = list(TextData(path=str(tmp_path / "text")).all_documents())
    assert 0 < len(sample()[:300]) - len(texts) < 20  # some are held out
    train_tokenizer(texts, file, 400)
    average = bytes_per_token(SentencePiece(file), texts)
    assert capfd.readouterr() == (
        f"{out}: 400 tokens of {average:.2f} bytes of text on average, white space not counted.\n",
        "",
    )
    assert out.read_bytes() == file.read_bytes()


def test_what_the_command_cannot_do_ends_in_one_sentence(tmp_path, capsys):
    (tmp_path / "latin.txt").write_bytes(b"cafe" * 1000 + b"\xe9")
    (tmp_path / "short.txt").write_text("ab\n\n" * 1000)
    out = tmp_path / "words.model"
    for data, target, message in [
        ("none.txt", out, "none.txt is neither here nor on the Hub"),
        ("latin.txt", out, "latin.txt is not UTF-8 text: byte 4000"),
        ("short.txt", out, "there is too little text for 32000 tokens"),
        ("short.txt", tmp_path / "no" / "words.model", "there is no folder"),
        ("short.txt", tmp_path, "it is a folder"),
    ]:
        assert message in fails(capsys, "train-tokenizer", str(tmp_path / data), "--out", str(target))
    assert not out.exists()
