"""Categories: one of several, yes or no, and any of several."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics

from perceivers.errors import PerceiversError
from perceivers.tables.columns import Categories, Category, YesNo
from perceivers.tables.columns import category as module

HERE = Path()


def test_names_are_learned_in_order():
    assert Category().learn(["b", "a", " c ", "a"], HERE).names == ["a", "b", "c"]
    assert Category().learn(["10", "9", "-1"], HERE).names == ["-1", "9", "10"]
    assert Category().learn([2.0, 1, "3"], HERE).names == ["1", "2", "3"]
    assert Category().learn([True, np.bool_(False)], HERE).names == ["False", "True"]
    assert Category(["z"]).learn(["a"], HERE).names == ["z"]


def test_the_most_frequent_names_are_learned(monkeypatch):
    monkeypatch.setattr(module, "MOST_CATEGORIES", 2)
    assert Category().learn(["a", "b", "c", "c", "b"], HERE).names == ["b", "c"]
    assert Categories().learn(["a,b", "c", "c,b"], HERE).names == ["b", "c"]


def test_unknown_categories():
    """One that training did not have is its own category as an input, and refused as a target."""
    column = Category(["red", "green"])
    assert [column.read(cell, HERE) for cell in ("red", "green", " green", "blue")] == [1, 2, 2, 0]
    assert column.collate([1, 0]).tolist() == [1, 0]
    adapter = column.input_adapter(4)
    assert adapter.embedding.num_embeddings == 3
    with pytest.raises(PerceiversError, match="'gren' is a category that training did not have: did you mean 'green'"):
        column.check_target("gren")
    column.check_target("green")


def test_a_column_of_one_category_cannot_be_predicted():
    with pytest.raises(PerceiversError, match="the column 'x' has 1 categories: two are needed"):
        Category(["a"]).output_adapter("x", 4)
    with pytest.raises(PerceiversError, match="the column 'x' has no categories"):
        Categories().output_adapter("x", 4)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_cross_entropy(smoothing):
    logits = torch.randn(5, 3)
    target = torch.tensor([1, 2, 3, 3, 1])
    log_probability = logits.log_softmax(-1)
    wanted = (1 - smoothing) * torch.eye(3)[target - 1] + smoothing / 3
    found = Category(["a", "b", "c"], smoothing=smoothing).loss(logits, target)
    torch.testing.assert_close(found, -(wanted * log_probability).sum(-1))
    torch.testing.assert_close(Category(["a", "b", "c"]).answer(logits), logits.double().softmax(-1))


@pytest.mark.parametrize("count", [2, 3])
def test_metrics_of_a_category(count):
    column = Category([f"{k}" for k in range(count)])
    probability = torch.rand(60, count).softmax(-1)
    target = torch.randint(1, count + 1, (60,))
    truth = column.truth(target)
    found = column.metrics()
    for part in (slice(0, 25), slice(25, 60)):
        for metric in found.values():
            metric.update(probability[part], truth[part])
    guess = probability.argmax(-1)
    two = {"average": "binary"} if count == 2 else {"average": "macro"}
    auroc = metrics.roc_auc_score(truth, probability[:, 1] if count == 2 else probability, multi_class="ovr")
    assert {name: metric.compute().item() for name, metric in found.items()} == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(truth, guess),
            "auroc": auroc,
            "f1": metrics.f1_score(truth, guess, **two),
        },
        rel=1e-5,
    )
    for metric in found.values():
        metric.reset()
        metric.update(probability[:1], truth[:1])
    assert found["auroc"].compute() == 0.5


def test_written_categories():
    column = Category(["red", "green"])
    assert column.write(torch.tensor([[0.25, 0.75], [0.9, 0.1]])) == [["green", 0.75], ["red", pytest.approx(0.9)]]
    assert column.fields("x") == {"x_predicted": str, "x_probability": float}


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (["Yes", "NO", "y"], ["NO", "Yes"]),
        ([1, 0], ["0", "1"]),
        ([True, False], ["False", "True"]),
        (["t", "f"], ["f", "t"]),
        ([1.0, 0.0], ["0", "1"]),
        (["off", "on"], ["off", "on"]),
        (["yes"], ["no", "yes"]),
    ],
)
def test_yes_and_no(cells, names):
    """They are read in any form, and written in that of training."""
    column = YesNo().learn(cells, HERE)
    assert column.names == names
    assert [column.read(cell, HERE) for cell in ("TRUE", 0, np.bool_(True), 1.0, "n")] == [2, 1, 2, 2, 1]
    assert column.write(torch.tensor([[0.125, 0.875]])) == [[names[1], 0.875]]
    with pytest.raises(PerceiversError, match="'maybe' is not yes or no"):
        column.read("maybe", HERE)


@pytest.mark.parametrize(
    ("cells", "separator", "names"),
    [
        (["b, a", "c"], ",", ["a", "b", "c"]),
        (["b; a", "c,d", "a;b"], ";", ["a", "b", "c,d"]),
        (["b|a", "c|a", "d"], "|", ["a", "b", "c", "d"]),
        ([["b", "a"], ("c", None), np.array(["d"])], ",", ["a", "b", "c", "d"]),
        ([[10, 9], []], ",", ["9", "10"]),
    ],
)
def test_sets_are_learned(cells, separator, names):
    column = Categories().learn(cells, HERE)
    assert (column.separator, column.names) == (separator, names)


def test_sets_are_read_in_any_order():
    column = Categories(["a", "b", "c"], ",")
    found = [column.read(cell, HERE).tolist() for cell in ("c, a", ["a", "c", "a"], "b,x", {"x"}, ",", [])]
    assert found == [[1, 3], [1, 3], [0, 2], [0], [0], [0]]


def test_a_batch_of_sets():
    column = Categories(["a", "b", "c"], ",")
    batch = column.collate([column.read(cell, HERE) for cell in ("c,a", "b", "x")])
    assert batch.mask_BM.tolist() == [[True, True], [True, False], [True, False]]
    assert batch.x_BMC[batch.mask_BM].tolist() == [1, 3, 2, 0]
    assert column.truth(batch).tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_loss_and_metrics_of_sets():
    column = Categories(["a", "b", "c"], ",")
    cells = [["a"], ["a", "c"], ["b"], []] * 5
    batch, truth = column.collate([column.read(cell, HERE) for cell in cells]), np.zeros((20, 3), dtype=int)
    for row, cell in enumerate(cells):
        truth[row, ["abc".index(name) for name in cell]] = 1
    logits = torch.randn(20, 3)
    probability = column.answer(logits)
    expected = [metrics.log_loss(t, p, labels=[0, 1]) for t, p in zip(truth, probability.numpy(), strict=True)]
    assert column.loss(logits, batch).tolist() == pytest.approx(expected, rel=1e-5)
    found = column.metrics()
    for metric in found.values():
        metric.update(probability, column.truth(batch))
    assert found["f1"].compute().item() == pytest.approx(metrics.f1_score(truth.ravel(), probability.ravel() > 0.5))
    assert found["auroc"].compute().item() == pytest.approx(metrics.roc_auc_score(truth, probability))


@pytest.mark.parametrize(("separator", "cell"), [(",", "a, c"), (";", "a; c"), ("|", "a|c")])
def test_a_written_set_can_be_read(separator, cell):
    column = Categories(["a", "b", "c"], separator)
    written = column.write(torch.tensor([[0.9, 0.5, 0.51], [0.1, 0.2, 0.3]]))
    assert written == [[cell], [""]]
    assert column.read(written[0][0], HERE).tolist() == [1, 3]
