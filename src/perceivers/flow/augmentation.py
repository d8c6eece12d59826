"""Training augmentation of optical flow, on tensors in batches (section 4.2: augmentation that grows over training).

Both frames are resampled once, whatever happens to them. Points are (x, y) in pixels, (0, 0) is the middle of the first
pixel; maps of points are matrices [B, 3, 3] that take (x, y, 1) to (x', y', 1). Everything that is drawn by chance is
float64 on the CPU until it meets the frames: no mixed precision rounds coordinates, and a seed means the same on every
device.

Shape suffixes: B batch, 2 frames (of flow and of points: x and y), C or 3 colors, Y rows, X columns, R rectangles
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perceivers.checks import Checked, Fraction, Range, check_field
from perceivers.errors import PerceiversError

RECTANGLES = 3
"""So many rectangles are erased at most."""

SMALLEST_PART = 0.25
"""Rectangles and patches have at least this part of their largest side."""

NEGLIGIBLE = 1e-3
"""Weight in bilinear sampling that is rounding, not a neighbour."""

BOUNDARY = 1.0
"""If sampled and nearest flow differ by more pixels, a motion boundary is between them."""

Degrees = Annotated[float, Range(least=0, most=180)]
"""An angle to either side."""

Amount = Annotated[float, Range(least=0, below=math.inf)]
"""A length in pixels, or a logarithm."""


@dataclass
class FlowAugmentation(Checked):
    """How training pairs are changed at full strength. The paper gives no numbers; these are ours.

    Amounts are the largest; what is drawn is uniform on both sides of no change, where nothing else is said. Lengths
    are pixels of the result.

    Attributes:
        brightness: change of the colors' factor.
        contrast: change of the factor by which colors differ from the pair's mean gray.
        saturation: change of the factor by which colors differ from gray.
        hue: turn of the hue, in degrees.
        asymmetric: probability that the second frame's colors change otherwise than the first's.
        scale: bounds of the binary logarithm of the scale; a crop that would leave the frames is scaled up to fit.
        stretch: binary logarithm of the ratio of the scales of width and height.
        rotation: in degrees.
        flip: probability of mirroring left and right.
        vertical_flip: probability of mirroring top and bottom.
        relative_scale: binary logarithm of the scale of the second frame beside that of the first.
        relative_rotation: turn of the second frame against the first, in degrees.
        relative_translation: shift of the second frame against the first, to each side.
        erase: probability that up to 3 rectangles of the second frame get its mean color.
        erase_side: their largest side.
        occlude: probability that a patch of another pair of the batch covers part of both frames.
        occlude_side: about its largest length and width.
        occlude_motion: how far it moves between the frames, to each side.
    """

    section = "augmentation."

    brightness: Fraction = 0.3
    contrast: Fraction = 0.3
    saturation: Fraction = 0.4
    hue: Degrees = 30.0
    asymmetric: Fraction = 0.2
    scale: tuple[float, float] = (-0.2, 0.6)
    stretch: Amount = 0.2
    rotation: Degrees = 10.0
    flip: Fraction = 0.5
    vertical_flip: Fraction = 0.1
    relative_scale: Amount = 0.03
    relative_rotation: Degrees = 2.0
    relative_translation: Amount = 5.0
    erase: Fraction = 0.5
    erase_side: Amount = 100.0
    occlude: Fraction = 0.3
    occlude_side: Amount = 160.0
    occlude_motion: Amount = 40.0

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.scale
        check_field(
            "augmentation.scale", self.scale, -math.inf < low <= high < math.inf, "two numbers, the smaller first"
        )

    def times(self, strength: float) -> "FlowAugmentation":
        """All amounts and probabilities times a number from 0 to 1."""
        low, high = self.scale
        others = {field: value * strength for field, value in vars(self).items() if field != "scale"}
        return replace(self, scale=(low * strength, high * strength), **others)


class FlowAugment(nn.Module):
    """Applies a `FlowAugmentation` to batches of pairs and cuts them to `size`; its random numbers are torch's.

    Args:
        config: what is done at full strength.
        size: height and width of the results.
    """

    def __init__(self, config: FlowAugmentation, size: tuple[int, int]) -> None:
        super().__init__()
        check_field("size", size, min(size) >= 2, "height and width, at least 2 pixels")
        self.config = config
        self.size = (size[0], size[1])

    @torch.no_grad()
    def forward(self, frames_B2CYX: Tensor, flow_B2YX: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Changes every pair in a way of its own.

        Args:
            frames_B2CYX: [B, 2, 3, Y, X], at least as large as `size`; bytes, or floating point numbers in [0, 1].
            flow_B2YX: of the first frame, in pixels to the right and downwards, NaN where it is not known.
            strength: factor of all amounts and probabilities; at 0, only a random part is cut out.

        Returns:
            The frames, float32 [B, 2, 3, *size] in [0, 1], and their flow, float32 [B, 2, *size], NaN where it is not
            known. Flow is also known where its content cannot be seen in the second frame.

        Raises:
            PerceiversError: shapes do not fit, frames are smaller than `size`, or the strength is not from 0 to 1.
        """
        check_field("strength", strength, 0 <= strength <= 1, "from 0 to 1")
        self.check_shapes(frames_B2CYX, flow_B2YX)
        config = self.config.times(strength)
        with torch.autocast(frames_B2CYX.device.type, enabled=False):
            frames_B2CYX = frames_B2CYX / 255 if frames_B2CYX.dtype == torch.uint8 else frames_B2CYX.float()
            first_B33 = crops(views(config, len(flow_B2YX)), frames_B2CYX.shape[-2:], self.size)
            relative_B33 = relative_motions(config, len(flow_B2YX), self.size)
            flow_B2YX = warp_flow(flow_B2YX.float(), first_B33, relative_B33, self.size)
            maps = torch.stack([first_B33, relative_B33 @ first_B33], 1).flatten(0, 1)
            warped = warp(frames_B2CYX.flatten(0, 1), maps, self.size).unflatten(0, (-1, 2))
            if config.occlude:
                warped, flow_B2YX = occlude(config, warped, flow_B2YX, frames_B2CYX[:, 0], first_B33)
            warped = recolor(config, warped)
            if config.erase:
                warped = erase(config, warped)
        return warped, flow_B2YX

    def check_shapes(self, frames_B2CYX: Tensor, flow_B2YX: Tensor) -> None:
        size = tuple(frames_B2CYX.shape[-2:])
        if frames_B2CYX.shape != (len(flow_B2YX), 2, 3, *size) or flow_B2YX.shape != (len(flow_B2YX), 2, *size):
            raise PerceiversError(
                f"frames of shape {tuple(frames_B2CYX.shape)} and flow of shape {tuple(flow_B2YX.shape)} were given: "
                "[batch, 2 frames, 3 colors, height, width] and [batch, 2, height, width] are expected."
            )
        if size[0] < self.size[0] or size[1] < self.size[1]:
            raise PerceiversError(
                f"frames of {size[0]} x {size[1]} pixels are too small to cut {self.size[0]} x {self.size[1]} pixels "
                "out of them: use larger frames or a smaller size."
            )


