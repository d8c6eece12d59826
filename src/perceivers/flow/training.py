"""Training of optical flow (section 4.2; appendix H): a phase without augmentation, then augmentation that grows.

configs/flow/paper.yaml is the paper's recipe.

Shape suffixes: B batch, P pixels, Y rows, X columns
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics import MetricCollection

from perceivers.checks import Checked, Count, Fraction, check_field
from perceivers.flow import commands
from perceivers.flow.adapter import FlowOutput, FramePairInput
from perceivers.flow.augmentation import FlowAugmentation, augment_pairs
from perceivers.flow.data import FlowData
from perceivers.flow.estimate import OVERLAP, estimate_tiled
from perceivers.flow.generator import FlowGenerator
from perceivers.flow.inverse import inverse_flow
from perceivers.flow.metrics import FlowErrors
from perceivers.flow.model import OpticalFlowConfig
from perceivers.flow.pictures import draw_flow
from perceivers.flow.scenes import SceneConfig
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.training.experiment import Experiment, Setup
from perceivers.training.learner import Learner
from perceivers.training.optimization import Optimization

LOGGED_PAIRS = 4  # number of validation pairs whose pictures are logged


@dataclass
class Curriculum(Checked):
    """The order in which training becomes harder.

    Attributes:
        warmup_fraction: fraction of the steps, at the start, in which pairs are not augmented, and each is also given
            reversed. The paper says that training does not start without this phase.
        ramp_fraction: fraction of the steps, after that, in which augmentation grows to its full strength.
    """

    section = "curriculum."

    warmup_fraction: Fraction = 0.1
    ramp_fraction: Fraction = 0.6

    def is_warmup(self, progress: float) -> bool:
        """Returns whether training is in its first phase after this fraction of its steps."""
        return progress < self.warmup_fraction

    def strength(self, progress: float) -> float:
        """Returns the strength of the augmentation, from 0 to 1, after this fraction of the steps."""
        if self.is_warmup(progress):
            return 0.0
        return min(1.0, (progress - self.warmup_fraction) / self.ramp_fraction) if self.ramp_fraction else 1.0


@dataclass(kw_only=True)
class OpticalFlow(Experiment):
    """A training run of optical flow.

    Attributes:
        model: `preset`, one of `perceivers models`, or `init`, a saved model, and the fields that differ from it.
        data: the pairs.
        augmentation: of training pairs, at full strength.
        curriculum: of the augmentation.
        pixels: number of random pixels decoded per pair in training, which bounds its memory; by default all.
    """

    evaluate = staticmethod(commands.evaluate)
    command = "flow"

    model: OpticalFlowConfig
    data: FlowData = field(default_factory=FlowData)
    augmentation: FlowAugmentation = field(default_factory=FlowAugmentation)
    curriculum: Curriculum = field(default_factory=Curriculum)
    pixels: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        is_allowed = self.pixels is None or self.model.downsampling == "none"
        check_field("pixels", self.pixels, is_allowed, "left out for models with convolutional downsampling")

    def prepare(self) -> Setup:
        self.build_on_meta()
        return Setup(self.model.build, *self.data.open())

    def learner(self, model: PerceiverIO) -> "FlowEstimator":
        has_generated = self.data.path is None or self.data.validation is None
        scenes = self.data.scenes if has_generated else None
        return FlowEstimator(model, self.optimization, self.augmentation, self.curriculum, scenes, self.pixels)

    @classmethod
    def evaluates(cls, model: nn.Module) -> bool:
        return isinstance(model, PerceiverIO) and any(isinstance(part, FlowOutput) for part in model.outputs.values())


class FlowEstimator(Learner):
    """Trains with the end-point error of augmented pairs.

    Args:
        model, optimization: as in `Learner`.
        augmentation, curriculum, pixels: as in `OpticalFlow`.
        scenes: the appearance of generated pairs; None if all are stored.
    """

    monitor = ("val_epe", "min")
    progress_metrics = ("epe",)

    def __init__(
        self,
        model: PerceiverIO,
        optimization: Optimization | None = None,
        augmentation: FlowAugmentation | None = None,
        curriculum: Curriculum | None = None,
        scenes: SceneConfig | None = None,
        pixels: int | None = None,
    ) -> None:
        super().__init__(model, optimization)
        self.size = model.inputs.get_as(FramePairInput, "frames").size
        self.augmentation = augmentation or FlowAugmentation()
        self.curriculum = curriculum or Curriculum()
        self.scenes = scenes
        self.generator: FlowGenerator | None = None
        self.pixels = pixels
        self.metrics = MetricCollection([FlowErrors("pairs"), ZeroErrors("pairs")], compute_groups=False)
        self.pictures: list[Tensor] = []

    def on_train_start(self) -> None:
        if self.scenes is not None:
            self.generator = FlowGenerator(self.scenes, self.device)

    def loss(self, batch: dict[str, Any]) -> Tensor:
        progress = self.progress()
        frames, flow = self.make_pairs(batch, self.curriculum.is_warmup(progress))
        strength = self.curriculum.strength(progress)
        if strength or frames.shape[-2:] != self.size:
            frames, flow = augment_pairs(self.augmentation, self.size, frames, flow, strength)
        self.log("augmentation", strength)
        return self.compute_error(frames, flow)

    def progress(self) -> float:
        """Returns the finished fraction of the run's steps."""
        return self.trainer.global_step / self.trainer.estimated_stepping_batches

    def make_pairs(self, batch: dict[str, Any], reversed: bool) -> tuple[Tensor, Tensor]:
        """Returns frames and flow, NaN where unknown, followed by the reversed pairs if `reversed`."""
        if "seed" in batch:
            assert self.generator is not None
            made = self.generator.generate(batch["seed"].tolist())
            frames, flow, backward = made.frames, made.forward, made.backward
        else:
            frames = batch["frames"]
            flow = batch["flow"].masked_fill(~batch["known"][:, None], torch.nan)
            backward = inverse_flow(flow) if reversed else flow
        if reversed:
            frames, flow = torch.cat([frames, frames.flip(1)]), torch.cat([flow, backward])
        return frames, flow

    def compute_error(self, frames: Tensor, flow_B2YX: Tensor) -> Tensor:
        """Returns the mean end-point error in pixels, of all pixels with known flow or of random ones."""
        if self.pixels is None:
            predicted = self.model({"frames": frames})["flow"].float()
        else:
            index_P = torch.randint(flow_B2YX[0, 0].numel(), (self.pixels,), device=flow_B2YX.device)
            predicted = self.model({"frames": frames}, {"flow": index_P})["flow"].float().mT
            flow_B2YX = flow_B2YX.flatten(2)[..., index_P]
        known = ~flow_B2YX.isnan().any(1)
        return (compute_lengths(predicted - flow_B2YX.nan_to_num()) * known).sum() / known.sum().clamp_min(1)

    def evaluate_batch(self, batch: dict[str, Any]) -> None:
        frames, flow_B2YX = self.make_pairs(batch, reversed=False)
        predicted = self.predict(frames)
        self.metrics.update(predicted, flow_B2YX)
        missing = LOGGED_PAIRS - len(self.pictures)
        self.pictures += list(map(draw_pair, frames[:missing], flow_B2YX[:missing].cpu(), predicted[:missing].cpu()))

    def predict(self, frames: Tensor) -> Tensor:
        """Returns the flow [B, 2, Y, X] of frames of any size."""
        if frames.shape[-2:] == self.size:
            return self.model({"frames": frames})["flow"].float()
        frames = frames / 255 if frames.dtype == torch.uint8 else frames
        flows = [estimate_tiled(self.model, pair, OVERLAP, 1) for pair in frames.cpu()]
        return torch.stack(flows).to(frames.device)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger) and self.trainer.is_global_zero:
                for index, picture in enumerate(self.pictures):
                    logger.experiment.add_image(f"validation_{index}", picture, self.global_step)
        self.pictures = []


def compute_lengths(vectors: Tensor) -> Tensor:
    """Returns the lengths [B, ...] of vectors [B, 2, ...].

    It is ten times as fast on CPU as `norm` over two numbers, and its gradient at 0 is 0, too.
    """
    return torch.complex(*vectors.unbind(1)).abs()


class ZeroErrors(FlowErrors):
    """The end-point error of the prediction that nothing moves, "zero"."""

    def update(self, flow: Tensor, truth: Tensor, occluded: Tensor | None = None) -> None:
        super().update(torch.zeros_like(flow), truth, occluded)

    def compute(self) -> dict[str, Tensor]:
        return {"zero": super().compute()["epe"]}


def draw_pair(frames: Tensor, flow: Tensor, predicted: Tensor) -> Tensor:
    """Draws the first frame, its flow and the prediction side by side, in the same colors; bytes [3, Y, 3 * X]."""
    max_flow = float(flow.norm(dim=0).nan_to_num().max()) or 1.0
    frame = frames[0].cpu()
    frame = frame if frame.dtype == torch.uint8 else (255 * frame).round().byte()
    return torch.cat([frame, draw_flow(flow, max_flow), draw_flow(predicted, max_flow)], -1)
