"""Rebuilds fields u(t, x) from a few scattered sensors: Burgers' equation, whose waves steepen to shocks that merge.

    python examples/field.py --output runs/field

A Perceiver IO is trained on fields of 64 x 64 points, of which about 2% are measured, at other places in every step. It
answers at any coordinates: unseen fields are rebuilt at 64 x 64 and 256 x 256, beside three kinds of interpolation.

Shape suffixes: B fields, T times, X places, M sensors, P points, G the coordinates (t, x), both from -1 to 1
"""

import argparse
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.interpolate import RBFInterpolator
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.nn import functional

from perceivers import FourierFeatures, InputArray, PerceiverIO, RotaryPositions, grid_coordinates
from perceivers.adapters import ArrayInput, ArrayOutput

SIZE, SENSORS, VISCOSITY = 64, 82, 0.01
CHUNK = 64  # fields of one seed, and fields on which methods are tuned and measured
GRID_PG = grid_coordinates((SIZE, SIZE))


def solve_burgers(count: int, size: int, seed: int) -> Tensor:
    """Returns solutions of u_t + u u_x = 0.01 u_xx, periodic in x, for 0 < t < 1; [B, T, X].

    They begin with four random waves and a random mean flow. They are exact (Hopf, 1950; Cole, 1951):
    u = c - 2 nu h_x / h, where h obeys the heat equation, solved by a Fourier series.
    """
    random = np.random.default_rng(seed)
    wave = np.arange(1, 5)
    a = (random.normal(size=(count, 4)) + 1j * random.normal(size=(count, 4))) / np.sqrt(wave)
    a *= 0.5 * np.sqrt(2 / (np.abs(a) ** 2).sum(1, keepdims=True))  # 0.5 is the root mean square without the flow
    flow = 0.5 * random.normal(size=(count, 1, 1))
    potential = np.real(a / (1j * np.pi * wave) @ np.exp(2j * np.pi * np.outer(wave, np.arange(512) / 512)))
    h = np.fft.rfft(np.exp((potential.min(1, keepdims=True) - potential) / (2 * VISCOSITY)))[:, None, :128]
    h[..., 0] /= 2
    k = 1j * np.pi * np.arange(128)
    h = h * np.exp(np.linspace(0, 1, size)[:, None] * (VISCOSITY * k**2 - flow * k))
    series = np.exp(np.outer(k, np.linspace(0, 2, size)))
    return torch.tensor(flow - 2 * VISCOSITY * np.real(h * k @ series) / np.real(h @ series), dtype=torch.float32)


def build_model() -> PerceiverIO:
    """Returns a Perceiver IO with a latent for each sensor, at its coordinates: attention sees the distances."""
    return PerceiverIO(
        {"sensors": ArrayInput(1, FourierFeatures(2, [1, 2, 4], projection=48), projection=16)},
        {"field": ArrayOutput(1, FourierFeatures(2, [1, 2, 4], projection=64))},
        latents=0,
        channels=64,
        depth=3,
        heads=4,
        cross_heads=4,
        decoder_heads=4,
        widening_factor=2,
        rotary=RotaryPositions([0.5, 1, 2, 4], 2, ["encoder", "processor", "decoder"]),
    )


def rebuild(model: PerceiverIO, values_BM: Tensor, coordinates_BMG: Tensor, queries_PG: Tensor) -> Tensor:
    """Returns the field at any coordinates, [P, G] or [B, P, G], given sensors; -> [B, P]."""
    sensors = InputArray(values_BM[..., None], coordinates_BMG=coordinates_BMG)
    latents = model.inputs["sensors"](sensors).x_BMC
    encoded = model.encode({"sensors": sensors}, latents=latents, latent_coordinates=coordinates_BMG)
    return model.decode(encoded, {"field": queries_PG})["field"][..., 0]


