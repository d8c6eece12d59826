"""The weights of classes in the three experiments that learn classes."""

from collections import Counter
from dataclasses import replace

import pytest

pytest.importorskip("av")
from perceivers import PerceiversError
from tests.support.experiments import DATA, RUNS

CASES = ["image_classification", "text_classification", "clip_classification"]


@pytest.mark.parametrize("name", CASES)
def test_training_draws_the_classes_equally_often(tmp_path, name):
    DATA.get(name, lambda folder: None)(tmp_path)
    run = RUNS[name](tmp_path, output=tmp_path / "run")
    run = replace(run, class_weights="balanced")
    training = run.prepare().training
    totals = Counter()
    for index, weight in enumerate(training.weights):
        label = training.examples[index]["label"] if name.startswith("text") else target(training, index)
        totals[int(label)] += weight
    assert len(totals) > 1
    assert list(totals.values()) == pytest.approx([1.0] * len(totals))
    with pytest.raises(PerceiversError, match="class_weights names the class 'no such class'"):
        replace(run, class_weights={"no such class": 2}).prepare()
    with pytest.raises(PerceiversError, match=r"class_weights = \{'a': 0\} is not allowed"):
        replace(run, class_weights={"a": 0})


def target(samples, index):
    """The label of an image or clip."""
    if hasattr(samples, "images"):
        return samples.images.labels[index]
    return samples.clips.labels[index // samples.windows_per_clip]
