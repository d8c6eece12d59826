"""Training augmentation of optical flow on batches of tensors (section 4.2: augmentation grows during training).

All maps are composed, so that each frame is resampled only once. Points are (x, y) in pixels, (0, 0) is the center of
the first pixel; maps of points are matrices [B, 3, 3] that take (x, y, 1) to (x', y', 1). Random numbers are float64 on
the CPU until they meet the frames: mixed precision rounds no coordinates, and a seed means the same on every device.

Shape suffixes: B batch, 2 frames (of flow and of points: x and y), C or 3 colors, Y rows, X columns, R rectangles
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from perceivers.checks import Checked, Fraction, Range, check_field
from perceivers.errors import PerceiversError

MAX_RECTANGLES = 3  # maximum number of erased rectangles
MIN_PART = 0.25  # minimum size of rectangles and patches as a fraction of their maximum
NEGLIGIBLE = 1e-3  # weights of bilinear sampling below this are rounding errors, not neighbors
BOUNDARY = 1.0  # if sampled and nearest flow differ by more pixels, there is a motion boundary between them
Degrees = Annotated[float, Range(least=0, most=180)]
Amount = Annotated[float, Range(least=0, below=math.inf)]


@dataclass
class FlowAugmentation(Checked):
    """Augmentation of training pairs at full strength. The paper gives no numbers; these are ours.

    Amounts are maxima; values are drawn uniformly on both sides of no change unless stated otherwise. Lengths are in
    pixels of the result.

    Attributes:
        brightness: change of the factor of the colors.
        contrast: change of the factor of the colors' differences from the pair's mean gray.
        saturation: change of the factor of the colors' differences from gray.
        hue: rotation of the hue, in degrees.
        asymmetric: probability that the second frame's colors change differently from the first's.
        scale: bounds of the binary logarithm of the scale; a crop that would leave the frames is scaled up to fit.
        stretch: binary logarithm of the ratio of the scales of width and height.
        rotation: in degrees.
        flip: probability of mirroring left and right.
        vertical_flip: probability of mirroring top and bottom.
        relative_scale: binary logarithm of the second frame's scale relative to the first's.
        relative_rotation: rotation of the second frame relative to the first, in degrees.
        relative_translation: shift of the second frame relative to the first, in each direction.
        erase: probability that up to 3 rectangles of the second frame get its mean color.
        erase_side: their maximum side.
        occlude: probability that a patch of another pair of the batch covers part of both frames.
        occlude_side: its approximate maximum length and width.
        occlude_motion: its maximum motion between the frames, in each direction.
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
        is_allowed = -math.inf < low <= high < math.inf
        check_field("augmentation.scale", self.scale, is_allowed, "two numbers, the smaller first")

    def scaled(self, strength: float) -> "FlowAugmentation":
        """Returns a copy with all amounts and probabilities multiplied by a number from 0 to 1."""
        low, high = self.scale
        others = {field: value * strength for field, value in vars(self).items() if field != "scale"}
        return replace(self, scale=(low * strength, high * strength), **others)


