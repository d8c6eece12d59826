"""The programs in examples/, run shortly."""

import torch

from examples import resampler


def test_a_language_model_spells_what_the_resampler_shows_it():
    """One name in ten is right by chance; trained in full, the program reaches 97%."""
    assert resampler.main(steps=60) > 0.6


@torch.no_grad()
def test_letters_depend_on_the_image_and_on_earlier_letters():
    model, x_BRP, letter_BL = (
        resampler.SpellingModel().eval(),
        torch.randn(2, 8, 8),
        torch.zeros(2, 3, dtype=torch.long),
    )
    logits_BLK = model(x_BRP, letter_BL)
    assert logits_BLK.shape == (2, 3, len(resampler.LETTERS))
    assert (logits_BLK[0] - logits_BLK[1]).abs().amax(-1).min() > 1e-3
    letter_BL[:, 1] = 5
    changed_BLK = model(x_BRP, letter_BL)
    torch.testing.assert_close(changed_BLK[:, 0], logits_BLK[:, 0])
    assert (changed_BLK - logits_BLK).abs().amax(-1)[:, 1:].min() > 1e-3
