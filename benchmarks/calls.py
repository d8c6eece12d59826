"""What both sides are called with, and a training step of each.

`theirs` and `ours` return the call of a side on the same inputs; calls return the same answers, so that they can be
compared: logits, flow in pixels, colors and samples, or, of a training step, the gradient of the latents.

Shape suffixes: B batch, M tokens, P points
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import perceivers
from benchmarks.models import DTYPES, MODELS, crop_of
from benchmarks.rows import Row
from perceivers.adapters.image import IMAGENET_MEAN, IMAGENET_STD

MASK_TOKEN, BYTES = 3, (6, 262)
MASKED_PART = 0.15
FLOW_UNIT = 20
"""Pixels of flow for a 1 of what the flow model of `transformers` returns."""
MEASURED_PARTS = 3
"""How many of the parts of a clip `transformers` is measured on; the others are taken to last as long."""


class Work(NamedTuple):
    """What is timed: the call, something smaller to warm up with, and how many such calls make up the whole work."""

    call: Callable[[], Tensor]
    warm: Callable[[], object]
    times: float = 1.0


@dataclass(frozen=True)
class Place:
    """Where and how a work is done: device, precision, sizes of the data."""

    device: str
    dtype: torch.dtype
    size: tuple[int, ...]
    parts: int

    @classmethod
    def of(cls, row: Row, device: str, tiny: bool) -> "Place":
        """The place of a row."""
        published = MODELS[row.model]
        size = published.tiny_size if tiny else published.size
        if row.model == "flow" and row.mode == "train":
            size = crop_of(size)
        return cls(device, DTYPES[row.dtype], size, published.tiny_parts if tiny else published.parts)


def prepare(row: Row, side: str, model: nn.Module, device: str, tiny: bool) -> Work:
    """The work of a row on one side ("theirs" or "ours")."""
    makers = {"language": language, "flow": flow, "clip": clip}
    maker = makers.get(row.model, images)
    place = Place.of(row, device, tiny)
    torch.manual_seed(1)
    work = maker(row, side, model, place)
    if row.mode == "forward":
        return work
    # Each part of a warm-up of a training step is a training step too.
    return Work(step(model, latents(side, model), work.call), step(model, latents(side, model), work.warm))


def latents(side: str, model: nn.Module) -> Tensor:
    """The learned latents, whose gradient sums up a training step: everything after them has gone into it."""
    return model.get_parameter("encoder.latents" if side == "ours" else "perceiver.embeddings.latents")


def step(model: nn.Module, watched: Tensor, loss: Callable[[], Any]) -> Callable[[], Tensor]:
    """A training step without the optimizer's update, which is the same on both sides."""

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss().backward()
        assert watched.grad is not None
        return watched.grad

    return run


