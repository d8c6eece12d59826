import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, matthews_corrcoef

import perceivers
from perceivers import InputArray, PerceiverIO, PerceiversError
from perceivers.checkpoints.load import load_model, pretrained_config
from perceivers.cli import main
from perceivers.presets import create_model
from perceivers.released.export import to_transformers
from perceivers.text.bert import BERT
from perceivers.text.fine_tuning import (
    TextClassification,
    TextTasks,
    evaluate,
    make_metric,
)
from perceivers.text.labeled import LabeledTextData, LabeledTexts, TextTask
from perceivers.text.model import text_tasks
from perceivers.text.tokenizers import Bytes
from perceivers.training.config import read_config
from perceivers.training.evaluation import find_experiment
from perceivers.training.optimization import Optimization
from tests.support.cli import fails
from tests.support.fine_tuning import (
    PERCEIVER,
    SMALL_BERT,
    Several,
    config,
    labeled,
    scored,
    settings,
    several_tasks,
    write_csv,
)
from tests.support.models import classifier, labels


def language():
    return config().build()


@pytest.fixture
def folder(tmp_path):
    """A language model as a run would save it."""
    language().save(tmp_path / "language")
    return tmp_path / "language"


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
    output = Several(model=config(kind), method=method, **settings(tmp_path / "run")).run()
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
        assert metrics[f"val_{part}"] == pytest.approx(value, abs=1e-4), part
    mean = np.mean([want["CoLA"], (want["MNLI_matched"] + want["MNLI_mismatched"]) / 2, want["STS-B"]])
    assert metrics["val_mean"] == pytest.approx(mean, abs=1e-4)


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
        score = make_metric(name, 3)
        for part in np.array_split(np.arange(200), 7):
            score.update(*(torch.from_numpy(np.asarray(array[part])) for array in arrays))
        assert float(score.compute()) == pytest.approx(want, abs=1e-6), name


def test_the_loss_is_the_mean_over_the_examples_of_all_tasks():
    model = text_tasks(language(), {"CoLA": 2, "MNLI": 3, "STS-B": 1})
    module = TextTasks(model).eval()
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


def test_training_from_csv_learns_the_classes(tmp_path, folder):
    (tmp_path / "data").mkdir()
    write_csv(tmp_path / "data" / "train.csv", labeled(160, 0))
    write_csv(tmp_path / "data" / "test.csv", labeled(60, 1))
    run = TextClassification(
        model=pretrained_config(folder),
        data=LabeledTextData(str(tmp_path / "data")),
        **settings(tmp_path / "run", max_epochs=6, batch_size=16),
    )
    run.optimization.lr = 1e-2
    output = run.run()
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["val_accuracy"] == metrics["val_mean"] > 0.75
    model = perceivers.load(output / "model")
    assert model.outputs["label"].heads.names == {"label": ["no", "yes"]}
    texts = labeled(20, 7)
    alone = LabeledTexts([(" ".join(parts),) for parts in texts.texts], texts.labels, texts.classes)
    guesses = predict(model, Bytes(), None, alone, "label").argmax(1)
    assert accuracy_score(alone.labels, guesses) > 0.7
    written = json.loads((output / "config.json").read_text())
    assert (written["experiment"], written["model"]["init"]) == ("text_classification", str(folder))
    assert written["model"]["latents"] == 4


def test_an_epoch_of_few_examples_repeats_them_with_their_weights(tmp_path):
    texts = labeled(20, 0)
    file = write_csv(tmp_path / "train.csv", texts)
    data = LabeledTextData(str(file))
    run = TextClassification(
        model=config(), data=data, min_examples=50, class_weights={"yes": 3}, **settings(tmp_path / "run")
    )
    samples = run.prepare().training
    assert len(samples) == len(samples.weights) == 54
    assert samples.weights == [1 + 2 * example["label"] for example in samples.examples]


def test_a_model_in_the_format_of_transformers_is_a_beginning(tmp_path):
    model = create_model("language_bytes", length=40, latents=4, channels=16, depth=1, v_channels=16)
    to_transformers(model, tmp_path / "port")
    loaded = perceivers.load(tmp_path / "port")
    tokens = torch.randint(6, 262, (2, 9))
    torch.testing.assert_close(loaded({"text": tokens})["text"], model({"text": tokens})["text"], atol=1e-5, rtol=0)
    write_csv(tmp_path / "train.csv", labeled(40, 0))
    run = TextClassification(
        model=pretrained_config(tmp_path / "port"),
        data=LabeledTextData(str(tmp_path / "train.csv")),
        **settings(tmp_path / "run"),
    )
    run.optimization = Optimization(lr=1e-12)
    trained = perceivers.load(run.run() / "model")
    assert isinstance(run.language_tokenizer, Bytes)
    weights = loaded.state_dict()
    kept = [name for name in trained.state_dict() if name in weights]
    assert len(kept) > 30
    for name in kept:
        torch.testing.assert_close(trained.state_dict()[name], weights[name], atol=1e-8, rtol=0)


def test_a_preset_is_trained_from_nothing(tmp_path):
    write_csv(tmp_path / "train.csv", labeled(40, 0))
    data = LabeledTextData(str(tmp_path / "train.csv"))
    output = TextClassification(model=config("bert_bytes"), data=data, **settings(tmp_path / "run")).run()
    model = load_model(output / "model")
    assert isinstance(model, BERT)
    assert json.loads((output / "metrics.json").read_text())["parameters"] == sum(p.numel() for p in model.parameters())


