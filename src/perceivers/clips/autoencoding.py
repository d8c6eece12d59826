"""Autoencoding of clips: video, sound and label through a few hundred latents (section 4.3; section 5 of the appendix).

configs/autoencoding/paper_*.yaml are the paper's recipes.

Shape suffixes: B batch, P points, S samples, T frames, C colors, Y rows, X columns
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from kornia import augmentation as K
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from perceivers.checks import Checked, Count, Fraction, Range, check_field
from perceivers.clips import commands
from perceivers.clips.data import ClipData, ClipDataset, LabelledClips, evenly
from perceivers.clips.metrics import ReconstructionErrors
from perceivers.clips.model import FRAME_RATE, AutoencoderConfig
from perceivers.clips.model_window import masked_inputs, window_of
from perceivers.clips.reconstruct import compression, is_autoencoder, side_by_side
from perceivers.data.labelled_files import check_classes
from perceivers.data.video import write_video
from perceivers.inference import class_names
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.training import learner
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization

SHOWN = 4
"""So many held-out windows are reconstructed in the log."""


@dataclass
class Weights(Checked):
    """What each modality counts in the loss (section 5). A label of 1 makes a better classifier, of worse pictures.

    Attributes:
        video, audio: of the mean absolute error of colors in [0, 1] and of samples in [-1, 1].
        label: of the cross-entropy.
    """

    section = "weights."

    video: Annotated[float, Range(least=0)] = 0.03
    audio: Annotated[float, Range(least=0)] = 1.0
    label: Annotated[float, Range(least=0)] = 0.0001


@dataclass
class ClipAugmentation(Checked):
    """How training clips are changed, all frames of one alike. The sound stays as it is.

    Attributes:
        area: bounds of the part of a frame's area that is cut out at random and resized; all of it, if not given.
        flip: mirror half of the clips.
    """

    section = "augmentation."

    area: tuple[float, float] | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.area or (1.0, 1.0)
        check_field(
            "augmentation.area", self.area, 0 < low <= high <= 1, "two parts, each above 0 and at most 1, in order"
        )

    def build(self, size: tuple[int, int]) -> nn.Module:
        """What changes videos [B, T, C, Y, X] in [0, 1], with height and width `size`."""
        layers: list[nn.Module] = []
        if self.area is not None:
            layers.append(K.RandomResizedCrop(size, scale=self.area))
        if self.flip:
            layers.append(K.RandomHorizontalFlip())
        if not layers:
            return nn.Identity()
        changed: nn.Module = K.VideoSequential(*layers, data_format="BTCHW", same_on_frame=True)
        return changed


@dataclass(kw_only=True)
class Autoencoding(Experiment):
    """A training run of autoencoding.

    Attributes:
        model: `preset`, one of `perceivers models`, and whichever of its fields are to be others:
            `samples_per_frame: null` leaves the sound out, `classes: null` the label; number and names of the classes
            come from the data otherwise.
        data: the clips.
        weights: what each modality counts.
        augmentation: how training clips are changed.
        points: so many pixels, and patches of sound, of each clip are decoded in training, drawn at random.
        label_masking: part of the training clips whose label the model does not see; in evaluation it never does.
    """

    decided_by_data = ("classes", "class_names")
    evaluate = staticmethod(commands.evaluate_autoencoder)

    model: AutoencoderConfig
    data: ClipData = field(default_factory=ClipData)
    weights: Weights = field(default_factory=Weights)
    augmentation: ClipAugmentation = field(default_factory=ClipAugmentation)
    points: Count = 512
    label_masking: Fraction = 0.5

    def prepare(self) -> Setup:
        window = window_of(self.build_on_meta())
        config, labelled = self.model, self.model.classes is not None
        splits = self.data.open(labelled)
        if labelled:
            names, multilabel = splits.training.classes, splits.training.multilabel
            check_field("data.training_list", self.data.training_list, not multilabel, "a list with one class a clip")
            config = replace(config, **self.settle(classes=len(names), class_names=names))
        return Setup(config.build, *self.data.datasets(splits, window))

    def learner(self, model: PerceiverIO) -> "ClipAutoencoder":
        folder = Path(self.training.output, "reconstructions")
        settings = (self.optimization, self.weights, self.augmentation, self.points, self.label_masking)
        return ClipAutoencoder(model, *settings, folder)

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return isinstance(model, PerceiverIO) and is_autoencoder(model)


class ClipAutoencoder(Learner):
    """Absolute errors of some pixels and patches of sound, and cross-entropy of the label.

    Args:
        model: the model.
        optimization: how weights are updated.
        weights, augmentation, points, label_masking: as in `Autoencoding`.
        reconstructions: folder to which some held-out windows are written, beside what the model makes of them; none
            are, if not given.
    """

    monitor = ("test_video_psnr", "max")

    def __init__(
        self,
        model: PerceiverIO,
        optimization: Optimization | None = None,
        weights: Weights | None = None,
        augmentation: ClipAugmentation | None = None,
        points: int = 512,
        label_masking: float = 0.5,
        reconstructions: Path | None = None,
    ) -> None:
        super().__init__(model, optimization)
        self.weights = weights or Weights()
        self.augment = (augmentation or ClipAugmentation()).build(window_of(model).size)
        self.points, self.label_masking, self.reconstructions = points, label_masking, reconstructions
        self.metrics = ReconstructionErrors(model.outputs)
        self.reconstructed = 0

    def on_fit_start(self) -> None:
        if self.trainer.is_global_zero:
            print(f"Compression {compression(self.model):.0f}x, as the paper counts.", flush=True)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        batch = batch | {"video": self.augment(batch["video"].float() / 255)}
        hidden_B1 = torch.rand(len(batch["label"]), 1, device=self.device) < self.label_masking
        points = self.draw(batch)
        answers = self.model.decode(self.encode(batch, hidden_B1), points)
        total = torch.zeros((), device=self.device)
        for name, loss in self.losses(batch, answers, points).items():
            self.log(f"train_{name}", loss, prog_bar=name == "video")
            total = total + getattr(self.weights, name) * loss
        return total

    def encode(self, batch: Mapping[str, Tensor], hidden_B1: Tensor) -> Any:
        """Latents of clips, some of whose labels are hidden."""
        data: dict[str, Any] = dict(masked_inputs(self.model, batch))
        if "label" not in self.model.inputs:
            return self.model.encode(data)
        return self.model.encode(data | {"label": batch["label"]}, {"label": hidden_B1})

    def draw(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
        """Which outputs of each clip are decoded: pixels and patches of sound at random, [B, P]; the label."""
        points: dict[str, Tensor | None] = {}
        size = (len(batch["label"]), self.points)
        for name, output in self.model.outputs.items():
            positions = getattr(output, "positions", None)
            points[name] = positions and torch.randint(math.prod(positions.grid), size, device=self.device)
        return points

    def losses(
        self, batch: Mapping[str, Tensor], answers: Mapping[str, Tensor], points: Mapping[str, Tensor | None]
    ) -> dict[str, Tensor]:
        """The loss of each output, over what the clips have of it.

        Args:
            batch: as it comes; video may be bytes, or in [0, 1].
            answers: what was decoded.
            points: where, as in `PerceiverIO.decode`.
        """
        found = {}
        for name, answer in answers.items():
            asked = points[name]
            if name == "label":
                found[name] = F.cross_entropy(answer.float(), batch["label"])
            elif name == "video":
                wanted = batch["video"] if asked is None else pixels_at(batch["video"], asked)
                shown = batch["shown"] if asked is None else batch["shown"].gather(1, frame_of(batch["video"], asked))
                wanted = wanted / 255 if wanted.dtype == torch.uint8 else wanted
                found[name] = mean_error(answer, wanted, shown)
            else:
                wanted, heard = batch["audio"], batch["heard"]
                if asked is not None:
                    wanted, heard = (patches_at(each, answer.shape[-1], asked) for each in (wanted, heard))
                found[name] = mean_error(answer, wanted, heard)
        return found

    def on_validation_epoch_start(self) -> None:
        self.reconstructed = 0

    def evaluate_batch(self, batch: dict[str, Any]) -> None:
        encoded = self.encode(batch, torch.ones(len(batch["label"]), 1, dtype=torch.bool, device=self.device))
        answers = {name: answer.float() for name, answer in self.model.decode(encoded).items()}
        self.metrics.update(answers, batch)
        if self.reconstructions is not None:
            self.show(self.reconstructions, batch["video"], answers["video"], answers.get("audio"))

    def show(self, folder: Path, original_BTCYX: Tensor, decoded_BTCYX: Tensor, audio_BS: Tensor | None) -> None:
        """Writes some clips beside their reconstructions, with the reconstructed sound, and shows frames in the log."""
        for clip in range(len(original_BTCYX)):
            if self.reconstructed == SHOWN or not self.trainer.is_global_zero:
                return
            both_TCYX = side_by_side(original_BTCYX[clip].cpu() / 255, decoded_BTCYX[clip].cpu().clamp(0, 1))
            audio_S = None if audio_BS is None else audio_BS[clip].cpu()
            folder.mkdir(exist_ok=True)
            rate = window_of(self.model).sample_rate
            write_video(folder / f"{self.reconstructed}.mp4", both_TCYX, FRAME_RATE, audio_S, rate)
            for logger in self.loggers:
                if isinstance(logger, TensorBoardLogger):
                    frames_CYX = both_TCYX[:: max(1, len(both_TCYX) // 4)].transpose(0, 1).flatten(1, 2)
                    logger.experiment.add_image(f"held_out_{self.reconstructed}", frames_CYX, self.global_step)
            self.reconstructed += 1


def frame_of(video_BTCYX: Tensor, points_BP: Tensor) -> Tensor:
    """Which frame each pixel is in, [B, P]."""
    return points_BP // (video_BTCYX.shape[-2] * video_BTCYX.shape[-1])


def pixels_at(video_BTCYX: Tensor, points_BP: Tensor) -> Tensor:
    """The colors of some pixels, [B, P, C]."""
    _, frames, _, height, width = video_BTCYX.shape
    place = torch.unravel_index(points_BP, (frames, height, width))
    clip_B1 = torch.arange(len(points_BP), device=points_BP.device)[:, None]
    return video_BTCYX[clip_B1, place[0], :, place[1], place[2]]


def patches_at(sound_BS: Tensor, patch: int, points_BP: Tensor) -> Tensor:
    """The samples of some patches, [B, P, patch]."""
    return sound_BS.unflatten(1, (-1, patch)).gather(1, points_BP[..., None].expand(-1, -1, patch))


def mean_error(answer: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """Mean absolute error where something is known; `known` lacks the last dimensions."""
    known = known.view(*known.shape, *[1] * (answer.dim() - known.dim())).expand_as(answer)
    return ((answer.float() - wanted).abs() * known).sum() / known.sum().clamp_min(1)


def evaluate(model: PerceiverIO, clips: LabelledClips, windows: int = 1, batch_size: int = 1) -> dict[str, float]:
    """Returns PSNR of reconstructed windows, evenly spaced in each clip, and top-1 accuracy if the model has a label.

    Raises:
        PerceiversError: the classes are others than the model's, a clip cannot be read, or none has video, or sound.
    """
    if "label" in model.outputs:
        check_classes(clips, class_names(model))
    samples = ClipDataset(clips, window_of(model), evenly(windows))
    return learner.evaluate(ClipAutoencoder(model), samples, batch_size)
