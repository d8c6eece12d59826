import numpy as np
import pytest
import torch

from perceivers.data.loader import SampleIndex
from perceivers.text.batches import TaskTexts, TextEncoding
from perceivers.text.labeled import LabeledTexts
from perceivers.text.tokenizers import CLS, MASK, PAD, SEP, Bytes

FRONT = 300  # a token for a task


def tokens(text):
    """The bytes of a text; | is the separator."""
    return [SEP if character == "|" else token for character, token in zip(text, Bytes().encode(text), strict=True)]


def encoding(length=100, prefix_tokens=None):
    return TextEncoding(Bytes(), length, prefix_tokens)


def test_texts_and_pairs_with_and_without_a_token_in_front():
    assert encoding().encode(("ab",)).tolist() == tokens("ab")
    assert encoding().encode(("ab", "cd")).tolist() == tokens("ab|cd")
    assert encoding(prefix_tokens=[CLS, FRONT]).encode(("ab", "cd"), 1).tolist() == [FRONT, *tokens("ab|cd")]
    assert encoding(prefix_tokens=[CLS, FRONT]).encode(("ab",), 0).tolist() == [CLS, *tokens("ab")]
    assert encoding().encode(("", "cd")).tolist() == tokens("|cd")


@pytest.mark.parametrize("first", [None, [FRONT]])
@pytest.mark.parametrize(
    ("texts", "length", "want"),
    [
        (("abcdef",), 6, "abcdef"),
        (("abcdef",), 4, "abcd"),
        (("abcdef", "gh"), 9, "abcdef|gh"),
        (("abcdef", "gh"), 7, "abcd|gh"),
        (("gh", "abcdef"), 7, "gh|abcd"),
        (("abcdef", "ghijk"), 7, "abc|ghi"),
        (("abcdef", "ghij"), 9, "abcd|ghij"),
        (("", "abcdef"), 5, "|abcd"),
    ],
)
def test_what_is_too_long_loses_its_end_and_of_a_pair_the_longer_text_first(texts, length, want, first):
    front = first or []
    got = encoding(length + len(front), first).truncate(texts, 0)
    assert got.tolist() == front + tokens(want)


def test_any_pair_fits_and_loses_no_more_than_it_must():
    choose = np.random.default_rng(0)
    for _ in range(300):
        a, b, length = (int(number) for number in choose.integers(1, 30, 3))
        got = encoding(length + 4, [FRONT]).truncate(("a" * a, "b" * b), 0)
        kept = [(got == tokens(letter)[0]).sum() for letter in "ab"]
        assert got[kept[0] + 1] == SEP
        whole = a + b + 2
        is_cut = whole > length + 4
        assert len(got) in ((length + 4, length + 3) if is_cut else (whole,))
        if is_cut:  # the shorter one is cut only where both are as long as half of the room
            assert min(kept) == min(a, b) or abs(kept[0] - kept[1]) == 0


def examples(*texts):
    return LabeledTexts([(text,) for text in texts], list(range(len(texts))), [text or "-" for text in texts])


def test_padding_and_mask():
    texts = TaskTexts([("one", 0, examples("abc", "d")), ("two", 1, examples("", "efghi"))], encoding(4, [CLS, FRONT]))
    assert texts.lengths == [4, 2, 1, 4]
    batch = texts.collate([texts[SampleIndex(index, 0)] for index in range(4)])
    assert batch["text"].tolist() == [
        [CLS, *tokens("abc")],
        [CLS, *tokens("d"), PAD, PAD],
        [FRONT, PAD, PAD, PAD],
        [FRONT, *tokens("efg")],
    ]
    assert batch["mask"].tolist() == [[place < count for place in range(4)] for count in (4, 2, 1, 4)]
    assert batch["label"].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert (batch["task"].tolist(), batch["set"].tolist()) == ([0, 0, 1, 1], [0, 0, 1, 1])
    short = texts.collate([texts[SampleIndex(index, 0)] for index in (1, 2)])
    assert short["text"].tolist() == [[CLS, *tokens("d")], [FRONT, PAD]]
    assert short["mask"].dtype == torch.bool


def test_a_batch_of_empty_texts_has_a_place():
    texts = TaskTexts([("one", 0, examples("", ""))], encoding())
    batch = texts.collate([texts[SampleIndex(index, 0)] for index in range(2)])
    assert batch["text"].tolist() == [[PAD], [PAD]]
    assert not batch["mask"].any()


def test_how_many_texts_are_cut_is_said(capsys):
    TaskTexts([("RTE", 0, examples("abc", "abcdef", "abcde")), ("CoLA", 0, examples("abc"))], encoding(4))
    assert capsys.readouterr().err == (
        "RTE: 2 of 3 texts are longer than the 4 tokens that the model reads; their ends are left out.\n"
    )


def test_tasks_are_sampled_in_proportion_to_their_examples_and_numbers_stay():
    sets = [("large", 0, examples(*("a" * size for size in range(60)))), ("small", 1, examples(*("b" * 20,) * 20))]
    texts = TaskTexts(sets, encoding())
    batches = list(texts.loader(8, 0))
    tasks = torch.cat([batch["task"] for batch in batches])
    assert tasks.bincount().tolist() == [60, 20]
    labels = torch.cat([batch["label"][batch["task"] == 0] for batch in batches])
    lengths = torch.cat([batch["mask"].sum(1)[batch["task"] == 0] for batch in batches])
    assert torch.equal(labels, lengths.float())
    assert sorted(labels.tolist()) == list(range(60))


@pytest.mark.parametrize("prefix", [None, [FRONT]])
def test_training_masks_whole_words_others_each_time(prefix):
    text = " ".join("abc" for _ in range(400))
    texts = TaskTexts([("one", 0, examples(text))], encoding(2000, prefix), mask_rate=0.3)
    whole = TaskTexts([("one", 0, examples(text))], encoding(2000, prefix))[SampleIndex(0, 5)]["text"]
    found = [texts[SampleIndex(0, seed)]["text"] for seed in (1, 1, 2)]
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    for token_M in found:
        start = len(prefix or ())
        assert token_M[:start].tolist() == (prefix or [])
        words = Bytes().decode(token_M[start:]).split()
        hidden = (token_M == MASK).sum() / 3
        assert hidden == 400 - len(words)
        assert 80 < hidden < 160
        assert (token_M[token_M != MASK] == whole[token_M != MASK]).all()
        assert len(token_M) == len(whole)
    everything = TaskTexts([("one", 0, examples(text))], encoding(2000, prefix), mask_rate=1.0)[SampleIndex(0, 0)]
    assert (everything["text"] == MASK).sum() == 1200


def test_few_examples_are_repeated_as_a_whole(capsys):
    sets = [("one", 0, examples("abcdef", "d")), ("two", 1, examples("e"))]
    texts = TaskTexts(sets, encoding(4), least=7)
    assert len(texts) == len(texts.lengths) == 9
    assert [texts[SampleIndex(index, 0)]["task"] for index in range(9)] == [0, 0, 1] * 3
    assert "1 of 2 texts are longer" in capsys.readouterr().err
    for least in (0, 1, 3):
        assert len(TaskTexts(sets, encoding(4), least=least)) == 3