# random numbers and maps of points, float64 on the CPU


def uniform(count: int, low: float, high: float) -> Tensor:
    """Numbers [B], float64."""
    return torch.rand(count, dtype=torch.float64) * (high - low) + low


def chosen(count: int, probability: float) -> Tensor:
    """Bools [B], True with this probability."""
    return torch.rand(count) < probability


def xy(size: Sequence[int]) -> Tensor:
    """Height and width -> [2], float64: width first, as points have it."""
    return torch.tensor([size[1], size[0]], dtype=torch.float64)


def rotations(degrees_B: Tensor) -> Tensor:
    """Turns that are clockwise to the eye, since y goes down; -> [B, 2, 2]."""
    cos_B, sin_B = degrees_B.deg2rad().cos(), degrees_B.deg2rad().sin()
    return torch.stack([cos_B, -sin_B, sin_B, cos_B], 1).unflatten(1, (2, 2))


def affine(linear_B22: Tensor, source_B2: Tensor, target_B2: Tensor) -> Tensor:
    """The maps with these linear parts that take `source` to `target`; -> [B, 3, 3]."""
    map_B33 = torch.eye(3, dtype=linear_B22.dtype).repeat(len(linear_B22), 1, 1)
    map_B33[:, :2, :2] = linear_B22
    map_B33[:, :2, 2] = target_B2 - (linear_B22 @ source_B2[..., None])[..., 0]
    return map_B33