def train(model: PerceiverIO, fields_BP: Tensor, steps: int, rate: float = 8e-3) -> None:
    """Trains to predict 128 points of each field from 41 to 123 sensors."""
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    start, losses = time.time(), []
    for step in range(1, steps + 1):
        count = int(torch.randint(SENSORS // 2, SENSORS * 3 // 2 + 1, ()))
        points = torch.rand(16, SIZE**2).topk(count + 128).indices
        u = fields_BP[torch.randint(len(fields_BP), (16,))].gather(1, points)
        predicted = rebuild(model, u[:, :count], GRID_PG[points[:, :count]], GRID_PG[points[:, count:]])
        loss = (predicted - u[:, count:]).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % max(1, steps // 10) == 0:
            error = np.mean(losses[-(steps // 10) :]) ** 0.5
            print(f"step {step}: root mean square error {error:.3f}, {time.time() - start:.0f} s", flush=True)


Method = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Returns a field of some size, [T, X], given the coordinates [M, G] and values [M] of its sensors."""


def to_cylinder(coordinates: np.ndarray, stretch: float) -> np.ndarray:
    """Returns coordinates on a cylinder, where x is periodic, with time stretched along it; [M, G] -> [M, 3]."""
    t, x = coordinates.T
    return np.stack([stretch * t, np.cos(np.pi * x), np.sin(np.pi * x)], 1)


def thin_plate(stretch: float, smoothing: float) -> Method:
    """Interpolates by thin-plate splines."""

    def method(coordinates: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
        spline = RBFInterpolator(to_cylinder(coordinates, stretch), values, smoothing=smoothing)
        return spline(to_cylinder(grid_coordinates((size, size)).numpy(), stretch)).reshape(size, size)

    return method


def gaussian_process(stretch: float, length: float) -> Method:
    """Interpolates by a Gaussian process whose kernel is Matern 3/2 (kriging)."""

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        distance = np.sqrt(3) / length * cdist(to_cylinder(a, stretch), to_cylinder(b, stretch))
        return (1 + distance) * np.exp(-distance)

    def method(coordinates: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
        weights = np.linalg.solve(kernel(coordinates, coordinates) + 1e-6 * np.eye(len(values)), values - values.mean())
        field = kernel(grid_coordinates((size, size)).numpy(), coordinates) @ weights
        return values.mean() + field.reshape(size, size)

    return method


def best_linear(fields_BP: Tensor, noise: float) -> Method:
    """Interpolates by the covariance of all training fields: the best that is linear in the values (kriging)."""
    wave_BTK = np.fft.rfft(fields_BP.unflatten(1, (SIZE, SIZE)).double().numpy()[..., :-1])
    power_TTK = np.einsum("bsk,btk->stk", wave_BTK, wave_BTK.conj()) / len(fields_BP)
    covariance_TTX = np.fft.irfft(power_TTK, n=SIZE - 1) / (SIZE - 1)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        (s, x), (t, y) = (np.rint((c + 1) / 2 * (SIZE - 1)).astype(int).T for c in (a, b))
        return covariance_TTX[s[:, None], t, (x[:, None] - y) % (SIZE - 1)]

    def method(coordinates: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
        weights = np.linalg.solve(kernel(coordinates, coordinates) + noise * np.eye(len(values)), values)
        field = torch.tensor(kernel(GRID_PG.numpy(), coordinates) @ weights).view(1, 1, SIZE, SIZE)
        return functional.interpolate(field, (size, size), mode="bicubic", align_corners=True)[0, 0].numpy()

    return method


def draw_sensors(fields_BP: Tensor) -> tuple[Tensor, Tensor]:
    """Returns coordinates and values of 2% of the points of each field, at random; [B, M, G], [B, M]."""
    points_BM = torch.rand(len(fields_BP), SIZE**2).topk(SENSORS).indices
    return GRID_PG[points_BM], fields_BP.gather(1, points_BM)


def measure(method: Method, coordinates_BMG: Tensor, values_BM: Tensor, truth_BTX: Tensor) -> float:
    """Returns the relative error, |u - truth| / |truth|, averaged over fields."""
    errors = []
    fields = (x.double().numpy() for x in (coordinates_BMG, values_BM, truth_BTX))
    for coordinates, values, truth in zip(*fields, strict=True):
        rebuilt = method(coordinates, values, len(truth))
        errors.append(np.linalg.norm(rebuilt - truth) / np.linalg.norm(truth))
    return float(np.mean(errors))


def draw(path: Path, methods: dict[str, Method], coordinates_BMG: Tensor, values_BM: Tensor, truth_BTX: Tensor) -> None:
    """Draws the first fields: the sensors, the truth, and what each method rebuilds with its error, in one scale."""
    figure = Figure(figsize=(2.1 * (2 + 2 * len(methods)), 2.2 * len(truth_BTX)), layout="constrained")
    axes = figure.subplots(len(truth_BTX), 2 + 2 * len(methods), sharex=True, sharey=True, squeeze=False)
    fields = (x.double().numpy() for x in (coordinates_BMG, values_BM, truth_BTX))
    for row, coordinates, values, truth in zip(axes, *fields, strict=True):
        most = np.abs(truth).max()
        color = {"cmap": "RdBu_r", "vmin": -most, "vmax": most}
        row[0].scatter(coordinates[:, 1], coordinates[:, 0], 12, values, edgecolors="black", linewidths=0.3, **color)
        pictures = {"truth": truth}
        for name, method in methods.items():
            pictures[name] = method(coordinates, values, len(truth))
            pictures[f"error of {name}"] = pictures[name] - truth
        for axis, picture in zip(row[1:], pictures.values(), strict=True):
            image = axis.imshow(picture, origin="lower", extent=(-1, 1, -1, 1), interpolation="nearest", **color)
        row[0].set(ylabel="t", aspect="equal")
        figure.colorbar(image, ax=row, label="u", pad=0.01, shrink=0.9)
    for axis, name in zip(axes[0], [f"{values_BM.shape[1]} sensors", *pictures], strict=True):
        axis.set_title(name, fontsize=9)
    for axis in axes[-1]:
        axis.set(xlabel="x", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    figure.savefig(path, dpi=110)


def main(output: Path, steps: int = 5000, count: int = 8192) -> dict[str, list[float]]:
    """Trains; returns the relative errors of each method at 64 x 64 and 256 x 256 points, on new fields.

    Args:
        output: folder of the model and the picture.
        steps: steps of training.
        count: training fields, a multiple of CHUNK.
    """
    torch.manual_seed(0)
    fields_BP = torch.cat([solve_burgers(CHUNK, SIZE, seed).flatten(1) for seed in range(count // CHUNK)])
    model = build_model()
    train(model, fields_BP, steps)
    model.eval().save(output / "model")

    @torch.inference_mode()
    def perceiver_io(coordinates: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
        sensors = (torch.tensor(x, dtype=torch.float32)[None] for x in (values, coordinates))
        return rebuild(model, *sensors, grid_coordinates((size, size)))[0].view(size, size).numpy()

    tuning_BP = fields_BP[:CHUNK]
    tuning = (*draw_sensors(tuning_BP), tuning_BP.unflatten(1, (SIZE, SIZE)))
    stretches = (0.35, 0.5, 0.7, 1.0)
    options = {
        "Perceiver IO": [perceiver_io],
        "thin-plate spline": [thin_plate(*x) for x in product(stretches, (0, 1e-4, 1e-3))],
        "Gaussian process": [gaussian_process(*x) for x in product(stretches, (0.25, 0.5, 1, 2))],
        "best linear": [best_linear(fields_BP, noise) for noise in (1e-3, 1e-4, 1e-5)],
    }
    methods = {name: min(some, key=lambda method: measure(method, *tuning)) for name, some in options.items()}

    small_BTX, large_BTX = (solve_burgers(CHUNK, size, seed=10**6) for size in (SIZE, 4 * SIZE))
    sensors = draw_sensors(small_BTX.flatten(1))
    print("relative error of   64 x 64   256 x 256   seconds a field")
    errors = {}
    for name, method in methods.items():
        start = time.time()
        errors[name] = [measure(method, *sensors, truth) for truth in (small_BTX, large_BTX)]
        seconds = (time.time() - start) / CHUNK
        print(f"{name:18} {errors[name][0]:8.3f} {errors[name][1]:11.3f} {seconds:17.3f}")
    shown = {name: methods[name] for name in ("Perceiver IO", "best linear")}
    draw(output / "field.png", shown, *(x[:2] for x in (*sensors, large_BTX)))
    return errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="steps of training")
    parser.add_argument("--output", type=Path, default=Path("runs/field"), help="folder of the model and the picture")
    arguments = parser.parse_args()
    main(arguments.output, arguments.steps)