@torch.no_grad()
def augment_pairs(
    config: FlowAugmentation, size: tuple[int, int], frames_B2CYX: Tensor, flow_B2YX: Tensor, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Changes every pair at random and crops it, with torch's global random numbers.

    Args:
        config: the augmentation at full strength.
        size: height and width of the results.
        frames_B2CYX: [B, 2, 3, Y, X], at least as large as `size`; bytes, or floating point numbers in [0, 1].
        flow_B2YX: of the first frame, in pixels to the right and down, NaN where unknown.
        strength: factor of all amounts and probabilities; at 0, pairs are only cropped.

    Returns:
        The frames, float32 [B, 2, 3, *size] in [0, 1], and their flow, float32 [B, 2, *size], NaN where unknown.
        Flow is also known where the second frame does not show the content.

    Raises:
        PerceiversError: shapes do not match, frames are smaller than `size`, or the strength is not from 0 to 1.
    """
    check_field("strength", strength, 0 <= strength <= 1, "from 0 to 1")
    check_shapes(size, frames_B2CYX, flow_B2YX)
    config, count = config.scaled(strength), len(flow_B2YX)
    with torch.autocast(frames_B2CYX.device.type, enabled=False):
        frames_B2CYX = frames_B2CYX / 255 if frames_B2CYX.dtype == torch.uint8 else frames_B2CYX.float()
        first_B33 = sample_crops(sample_linear(config, count), frames_B2CYX.shape[-2:], size)
        relative_B33 = sample_relative_motions(config, count, size)
        flow_B2YX = warp_flow(flow_B2YX.float(), first_B33, relative_B33, size)
        maps = torch.stack([first_B33, relative_B33 @ first_B33], 1).flatten(0, 1)
        warped_B2CYX = warp(frames_B2CYX.flatten(0, 1), maps, size).unflatten(0, (-1, 2))
        if config.occlude:
            warped_B2CYX, flow_B2YX = occlude(config, warped_B2CYX, flow_B2YX, frames_B2CYX[:, 0], first_B33)
        warped_B2CYX = recolor(config, warped_B2CYX)
        return erase(config, warped_B2CYX) if config.erase else warped_B2CYX, flow_B2YX


def check_shapes(size: tuple[int, int], frames_B2CYX: Tensor, flow_B2YX: Tensor) -> None:
    """Raises a PerceiversError unless pairs can be cropped to this size."""
    check_field("size", size, min(size) >= 2, "height and width, at least 2 pixels")
    frames, flow = tuple(frames_B2CYX.shape), tuple(flow_B2YX.shape)
    height, width = frames[-2:]
    if frames != (*flow[:1], 2, 3, height, width) or flow != (*flow[:1], 2, height, width):
        expected = "[batch, 2 frames, 3 colors, height, width] and [batch, 2, height, width] are expected"
        raise PerceiversError(f"frames of shape {frames} and flow of shape {flow} were given: {expected}.")
    if height < size[0] or width < size[1]:
        sizes = f"frames of {height} x {width} pixels are smaller than the crop of {size[0]} x {size[1]}"
        raise PerceiversError(f"{sizes}: use larger frames or a smaller size.")


# random numbers and maps of points, float64 on the CPU


def uniform(low: float, high: float, *shape: int) -> Tensor:
    """Returns random numbers, float64."""
    return torch.rand(shape, dtype=torch.float64) * (high - low) + low


def bernoulli(count: int, probability: float) -> Tensor:
    """Returns bools [B], True with this probability."""
    return torch.rand(count) < probability


def width_height(size: Sequence[int]) -> Tensor:
    """Returns height and width in the order of points; [2], float64."""
    return torch.tensor([size[1], size[0]], dtype=torch.float64)


def rotate(degrees_B: Tensor) -> Tensor:
    """Returns rotations [B, 2, 2], clockwise to the eye, since y points down."""
    cos_B, sin_B = degrees_B.deg2rad().cos(), degrees_B.deg2rad().sin()
    return torch.stack([cos_B, -sin_B, sin_B, cos_B], 1).unflatten(1, (2, 2))


def affine(linear_B22: Tensor, source_B2: Tensor, target_B2: Tensor) -> Tensor:
    """Returns the maps [B, 3, 3] with these linear parts that take `source` to `target`."""
    map_B33 = torch.eye(3, dtype=linear_B22.dtype).repeat(len(linear_B22), 1, 1)
    map_B33[:, :2, :2] = linear_B22
    map_B33[:, :2, 2] = target_B2 - (linear_B22 @ source_B2[..., None])[..., 0]
    return map_B33


def translate(offset_B2: Tensor) -> Tensor:
    """Returns translations [B, 3, 3]."""
    identity_B22 = torch.eye(2, dtype=offset_B2.dtype).expand(len(offset_B2), 2, 2)
    return affine(identity_B22, torch.zeros_like(offset_B2), offset_B2)


def sample_linear(config: FlowAugmentation, count: int) -> Tensor:
    """Samples linear maps [B, 2, 2]: scale and stretch, then flips, then rotation."""
    scale_B, stretch_B = uniform(*config.scale, count), uniform(-config.stretch, config.stretch, count)
    scale_B2 = torch.stack([scale_B + stretch_B / 2, scale_B - stretch_B / 2], 1).exp2()
    flips_B2 = torch.stack([bernoulli(count, config.flip), bernoulli(count, config.vertical_flip)], 1)
    turn_B22 = rotate(uniform(-config.rotation, config.rotation, count))
    return turn_B22 * torch.where(flips_B2, -scale_B2, scale_B2)[:, None]


def sample_crops(linear_B22: Tensor, frame: Sequence[int], size: Sequence[int]) -> Tensor:
    """Samples maps [B, 3, 3] with these linear parts of a frame to a random part of it.

    Where no such part fits in the frame, the scale is enlarged until exactly one does.
    """
    half_B2 = linear_B22.inverse().abs() @ ((width_height(size) - 1) / 2)  # of the part's bounding box in the frame
    enlarged_B1 = (2 * half_B2 / (width_height(frame) - 1)).amax(1, keepdim=True).clamp_min(1)
    half_B2 = half_B2 / enlarged_B1
    free_B2 = (width_height(frame) - 1 - 2 * half_B2).clamp_min(0)
    # whole pixels, so that a mere shift does not blur
    corner_B2 = torch.minimum((torch.rand_like(free_B2) * (free_B2 + 1)).floor(), free_B2)
    return affine(linear_B22 * enlarged_B1[..., None], corner_B2 + half_B2, (width_height(size) - 1) / 2)


def sample_relative_motions(config: FlowAugmentation, count: int, size: Sequence[int]) -> Tensor:
    """Samples rotation and scale around the center, and translation; -> [B, 3, 3]."""
    scale_B = uniform(-config.relative_scale, config.relative_scale, count).exp2()
    turn_B22 = rotate(uniform(-config.relative_rotation, config.relative_rotation, count))
    shift_B2 = uniform(-config.relative_translation, config.relative_translation, 2, count).T
    center_B2 = ((width_height(size) - 1) / 2).expand(count, 2)
    return affine(turn_B22 * scale_B[:, None, None], center_B2, center_B2 + shift_B2)


# frames and flow, on any device


def transform(map_B33: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Maps points, x and y of shapes that expand to [B, 1, Y, X]; -> [B, 2, Y, X]."""
    # no matrix product: accelerators may round its float32
    x_part_B211, y_part_B211, offset_B211 = map_B33[:, :2].float().to(x.device)[..., None, None].unbind(2)
    return x_part_B211 * x + y_part_B211 * y + offset_B211


def pixel_coordinates(size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns all x [X] and all y [Y, 1]."""
    return torch.arange(size[1], device=device), torch.arange(size[0], device=device)[:, None]


def make_sampling_grid(map_B33: Tensor, frame: Sequence[int], size: Sequence[int], device: torch.device) -> Tensor:
    """Returns the positions in a frame of the pixels of its image, in units of `F.grid_sample`; [B, Y, X, 2]."""
    size_2 = width_height(frame)
    to_units_B33 = affine((2 / size_2).diag()[None], (size_2[None] - 1) / 2, torch.zeros(1, 2).double())
    return transform(to_units_B33 @ map_B33.inverse(), *pixel_coordinates(size, device)).movedim(1, -1)


def warp(images_BCYX: Tensor, map_B33: Tensor, size: Sequence[int]) -> Tensor:
    """Maps images bilinearly, continued by their border pixels; -> [B, C, *size]."""
    grid_BYX2 = make_sampling_grid(map_B33, images_BCYX.shape[-2:], size, images_BCYX.device)
    return F.grid_sample(images_BCYX, grid_BYX2, padding_mode="border", align_corners=False)


def warp_flow(flow_B2YX: Tensor, first_B33: Tensor, relative_B33: Tensor, size: Sequence[int]) -> Tensor:
    """Returns the flow [B, 2, *size] when the first frame is mapped by `first`, the second by `relative @ first`.

    A pixel p shows what was at x = first^-1 p and moved by f; it is now at relative first (x + f). That is
    relative (p + L f), with the linear part L of `first`.
    """
    flow_B2YX = sample_flow(flow_B2YX, make_sampling_grid(first_B33, flow_B2YX.shape[-2:], size, flow_B2YX.device))
    without_offset_33 = torch.tensor([1.0, 1, 0], dtype=torch.float64).diag()
    moved_B2YX = transform(relative_B33 @ first_B33 @ without_offset_33, *flow_B2YX.split(1, 1))
    identity_33 = torch.eye(3, dtype=torch.float64)
    return moved_B2YX + transform(relative_B33 - identity_33, *pixel_coordinates(size, flow_B2YX.device))


def sample_flow(flow_B2YX: Tensor, grid_BYX2: Tensor) -> Tensor:
    """Samples flow bilinearly where all neighbors are known, the nearest at motion boundaries; NaN elsewhere."""
    known_B1YX = flow_B2YX.isfinite().all(1, keepdim=True)
    values_B3YX = torch.cat([flow_B2YX.masked_fill(~known_B1YX, 0), known_B1YX], 1)
    sampled_B3YX = F.grid_sample(values_B3YX, grid_BYX2, padding_mode="zeros", align_corners=False)
    weight_B1YX = sampled_B3YX[:, 2:]
    mean_B2YX = sampled_B3YX[:, :2] / weight_B1YX
    nearest_B2YX = F.grid_sample(values_B3YX[:, :2], grid_BYX2, "nearest", align_corners=False)
    # nothing moves by the mean of both sides of a boundary
    boundary_B1YX = (mean_B2YX - nearest_B2YX).abs().amax(1, keepdim=True) > BOUNDARY
    mean_B2YX = torch.where(boundary_B1YX, nearest_B2YX, mean_B2YX)
    return mean_B2YX.masked_fill(weight_B1YX < 1 - NEGLIGIBLE, math.nan)


def occlude(
    config: FlowAugmentation, frames_B2CYX: Tensor, flow_B2YX: Tensor, images_BCYX: Tensor, first_B33: Tensor
) -> tuple[Tensor, Tensor]:
    """Moves a patch of another pair of the batch over some pairs, whose flow becomes the patch's where it is seen.

    The patches are cut from the images, the first frames before they were mapped by `first`.
    """
    count, size, device = len(flow_B2YX), flow_B2YX.shape[-2:], flow_B2YX.device
    motion_B2 = uniform(-config.occlude_motion, config.occlude_motion, 2, count).T
    moved_B33 = translate(motion_B2)
    other_B33 = moved_B33 @ first_B33.roll(1, 0)
    patches_B2CYX = torch.stack([frames_B2CYX[:, 0].roll(1, 0), warp(images_BCYX.roll(1, 0), other_B33, size)], 1)
    to_circle_B33, wave_2B = sample_shapes(config.occlude_side, count, size)
    is_occluded_B111 = bernoulli(count, config.occlude)[:, None, None, None].to(device)
    first_B1YX = rasterize(to_circle_B33, wave_2B, size, device) & is_occluded_B111
    second_B1YX = rasterize(to_circle_B33 @ moved_B33.inverse(), wave_2B, size, device) & is_occluded_B111
    frames_B2CYX = torch.where(torch.stack([first_B1YX, second_B1YX], 1), patches_B2CYX, frames_B2CYX)
    return frames_B2CYX, torch.where(first_B1YX, motion_B2[..., None, None].float().to(device), flow_B2YX)


def sample_shapes(side: float, count: int, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Samples maps [B, 3, 3] of ellipses anywhere in a frame to the unit circle, and waves that bend them there.

    The waves [2, B] are amplitudes and phases.
    """
    radius_B2 = uniform(MIN_PART, 1, 2, count).T * side / 2
    linear_B22 = rotate(uniform(0, 360, count)) * radius_B2.clamp_min(1e-3)[:, None]
    center_B2 = uniform(0, 1, count, 2) * width_height(size) - 0.5
    wave_2B = torch.stack([uniform(0, 0.4, count), uniform(0, 2 * math.pi, count)])
    return affine(linear_B22, torch.zeros_like(center_B2), center_B2).inverse(), wave_2B


def rasterize(to_circle_B33: Tensor, wave_2B: Tensor, size: Sequence[int], device: torch.device) -> Tensor:
    """Returns which pixels are inside of such a shape; bool [B, 1, Y, X]."""
    x_B1YX, y_B1YX = transform(to_circle_B33, *pixel_coordinates(size, device)).split(1, 1)
    amplitude_B111, phase_B111 = wave_2B.float().to(device)[..., None, None, None]
    return (x_B1YX + amplitude_B111 * (3 * y_B1YX + phase_B111).sin()) ** 2 + y_B1YX**2 < 1


def recolor(config: FlowAugmentation, frames_B2CYX: Tensor) -> Tensor:
    """Changes brightness, contrast, saturation and hue, of both frames in the same way or of each in its own."""
    count, device = len(frames_B2CYX), frames_B2CYX.device
    amounts_4 = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue], dtype=torch.float64)
    amount_B24 = uniform(-1, 1, count, 2, 4) * amounts_4
    amount_B24[:, 1] = torch.where(bernoulli(count, config.asymmetric)[:, None], amount_B24[:, 1], amount_B24[:, 0])
    brightness_B2, contrast_B2, saturation_B2 = (1 + amount_B24[..., :3]).unbind(-1)
    linear_B233 = (brightness_B2 * contrast_B2)[..., None, None] * color_matrices(saturation_B2, amount_B24[..., 3])
    gray_B111 = frames_B2CYX.mean((1, 2, 3, 4))[:, None, None, None]
    offset_B211 = (brightness_B2 * (1 - contrast_B2)).float().to(device)[..., None, None] * gray_B111
    colors_B2CP = linear_B233.float().to(device) @ frames_B2CYX.flatten(3)
    return colors_B2CP.add_(offset_B211).clamp_(0, 1).view_as(frames_B2CYX)


