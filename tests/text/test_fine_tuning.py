import json

import numpy as np
import pytest
import torch
from perceivers.tasks import text_tasks
from sklearn.metrics import accuracy_score, matthews_corrcoef

import perceivers
from perceivers import InputArray, PerceiverIO, PerceiversError
from perceivers.checkpoints.load import load_model
from perceivers.presets import create_model
from perceivers.released.export import to_transformers
from perceivers.text.bert import BERT
from perceivers.text.fine_tuning import TextClassification, TextTask, TextTasks, fine_tune, metric, pretrained
from perceivers.text.labelled import LabelledTextData, LabelledTexts
from perceivers.text.tokenizers import Bytes
from perceivers.training.loop import Training
from perceivers.training.optimization import Optimization
from tests.support.runs import interrupt_at, state

PERCEIVER = {"length": 40, "embedding_channels": 16, "latents": 4, "channels": 16, "depth": 1, "heads": 2,
             "qk_channels": 8, "v_channels": 16, "cross_heads": 2, "decoder_heads": 2, "decoder_qk_channels": 8,
             "decoder_v_channels": 16}  # fmt: skip
SMALL_BERT = {"length": 40, "channels": 16, "depth": 1, "heads": 2}


def language(kind="language_bytes"):
    return create_model(kind, **(SMALL_BERT if "bert" in kind else PERCEIVER))


@pytest.fixture
def folder(tmp_path):
    """A language model as a run would save it."""
    language().save(tmp_path / "language")
    return tmp_path / "language"


def labelled(count, seed, classes=("no", "yes")):
    """Whether "good" stands in the text."""
    choose = np.random.default_rng(seed)
    labels = choose.integers(len(classes), size=count).tolist()
    words = ("bad", "good", "fair")
    texts = [(f"a {words[label]} thing {number}", "and other")[: 1 + number % 2] for number, label in enumerate(labels)]
    return LabelledTexts(texts, labels, list(classes))


def scored(count, seed):
    numbers = np.random.default_rng(seed).random(count) * 5
    return LabelledTexts([("x" * int(number * 4), "y") for number in numbers], numbers.tolist(), None)


def several_tasks():
    three = ("no", "yes", "maybe")
    return {
        "CoLA": TextTask(labelled(30, 0), {"CoLA": labelled(21, 1)}, "matthews"),
        "MNLI": TextTask(
            labelled(20, 2, three),
            {"MNLI_matched": labelled(11, 3, three), "MNLI_mismatched": labelled(6, 4, three)},
            "accuracy",
        ),
        "STS-B": TextTask(scored(14, 5), {"STS-B": scored(13, 6)}, "pearson"),
    }


def settings(output, **training):
    training = {"epochs": 1, "batch_size": 8, "accelerator": "cpu", "output": str(output)} | training
    return Optimization(lr=3e-3), Training(**training), {"experiment": "test"}


def predict(model, tokenizer, first, texts, task):
    """Each text alone, without padding."""
    answers = []
    for parts in texts.texts:
        tokens = [] if first is None else [first]
        for index, part in enumerate(parts):
            tokens += [tokenizer.sep] * (index > 0) + tokenizer.encode(part).tolist()
        with torch.no_grad():
            answers.append(model({"text": torch.tensor([tokens[:40]])})["label"][task][0].tolist())
    return np.array(answers)


