"""The programs in examples/, run shortly."""

import math

import numpy as np
import pytest
import torch

from examples import events, field, resampler, shape_field, stream


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


def test_points_of_a_shape_lie_on_the_surface_of_a_union():
    torch.manual_seed(0)
    shapes = shape_field.Shapes(20)
    surface_BP3 = shapes.surface()
    assert surface_BP3.shape == (20, shape_field.POINTS, 3)
    distance_BPE = shapes.distance(surface_BP3)
    torch.testing.assert_close(distance_BPE.amin(-1), torch.ones(20, shape_field.POINTS), atol=2e-4, rtol=0)
    assert (distance_BPE.argmin(-1).float().mean(1) > 0).sum() > 15  # points of both ellipsoids, mostly
    outward_BP3 = surface_BP3 + 1e-3 * torch.randn_like(surface_BP3)
    assert 0.3 < shapes.contain(outward_BP3).float().mean() < 0.7
    assert shapes.contain(shapes.center_BE3).all()


def test_a_shape_field_is_measured_beside_convex_hulls():
    ours, hull = shape_field.main(steps=30)
    assert 0.1 < ours < 0.6  # hardly trained
    assert 0.75 < hull < 0.9


@torch.no_grad()
def test_occupancy_depends_on_the_points_of_its_own_shape_and_not_on_their_order():
    torch.manual_seed(0)
    model, surface_BP3, place_BP3 = shape_field.build().eval(), shape_field.Shapes(2).surface(), torch.rand(2, 9, 3)
    logits_BP = shape_field.occupancy(model, surface_BP3, place_BP3)
    order_P = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(shape_field.POINTS - 1)])
    torch.testing.assert_close(shape_field.occupancy(model, surface_BP3[:, order_P], place_BP3), logits_BP)
    torch.testing.assert_close(shape_field.occupancy(model, surface_BP3[:1], place_BP3[:1]), logits_BP[:1])
    assert (shape_field.occupancy(model, surface_BP3.flip(0), place_BP3) - logits_BP).abs().min() > 1e-5


def test_the_states_of_a_stream_are_those_of_a_plain_loop():
    torch.manual_seed(0)
    states = [[0] * stream.DEVICES for _ in range(3)]
    changes = 0
    for message_BT, state_BK in stream.read_stream(3, 50):
        assert message_BT.shape == (3, stream.CHUNK)
        for row, messages in enumerate(message_BT.tolist()):
            for message in messages:
                device, state = divmod(message, stream.STATES)
                if device < stream.DEVICES:
                    states[row][device] = state
                    changes += 1
        assert state_BK.tolist() == states
    assert changes == pytest.approx(3 * 50 * stream.CHANGES, rel=0.2)


@torch.no_grad()
def test_latents_of_a_stream_carry_what_was_read_and_stay_bounded():
    torch.manual_seed(0)
    model, norms = stream.build().eval(), []
    first_BT, chunks = torch.randint(64, (2, stream.CHUNK)), torch.randint(64, (100, 1, stream.CHUNK))
    memory_BND = stream.read_chunk(model, first_BT, None).latents
    for chunk_1T in chunks:
        memory_BND = stream.read_chunk(model, chunk_1T.expand(2, -1), memory_BND).latents
        norms.append(memory_BND.norm(dim=-1).mean().item())
    assert memory_BND.shape == (2, 8, 64)
    assert (memory_BND[0] - memory_BND[1]).abs().max() > 1e-3  # 100 equal chunks later
    assert norms[-1] < 1.5 * norms[9]


def test_a_stream_is_measured_with_and_without_memory():
    figures = stream.main(steps=3, chunks=20)
    assert list(figures) == ["memory", "no memory"]
    for early, late, early_ms, late_ms in figures.values():
        assert 0.1 < early < 0.6
        assert 0.1 < late < 0.6
        assert 0 < early_ms < 1000
        assert 0 < late_ms < 1000


def test_spikes_follow_the_movement():
    """Their number is that of the rates, and a unit's mean velocity at its spikes points its own way."""
    random = np.random.default_rng(0)
    sessions = [events.simulate(str(index), random) for index in range(8)]
    count = sum(len(session.time_T) for session in sessions) / sum(len(session.units) for session in sessions)
    assert count == pytest.approx(events.LENGTH * (np.e**2 - 1) / 2, rel=0.15)
    session = sessions[0]
    assert (np.diff(session.time_T) >= 0).all()
    assert events.LENGTH - 1 < session.time_T.max() < events.LENGTH
    for unit in range(len(session.units)):
        time_1T = torch.from_numpy(session.time_T[session.unit_T == unit])[None]
        velocity_TV = events.true_velocity([(session, 0.0)], time_1T)[0]
        assert velocity_TV.mean(0).norm() > 0.15  # the gain, for normal velocities: from 0.3 to 1.2


