import io
import json
import sys

import pytest
import torch

from perceivers import PerceiversError
from perceivers.cli import main
from perceivers.text.bert import BERT
from perceivers.text.classify import classify_text, text_encoding
from perceivers.text.fine_tuning import TextTask
from perceivers.text.glue import Glue
from perceivers.text.labeled import LabeledTexts
from perceivers.text.model import LanguageConfig, text_tasks
from perceivers.text.tokenizers import CLS, FIRST_BYTE, SEP, Bytes, SentencePiece, train_tokenizer
from tests.support.cli import fails
from tests.support.models import classifier, labels, language

TASKS = {"mood": 2, "topic": 3, "alike": 1}
NAMES = {"mood": ["bad", "good"]}
METHODS = {  # extra tokens, a shared query -> what stands in front of the texts of the three tasks
    "multitask_query": (0, False, [[], [], []]),
    "shared_token": (0, True, [[CLS], [CLS], [CLS]]),
    "task_tokens": (3, True, [[262], [263], [264]]),
}


def bytes_of(text):
    return [FIRST_BYTE + byte for byte in text.encode()]


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_those_of_the_models_own_tokens(method):
    num_task_tokens, shared, fronts = METHODS[method]
    model = labels(TASKS, NAMES, num_task_tokens, shared)
    for task, front in zip(TASKS, fronts, strict=True):
        texts = {"né 🙂": bytes_of("né 🙂"), ("one", "other"): [*bytes_of("one"), SEP, *bytes_of("other")]}
        answers = classify_text(model, list(texts), task)
        for tokens, answer in zip(texts.values(), answers, strict=True):
            with torch.no_grad():
                values_K = model({"text": torch.tensor([front + tokens])})["label"][task][0].double()
            if task == "alike":
                assert answer == {"score": pytest.approx(float(values_K), rel=1e-4)}
                continue
            weights = values_K.exp()
            expected = {NAMES.get(task, "012")[k]: float(weights[k] / weights.sum()) for k in range(TASKS[task])}
            assert answer == pytest.approx(expected, rel=1e-4)
            assert list(answer.values()) == sorted(answer.values(), reverse=True)


@pytest.mark.parametrize(("num_task_tokens", "fronts"), [(0, [[CLS]] * 3), (3, [[262], [263], [264]])])
def test_bert_always_has_a_first_token(num_task_tokens, fronts):
    bert = text_tasks(BERT(262, 16, 8, 1, 1), TASKS, num_task_tokens=num_task_tokens)
    encoding = text_encoding(bert, Bytes())
    assert [encoding.encode(["a"], task).tolist() for task in range(3)] == [
        [*front, *bytes_of("a")] for front in fronts
    ]


@pytest.mark.parametrize(("method", "front"), [("single_task", []), ("shared_token", [CLS]), ("task_tokens", [262])])
def test_training_reads_texts_alike(method, front):
    texts = LabeledTexts([("ab",), ("c",)], [0, 1], ["x", "y"])
    task = TextTask(texts, {"accuracy": texts}, "accuracy")
    prepared = Glue(model=LanguageConfig(init="unused")).prepare_tasks(language, Bytes(), {"mood": task}, method)
    for samples in (prepared.training, prepared.validation):
        assert [example["text"].tolist() for example in samples.examples] == [
            [*front, *bytes_of("ab")],
            [*front, *bytes_of("c")],
        ]


def test_pieces_of_words(tmp_path):
    words = "the quick brown fox jumps over a lazy dog and runs away from all the other foxes"
    train_tokenizer([words] * 20, tmp_path / "words.model", 290)
    tokenizer = SentencePiece(tmp_path / "words.model")
    model = labels(vocabulary=290, shared_query=True)
    model.save(tmp_path / "model")
    with pytest.raises(PerceiversError, match=r"has no tokenizer.model, and the model's 290 tokens are not bytes"):
        classify_text(tmp_path / "model", ["the fox"])
    tokenizer.save(tmp_path / "model")
    (answer,) = classify_text(tmp_path / "model", ["the fox"], device="cpu")
    tokens = torch.tensor([[tokenizer.cls, *tokenizer.encode("the fox").tolist()]])
    expected_K = model({"text": tokens})["label"]["topic"][0].detach().softmax(0)
    assert answer == pytest.approx({str(k): float(expected_K[k]) for k in range(3)}, rel=1e-4)
    with pytest.raises(PerceiversError, match=r"the model's 290 tokens are not bytes .* give the folder"):
        classify_text(model, ["the fox"])


