import re

import pytest

from benchmarks import generation
from benchmarks.generation import CONFIGS, CPU_SECONDS, MODELS, flops_of_a_byte, measure_speed, report
from perceivers.text.perceiver_ar import PerceiverARConfig
from perceivers.training.config import read_config
from tests.support.causal import SIZES, causal, small_run, write_text


def test_both_models_get_equal_flops_and_the_same_training():
    ours, theirs = (read_config(CONFIGS / f"{config}.yaml") for config in MODELS.values())
    assert flops_of_a_byte(ours.model) == pytest.approx(flops_of_a_byte(theirs.model), rel=0.02)
    assert theirs.model.length == theirs.model.latents == ours.model.latents < ours.model.length
    assert (ours.data, ours.optimization, ours.trainer) == (theirs.data, theirs.optimization, theirs.trainer)
    assert ours.training.batch_size == theirs.training.batch_size


def test_a_byte_without_a_cache_has_the_same_logits():
    speed = measure_speed(causal().float(), b"a prompt that is longer than the model", 1)
    assert min(speed) > 0


def test_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "MODELS", {"small": "small"})
    monkeypatch.setattr(generation, "ROUNDS", 1)
    text = write_text(tmp_path / "text.txt")
    model = PerceiverARConfig(**SIZES)
    small_run(tmp_path / "small", text, model, max_epochs=1).run()
    (tmp_path / "small" / CPU_SECONDS).write_text("60\n30\n")
    found = report(text, tmp_path)
    row = next(line for line in found.splitlines() if line.startswith("| small |"))
    cells = row.split(" | ")
    assert cells[2:4] == ["24", "8"]
    assert cells[5:8] == ["0.00M", "1.5 min", "0"]
    assert all(4 < float(cell.strip(" |")) < 9 for cell in cells[8:])
    assert re.search(r"small:\n\n```text\nROMEO:\n", found)