def test_true_velocities_are_between_samples():
    """Samples are at the middle of each step of 0.01 seconds."""
    session = events.simulate("monday", np.random.default_rng(0))
    found_BPV = events.true_velocity([(session, 3.0), (session, 7.0)], torch.tensor([[0.005, 0.01], [0.0, 0.105]]))
    v_SV = torch.from_numpy(session.velocity_SV).float()
    between = [(v_SV[300] + v_SV[301]) / 2, (v_SV[699] + v_SV[700]) / 2]
    expected_BPV = torch.stack([v_SV[300], between[0], between[1], v_SV[710]]).view(2, 2, 2)
    torch.testing.assert_close(found_BPV, expected_BPV, atol=1e-5, rtol=0)


@torch.no_grad()
def test_velocities_are_decoded_from_the_spikes_of_their_own_window():
    random = np.random.default_rng(0)
    sessions = [events.simulate(name, random) for name in ("monday", "tuesday")]
    model, time_BP = events.build(sessions).eval(), torch.rand(3, 6)
    windows = [(sessions[0], 1.0), (sessions[1], 1.0), (sessions[0], 3.5)]
    found_BPV = events.decode(model, windows, time_BP)
    assert found_BPV.shape == events.true_velocity(windows, time_BP).shape == (3, 6, 2)
    for index, window in enumerate(windows):
        alone_1PV = events.decode(model, [window], time_BP[[index]])
        torch.testing.assert_close(alone_1PV[0], found_BPV[index], atol=1e-6, rtol=1e-4)
    assert (events.decode(model, windows[2:], time_BP[:1]) - found_BPV[0]).abs().max() > 1e-4
    later = sessions[0]._replace(time_T=sessions[0].time_T + 50)
    torch.testing.assert_close(
        events.decode(model, [(later, 51.0)], time_BP[:1])[0], found_BPV[0], atol=1e-5, rtol=1e-4
    )


def test_ridge_regression_recovers_a_linear_signal_and_shrinks():
    random = np.random.default_rng(0)
    x_SF, weight_FV = random.normal(size=(500, 3)) * [1, 2, 3] + 5, random.normal(size=(3, 2))
    y_SV = x_SF @ weight_FV + [1, -2]
    weight_LFV, bias_L1V = events.fit_ridge(x_SF, y_SV, np.array([0, 0.1]))
    np.testing.assert_allclose(weight_LFV[0], weight_FV)
    np.testing.assert_allclose(bias_L1V[0, 0], [1, -2])
    covariance = np.cov(x_SF.T, bias=True)
    moment = (x_SF - x_SF.mean(0)).T @ (y_SV - y_SV.mean(0)) / 500
    expected = np.linalg.solve(covariance + 0.1 * np.trace(covariance) / 3 * np.eye(3), moment)
    np.testing.assert_allclose(weight_LFV[1], expected)
    np.testing.assert_allclose((x_SF @ weight_LFV + bias_L1V)[1].mean(0), y_SV.mean(0))


def test_ridge_regression_is_measured_on_the_held_out_end():
    random = np.random.default_rng(0)
    monday, tuesday = (events.simulate(name, random) for name in ("monday", "tuesday"))
    assert 0.7 < events.measure_ridge(monday, power=0.5) < 0.95
    end = round(events.TRAINING / events.STEP)
    mixed_SV = np.concatenate([monday.velocity_SV[:end], tuesday.velocity_SV[end:]])
    assert events.measure_ridge(monday._replace(velocity_SV=mixed_SV), power=0.5) < 0.1


def test_new_sessions_change_only_their_own_vectors():
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    known, new = ([events.simulate(name, random)] for name in ("monday", "tuesday"))
    model = events.build(known)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    events.extend(model, new)
    events.train(model, new, 3, 1e-2, 0.0, random)
    extended = {"inputs.spikes.names.weight": len(known[0].units), "outputs.velocity.names.weight": 1}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value[: extended.get(name, len(value))], weights[name], atol=0, rtol=0)
    assert len(model.inputs["spikes"].names.weight) == len(known[0].units + new[0].units)
    assert sum(value.requires_grad for value in model.parameters()) == 2


def test_events_are_measured_over_known_and_new_sessions():
    figures = events.main(steps=4, known=2, new=1)
    model, ridge = ("known", "new, untrained", "new"), ("ridge", "ridge of square roots")
    assert set(figures) == {*model, *(f"{sessions}, {name}" for sessions in ("known", "new") for name in ridge)}
    assert all(map(math.isfinite, figures.values()))
    assert max(figures[name] for name in model) < 0.3  # hardly trained
    assert min(figures[name] for name in set(figures) - set(model)) > 0.5