def translations(offset_B2: Tensor) -> Tensor:
    """-> [B, 3, 3]."""
    identity_B22 = torch.eye(2, dtype=offset_B2.dtype).expand(len(offset_B2), 2, 2)
    return affine(identity_B22, torch.zeros_like(offset_B2), offset_B2)


def views(config: FlowAugmentation, count: int) -> Tensor:
    """Random scale, stretch, flips and rotation, in this order; -> [B, 2, 2]."""
    scale_B, stretch_B = uniform(count, *config.scale), uniform(count, -config.stretch, config.stretch)
    scale_B2 = torch.stack([scale_B + stretch_B / 2, scale_B - stretch_B / 2], 1).exp2()
    flips_B2 = torch.stack([chosen(count, config.flip), chosen(count, config.vertical_flip)], 1)
    turn_B22 = rotations(uniform(count, -config.rotation, config.rotation))
    return turn_B22 * torch.where(flips_B2, -scale_B2, scale_B2)[:, None]


def crops(linear_B22: Tensor, frame: Sequence[int], size: Sequence[int]) -> Tensor:
    """Maps of a frame to a random part of it, seen with these linear parts; -> [B, 3, 3].

    Where no such part lies in the frame, the scale is enlarged until the only one does.
    """
    half_B2 = linear_B22.inverse().abs() @ ((xy(size) - 1) / 2)  # of the part's bounding box in the frame
    enlarged_B1 = (2 * half_B2 / (xy(frame) - 1)).amax(1, keepdim=True).clamp_min(1)
    half_B2 = half_B2 / enlarged_B1
    free_B2 = (xy(frame) - 1 - 2 * half_B2).clamp_min(0)
    # whole pixels, so that nothing is blurred where only the place changes
    corner_B2 = torch.minimum((torch.rand_like(free_B2) * (free_B2 + 1)).floor(), free_B2)
    return affine(linear_B22 * enlarged_B1[..., None], corner_B2 + half_B2, (xy(size) - 1) / 2)


def relative_motions(config: FlowAugmentation, count: int, size: Sequence[int]) -> Tensor:
    """Random rotation and scale around the middle, and translation; -> [B, 3, 3]."""
    scale_B = uniform(count, -config.relative_scale, config.relative_scale).exp2()
    turn_B22 = rotations(uniform(count, -config.relative_rotation, config.relative_rotation))
    shift = config.relative_translation
    shift_B2 = torch.stack([uniform(count, -shift, shift), uniform(count, -shift, shift)], 1)
    middle_B2 = ((xy(size) - 1) / 2).expand(count, 2)
    return affine(turn_B22 * scale_B[:, None, None], middle_B2, middle_B2 + shift_B2)


# what they do to frames and flow, on any device


