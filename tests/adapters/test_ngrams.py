import hashlib
from functools import cache
from itertools import chain

import pytest
import torch

from perceivers import InputArray, PerceiverIO
from perceivers.adapters import TextInput, TextOutput
from perceivers.adapters.ngrams import HashedNgrams, raise_base
from perceivers.checkpoints.load import load_model
from perceivers.model.config import to_config
from perceivers.model.ragged import Ragged
from perceivers.text.bert import BERT
from perceivers.text.tokenizers import Bytes
from tests.support.texts import draw_texts

HASHES, SEPARATORS = 997, (0, 1)
LENGTHS = torch.tensor([9, 5, 1])
MASK = torch.arange(9) < LENGTHS[:, None]
BASE, FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9


def ngrams(channels=16, separators=SEPARATORS):
    return HashedNgrams(channels, (2, 4), HASHES, 8, separators)


@pytest.fixture
def tokens():
    return torch.randint(6, (3, 9))


@cache
def row(symbols, kind, hashes):
    """The index of the vector of a tuple of symbols, in Python's integers."""
    value = kind * BASE
    for power, symbol in enumerate(reversed(symbols)):
        value += symbol * pow(BASE, power, 2**64)
    value %= 2**64
    signed = value - 2**64 if value >= 2**63 else value
    mixed = ((value ^ (signed >> 32) % 2**64) * FACTOR) % 2**64
    return (mixed >> 33) % hashes


def plain_rows(tokens, separators=SEPARATORS, sizes=(2, 3, 4), hashes=HASHES):
    """Of each token of a text, those of the n-grams that end at it, and of its word; -1 is a token of no text."""
    symbols, between = [token + 1 for token in tokens], [token in (-1, *separators) for token in tokens]
    words, first = [], 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or between[end] or between[end - 1]:
            word = () if between[first] else tuple(symbols[first:end])
            words += [row((*word[::-1], 0), len(sizes), hashes)] * (end - first)
            first = end
    return [
        [row(tuple(symbols[max(0, end - size) : end]), kind, hashes) for kind, size in enumerate(sizes)] + [word]
        for end, word in enumerate(words, 1)
    ]


