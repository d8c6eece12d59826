"""Decoding of events: the velocity of a hand from the spikes of neurons, over sessions with different neurons.

    python examples/events.py

The model follows POYO (Azabou et al., 2023): a spike is the vector of its unit at a real time, latents lie on a grid of
times, and velocities are decoded at any times. Spikes are simulated; needs scipy. A ridge regression is compared.

Shape suffixes: B windows, T spikes, S samples of the velocity, U units, F features of a sample, P times of queries
"""

import argparse
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from perceivers import InputAdapter, InputArray, NamedEmbedding, OutputAdapter, PerceiverIO, Ragged
from perceivers import RotaryPositions, spaced_periods

STEP, WINDOW = 0.01, 1.0  # seconds between samples of the velocity, and of a window of spikes
TIMES, LATENTS = 8, 4  # times in a window at which there are latents, and latents at each
CHANNELS = 64


class Session(NamedTuple):
    """A recording: names of its units, unit and time of each spike, and the velocity; the last fifth is held out."""

    name: str
    units: list[str]
    unit_T: np.ndarray
    time_T: np.ndarray
    velocity_S2: np.ndarray

    def velocity(self, time: np.ndarray) -> np.ndarray:
        """Returns the velocity at any times; [...] -> [..., 2]."""
        sample_S = (np.arange(len(self.velocity_S2)) + 0.5) * STEP
        return np.stack([np.interp(time, sample_S, v_S) for v_S in self.velocity_S2.T], -1)


def simulate(name: str, rng: np.random.Generator, seconds: float) -> Session:
    """Simulates 20 to 50 units, each of its own rate, whose spikes are more frequent the more it moves their way."""
    count = rng.integers(20, 51)
    velocity_S2 = gaussian_filter1d(rng.normal(size=(round(seconds / STEP), 2)), 0.2 / STEP, axis=0)
    velocity_S2 /= velocity_S2.std(0)
    angle_U, gain_U, rate_U = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.3, 1.2, count), np.exp(rng.uniform(0, 2, count))
    drive_SU = velocity_S2 @ np.stack([np.cos(angle_U), np.sin(angle_U)]) * gain_U - gain_U**2 / 2
    spikes_SU = rng.poisson(STEP * rate_U * np.exp(drive_SU))
    sample_T, unit_T = (np.repeat(index, spikes_SU[spikes_SU > 0]) for index in np.nonzero(spikes_SU))
    time_T = (sample_T + rng.uniform(size=len(sample_T))) * STEP
    order = time_T.argsort()
    return Session(name, [f"{name}/{unit}" for unit in range(count)], unit_T[order], time_T[order], velocity_S2)


class Spikes(InputAdapter):
    """A spike is the vector of its unit; its coordinate is its time."""

    def __init__(self, units: list[str]) -> None:
        super().__init__()
        self.channels = CHANNELS
        self.unit = NamedEmbedding(units, CHANNELS)

    def forward(self, data: InputArray) -> InputArray:
        return data._replace(x_BMC=self.unit(data.x_BMC))


class Velocity(OutputAdapter):
    """The velocity at any time; a query is the vector of the session, whose index is the context."""

    coordinate_dims = 1

    def __init__(self, sessions: list[str]) -> None:
        super().__init__()
        self.query_channels, self.channels = CHANNELS, 2
        self.session = NamedEmbedding(sessions, CHANNELS)

    def queries(self, encoded, indices=None):
        return self.session(encoded.context)[:, None].expand(-1, indices.shape[1], -1)


def build(sessions: list[Session]) -> PerceiverIO:
    """Builds the model."""
    return PerceiverIO(
        {"spikes": Spikes([unit for session in sessions for unit in session.units])},
        {"velocity": Velocity([session.name for session in sessions])},
        LATENTS, CHANNELS, depth=2, heads=4, cross_heads=2, cross_qk_channels=CHANNELS, decoder_heads=4,
        widening_factor=2, cross_widening_factor=2, decoder_widening_factor=2, gated=True,
        rotary=RotaryPositions(spaced_periods(8, 2 * STEP, 4 * WINDOW), rotate_values=["encoder", "processor"]),
    )


def decode(model: PerceiverIO, windows: list[tuple[Session, float]], time_BP: Tensor, drop: float = 0.0) -> Tensor:
    """Returns the velocity at times since the start of each window, [B, P, 2].

    Args:
        model: the model.
        windows: session and start of each.
        time_BP: times in seconds.
        drop: largest fraction of the units of a window that are left out.
    """
    units, times = [], []
    for session, start in windows:
        first, last = session.time_T.searchsorted([start, start + WINDOW])
        unit_T, time_T = torch.from_numpy(session.unit_T[first:last]), torch.from_numpy(session.time_T[first:last])
        kept_T = (torch.rand(len(session.units)) >= drop * torch.rand(()))[unit_T]
        units.append(model.inputs["spikes"].unit.indices(session.units)[unit_T[kept_T]])
        times.append(time_T[kept_T].float() - start)
    spikes = Ragged.stack(units)
    encoded = model.encode(
        {"spikes": InputArray(spikes.values[None], None, None, torch.cat(times)[None, :, None].float(), spikes.offsets)},
        latents=model.encoder.latents.repeat(TIMES, 1),
        latent_coordinates=((torch.arange(TIMES) + 0.5) * WINDOW / TIMES).repeat_interleave(LATENTS)[:, None],
    )
    encoded.context["velocity"] = model.outputs["velocity"].session.indices(session.name for session, _ in windows)
    return model.decode(encoded, {"velocity": time_BP[..., None]})["velocity"]


def target(windows, time_BP):
    return torch.stack([torch.from_numpy(s.velocity(start + t.double().numpy())) for (s, start), t in zip(windows, time_BP, strict=True)]).float()


def held_out(session):
    return 0.8 * len(session.velocity_S2) * STEP


def train(model, sessions, steps, lr, decay, rng, batch_size=32):
    """Trains all parameters that are not frozen."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    total = 0.0
    for step in range(steps):
        chosen = [sessions[i] for i in rng.integers(len(sessions), size=batch_size)]
        windows = [(s, rng.uniform(0, held_out(s) - WINDOW)) for s in chosen]
        time_BP = WINDOW * torch.rand(batch_size, 32)
        loss = (decode(model, windows, time_BP, drop=DROP) - target(windows, time_BP)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 250 == 249:
            print(f"step {step + 1}: loss {total / 250:.3f}", flush=True)
            total = 0.0

DROP = 0.3

def r2(v, p):
    return 1 - np.square(v - p).sum() / np.square(v - v.mean(0)).sum()


@torch.no_grad()
def measure(model, session):
    starts = np.arange(held_out(session), len(session.velocity_S2) * STEP - WINDOW + 1e-9, WINDOW / 2)
    windows = [(session, s) for s in starts]
    time_BP = torch.arange(WINDOW / 4, 3 * WINDOW / 4, STEP).expand(len(starts), -1)
    return r2(target(windows, time_BP).flatten(0, 1).numpy(), decode(model, windows, time_BP).flatten(0, 1).numpy())
