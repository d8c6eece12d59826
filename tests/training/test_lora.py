"""Low-rank adaptation trains small updates, which are saved merged and as an adapter."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file

import perceivers
from perceivers import PerceiversError
from perceivers.cli import main
from perceivers.training.config import read_config
from tests.support.cli import fails
from tests.support.models import classifier
from tests.support.runs import interrupt_at, read_results

LORA = {"rank": 2, "alpha": 6, "layers": ["query", "value", "hidden"]}


@pytest.fixture
def run(tmp_path):
    """Writes a pretrained model, and the config of a run on digits that starts from it; returns its path."""
    torch.manual_seed(0)
    model = classifier(mean=(0.5,), std=(0.5,), classes=4, preprocessing="conv", feature_channels=6, image_size=16)
    model.save(tmp_path / "base")
    config = {
        "experiment": "image_classification",
        "model": {"init": str(tmp_path / "base"), "lora": LORA},
        "data": {"path": "digits"},
        "optimization": {"lr": 0.01},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "limit_train_batches": 3, "limit_val_batches": 2},
        "training": {"batch_size": 32, "output": str(tmp_path / "run"), "ema": 0.5},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return tmp_path / "config.yaml"


def test_the_adapter_and_the_merged_model_are_the_trained_one(tmp_path, run, capsys):
    main(["fit", str(run)])
    assert "fresh: heads.label.weight, heads.label.bias (10 instead of 4)" in capsys.readouterr().out
    base, merged = perceivers.load(tmp_path / "base"), perceivers.load(tmp_path / "run")
    old, new = base.state_dict(), merged.state_dict()
    adapted = tuple(f"{layer}.weight" for layer in LORA["layers"])
    for name, tensor in new.items():
        is_trained = name.endswith(adapted) or name.startswith(("heads", "outputs"))
        assert torch.equal(tensor, old[name]) != is_trained, name
    for name in ("encoder.layers.0.attention.query.weight", "decoder.mlp.hidden.weight"):
        assert torch.linalg.matrix_rank(new[name] - old[name], rtol=1e-4) == 2

    folder = tmp_path / "run" / "model" / "adapter"
    tensors = load_file(folder / "adapter_model.safetensors")
    assert {name.split(".")[2] for name in tensors} == {"encoder", "decoder", "heads", "outputs"}
    assert (folder / "adapter_model.safetensors").stat().st_size < (tmp_path / "base/model.safetensors").stat().st_size
    images = torch.rand(3, 1, 16, 16)
    loaded = perceivers.load(tmp_path / "base", adapter=folder)
    assert loaded.outputs["label"].class_names == merged.outputs["label"].class_names
    assert all(torch.equal(tensor, new[name]) for name, tensor in loaded.state_dict().items())

    with pytest.warns(UserWarning, match="fresh"):
        target = perceivers.load(tmp_path / "base", classes=10)
    by_peft = peft.PeftModel.from_pretrained(target, folder).eval()
    torch.testing.assert_close(by_peft({"image": images})["label"], merged({"image": images})["label"])
    checkpoint = perceivers.load(tmp_path / "run" / "checkpoints" / "last.ckpt")
    torch.testing.assert_close(checkpoint({"image": images}), merged({"image": images}))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics) >= {"val_top1", "val_loss"}


def test_a_resumed_run_ends_with_the_same_weights(tmp_path, run, monkeypatch):
    main(["fit", str(run), "--training.output", str(tmp_path / "whole")])
    interrupt_at(4, monkeypatch)
    with pytest.raises(SystemExit):
        main(["fit", str(run)])
    main(["fit", str(tmp_path / "run" / "config.json"), "--training.resume=true"])
    names = ("model/model", "model/adapter")
    whole, resumed = (
        {name: value for name, value in read_results(tmp_path / folder).items() if name.startswith(names)}
        for folder in ("whole", "run")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["--model.lora.layers=[querry]"],
            "model.lora.layers = ['querry'] is not allowed: it must be some of query",
        ),
        (["--model.lora.rank=-1"], "model.lora.rank = -1 is not allowed: it must be at least 0"),
        (["--model.init=null", "--model.latents=4"], "model.lora.rank = 2 is not allowed: it must be 0 wit"),
    ],
)
def test_settings_that_are_not_allowed(tmp_path, run, capsys, overrides, message):
    assert message in fails(capsys, "fit", str(run), *overrides)
    assert not (tmp_path / "run").exists()


def test_an_adapter_of_another_model_is_refused(tmp_path, run):
    main(["fit", str(run)])
    folder = tmp_path / "run" / "best" / "adapter"
    classifier(mean=(0.5,), std=(0.5,), image_size=16, channels=32).save(tmp_path / "other")
    with pytest.raises(PerceiversError, match=r"is an adapter of another model|belongs to another model"):
        perceivers.load(tmp_path / "other", adapter=folder)
    with pytest.raises(PerceiversError, match=r"base is not a saved model: it has no adapter_config\.json"):
        perceivers.load(tmp_path / "base", adapter=tmp_path / "base")


def test_the_other_weights_to_train_are_chosen(tmp_path, run):
    assert read_config(run).model.lora.rank == 2
    main(["fit", str(run), "--model.train=[inputs,heads]", "--training.ema=null"])
    base, merged = perceivers.load(tmp_path / "base"), perceivers.load(tmp_path / "run")
    old, new = base.state_dict(), merged.state_dict()
    assert torch.equal(old["outputs.label.query"], new["outputs.label.query"])
    assert not torch.equal(
        old["inputs.image.features.norm.running_mean"], new["inputs.image.features.norm.running_mean"]
    )
    loaded = perceivers.load(tmp_path / "base", adapter=tmp_path / "run" / "model" / "adapter")
    assert all(torch.equal(tensor, new[name]) for name, tensor in loaded.state_dict().items())
