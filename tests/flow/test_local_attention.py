"""Fresh flow models whose attention begins at what stands nearby."""

import torch

from perceivers.flow.local_attention import choose_layout
from perceivers.flow.model import OpticalFlowConfig
from perceivers.model.intermediates import record_attention

FLOW = {
    "downsampling": "conv", "image_size": (48, 64), "feature_channels": 8, "bands": 8, "latents": 48, "channels": 64,
    "depth": 1, "heads": 4, "qk_channels": 64, "v_channels": 64, "cross_heads": 4,
}  # fmt: skip


def test_places_are_laid_out_in_the_proportions_of_the_grid():
    assert choose_layout(48, (12, 16)) == (6, 8)
    assert choose_layout(144, (24, 24)) == (12, 12)
    assert choose_layout(7, (3, 9)) == (1, 7)
    assert choose_layout(8, (1, 1)) == (2, 4)


def test_latents_of_flow_read_around_their_place_and_pixels_the_nearest_latent():
    element = torch.cartesian_prod((torch.arange(12) + 0.5) / 12 * 48, (torch.arange(16) + 0.5) / 16 * 64)
    latent = torch.cartesian_prod((torch.arange(6) + 0.5) / 6 * 48, (torch.arange(8) + 0.5) / 8 * 64)
    inner = (latent > 8).all(1) & (latent < torch.tensor([40, 56])).all(1)
    near = {}
    for initialization in ("normal", "local"):
        torch.manual_seed(0)
        model = OpticalFlowConfig(**FLOW, initialization=initialization).build()
        with record_attention(model) as maps:
            model({"frames": torch.rand(1, 2, 3, 48, 64)})
        read_HN2 = element[maps["encoder.cross_attentions.0.attention"][0][0].argmax(2)]
        offset_H2 = (read_HN2 - latent)[:, inner].median(1).values
        away_O = (latent[maps["decoder.attention"][0][0, 0].argmax(1)] - element).abs().amax(1)
        near[initialization] = float((away_O <= 4).float().mean())  # a latent stands for 8 x 8 pixels
    expected = 3.0 * torch.tensor([[-1.0, -1], [-1, 1], [1, -1], [1, 1]])
    torch.testing.assert_close(offset_H2, expected, atol=1.1, rtol=0)
    assert near["local"] > 0.5 > 5 * near["normal"]