def transform(map_B33: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Where points are taken to; x and y of shapes that expand to [B, 1, Y, X] -> [B, 2, Y, X]."""
    # no matrix product: its float32 may be rounded on accelerators
    x_part_B211, y_part_B211, offset_B211 = map_B33[:, :2].float().to(x.device)[..., None, None].unbind(2)
    return x_part_B211 * x + y_part_B211 * y + offset_B211


def pixels(size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """All x [X] and all y [Y, 1]."""
    return torch.arange(size[1], device=device), torch.arange(size[0], device=device)[:, None]


def sampling_grid(map_B33: Tensor, frame: Sequence[int], size: Sequence[int], device: torch.device) -> Tensor:
    """Where in a frame the pixels of its image under the map are, as `F.grid_sample` counts; -> [B, Y, X, 2]."""
    counted_B33 = affine((2 / xy(frame)).diag()[None], (xy(frame)[None] - 1) / 2, torch.zeros(1, 2).double())
    return transform(counted_B33 @ map_B33.inverse(), *pixels(size, device)).movedim(1, -1)


def warp(images_BCYX: Tensor, map_B33: Tensor, size: Sequence[int]) -> Tensor:
    """Images of images under maps, bilinear; beyond the border is what the border has. -> [B, C, *size]."""
    grid_BYX2 = sampling_grid(map_B33, images_BCYX.shape[-2:], size, images_BCYX.device)
    return F.grid_sample(images_BCYX, grid_BYX2, padding_mode="border", align_corners=False)


def warp_flow(flow_B2YX: Tensor, first_B33: Tensor, relative_B33: Tensor, size: Sequence[int]) -> Tensor:
    """Flow after the first frame was mapped by `first`, the second by `relative` after `first`; -> [B, 2, *size].

    A pixel p shows what was at x = first^-1 p and moved by f; it is now at relative first (x + f). That is
    relative (p + L f), with the linear part L of `first`.
    """
    flow_B2YX = sample_flow(flow_B2YX, sampling_grid(first_B33, flow_B2YX.shape[-2:], size, flow_B2YX.device))
    without_offset_33 = torch.tensor([1.0, 1, 0], dtype=torch.float64).diag()
    moved_B2YX = transform(relative_B33 @ first_B33 @ without_offset_33, *flow_B2YX.split(1, 1))
    identity_33 = torch.eye(3, dtype=torch.float64)
    return moved_B2YX + transform(relative_B33 - identity_33, *pixels(size, flow_B2YX.device))


def sample_flow(flow_B2YX: Tensor, grid_BYX2: Tensor) -> Tensor:
    """Bilinear where all neighbours are known, the nearest at motion boundaries; NaN elsewhere and beyond the frame."""
    known_B1YX = flow_B2YX.isfinite().all(1, keepdim=True)
    values_B3YX = torch.cat([flow_B2YX.masked_fill(~known_B1YX, 0), known_B1YX], 1)
    sampled_B3YX = F.grid_sample(values_B3YX, grid_BYX2, padding_mode="zeros", align_corners=False)
    weight_B1YX = sampled_B3YX[:, 2:]
    mean_B2YX = sampled_B3YX[:, :2] / weight_B1YX
    nearest_B2YX = F.grid_sample(values_B3YX[:, :2], grid_BYX2, "nearest", align_corners=False)
    # a mean of both sides of a boundary would be the motion of nothing
    boundary_B1YX = (mean_B2YX - nearest_B2YX).abs().amax(1, keepdim=True) > BOUNDARY
    mean_B2YX = torch.where(boundary_B1YX, nearest_B2YX, mean_B2YX)
    return mean_B2YX.masked_fill(weight_B1YX < 1 - NEGLIGIBLE, math.nan)


def occlude(
    config: FlowAugmentation, frames_B2CYX: Tensor, flow_B2YX: Tensor, images_BCYX: Tensor, first_B33: Tensor
) -> tuple[Tensor, Tensor]:
    """Moves a patch of another pair of the batch over some pairs.

    Args:
        config: how often, how large, how far.
        frames_B2CYX: both frames.
        flow_B2YX: their flow.
        images_BCYX: the first frames, from which the patches are cut, as they were.
        first_B33: the maps that they then went through.

    Returns:
        The frames and the flow: the patch's motion in the patch of the first frame, as before elsewhere.
    """
    count, size, device = len(flow_B2YX), flow_B2YX.shape[-2:], flow_B2YX.device
    reach = config.occlude_motion
    motion_B2 = torch.stack([uniform(count, -reach, reach), uniform(count, -reach, reach)], 1)
    moved_B33 = translations(motion_B2)
    other_B33 = moved_B33 @ first_B33.roll(1, 0)
    patches_B2CYX = torch.stack([frames_B2CYX[:, 0].roll(1, 0), warp(images_BCYX.roll(1, 0), other_B33, size)], 1)
    unit_B33, wave_2B = shapes(config.occlude_side, count, size)
    chosen_B111 = chosen(count, config.occlude)[:, None, None, None].to(device)
    first_B1YX = inside(unit_B33, wave_2B, size, device) & chosen_B111
    second_B1YX = inside(unit_B33 @ moved_B33.inverse(), wave_2B, size, device) & chosen_B111
    frames_B2CYX = torch.where(torch.stack([first_B1YX, second_B1YX], 1), patches_B2CYX, frames_B2CYX)
    return frames_B2CYX, torch.where(first_B1YX, motion_B2[..., None, None].float().to(device), flow_B2YX)


def shapes(side: float, count: int, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Random ellipses bent like waves, around random places of a frame.

    Returns:
        Maps [B, 3, 3] of the ellipses to the unit circle; and amplitudes and phases [2, B] of the waves there.
    """
    radius_B2 = torch.stack([uniform(count, SMALLEST_PART, 1), uniform(count, SMALLEST_PART, 1)], 1) * side / 2
    linear_B22 = rotations(uniform(count, 0, 360)) * radius_B2.clamp_min(1e-3)[:, None]
    middle_B2 = torch.rand(count, 2, dtype=torch.float64) * xy(size) - 0.5
    wave_2B = torch.stack([uniform(count, 0, 0.4), uniform(count, 0, 2 * math.pi)])
    return affine(linear_B22, torch.zeros_like(middle_B2), middle_B2).inverse(), wave_2B


def inside(unit_B33: Tensor, wave_2B: Tensor, size: Sequence[int], device: torch.device) -> Tensor:
    """Which pixels such a shape has; -> bool [B, 1, Y, X]."""
    x_B1YX, y_B1YX = transform(unit_B33, *pixels(size, device)).split(1, 1)
    amplitude_B111, phase_B111 = wave_2B.float().to(device)[..., None, None, None]
    return (x_B1YX + amplitude_B111 * (3 * y_B1YX + phase_B111).sin()) ** 2 + y_B1YX**2 < 1


def recolor(config: FlowAugmentation, frames_B2CYX: Tensor) -> Tensor:
    """Changes brightness, contrast, saturation and hue, of both frames alike or not."""
    count, device = len(frames_B2CYX), frames_B2CYX.device
    amounts_4 = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue], dtype=torch.float64)
    amount_B24 = uniform(count * 8, -1, 1).view(count, 2, 4) * amounts_4
    amount_B24[:, 1] = torch.where(chosen(count, config.asymmetric)[:, None], amount_B24[:, 1], amount_B24[:, 0])
    brightness_B2, contrast_B2, saturation_B2 = (1 + amount_B24[..., :3]).unbind(-1)
    linear_B233 = (brightness_B2 * contrast_B2)[..., None, None] * color_matrices(saturation_B2, amount_B24[..., 3])
    grey_B111 = frames_B2CYX.mean((1, 2, 3, 4))[:, None, None, None]
    offset_B211 = (brightness_B2 * (1 - contrast_B2)).float().to(device)[..., None, None] * grey_B111
    colors_B2CP = linear_B233.float().to(device) @ frames_B2CYX.flatten(3)
    return colors_B2CP.add_(offset_B211).clamp_(0, 1).view_as(frames_B2CYX)


