"""Every published architecture at full size, with random weights; export itself compares the file with the model."""

import pytest
import torch

import perceivers
from perceivers.export.export import export_model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("language_bytes", "model"),
        ("imagenet_fourier", "model"),
        ("imagenet_learned", "model"),
        ("imagenet_conv", "model"),
        ("optical_flow", "model"),
        ("autoencoder_88x", "encode"),
        ("autoencoder_88x", "decode"),
    ],
)
def test_a_published_model_is_exported(name, part, tmp_path):
    torch.manual_seed(0)
    model = perceivers.create_model(name).eval()
    differences = export_model(model, tmp_path / "file.onnx", "onnx", part).differences
    print(f"{name} {part}: {differences}")
    assert max(differences.values()) < 1e-3  # latents are up to 100 times as large as probabilities
