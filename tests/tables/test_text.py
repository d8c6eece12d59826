"""Texts: words to read, and bytes to fill in."""

from collections import Counter
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import log_loss

from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputArray
from perceivers.tables.columns import MaskedText, Text
from perceivers.tables.columns.text import MOST_HASHES, analyze, hash_words
from tests.support.tables import as_rows, collate, learned, small_model

HERE = Path()


def test_words():
    column = Text(length=9)
    assert column.words("Don't PANIC: 42, naïve!") == ["don", "'", "t", "panic", ":", "42", ",", "naïve", "!"]
    assert column.words("x" * 30) == ["x" * 24, "x" * 6]
    assert column.words(" ") == [""]
    assert Text(length=2).words("one two three") == ["one", "two"]


def test_length_is_learned():
    cells = ["a " * count for count in range(1, 21)]
    assert Text().learn(cells, HERE).length == int(np.quantile(range(1, 21), 0.95)) == 19
    assert Text(longest=5).learn(cells, HERE).length == 5
    assert Text(length=3).learn(cells, HERE).length == 3
    assert Text().learn([" "], HERE).length == 1


def test_hashes_are_of_the_word_its_pair_and_its_parts():
    """They are the same in every process: a saved model's vectors belong to them."""
    found = hash_words(["so", "film"], 1000)

    def hashes(*keys):
        return [crc32(key.encode()) % 999 + 1 for key in keys]

    assert found[0, :5].tolist() == hashes("w so", "p  so", "<so", "so>", "<so>")
    parts = ["<fi", "fil", "ilm", "lm>", "<fil", "film", "ilm>", "<film", "film>"]
    assert found[1, :11].tolist() == hashes("w film", "p so film", *parts)
    assert found[0, 5:].eq(0).all()
    assert found.shape == (2, MOST_HASHES)
    assert hash_words(["x" * 24], 1000).gt(0).all()
    assert hash_words(["\ud800"], 1000).shape == (1, MOST_HASHES)  # half of a pair, as JSON may have it


def test_equal_words_have_equal_hashes_wherever_they_are():
    column = Text(length=9)
    one, other = column.read("so good a film", HERE), column.read("and yet: SO GOOD", HERE)
    assert torch.equal(one[1], other[4])
    assert torch.equal(one[0, 2:], other[3, 2:])
    assert one[0, 1] != other[3, 1]  # another word before it


def test_cells():
    assert torch.equal(Text(length=3).read(5, HERE), Text(length=3).read("5", HERE))
    for column in (Text(), MaskedText()):
        with pytest.raises(PerceiversError, match="is not a text"):
            column.read(["a"], HERE)


def test_a_batch_of_texts():
    column = Text(length=5)
    batch = column.collate([column.read(cell, HERE) for cell in ("one two three", "one")] + [column.blank()])
    assert batch.x_BMC.shape == (3, 3, MOST_HASHES)
    assert batch.mask_BM.tolist() == [[True] * 3, [True, False, False], [True, False, False]]
    assert batch.x_BMC[1, 1:].eq(0).all()


def test_some_words_are_left_out_in_training():
    column = Text(length=100, dropout=0.25)
    value = column.read(" ".join(f"w{index}" for index in range(100)), HERE)
    counts = [len(column.augment(value, torch.Generator().manual_seed(seed))) for seed in range(50)]
    assert np.mean(counts) == pytest.approx(75, abs=2)
    assert torch.equal(Text(dropout=0.0).augment(value, torch.Generator()), value)
    one = column.read("alone", HERE)
    assert all(len(column.augment(one, torch.Generator().manual_seed(seed))) == 1 for seed in range(20))


