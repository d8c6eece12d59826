"""Events at real times: the velocity of a hand from the spikes of neurons, over recordings of different neurons.

    python examples/events.py

The model follows POYO (Azabou et al., 2023): a spike is the vector of its unit at a real time, latents lie on a grid of
times, and velocities are decoded at any times. New sessions get new vectors, and nothing else is trained. Spikes are
simulated; ridge regressions of each session's spike counts are compared. Needs scipy.

Mean R squared on the held-out fifths (seed 0, 1,500 steps and 250 for new sessions, 151 seconds of CPU, one thread):

                              24 known sessions   6 new sessions
    model                           0.859         0.886, untrained -0.036
    ridge of counts                 0.810         0.795
    ridge of square roots           0.867         0.892

One model of all sessions does better than regressions of counts, and slightly worse than those of their square roots.

Shape suffixes: B windows, T spikes, P times, S samples, V components of a velocity, U units, F features, L penalties
"""

import argparse
from itertools import product
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from perceivers import (
    Encoded,
    InputAdapter,
    InputArray,
    NamedEmbedding,
    OutputAdapter,
    PerceiverIO,
    Ragged,
    RotaryPositions,
    spaced_periods,
)

LENGTH, TRAINING = 100.0, 80.0  # seconds of a session, and of its beginning, which is trained on; the rest is held out
STEP, WINDOW = 0.01, 1.0  # seconds between samples of the velocity, and of a window
TIMES, LATENTS, CHANNELS = 8, 4, 64  # times in a window at which there are latents, and latents at each


class Session(NamedTuple):
    """A recording: the unit and the time of each spike, in order, and the velocity at the middle of each STEP."""

    name: str
    units: list[str]
    unit_T: np.ndarray
    time_T: np.ndarray
    velocity_SV: np.ndarray


Windows = list[tuple[Session, float]]  # each with its start in seconds


def simulate(name: str, random: np.random.Generator) -> Session:
    """Simulates a smooth movement and 20 to 50 units, each with a direction of movement in which it fires more."""
    count = random.integers(20, 51)
    velocity_SV = gaussian_filter1d(random.normal(size=(round(LENGTH / STEP), 2)), 0.2 / STEP, axis=0)
    velocity_SV /= velocity_SV.std(0)
    angle_U, gain_U = random.uniform(0, 2 * np.pi, count), random.uniform(0.3, 1.2, count)
    rate_U = np.exp(random.uniform(0, 2, count))  # mean spikes per second
    drive_SU = gain_U * (velocity_SV @ np.stack([np.cos(angle_U), np.sin(angle_U)])) - gain_U**2 / 2
    spikes_SU = random.poisson(STEP * rate_U * np.exp(drive_SU))
    sample_T, unit_T = (np.repeat(index, spikes_SU[spikes_SU > 0]) for index in spikes_SU.nonzero())
    time_T = (sample_T + random.uniform(size=len(sample_T))) * STEP
    order_T = time_T.argsort()
    return Session(name, [f"{name}/{unit}" for unit in range(count)], unit_T[order_T], time_T[order_T], velocity_SV)


class Spikes(InputAdapter):
    """A spike is the vector of its unit; its coordinate is its time."""

    def __init__(self, units: list[str]) -> None:
        super().__init__()
        self.channels = CHANNELS
        self.names = NamedEmbedding(units, CHANNELS)

    def forward(self, data: InputArray) -> InputArray:
        return data._replace(x_BMC=self.names(data.x_BMC))


class Velocity(OutputAdapter):
    """The velocity at any time; a query is the vector of the session, whose index is the context."""

    coordinate_dims = 1

    def __init__(self, sessions: list[str]) -> None:
        super().__init__()
        self.query_channels, self.channels = CHANNELS, 2
        self.names = NamedEmbedding(sessions, CHANNELS)

    def queries(self, encoded: Encoded, indices: Any = None) -> Tensor:
        return self.names(encoded.context)[:, None].expand(-1, indices.shape[1], -1)


