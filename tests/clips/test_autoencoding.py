import json
import re
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from perceivers import PerceiversError
from perceivers.checkpoints.load import load_model

pytest.importorskip("av")
from perceivers.cli import main
from perceivers.clips.autoencoding import (
    Autoencoding,
    ClipAugmentation,
    ClipAutoencoder,
    Weights,
    evaluate,
    gather_pixels,
    relative_error,
)
from perceivers.clips.classification import ClipClassification
from perceivers.clips.data import ClipData
from perceivers.clips.distances import psnr
from perceivers.clips.model import AutoencoderConfig, ClipClassifierConfig
from perceivers.clips.reconstruct import autoencode, compression
from perceivers.data.video import read_frames
from perceivers.presets import create_model, model_config
from perceivers.training.config import read_config
from tests.support.cli import fails
from tests.support.clips import AUTOENCODER as SIZES
from tests.support.clips import autoencoding_run as small_run
from tests.support.clips import wav, write_tones
from tests.support.clips import write_clips as clips

ROOT = Path(__file__).parents[2]


def test_clips_are_learned_and_the_model_works_in_the_command(tmp_path):
    data = clips(tmp_path / "clips")
    output = small_run(tmp_path / "run", data, max_epochs=40).run()
    figures = json.loads((output / "metrics.json").read_text())
    assert figures["val_video_psnr"] > 20
    assert figures["val_audio_psnr"] > 3
    assert 0 <= figures["val_top1"] <= 1
    written = read_frames(output / "reconstructions" / "0.mp4")
    assert [frame.shape for frame in written.frames] == [(3, 8, 16)] * 4
    result = autoencode(output / "model", data / "bright" / "2.mkv", tmp_path / "out.mp4", start=0.08)
    assert result.video_psnr > 18
    assert set(result.classes) == {"bright", "dark"}
    assert load_model(output / "model").inputs["audio"].sample_rate == 8000


@pytest.mark.parametrize("without", ["samples_per_frame", "classes"])
def test_a_modality_is_left_out_by_a_line(tmp_path, without):
    data = clips(tmp_path / "clips")
    output = small_run(tmp_path / "run", data, {without: None}).run()
    figures = json.loads((output / "metrics.json").read_text())
    assert ("val_audio_psnr" in figures) == (without == "classes")
    assert ("val_top1" in figures) == (without != "classes")
    result = autoencode(output / "model", data / "bright" / "0.mkv", tmp_path / "out.mp4")
    assert (result.audio is None) == (without != "classes")
    assert (result.classes == {}) == (without == "classes")


