"""Numbers, and the metrics of them."""

import math
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from perceivers.errors import PerceiversError
from perceivers.tables.columns import Number, make_column
from perceivers.tables.columns.number import choose_scale, compute_skewness, parse_number

HERE = Path()


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("3", 3.0),
        (" -1.5e3 ", -1500.0),
        ("+.5", 0.5),
        ("7.", 7.0),
        ("1,234,567.5", 1234567.5),
        ("12\u00a0345", 12345.0),
        (4, 4.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (np.int16(-3), -3.0),
        (np.bool_(False), 0.0),
        (Decimal("2.25"), 2.25),
        *((cell, None) for cell in ("", "x", "1,23", "1 e", "nan", "inf", "1e999", "0x10", "1_000", "٣x")),
        *((cell, None) for cell in (math.inf, math.nan, 10**400, Decimal("sNaN"), None, [1], b"1")),
    ],
)
def test_cells(cell, number):
    assert parse_number(cell) == number
    if number is None:
        with pytest.raises(PerceiversError, match=r"is not a number$"):
            Number().read(cell, HERE)
    else:
        assert Number().read(cell, HERE) == number


def test_mean_and_deviation_and_quantiles_are_learned():
    numbers = np.random.default_rng(0).normal(5, 3, 1000)
    column = Number().learn([str(number) for number in numbers], HERE)
    assert column.scale == "linear"
    assert (column.mean, column.std) == pytest.approx((numbers.mean(), numbers.std()), rel=1e-12)
    standardized = (numbers - numbers.mean()) / numbers.std()
    np.testing.assert_allclose(column.edges, np.quantile(standardized, np.linspace(0, 1, len(column.edges))), rtol=1e-5)
    np.testing.assert_allclose(column.collate(numbers[:9]), standardized[:9], rtol=1e-5)


def test_learned_numbers_are_those_of_all_cells_whatever_their_size():
    """Neither large numbers that differ little, nor equal ones, nor a single one, break the scale."""
    column = Number().learn([1e12 + step for step in range(5)], HERE)
    assert column.std == pytest.approx(math.sqrt(2))
    assert column.collate([1e12, 1e12 + 4]).tolist() == pytest.approx([-math.sqrt(2), math.sqrt(2)])
    for cells in ([0.1] * 7, [3]):
        equal = Number().learn(cells, HERE)
        assert equal.std == 1
        assert equal.collate([cells[0]]).item() == pytest.approx(0, abs=1e-6)
        assert len(equal.edges) == 2
    assert equal.edges[0] < equal.edges[1]


def test_repeated_quantiles_are_one_edge():
    column = Number().learn([0] * 900 + list(range(1, 101)), HERE)
    assert all(low < high for low, high in zip(column.edges, column.edges[1:], strict=False))
    column.input_adapter(4)


def test_skewed_numbers_are_scaled_by_their_logarithm():
    numbers = np.random.default_rng(0).lognormal(3, 1, 500)
    assert compute_skewness(numbers) == pytest.approx(stats.skew(numbers))
    assert compute_skewness(np.ones(3)) == 0
    column = Number().learn(numbers, HERE)
    assert column.scale == "log"
    assert (column.mean, column.std) == pytest.approx((np.log(numbers).mean(), np.log(numbers).std()))
    np.testing.assert_allclose(
        column.collate(numbers), (np.log(numbers) - column.mean) / column.std, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(column.answer(column.collate(numbers)), numbers, rtol=1e-5)
    assert column.answer(column.collate([column.blank()])).item() == pytest.approx(math.exp(column.mean))
    assert choose_scale(np.append(numbers, 0)) == "linear"
    assert choose_scale(-numbers) == "linear"
    assert Number(scale="linear").learn(numbers, HERE).scale == "linear"


def test_log_of_other_tables_is_finite():
    column = Number(scale="log").learn([1.0, 10.0, 100.0], HERE)
    assert torch.isfinite(column.collate([0.0, -5.0, 1e-300])).all()
    with pytest.raises(PerceiversError, match="it has -1, but scale: log needs positive numbers"):
        Number(scale="log").learn([1, -1], HERE)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("squared", lambda error: error**2),
        ("absolute", abs),
        ("huber", lambda error: error**2 / 2 if abs(error) < 0.5 else 0.5 * (abs(error) - 0.25)),
    ],
)
def test_losses(kind, formula):
    predicted, target = torch.tensor([0.75, -2.0, 3.0]), torch.tensor([0.0, 1.0, 3.25])
    found = Number(loss=kind).loss(predicted[:, None, None], target)
    assert found.tolist() == pytest.approx([formula(error) for error in (target - predicted).tolist()])


def test_quantiles():
    """Their loss is that of scikit-learn, and their columns are named after them."""
    column = Number(quantiles=[0.1, 0.975], mean=10, std=2)
    predicted, target = torch.randn(7, 1, 3), torch.randn(7)
    found = column.loss(predicted, target)
    expected = [
        np.mean(
            [
                metrics.mean_pinball_loss([truth], [guess], alpha=q)
                for q, guess in zip((0.5, 0.1, 0.975), row, strict=True)
            ]
        )
        for truth, row in zip(target.tolist(), predicted[:, 0].tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert list(column.fields("x")) == ["x_predicted", "x_q10", "x_q97.5"]
    answers = column.answer(predicted)
    torch.testing.assert_close(answers, predicted[:, 0].double() * 2 + 10)
    assert column.write(answers) == answers.tolist()
    assert torch.equal(column.point(answers), answers[:, 0])
    assert column.output_adapter("x", 8).channels == 3


def test_metrics_are_those_of_scikit_learn():
    column = Number(scale="log", mean=1.0, std=2.0)
    truth, guess = torch.rand(50) * 5 + 1, torch.rand(50) * 5 + 1
    found = column.metrics()
    for part in (slice(0, 20), slice(20, 50)):
        for metric in found.values():
            metric.update(column.point(guess[part].double()), truth[part].double())
    assert {name: metric.compute().item() for name, metric in found.items()} == pytest.approx(
        {
            "rmse": metrics.root_mean_squared_error(truth, guess),
            "mae": metrics.mean_absolute_error(truth, guess),
            "r2": metrics.r2_score(truth, guess),
            "mape": metrics.mean_absolute_percentage_error(truth, guess),
        },
        rel=1e-5,
    )
    assert "mape" not in Number(scale="linear").metrics()


def test_r2_of_large_and_of_equal_numbers():
    r2 = Number().metrics()["r2"]
    truth = torch.arange(5, dtype=torch.float64) + 1e6
    r2.update(truth + 1, truth)
    assert r2.compute().item() == pytest.approx(0.5, rel=1e-3)
    r2.reset()
    r2.update(torch.tensor([3.0]), torch.tensor([2.0]))
    assert r2.compute() == 0


def test_one_answer_is_written_with_all_digits():
    column = Number(mean=1e6, std=0.001)
    answers = column.answer(torch.tensor([[[1.0]], [[0.0]]]))
    assert column.write(answers) == [[pytest.approx(1000000.001, abs=1e-9)], [1e6]]
    assert column.fields("x") == {"x_predicted": float}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantiles": [0.5]}, "number: quantiles"),
        ({"quantiles": [1.0]}, "number: quantiles"),
        ({"std": 0}, "number: std"),
        ({"scale": "sqrt"}, "scale"),
        ({"middle": 1}, "middle"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(PerceiversError, match=f"column 'x': .*{message}"):
        make_column("x", {"type": "number", **settings})
