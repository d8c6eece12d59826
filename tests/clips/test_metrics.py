import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from perceivers.clips.metrics import ClipScores, compute_multilabel_metrics


def test_figures_of_several_classes_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    target = random.random((50, 7)) < 0.3
    target[:, 2], target[:, 5] = False, True  # no figure can be had of these
    score = (random.random((50, 7)) + 0.4 * target).round(1)  # with ties
    known = [0, 1, 3, 4, 6]
    figures = compute_multilabel_metrics(torch.from_numpy(score), torch.from_numpy(target))
    precision = np.mean([average_precision_score(target[:, k], score[:, k]) for k in known])
    area = np.mean([roc_auc_score(target[:, k], score[:, k]) for k in known])
    assert float(figures["map"]) == pytest.approx(precision, abs=1e-6)
    assert float(figures["d_prime"]) == pytest.approx(math.sqrt(2) * norm.ppf(area), abs=1e-5)


def test_the_windows_of_a_clip_are_averaged():
    scores = ClipScores(3, 2, multilabel=True)
    probability = torch.tensor([[0.9, 0.2], [0.7, 0.2], [0.5, 0.6], [0.3, 0.8]])
    label = torch.tensor([[1, 0], [0, 1], [0, 1], [1, 0]])
    clip = torch.tensor([0, 1, 1, 2])
    scores.update(probability.logit()[:3], label[:3], clip[:3])
    scores.update(probability.logit()[3:], label[3:], clip[3:])
    torch.testing.assert_close(scores.score_LK, torch.tensor([[0.9, 0.2], [1.2, 0.8], [0.3, 0.8]]))
    # first class: clip 1 before 0 before 2, of which 0 and 2 have it; second: 1 and 2 tie, of which 1 has it
    assert float(scores.compute()["map"]) == pytest.approx((((1 / 2 + 2 / 3) / 2) + 1 / 2) / 2)


def test_top1_of_the_mean_over_windows():
    scores = ClipScores(2, 2, multilabel=False)
    probability = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9], [0.7, 0.3]])
    scores.update(probability.log(), torch.tensor([1, 1, 1, 1]), torch.tensor([0, 0, 0, 1]))
    assert scores.compute() == {"top1": 0.5}
    scores.reset()
    scores.update(probability.log()[:2], torch.tensor([1, 0]), torch.tensor([0, 1]))
    assert scores.compute() == {"top1": 0.5}


def test_where_nothing_can_be_told():
    assert compute_multilabel_metrics(torch.rand(4, 2), torch.ones(4, 2, dtype=torch.bool))["map"].isnan()