def test_models_that_do_not_fit_are_refused(tmp_path):
    def run(model):
        (tmp_path / "config.yaml").write_text(json.dumps({"experiment": "text_classification", "model": model}))
        read_config(tmp_path / "config.yaml").run()

    with pytest.raises(PerceiversError, match=r"model\.preset is missing"):
        run({})
    with pytest.raises(PerceiversError, match=r"model\.vocabulary = 300 is not allowed: it must be 262, as in"):
        run({"preset": "bert_bytes", **SMALL_BERT, "vocabulary": 300})
    with pytest.raises(PerceiversError, match="no/such/model is neither a folder nor a file here"):
        run({"init": "no/such/model"})
    with pytest.raises(PerceiversError, match=r"model\.init and model\.preset both name a model"):
        run({"preset": "bert_bytes", "init": "no/such/model"})
    image = create_model("imagenet_fourier", image_size=8, bands=2, latents=4, channels=8, depth=1, heads=1)
    image.save(tmp_path / "image")
    with pytest.raises(PerceiversError, match="is a model of another domain, which reads image and predicts label"):
        run({"init": str(tmp_path / "image")})
    other = create_model("language_bytes", **PERCEIVER, vocabulary=300)
    other.save(tmp_path / "other")
    with pytest.raises(PerceiversError, match=r"has no tokenizer\.model, and the model's 300 tokens are not bytes"):
        run({"init": str(tmp_path / "other")})


def measure(capsys, *argv):
    """What `perceivers evaluate` finds."""
    capsys.readouterr()
    main(["evaluate", *map(str, argv), "--device", "cpu", "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("kind", ["language_bytes", "bert_bytes"])
def test_the_command_evaluate_gives_the_figures_of_the_run(tmp_path, capsys, kind):
    (tmp_path / "data").mkdir()
    training = write_csv(tmp_path / "data" / "train.csv", labeled(60, 0))
    test = write_csv(tmp_path / "data" / "test.csv", labeled(41, 1))
    arguments = settings(tmp_path / "run")
    run = TextClassification(model=config(kind), data=LabeledTextData(str(tmp_path / "data")), **arguments).run()
    accuracy = json.loads((run / "metrics.json").read_text())["val_accuracy"]
    model = str(run / "model")
    for path, total, split in ((tmp_path / "data", 101, "test"), (test, 41, None)):
        assert measure(capsys, model, "--data", path) == {
            "accuracy": pytest.approx(accuracy),
            "texts": 41,
            "total": total,
            "split": split,
        }
    main(["evaluate", model, "--data", str(tmp_path / "data"), "--text", "review", "--label", "sentiment"])
    assert capsys.readouterr().out == f"41 of 101 texts (test): accuracy {accuracy:.2%}\n"
    assert measure(capsys, model, "--data", training)["texts"] == 60
    assert find_experiment(model) is TextClassification


def test_the_part_of_a_file_that_training_held_out_is_evaluated(tmp_path, capsys):
    file = write_csv(tmp_path / "all.csv", labeled(60, 0))
    data = LabeledTextData(str(file), validation_fraction=0.3)
    run = TextClassification(model=config(), data=data, **settings(tmp_path / "run")).run()
    accuracy = json.loads((run / "metrics.json").read_text())["val_accuracy"]
    found = measure(capsys, run / "model", "--data", file, "--validation-fraction", "0.3")
    assert found == {"accuracy": pytest.approx(accuracy), "texts": 18, "total": 60, "split": None}
    assert measure(capsys, run / "model", "--data", file)["texts"] == 60


def test_classes_are_those_of_the_model_by_name(tmp_path, capsys):
    """The file has fewer, in another order, and only the model's may be there."""
    model = labels({"mood": 3}, {"mood": ["sad", "glad", "angry"]})
    model.save(tmp_path / "model")
    texts = [f"text {number}" for number in range(30)]
    tokens = [torch.from_numpy(Bytes().encode(text))[None] for text in texts]
    guesses = [int(model({"text": token_BM})["label"]["mood"].argmax()) for token_BM in tokens]
    rows = [f"{text},{('sad', 'glad')[number % 2]}" for number, text in enumerate(texts)]
    (tmp_path / "some.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    right = np.mean([guess == number % 2 for number, guess in enumerate(guesses)])
    assert measure(capsys, tmp_path / "model", "--data", tmp_path / "some.csv")["accuracy"] == pytest.approx(right)
    (tmp_path / "some.csv").write_text("\n".join(["text,label", *rows, "other,merry"]) + "\n")
    err = fails(capsys, "evaluate", str(tmp_path / "model"), "--data", str(tmp_path / "some.csv"))
    assert "line 32 of" in err
    assert "has the label 'merry', which the model does not know" in err


def test_models_and_tasks_that_cannot_be_evaluated():
    texts = labeled(4, 0)
    with pytest.raises(PerceiversError, match="does not classify texts: it reads image and predicts label"):
        evaluate(classifier(), Bytes(), {"a": TextTask(None, {"a": texts}, "accuracy")})
    model = labels({"a": 2, "b": 1}, {"a": ["bad", "good"]})
    for name, metric, examples, message in [
        ("c", "accuracy", texts, "the model has no task 'c': it has a, b"),
        ("a", "accuracy", texts, "the examples of a have no, yes, but the model knows bad, good"),
        ("b", "accuracy", texts, "the examples of b have no, yes, but the model knows numbers"),
        ("a", "pearson", scored(4, 0), "the examples of a have numbers, but the model knows bad, good"),
    ]:
        with pytest.raises(PerceiversError, match=message):
            evaluate(model, Bytes(), {name: TextTask(None, {"set": examples}, metric)})
