import json
from functools import partial

import pytest
import torch

import perceivers
from perceivers import PerceiversError
from perceivers.cli import main
from perceivers.presets import PRESETS, measure

# Where our figures differ from the paper's by more than 0.5% (parameters) or 2% (FLOPs), and by how much.
# docs/image_classification.md gives the reason for each.
KNOWN_PARAMETERS = {"imagenet_fourier_b": 1.0051, "imagenet_conv_perceiver": 1.0057}
KNOWN_FLOPS = {
    "imagenet_learned": 1.1745,
    "imagenet_learned_perceiver": 1.1779,
    "imagenet_fourier_b": 1.571,
    "imagenet_conv_b": 1.318,
}


@pytest.mark.parametrize("name", perceivers.list_models())
def test_sizes_are_the_papers(name):
    preset = PRESETS[name]
    size = measure(lambda: perceivers.create_model(name), preset.inputs)
    assert size.parameters / preset.paper_parameters == pytest.approx(
        KNOWN_PARAMETERS.get(name, 1), rel=0.0001 if name in KNOWN_PARAMETERS else 0.005
    )
    assert size.flops / preset.paper_flops == pytest.approx(
        KNOWN_FLOPS.get(name, 1), rel=0.001 if name in KNOWN_FLOPS else 0.02
    )


def test_why_the_figures_of_configuration_b_differ():
    """The paper's FLOPs are those of 12 layers on 261 input channels, its parameters those of 16 layers."""
    for name, flops in (("imagenet_fourier_b", 213e9), ("imagenet_conv_b", 176e9)):
        channels = {} if "conv" in name else {"feature_channels": None}
        size = measure(partial(perceivers.create_model, name, depth=12, **channels), PRESETS[name].inputs)
        assert size.flops == pytest.approx(flops, rel=0.005)
    plain = measure(lambda: perceivers.create_model("imagenet_fourier_b", feature_channels=None), PRESETS[name].inputs)
    assert plain.parameters == pytest.approx(212e6, rel=0.001)


def test_flops_by_hand():
    """One cross-attention and one layer, counted from the formula: a multiply and an add are two."""
    settings = {
        "image_size": 4,
        "bands": 1,
        "latents": 3,
        "channels": 8,
        "depth": 1,
        "blocks": 1,
        "heads": 1,
        "query_channels": 8,
        "classes": 5,
    }
    size = measure(lambda: perceivers.create_model("imagenet_fourier", **settings), {"image": (3, 4, 4)})
    m, c, n, d = 16, 3 + 2 * 3, 3, 8
    encode = n * d * c + 2 * m * c * c + 2 * n * m * c + n * c * d + 2 * n * d * d
    process = 4 * n * d * d + 2 * n * n * d + 2 * n * d * d
    decode = d * d + 2 * n * d * d + 2 * n * d + d * d + 2 * d * d + d * 5
    assert size.flops == 2 * (encode + process + decode)


def test_the_released_decoder_has_a_query_residual_except_with_learned_positions():
    with torch.device("meta"):
        models = {name: perceivers.create_model(name) for name in perceivers.list_models()}
    residuals = {name: model.decoder.query_residual for name, model in models.items() if "perceiver" not in name}
    assert residuals == {name: "learned" not in name for name in residuals}
    assert not any(hasattr(model, "decoder") for name, model in models.items() if "perceiver" in name)


def test_unknown_names_and_settings():
    with pytest.raises(PerceiversError, match="no model 'imagenet_furier': did you mean 'imagenet_fourier'"):
        perceivers.create_model("imagenet_furier")
    with pytest.raises(PerceiversError, match="image_classifier has no argument 'latent': did you mean 'latents'"):
        perceivers.create_model("imagenet_fourier", latent=3)
    for wrong in ({"preprocessing": "vgg"}, {"positions": "none"}, {"decoder": "max"}):
        with pytest.raises(PerceiversError, match=f"{next(iter(wrong))} = .* is not allowed"):
            perceivers.create_model("imagenet_fourier", **wrong)


@pytest.mark.parametrize("name", perceivers.list_models())
def test_every_preset_runs_when_small(name):
    small = {"image_size": 16, "latents": 4, "channels": 16, "depth": 1, "query_channels": 16, "bands": 4}
    model = perceivers.create_model(name, **small).eval()
    assert model({"image": torch.rand(2, 3, 16, 16)})["label"].shape == (2, 1000)


def test_the_command_lists_models(capsys):
    main(["models", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == perceivers.list_models()
    assert rows[0]["parameters"] == 48440627
    assert rows[0]["paper_flops"] == 407_000_000_000
    main(["models"])
    assert "48.4M   48.4M   406B   407B" in capsys.readouterr().out
