"""Every published model at full size, with random weights: made by `transformers`, used on real files, converted back.

Slow: `make test-slow`.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

import perceivers
from perceivers.adapters.image import IMAGENET_MEAN, IMAGENET_STD
from perceivers.cli import main
from perceivers.clips.reconstruct import autoencode
from perceivers.data.image_files import evaluation_view, read_frame, to_tensor
from perceivers.data.video import read_clip
from perceivers.flow.files import read_flow
from perceivers.released import transformers as port
from perceivers.text.fill_mask import mask_tokens
from perceivers.text.tokenizers import Bytes

pytestmark = pytest.mark.slow

CLASSIFIER = {
    "num_latents": 512,
    "d_latents": 1024,
    "num_blocks": 8,
    "num_self_attends_per_block": 6,
    "num_cross_attention_heads": 1,
    "num_labels": 1000,
}
SIZES = {
    port.LANGUAGE: {"qk_channels": 256, "v_channels": 1280},
    port.FOURIER: CLASSIFIER,
    port.LEARNED: CLASSIFIER | {"image_size": 224},
    port.CONV: CLASSIFIER,
    port.FLOW: {
        "num_latents": 2048,
        "d_latents": 512,
        "num_self_attends_per_block": 24,
        "num_self_attention_heads": 16,
        "num_cross_attention_heads": 1,
    },
    port.AUTOENCODER: {
        "num_latents": 784,
        "d_latents": 512,
        "num_self_attends_per_block": 8,
        "num_cross_attention_heads": 1,
        "num_labels": 700,
    },
}
PRESETS = {
    port.LANGUAGE: "language_bytes",
    port.FOURIER: "imagenet_fourier",
    port.LEARNED: "imagenet_learned",
    port.CONV: "imagenet_conv",
    port.FLOW: "optical_flow",
    port.AUTOENCODER: "autoencoder_88x",
}


def make(architecture, folder):
    """A model of theirs, its weights as large as trained ones: answers of the usual small ones hardly vary."""
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(transformers.PerceiverConfig(**SIZES[architecture])).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
        else:
            torch.nn.init.normal_(parameter, mean=float("norm" in name and name.endswith("weight")), std=0.1)
    model.save_pretrained(folder)
    return model


def assert_parity(ours, theirs):
    assert ours.shape == theirs.shape
    assert theirs.std() > 0
    assert (ours - theirs).abs().max() / theirs.std() < 1e-3


def shapes(model):
    return {name: array.shape for name, array in model.state_dict().items()}


def assert_converts_both_ways(folder, tmp_path):
    main(["convert", str(folder), str(tmp_path / "ours"), "--to", "perceivers"])
    main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "transformers"])
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.fixture
def made(request, tmp_path, shared_data):
    """A model of theirs and the folder where it is saved; the folder has its size and converts both ways."""
    model = make(request.param, tmp_path / "theirs")
    ours = perceivers.load(tmp_path / "theirs")
    with torch.device("meta"):
        preset = perceivers.create_model(PRESETS[request.param])
    assert shapes(ours) == shapes(preset)
    assert_converts_both_ways(tmp_path / "theirs", tmp_path)
    return model, tmp_path / "ours"


@pytest.mark.parametrize("made", [port.LANGUAGE], indirect=True)
@torch.inference_mode()
def test_language(made, shared_data, capsys):
    theirs, folder = made
    text = next((shared_data / "text" / "tinyshakespeare").rglob("*.txt")).read_text()[:200]
    text = text[:60] + "[MASK*9]" + text[69:]
    capsys.readouterr()
    main(["fill-mask", str(folder), text, "--top", "256", "--json"])
    answer = json.loads(capsys.readouterr().out)
    tokens = torch.tensor([mask_tokens(text, Bytes(), 2048)])
    padded = torch.nn.functional.pad(tokens, (0, 2048 - tokens.shape[1]))
    real = (torch.arange(2048) < tokens.shape[1]).long()[None]
    expected = theirs(inputs=padded, attention_mask=real).logits[0, answer["masked"], 6:].softmax(-1)
    assert answer["masked"] == list(range(60, 69))
    assert_parity(
        torch.tensor([list(candidates.values()) for candidates in answer["candidates"]]), expected.sort(-1, True)[0]
    )


@pytest.mark.parametrize("made", [port.FOURIER, port.LEARNED, port.CONV], indirect=True)
@torch.inference_mode()
def test_image_classification(made, shared_data, capsys):
    theirs, folder = made
    file = min((shared_data / "imagenet_samples").rglob("*.JPEG"))
    capsys.readouterr()
    main(["classify-image", str(folder), str(file), "--top", "1000", "--json", "--device", "cpu"])
    ((classes),) = (one["classes"] for one in json.loads(capsys.readouterr().out))
    image = to_tensor(evaluation_view(Image.open(file).convert("RGB"), (224, 224), 0.875)).float() / 255
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD])[..., None, None]
    expected = theirs(inputs=((image - mean) / std)[None]).logits[0].softmax(-1)
    assert_parity(torch.tensor([classes[str(index)] for index in range(1000)]), expected)


FRAMES = {
    "sintel": ("flow/sintel_frames/ambush_1/frame_0001.png", "flow/sintel_frames/ambush_1/frame_0002.png", 1024, 436),
    "kitti": ("flow/kitti15/training/image_2/000000_10.png", "flow/kitti15/training/image_2/000000_11.png", 1242, 375),
    "middlebury": (
        "flow/middlebury/other-data/RubberWhale/frame10.png",
        "flow/middlebury/other-data/RubberWhale/frame11.png",
        584,
        388,
    ),
}


@pytest.mark.parametrize("made", [port.FLOW], indirect=True)
@torch.inference_mode()
def test_optical_flow(made, shared_data, tmp_path):
    theirs, folder = made
    for name, (first, second, width, height) in FRAMES.items():
        frames = [str(shared_data / frame) for frame in (first, second)]
        out, picture = tmp_path / f"{name}.flo", tmp_path / f"{name}.png"
        main(["flow", str(folder), *frames, "--out", str(out), "--picture", str(picture)])
        flow, valid = read_flow(out)
        assert flow.shape == (2, height, width)
        assert valid.all()
        assert picture.stat().st_size > 0
        # Where there is the first tile only, the flow is that of a single pass of theirs.
        alone = (..., slice(0, height - 368), slice(0, 264))
        if name == "sintel":
            pair = torch.stack([read_frame(frame) for frame in frames])[None, ..., :368, :496]
            padded = torch.nn.functional.pad(2 * pair.float() / 255 - 1, (1, 1, 1, 1))
            patches = torch.cat([padded[..., y : y + 368, x : x + 496] for y in range(3) for x in range(3)], 2)
            expected = 20 * theirs(inputs=patches).logits[0].movedim(-1, 0)
            assert_parity(flow[alone], expected[alone])


@pytest.mark.parametrize("made", [port.AUTOENCODER], indirect=True)
@torch.inference_mode()
def test_autoencoding(made, shared_data, tmp_path):
    theirs, folder = made
    clip = shared_data / "video" / "flipping_a_pancake.mkv"
    result = autoencode(folder, clip, tmp_path / "clip.mp4", start=2.0)
    assert read_clip(tmp_path / "clip.mp4", size=(224, 448)).audio is not None
    read = read_clip(clip, start=2.0)
    inputs = {"image": read.video[None] / 255, "audio": read.audio[None, :, None], "label": torch.zeros(1, 700)}
    points = {"image": torch.randint(16 * 224 * 224, (6272,)), "audio": torch.arange(1920), "label": None}
    expected = theirs(inputs=inputs, subsampled_output_points=points).logits
    pixels = result.video.movedim(1, -1).flatten(0, 2)
    assert_parity(pixels[points["image"]], expected["image"][0].clamp(0, 1))
    assert_parity(result.audio, expected["audio"][0].clamp(-1, 1))
    probabilities = torch.tensor([result.classes[str(index)] for index in range(700)])
    assert_parity(probabilities, expected["label"][0].softmax(-1))


PEAK = """
import torch
from benchmarks.worker import peak, reset_peak
from perceivers.clips.autoencoding import ClipAutoencoder
from perceivers.presets import create_model