def build(sessions: list[Session]) -> PerceiverIO:
    """Returns a model of some sessions, with the parts of POYO, small."""
    sizes = {"latents": LATENTS, "channels": CHANNELS, "depth": 2, "heads": 4, "widening_factor": 2, "gated": True}
    return PerceiverIO(
        {"spikes": Spikes([unit for session in sessions for unit in session.units])},
        {"velocity": Velocity([session.name for session in sessions])},
        **sizes,
        cross_heads=2,
        cross_qk_channels=CHANNELS,
        cross_widening_factor=2,
        decoder_heads=4,
        decoder_widening_factor=2,
        rotary=RotaryPositions(spaced_periods(8, 2 * STEP, 4 * WINDOW), rotate_values=["encoder", "processor"]),
    )


def extend(model: PerceiverIO, sessions: list[Session]) -> None:
    """Adds vectors of new sessions and their units, and freezes all else."""
    model.requires_grad_(False)
    units, names = model.inputs["spikes"].names, model.outputs["velocity"].names
    units.extend(unit for session in sessions for unit in session.units)
    names.extend(session.name for session in sessions)
    units.requires_grad_(True)
    names.requires_grad_(True)


def decode(model: PerceiverIO, windows: Windows, time_BP: Tensor, drop: float = 0.0) -> Tensor:
    """Returns the velocity at times since the start of each window; -> [B, P, V].

    Of each window, a random part of the units is left out, up to the fraction `drop`.
    """
    units, times = [], []
    for session, start in windows:
        first, last = session.time_T.searchsorted([start, start + WINDOW])
        unit_T = torch.from_numpy(session.unit_T[first:last])
        kept_T = (torch.rand(len(session.units)) >= drop * torch.rand(()))[unit_T]
        units.append(model.inputs["spikes"].names.indices(session.units)[unit_T[kept_T]])
        times.append(torch.from_numpy(session.time_T[first:last] - start).float()[kept_T])
    unit_T, offsets = Ragged.stack(units)
    latent_times = ((torch.arange(TIMES) + 0.5) * WINDOW / TIMES).repeat_interleave(LATENTS)
    encoded = model.encode(
        {"spikes": InputArray(unit_T[None], coordinates_BMG=torch.cat(times)[None, :, None], offsets=offsets)},
        latents=model.encoder.latents.repeat(TIMES, 1),
        latent_coordinates=latent_times[:, None],
    )
    encoded.context["velocity"] = model.outputs["velocity"].names.indices(session.name for session, _ in windows)
    return model.decode(encoded, {"velocity": time_BP[..., None]})["velocity"]


def true_velocity(windows: Windows, time_BP: Tensor) -> Tensor:
    """Returns what `decode` should return."""
    sample_S = (np.arange(round(LENGTH / STEP)) + 0.5) * STEP
    velocity_BVP = [
        [np.interp(start + time_P, sample_S, v_S) for v_S in session.velocity_SV.T]
        for (session, start), time_P in zip(windows, time_BP.double().numpy(), strict=True)
    ]
    return torch.tensor(np.array(velocity_BVP), dtype=torch.float32).mT


def train(
    model: PerceiverIO, sessions: list[Session], steps: int, rate: float, decay: float, random: np.random.Generator
) -> None:
    """Trains what is not frozen on windows of the training parts."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        chosen = [sessions[index] for index in random.integers(len(sessions), size=32)]
        windows = [(session, random.uniform(0, TRAINING - WINDOW)) for session in chosen]
        time_BP = WINDOW * torch.rand(len(windows), 32)
        loss = (decode(model, windows, time_BP, drop=0.3) - true_velocity(windows, time_BP)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)


def explained(found_SV: np.ndarray, true_SV: np.ndarray) -> float:
    """Returns R squared."""
    return 1 - float(np.square(true_SV - found_SV).sum() / np.square(true_SV - true_SV.mean(0)).sum())


@torch.no_grad()
def measure(model: PerceiverIO, session: Session) -> float:
    """Returns R squared on the held-out end, of the middle halves of overlapping windows."""
    windows = [(session, start) for start in np.arange(TRAINING, LENGTH - WINDOW + STEP, WINDOW / 2)]
    time_BP = torch.arange(WINDOW / 4, 3 * WINDOW / 4, STEP).expand(len(windows), -1) + STEP / 2
    found_BPV = decode(model.eval(), windows, time_BP)
    return explained(*(x_BPV.flatten(0, 1).numpy() for x_BPV in (found_BPV, true_velocity(windows, time_BP))))


def fit_ridge(x_SF: np.ndarray, y_SV: np.ndarray, penalty_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights [L, F, V] and biases [L, 1, V] of ridge regressions; penalties are relative to variance."""
    x_mean_F, y_mean_V = x_SF.mean(0), y_SV.mean(0)
    variance_F, basis_FF = np.linalg.eigh(np.cov(x_SF.T, bias=True))
    moment_FV = basis_FF.T @ (x_SF - x_mean_F).T @ (y_SV - y_mean_V) / len(x_SF)
    scale_LF = 1 / (variance_F + penalty_L[:, None] * variance_F.mean())
    weight_LFV = basis_FF @ (scale_LF[..., None] * moment_FV)
    return weight_LFV, y_mean_V - x_mean_F @ weight_LFV[:, None]


