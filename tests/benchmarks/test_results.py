import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import results, simple
from benchmarks.claims import CLAIMS, Claim, Method
from perceivers.training.config import read_config

ROOT = Path(__file__).parents[2]
CLAIM = Claim(
    "Title", "Ours is as good.", "so it is.", "accuracy",
    Method("ours", "mine", ("val_top1",)), Method("theirs", "linear", ("nested", "top1")),
    tolerance=0.1,
)  # fmt: skip


def result(name, value, seed=0, **metrics):
    """A result of some accuracy, after half of it at half of the time."""
    curve = [{"step": 5, "seconds": 60.0, "val_top1": value / 2}, {"step": 10, "seconds": 120.0, "val_top1": value}]
    return {
        "name": name, "command": f"fit {name}", "machine": {"processor": "Fast", "cores": 2}, "seed": seed,
        "seconds": 120.0, "parameters": 2_500_000, "metrics": {"val_top1": value} | metrics, "curve": curve,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "higher_is_better", "said"),
    [
        (0.55, True, "holds at this scale, one seed"),
        (0.44, True, "does not hold at this scale, one seed"),
        (0.46, True, "holds at this scale, one seed"),  # by its tolerance
        (0.54, False, "holds at this scale, one seed"),
        (0.56, False, "does not hold at this scale, one seed"),
    ],
)
def test_a_claim_holds_if_ours_is_not_worse(ours, higher_is_better, said):
    claim = Claim(**vars(CLAIM) | {"higher_is_better": higher_is_better})
    found = {"mine": [result("mine", ours)], "linear": [result("linear", 0.0, nested={"top1": 0.5})]}
    assert results.judge(claim, found) == said
    assert results.judge(claim, {"mine": found["mine"]}) == "not measured yet"
    found["mine"].append(result("mine_seed1", ours, 1))
    assert results.judge(claim, found) == said.removesuffix(", one seed")


def test_the_page_has_a_row_for_each_method_with_its_seeds_and_files(monkeypatch):
    monkeypatch.setattr(results, "CLAIMS", [CLAIM])
    monkeypatch.setattr(
        results, "LEADERBOARD", {"top": ("mine", "val_top1", 0.6, True), "no": ("mine", "val_top1", 1.0, True)}
    )
    found = {
        "mine": [result("mine", 0.6), result("mine_seed1", 0.7, 1)],
        "linear": [result("linear", 0.0, nested={"top1": 0.5})],
    }
    page = results.render(found)
    assert "| Ours is as good. | holds at this scale | accuracy | 65.0% ± 7.1% | theirs: 50.0% |" in page
    files = "[mine](../results/mine.json) [mine_seed1](../results/mine_seed1.json)"
    assert f"| ours | 65.0% ± 7.1% | 2.50M | 0, 1 | 2.0 | Fast, 2 cores | {files} |" in page
    assert "In the paper: so it is." in page
    slow = {"machine": {"processor": "Slow", "cores": 1}, "seconds": 600.0}
    found["mine"].append(result("mine_seed2", 0.8, 2) | slow)
    assert "| 0, 1, 2 | 2.0; 10.0 | Fast, 2 cores; Slow, 1 core |" in results.render(found)
    assert "```\nfit mine\nfit linear\n```" in page
    assert "| top | 2.0 | `fit mine` | Fast, 2 cores |" in page  # 0.35 after a minute, 0.7 after two
    assert "| no | not reached yet | | |" in page


def test_a_run_is_kept_with_all_that_makes_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    small = ("--trainer.max_epochs=2", "--model.depth=1")
    monkeypatch.setitem(results.RUNS, "digits", results.Run("image_classification/digits.yaml", changes=small))
    results.save("digits_seed3", results.perform("digits", 3, tmp_path, tmp_path / "runs"))
    kept = results.read_results(tmp_path / "results")["digits"][0]
    command = "perceivers fit configs/image_classification/digits.yaml --trainer.max_epochs=2 --model.depth=1"
    assert kept["command"] == f"{command} --training.seed=3"
    assert (kept["seed"], kept["config"]["model"]["depth"], kept["config"]["training"]["output"]) == (3, 1, "runs")
    assert re.fullmatch(r"[0-9a-f]{40}|", kept["commit"])
    assert [point["step"] for point in kept["curve"]] == sorted(point["step"] for point in kept["curve"])
    assert kept["curve"][-1]["val_top1"] == pytest.approx(kept["metrics"]["val_top1"])
    assert kept["curve"][-1]["seconds"] == pytest.approx(kept["seconds"], abs=0.1)
    assert any("val_top1" in line for line in kept["log"])
    assert str(tmp_path) not in json.dumps(kept)


def test_every_claim_has_its_runs_and_every_run_its_config():
    for name, run in results.RUNS.items():
        assert (ROOT / "configs" / run.config).is_file(), name
        read_config(ROOT / "configs" / run.config, [*run.changes, "--data.path=somewhere"] if run.data else run.changes)
    assert {method.result for claim in CLAIMS for method in claim.methods} <= {*results.RUNS, *simple.SIMPLE}
    assert {name for name, *_ in results.LEADERBOARD.values()} <= results.RUNS.keys()


def test_kept_results_are_those_of_the_page():
    """The page and the table of the README are rendered from the files."""
    found = results.read_results()
    for file, text in ((results.PAGE, results.render(found)), (results.README, results.render_readme(found))):
        assert file.read_text().split(results.START)[1].split(results.END)[0] == text


def test_logistic_regression_separates_what_is_linear():
    x = np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32)
    y = (x @ [1.0, -2, 0, 0, 0.5] > 0).astype(int)
    assert simple.fit_linear((x[:400], y[:400]), (x[400:], y[400:]))["val_top1"] > 0.9
