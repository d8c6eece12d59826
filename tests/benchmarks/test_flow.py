import json

import pytest
import torch

from benchmarks import flow
from benchmarks.flow import ABLATION, CONFIG, EDGES, ablation, histogram, parts
from benchmarks.side_by_side import curve
from perceivers.flow import generator as flow_generator
from perceivers.flow.generator import write_scenes
from perceivers.flow.scenes import SceneConfig
from perceivers.training.config import read_config


def test_lengths_are_counted_between_bounds_without_those_not_known():
    found = parts(torch.tensor([0.0, 0.5, 1.0, 3.9, 4.0, 64.0, 1000.0, torch.nan]))
    assert found == pytest.approx([2 / 7, 1 / 7, 1 / 7, 1 / 7, 0, 0, 0, 2 / 7])
    assert len(found) == len(EDGES) - 1


def test_the_table_of_lengths_has_generated_and_real_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(flow_generator, "TEXTURES", 4)
    monkeypatch.setattr(flow_generator, "SHAPES", 4)
    monkeypatch.setattr(
        flow, "SCENES", {"slow": SceneConfig((16, 24), motion=1.0), "fast": SceneConfig((16, 24), motion=20.0)}
    )
    write_scenes(SceneConfig((16, 24), motion=0.0), tmp_path / "still", 2)
    rows = [row.strip("| ").split(" | ") for row in histogram([tmp_path / "still"]).splitlines()]
    assert [row[0] for row in rows[2:]] == ["slow", "fast", "flyingchairs, 2 pairs"]
    slow, fast, still = (float(row[1]) for row in rows[2:])
    assert 0 == still < slow < fast / 5
    assert rows[4][2] == "100.0%"
    assert len(set(map(len, rows))) == 1


def test_every_run_of_the_ablation_is_a_config():
    for name, overrides in ABLATION.items():
        config = read_config(CONFIG, overrides)
        assert (config.curriculum.warmup_fraction == 0) == (name == "no first phase")


def test_the_ablation_is_read_from_its_runs(tmp_path):
    (tmp_path / "csv" / "version_0").mkdir(parents=True)
    (tmp_path / "csv" / "version_0" / "metrics.csv").write_text("step,val_epe\n9,3.0\n19,\n29,1.0\n")
    (tmp_path / "metrics.json").write_text(json.dumps({"val_epe": 1.0, "val_zero": 4.0, "seconds": 120}))
    (tmp_path / "config.json").write_text(json.dumps({"data": {"pairs": 60}, "trainer": {"max_epochs": 2}}))
    assert curve(tmp_path, "val_epe") == [(10, 3.0), (30, 1.0)]
    assert ablation({"all": tmp_path}).splitlines()[-1] == "| all | 30 | 120 | 2 | 1.00 | 4.00 | 0.25 |"