@pytest.mark.parametrize("kind", ["language_bytes", "bert_bytes"])
@pytest.mark.parametrize("method", ["multitask_query", "task_tokens", "shared_token"])
def test_all_metrics_are_those_of_the_saved_model_text_by_text(tmp_path, method, kind):
    tasks, tokenizer = several_tasks(), Bytes()
    output = fine_tune(language(kind), tokenizer, tasks, method, *settings(tmp_path / "run"))
    metrics = json.loads((output / "metrics.json").read_text())
    model = load_model(output / "model")
    embedding = model.inputs["text"].embedding.weight
    assert len(embedding) == 262 + (3 if method == "task_tokens" else 0)
    if isinstance(model, PerceiverIO):
        assert model.outputs["label"].shared == (method != "multitask_query")
    want = {}
    for place, (name, task) in enumerate(tasks.items()):
        front = {"multitask_query": None, "task_tokens": 262 + place, "shared_token": tokenizer.cls}[method]
        front = tokenizer.cls if front is None and isinstance(model, BERT) else front
        for part, texts in task.evaluation.items():
            answers = predict(model, tokenizer, front, texts, name)
            if task.metric == "pearson":
                assert answers.std() > 1e-4
                want[part] = np.corrcoef(answers[:, 0], texts.labels)[0, 1]
            else:
                score = matthews_corrcoef if task.metric == "matthews" else accuracy_score
                want[part] = score(texts.labels, answers.argmax(1))
    for part, value in want.items():
        assert metrics[f"test_{part}"] == pytest.approx(value, abs=1e-4), part
    mean = np.mean([want["CoLA"], (want["MNLI_matched"] + want["MNLI_mismatched"]) / 2, want["STS-B"]])
    assert metrics["test_mean"] == pytest.approx(mean, abs=1e-4)


def test_metrics_of_random_answers_are_those_of_other_libraries():
    choose = np.random.default_rng(0)
    guess, label = choose.integers(3, size=(2, 200))
    label[:80] = guess[:80]
    numbers = choose.normal(size=(2, 200))
    constant = np.zeros_like(guess)
    for name, arrays, want in (
        ("matthews", (constant, label), 0),
        ("matthews", (guess, constant), 0),
        ("pearson", (0.7 + np.zeros(200), numbers[0]), 0),
        ("accuracy", (guess, label), accuracy_score(label, guess)),
        ("matthews", (guess, label), matthews_corrcoef(label, guess)),
        ("pearson", numbers + numbers[:1], np.corrcoef(*(numbers + numbers[:1]))[0, 1]),
    ):
        score = metric(name, 3)
        for part in np.array_split(np.arange(200), 7):
            score.update(*(torch.from_numpy(np.asarray(array[part])) for array in arrays))
        assert float(score.compute()) == pytest.approx(want, abs=1e-6), name


def test_the_loss_is_the_mean_over_the_examples_of_all_tasks():
    tasks = several_tasks()
    model = text_tasks(language(), {"CoLA": 2, "MNLI": 3, "STS-B": 1})
    module = TextTasks(model, Optimization(), tasks).eval()
    module.log = lambda *arguments, **settings: None
    batch = {
        "text": torch.randint(6, 262, (6, 10)),
        "mask": torch.ones(6, 10, dtype=torch.bool),
        "task": torch.tensor([1, 2, 1, 2, 1, 2]),
        "label": torch.tensor([2.0, 3.5, 0.0, 1.0, 1.0, 0.2]),
    }
    answers = model({"text": InputArray(batch["text"], batch["mask"])})["label"]
    losses = [
        -answers["MNLI"][row].log_softmax(-1)[int(label)] if task == 1 else (answers["STS-B"][row, 0] - label) ** 2
        for row, (task, label) in enumerate(zip(batch["task"], batch["label"], strict=True))
    ]
    torch.testing.assert_close(module.training_step(batch, 0), sum(losses) / 6)


@pytest.mark.parametrize(("step", "training"), [(2, {}), (7, {"workers": 1})])
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, monkeypatch, step, training):
    """Two epochs of eight updates."""

    def run(name, **more):
        torch.manual_seed(0)
        arguments = settings(tmp_path / name, epochs=2, **training, **more)
        fine_tune(language(), Bytes(), several_tasks(), "multitask_query", *arguments)

    run("whole")
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(SystemExit):
            run("parts")
    run("parts", resume=True)
    whole, parts = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    a, b = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "parts"))
    assert a["test_mean"] == b["test_mean"]


def write_csv(path, texts):
    lines = [
        f'"{" ".join(parts)}",{texts.classes[label]}' for parts, label in zip(texts.texts, texts.labels, strict=True)
    ]
    path.write_text("\n".join(["review,sentiment", *lines]) + "\n")
    return path


