import pytest
import torch

from perceivers import FourierPositions, PerceiverIO
from perceivers.adapters import ArrayInput, ArrayOutput, LabelOutput
from perceivers.cli import main
from perceivers.model.costs import Cost, measure_parts, summarize
from perceivers.model.meta import check_memory
from perceivers.presets import create_model, find_preset, measure_cost


def small(**label):
    outputs = {"label": LabelOutput(10, **label), "map": ArrayOutput(3, FourierPositions((8, 8), bands=4))}
    return PerceiverIO({"points": ArrayInput(6)}, outputs, latents=4, channels=32, depth=2, num_blocks=3, heads=2)


NAMES = [
    "audioset_mel",
    "audioset_raw_perceiver",
    "autoencoder_352x",
    "imagenet_conv",
    "language_bytes",
    "optical_flow",
]


@pytest.mark.parametrize("name", NAMES)
def test_parts_add_up_to_the_whole(name):
    preset = find_preset(name)
    parts = measure_parts(check_memory(preset.config.build, name), preset.inputs, preset.outputs)
    whole = measure_cost(lambda: create_model(name), preset.inputs, preset.outputs)
    assert Cost(*map(sum, zip(*parts.values(), strict=True))) == whole


def test_the_parts_of_a_small_model():
    model = small()
    parts = measure_parts(model, {"points": torch.randn(2, 9, 6)})
    assert list(parts) == ["input points", "cross-attention", "self-attention", "decoder", "output label", "output map"]
    layer = 2 * 4 * 32 * (4 * 32 + 2 * 32) + 2 * 2 * 4 * 4 * 32  # four projections and an MLP; scores and values
    assert parts["self-attention"].flops == 2 * 3 * 2 * layer  # examples, blocks, layers
    assert parts["self-attention"].parameters == sum(array.numel() for array in model.encoder.layers.parameters())
    assert model.encoder.latents.device.type == "cpu"
    assert parts["output map"].flops > 30 * parts["output label"].flops  # 64 queries, and 1
    assert measure_parts(model, {"points": torch.randn(2, 9, 6)}, {"label": None}).keys() == parts.keys() - {
        "output map"
    }


def test_the_label_makes_other_queries_no_wider():
    wide, usual = small(query_channels=1024), small()
    assert usual.outputs["label"].query_channels == usual.outputs["map"].query_channels == 18
    data = {"points": torch.randn(1, 9, 6)}
    ratio = measure_parts(wide, data)["output map"].flops / measure_parts(usual, data)["output map"].flops
    assert ratio > 100
    alone = PerceiverIO({"points": ArrayInput(6)}, {"y": LabelOutput(2)}, latents=4, channels=32, depth=1)
    assert alone.outputs["y"].query.shape == (1, 1, 32)


def test_a_label_of_any_width_is_saved_and_loaded(tmp_path):
    import perceivers

    model, data = small().eval(), {"points": torch.randn(2, 9, 6)}
    model.save(tmp_path)
    assert perceivers.load(tmp_path)(data)["label"].equal(model(data)["label"])


def test_a_table_and_the_command_show_the_parts(capsys):
    lines = summarize(small(), {"points": torch.randn(1, 9, 6)}).splitlines()
    assert lines[0].split() == ["part", "parameters", "share", "FLOPs", "share"]
    assert lines[-1].split()[0::2] == ["all", "100.0%", "100.0%"]
    main(["models", "imagenet_fourier"])
    assert "self-attention 37,810,176 78.1% 360,777,252,864 88.8%" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        main(["models", "bert_base"])
    assert "only a PerceiverIO is measured by parts" in capsys.readouterr().err
