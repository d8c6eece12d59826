"""Fresh language models whose attention begins at what stands nearby."""

import math
from dataclasses import replace

import pytest
import torch

from perceivers.errors import PerceiversError
from perceivers.model.attention import Attention
from perceivers.model.intermediates import record_attention
from perceivers.text.local_attention import attend_nearby, frequencies, init_local_attention, rotate_phase, sinusoids
from perceivers.text.model import BertConfig, LanguageConfig

LENGTH, CHANNELS = 64, 32
SMALL = {
    "length": LENGTH, "embedding_channels": CHANNELS, "latents": 16, "channels": 48,
    "depth": 2, "heads": 4, "qk_channels": 32, "v_channels": 48, "cross_heads": 4, "decoder_heads": 4,
    "decoder_qk_channels": 32, "decoder_v_channels": 32,
}  # fmt: skip
WIDE = LanguageConfig(**SMALL | {
    "embedding_channels": 128, "channels": 192, "qk_channels": 96, "v_channels": 192, "decoder_qk_channels": 128,
    "decoder_v_channels": 128,
})  # fmt: skip
BERT = BertConfig(vocabulary=262, length=LENGTH, channels=CHANNELS, depth=2, heads=4)


def test_waves_go_from_half_of_one_to_one_every_two_places():
    place = torch.arange(LENGTH)
    wave_SC = sinusoids(place, LENGTH, CHANNELS)
    torch.testing.assert_close(wave_SC[:, 0], 2**0.5 * torch.sin(math.pi * place / LENGTH))
    torch.testing.assert_close(wave_SC[:, -1], 2**0.5 * torch.cos(math.pi * place))
    torch.testing.assert_close(wave_SC.square().mean(1), torch.ones(LENGTH))


@pytest.mark.parametrize("distance", [-3.0, 0.5, 2.0])
def test_moved_weights_read_the_waves_of_another_place(distance):
    weight, place = torch.randn(8, CHANNELS), torch.arange(LENGTH)
    there = sinusoids(place + distance, LENGTH, CHANNELS) @ weight.T
    here = sinusoids(place, LENGTH, CHANNELS) @ rotate_phase(weight, distance * frequencies(LENGTH, CHANNELS)).T
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


def test_heads_look_around_a_place():
    attention = Attention(256, 256, heads=4)
    with torch.no_grad():
        attend_nearby(attention, LENGTH, 256, reach=12)
    wave_SC = sinusoids(torch.arange(LENGTH), LENGTH, 256)[None]
    with record_attention(attention) as maps:
        attention(wave_SC, wave_SC)
    weight_HOM = maps[""][0][0]
    read_HO = weight_HOM.argmax(-1)
    for head, distance in enumerate((-4.5, -1.5, 1.5, 4.5)):
        inner = torch.arange(10, LENGTH - 10)
        assert ((read_HO[head, inner] - inner) - distance).abs().mean() < 1.5


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        (WIDE, "encoder.cross_attentions.0"),
        (WIDE, "decoder"),
        (replace(WIDE, local_queries=True), "decoder"),
        (BERT, "layers.0"),
    ],
)
def test_a_model_begins_by_reading_nearby(config, attention):
    torch.manual_seed(0)
    token = torch.randint(6, 262, (2, LENGTH))
    distance = {}
    for initialization in ("normal", "local"):
        model = replace(config, initialization=initialization).build()
        with record_attention(model) as maps:
            model({"text": token})
        weight_OM = maps[f"{attention}.attention"][0].mean((0, 1))
        reads, read = ((torch.arange(count) + 0.5) * LENGTH / count for count in weight_OM.shape)
        away = (read - reads[:, None]).abs()
        distance[initialization] = float((weight_OM * away).sum(1).mean())
    assert distance["local"] < 0.6 * distance["normal"]


def test_sizes_and_names_that_cannot_start_so():
    narrow = SMALL | {"channels": 24, "v_channels": 24, "heads": 4}
    with pytest.raises(PerceiversError, match=r"model\.channels = 24, but model\.embedding_channels = 32"):
        init_local_attention(LanguageConfig(**narrow).build())
    with pytest.raises(PerceiversError, match=r"model\.channels = 24, but model\.embedding_channels = 32"):
        LanguageConfig(**narrow, initialization="local").build()
    with pytest.raises(PerceiversError, match="even number of channels of a token, not 33"):
        init_local_attention(replace(BERT, channels=33, heads=3).build())
    with pytest.raises(
        PerceiversError, match=r"model\.initialization = 'nearby' is not allowed: it must be 'normal' or 'local'"
    ):
        LanguageConfig(**SMALL, initialization="nearby")
