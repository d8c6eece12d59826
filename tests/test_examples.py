"""The programs in examples/, run shortly."""

import torch

from examples import field, resampler


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


def test_fields_obey_burgers_equation():
    """Differences of second order converge to u_t + u u_x = 0.01 u_xx."""
    residual = []
    for size in (257, 513):
        u_BTX = field.solve_burgers(4, size, seed=3).double()
        dt, dx = 1 / (size - 1), 2 / (size - 1)
        u = u_BTX[:, 1:-1, 1:-1]
        u_t = (u_BTX[:, 2:, 1:-1] - u_BTX[:, :-2, 1:-1]) / (2 * dt)
        u_x = (u_BTX[:, 1:-1, 2:] - u_BTX[:, 1:-1, :-2]) / (2 * dx)
        u_xx = (u_BTX[:, 1:-1, 2:] - 2 * u + u_BTX[:, 1:-1, :-2]) / dx**2
        residual.append((u_t + u * u_x - 0.01 * u_xx).norm() / u_t.norm())
        torch.testing.assert_close(u_BTX[..., 0], u_BTX[..., -1], atol=1e-6, rtol=0)  # periodic
    assert residual[1] < 0.03
    assert residual[1] < 0.4 * residual[0]


def test_fields_are_rebuilt_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(field, "CHUNK", 8)
    errors = field.main(tmp_path, steps=20, count=64)
    assert list(errors) == ["Perceiver IO", "thin-plate spline", "Gaussian process", "best linear"]
    assert 0.4 < errors["Perceiver IO"][0] < 1  # hardly trained; zeros have an error of 1
    assert max(errors["thin-plate spline"] + errors["Gaussian process"]) < 0.3
    assert (tmp_path / "field.png").stat().st_size > 10_000
