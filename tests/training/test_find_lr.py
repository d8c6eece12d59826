import json

import pytest

pytest.importorskip("av")
pytest.importorskip("sc2reader")
from perceivers import PerceiversError
from perceivers.training import config
from perceivers.training.commands import fit
from perceivers.training.find_lr import Search, find_lr, format_search
from tests.support import flow
from tests.support.experiments import DATA, RUNS
from tests.support.images import small_run


@pytest.mark.parametrize("name", sorted(RUNS.keys() - {"several tasks"}))
def test_a_learning_rate_is_searched_for_every_experiment(tmp_path, monkeypatch, name):
    flow.use_few_textures(monkeypatch)
    DATA.get(name, lambda folder: None)(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    search = find_lr(RUNS[name](tmp_path, output=tmp_path / "run"), lowest=1e-5, highest=1e-2, steps=16)
    assert len(search.lrs) == len(search.losses) == 16
    assert search.lrs[-1] == pytest.approx(1e-2)
    ratios = [later / earlier for earlier, later in zip(search.lrs[1:], search.lrs[2:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-3)
    assert search.lr in search.lrs
    assert all(loss > 0 for loss in search.losses)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_loss_that_rises_ends_the_search(tmp_path):
    search = find_lr(small_run(tmp_path / "run"), lowest=1e-3, highest=1e6, steps=60)
    assert len(search.lrs) < 60
    assert search.lr < 1
    with pytest.raises(PerceiversError, match="the loss rose at once, at a learning rate of 1e"):
        find_lr(small_run(tmp_path / "run"), lowest=1e20, highest=1e25, steps=60)


def test_the_command_prints_losses_and_a_suggestion(tmp_path, monkeypatch, capsys):
    found = Search(1e-3, [1e-4, 1e-3, 1e-2], [2.0, 1.5, 1.0])
    read = []
    monkeypatch.setattr(config, "find_lr", lambda run: read.append(run.optimization.lr) or found)
    (tmp_path / "run.json").write_text(json.dumps(small_run(tmp_path / "run").to_config()))
    fit(str(tmp_path / "run.json"), "--optimization.lr=0.5", "--find-lr")
    assert read == [0.5]
    assert capsys.readouterr().out.splitlines() == [
        "learning rate   loss",
        "1.00e-04        2",
        "1.00e-03        1.5",
        "1.00e-02        1",
        "",
        "The loss falls fastest at --optimization.lr=1.0e-03",
    ]
    assert "1.0e-03" in format_search(found)
