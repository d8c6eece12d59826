"""A run starts from a pretrained model of any format, and changes only the parts that it is to train."""

import json
from dataclasses import replace

import pytest
import torch

import perceivers
from perceivers import PerceiversError
from perceivers.checkpoints.load import load_model, pretrained_config
from perceivers.cli import main
from perceivers.flow.model import OpticalFlowConfig
from perceivers.images.model import ImageClassifierConfig
from perceivers.released import transformers as port
from perceivers.text.fine_tuning import TextClassification
from perceivers.text.labeled import LabeledTextData
from perceivers.training.config import read_config
from tests.support import clips, fine_tuning
from tests.support.cli import fails
from tests.support.experiments import DATA, RUNS
from tests.support.flow import use_few_textures
from tests.support.models import classifier, optical
from tests.support.peers import peer
from tests.support.runs import interrupt_at


def write_images(folder, shared_data):
    """Three real images of three classes, to train and to evaluate on."""
    for image in sorted((shared_data / "imagenet_samples").glob("*/*"))[:3]:
        for split in ("train", "val"):
            (folder / split / image.parent.name).mkdir(parents=True)
            (folder / split / image.parent.name / image.name).symlink_to(image)
    return {"path": str(folder)}


def write_videos(folder, shared_data):
    """One real video as four clips of two classes."""
    for name in ("one/a", "one/b", "two/a", "two/b"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.mkv").symlink_to(shared_data / "video" / "flipping_a_pancake.mkv")
    return {"path": str(folder), "validation_fraction": 0.5}


def choose_text(folder, shared_data):
    text = {"path": str(shared_data / "text" / "tinyshakespeare" / "input.txt")}
    return text | {"steps_per_epoch": 2, "eval_windows": 8, "documents_per_pack": 1}


def choose_pairs(folder, shared_data):
    """Real pairs to train on; those to evaluate on are small and generated."""
    return {"path": str(shared_data / "flow" / "middlebury"), "validation_pairs": 2, "scenes": {"size": [16, 24]}}


CLASSES = {
    port.FOURIER: ("image_classification", write_images, ["head"], ["heads", "outputs"]),
    port.LEARNED: ("image_classification", write_images, ["head", "inputs"], ["heads", "outputs", "inputs"]),
    port.CONV: ("image_classification", write_images, ["head", "decoder"], ["heads", "outputs", "decoder"]),
    port.LANGUAGE: ("masked_language", choose_text, ["encoder.layers"], ["encoder.layers"]),
    port.FLOW: ("optical_flow", choose_pairs, ["decoder", "head"], ["decoder", "heads"]),
    port.AUTOENCODER: ("autoencoding", write_videos, ["head"], ["projection", "heads", "outputs"]),
}
"""The experiment of each class, its data, the parts to train, and the beginnings of the names of their weights."""


@pytest.mark.parametrize("architecture", CLASSES)
def test_models_of_transformers_are_fine_tuned_saved_evaluated_and_converted_back(
    tmp_path, shared_data, monkeypatch, capsys, architecture
):
    use_few_textures(monkeypatch)
    experiment, prepare_data, train, changing = CLASSES[architecture]
    peer(architecture, tmp_path / "pretrained", audio_samples_per_frame=320)  # of a rate that can be written
    config = {
        "experiment": experiment,
        "model": {"train": train},
        "data": prepare_data(tmp_path / "data", shared_data),
        "optimization": {"lr": 0.01},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "limit_train_batches": 2},
        "training": {"batch_size": 2, "output": str(tmp_path / "run"), "ema": 0.5},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    main(["fit", str(tmp_path / "config.yaml"), f"--model.init={tmp_path / 'pretrained'}"])
    assert f"From {tmp_path / 'pretrained'}:\n  taken: " in capsys.readouterr().out

    before, after = perceivers.load(tmp_path / "pretrained"), perceivers.load(tmp_path / "run")
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    for name, tensor in new.items():
        is_trained = name.startswith(tuple(f"{beginning}." for beginning in changing))
        if not is_trained and tensor.shape == old[name].shape:  # the vector of labels is as wide as their number asks
            assert torch.equal(tensor, old[name]), name
    changed = {name for name, tensor in new.items() if not torch.equal(tensor, old[name])}
    for beginning in changing:
        assert any(name.startswith(f"{beginning}.") for name in changed), beginning

    if experiment == "optical_flow":  # the run's generated pairs are in no folder
        main(["make-flow-data", str(tmp_path / "pairs"), "--pairs=2", "--size", "40", "48"])
        capsys.readouterr()
        main(
            [
                "evaluate",
                str(tmp_path / "run"),
                "--data",
                str(tmp_path / "pairs"),
                "--split=train",
                "--overlap=4",
                "--json",
            ]
        )
        assert '"epe": ' in capsys.readouterr().out
    else:
        metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
        command = ["evaluate", str(tmp_path / "run"), "--data", str(config["data"]["path"]), "--json"]
        if experiment == "masked_language":
            command += ["--batch-size=2", "--eval-windows=8", "--documents-per-pack=1", "--validation-fraction=0.02"]
        main([*command, "--device=cpu"])
        found = json.loads(capsys.readouterr().out)
        compared = {name: value for name, value in found.items() if f"val_{name}" in metrics}
        if experiment == "image_classification" or experiment == "masked_language":
            assert compared == {name: pytest.approx(metrics[f"val_{name}"], rel=1e-3) for name in compared}
        assert compared

    main(["convert", str(tmp_path / "run"), str(tmp_path / "back"), "--to", "transformers"])
    back = perceivers.load(tmp_path / "back")
    for name, tensor in back.state_dict().items():
        torch.testing.assert_close(tensor, new[name])


def fit(folder, *overrides, **config):
    """Reads a config, with overrides, from a file."""
    (folder / "config.yaml").write_text(json.dumps(config))
    return read_config(folder / "config.yaml", overrides)


def test_the_fields_of_a_pretrained_model_are_the_defaults(tmp_path):
    classifier(image_size=16, class_names=[f"class {k}" for k in range(10)]).save(tmp_path / "model")
    init = f"--model.init={tmp_path / 'model'}"
    preset = {"preset": "imagenet_fourier", "latents": 99, "freeze": ["encoder"]}
    run = fit(tmp_path, init, "--model.image_size=20", experiment="image_classification", model=preset)
    assert (run.model.latents, run.model.image_size, run.model.bands) == (6, 20, 3)
    assert run.model.freeze == ["encoder"]  # how the model is trained, not what it is
    assert (run.model.classes, run.model.class_names) == (10, None)  # the names come from the data
    assert run.settle(classes=3)
    given = {"init": str(tmp_path / "model"), "dropout": 0.2}
    run = fit(tmp_path, "--model.strict=true", experiment="image_classification", model=given)
    assert (run.model.latents, run.model.dropout, run.model.strict) == (6, 0.2, True)
    again = fit(tmp_path, **run.to_config())
    assert again.to_config() == run.to_config()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"init": "flow"},
            "flow is a model of another domain, which reads frames and predicts flow: give one that Imag",
        ),
        (
            {"init": "image", "preset": "imagenet_conv"},
            "model.init and model.preset both name a model: leave one of th",
        ),
        ({"init": 3}, "model.init = 3 is not allowed: it must be a saved model"),
        ({"init": "none"}, "none is neither a folder nor a file here"),
        ({"init": "image", "train": ["hed"]}, "model.train: the model has no part 'hed': did you mean 'head'?"),
        ({"init": "image", "freeze": ["encoder.layers.3"]}, "model.freeze: the model has no part 'encoder.layers.3'"),
        ({"init": "image", "latent": 3}, "there is no field 'model.latent': did you mean 'latents'?"),
        ({"init": "image", "classes": 7}, "model.classes = 7 is not allowed: it must be 10, as in the data"),
        (
            {"init": "image", "strict": True},
            "weights of this model (fresh: heads.label.weight, heads.label.bias (10 in",
        ),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, model, message):
    monkeypatch.chdir(tmp_path)
    classifier(mean=(0.5,), std=(0.5,), classes=4).save("image")
    optical().save("flow")
    config = {"experiment": "image_classification", "model": model, "data": {"path": "digits"}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    assert message in fails(capsys, "fit", "config.yaml", "--training.output=run")
    assert not (tmp_path / "run").exists()


def test_python_starts_from_a_pretrained_model(tmp_path):
    optical().save(tmp_path)
    config = pretrained_config(tmp_path)
    assert isinstance(config, OpticalFlowConfig)
    assert (config.init, config.latents) == (str(tmp_path), 6)
    with pytest.raises(PerceiversError, match=r"another domain, .* give one that ImageClassifierConfig describes"):
        pretrained_config(tmp_path, ImageClassifierConfig)


FROZEN = {
    "image_classification": "encoder.layers",
    "masked_language": "inputs.text.embedding",
    "causal_language": "cross_attention",
    "text_classification": "encoder",
    "optical_flow": "encoder",
    "clip_classification": "encoder",
    "autoencoding": "encoder",
    "behavioral_cloning": "units",
    "table": "encoder",
}
"""A part that stays as it is, of the model of each experiment."""


@pytest.mark.parametrize("name", FROZEN)
def test_a_run_of_every_experiment_starts_from_the_model_of_another_run(tmp_path, monkeypatch, name):
    use_few_textures(monkeypatch)
    data = tmp_path / "data"
    data.mkdir()
    DATA.get(name, lambda folder: None)(data)
    first = RUNS[name](data, output=tmp_path / "first")
    first.trainer = first.trainer | {"max_epochs": 1}
    first.run()
    second = RUNS[name](data, output=tmp_path / "second")
    second.trainer = second.trainer | {"max_epochs": 1}
    second.model = replace(second.model, init=str(tmp_path / "first"), freeze=[FROZEN[name]], strict=True)
    second.run()
    pretrained = load_model(tmp_path / "first")
    assert type(second.model).from_model(pretrained) is not None
    before, after = pretrained.state_dict(), load_model(tmp_path / "second").state_dict()
    equal = {key for key, value in after.items() if torch.equal(value, before[key])}
    frozen = {key for key in after if key.startswith(f"{FROZEN[name]}.")}
    assert frozen
    assert frozen <= equal
    assert len(equal) < len(after)


@pytest.mark.parametrize("kind", ["language_bytes", "bert_bytes"])
def test_text_is_classified_from_a_language_model_and_from_a_classifier(tmp_path, capsys, kind):
    language = fine_tuning.config(kind).build()
    language.save(tmp_path / "language")
    data = LabeledTextData(str(fine_tuning.write_csv(tmp_path / "reviews.csv", fine_tuning.labeled(40, 0))))
    for number, init in enumerate(("language", "0", "1")):
        config = replace(pretrained_config(tmp_path / init), freeze=["inputs"], strict=number == 2)
        TextClassification(model=config, data=data, **fine_tuning.settings(tmp_path / str(number))).run()
        trained = load_model(tmp_path / str(number))
        assert torch.equal(trained.inputs["text"].embedding.weight, language.inputs["text"].embedding.weight)
        fresh = "fresh: outputs.label." in capsys.readouterr().out
        assert fresh == (init == "language")


def test_a_modality_is_left_out_and_added(tmp_path, capsys):
    clips.write_clips(tmp_path / "data")
    clips.autoencoding_run(tmp_path / "both", tmp_path / "data").run()
    silent = replace(pretrained_config(tmp_path / "both"), samples_per_frame=None, classes=None, class_names=None)
    run = clips.autoencoding_run(tmp_path / "silent", tmp_path / "data")
    run.model = silent
    run.run()
    assert list(perceivers.load(tmp_path / "silent").inputs) == ["video"]
    assert "left over: " in capsys.readouterr().out
    run = clips.autoencoding_run(tmp_path / "again", tmp_path / "data")
    run.model = replace(pretrained_config(tmp_path / "silent"), samples_per_frame=320, classes=2)
    run.run()
    assert "fresh: input_padding.vectors.audio" in capsys.readouterr().out
    assert set(perceivers.load(tmp_path / "again").inputs) == {"video", "audio", "label"}


def test_a_resumed_run_starts_from_its_checkpoint(tmp_path, monkeypatch, capsys):
    classifier(mean=(0.5,), std=(0.5,), classes=4, dropout=0.1).save(tmp_path / "model")
    config = {
        "experiment": "image_classification",
        "model": {"init": str(tmp_path / "model"), "train": ["head", "decoder"]},
        "data": {"path": "digits"},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "limit_train_batches": 3},
        "training": {"batch_size": 32, "ema": 0.9},
    }
    fit(tmp_path, f"--training.output={tmp_path / 'whole'}", **config).run()
    interrupt_at(4, monkeypatch)
    run = fit(tmp_path, f"--training.output={tmp_path / 'run'}", **config)
    with pytest.raises(SystemExit):
        run.run()
    capsys.readouterr()
    read_config(tmp_path / "run" / "config.json", ["--training.resume=true"]).run()
    assert "taken: " not in capsys.readouterr().out
    whole, run = (load_model(tmp_path / name).state_dict() for name in ("whole", "run"))
    assert all(torch.equal(value, run[name]) for name, value in whole.items())