def test_sound_alone_is_learned_and_a_file_is_reconstructed_window_after_window(tmp_path, capsys):
    data = write_tones(tmp_path / "tones")
    sizes = {"image_size": None, "classes": None, "frames": 2, "audio_scale": 0.5, "latents": 16, "channels": 32}
    fields = {"audio_loss": "relative"}
    output = small_run(tmp_path / "run", data, sizes, fields, max_epochs=60).run()
    assert "Compression 1.25x, samples to numbers." in capsys.readouterr().out
    figures = json.loads((output / "metrics.json").read_text())
    assert figures["val_audio_snr"] > 6
    assert "val_video_psnr" not in figures
    with wave.open(str(output / "reconstructions" / "0.wav")) as file:
        assert (file.getnframes(), file.getframerate()) == (2 * 640, 8000)
    source, out = data / "low" / "3.wav", tmp_path / "out.wav"
    main(["autoencode", str(output / "model"), str(source), "--out", str(out), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert answer["video_psnr"] is None
    result = autoencode(output / "model", source)
    original, rate, _ = read_wav(source)
    written, _, _ = read_wav(out)
    assert len(written) == len(original) == len(result.audio)
    assert np.abs(written - result.audio.numpy()).max() < 1e-4
    error = np.square(original - result.audio.numpy()).sum()
    assert answer["audio_snr"] == pytest.approx(10 * np.log10(np.square(original).sum() / error), abs=1e-3)
    assert len(autoencode(output / "model", source, start=0.01).audio) == len(original) - rate // 100
    for arguments, message in (
        (["--out", str(tmp_path / "out.mp4")], r"out\.mp4 cannot be written as sound: it must end in \.wav"),
        (["--out", str(out), "--start", "9"], r"has no sound after 9.0 s"),
    ):
        assert re.search(message, fails(capsys, "autoencode", str(output / "model"), str(source), *arguments))


def read_wav(path):
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
        return samples, file.getframerate(), file.getnchannels()


def test_a_model_of_nothing():
    with pytest.raises(PerceiversError, match=r"model\.image_size and model\.samples_per_frame are both null"):
        AutoencoderConfig(image_size=None, samples_per_frame=None).build()


def test_the_config_of_a_model_of_sound():
    config = AutoencoderConfig(**(SIZES | {"image_size": None, "classes": None, "audio_scale": 0.1}))
    found = AutoencoderConfig.from_model(config.build())
    assert found.audio_scale == 0.1
    assert (found.image_size, found.frames, found.samples_per_frame) == (None, config.frames, config.samples_per_frame)


def test_the_relative_error_by_its_definition():
    target, predicted, mask = torch.randn(3, 8), torch.randn(3, 8), torch.rand(3, 8) < 0.6
    mask[2] = False  # nothing is real
    expected = [
        sum((p - t) ** 2 for p, t, m in zip(*row, strict=True) if m)
        / sum(t**2 + 1e-5 for _, t, m in zip(*row, strict=True) if m)
        for row in zip(predicted[:2], target[:2], mask[:2], strict=True)
    ]
    assert float(relative_error(predicted, target, mask)) == pytest.approx(float(sum(expected)) / 2, rel=1e-5)
    patches = [each.unflatten(1, (4, 2)) for each in (predicted, target, mask)]
    assert relative_error(*patches) == relative_error(predicted, target, mask)
    assert relative_error(0 * target, target, torch.ones(3, 8)) == pytest.approx(1, abs=1e-3), "silence"
    assert relative_error(predicted, target, mask & False) == 0


def test_all_are_decoded_if_there_are_no_more():
    drawn = module(points=80).draw_indices(batch())
    assert drawn["audio"] is None
    assert drawn["video"].shape == (3, 80)
    chosen, data = module(points=80), batch()
    losses, _ = full_losses(chosen, data, torch.ones(3, 1, dtype=torch.bool))
    encoded = chosen.encode(data, torch.ones(3, 1, dtype=torch.bool))
    found = chosen.compute_losses(data, chosen.model.decode(encoded, drawn), drawn)
    torch.testing.assert_close(found["audio"], losses["audio"])


def test_windows_of_one_clip_are_learned(tmp_path):
    clip = clips(tmp_path / "clips") / "dark" / "0.mkv"
    run = small_run(tmp_path / "run", clip, {"classes": None})
    run.data.windows_per_epoch = 8
    assert "val_audio_psnr" in json.loads((run.run() / "metrics.json").read_text())


def module(**changes):
    return ClipAutoencoder(AutoencoderConfig(**SIZES, classes=5).build(), **changes).eval()


def batch(clips=3):
    generator = torch.Generator().manual_seed(0)
    return {
        "video": torch.randint(256, (clips, 4, 3, 8, 8), dtype=torch.uint8, generator=generator),
        "video_mask": torch.tensor([[True] * 4, [True, False, False, True], [True] * 4])[:clips],
        "audio": torch.rand(clips, 1280, generator=generator) - 0.5,
        "audio_mask": torch.stack([torch.ones(1280), torch.arange(1280) < 100, torch.zeros(1280)])[:clips].bool(),
        "label": torch.tensor([0, 4, 2])[:clips],
    }


def full_losses(chosen, data, hidden):
    answers = chosen.model.decode(chosen.encode(data, hidden))
    return chosen.compute_losses(data, answers, dict.fromkeys(answers)), answers


@torch.no_grad()
def test_losses_by_their_definitions():
    chosen, data = module(), batch()
    found, answers = full_losses(chosen, data, torch.ones(3, 1, dtype=torch.bool))
    video = (answers["video"] - data["video"] / 255).abs()
    assert float(found["video"]) == pytest.approx(float(video[data["video_mask"]].mean()), rel=1e-5)
    audio = (answers["audio"] - data["audio"]).abs()
    assert float(found["audio"]) == pytest.approx(float(audio[data["audio_mask"]].mean()), rel=1e-5)
    assert float(found["label"]) == pytest.approx(float(F.cross_entropy(answers["label"], data["label"])), rel=1e-5)


@torch.no_grad()
def test_pixels_of_frames_that_are_not_square():
    video = torch.rand(2, 5, 3, 4, 7)
    points = torch.randint(5 * 4 * 7, (2, 30))
    flat = video.movedim(2, -1).flatten(1, 3)
    assert gather_pixels(video, points).equal(flat.take_along_dim(points[..., None], 1))


def test_losses_of_some_outputs_are_those_of_the_same_entries_of_all():
    chosen, data = module(), batch()
    encoded = chosen.encode(data, torch.ones(3, 1, dtype=torch.bool))
    whole = chosen.model.decode(encoded)
    points = {"video": torch.randint(256, (3, 20)), "audio": torch.randint(80, (3, 20)), "label": None}
    found = chosen.compute_losses(data, chosen.model.decode(encoded, points), points)
    errors, known = (whole["video"] - data["video"] / 255).abs().movedim(2, -1).flatten(1, 3), data["video_mask"]
    total = [errors[b, p].sum() for b in range(3) for p in points["video"][b] if known[b, p // 64]]
    assert float(found["video"]) == pytest.approx(float(sum(total)) / (3 * len(total)), rel=1e-4)
    errors, audio_mask = (
        (each.unflatten(1, (80, 16))) for each in ((whole["audio"] - data["audio"]).abs(), data["audio_mask"])
    )
    total = [errors[b, p][audio_mask[b, p]] for b in range(3) for p in points["audio"][b]]
    assert float(found["audio"]) == pytest.approx(float(torch.cat(total).mean()), rel=1e-4)


@torch.no_grad()
def test_losses_of_random_subsets_are_those_of_everything_on_average():
    chosen, data = module(points=64), batch(1)
    hidden = torch.ones(1, 1, dtype=torch.bool)
    found, _ = full_losses(chosen, data, hidden)
    encoded, draws = chosen.encode(data, hidden), []
    for seed in range(200):
        torch.manual_seed(seed)
        points = chosen.draw_indices(data)
        assert points["video"].shape == points["audio"].shape == (1, 64)
        assert points["label"] is None
        draws.append(chosen.compute_losses(data, chosen.model.decode(encoded, points), points))
    for name, spread in (("video", 0.15), ("audio", 0.1)):
        each = torch.stack([draw[name] for draw in draws])
        assert each.std() < spread
        assert abs(each.mean() - found[name]) < 3 * each.std() / len(draws) ** 0.5


def test_the_label_is_hidden_from_some_in_training_and_from_all_in_evaluation(monkeypatch):
    chosen, data, seen = module(label_masking=0.25, points=4), batch(), []
    encode = chosen.model.encode
    monkeypatch.setattr(chosen.model, "encode", lambda inputs, masked: (seen.append(masked), encode(inputs, masked))[1])
    monkeypatch.setattr(chosen, "log", lambda *arguments, **options: None)
    for seed in range(100):
        torch.manual_seed(seed)
        chosen.training_step(data, 0)
    hidden = torch.cat([masked["label"] for masked in seen])
    assert hidden.shape == (300, 1)
    assert float(hidden.float().mean()) == pytest.approx(0.25, abs=0.08)
    seen.clear()
    chosen.validation_step(data | {"problems": []}, 0)
    assert seen[0]["label"].all()


def test_the_weights_of_the_modalities(monkeypatch):
    chosen = module(weights=Weights(0.5, 2.0, 0.25))
    losses = {"video": torch.tensor(3.0), "audio": torch.tensor(5.0), "label": torch.tensor(7.0)}
    monkeypatch.setattr(chosen, "compute_losses", lambda *arguments: losses)
    monkeypatch.setattr(chosen, "log", lambda *arguments, **options: None)
    assert float(chosen.training_step(batch(), 0)) == 0.5 * 3 + 2 * 5 + 0.25 * 7
    assert chosen.training_step({"problems": ["broken"]}, 0) == 0


@torch.no_grad()
def test_psnr_is_that_of_the_command_averaged_over_clips():
    chosen, data = module(), batch()
    chosen.validation_step(data | {"problems": []}, 0)
    _, answers = full_losses(chosen, data, torch.ones(3, 1, dtype=torch.bool))
    video, audio = answers["video"].clamp(0, 1), answers["audio"].clamp(-1, 1)
    each = [psnr(video[b][data["video_mask"][b]], data["video"][b][data["video_mask"][b]] / 255) for b in range(3)]
    assert float(chosen.metrics.means["video_psnr"].compute()) == pytest.approx(float(sum(each)) / 3, rel=1e-4)
    sound = [psnr(audio[0], data["audio"][0]), psnr(audio[1, :100], data["audio"][1, :100])]  # the third has none
    assert float(chosen.metrics.means["audio_psnr"].compute()) == pytest.approx(float(sum(sound)) / 2, rel=1e-4)
    right = (answers["label"].argmax(1) == data["label"]).float().mean()
    assert float(chosen.metrics.means["top1"].compute()) == pytest.approx(float(right))


@pytest.mark.parametrize(("name", "ratio"), [("88x", 88), ("176x", 176), ("352x", 352)])
def test_the_papers_compression_ratios(name, ratio):
    with torch.device("meta"):
        assert compression(create_model(f"autoencoder_{name}")) == ratio
    config = read_config(ROOT / "configs/autoencoding" / f"paper_{name}.yaml")
    assert config.model == model_config(f"autoencoder_{name}")
    assert (config.weights.video, config.weights.audio, config.weights.label) == (0.03, 1, 0.0001)
    assert (config.points, config.label_masking) == (512, 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": ClipClassifierConfig()}, "model = .* is not allowed: it must be of type AutoencoderConfig"),
        ({"points": 0}, "points = 0 is not allowed"),
        ({"label_masking": 1.5}, "label_masking = 1.5 is not allowed"),
    ],
)
def test_values_that_are_not_allowed(fields, message):
    with pytest.raises(PerceiversError, match=message):
        Autoencoding(**({"model": AutoencoderConfig()} | fields))
    with pytest.raises(PerceiversError, match=r"model\.preset = audioset_raw is of clip_classification"):
        read_config(ROOT / "configs/autoencoding/mini.yaml", ["--model.preset=audioset_raw"])
    with pytest.raises(PerceiversError, match=r"weights\.audio = -1 is not allowed"):
        Weights(audio=-1)


def test_clips_that_cannot_be_autoencoded(tmp_path):
    data = clips(tmp_path / "clips")
    with pytest.raises(PerceiversError, match=r"patch_size = \[1, 3, 3\] is not allowed: it must divide"):
        small_run(tmp_path / "run", data, {"patch_size": 3}).run()
    with pytest.raises(PerceiversError, match=r"model\.classes = 3 is not allowed: it must be 2, as in the data"):
        read_config(ROOT / "configs/autoencoding/mini.yaml", [f"--data.path={data}", "--model.classes=3"]).run()
    (tmp_path / "list.csv").write_text('file,labels\nbright/0.mkv,"a,b"\ndark/0.mkv,a\n')
    run = small_run(tmp_path / "run", data)
    run.data.training_list = str(tmp_path / "list.csv")
    with pytest.raises(PerceiversError, match=r"data\.training_list = .* must be a list with one class per clip"):
        run.run()
    (tmp_path / "sound" / "a").mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "sound" / name).mkdir(exist_ok=True)
        (tmp_path / "sound" / name / "1.wav").write_bytes(wav(np.zeros(4000)))
    with pytest.raises(PerceiversError, match="no clip of the evaluation has video"):
        small_run(tmp_path / "other", tmp_path / "sound", batch_size=1).run()


def test_what_is_evaluated_is_what_was_trained(tmp_path, capsys):
    data = clips(tmp_path / "clips")
    output = small_run(tmp_path / "run", data).run()
    figures = json.loads((output / "metrics.json").read_text())
    evaluation = ClipData(str(data), validation_fraction=0.2).open().evaluation
    found = evaluate(load_model(output / "model"), evaluation)
    assert found == {name: pytest.approx(figures[f"val_{name}"], rel=1e-4) for name in found}
    assert set(found) == {"video_psnr", "audio_psnr", "audio_snr", "audio_spectral_distance", "top1"}
    capsys.readouterr()
    main(["evaluate", str(output / "model"), "--data", str(data)])
    assert re.fullmatch(
        r"10 of 10 clips, 1 window of each: PSNR of the video [\d.]+ dB, PSNR of the sound [\d.]+ dB, "
        r"signal-to-noise ratio [-\d.]+ dB, spectral distance [\d.]+ dB, top-1 [\d.]+%\n",
        capsys.readouterr().out,
    )
    other = AutoencoderConfig(**SIZES, classes=None).build()
    other.save(tmp_path / "other")
    command = ["evaluate", str(tmp_path / "other"), "--data", str(data / "dark" / "0.mkv")]
    main([*command, "--windows", "3", "--json"])
    assert json.loads(capsys.readouterr().out)["windows"] == 3
    assert "--list gives the classes of clips, but this model has no label" in fails(
        capsys, *command, "--list", "a.csv"
    )


def test_a_run_says_its_compression_and_its_config_keeps_that_there_is_no_label(tmp_path, capsys):
    data = clips(tmp_path / "clips")
    output = small_run(tmp_path / "run", data, {"classes": None}, max_epochs=1).run()
    assert re.search(r"^Compression [\d.]+x, as the paper counts\.$", capsys.readouterr().out, re.MULTILINE)
    assert read_config(output / "config.json").model.classes is None
    labeled = small_run(tmp_path / "labeled", data, max_epochs=1).run()
    assert "classes" not in json.loads((labeled / "config.json").read_text())["model"]


def test_which_models_are_autoencoders():
    def builds(config):
        with torch.device("meta"):
            return config.build()

    assert Autoencoding.evaluates(builds(AutoencoderConfig()))
    assert Autoencoding.evaluates(builds(AutoencoderConfig(classes=None, samples_per_frame=None)))
    assert not Autoencoding.evaluates(builds(ClipClassifierConfig()))
    assert not ClipClassification.evaluates(builds(AutoencoderConfig()))
    assert ClipClassification.evaluates(builds(ClipClassifierConfig(frames=None)))
    assert not Autoencoding.evaluates(torch.nn.Linear(2, 2))


def test_all_frames_of_a_clip_are_changed_alike():
    augment = ClipAugmentation((0.25, 0.5), flip=True).build((8, 8))
    frame_CYX = torch.rand(3, 16, 16)
    video = torch.nn.functional.interpolate(frame_CYX[None], (8, 8)).expand(6, 5, -1, -1, -1).clone()
    torch.manual_seed(0)
    changed = augment(video)
    assert changed.shape == video.shape
    assert (changed - changed[:, :1]).abs().max() < 1e-5
    assert all((changed[a] - changed[b]).abs().max() > 0.01 for a in range(6) for b in range(a))
    assert torch.equal(ClipAugmentation().build((8, 8))(video), video)
    flipped = ClipAugmentation(flip=True).build((8, 8))(video)
    mirrored = [bool(torch.allclose(clip, video[0].flip(-1), atol=1e-5)) for clip in flipped]
    same = [bool(torch.allclose(clip, video[0], atol=1e-5)) for clip in flipped]
    assert sum(mirrored) + sum(same) == 6
    with pytest.raises(PerceiversError, match=r"augmentation\.area = \(0\.5, 0\.2\) is not allowed"):
        ClipAugmentation((0.5, 0.2))


def test_training_clips_are_augmented_and_evaluation_is_not(monkeypatch):
    chosen, data = module(augmentation=ClipAugmentation((0.2, 0.3))), batch()
    monkeypatch.setattr(chosen, "log", lambda *arguments, **options: None)
    seen, losses = [], chosen.compute_losses
    monkeypatch.setattr(
        chosen, "compute_losses", lambda batch, *rest: (seen.append(batch["video"]), losses(batch, *rest))[1]
    )
    chosen.training_step(data, 0)
    assert seen[0].shape == data["video"].shape
    assert 0 <= seen[0].min() < seen[0].max() <= 1
    assert (seen[0] - data["video"] / 255).abs().mean() > 0.05
    whole, _ = full_losses(chosen, data, torch.ones(3, 1, dtype=torch.bool))
    same, _ = full_losses(chosen, data | {"video": data["video"] / 255}, torch.ones(3, 1, dtype=torch.bool))
    torch.testing.assert_close(same["video"], whole["video"])