def color_matrices(saturation: Tensor, hue: Tensor) -> Tensor:
    """What takes colors to colors of the same gray; factors and degrees [...] -> [..., 3, 3].

    The gray of a color is the mean of red, green and blue; changing the hue turns colors around the axis of grays.
    """
    grey_33 = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    across_33 = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
    cos, sin = hue.deg2rad().cos()[..., None, None], hue.deg2rad().sin()[..., None, None]
    turned = cos * (torch.eye(3, dtype=torch.float64) - grey_33) + sin * across_33
    return grey_33 + saturation[..., None, None] * turned


def erase(config: FlowAugmentation, frames_B2CYX: Tensor) -> Tensor:
    """Gives rectangles of the second frames their mean color: what was there still has its flow, but is not seen."""
    second_BCYX = frames_B2CYX[:, 1]
    count, device = len(second_BCYX), second_BCYX.device
    rows_BRY, columns_BRX = (windows(config.erase_side, count, size) for size in second_BCYX.shape[-2:])
    number_B = torch.randint(1, RECTANGLES + 1, (count,)) * chosen(count, config.erase)
    rows_BRY &= (torch.arange(RECTANGLES) < number_B[:, None])[..., None]
    erased_BYX = (rows_BRY.to(device)[..., None] & columns_BRX.to(device)[..., None, :]).any(1)
    second_BCYX = torch.where(erased_BYX[:, None], second_BCYX.mean((2, 3), keepdim=True), second_BCYX)
    return torch.stack([frames_B2CYX[:, 0], second_BCYX], 1)


def windows(side: float, count: int, size: int) -> Tensor:
    """Which of `size` places are in random windows of at most this side, cut at the ends; -> bool [B, R, size]."""
    half_BR1 = side / 2 * uniform(count * RECTANGLES, SMALLEST_PART, 1).view(count, RECTANGLES, 1)
    middle_BR1 = uniform(count * RECTANGLES, 0, size).view(count, RECTANGLES, 1)
    return (torch.arange(size) + 0.5 - middle_BR1).abs() < half_BR1
