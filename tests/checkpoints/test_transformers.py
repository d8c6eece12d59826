"""The published models in the format of `transformers`: read, written, and the same answers on both sides."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import perceivers
from perceivers.adapters.image import IMAGENET_MEAN, IMAGENET_STD
from perceivers.checkpoints import transformers as port
from perceivers.model.errors import PerceiversError

SMALL = {
    "num_latents": 12,
    "d_latents": 32,
    "num_blocks": 2,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
}
CONFIGS = {
    port.LANGUAGE: SMALL
    | {
        "num_blocks": 1,
        "num_cross_attention_heads": 8,
        "num_self_attention_heads": 8,
        "d_model": 24,
        "qk_channels": 16,
        "v_channels": 32,
        "max_position_embeddings": 40,
        "vocab_size": 262,
        "self_attention_widening_factor": 2,
        "hidden_act": "gelu_pytorch_tanh",
    },
    port.FOURIER: SMALL | {"num_labels": 5, "image_size": 224},
    port.LEARNED: SMALL | {"num_labels": 5, "image_size": 12, "cross_attention_widening_factor": 2},
    port.CONV: SMALL | {"num_labels": 5, "image_size": 224},
    port.FLOW: SMALL | {"train_size": [16, 24], "num_blocks": 1},
    port.AUTOENCODER: SMALL
    | {
        "num_labels": 7,
        "num_frames": 3,
        "image_size": 4,
        "output_shape": [1, 3, 16, 16],
        "audio_samples_per_frame": 32,
        "output_num_channels": 20,
        "_label_trainable_num_channels": 48,
    },
}


def peer(architecture, folder, **changes):
    """A model of theirs with random weights, saved to a folder."""
    torch.manual_seed(1)
    config = transformers.PerceiverConfig(**(CONFIGS[architecture] | changes))
    model = getattr(transformers, architecture)(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    for parameter in model.parameters():  # theirs starts with zero biases and norms of one, which would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def ask_both(architecture, theirs, ours):
    """The answers of both models to the same random input, as lists of tensors."""
    torch.manual_seed(2)
    if architecture == port.LANGUAGE:
        token_BM = torch.randint(262, (2, 40))
        mask_BM = torch.arange(40) < torch.tensor([[40], [25]])
        expected = theirs(inputs=token_BM, attention_mask=mask_BM.long()).logits
        logits = ours({"text": perceivers.InputArray(token_BM, mask_BM)})["text"]
        return [logits[mask_BM]], [expected[mask_BM]]  # theirs answers for padding too
    if architecture == port.FLOW:
        frames = torch.rand(2, 2, 3, *theirs.config.train_size)
        return [ours({"frames": frames})["flow"]], [20 * theirs(inputs=patches(frames)).logits.movedim(-1, 1)]
    if architecture == port.AUTOENCODER:
        config = theirs.config
        _, time, height, width = config.output_shape
        video = torch.rand(1, time, 3, height, width)
        audio = torch.rand(1, time * config.audio_samples_per_frame) - 0.5
        label = torch.zeros(1, config.num_labels)
        points = {
            "image": torch.randint(time * height * width, (40,)),
            "audio": torch.randint(audio.shape[1] // config.samples_per_patch, (5,)),
            "label": None,
        }
        inputs = {"image": video, "audio": audio[..., None], "label": label}
        expected = theirs(inputs=inputs, subsampled_output_points=points).logits
        wanted = {"video": points["image"], "audio": points["audio"], "label": None}
        data = {"video": video, "audio": audio, "label": torch.tensor([0])}
        answers = ours(data, wanted, masked={"label": torch.tensor([[True]])})
        return (
            [answers["video"], answers["audio"].flatten(1), answers["label"]],
            [expected["image"], expected["audio"], expected["label"]],
        )
    size = theirs.config.image_size if architecture == port.LEARNED else 36
    images = torch.rand(2, 3, size, size)
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD])[..., None, None]
    return [ours({"image": images})["label"]], [theirs(inputs=(images - mean) / std).logits]


def patches(frames):
    """What the flow model of theirs takes: at every pixel the 3 x 3 around it, of frames scaled to [-1, 1]."""
    padded = torch.nn.functional.pad(2 * frames - 1, (1, 1, 1, 1))
    height, width = frames.shape[-2:]
    shifted = [padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.cat(shifted, 2)


def assert_parity(ours, theirs):
    for our_answer, their_answer in zip(ours, theirs, strict=True):
        assert our_answer.shape == their_answer.shape
        assert (our_answer - their_answer).abs().max() / their_answer.std() < 1e-4


@pytest.mark.parametrize("architecture", CONFIGS)
def test_reads_what_transformers_wrote(architecture, tmp_path):
    theirs = peer(architecture, tmp_path)
    assert_parity(*ask_both(architecture, theirs, perceivers.load(tmp_path)))


@pytest.mark.parametrize("architecture", CONFIGS)
def test_transformers_reads_what_we_wrote(architecture, tmp_path):
    peer(architecture, tmp_path / "theirs")
    ours = perceivers.load(tmp_path / "theirs")
    ours.save(tmp_path / "ours")
    ours = perceivers.load(tmp_path / "ours")
    port.save(ours, tmp_path / "back")
    theirs, report = getattr(transformers, architecture).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values())
    assert_parity(*ask_both(architecture, theirs.eval(), ours))
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
