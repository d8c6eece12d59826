"""Training of optical flow (section 4.2; appendix H): a first phase without augmentation, then ever more of it.

configs/flow/paper.yaml is the paper's recipe.

Shape suffixes: B batch, P pixels, Y rows, X columns
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from perceivers.checks import Checked, Count, Fraction, check_field
from perceivers.flow import commands
from perceivers.flow.adapter import FlowOutput, FramePairInput
from perceivers.flow.augmentation import FlowAugment, FlowAugmentation
from perceivers.flow.data import FlowData
from perceivers.flow.estimate import OVERLAP, tiled
from perceivers.flow.generator import FlowGenerator
from perceivers.flow.inverse import inverse_flow
from perceivers.flow.metrics import FlowErrors
from perceivers.flow.model import OpticalFlowConfig
from perceivers.flow.pictures import flow_picture
from perceivers.flow.scenes import Scenes
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization

SHOWN = 4
"""So many held-out pairs are shown in the log."""


@dataclass
class Curriculum(Checked):
    """In what order training becomes harder.

    Attributes:
        plain: part of the steps, at the start, in which pairs are not augmented, and each is also given reversed.
            Without this phase training does not start, says the paper.
        growing: part of the steps, after that, over which augmentation grows to its full strength.
    """

    section = "curriculum."

    plain: Fraction = 0.1
    growing: Fraction = 0.6

    def is_plain(self, progress: float) -> bool:
        """Returns whether training is in its first phase, when this part of its steps is done."""
        return progress < self.plain

    def strength(self, progress: float) -> float:
        """Returns the strength of the augmentation, from 0 to 1."""
        if self.is_plain(progress):
            return 0.0
        return min(1.0, (progress - self.plain) / self.growing) if self.growing else 1.0


@dataclass(kw_only=True)
class OpticalFlow(Experiment):
    """A training run of optical flow.

    Attributes:
        model: `preset`, one of `perceivers models`, and whichever of its fields are to be others.
        data: the pairs.
        augmentation: how training pairs are changed, at full strength.
        curriculum: when.
        pixels: so many of each pair, drawn at random, are decoded in training, which bounds its memory; all, if not
            given.
    """

    evaluate = staticmethod(commands.evaluate)

    model: OpticalFlowConfig
    data: FlowData = field(default_factory=FlowData)
    augmentation: FlowAugmentation = field(default_factory=FlowAugmentation)
    curriculum: Curriculum = field(default_factory=Curriculum)
    pixels: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = self.pixels is None or self.model.downsampling == "none"
        check_field("pixels", self.pixels, whole, "left out for models with convolutional downsampling")

    def prepare(self) -> Setup:
        self.build_on_meta()
        return Setup(self.model.build, *self.data.open())

    def learner(self, model: PerceiverIO) -> "FlowEstimator":
        scenes = self.data.scenes if self.data.generates else None
        return FlowEstimator(model, self.optimization, self.augmentation, self.curriculum, scenes, self.pixels)

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return isinstance(model, PerceiverIO) and any(isinstance(part, FlowOutput) for part in model.outputs.values())


class FlowEstimator(Learner):
    """End-point error of pairs that are augmented as the curriculum says.

    Args:
        model, optimization: as in `Learner`.
        augmentation, curriculum: how training pairs are changed, and when.
        scenes: what pairs look like that are generated; None if all are stored.
        pixels: so many of each pair are decoded in training; all, if not given.
    """

    monitor = ("test_epe", "min")
    shown = ("epe",)

    def __init__(
        self,
        model: PerceiverIO,
        optimization: Optimization | None = None,
        augmentation: FlowAugmentation | None = None,
        curriculum: Curriculum | None = None,
        scenes: Scenes | None = None,
        pixels: int | None = None,
    ) -> None:
        super().__init__(model, optimization)
        frames = model.inputs["frames"]
        assert isinstance(frames, FramePairInput)
        self.size = frames.size
        self.augment = FlowAugment(augmentation or FlowAugmentation(), self.size)
        self.curriculum = curriculum or Curriculum()
        self.scenes = scenes
        self.generator: FlowGenerator | None = None
        self.pixels = pixels
        self.metrics = Errors()
        self.pictures: list[Tensor] = []

    def on_fit_start(self) -> None:
        if self.scenes is not None:
            self.generator = FlowGenerator(self.scenes, self.device)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        progress = self.progress()
        frames, flow = self.pairs(batch, self.curriculum.is_plain(progress))
        strength = self.curriculum.strength(progress)
        if strength or frames.shape[-2:] != self.size:
            frames, flow = self.augment(frames, flow, strength)
        self.log("augmentation", strength)
        return self.error(frames, flow)

    def progress(self) -> float:
        """Returns which part of the run's steps is done."""
        batches = self.trainer.num_training_batches
        return (self.trainer.current_epoch + self.trainer.fit_loop.batch_idx / batches) / (self.trainer.max_epochs or 1)

    def pairs(self, batch: dict[str, Any], reversed: bool) -> tuple[Tensor, Tensor]:
        """Returns frames and their flow, NaN where it is not known; if asked for, followed by the same reversed."""
        if "seed" in batch:
            assert self.generator is not None
            made = self.generator.pairs(batch["seed"].tolist())
            frames, flow, backward = made.frames, made.forward, made.backward
        else:
            frames = batch["frames"]
            flow = batch["flow"].masked_fill(~batch["known"][:, None], torch.nan)
            backward = inverse_flow(flow) if reversed else flow
        if reversed:
            frames, flow = torch.cat([frames, frames.flip(1)]), torch.cat([flow, backward])
        return frames, flow

    def error(self, frames: Tensor, flow_B2YX: Tensor) -> Tensor:
        """Returns the mean end-point error in pixels, over all pixels whose flow is known, or some drawn at random."""
        outputs = None
        if self.pixels is not None:
            points_P = torch.randint(flow_B2YX[0, 0].numel(), (self.pixels,), device=flow_B2YX.device)
            outputs, flow_B2YX = {"flow": points_P}, flow_B2YX.flatten(2)[..., points_P]
        predicted = self.model({"frames": frames}, outputs)["flow"].float()
        if outputs is not None:
            predicted = predicted.mT
        known = ~flow_B2YX.isnan().any(1)
        return ((predicted - flow_B2YX.nan_to_num()).norm(dim=1) * known).sum() / known.sum().clamp_min(1)

    def evaluate_batch(self, batch: dict[str, Any]) -> None:
        frames, flow_B2YX = self.pairs(batch, reversed=False)
        predicted = self.predict(frames)
        self.metrics.update(predicted, flow_B2YX)
        if len(self.pictures) < SHOWN:
            pictures = zip(frames, flow_B2YX.cpu(), predicted.cpu(), strict=True)
            self.pictures += [show(*pair) for pair in pictures][: SHOWN - len(self.pictures)]

    def predict(self, frames: Tensor) -> Tensor:
        """Returns the flow [B, 2, Y, X] of frames of any size."""
        if frames.shape[-2:] == self.size:
            return self.model({"frames": frames})["flow"].float()
        frames = frames / 255 if frames.dtype == torch.uint8 else frames
        flows = [tiled(self.model, pair, OVERLAP, 1, progress=False) for pair in frames.cpu()]
        return torch.stack(flows).to(frames.device)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger) and self.trainer.is_global_zero:
                for place, picture in enumerate(self.pictures):
                    logger.experiment.add_image(f"held_out_{place}", picture, self.global_step)
        self.pictures = []