def color_matrices(saturation: Tensor, hue: Tensor) -> Tensor:
    """Returns matrices [..., 3, 3] that change colors by factors and degrees [...], but not their gray.

    The gray of a color is the mean of red, green and blue; changing the hue rotates colors around the axis of grays.
    """
    gray_33 = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    across_33 = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
    cos, sin = hue.deg2rad().cos()[..., None, None], hue.deg2rad().sin()[..., None, None]
    turned = cos * (torch.eye(3, dtype=torch.float64) - gray_33) + sin * across_33
    return gray_33 + saturation[..., None, None] * turned


def erase(config: FlowAugmentation, frames_B2CYX: Tensor) -> Tensor:
    """Fills rectangles of second frames with their mean color; the flow of the hidden content stays known."""
    second_BCYX = frames_B2CYX[:, 1]
    count, device = len(second_BCYX), second_BCYX.device
    rows_BRY, columns_BRX = (sample_intervals(config.erase_side, count, size) for size in second_BCYX.shape[-2:])
    number_B = torch.randint(1, MAX_RECTANGLES + 1, (count,)) * bernoulli(count, config.erase)
    rows_BRY &= (torch.arange(MAX_RECTANGLES) < number_B[:, None])[..., None]
    erased_BYX = (rows_BRY.to(device)[..., None] & columns_BRX.to(device)[..., None, :]).any(1)
    second_BCYX = torch.where(erased_BYX[:, None], second_BCYX.mean((2, 3), keepdim=True), second_BCYX)
    return torch.stack([frames_B2CYX[:, 0], second_BCYX], 1)


def sample_intervals(side: float, count: int, size: int) -> Tensor:
    """Samples intervals of at most this length in `size` pixels, cut at the ends; bool [B, R, size]."""
    half_BR1 = side / 2 * uniform(MIN_PART, 1, count, MAX_RECTANGLES, 1)
    center_BR1 = uniform(0, size, count, MAX_RECTANGLES, 1)
    return (torch.arange(size) + 0.5 - center_BR1).abs() < half_BR1
