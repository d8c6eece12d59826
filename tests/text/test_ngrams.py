"""N-grams of language models: their fields, and training with them."""

import json

import pytest
import torch

from perceivers import InputArray, PerceiversError
from perceivers.checkpoints.load import load_model, pretrained_config
from perceivers.presets import create_model, model_config
from perceivers.released.export import to_transformers
from perceivers.text.fine_tuning import TextClassification
from perceivers.text.labeled import LabeledTextData
from perceivers.text.model import text_tasks
from perceivers.text.tokenizers import MASK, Bytes
from perceivers.training.optimization import Optimization
from tests.support.fine_tuning import PERCEIVER, SMALL_BERT, labeled, settings, write_csv

KINDS = {"language_bytes": PERCEIVER, "bert_bytes": SMALL_BERT}
FIELDS = {"ngrams": [2, 4], "ngram_hashes": 500, "ngram_channels": 12}


def encode(text):
    return torch.from_numpy(Bytes().encode(text)).long()[None]


def rows(model, text):
    """Which vectors a text has, of each byte: those of n-grams, and that of its word."""
    token_BM = text if isinstance(text, torch.Tensor) else encode(text)
    return model.inputs["text"].ngrams.hash(token_BM, torch.arange(token_BM.shape[1]))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_words_end_at_white_space_and_not_at_masked_bytes(kind):
    model = create_model(kind, **KINDS[kind], ngrams=(2, 4), ngram_hashes=2**20)
    word = rows(model, "one two\tone\nzone one")[:, -1].tolist()
    assert word[0] == word[2] == word[8] == word[-1] != word[4]
    assert word[3] == word[7] == word[11], "white space has no word"
    assert len(set(word)) == 4
    assert len(rows(model, "one")[0]) == 4
    pieces = create_model(kind, **KINDS[kind], ngrams=(2, 4), vocabulary=300)
    assert len(rows(pieces, "one")[0]) == 3, "only bytes are known to be white space"


@pytest.mark.parametrize("kind", KINDS)
def test_of_masked_bytes_nothing_but_their_number_is_hashed(kind):
    model = create_model(kind, **KINDS[kind], ngrams=(2, 4), ngram_hashes=2**20)
    texts = encode("see one and"), encode("see two and")
    for token_BM in texts:
        token_BM[:, 4:7] = MASK
    one, two = (rows(model, text) for text in texts)
    assert torch.equal(one, two)
    assert (one[4:7, -1] == one[4, -1]).all()
    assert one[4, -1] not in (one[0, -1], one[3, -1])
    other = encode("see four and")
    other[:, 4:8] = MASK
    assert rows(model, other)[4, -1] != one[4, -1], "the length of a masked word is known"


@pytest.mark.parametrize("kind", KINDS)
def test_fields_are_found_in_a_saved_model(kind, tmp_path):
    model = create_model(kind, **KINDS[kind], **FIELDS)
    model.save(tmp_path)
    config = pretrained_config(tmp_path)
    assert {name: getattr(config, name) for name in FIELDS} == FIELDS
    assert not getattr(config, "local_queries", False)
    ngrams = load_model(tmp_path).inputs["text"].ngrams
    assert ngrams.embedding.weight.shape == (500, 12)
    assert torch.equal(ngrams.embedding.weight, model.inputs["text"].ngrams.embedding.weight)


def test_local_queries_are_found_in_a_saved_model(tmp_path):
    model = create_model("language_bytes", **PERCEIVER, local_queries=True)
    assert model.outputs["text"].positions is None
    model.save(tmp_path)
    assert pretrained_config(tmp_path).local_queries
    logits = load_model(tmp_path)({"text": encode("a text")})["text"]
    assert torch.equal(logits, model({"text": encode("a text")})["text"])
    tasks = text_tasks(model, {"a": 2})
    assert list(tasks.outputs) == ["label"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_task_tokens", [0, 2])
def test_tasks_start_with_a_copy_of_the_vectors(kind, num_task_tokens):
    language = create_model(kind, **KINDS[kind], **FIELDS)
    classifier = text_tasks(language, {"a": 2, "b": 3}, None, num_task_tokens)
    ours, theirs = (model.inputs["text"].ngrams for model in (classifier, language))
    assert ours is not theirs
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
        assert ours.state_dict()[name].data_ptr() != value.data_ptr()


@pytest.mark.parametrize("kind", KINDS)
def test_training_from_a_file_changes_and_keeps_the_vectors(kind, tmp_path):
    file = write_csv(tmp_path / "train.csv", labeled(60, 0))
    run = TextClassification(
        model=model_config(kind, **KINDS[kind], **FIELDS),
        data=LabeledTextData(str(file)),
        **settings(tmp_path / "run", max_epochs=8),
    )
    run.optimization = Optimization(lr=1e-2)
    output = run.run()
    written = json.loads((output / "config.json").read_text())["model"]
    assert {name: written[name] for name in FIELDS} == FIELDS
    assert json.loads((output / "metrics.json").read_text())["val_accuracy"] == 1, "the word good"
    model = load_model(output / "model")
    assert isinstance(model.inputs["text"].ngrams, torch.nn.Module)
    text = encode("a good thing 2")
    mask = torch.tensor([[True] * 14 + [False] * 6])
    padded = torch.nn.functional.pad(text, (0, 6), value=9)
    alone = model({"text": text})["label"]["label"]
    assert alone.argmax(-1) == 1
    torch.testing.assert_close(model({"text": InputArray(padded, mask)})["label"]["label"], alone, atol=1e-5, rtol=0)


def test_fields_out_of_range_are_refused():
    for fields, message in [
        (
            {"ngrams": [6, 3]},
            r"model\.ngrams = \[6, 3\] is not allowed: it must be the shortest size, then the longest",
        ),
        ({"ngrams": [0, 3]}, r"ngrams = \[0, 3\]"),
        ({"ngrams": [3]}, r"ngrams = \[3\]"),
        ({"ngrams": [3, 6], "ngram_hashes": 0}, "ngram_hashes = 0 is not allowed"),
        ({"ngrams": [3, 6], "ngram_channels": 1.5}, "ngram_channels = 1.5 is not allowed"),
    ]:
        for kind in KINDS:
            with pytest.raises(PerceiversError, match=message):
                model_config(kind, **fields)


def test_the_papers_models_have_no_ngrams_and_the_port_takes_none(tmp_path):
    assert create_model("language_bytes", **PERCEIVER).inputs["text"].ngrams is None
    sizes = {"length": 40, "latents": 4, "channels": 16, "depth": 1, "v_channels": 16}
    model = create_model("language_bytes", **sizes, ngrams=(3, 6))
    with pytest.raises(PerceiversError, match=r"text\.ngrams is HashedNgrams, but None"):
        to_transformers(model, tmp_path)
