"""Fresh language models whose attention begins at what stands nearby."""

import math

import pytest
import torch
from perceivers.training.local_start import attend_nearby, frequencies, layout, moved, start_locally, waves

from perceivers.errors import PerceiversError
from perceivers.flow.training import build_flow_model
from perceivers.model.attention import Attention, record_attention
from perceivers.text.pretraining import build_language_model
from perceivers.text.tokenizers import Bytes

LENGTH, CHANNELS = 64, 32
SMALL = {
    "preset": "language_bytes", "length": LENGTH, "embedding_channels": CHANNELS, "latents": 16, "channels": 48,
    "depth": 2, "heads": 4, "qk_channels": 32, "v_channels": 48, "cross_heads": 4, "decoder_heads": 4,
    "decoder_qk_channels": 32, "decoder_v_channels": 32,
}  # fmt: skip
WIDE = SMALL | {
    "embedding_channels": 128, "channels": 192, "qk_channels": 96, "v_channels": 192, "decoder_qk_channels": 128,
    "decoder_v_channels": 128,
}  # fmt: skip
BERT = {"preset": "bert_bytes", "length": LENGTH, "channels": CHANNELS, "depth": 2, "heads": 4}


def test_waves_go_from_half_of_one_to_one_every_two_places():
    place = torch.arange(LENGTH)
    wave_SC = waves(place, LENGTH, CHANNELS)
    torch.testing.assert_close(wave_SC[:, 0], 2**0.5 * torch.sin(math.pi * place / LENGTH))
    torch.testing.assert_close(wave_SC[:, -1], 2**0.5 * torch.cos(math.pi * place))
    torch.testing.assert_close(wave_SC.square().mean(1), torch.ones(LENGTH))


@pytest.mark.parametrize("distance", [-3.0, 0.5, 2.0])
def test_moved_weights_read_the_waves_of_another_place(distance):
    weight, place = torch.randn(8, CHANNELS), torch.arange(LENGTH)
    there = waves(place + distance, LENGTH, CHANNELS) @ weight.T
    here = waves(place, LENGTH, CHANNELS) @ moved(weight, distance * frequencies(LENGTH, CHANNELS)).T
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


def test_heads_look_around_a_place():
    attention = Attention(256, 256, heads=4)
    with torch.no_grad():
        attend_nearby(attention, LENGTH, 256, reach=12)
    wave_SC = waves(torch.arange(LENGTH), LENGTH, 256)[None]
    weight_HOM = attention.weights(wave_SC, wave_SC)[0].detach()
    read_HO = weight_HOM.argmax(-1)
    for head, distance in enumerate((-4.5, -1.5, 1.5, 4.5)):
        inner = torch.arange(10, LENGTH - 10)
        assert ((read_HO[head, inner] - inner) - distance).abs().mean() < 1.5


@pytest.mark.parametrize(
    ("config", "attention"), [(WIDE, "encoder.cross_attentions.0"), (WIDE, "decoder"), (BERT, "layers.0")]
)
def test_a_model_begins_by_reading_nearby(config, attention):
    torch.manual_seed(0)
    token = torch.randint(6, 262, (2, LENGTH))
    distance = {}
    for start in ("normal", "local"):
        model = build_language_model(config | {"start": start}, Bytes())
        with record_attention(model) as maps:
            model({"text": token})
        weight_OM = maps[f"{attention}.attention"][0].mean((0, 1))
        reads, read = ((torch.arange(count) + 0.5) * LENGTH / count for count in weight_OM.shape)
        away = (read - reads[:, None]).abs()
        distance[start] = float((weight_OM * away).sum(1).mean())
    assert distance["local"] < 0.6 * distance["normal"]


def test_sizes_and_names_that_cannot_start_so():
    with pytest.raises(PerceiversError, match=r"model\.channels = 24, but model\.embedding_channels = 32"):
        start_locally(build_language_model(SMALL | {"channels": 24, "v_channels": 24, "heads": 4}, Bytes()))
    with pytest.raises(PerceiversError, match="even number of channels of a token, not 33"):
        start_locally(build_language_model(BERT | {"channels": 33, "heads": 3}, Bytes()))
    with pytest.raises(PerceiversError, match=r"model\.start = nearby is not allowed"):
        build_language_model(SMALL | {"start": "nearby"}, Bytes())


FLOW = {
    "preset": "optical_flow_light", "image_size": (48, 64), "feature_channels": 8, "bands": 8, "latents": 48,
    "channels": 64, "depth": 1, "heads": 4, "qk_channels": 64, "v_channels": 64, "cross_heads": 4,
}  # fmt: skip


def test_places_are_laid_out_in_the_proportions_of_the_grid():
    assert layout(48, (12, 16)) == (6, 8)
    assert layout(144, (24, 24)) == (12, 12)
    assert layout(7, (3, 9)) == (1, 7)
    assert layout(8, (1, 1)) == (2, 4)


def test_latents_of_flow_read_around_their_place_and_pixels_the_nearest_latent():
    element = torch.cartesian_prod((torch.arange(12) + 0.5) / 12 * 48, (torch.arange(16) + 0.5) / 16 * 64)
    latent = torch.cartesian_prod((torch.arange(6) + 0.5) / 6 * 48, (torch.arange(8) + 0.5) / 8 * 64)
    inner = (latent > 8).all(1) & (latent < torch.tensor([40, 56])).all(1)
    near = {}
    for start in ("normal", "local"):
        torch.manual_seed(0)
        model = build_flow_model(FLOW | {"start": start})
        with record_attention(model) as maps:
            model({"frames": torch.rand(1, 2, 3, 48, 64)})
        read_HN2 = element[maps["encoder.cross_attentions.0.attention"][0][0].argmax(2)]
        offset_H2 = (read_HN2 - latent)[:, inner].median(1).values
        away_O = (latent[maps["decoder.attention"][0][0, 0].argmax(1)] - element).abs().amax(1)
        near[start] = float((away_O <= 4).float().mean())  # a latent stands for 8 x 8 pixels
    expected = 3.0 * torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    torch.testing.assert_close(offset_H2, expected, atol=1.1, rtol=0)
    assert near["local"] > 0.5 > 5 * near["normal"]
