import csv
import json
import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from perceivers import PerceiversError
from perceivers.checkpoints.load import load_model, pretrained_config
from perceivers.cli import main
from perceivers.text.byte_windows import ByteData
from perceivers.text.causal import CausalLanguage, CausalLanguageModel, evaluate
from perceivers.text.perceiver_ar import PerceiverAR, PerceiverARConfig
from perceivers.training.config import read_config
from perceivers.training.evaluation import find_experiment
from tests.support.causal import SIZES, causal, small_run, write_text
from tests.support.cli import fails


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt")


def test_a_model_that_knows_nothing_has_8_bits_per_byte(text):
    results, part = evaluate(PerceiverAR(**SIZES), ByteData(str(text)))
    assert results == {"bits_per_byte": pytest.approx(8, abs=1e-6)}
    assert part.fields() == {"bytes": 1800, "total": 1800, "split": None}
    assert evaluate(PerceiverAR(**SIZES), ByteData(str(text)), held_out=True)[1].count == 180


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("stride", [None, 1, 8])
def test_a_model_that_knows_frequencies_has_their_cross_entropy(text, held_out, stride):
    content = text.read_bytes()
    frequency = {byte: count / len(content) for byte, count in Counter(content).items()}
    model = PerceiverAR(**SIZES)
    model.output.bias.data[:] = torch.tensor([math.log(frequency.get(byte, 1e-30)) for byte in range(256)])
    part = content[1620:] if held_out else content
    want = -sum(math.log2(frequency[byte]) for byte in part[1:]) / (len(part) - 1)
    results, _ = evaluate(model, ByteData(str(text), stride=stride), 50, held_out)
    assert results["bits_per_byte"] == pytest.approx(want, rel=1e-5)
    assert want < 6


def test_the_loss_is_that_of_the_next_byte_after_every_latent():
    model = causal()
    text_BM = torch.randint(256, (3, 25), dtype=torch.uint8)
    logits_BNV = model(text_BM[:, :24])
    want = (
        sum(-float(logits_BNV[b, n].log_softmax(0)[int(text_BM[b, 17 + n])]) for b in range(3) for n in range(8)) / 24
    )
    assert float(CausalLanguageModel(model).loss({"text": text_BM})) == pytest.approx(want, rel=1e-5)


def test_a_model_that_has_diverged_is_refused(text):
    model = causal()
    model.embedding.weight.data[ord("y")] = math.nan
    with pytest.raises(PerceiversError, match="bits_per_byte is NaN: the weights have diverged"):
        evaluate(model, ByteData(str(text)))


@pytest.mark.parametrize("latents", [8, 24])
def test_what_can_be_learned_is_learned(tmp_path, latents):
    (tmp_path / "text.txt").write_text("yes, no! " * 300)
    model = PerceiverARConfig(**(SIZES | {"latents": latents}))
    run = small_run(tmp_path / "run", tmp_path / "text.txt", model)
    run.data.steps_per_epoch = 25
    output = run.run()
    rows = list(csv.DictReader((output / "csv" / "version_0" / "metrics.csv").open()))
    bits = [float(row["val_bits_per_byte"]) for row in rows if row["val_bits_per_byte"]]
    assert 8 > bits[0] > bits[1]
    assert bits[1] < 2, "that of frequencies alone is 2.95"
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["val_bits_per_byte"] == pytest.approx(bits[1])
    best = json.loads((output / "best" / "config.json").read_text())
    assert best["metrics"]["val_bits_per_byte"] == pytest.approx(min(bits)), "the smallest is the best"


def test_training_goes_on_with_longer_texts_and_other_latents(tmp_path, text):
    first = small_run(tmp_path / "first", text, max_epochs=1).run()
    config = pretrained_config(first, PerceiverARConfig)
    run = small_run(tmp_path / "second", text, replace(config, length=48, latents=20, strict=True), max_epochs=1)
    run.optimization.lr = 1e-9
    model = load_model(run.run())
    assert (model.length, model.latents, model.config["prefix_dropout"]) == (48, 20, 0.5)
    assert torch.allclose(model.output.weight, load_model(first).output.weight, atol=1e-5)


def test_the_command_evaluate_gives_the_figures_of_the_run(tmp_path, capsys, text):
    output = small_run(tmp_path / "run", text, max_epochs=1).run()
    bits = json.loads((output / "metrics.json").read_text())["val_bits_per_byte"]
    model = str(output / "model")
    assert find_experiment(model) is CausalLanguage
    capsys.readouterr()
    command = ["evaluate", model, "--data", str(text), "--device", "cpu"]
    main([*command, "--validation-fraction", "0.1", "--batch-size", "3", "--json"])
    assert json.loads(capsys.readouterr().out) == {
        "bits_per_byte": pytest.approx(bits, rel=1e-5),
        "bytes": 180,
        "total": 1800,
        "split": None,
    }
    main([*command, "--validation-fraction", "0.1"])
    assert capsys.readouterr().out == f"180 of 1,800 bytes: {bits:.4f} bits per byte\n"
    strides = {}
    for stride in (None, 1, 4, 8):
        main([*command, "--json", *(["--stride", str(stride)] if stride else [])])
        strides[stride] = json.loads(capsys.readouterr().out)["bits_per_byte"]
    assert strides[None] == strides[4]
    assert len({*strides.values()}) == 3
    assert "data.stride = 9 is not allowed: it must be at most 8" in fails(capsys, *command, "--stride", "9")
    assert "none is neither a file nor" in fails(capsys, "evaluate", model, "--data", str(tmp_path / "none"))
    assert "use perceivers generate" in fails(
        capsys, "predict", model, "--data", str(tmp_path), "--out", f"{tmp_path}/x.csv"
    )


def test_a_model_saved_by_hand_is_evaluated(tmp_path, text, capsys):
    causal().float().save(tmp_path / "model")
    main(["evaluate", str(tmp_path / "model"), "--data", str(text), "--json"])
    assert 8 < json.loads(capsys.readouterr().out)["bits_per_byte"] < 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"latents": 25, "length": 24}}, "latents = 25 is not allowed: it must be from 1 to length = 24"),
        ({"model": {"latent": 25}}, r"there is no field 'model\.latent': did you mean 'latents'"),
        ({"model": {"prefix_dropout": 1.0}}, r"model\.prefix_dropout = 1\.0 is not allowed"),
        ({"model": {"preset": "language_bytes"}}, "model.preset = language_bytes is of language: CausalLanguage train"),
        ({"data": {"stride": 9}}, r"data\.stride = 9 is not allowed: it must be at most 8"),
        ({"data": {"mask_rate": 0.1}}, r"there is no field 'data\.mask_rate'"),
        ({"data": {"path": "missing.txt"}}, r"missing\.txt is neither a file nor a folder with text files"),
        ({"model": {"length": 1620}}, "the text to train on has 1620 bytes, fewer than a window of 1621: give more"),
        ({"data": {"validation_fraction": 1e-9}}, "the text to evaluate has 1 bytes: give more text"),
    ],
)
def test_configs_that_are_refused(tmp_path, text, change, message):
    values = {
        "experiment": "causal_language",
        "model": SIZES | change.get("model", {}),
        "data": {"path": str(text)} | change.get("data", {}),
        "training": {"output": str(tmp_path / "run")},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(values))
    with pytest.raises(PerceiversError, match=message):
        read_config(tmp_path / "config.yaml").run()
    assert not (tmp_path / "run").exists()