class Errors(nn.Module):
    """Errors of flow over held-out pairs, and that of the answer that nothing moves."""

    def __init__(self) -> None:
        super().__init__()
        self.flow, self.zero = FlowErrors("pairs"), FlowErrors("pairs")

    def update(self, predicted_B2YX: Tensor, flow_B2YX: Tensor) -> None:
        """Adds a batch."""
        self.flow.update(predicted_B2YX, flow_B2YX)
        self.zero.update(torch.zeros_like(predicted_B2YX), flow_B2YX)

    def compute(self) -> dict[str, Tensor]:
        """Returns the figures of `FlowErrors`, and "zero", the end-point error if nothing moves."""
        return self.flow.compute() | {"zero": self.zero.compute()["epe"]}

    def reset(self) -> None:
        """Starts anew."""
        self.flow.reset()
        self.zero.reset()


def show(frames: Tensor, flow: Tensor, predicted: Tensor) -> Tensor:
    """Returns the first frame, its flow and the prediction side by side, in the same colors; bytes [3, Y, 3 * X]."""
    largest = float(flow.norm(dim=0).nan_to_num().max()) or 1.0
    frame = frames[0].cpu()
    frame = frame if frame.dtype == torch.uint8 else (255 * frame).round().byte()
    return torch.cat([frame, flow_picture(flow, largest), flow_picture(predicted, largest)], -1)
