"""The published models in the original's format: the same answers as the original code, on its own small instances."""

import numpy as np
import pytest
import torch

import perceivers
from perceivers.adapters.image import IMAGENET_MEAN, IMAGENET_STD
from perceivers.errors import PerceiversError

IMAGES = {"heads": 4, "num_blocks": 2}
GIVEN = {
    "imagenet_fourier": IMAGES | {"image_size": 32},
    "imagenet_learned": IMAGES,
    "imagenet_conv": IMAGES | {"image_size": 32},
    "language": {"heads": 4, "cross_heads": 4, "decoder_heads": 4},
    "optical_flow": {"heads": 4, "image_size": (24, 32)},
    "multimodal": {"heads": 4, "frames": 4, "image_size": (16, 16), "samples_per_frame": 32},
}
"""What the files of small instances do not tell."""


@pytest.fixture
def fixture(shared_fixtures):
    """Loads an instance, and what went into the original and came out of it."""

    def load(name):
        folder = shared_fixtures / "deepmind" / name
        arrays = [
            {key: torch.from_numpy(array) for key, array in np.load(folder / f"{part}.npz").items()}
            for part in ("inputs", "outputs")
        ]
        return perceivers.load(folder / "checkpoint.pystate", **GIVEN[name]), *arrays

    return load


def assert_parity(ours, reference):
    """The largest difference is below 1e-5 of the reference's standard deviation (the task's bound is 1e-4)."""
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() / reference.std() < 1e-5


@pytest.mark.parametrize("name", ["imagenet_fourier", "imagenet_learned", "imagenet_conv"])
def test_image_classification(fixture, name):
    model, inputs, outputs = fixture(name)
    (images,) = inputs.values()
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD])
    with torch.no_grad():
        logits = model({"image": (images * std + mean).movedim(-1, 1)})["label"]
    assert_parity(logits, next(iter(outputs.values())))


def test_language(fixture):
    model, inputs, outputs = fixture("language")
    text = perceivers.InputArray(inputs["inputs"], inputs["input_mask"].bool())
    assert not inputs["input_mask"].all(), "the instance has texts of different lengths"
    with torch.no_grad():
        assert_parity(model({"text": text})["text"], outputs["logits"])


def test_optical_flow(fixture):
    model, inputs, outputs = fixture("optical_flow")
    frames = (inputs["images"].movedim(-1, 2) + 1) / 2
    with torch.no_grad():
        assert_parity(model({"frames": frames})["flow"], outputs["flow"].movedim(-1, 1))


def test_autoencoding(fixture):
    model, inputs, outputs = fixture("multimodal")
    data = {"video": inputs["images"].movedim(-1, 2), "audio": inputs["audio"][..., 0], "label": torch.tensor([3])}
    points = {"video": inputs["image_points"], "audio": inputs["audio_points"], "label": None}
    with torch.no_grad():
        answers = model(data, points, hidden={"label": torch.tensor([[True]])})
    assert_parity(answers["video"], outputs["image"])
    assert_parity(answers["audio"].flatten(1), outputs["audio"])
    assert_parity(answers["label"], outputs["label"])


@pytest.mark.parametrize("name", GIVEN)
def test_what_the_file_does_not_tell_is_asked_for(shared_fixtures, name):
    file = shared_fixtures / "deepmind" / name / "checkpoint.pystate"
    missing = ", ".join(sorted(GIVEN[name]))
    with pytest.raises(
        PerceiversError, match=f"checkpoint.pystate does not have the published size, .* determine {missing}: "
    ):
        perceivers.load(file)