reset_peak("cpu")  # or the peak of the process that began this one would count, too
torch.manual_seed(0)
module = ClipAutoencoder(create_model("autoencoder_88x"))
module.log = lambda *arguments, **options: None
batch = {{
    "video": torch.randint(256, (1, 16, 3, 224, 224), dtype=torch.uint8),
    "video_mask": torch.ones(1, 16, dtype=torch.bool),
    "audio": torch.rand(1, 30720) - 0.5,
    "audio_mask": torch.ones(1, 30720, dtype=torch.bool),
    "label": torch.tensor([7]),
}}
{step}
print(peak("cpu") / 2**30)
"""
TRAINING = """
optimizer = torch.optim.AdamW(module.model.parameters())
for _ in range(2):
    module.training_step(batch, 0).backward()
    optimizer.step()
    optimizer.zero_grad()
"""
DECODING = """
with torch.inference_mode():
    answers = module.model.eval().decode(module.encode(batch, torch.ones(1, 1, dtype=torch.bool)))
assert answers["video"].shape == (1, 16, 3, 224, 224)
"""


@pytest.mark.parametrize(("step", "gibibytes"), [(TRAINING, 6), (DECODING, 3)], ids=["training", "decoding"])
def test_memory_of_the_papers_autoencoder(step, gibibytes):
    """Of the whole process, torch included."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(step=step)],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        cwd=Path(__file__).parents[1],
    )
    assert float(done.stdout) < gibibytes