def tokens_of(row: Row, length: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Random texts [B, M], which of their tokens are real (None: all), and the points asked for (None: all)."""
    lengths = torch.tensor(row.lengths or [length] * row.batch)
    token_BM = torch.randint(*BYTES, (len(lengths), int(lengths.max())))
    mask_BM = torch.arange(token_BM.shape[1]) < lengths[:, None]
    points = None
    if row.asked:
        start = token_BM.shape[1] - row.asked - 5
        points = torch.arange(start, start + row.asked)
        token_BM[:, points] = MASK_TOKEN
    return token_BM.masked_fill(~mask_BM, 0), None if mask_BM.all() else mask_BM, points


def language(row: Row, side: str, model: nn.Module, place: Place) -> Work:
    """Logits of the tokens asked for, or the cross-entropy of 15% of the tokens that are masked."""
    (length,) = place.size
    token_BM, mask_BM, points = tokens_of(row, length)
    if row.mode == "train":
        return masked_language(token_BM, side, model, place)
    real = None if mask_BM is None else mask_BM.to(place.device)
    places = None if mask_BM is None else mask_BM.flatten().nonzero()[:, 0].to(place.device)
    token_BM = token_BM.to(place.device)
    small = replace(row, batch=1, lengths=row.lengths[:1], warm="call") if row.warm == "part" else None
    warm = None if small is None else language(small, side, model, place).call
    if side == "ours":
        data = token_BM if real is None else perceivers.InputArray(token_BM, real)
        outputs = None if points is None else {"text": points.to(place.device)}

        def ours() -> Tensor:
            logits: Tensor = model({"text": data}, outputs)["text"]
            return logits if places is None else logits.flatten(0, 1)[places]

        return Work(ours, warm or ours)
    count = token_BM.shape[1]
    padded = F.pad(token_BM, (0, length - count))  # it reads texts of 2,048 tokens only
    attended = None
    if mask_BM is not None or count < length:
        rows = torch.ones_like(token_BM, dtype=torch.bool) if real is None else real
        attended = F.pad(rows, (0, length - count)).long()

    def theirs() -> Tensor:
        logits: Tensor = model(inputs=padded, attention_mask=attended).logits[:, :count]
        if points is not None:
            return logits[:, points]
        return logits if places is None else logits.flatten(0, 1)[places]

    return Work(theirs, warm or theirs)


def masked_language(token_BM: Tensor, side: str, model: nn.Module, place: Place) -> Work:
    """Cross-entropy of 15% of the tokens, in which they are masked; ours decodes only those."""
    batch, length = token_BM.shape
    point_BP = torch.rand(batch, length).argsort(1)[:, : max(1, int(MASKED_PART * length))]
    target_BP = token_BM.gather(1, point_BP).to(place.device)
    label_BM = torch.full_like(token_BM, -100).scatter(1, point_BP, token_BM.gather(1, point_BP)).to(place.device)
    read_BM = token_BM.scatter(1, point_BP, MASK_TOKEN).to(place.device)
    point_BP = point_BP.to(place.device)

    def ours(examples: int) -> Callable[[], Tensor]:
        def loss() -> Tensor:
            logits = model({"text": read_BM[:examples]}, {"text": point_BP[:examples]})["text"]
            return F.cross_entropy(logits.flatten(0, 1).float(), target_BP[:examples].flatten())

        return loss

    def theirs(examples: int) -> Callable[[], Tensor]:
        return lambda: model(inputs=read_BM[:examples], labels=label_BM[:examples]).loss

    make = ours if side == "ours" else theirs
    return Work(make(batch), make(1))


def images(row: Row, side: str, model: nn.Module, place: Place) -> Work:
    """Logits of images, or their cross-entropy."""
    image_B = torch.rand(row.batch, 3, *place.size)
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD])[..., None, None]
    if side == "theirs":  # ours does this itself, within what is timed
        image_B = ((image_B - mean) / std).to(place.dtype)
    image_B = image_B.to(place.device)
    label_B = torch.arange(row.batch).to(place.device)

    def ours(examples: int) -> Callable[[], Tensor]:
        return lambda: model({"image": image_B[:examples]})["label"]

    def theirs(examples: int) -> Callable[[], Tensor]:
        return lambda: model(inputs=image_B[:examples]).logits

    def trained(make: Callable[[int], Callable[[], Tensor]], examples: int) -> Callable[[], Tensor]:
        answer = make(examples)
        if row.mode == "forward":
            return answer
        classes = 1000 if place.size == (224, 224) else 5
        return lambda: F.cross_entropy(answer().float(), label_B[:examples] % classes)

    make = ours if side == "ours" else theirs
    return Work(trained(make, row.batch), trained(make, 1 if row.warm == "part" else row.batch))


def patches(frames: Tensor) -> Tensor:
    """What the flow model of `transformers` takes: at every pixel the 3 x 3 around it, of frames in [-1, 1]."""
    padded = F.pad(2 * frames - 1, (1, 1, 1, 1))
    height, width = frames.shape[-2:]
    return torch.cat([padded[..., y : y + height, x : x + width] for y in range(3) for x in range(3)], 2)


def flow(row: Row, side: str, model: nn.Module, place: Place) -> Work:
    """Flow in pixels [B, 2, height, width], or its mean end-point error to a random one."""
    frames = torch.rand(row.batch, 2, 3, *place.size)
    target = FLOW_UNIT * torch.randn(row.batch, 2, *place.size).to(place.device)
    small = tuple(side // 4 for side in place.size)
    crop = frames[:1, ..., : small[0], : small[1]]
    if side == "theirs":  # ours cuts the patches itself, within what is timed
        frames, crop = patches(frames).to(place.dtype), patches(crop).to(place.dtype)
    frames, crop = frames.to(place.device), crop.to(place.device)

    def ours(part: bool) -> Tensor:
        return model({"frames": crop if part else frames})["flow"]

    def theirs(part: bool) -> Tensor:
        model.perceiver.decoder.output_image_shape = small if part else place.size  # it takes no other size than this
        answer: Tensor = model(inputs=crop if part else frames).logits
        return FLOW_UNIT * answer.movedim(-1, 1)

    def call(part: bool) -> Tensor:
        answer = (ours if side == "ours" else theirs)(part)
        if row.mode == "forward":
            return answer
        wanted = target[: answer.shape[0], :, : answer.shape[2], : answer.shape[3]]
        return (answer.float() - wanted).norm(dim=1).mean()

    return Work(lambda: call(False), lambda: call(row.warm == "part"))


def clip(row: Row, side: str, model: nn.Module, place: Place) -> Work:
    """Colors and samples of a clip whose label is masked, of the parts on which `transformers` is measured."""
    frames, side_length = place.size
    pixels = frames * side_length**2
    video = torch.rand(row.batch, frames, 3, side_length, side_length)
    samples, patch, classes = (30720, 16, 700) if side_length == 224 else (256, 16, 5)
    audio = torch.rand(row.batch, samples) - 0.5
    of_video, of_audio = pixels // place.parts, samples // patch // place.parts
    measured = range(1, 1 + MEASURED_PARTS)  # part 0 is the warm-up

    if side == "ours":
        label = torch.zeros(row.batch, dtype=torch.long, device=place.device)
        data = {"video": video.to(place.device), "audio": audio.to(place.device), "label": label}
        masked = {"label": torch.ones(1, 1, dtype=torch.bool, device=place.device)}
        first = {
            "video": torch.arange(of_video, device=place.device),
            "audio": torch.arange(of_audio, device=place.device),
        }

        def whole() -> Tensor:
            answers = model(data, hidden=masked)
            colors = answers["video"].movedim(2, -1).flatten(1, 3)[:, of_video : (1 + MEASURED_PARTS) * of_video]
            sound = answers["audio"][:, of_audio * patch : (1 + MEASURED_PARTS) * of_audio * patch]
            return torch.cat([colors.flatten(1), sound], 1)

        return Work(whole, lambda: model(data, first, hidden=masked) if row.warm == "part" else whole())

    inputs = {
        "image": video.to(place.device, place.dtype),
        "audio": audio[..., None].to(place.device, place.dtype),
        "label": torch.zeros(row.batch, classes, device=place.device, dtype=place.dtype),
    }

    def decode(part: int) -> dict[str, Any]:
        points = {
            "image": torch.arange(part * of_video, (part + 1) * of_video, device=place.device),
            "audio": torch.arange(part * of_audio, (part + 1) * of_audio, device=place.device),
            "label": None,
        }
        return model(inputs=inputs, subsampled_output_points=points).logits

    def parts() -> Tensor:
        answers = [decode(part) for part in measured]
        colors = torch.cat([answer["image"] for answer in answers], 1).flatten(1)
        return torch.cat([colors, *[answer["audio"] for answer in answers]], 1)

    return Work(parts, lambda: decode(0), place.parts / MEASURED_PARTS)