def test_training_from_csv_learns_the_classes(tmp_path, folder):
    (tmp_path / "data").mkdir()
    write_csv(tmp_path / "data" / "train.csv", labelled(160, 0))
    write_csv(tmp_path / "data" / "test.csv", labelled(60, 1))
    optimization, training, _ = settings(tmp_path / "run", epochs=6, batch_size=16)
    optimization.lr = 1e-2
    run = TextClassification(
        {"init": str(folder)}, LabelledTextData(str(tmp_path / "data")), optimization=optimization, training=training
    )
    output = run.run()
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["test_accuracy"] == metrics["test_mean"] > 0.75
    model = perceivers.load(output / "model")
    assert model.outputs["label"].heads.names == {"label": ["no", "yes"]}
    texts = labelled(20, 7)
    alone = LabelledTexts([(" ".join(parts),) for parts in texts.texts], texts.labels, texts.classes)
    guesses = predict(model, Bytes(), None, alone, "label").argmax(1)
    assert accuracy_score(alone.labels, guesses) > 0.7
    written = json.loads((output / "config.json").read_text())
    assert (written["experiment"], written["model"]) == ("text_classification", {"init": str(folder)})


def test_a_model_in_the_format_of_transformers_is_a_beginning(tmp_path):
    model = create_model("language_bytes", length=40, latents=4, channels=16, depth=1, v_channels=16)
    to_transformers(model, tmp_path / "port")
    loaded, tokenizer = pretrained(tmp_path / "port")
    assert isinstance(tokenizer, Bytes)
    tokens = torch.randint(6, 262, (2, 9))
    torch.testing.assert_close(loaded({"text": tokens})["text"], model({"text": tokens})["text"], atol=1e-5, rtol=0)
    write_csv(tmp_path / "train.csv", labelled(40, 0))
    _, training, _ = settings(tmp_path / "run")
    run = TextClassification(
        {"init": str(tmp_path / "port")},
        LabelledTextData(str(tmp_path / "train.csv")),
        optimization=Optimization(lr=1e-12),
        training=training,
    )
    trained = perceivers.load(run.run() / "model")
    weights = loaded.state_dict()
    kept = [name for name in trained.state_dict() if name in weights]
    assert len(kept) > 30
    for name in kept:
        torch.testing.assert_close(trained.state_dict()[name], weights[name], atol=1e-8, rtol=0)


def test_a_preset_is_trained_from_nothing(tmp_path):
    write_csv(tmp_path / "train.csv", labelled(40, 0))
    _, training, _ = settings(tmp_path / "run")
    data = LabelledTextData(str(tmp_path / "train.csv"))
    output = TextClassification({"preset": "bert_bytes", **SMALL_BERT}, data, training=training).run()
    model = load_model(output / "model")
    assert isinstance(model, BERT)
    assert json.loads((output / "metrics.json").read_text())["parameters"] == sum(p.numel() for p in model.parameters())


def test_models_that_do_not_fit_are_refused(tmp_path, folder):
    with pytest.raises(PerceiversError, match=r"model\.init is missing: name a pretrained language model, or a preset"):
        TextClassification({}).run()
    run = TextClassification({"preset": "bert_bytes", **SMALL_BERT, "vocabulary": 300})
    with pytest.raises(PerceiversError, match=r"model\.vocabulary = 300 is not allowed: it must be 262, as in the tok"):
        run.run()
    image = create_model("imagenet_fourier", image_size=8, bands=2, latents=4, channels=8, depth=1, heads=1)
    image.save(tmp_path / "image")
    with pytest.raises(PerceiversError, match="this model reads image: a language model, which reads text, is needed"):
        pretrained(tmp_path / "image")
    other = create_model("language_bytes", **PERCEIVER, vocabulary=300)
    other.save(tmp_path / "other")
    with pytest.raises(PerceiversError, match=r"has no tokenizer\.model, and the model's 300 tokens are not bytes"):
        pretrained(tmp_path / "other")
