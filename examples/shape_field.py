"""A shape as a field: points of its surface in, whether any place is inside it out, as 3DShape2VecSet does.

    python examples/shape_field.py

Latents are points of the surface, chosen far from each other, which read all others. A shape is the union of two random
ellipsoids. Needs scipy, for the convex hull to compare with.

Shape suffixes: B shapes, E ellipsoids, P points, 3 coordinates
"""

import argparse

import torch
import torch.nn.functional as F
from scipy.spatial import Delaunay
from torch import Tensor

from perceivers import FourierFeatures, InputArray, PerceiverIO, farthest_points
from perceivers.adapters import ArrayInput, ArrayOutput

POINTS, LATENTS = 256, 32


class Shapes:
    """Random shapes in [-1, 1]^3."""

    def __init__(self, count: int) -> None:
        self.center_BE3 = 0.8 * torch.rand(count, 2, 3) - 0.4
        self.radius_BE3 = 0.15 + 0.4 * torch.rand(count, 2, 3)
        self.turn_BE33 = torch.linalg.qr(torch.randn(count, 2, 3, 3))[0]

    def distance(self, place_BP3: Tensor) -> Tensor:
        """Returns the distance from the center of each ellipsoid, 1 on its surface; -> [B, P, E]."""
        offset_BEP3 = (place_BP3[:, None] - self.center_BE3[:, :, None]) @ self.turn_BE33
        return (offset_BEP3 / self.radius_BE3[:, :, None]).norm(dim=-1).transpose(1, 2)

    def contain(self, place_BP3: Tensor) -> Tensor:
        """Returns whether places are inside; -> [B, P]."""
        return (self.distance(place_BP3) < 1).any(-1)

    def surface(self) -> Tensor:
        """Returns random points of the surface of the union, [B, P, 3]."""
        direction_BEP3 = F.normalize(torch.randn(len(self.center_BE3), 2, 8 * POINTS, 3), dim=-1)
        place_BEP3 = direction_BEP3 * self.radius_BE3[:, :, None] @ self.turn_BE33.mT + self.center_BE3[:, :, None]
        place_BP3 = place_BEP3.flatten(1, 2)
        hidden_BP = (self.distance(place_BP3) < 1 - 1e-4).any(-1)  # inside the other ellipsoid
        order_BP = (hidden_BP + torch.rand(hidden_BP.shape)).argsort(1)[:, :POINTS]
        return place_BP3.take_along_dim(order_BP[..., None], 1)


def build() -> PerceiverIO:
    """Returns a model of points to occupancy, with the parts of 3DShape2VecSet, small."""
    features = FourierFeatures(3, [2.0**k for k in range(4)], projection=64)
    sizes = {"latents": 0, "channels": 64, "depth": 3, "heads": 4, "widening_factor": 2, "gated": True}
    return PerceiverIO(
        {"points": ArrayInput(0, features)},
        {"occupancy": ArrayOutput(1, features)},
        **sizes,
        cross_widening_factor=2,
        decoder_widening_factor=2,
    )


def occupancy(model: PerceiverIO, point_BP3: Tensor, place_BP3: Tensor) -> Tensor:
    """Returns the logits of being inside the shape of some surface points; -> [B, P]."""
    empty_BP0 = point_BP3.new_empty(*point_BP3.shape[:2], 0)  # points have coordinates, and nothing else
    points = InputArray(empty_BP0, coordinates_BMG=point_BP3)
    chosen_BN = farthest_points(point_BP3, LATENTS)
    latents_BND = model.inputs["points"](points).x_BMC.take_along_dim(chosen_BN[..., None], 1)
    encoded = model.encode({"points": points}, latents=latents_BND)
    return model.decode(encoded, {"occupancy": place_BP3})["occupancy"][..., 0]


def overlap(found_BP: Tensor, inside_BP: Tensor) -> float:
    """Returns the mean intersection over union."""
    return ((found_BP & inside_BP).sum(1) / (found_BP | inside_BP).sum(1)).mean().item()


def main(steps: int = 1500) -> tuple[float, float]:
    """Trains; returns the intersection over union of 50 new shapes, of the model and of the convex hulls."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        shapes = Shapes(16)
        surface_BP3 = shapes.surface()
        near_BP3 = surface_BP3 + 0.1 * torch.randn_like(surface_BP3)
        place_BP3 = torch.cat([near_BP3, 2 * torch.rand(16, POINTS, 3) - 1], 1)
        logits_BP = occupancy(model, surface_BP3, place_BP3)
        loss = F.binary_cross_entropy_with_logits(logits_BP, shapes.contain(place_BP3).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    shapes = Shapes(50)
    surface_BP3, place_BP3 = shapes.surface(), 2 * torch.rand(50, 20_000, 3) - 1
    inside_BP = shapes.contain(place_BP3)
    with torch.no_grad():
        found_BP = occupancy(model.eval(), surface_BP3, place_BP3) > 0
    pairs = zip(surface_BP3.numpy(), place_BP3.numpy(), strict=True)
    hull_BP = torch.stack([torch.from_numpy(Delaunay(points).find_simplex(places) >= 0) for points, places in pairs])
    ours, hull = overlap(found_BP, inside_BP), overlap(hull_BP, inside_BP)
    print(f"intersection over union of 50 new shapes: {ours:.3f}, convex hulls {hull:.3f}")
    return ours, hull


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="steps of training")
    main(parser.parse_args().steps)
