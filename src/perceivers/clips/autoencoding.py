"""Autoencoding of clips: video, sound and label through a few hundred latents (section 4.3; section 5 of the appendix).

configs/autoencoding/paper_*.yaml are the paper's recipes.

Shape suffixes: B batch, P points, S samples, T frames, C colours, Y rows, X columns
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from kornia import augmentation as K
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from perceivers.checks import check
from perceivers.clips.classification import ClipBatches, windows_of
from perceivers.clips.data import ClipData, LabelledClips
from perceivers.clips.metrics import ReconstructionErrors
from perceivers.clips.model_window import masked_inputs, window_of
from perceivers.clips.reconstruct import compression, side_by_side
from perceivers.data.video import write_video
from perceivers.errors import PerceiversError
from perceivers.images.training import check_classes, check_complete
from perceivers.inference import class_names, device_of
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.presets import create_model, preset
from perceivers.tasks import FRAME_RATE
from perceivers.training.loop import Trained, Training, train
from perceivers.training.optimization import Optimization

SHOWN = 4
"""So many held-out windows are reconstructed in the log."""


@dataclass
class Weights:
    """What each modality counts in the loss (section 5). A label of 1 makes a better classifier, of worse pictures.

    Attributes:
        video, audio: of the mean absolute error of colours in [0, 1] and of samples in [-1, 1].
        label: of the cross-entropy.
    """

    video: float = 0.03
    audio: float = 1.0
    label: float = 0.0001

    def __post_init__(self) -> None:
        for name in ("video", "audio", "label"):
            check(f"weights.{name}", getattr(self, name), getattr(self, name) >= 0, "at least 0")


@dataclass
class ClipAugmentation:
    """How training clips are changed, all frames of one alike. The sound stays as it is.

    Attributes:
        area: bounds of the part of a frame's area that is cut out at random and resized; all of it, if not given.
        flip: mirror half of the clips.
    """

    area: tuple[float, float] | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        low, high = self.area or (1.0, 1.0)
        check("augmentation.area", self.area, 0 < low <= high <= 1, "two parts, each above 0 and at most 1, in order")

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


@dataclass
class Autoencoding:
    """A training run of autoencoding.

    Attributes:
        model: `preset`, one of `perceivers models`, and whichever of its settings are to be others:
            `samples_per_frame: null` leaves the sound out, `classes: null` the label; number and names of the classes
            come from the data otherwise.
        data: the clips.
        weights: what each modality counts.
        augmentation: how training clips are changed.
        optimization: how weights are updated.
        training: how the run is done.
        points: so many pixels, and patches of sound, of each clip are decoded in training, drawn at random.
        label_masking: part of the training clips whose label the model does not see; in evaluation it never does.
    """

    model: dict[str, Any]
    data: ClipData = field(default_factory=ClipData)
    weights: Weights = field(default_factory=Weights)
    augmentation: ClipAugmentation = field(default_factory=ClipAugmentation)
    optimization: Optimization = field(default_factory=Optimization)
    training: Training = field(default_factory=Training)
    points: int = 512
    label_masking: float = 0.5

    def __post_init__(self) -> None:
        check("points", self.points, self.points >= 1, "at least 1")
        check("label_masking", self.label_masking, 0 <= self.label_masking <= 1, "from 0 to 1")
        if "preset" not in self.model:
            raise PerceiversError("model.preset is missing: name one of `perceivers models`.")
        experiment = preset(self.model["preset"]).experiment
        if experiment != "autoencoding":
            raise PerceiversError(
                f"model.preset = {self.model['preset']} is of {experiment}: an autoencoder is needed."
            )

    def run(self) -> Path:
        """Trains; -> the run's folder."""
        L.seed_everything(self.training.seed, verbose=False)
        settings = {name: value for name, value in self.model.items() if name != "preset"}
        with torch.device("meta"):  # a wrong setting shows before any data is read
            labelled = "label" in build(self.model["preset"], settings).inputs
        splits = self.data.open(labelled)
        if labelled:
            names, several = splits.training.classes, splits.training.several
            check("data.training_list", self.data.training_list, not several, "a list with one class a clip")
            classes = settings.get("classes", len(names))
            check("model.classes", classes, classes == len(names), f"{len(names)}, as in the data, null, or left out")
            settings |= {"classes": len(names), "class_names": names}
        model = build(self.model["preset"], settings)
        module = ClipAutoencoder(model, self)
        batches = ClipBatches(*self.data.datasets(splits, window_of(model)), self.training)
        print(f"Compression {compression(model):.0f}x, as the paper counts.", flush=True)
        return train(module, batches, self.training, "test_video_psnr", {"experiment": "autoencoding", **asdict(self)})


