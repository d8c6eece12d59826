"""Of every experiment: a run that is interrupted and resumed ends like one that was not, bit for bit."""

import re
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("av")
pytest.importorskip("sc2reader")
from perceivers import plugins
from perceivers.presets import model_config
from tests.support import flow, pretraining
from tests.support.experiments import DATA, RUNS
from tests.support.runs import assert_equal_results, interrupt_at, read_results, record_steps

pytestmark = pytest.mark.usefixtures("small_caches")


@pytest.fixture(scope="module")
def small_caches():
    with pytest.MonkeyPatch.context() as patch:
        flow.use_few_textures(patch)
        yield


BERT = model_config("bert_bytes", **pretraining.BERT)
LOADED_BY_OTHERS = {"workers": 1, "accumulate_grad_batches": 2, "ema": 0.9}

CASES = [
    ("image_classification", 3, {}),  # of nine updates an epoch, two epochs: in an epoch,
    ("image_classification", 8, {}),  # at the end of the first,
    ("image_classification", 17, {}),  # and at the very end
    ("image_classification", 9, {"ema": 0.9}),
    ("image_classification", 17, {"ema": 0.9}),
    ("image_classification", 3, LOADED_BY_OTHERS),
    ("masked_language", 2, {}),  # of six updates an epoch
    ("masked_language", 5, {}),
    ("masked_language", 11, {}),
    ("masked_language", 8, {"workers": 2}),
    ("masked_language", 5, LOADED_BY_OTHERS),
    ("masked_language", 5, {"model": BERT}),
    ("causal_language", 2, {}),  # of six updates an epoch
    ("causal_language", 5, {}),
    ("causal_language", 8, LOADED_BY_OTHERS),
    ("text_classification", 3, {}),
    ("several tasks", 2, {}),  # of eight updates an epoch
    ("several tasks", 7, {"workers": 1}),
    ("glue", 2, {}),  # of two updates an epoch
    ("optical_flow", 2, {}),  # of four updates an epoch: without augmentation,
    ("optical_flow", 5, {}),  # and with it
    ("optical_flow", 2, {"ema": 0.9}),
    ("optical_flow", 5, {"ema": 0.9}),
    ("clip_classification", 3, {}),
    ("autoencoding", 2, {}),  # of two updates an epoch
    ("autoencoding", 3, {}),
    ("behavioral_cloning", 12, {}),  # of ten updates an epoch
    ("table", 2, {}),  # of six updates an epoch
    ("table", 8, LOADED_BY_OTHERS),
]
LAST_STEPS = {("image_classification", 17), ("masked_language", 11), ("autoencoding", 3)}
"""Updates after which there is nothing left but to evaluate and to save."""


def test_every_experiment_is_resumed_below():
    assert {experiment for experiment, *_ in CASES} >= set(plugins.find_entry_points("experiments"))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Returns a function from an experiment and settings to the folder of its data and the results of a whole run."""

    @cache
    def write_data(experiment):
        folder = tmp_path_factory.mktemp("data")
        DATA.get(experiment, Path.exists)(folder)
        return folder

    @cache
    def run(experiment, settings):
        folder, output = write_data(experiment), tmp_path_factory.mktemp("whole")
        RUNS[experiment](folder, output=output, **dict(settings)).run()
        return folder, read_results(output)

    return lambda experiment, settings: run(experiment, tuple(settings.items()))


@pytest.mark.parametrize(
    ("experiment", "step", "settings"),
    [pytest.param(*case, id="-".join([case[0], str(case[1]), *case[2]])) for case in CASES],
)
def test_a_resumed_run_ends_like_one_that_was_not_interrupted(
    tmp_path, monkeypatch, capsys, whole_run, experiment, step, settings
):
    folder, expected = whole_run(experiment, settings)
    assert len(expected) > 5
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises(SystemExit) as stop:
            RUNS[experiment](folder, output=tmp_path, **settings).run()
    assert stop.value.code != 0
    err = capsys.readouterr().err
    assert f"Stopped after step {step + 1};" in err
    (config,) = re.findall(r"^  perceivers fit (.*) --training.resume=true$", err, re.M)
    assert (tmp_path / config).is_file()
    assert not [*tmp_path.rglob("model"), *tmp_path.rglob("metrics.json")]
    steps = record_steps(monkeypatch)
    RUNS[experiment](folder, output=tmp_path, resume=True, **settings).run()
    assert steps[:1] == ([] if (experiment, step) in LAST_STEPS else [step + 1])
    assert_equal_results(read_results(tmp_path), expected)
