import math

import pytest
import torch
from torch import nan

from perceivers import PerceiversError
from perceivers.flow.metrics import FlowErrors, end_point_error


def row(*vectors):
    """Flow [2, 1, X]."""
    return torch.tensor(vectors).T[:, None].float()


def results(*updates, average="pixels"):
    errors = FlowErrors(average)
    for update in updates:
        errors.update(*update)
    return {name: value.item() for name, value in errors.compute().items()}


def random_pairs(count, height=4, width=5, unknown=0.2):
    truth = 40 * torch.randn(count, 2, height, width)
    flow = truth + 4 * torch.randn_like(truth)
    truth[(torch.rand(count, 1, height, width) < unknown).expand_as(truth)] = nan
    return flow, truth, torch.rand(count, height, width) < 0.4


def by_hand(flows, truths, average, chosen=None):
    """The definitions, pixel by pixel."""
    all_errors, means, fl = [], [], 0
    for pair, (flow, truth) in enumerate(zip(flows.tolist(), truths.tolist(), strict=True)):
        errors = []
        for y in range(len(flow[0])):
            for x in range(len(flow[0][0])):
                u, v = truth[0][y][x], truth[1][y][x]
                if math.isnan(u) or (chosen is not None and not chosen[pair, y, x]):
                    continue
                error = math.hypot(flow[0][y][x] - u, flow[1][y][x] - v)
                fl += error > 3 and error / math.hypot(u, v) > 0.05
                errors.append(error)
        all_errors += errors
        means += [sum(errors) / len(errors)] if errors else []
    counts = {f"over{limit}px": sum(error > limit for error in all_errors) for limit in (1, 3, 5)} | {"fl_all": fl}
    epe = sum(all_errors) / len(all_errors) if average == "pixels" else sum(means) / len(means)
    return {"epe": epe} | {name: count / len(all_errors) for name, count in counts.items()}


def test_the_error_is_the_distance_of_the_ends():
    error = end_point_error(row((3, 4), (1, 1), (0, 0)), row((0, 0), (1, 2), (nan, nan)))
    assert error[0, :2].tolist() == [5, 1]
    assert error[0, 2].isnan()


@pytest.mark.parametrize("average", ["pixels", "pairs"])
def test_the_definitions(average):
    flow, truth, occluded = random_pairs(7)
    truth[2] = nan  # nothing of this pair is known
    truth[3, :, 1:] = nan  # and little of this one
    got = results((flow, truth, occluded), average=average)
    expected = by_hand(flow, truth, average)
    expected |= {f"{name}_visible": value for name, value in by_hand(flow, truth, average, ~occluded).items()}
    expected |= {f"{name}_occluded": value for name, value in by_hand(flow, truth, average, occluded).items()}
    assert got == pytest.approx(expected, rel=1e-5)


def test_averages_of_pixels_and_of_pairs_differ():
    pairs = [(row((1, 0), (1, 0), (1, 0)), torch.zeros(2, 1, 3)), (row((5, 0)), torch.zeros(2, 1, 1))]
    assert results(*pairs)["epe"] == 2
    assert results(*pairs, average="pairs")["epe"] == 3


@pytest.mark.parametrize("average", ["pixels", "pairs"])
def test_batches_are_their_pairs(average):
    flow, truth, occluded = random_pairs(6)
    batches = [(flow[part], truth[part], occluded[part]) for part in (slice(0, 1), slice(1, 6))]
    single = list(zip(flow, truth, occluded, strict=True))
    assert results(*batches, average=average) == pytest.approx(results(*single, average=average), rel=1e-6)


def test_limits_are_exceeded_not_reached():
    truth = torch.zeros(2, 1, 6)
    got = results((row((1, 0), (1.5, 0), (3, 0), (3.5, 0), (5, 0), (5.5, 0)), truth))
    assert [got[f"over{limit}px"] * 6 for limit in (1, 3, 5)] == pytest.approx([5, 3, 1])


@pytest.mark.parametrize(
    ("length", "error", "outlier"), [(10, 2.9, 0), (10, 3.1, 1), (100, 4.9, 0), (100, 5.1, 1), (0, 3.1, 1)]
)
def test_fl_outliers_are_3_pixels_and_5_percent_away(length, error, outlier):
    assert results((row((length, error)), row((length, 0))))["fl_all"] == outlier


def test_other_processes_add_their_pairs():
    """What `compute` does in several processes: states are summed."""
    flow, truth, occluded = random_pairs(5)
    whole, parts = FlowErrors("pairs"), [FlowErrors("pairs") for _ in range(2)]
    whole.update(flow, truth, occluded)
    parts[0].update(flow[:2], truth[:2], occluded[:2])
    parts[1].update(flow[2:], truth[2:], occluded[2:])
    for name, reduce in parts[0]._reductions.items():
        setattr(parts[0], name, reduce(torch.stack([getattr(part, name) for part in parts])))
    for name, value in whole.compute().items():
        torch.testing.assert_close(parts[0].compute()[name], value)


def test_occlusions_count_only_where_they_are_told():
    known = (row((1, 0), (3, 0)), torch.zeros(2, 1, 2), torch.tensor([[False, True]]))
    untold = (row((8, 0)), torch.zeros(2, 1, 1))
    got = results(known, untold)
    assert (got["epe"], got["epe_visible"], got["epe_occluded"]) == (4, 1, 3)
    assert set(results(untold)) == {"epe", "over1px", "over3px", "over5px", "fl_all"}


def test_half_precision_does_not_round_sums():
    flow = torch.full((2, 300, 300), 3.0, dtype=torch.bfloat16)
    assert results((flow, torch.zeros_like(flow)))["epe"] == pytest.approx(3 * math.sqrt(2), rel=1e-5)


def test_nothing_known_is_nan():
    assert all(math.isnan(value) for value in results((torch.zeros(2, 3, 3), torch.full((2, 3, 3), nan))).values())


def test_unknown_predictions_are_refused_where_the_truth_is_known():
    for bad in (nan, math.inf):
        with pytest.raises(PerceiversError, match="is NaN or infinite at 1 pixels whose true flow is known"):
            FlowErrors().update(row((bad, 0), (bad, bad)), row((1, 0), (nan, nan)))
    assert results((row((1, 0), (nan, nan)), row((1, 0), (nan, nan))))["epe"] == 0


@pytest.mark.parametrize(("flow", "truth"), [((2, 3, 4), (2, 3, 5)), ((1, 2, 3, 4), (2, 3, 4)), ((3, 3, 4),) * 2])
def test_other_shapes_are_refused(flow, truth):
    with pytest.raises(PerceiversError, match=r"both must be \[2, height, width\]"):
        FlowErrors().update(torch.zeros(flow), torch.zeros(truth))