def build(name: str, settings: Mapping[str, Any]) -> PerceiverIO:
    """A fresh autoencoder."""
    model = create_model(name, **settings)
    assert isinstance(model, PerceiverIO)
    return model


class ClipAutoencoder(Trained):
    """Absolute errors of some pixels and patches of sound, and cross-entropy of the label."""

    model: PerceiverIO

    def __init__(self, model: PerceiverIO, config: Autoencoding) -> None:
        super().__init__(model, config.optimization)
        self.config = config
        self.augment = config.augmentation.build(window_of(model).size)
        self.errors = ReconstructionErrors(model.outputs)
        self.shown = 0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:
        if "label" not in batch:
            return None  # nothing of it could be read
        batch = batch | {"video": self.augment(batch["video"].float() / 255)}
        hidden_B1 = torch.rand(len(batch["label"]), 1, device=self.device) < self.config.label_masking
        points = self.draw(batch)
        answers = self.model.decode(self.encode(batch, hidden_B1), points)
        total = torch.zeros((), device=self.device)
        for name, loss in self.losses(batch, answers, points).items():
            self.log(f"train_{name}", loss, prog_bar=name == "video")
            total = total + getattr(self.config.weights, name) * loss
        self.log("train_loss", total)
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
        size = (len(batch["label"]), self.config.points)
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

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        check_complete(batch)
        encoded = self.encode(batch, torch.ones(len(batch["label"]), 1, dtype=torch.bool, device=self.device))
        answers = {name: answer.float() for name, answer in self.model.decode(encoded).items()}
        self.errors.update(answers, batch)
        self.show(batch["video"], answers["video"], answers.get("audio"))

    def show(self, original_BTCYX: Tensor, decoded_BTCYX: Tensor, audio_BS: Tensor | None) -> None:
        """Writes some clips beside their reconstructions, with the reconstructed sound, and shows frames in the log."""
        for clip in range(len(original_BTCYX)):
            if self.shown == SHOWN or not self.trainer.is_global_zero:
                return
            both_TCYX = side_by_side(original_BTCYX[clip].cpu() / 255, decoded_BTCYX[clip].cpu().clamp(0, 1))
            audio_S = None if audio_BS is None else audio_BS[clip].cpu()
            folder = Path(self.config.training.output, "reconstructions")
            folder.mkdir(exist_ok=True)
            rate = window_of(self.model).sample_rate
            write_video(folder / f"{self.shown}.mp4", both_TCYX, FRAME_RATE, audio_S, rate)
            for logger in self.loggers:
                if isinstance(logger, TensorBoardLogger):
                    frames_CYX = both_TCYX[:: max(1, len(both_TCYX) // 4)].transpose(0, 1).flatten(1, 2)
                    logger.experiment.add_image(f"held_out_{self.shown}", frames_CYX, self.global_step)
            self.shown += 1

    def on_validation_epoch_end(self) -> None:
        self.shown = 0
        for name, value in self.errors.compute().items():
            self.log(f"test_{name}", value, prog_bar=True)
        self.errors.reset()


def frame_of(video_BTCYX: Tensor, points_BP: Tensor) -> Tensor:
    """Which frame each pixel is in, [B, P]."""
    return points_BP // (video_BTCYX.shape[-2] * video_BTCYX.shape[-1])


def pixels_at(video_BTCYX: Tensor, points_BP: Tensor) -> Tensor:
    """The colours of some pixels, [B, P, C]."""
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


@torch.inference_mode()
def evaluate(model: PerceiverIO, clips: LabelledClips, windows: int = 1, batch_size: int = 1) -> dict[str, float]:
    """PSNR of a model's reconstructions of windows, evenly spaced in each clip, and top-1 accuracy if it has labels.

    Raises:
        PerceiversError: a clip cannot be read, or none has video, or sound.
    """
    labelled = "label" in model.inputs
    if labelled:
        check_classes(clips, class_names(model))
    errors = ReconstructionErrors(model.outputs).to(device_of(model))
    for batch in windows_of(model, clips, windows, batch_size):
        data: dict[str, Any] = dict(masked_inputs(model, batch))
        hidden = torch.ones(len(batch["label"]), 1, dtype=torch.bool, device=device_of(model))
        masked = {"label": hidden} if labelled else {}
        errors.update(model(data | ({"label": batch["label"]} if labelled else {}), masked=masked), batch)
    return {name: float(value) for name, value in errors.compute().items()}