def test_the_longest_text_fits():
    model = labels(length=8, shared_query=True)
    assert len(classify_text(model, ["1234567", ("123", "456")])) == 2
    with pytest.raises(PerceiversError, match="text 2 has 9 tokens, but the model reads at most 8: shorten it"):
        classify_text(model, ["1234567", "12345678"])
    with pytest.raises(PerceiversError, match="text 1 has 9 tokens, but the model reads at most 8"):
        classify_text(model, [("123", "4567")])


@pytest.mark.parametrize("texts", [["a", ""], ["a", " \n"], ["a", ("b", "")]])
def test_empty_texts(texts):
    with pytest.raises(PerceiversError, match="text 2 is empty: give one with words"):
        classify_text(labels(), texts)


def test_the_task_is_named_where_there_are_several():
    model = labels(TASKS)
    with pytest.raises(PerceiversError, match=r"several tasks: name one as task \(--task\), of mood, topic, alike\."):
        classify_text(model, ["a"])
    with pytest.raises(PerceiversError, match="the model has no task 'tropic': did you mean 'topic'"):
        classify_text(model, ["a"], "tropic")


def test_other_models_are_refused():
    for model, what in [(language(), "text and predicts text"), (classifier(), "image and predicts label")]:
        with pytest.raises(
            PerceiversError, match=f"this model does not classify texts: it reads {what}, instead of a text and its"
        ):
            classify_text(model, ["a"])


@pytest.fixture
def folder(tmp_path):
    labels(TASKS, NAMES).save(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_command(folder, capsys):
    (answer,) = classify_text(folder, ["a text"], "topic")
    main(["classify-text", folder, "a text", "--task", "topic", "--top", "2"])
    best = list(answer.items())[:2]
    assert capsys.readouterr().out.splitlines() == ["a text", *(f"{100 * p:8.2f}%  {name}" for name, p in best)]
    (score,) = classify_text(folder, [("one", "other")], "alike")
    main(["classify-text", folder, "one", "other", "--task", "alike"])
    assert capsys.readouterr().out.splitlines() == ["one", "other", f"  {score['score']:.4f}"]
    main(["classify-text", folder, "one", "other", "--task", "alike", "--json"])
    assert json.loads(capsys.readouterr().out) == [{"text": ["one", "other"], "score": pytest.approx(score["score"])}]


def test_the_command_reads_a_text_a_line(folder, tmp_path, capsys, monkeypatch):
    content = "\ufeffné\r\na\u2028b\nlast\n".encode()
    (tmp_path / "texts").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"))
    texts = ["né", "a\u2028b", "last"]
    expected = classify_text(folder, texts, "mood")
    for source in (["--file", str(tmp_path / "texts")], ["-"]):
        main(["classify-text", folder, *source, "--task", "mood", "--json"])
        answers = json.loads(capsys.readouterr().out)
        assert [answer["text"] for answer in answers] == texts
        for answer, wanted in zip(answers, expected, strict=True):
            assert answer["classes"] == pytest.approx(wanted)


def test_a_line_without_an_answer_does_not_lose_the_others(folder, tmp_path, capsys):
    (tmp_path / "texts").write_text("a\n\n" + "x" * 49 + "\nb\n")
    expected = classify_text(folder, ["a", "b"], "mood")
    with pytest.raises(SystemExit) as stop:
        main(["classify-text", folder, "--file", str(tmp_path / "texts"), "--task", "mood", "--json"])
    assert stop.value.code == 1
    first, blank, long, last = json.loads(capsys.readouterr().out)
    assert [first["classes"], last["classes"]] == [pytest.approx(answer) for answer in expected]
    assert blank == {"text": "", "error": "text 2 is empty: give one with words."}
    assert long["error"] == "text 3 has 49 tokens, but the model reads at most 48: shorten it."


def test_what_the_command_cannot_do_ends_in_one_sentence(folder, tmp_path, capsys):
    for arguments, message in [
        ([], "classify-text needs one text"),
        (["a", "--file", "b"], "classify-text needs one text"),
        (["a", "b", "--file", "c"], "give a pair of texts as two arguments"),
        (["-", "b"], "give a pair of texts as two arguments"),
        (["a"], "the model has several tasks"),
        (["a", "--task", "none"], "the model has no task 'none': there are: alike, mood, topic."),
        (["x" * 49, "--task", "mood"], "text 1 has 49 tokens, but the model reads at most 48"),
        (["\udcff", "--task", "mood"], "the text cannot be written in UTF-8"),
    ]:
        assert message in fails(capsys, "classify-text", folder, *arguments)
