"""Runs that are killed and resumed end like those that were not, bit for bit."""

import os
import random

import pytest

pytest.importorskip("av")
pytest.importorskip("sc2reader")
from tests.robustness.kills import RUNS, Kill, Victim

SEED = int(os.environ.get("SEED", 0))


@pytest.fixture(scope="module")
def victim(tmp_path_factory, request):
    return Victim(request.param, tmp_path_factory.mktemp("victim") / "runs")


@pytest.mark.parametrize("kind", ["update", "writing", "moment"])
@pytest.mark.parametrize("victim", RUNS, indirect=True)
def test_a_killed_run_ends_like_one_that_was_not(victim, kind):
    number = ["update", "writing", "moment"].index(kind)
    kill = victim.choose(random.Random(f"{victim.experiment} {SEED} {number}"), number)
    assert victim.differences(kill, kind) == [], f"SEED={SEED}, {kill}"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["image_classification"], indirect=True)
def test_a_run_may_be_killed_at_every_step_of_writing(victim):
    for call in range(victim.calls):
        assert victim.differences(Kill(call=call), f"call {call}") == [], call
