import csv
import json
import math

import numpy as np
import pytest
import torch

from perceivers import PerceiversError
from perceivers.checkpoints.load import load_model
from perceivers.cli import main
from perceivers.presets import create_model, model_config
from perceivers.text.masking import IGNORE_INDEX
from perceivers.text.model import load_text_model, text_input
from perceivers.text.pretraining import MaskedLanguage, MaskedLanguageModel, evaluate
from perceivers.text.stream import HeldOutText, TextData
from perceivers.text.tokenizers import Bytes, SentencePiece, find_tokenizer, train_tokenizer
from perceivers.training.config import read_config
from perceivers.training.evaluation import find_experiment
from tests.support.cli import fails
from tests.support.models import classifier, labels
from tests.support.pretraining import BERT, PERCEIVER, sample, small_run, write_text
from tests.support.runs import interrupt_at


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt")


def test_other_workers_on_resuming_are_refused(tmp_path, monkeypatch, text):
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        with pytest.raises(SystemExit):
            small_run(tmp_path / "run", text).run()
    with pytest.raises(PerceiversError, match=r"training\.workers: the run was begun with 1, not 2"):
        small_run(tmp_path / "run", text, resume=True, workers=2).run()


def byte_counts(tokenizer, label_N):
    """Bytes of the text that tokens stand for, white space left out."""
    if isinstance(tokenizer, Bytes):
        return len(label_N)
    return sum(len(tokenizer.pieces.id_to_piece(int(label)).replace("▁", "").encode()) for label in label_N)


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_metrics_are_those_computed_by_hand(tmp_path, text, kind):
    run = small_run(tmp_path / "run", text, max_epochs=1)
    if kind == "pieces":
        file = tmp_path / "pieces.model"
        train_tokenizer(sample(), file, 400)
        run.data.tokenizer = str(file)
        run.model = model_config("language_sentencepiece", **PERCEIVER)
    output = run.run()
    model = load_model(output / "model")
    tokenizer = find_tokenizer(output / "model", model.inputs["text"].vocabulary)
    if kind == "pieces":
        assert isinstance(tokenizer, SentencePiece)
        assert (output / "model" / "tokenizer.model").read_bytes() == file.read_bytes()
        assert load_text_model(output / "model")[1].size == tokenizer.size == model.inputs["text"].vocabulary == 400
    nats = right = tokens = size = 0
    for batch in HeldOutText(run.data.open(0), tokenizer, 32, run.data).batches(8):
        logits_BMV = model({"text": batch["text"]})["text"].detach().double().numpy()
        for row, (place_P, label_P) in enumerate(zip(batch["indices"].tolist(), batch["labels"].tolist(), strict=True)):
            labels = [label for label in label_P if label != IGNORE_INDEX]
            for place, label in zip(place_P, labels, strict=False):
                scores = logits_BMV[row, place]
                nats += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[label]
                right += scores.argmax() == label
            tokens += len(labels)
            size += byte_counts(tokenizer, labels)
    metrics = json.loads((output / "metrics.json").read_text())
    assert tokens > 50
    assert metrics["val_loss"] == pytest.approx(nats / tokens, rel=1e-4)
    assert metrics["val_accuracy"] == pytest.approx(right / tokens, rel=1e-4)
    assert metrics["val_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)


@pytest.mark.parametrize(("preset", "sizes"), [("language_bytes", PERCEIVER), ("bert_bytes", BERT)])
def test_what_can_be_learned_is_learned(tmp_path, preset, sizes):
    """Of 262 tokens only 7 are ever hidden: 8.03 bits become 2.81 as soon as that is learned."""
    (tmp_path / "text.txt").write_text("yes, no! " * 2000)
    model = model_config(preset, **sizes | {"dropout": 0.0})
    run = small_run(tmp_path / "run", tmp_path / "text.txt", model, max_epochs=3)
    run.data.steps_per_epoch = 12
    output = run.run()
    rows = list(csv.DictReader((output / "csv" / "version_0" / "metrics.csv").open()))
    bits = [float(row["val_bits_per_byte"]) for row in rows if row["val_bits_per_byte"]]
    assert len(bits) == 3
    assert 8 > bits[0] > bits[2]
    assert bits[2] < 3.2
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["val_bits_per_byte"] == pytest.approx(bits[2])
    best = json.loads((output / "best" / "config.json").read_text())
    assert best["metrics"]["val_bits_per_byte"] == pytest.approx(min(bits)), "the smallest is the best"


def test_a_batch_without_hidden_words_changes_nothing():
    module = MaskedLanguageModel(create_model("language_bytes", **PERCEIVER))
    module.log = lambda *arguments, **settings: None
    places = torch.zeros(2, 3, dtype=torch.long)
    loss = module.training_step({"text": places + 70, "indices": places, "labels": places + IGNORE_INDEX}, 0)
    assert loss == 0


def test_filled_text_shows_what_was_hidden():
    module = MaskedLanguageModel(create_model("language_bytes", **PERCEIVER))
    token_M = torch.from_numpy(Bytes().encode("one two  three").astype(np.int64))
    place_P, guess_P = torch.tensor([4, 5, 6]), torch.from_numpy(Bytes().encode("TWO").astype(np.int64))
    masked_M = token_M.clone()
    masked_M[place_P] = Bytes().mask
    assert module.fill(masked_M, place_P, guess_P) == "one [TWO] three"


def test_a_model_that_does_not_fit_is_refused_before_any_text_is_read(tmp_path):
    config = tmp_path / "config.yaml"

    def run(model):
        values = {
            "experiment": "masked_language",
            "model": model,
            "data": {"path": str(tmp_path / "missing.txt")},
            "training": {"output": str(tmp_path / "run")},
        }
        config.write_text(json.dumps(values))
        read_config(config).run()

    with pytest.raises(PerceiversError, match=r"model\.vocabulary = 300 is not allowed: it must be 262, as in"):
        run({"preset": "language_bytes", "vocabulary": 300})
    with pytest.raises(PerceiversError, match="imagenet_fourier is of image_classification"):
        run({"preset": "imagenet_fourier"})
    with pytest.raises(PerceiversError, match=r"there is no field 'model\.latents'"):
        run({"preset": "bert_bytes", "latents": 4})
    with pytest.raises(PerceiversError, match="x is neither a folder nor a file here"):
        run({"init": "x"})
    with pytest.raises(PerceiversError, match=r"missing\.txt is neither here nor on the Hub"):
        run({"preset": "language_bytes", **PERCEIVER, "vocabulary": 262})
    assert not (tmp_path / "run").exists()


def test_a_wrong_start_is_refused_before_any_text_is_read(tmp_path):
    model = model_config("bert_bytes", **BERT | {"channels": 15, "heads": 3, "initialization": "local"})
    with pytest.raises(PerceiversError, match="even number of channels of a token, not 15"):
        small_run(tmp_path / "run", tmp_path / "missing.txt", model).run()


@pytest.mark.parametrize(("preset", "sizes"), [("language_bytes", PERCEIVER), ("bert_bytes", BERT)])
def test_the_command_evaluate_gives_the_figures_of_the_run(tmp_path, capsys, text, preset, sizes):
    output = small_run(tmp_path / "run", text, model_config(preset, **sizes), max_epochs=1).run()
    metrics = json.loads((output / "metrics.json").read_text())
    model = str(output / "model")
    settings = ["--validation-fraction", "0.1", "--eval-windows", "40", "--documents-per-pack", "2"]
    settings += ["--batch-size", "8", "--device", "cpu"]
    capsys.readouterr()
    main(["evaluate", model, "--data", str(text), *settings, "--json"])
    found = json.loads(capsys.readouterr().out)
    windows = found.pop("windows")
    assert [found.pop("total"), found.pop("split")] == [None, None]
    assert 20 < windows <= 40
    assert found == pytest.approx({name: metrics[f"val_{name}"] for name in ("loss", "accuracy", "bits_per_byte")})
    main(["evaluate", model, "--data", str(text), *settings])
    assert capsys.readouterr().out == (
        f"{windows} windows: {found['bits_per_byte']:.3f} bits per byte, "
        f"accuracy {found['accuracy']:.2%}, loss {found['loss']:.4f}\n"
    )
    main(["evaluate", model, "--data", str(text), *settings, "--eval-windows", "16", "--json"])
    fewer = json.loads(capsys.readouterr().out)
    assert fewer["windows"] == 16
    assert fewer["loss"] != pytest.approx(found["loss"], abs=1e-6)
    assert "none is neither here nor on the Hub" in fails(capsys, "evaluate", model, "--data", str(tmp_path / "none"))
    assert find_experiment(model) is MaskedLanguage
    main(["evaluate", model, "--data", str(text), "--device", "cpu", "--json"])
    whole = json.loads(capsys.readouterr().out)
    assert whole["total"] == whole["windows"] > 5 * windows


def test_pieces_and_several_texts_are_evaluated(tmp_path, capsys, text):
    train_tokenizer(sample(), tmp_path / "pieces.model", 400)
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(" ".join(sample(6, seed)) for seed in range(100, 160)), encoding="utf-8")
    run = small_run(tmp_path / "run", text, model_config("language_sentencepiece", **PERCEIVER), max_epochs=1)
    run.data.tokenizer, run.data.path = str(tmp_path / "pieces.model"), {str(text): 1.0, str(other): 2.0}
    output = run.run()
    metrics = json.loads((output / "metrics.json").read_text())
    (output / "model" / "config.json").write_text(
        json.dumps({**json.loads((output / "model" / "config.json").read_text()), "experiment": None})
    )  # as of a model that was saved by hand
    capsys.readouterr()
    settings = ["--validation-fraction", "0.1", "--eval-windows", "40", "--documents-per-pack", "2"]
    settings += ["--batch-size", "8", "--device", "cpu"]
    main(["evaluate", str(output / "model"), "--data", str(text), str(other), *settings, "--json"])
    found = json.loads(capsys.readouterr().out)
    del found["windows"], found["total"], found["split"]
    assert found == pytest.approx({name: metrics[f"val_{name}"] for name in ("loss", "accuracy", "bits_per_byte")})


def test_only_language_models_are_evaluated_so():
    with pytest.raises(PerceiversError, match="this model predicts label: a language model, which predicts text, is"):
        evaluate(labels(), Bytes(), TextData("x"))
    with pytest.raises(PerceiversError, match="this model reads image: a language model"):
        evaluate(classifier(), Bytes(), TextData("x"))


def test_text_inputs_are_found():
    for name, settings in (("language_bytes", PERCEIVER), ("bert_bytes", BERT)):
        model = create_model(name, **settings)
        assert text_input(model) is model.inputs["text"]