def close(got, want):
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def make(kind, num_task_tokens=0):
    if kind == "bert":
        model = BERT(30, 12, 16, 1, 2, num_task_tokens=num_task_tokens, ngrams=ngrams())
    else:
        text = TextInput(30, 12, 16, num_task_tokens, ngrams())
        model = PerceiverIO({"text": text}, {"text": TextOutput("text")}, 4, 16, 1, heads=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def test_hashes_are_those_of_every_ngram_and_word(tokens):
    found = ngrams().hash(tokens, torch.arange(9))
    assert found.tolist() == [plain_rows(text) for text in tokens.tolist()]
    assert len(found.unique()) > 50
    alone = ngrams(separators=()).hash(tokens, torch.arange(9))
    assert torch.equal(alone, found[..., :3])


def test_hashes_of_a_thousand_texts_are_those_of_saved_models():
    texts = list(draw_texts(1200))
    hidden = [
        [-1 if number % 3 == 0 and index % 7 == 3 else token for index, token in enumerate(text)]
        for number, text in enumerate(texts)
    ]
    want = [plain_rows(text, tuple(Bytes().separators), (3, 4, 5, 6), 2**20) for text in hidden]
    module = HashedNgrams(4, (3, 6), 2**20, 4, Bytes().separators)
    padded = torch.nested.nested_tensor(hidden, dtype=torch.long).to_padded_tensor(-1)
    found = module.hash(padded.clamp_min(0), torch.arange(padded.shape[1]), padded >= 0)
    assert [rows[: len(text)].tolist() for rows, text in zip(found, texts, strict=True)] == want
    one = torch.tensor([list(chain(*hidden))])
    index_M = torch.cat([torch.arange(len(text)) for text in texts])
    together = module.hash(one.clamp_min(0), index_M, one >= 0)
    assert together[0].tolist() == list(chain(*want))
    digest = hashlib.sha256(together.to(torch.int32).numpy().tobytes()).hexdigest()
    assert digest == "e22cc58ed540e85d2ec17a1c7b42c2b792dfc6c4602ec5524bc659c9eb66840e"


def test_powers_of_the_base_are_those_of_long_texts_too():
    exponents = [0, 1, 4095, 4096, 70_001, 2**24 - 1]
    powers, inverses = (raise_base(torch.tensor(exponents)) % 2**62).tolist()
    assert powers == [pow(BASE, exponent, 2**62) for exponent in exponents]
    assert inverses == [pow(BASE, -exponent, 2**62) for exponent in exponents]


def test_an_element_is_the_sum_of_all_its_vectors(tokens):
    adapter = TextInput(30, 12, 16, ngrams=ngrams())
    weights = dict(adapter.named_parameters())
    rows = plain_rows(tokens[1].tolist())[7]
    summed = sum(weights["ngrams.embedding.weight"][index] for index in rows)
    want = weights["ngrams.linear.weight"] @ summed + weights["ngrams.linear.bias"]
    want = want + weights["embedding.weight"][tokens[1, 7]] + weights["positions.table_SF"][7]
    close(adapter(tokens).x_BMC[1, 7], want)


def test_each_vector_is_trained(tokens):
    module = ngrams()
    module(tokens, torch.arange(9))[1, 4].sum().backward()
    trained = module.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert trained == sorted(set(plain_rows(tokens[1].tolist())[4]))


@pytest.mark.parametrize("kind", ["perceiver", "bert"])
def test_padding_and_neighbors_in_the_batch_change_nothing(tokens, kind):
    model = make(kind)
    other = torch.where(MASK, tokens, (tokens + 1) % 6)
    logits, others = (model({"text": InputArray(text, MASK)})["text"] for text in (tokens, other))
    for index, length in enumerate(LENGTHS):
        close(logits[index, :length], model({"text": tokens[index : index + 1, :length]})["text"][0])
        assert torch.equal(logits[index, :length], others[index, :length])


def test_a_text_before_it_changes_nothing_in_a_ragged_batch(tokens):
    texts = [tokens[index, :length] for index, length in enumerate(LENGTHS)]
    adapter = make("perceiver").inputs["text"]
    together = adapter(Ragged.stack(texts)).x_BMC[0].split(LENGTHS.tolist())
    for text, elements in zip(texts, together, strict=True):
        close(elements, adapter(text[None]).x_BMC[0])


def test_the_token_of_a_task_is_no_part_of_the_text(tokens):
    """It counts as nothing, so the same words have the same vectors for all tasks."""
    module = make("perceiver", num_task_tokens=2).inputs["text"].ngrams
    found = []
    for adapter in (make("perceiver", 2).inputs["text"], make("bert", 2).inputs["text"]):
        adapter.ngrams = Spy(module)
        for task in (30, 31):
            adapter(torch.cat([torch.full((3, 1), task), tokens[:, :8]], 1))
            found.append(adapter.ngrams.rows[:, 1:])
    assert found[0].tolist() == [plain_rows(text) for text in tokens[:, :8].tolist()]
    assert all(torch.equal(rows, found[0]) for rows in found)


class Spy(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *arguments):
        self.rows = self.module.hash(*arguments)
        return self.module(*arguments)


@pytest.mark.parametrize("kind", ["perceiver", "bert"])
def test_saved_and_built_again_it_is_the_same(tokens, kind, tmp_path):
    model = make(kind)
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    assert to_config(loaded) == to_config(model)
    assert torch.equal(loaded({"text": tokens})["text"], model({"text": tokens})["text"])


def test_exports_and_runs_in_lower_precision(tokens):
    model = make("perceiver")
    want = model({"text": tokens})["text"]
    close(torch.export.export(model, ({"text": tokens},)).module()({"text": tokens})["text"], want)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model({"text": tokens})["text"]
    for got in (mixed, model.bfloat16()({"text": tokens})["text"]):
        assert (got.float() - want).norm() < 0.05 * want.norm()