def test_vectors_are_a_latent_semantic_analysis():
    """Their sums tell two kinds of texts apart, without labels, and have a standard deviation of 1."""
    kinds = ["a good happy film", "a happy good end", "the cat eats fish", "fish for the cat"] * 5
    column = Text(hashes=500, width=3).learn(kinds, HERE)
    counts = [Counter(column.read(text, HERE).flatten().tolist()) for text in kinds]
    vectors = analyze(counts, 500, 3)
    assert vectors.shape == (500, 3)
    assert vectors[0].abs().max() < 1e-9
    weights = np.zeros((len(kinds), 500))
    for row, count in enumerate(counts):
        for key, number in count.items():
            weights[row, key] = number**0.5 if key else 0
    places = weights @ vectors.numpy()
    assert np.square(places).mean() == pytest.approx(1, rel=1e-4)
    first = PCA(1).fit_transform(places)[:, 0].reshape(5, 4)
    assert (np.sign(first[:, :2]) == -np.sign(first[:, 2:])).all()
    assert analyze(counts[:1], 500, 3).shape == (500, 0)
    assert analyze([Counter(), Counter()], 500, 3).shape == (500, 0)
    adapter = column.input_adapter(8)
    column.initialize(adapter, kinds)
    torch.testing.assert_close(adapter.embedding.weight.detach(), vectors)


def test_bytes():
    column = MaskedText(length=20)
    assert column.read("ab", HERE).tolist() == [97, 98]
    assert column.read("é", HERE).tolist() == [0xC3, 0xA9]
    assert column.read("a[MASK]b[MASK*3]", HERE).tolist() == [97, 256, 98, 256, 256, 256]
    assert column.read("[MASK*0] [MASK", HERE).tolist() == list(b"[MASK*0] [MASK")
    assert column.read("[MASK*9999]", HERE).tolist() == [256] * 20
    assert MaskedText().learn(["ab", "é2c"], HERE).length == 4
    assert MaskedText(longest=3).learn(["abcdefg"], HERE).length == 3


def test_bytes_are_hidden_at_random():
    column = MaskedText(length=2000, fraction=0.25)
    value = column.read("x" * 1000 + "[MASK*1000]", HERE)
    seen, target = column.hide(value, torch.Generator().manual_seed(0))
    hidden = target[:, 1].bool()
    assert torch.equal(target[:, 0], value)
    assert 200 < hidden.sum() < 300
    assert not hidden[1000:].any()  # those that are hidden already have no truth
    assert torch.equal(seen == 256, hidden | (value == 256))
    few = MaskedText(length=5, fraction=0.01)
    assert all(
        few.hide(few.read("abc", HERE), torch.Generator().manual_seed(seed))[1][:, 1].any() for seed in range(20)
    )


def test_loss_and_metrics_are_those_of_hidden_bytes():
    column = MaskedText(length=4)
    target = column.collate([torch.tensor([[97, 1], [98, 0], [99, 1], [5, 0]]), torch.tensor([[7, 0], [8, 1]])])
    logits = torch.randn(2, 4, 257)
    logits[0, 0, 97] = 20  # a good guess
    probability = logits.double().softmax(-1)

    def entropy(row, place, byte):
        return log_loss([byte], probability[row, place][None].numpy(), labels=range(257))

    each = [entropy(0, 0, 97), entropy(0, 2, 99), entropy(1, 1, 8)]
    assert column.loss(logits, target).tolist() == pytest.approx([np.mean(each[:2]), each[2]], rel=1e-4)
    found = column.metrics()
    for metric in found.values():
        metric.update(column.answer(logits), column.truth(target))
    assert found["accuracy"].compute().item() == pytest.approx(1 / 3)
    assert found["bits"].compute().item() == pytest.approx(np.mean(each) / np.log(2), rel=1e-4)


def test_a_text_is_read_and_predicted_as_one_column():
    """Only what is hidden is predicted: a cell that is missing has no target."""
    column = learned("masked_text", ["row one", "another"])
    model = small_model({}, {"x": column})
    assert [*model.inputs] == ["x"]
    batch = collate(model, as_rows({"x": ["row one", None, "a"]}))
    assert batch["known"]["x"].tolist() == [True, False, True]
    assert batch["hidden"]["x"].tolist() == [False, True, False]
    assert isinstance(batch["targets"]["x"], InputArray)
    again = collate(model, as_rows({"x": ["row one", None, "a"]}))
    assert torch.equal(again["inputs"]["x"].x_BMC, batch["inputs"]["x"].x_BMC)  # an evaluation hides the same bytes
