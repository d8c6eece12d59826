"""What holds for every type of column."""

import pytest
import torch

import perceivers
from perceivers.tables.columns import TYPES
from perceivers.tables.model import TableModelConfig, encode_rows
from perceivers.tables.rows import TableSamples
from perceivers.tables.training import RowLearner
from perceivers.training import learner
from tests.support.models import shaken
from tests.support.tables import (
    PREDICTED,
    SIZES,
    answer,
    as_rows,
    cells_of_all_types,
    collate,
    learned,
    small_model,
    write,
)

KINDS = tuple(TYPES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cells")


@pytest.fixture(scope="module")
def columns(folder):
    """By the name of the type, a column that has learned, and its cells."""
    found = cells_of_all_types(folder)
    return {kind: (learned(kind, cells, folder, **settings), cells) for kind, (settings, cells) in found.items()}


@pytest.fixture(scope="module")
def reader(columns):
    """A model that reads all types at once and predicts a number and a category."""
    torch.manual_seed(0)
    return small_model({kind: columns[kind][0] for kind in KINDS}, targets())


@pytest.fixture(scope="module")
def rows(columns, folder):
    """Three rows with all cells, three with every other one, and one without any."""
    cells = {kind: [*cells, *(c if place % 2 else None for place, c in enumerate(cells, start=number)), None]
             for number, (kind, (_, cells)) in enumerate(columns.items())}  # fmt: skip
    return as_rows(cells | {"y": [1, 2, 3, 4, 5, 6, 7], "z": list("ababbaa")}, folder)


def targets():
    return {"y": learned("number", range(8)), "z": learned("category", "ab")}


def close(found, expected):
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


def test_all_types_are_covered(columns):
    assert set(columns) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_depends_on_every_cell(kind, reader, rows):
    before = answer(reader, rows)["y"]
    cells = rows.table.columns[kind]
    changed = as_rows(rows.table.columns | {kind: [cells[1], cells[0], *cells[2:]]}, rows.root)
    after = answer(reader, changed)["y"]
    assert ((after[:2] - before[:2]).abs() > 1e-5).all()
    torch.testing.assert_close(after[2:], before[2:])
    missing = answer(reader, as_rows(rows.table.columns | {kind: [None] * 7}, rows.root))["y"]
    assert ((missing[:3] - before[:3]).abs() > 1e-5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_for_a_missing_cell_does_not_matter(kind, columns, folder, monkeypatch):
    """The mask token of the column takes the place of all of its elements."""
    column, cells = columns[kind]
    model = small_model({kind: column, "n": learned("number", range(3))}, targets())
    rows = as_rows({kind: [None, cells[1], None], "n": [1, 2, None]}, folder)
    before = answer(model, rows)
    other = column.read(cells[0], folder)
    if isinstance(other, torch.Tensor):
        other = other[: len(column.blank())]  # of a text, one word
    monkeypatch.setattr(column, "blank", lambda is_target=False: other)
    close(answer(model, rows), before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_token_is_seen(kind, columns, folder):
    """A missing cell is not merely left out: the model knows by the token that it is missing."""
    column, cells = columns[kind]
    model = small_model({kind: column, "n": learned("number", range(3))}, targets())
    rows = as_rows({kind: [None, cells[1]], "n": [1, 2]}, folder)
    before = answer(model, rows)["y"]
    model.input_padding.masks[kind].data += torch.randn(model.input_padding.channels)
    after = answer(model, rows)["y"]
    assert (after[0] - before[0]).abs() > 1e-3
    assert after[1] == before[1]


def test_rows_alone_are_answered_as_in_a_batch(reader, rows):
    together = answer(reader, rows)
    for row in range(len(rows)):
        close({name: values[row : row + 1] for name, values in together.items()}, answer(reader, rows.subset([row])))


def test_the_order_of_the_columns_of_a_table_does_not_matter(reader, rows):
    reordered = dict(reversed(rows.table.columns.items()))
    assert list(reordered) != list(rows.table.columns)
    expected = answer(reader, rows)
    for name, found in answer(reader, as_rows(reordered, rows.root)).items():
        assert torch.equal(found, expected[name])


def test_the_order_of_the_columns_of_a_model_does_not_matter(reader, rows):
    """Attention takes elements as a set: with the same weights, the answers are the same."""
    inputs, outputs = (dict(reversed(part.items())) for part in (reader.input_columns, reader.output_columns))
    other = small_model(inputs, outputs)
    other.load_state_dict(reader.state_dict())
    close(answer(other, rows), answer(reader, rows))


@pytest.mark.parametrize("kind", KINDS)
def test_all_state_is_saved(kind, columns, folder, tmp_path):
    """A loaded column is built from the same arguments, and its model answers the same."""
    column, cells = columns[kind]
    model = small_model({kind: column}, targets())
    rows = as_rows({kind: [*cells, None]}, folder)
    model.save(tmp_path)
    loaded = perceivers.load(tmp_path)
    assert loaded.input_columns[kind].config == column.config
    assert {name: other.config for name, other in loaded.output_columns.items()} == {
        name: other.config for name, other in targets().items()
    }
    expected = answer(model, rows)
    for name, found in answer(loaded, rows).items():
        assert torch.equal(found, expected[name])


@pytest.mark.parametrize("kind", PREDICTED)
def test_predictions_are_saved(kind, columns, folder, tmp_path):
    column, cells = columns[kind]
    model = small_model({"n": learned("number", range(3))}, {kind: column})
    rows = as_rows({"n": [0, 1, None], kind: cells}, folder)
    model.save(tmp_path)
    loaded = perceivers.load(tmp_path)
    assert loaded.output_columns[kind].config == column.config
    assert write(loaded, rows) == write(model, rows)


def test_a_config_describes_the_same_model(columns, rows):
    """The config that another run starts from has the columns with what they learned."""
    described = {"inputs": {kind: columns[kind][0] for kind in KINDS}, "outputs": targets(), "window": None}
    model = shaken(TableModelConfig(columns=described, **SIZES).build())
    other = TableModelConfig.from_model(model).build()
    other.load_state_dict(model.state_dict())
    close(answer(other.eval(), rows), answer(model, rows))


@pytest.mark.parametrize("kind", [kind for kind in PREDICTED if kind != "masked_text"])
def test_predictions_are_the_view_of_an_evaluation(kind, columns, folder):
    """What is predicted for a row is what its evaluation measures, with and without its target."""
    column, cells = columns[kind]
    model = small_model({"n": learned("number", range(3))}, {kind: column})
    rows = as_rows({"n": [0, 1, None], kind: cells}, folder)
    batch = collate(model, rows)
    with torch.inference_mode():
        evaluated = column.answer(model.decode(encode_rows(model, batch))[kind])
    without = as_rows({"n": [0, 1, None]}, folder)
    for found in (answer(model, rows), answer(model, without)):
        assert torch.equal(found[kind], evaluated)
    metrics = column.metrics()
    for metric in metrics.values():
        metric.update(column.point(answer(model, without)[kind]), column.truth(batch["targets"][kind]))
    samples = TableSamples(rows, model.input_columns, model.output_columns)
    found = learner.evaluate(RowLearner(model), samples, batch_size=2)
    assert {name: value for name, value in found.items() if name != "loss"} == pytest.approx(
        {name: float(metric.compute()) for name, metric in metrics.items()}, rel=1e-5
    )


@pytest.mark.parametrize("kind", PREDICTED)
def test_a_missing_target_adds_nothing(kind, columns, folder):
    """The loss and its gradient are those of the rows that have a target; the metrics, too."""
    column, cells = columns[kind]
    model = small_model({"n": learned("number", range(3))}, {kind: column})
    some = as_rows({"n": [0, 1], kind: [cells[0], cells[1]]}, folder)
    more = as_rows({"n": [0, 2, 1, 2], kind: [cells[0], None, cells[1], None]}, folder)
    losses, gradients, metrics = [], [], []
    for rows in (some, more):
        batch = collate(model, rows)
        model.zero_grad()
        trained = RowLearner(model)
        with torch.no_grad() if kind == "masked_text" else torch.enable_grad():
            predicted = model.decode(encode_rows(model, batch))
            loss = trained.compute_losses(batch, predicted, {kind: None})[kind]
        losses.append(loss.item())
        if loss.requires_grad:
            loss.backward()
            gradients.append(model.encoder.latents.grad.clone())
        trained.evaluate_batch(batch)
        metrics.append({name: float(value) for name, value in trained.metrics.compute().items() if name != "loss"})
    if kind != "masked_text":  # hides other bytes of the other rows
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
        assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)
    nothing = as_rows({"n": [0, 1], kind: [None, None]}, folder)
    trained = RowLearner(model)
    trained.evaluate_batch(collate(model, nothing))
    assert {name: float(value) for name, value in trained.metrics.compute().items()} == {"loss": 0}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PREDICTED])
def test_other_types_cannot_be_predicted(kind, columns):
    with pytest.raises(
        perceivers.PerceiversError, match=r"can be an input, but not be predicted|can be predicted only with follows"
    ):
        small_model({"n": learned("number", range(3))}, {kind: columns[kind][0]})


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_trains_every_column(kind, columns, folder):
    """Gradients reach the adapter or, if it has no weights, the vector that tells the column from others."""
    column, cells = columns[kind]
    model = small_model({kind: column, "n": learned("number", range(3))}, targets())
    rows = as_rows({kind: cells, "n": [1, 2, 3], "y": [1, 2, None], "z": ["a", None, "b"]}, folder)
    RowLearner(model).loss(collate(model, rows, hide=0.0)).backward()
    weights = [weight for weight in model.inputs[kind].parameters() if weight.requires_grad]
    for weight in weights or [model.input_padding.vectors[kind]]:
        assert weight.grad.abs().sum() > 0
