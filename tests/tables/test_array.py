"""Arrays of numbers, and series of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics

from perceivers.errors import PerceiversError
from perceivers.tables.columns import Array, Series
from perceivers.tables.columns.array import SAMPLE, read_array

HERE = Path()
GRID = [[1.0, 2.5], [3.0, -4.0], [0.0, 1e3]]


def forms(folder):
    """The same array in all forms of cells."""
    np.save(folder / "x.npy", np.array(GRID, dtype=np.float32))
    nested = np.empty(3, dtype=object)
    nested[:] = [np.array(row) for row in GRID]
    return {
        "list": GRID,
        "tuple": tuple(map(tuple, GRID)),
        "array": np.array(GRID),
        "nested arrays": nested,
        "JSON": json.dumps(GRID),
        "path": "x.npy",
        "dict": {"path": "x.npy", "bytes": None},
        "bytes": (folder / "x.npy").read_bytes(),
    }


def test_cells(tmp_path):
    for form, cell in forms(tmp_path).items():
        found = read_array(cell, tmp_path)
        assert found.dtype == np.float64, form
        np.testing.assert_array_equal(found, GRID, err_msg=form)
    np.save(tmp_path / "bool.npy", np.array([True, False]))
    assert read_array("bool.npy", tmp_path).tolist() == [1, 0]


@pytest.mark.parametrize(
    "cell",
    [
        "[1, 2",
        '["a"]',
        "[[1], [2, 3]]",
        "[]",
        "[1, NaN]",
        [float("inf")],
        "none.npy",
        3,
        "text.npy",
        "object.npy",
        b"x",
    ],
)
def test_cells_that_are_no_arrays(tmp_path, cell):
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(PerceiversError):
        read_array(cell, tmp_path)


def test_shape_and_scale_are_learned():
    arrays = np.random.default_rng(0).normal(7, 3, (20, 2, 3))
    column = Array().learn([*arrays], HERE)
    assert (column.shape, column.grid, column.width) == ([2, 3], (2, 3), 1)
    assert (column.mean, column.std) == pytest.approx((arrays.mean(), arrays.std()), rel=1e-12)
    value = column.read(arrays[0], HERE)
    np.testing.assert_allclose(value[..., 0], (arrays[0] - arrays.mean()) / arrays.std(), rtol=1e-5)
    np.testing.assert_allclose(column.answer(value[None])[0], arrays[0], rtol=1e-5)
    assert column.blank().shape == value.shape
    channels = Array(channels=True).learn([*arrays], HERE)
    assert (channels.grid, channels.width) == ((2,), 3)
    assert channels.read(arrays[0], HERE).shape == channels.blank().shape == (2, 3)
    np.testing.assert_allclose(channels.answer(channels.read(arrays[0], HERE)[None])[0], arrays[0], rtol=1e-5)


def test_only_some_arrays_are_read_to_learn():
    """And cells that cannot be read are left to training, which counts them."""
    cells = ["[1", *([[1.0, 3.0]] * (SAMPLE - 1)), [1e9, 1e9]]
    column = Array().learn(cells, HERE)
    assert (column.shape, column.mean, column.std) == ([2], 2, 1)
    with pytest.raises(PerceiversError, match=r"'\[1' is not a list of numbers"):
        Array().learn(["[1", "[2"], HERE)


def test_arrays_have_one_shape():
    with pytest.raises(PerceiversError, match=r"an array of shape \(3,\) is given, but \(2,\) is expected"):
        Array(shape=[2]).read([1, 2, 3], HERE)


def test_adapters():
    column = Array(shape=[4, 5])
    value = column.collate([torch.randn(4, 5, 1)] * 2)
    assert column.input_adapter(6)(value).grid == (4, 5)
    assert column.output_adapter("x", 6).num_queries(None) == 20


def test_loss_at_all_and_at_some_points():
    column = Array(shape=[2, 3], points=4)
    target, predicted = torch.randn(5, 2, 3, 1), torch.randn(5, 2, 3, 1)
    expected = [metrics.mean_squared_error(t.flatten(), p.flatten()) for t, p in zip(target, predicted, strict=True)]
    assert column.loss(predicted, target).tolist() == pytest.approx(expected, rel=1e-5)
    points = column.choose_points(torch.Generator().manual_seed(0))
    assert len(set(points.tolist())) == 4
    some = column.loss(predicted.flatten(1, 2)[:, points], target, points)
    error = (target - predicted).flatten(1)[:, points].square().mean(1)
    torch.testing.assert_close(some, error)
    assert Array(shape=[2, 3], points=6).choose_points() is None


def test_metrics_and_written_arrays():
    column = Array(shape=[2, 3], mean=5, std=2)
    guess, truth = (column.answer(torch.randn(4, 2, 3, 1)) for _ in range(2))
    found = column.metrics()
    for metric in found.values():
        metric.update(guess, truth)
    flat = truth.flatten(), guess.flatten()
    assert found["rmse"].compute().item() == pytest.approx(metrics.root_mean_squared_error(*flat))
    assert found["mae"].compute().item() == pytest.approx(metrics.mean_absolute_error(*flat))
    (written,) = column.write(guess[:1])[0]
    np.testing.assert_allclose(column.answer(column.read(written, HERE)[None])[0], guess[0], rtol=1e-5)
    assert column.write(torch.tensor([[1 / 3, 1e-9]])) == [["[0.333333, 1e-09]"]]


SERIES = [[1.0, 2.0, 4.0], [0.5, -3.0, 2.0, 8.0, 1.0], "[7]"]


def test_scale_and_length_of_series_are_learned():
    column = Series(patch=2).learn(SERIES, HERE)
    steps = np.array([1, 2, 4, 0.5, -3, 2, 8, 1, 7])
    assert (column.length, column.padded) == (5, 6)
    assert (column.mean, column.std) == pytest.approx((steps.mean(), steps.std()), rel=1e-12)
    large = Series().learn([[1e12, 1e12 + 2], [1e12 + 4]], HERE)
    assert large.std == pytest.approx(np.std([0, 2, 4]))
    equal = Series().learn([[0.1, 0.1], [0.1] * 3], HERE)
    assert (equal.mean, equal.std) == (pytest.approx(0.1), 1)
    assert Series(length=3).learn(SERIES, HERE).length == 3


def test_short_series_begin_later():
    column = Series(patch=2, length=5, mean=1, std=2)
    batch = column.collate([column.read(cell, HERE) for cell in SERIES])
    assert batch.mask_BM.int().tolist() == [[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]]
    assert batch.x_BMC[batch.mask_BM].tolist() == [0, 0.5, 1.5, -0.25, -2, 0.5, 3.5, 0, 3]
    assert column.read(list(range(20)), HERE).tolist() == pytest.approx([(k - 1) / 2 for k in range(14, 20)])
    assert column.collate([column.blank()]).x_BMC.shape == (1, 6)


def test_series_to_predict():
    column = Series(patch=2, length=3, follows="x", mean=1, std=2)
    target = column.collate([column.read([1, 3, 5], HERE), column.read([0, 0, 1], HERE)])
    assert target.tolist() == [[0, 1, 2], [-0.5, -0.5, 0]]
    predicted = torch.cat([torch.randn(2, 3), torch.full((2, 1), 99.0)], 1)  # the last patch is longer
    expected = [metrics.mean_absolute_error(t, p) for t, p in zip(target, predicted[:, :3], strict=True)]
    assert column.loss(predicted, target).tolist() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(column.answer(predicted), predicted[:, :3].double() * 2 + 1)
    assert column.answer(target).tolist() == [[1, 3, 5], [0, 0, 1]]
    found = column.metrics()
    for metric in found.values():
        metric.update(column.answer(predicted), column.answer(target))
    flat = column.answer(target).flatten(), column.answer(predicted).flatten()
    assert found["mse"].compute().item() == pytest.approx(metrics.mean_squared_error(*flat))
    assert found["mae"].compute().item() == pytest.approx(metrics.mean_absolute_error(*flat))
    assert column.write(torch.tensor([[1 / 3, 2.0, -1e6]])) == [["[0.333333, 2.0, -1000000.0]"]]
    with pytest.raises(PerceiversError, match="a series of 2 steps is given, but 3 are predicted"):
        column.read([1, 2], HERE)


def test_wrong_series():
    with pytest.raises(PerceiversError, match="is not a list of numbers"):
        Series().read([[1, 2], [3, 4]], HERE)
    with pytest.raises(PerceiversError, match="the series 'x' can be predicted only with follows"):
        Series(length=3).output_adapter("x", 8)
