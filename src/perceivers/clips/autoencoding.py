"""Training of autoencoders of clips: video, sound and label (section 4.3; section 5 of the appendix).

configs/autoencoding/paper_*.yaml are the recipes of the paper.

Shape suffixes: B batch, P output indices, S samples, T frames, C colors, Y rows, X columns
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from kornia import augmentation as K
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from perceivers.checks import Checked, Count, Fraction, Range, check_field
from perceivers.clips import commands
from perceivers.clips.classify import ClipEncoder
from perceivers.clips.data import ClipData, ClipDataset, LabeledClips, evenly_spaced
from perceivers.clips.metrics import ReconstructionErrors
from perceivers.clips.model import FRAME_RATE, AutoencoderConfig, get_inputs, get_window
from perceivers.clips.reconstruct import compression, hstack_frames, is_autoencoder
from perceivers.data.labeled import match_classes
from perceivers.data.video_writer import write_sound, write_video
from perceivers.inference import class_names
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.training import learner
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization

AudioLoss = Literal["absolute", "relative"]

LEAST_POWER = 1e-5
"""Added to the power of samples in [-1, 1] by the relative error: -50 dB."""

LOGGED_CLIPS = 4
"""Number of held-out windows whose reconstructions are logged."""


@dataclass
class Weights(Checked):
    """Weights of the modalities in the loss (section 5). A label weight of 1 improves classes, at the cost of video.

    Attributes:
        video: of the mean absolute error of colors in [0, 1].
        audio: of the error of samples in [-1, 1], see `audio_loss`.
        label: of the cross-entropy.
    """

    section = "weights."

    video: Annotated[float, Range(least=0)] = 0.03
    audio: Annotated[float, Range(least=0)] = 1.0
    label: Annotated[float, Range(least=0)] = 0.0001


@dataclass
class ClipAugmentation(Checked):
    """Augmentation of the video of training clips, the same for all frames of a clip.

    Attributes:
        area: range of the fraction of the area of a frame that is cropped at random and resized; by default all of it.
        flip: mirror half of the clips.
    """

    section = "augmentation."

    area: tuple[float, float] | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.area or (1.0, 1.0)
        is_allowed = 0 < low <= high <= 1
        check_field("augmentation.area", self.area, is_allowed, "two fractions above 0 and at most 1, in order")

    def build(self, size: tuple[int, int]) -> nn.Module:
        """Returns the augmentation of videos [B, T, C, Y, X] in [0, 1] of this height and width."""
        layers = [K.RandomResizedCrop(size, scale=self.area)] if self.area is not None else []
        layers += [K.RandomHorizontalFlip()] if self.flip else []
        return K.VideoSequential(*layers, data_format="BTCHW", same_on_frame=True) if layers else nn.Identity()


@dataclass(kw_only=True)
class Autoencoding(Experiment):
    """A training run of an autoencoder of clips.

    Attributes:
        model: `preset`, one of `perceivers models`, or `init`, a saved model, and the fields that differ from it;
            `samples_per_frame: null` leaves out the sound, `classes: null` the label. The data decides the number and
            names of the classes.
        data: the clips.
        weights: of the modalities in the loss.
        augmentation: of training clips.
        audio_loss: "absolute", the mean absolute error of samples, as in the paper; or "relative", the squared error
            as a fraction of the energy of each clip, which is 1 for silence: loud and quiet clips count equally.
        points: number of random pixels, and of random audio patches, decoded per clip in training; all of them if
            there are no more.
        label_masking: fraction of the training clips whose label is hidden; in evaluation it always is.
    """

    decided_by_data = ("classes", "class_names")
    evaluate = staticmethod(commands.evaluate)
    predictor = ClipEncoder
    command = "autoencode"

    model: AutoencoderConfig
    data: ClipData = field(default_factory=ClipData)
    weights: Weights = field(default_factory=Weights)
    augmentation: ClipAugmentation = field(default_factory=ClipAugmentation)
    audio_loss: AudioLoss = "absolute"
    points: Count = 512
    label_masking: Fraction = 0.5

    def prepare(self) -> Setup:
        window = get_window(self.build_on_meta())
        config, has_label = self.model, self.model.classes is not None
        splits = self.data.open(has_label)
        if has_label:
            names, multilabel = splits.training.classes, splits.training.multilabel
            check_field("data.training_list", self.data.training_list, not multilabel, "a list with one class per clip")
            config = replace(config, **self.settle(classes=len(names), class_names=names))
        return Setup(config.build, *self.data.datasets(splits, window))

    def learner(self, model: PerceiverIO) -> "ClipAutoencoder":
        folder = Path(self.training.output, "reconstructions")
        settings = (self.optimization, self.weights, self.augmentation, self.audio_loss, self.points)
        return ClipAutoencoder(model, *settings, self.label_masking, folder)

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return isinstance(model, PerceiverIO) and is_autoencoder(model)


class ClipAutoencoder(Learner):
    """Trains with the errors of random pixels and audio patches, and the cross-entropy of the label.

    The arguments are the fields of `Autoencoding`, and a folder to write some held-out windows to, with their
    reconstructions; by default none.
    """

    def __init__(
        self,
        model: PerceiverIO,
        optimization: Optimization | None = None,
        weights: Weights | None = None,
        augmentation: ClipAugmentation | None = None,
        audio_loss: AudioLoss = "absolute",
        points: int = 512,
        label_masking: float = 0.5,
        reconstructions: Path | None = None,
    ) -> None:
        super().__init__(model, optimization)
        self.weights, self.audio_loss = weights or Weights(), audio_loss
        self.augment = (augmentation or ClipAugmentation()).build(get_window(model).size)
        self.points, self.label_masking, self.reconstructions = points, label_masking, reconstructions
        self.monitor = ("val_video_psnr" if "video" in model.outputs else "val_audio_snr", "max")
        self.metrics = ReconstructionErrors(model.outputs)
        self.logged_clips = 0

    def on_fit_start(self) -> None:
        if self.trainer.is_global_zero:
            counted = "as the paper counts" if "video" in self.model.inputs else "samples to numbers"
            print(f"Compression {compression(self.model):.3g}x, {counted}.", flush=True)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        if "video" in batch:
            batch = batch | {"video": self.augment(batch["video"].float() / 255)}
        hidden_B1 = torch.rand(len(batch["label"]), 1, device=self.device) < self.label_masking
        indices = self.draw_indices(batch)
        predicted = self.model.decode(self.encode(batch, hidden_B1), indices)
        total = torch.zeros((), device=self.device)
        for name, loss in self.compute_losses(batch, predicted, indices).items():
            self.log(f"train_{name}", loss, prog_bar=name == self.monitor[0].split("_")[1])
            total = total + getattr(self.weights, name) * loss
        return total

    def encode(self, batch: Mapping[str, Tensor], hidden_B1: Tensor) -> Any:
        """Encodes clips with the labels of some hidden."""
        data: dict[str, Any] = dict(get_inputs(self.model, batch))
        if "label" not in self.model.inputs:
            return self.model.encode(data)
        return self.model.encode(data | {"label": batch["label"]}, {"label": hidden_B1})

    def draw_indices(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """Draws the pixels and audio patches to decode, [B, P]; None for all of them, and for the label."""
        indices: dict[str, Tensor | None] = dict.fromkeys(self.model.outputs)
        size = (len(batch["label"]), self.points)
        for name, output in self.model.outputs.items():
            positions = getattr(output, "positions", None)
            if positions is not None and (count := math.prod(positions.grid)) > self.points:
                indices[name] = torch.randint(count, size, device=self.device)
        return indices

    def compute_losses(
        self, batch: Mapping[str, Tensor], predicted: Mapping[str, Tensor], indices: Mapping[str, Tensor | None]
    ) -> dict[str, Tensor]:
        """Returns the loss of each output, decoded at `indices`, over the real parts of clips, bytes or in [0, 1]."""
        losses = {}
        for name, output in predicted.items():
            if name == "label":
                losses[name] = F.cross_entropy(output.float(), batch["label"])
                continue
            target, mask, index_BP = batch[name], batch[f"{name}_mask"], indices[name]
            if index_BP is not None and name == "video":
                mask = mask.gather(1, index_BP // target[0, 0, 0].numel())
                target = gather_pixels(target, index_BP)
            elif index_BP is not None:
                target, mask = (gather_patches(each, output.shape[-1], index_BP) for each in (target, mask))
            target = target / 255 if target.dtype == torch.uint8 else target
            is_relative = name == "audio" and self.audio_loss == "relative"
            losses[name] = (relative_error if is_relative else masked_error)(output, target, mask)
        return losses

    def on_validation_epoch_start(self) -> None:
        self.logged_clips = 0

    def evaluate_batch(self, batch: dict[str, Any]) -> None:
        encoded = self.encode(batch, torch.ones(len(batch["label"]), 1, dtype=torch.bool, device=self.device))
        predicted = {name: output.float() for name, output in self.model.decode(encoded).items()}
        self.metrics.update(predicted, batch)
        if self.reconstructions is not None:
            self.log_clips(self.reconstructions, batch, predicted)

    def log_clips(self, folder: Path, original: Mapping[str, Tensor], decoded: Mapping[str, Tensor]) -> None:
        """Writes clips beside their reconstructions, with the reconstructed sound, and logs some of their frames.

        Without video, writes the sound followed by its reconstruction.
        """
        rate = get_window(self.model).sample_rate
        for clip in range(len(original["label"])):
            if self.logged_clips == LOGGED_CLIPS or not self.trainer.is_global_zero:
                return
            folder.mkdir(exist_ok=True)
            file = folder / str(self.logged_clips)
            self.logged_clips += 1
            if "video" not in decoded:
                both_S = torch.cat([original["audio"][clip], decoded["audio"][clip]])
                write_sound(file.with_suffix(".wav"), both_S, rate)
                continue
            audio_S = decoded["audio"][clip].cpu() if "audio" in decoded else None
            both_TCYX = hstack_frames(original["video"][clip].cpu() / 255, decoded["video"][clip].cpu().clamp(0, 1))
            write_video(file.with_suffix(".mp4"), both_TCYX, FRAME_RATE, audio_S, rate)
            for logger in self.loggers:
                if isinstance(logger, TensorBoardLogger):
                    frames_CYX = both_TCYX[:: max(1, len(both_TCYX) // 4)].transpose(0, 1).flatten(1, 2)
                    logger.experiment.add_image(f"held_out_{file.name}", frames_CYX, self.global_step)


def gather_pixels(video_BTCYX: Tensor, index_BP: Tensor) -> Tensor:
    """Returns the colors of some pixels, [B, P, C]."""
    _, frames, _, height, width = video_BTCYX.shape
    frame_BP, row_BP, column_BP = torch.unravel_index(index_BP, (frames, height, width))
    clip_B1 = torch.arange(len(index_BP), device=index_BP.device)[:, None]
    return video_BTCYX[clip_B1, frame_BP, :, row_BP, column_BP]


def gather_patches(sound_BS: Tensor, patch: int, index_BP: Tensor) -> Tensor:
    """Returns the samples of some patches, [B, P, patch]."""
    return sound_BS.unflatten(1, (-1, patch)).gather(1, index_BP[..., None].expand(-1, -1, patch))


def masked_error(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean absolute error where a mask, which may lack the last dimensions, is True."""
    mask = mask.view(*mask.shape, *[1] * (predicted.dim() - mask.dim())).expand_as(predicted)
    return ((predicted.float() - target).abs() * mask).sum() / mask.sum().clamp_min(1)


def relative_error(predicted_BS: Tensor, target_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """Returns the squared error where a mask is True as a fraction of the energy of each clip, averaged over clips.

    Arrays are flat, or [B, P, patch]. Clips quieter than -50 dB count as if they had that level.
    """
    predicted_BS, target_BS, mask_BS = (x.flatten(1) for x in (predicted_BS.float(), target_BS, mask_BS))
    error_B = ((predicted_BS - target_BS).square() * mask_BS).sum(1)
    energy_B = ((target_BS.square() + LEAST_POWER) * mask_BS).sum(1)
    is_real_B = mask_BS.any(1)
    return (error_B / energy_B.where(is_real_B, 1)).sum() / is_real_B.sum().clamp_min(1)


def evaluate(model: PerceiverIO, clips: LabeledClips, windows: int = 1, batch_size: int = 1) -> dict[str, float]:
    """Returns `ReconstructionErrors` on evenly spaced windows of clips, whose classes are found by name."""
    if "label" in model.outputs:
        clips = match_classes(clips, class_names(model))
    samples = ClipDataset(clips, get_window(model), evenly_spaced(windows))
    return learner.evaluate(ClipAutoencoder(model), samples, batch_size)