def measure_ridge(session: Session, power: float) -> float:
    """Returns R squared of a ridge regression on powers of smoothed spike counts, at the times of `measure`.

    Smoothing, lags and penalty are those that are best in a cross-validation on the training part.
    """
    size, ends = (len(session.velocity_SV), len(session.units)), ((0, LENGTH), (0, len(session.units)))
    count_SU = np.histogram2d(session.time_T, session.unit_T, size, ends)[0]
    training, margin = round(TRAINING / STEP), round(WINDOW / 4 / STEP)
    rows, held_out = np.arange(0, training, 4), slice(training + margin, -margin)
    parts, penalty_L, y_SV = np.array_split(rows, 5), 10.0 ** np.arange(-4, 2), session.velocity_SV
    best = (-np.inf, 0.0)
    for width, lag in product((0.05, 0.08, 0.12, 0.18), (0.0, 0.05, 0.1, 0.2)):
        x_SU = gaussian_filter1d(count_SU, width / STEP, axis=0) ** power
        shifts = sorted({-round(lag / STEP), 0, round(lag / STEP)})
        x_SF = np.concatenate([np.roll(x_SU, shift, 0) for shift in shifts], 1)
        score_L = np.zeros(len(penalty_L))
        for part in parts:
            others = np.setdiff1d(rows, part)
            weight_LFV, bias_L1V = fit_ridge(x_SF[others], y_SV[others], penalty_L)
            score_L += [explained(found_SV, y_SV[part]) for found_SV in x_SF[part] @ weight_LFV + bias_L1V]
        weight_LFV, bias_L1V = fit_ridge(x_SF[rows], y_SV[rows], penalty_L[[score_L.argmax()]])
        best = max(best, (score_L.max(), explained((x_SF[held_out] @ weight_LFV + bias_L1V)[0], y_SV[held_out])))
    return best[1]


def main(steps: int = 1500, known: int = 24, new: int = 6) -> dict[str, float]:
    """Trains on known sessions, then vectors of new ones; returns mean R squared on the held-out ends."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    known_sessions = [simulate(f"known {index}", random) for index in range(known)]
    new_sessions = [simulate(f"new {index}", random) for index in range(new)]
    model = build(known_sessions)
    train(model, known_sessions, steps, 2e-3, 0.3, random)
    figures = {"known": fmean(measure(model, session) for session in known_sessions)}
    extend(model, new_sessions)
    figures["new, untrained"] = fmean(measure(model, session) for session in new_sessions)
    train(model, new_sessions, max(2, steps // 6), 1e-2, 0.0, random)
    figures["new"] = fmean(measure(model, session) for session in new_sessions)
    for name, power in {"ridge": 1.0, "ridge of square roots": 0.5}.items():
        figures[f"known, {name}"] = fmean(measure_ridge(session, power) for session in known_sessions)
        figures[f"new, {name}"] = fmean(measure_ridge(session, power) for session in new_sessions)
    for name, figure in figures.items():
        print(f"R squared, {name}: {figure:.3f}")
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="steps of training")
    main(parser.parse_args().steps)
