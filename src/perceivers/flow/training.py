"""Training of optical flow (section 4.2; appendix H): a first phase without augmentation, then ever more of it.

configs/flow/paper.yaml is the paper's recipe.

Shape suffixes: B batch, P pixels, Y rows, X columns
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from perceivers.checks import check
from perceivers.data.loader import ResumableLoader
from perceivers.errors import PerceiversError
from perceivers.flow.adapter import FlowOutput, FramePairInput
from perceivers.flow.augmentation import FlowAugment, FlowAugmentation
from perceivers.flow.data import FlowData, Pairs
from perceivers.flow.estimate import OVERLAP, tiled
from perceivers.flow.generator import FlowGenerator
from perceivers.flow.inverse import inverse_flow
from perceivers.flow.local_start import start_locally
from perceivers.flow.metrics import FlowErrors
from perceivers.flow.pictures import flow_picture
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.presets import create_model, preset
from perceivers.training.loop import Trained, Training, train
from perceivers.training.optimization import Optimization

SHOWN = 4
"""So many held-out pairs are shown in the log."""


@dataclass
class Curriculum:
    """In what order training becomes harder.

    Attributes:
        plain: part of the steps, at the start, in which pairs are not augmented, and each is also given reversed.
            Without this phase training does not start, says the paper.
        growing: part of the steps, after that, over which augmentation grows to its full strength.
    """

    plain: float = 0.1
    growing: float = 0.6

    def __post_init__(self) -> None:
        for name in ("plain", "growing"):
            check(f"curriculum.{name}", getattr(self, name), 0 <= getattr(self, name) <= 1, "from 0 to 1")

    def is_plain(self, progress: float) -> bool:
        """Whether training is in its first phase, when this part of its steps is done."""
        return progress < self.plain

    def strength(self, progress: float) -> float:
        """Of the augmentation, from 0 to 1."""
        if self.is_plain(progress):
            return 0.0
        return min(1.0, (progress - self.plain) / self.growing) if self.growing else 1.0


@dataclass
class OpticalFlow:
    """A training run of optical flow.

    Attributes:
        model: `preset`, one of `perceivers models`, and whichever of its settings are to be others.
            `start: local` is for small models, see `start_locally`.
        data: the pairs.
        augmentation: how training pairs are changed, at full strength.
        curriculum: when.
        optimization: how weights are updated.
        training: how the run is done.
        pixels: so many of each pair, drawn at random, are decoded in training, which bounds its memory; all, if not
            given.
    """

    model: dict[str, Any]
    data: FlowData = field(default_factory=FlowData)
    augmentation: FlowAugmentation = field(default_factory=FlowAugmentation)
    curriculum: Curriculum = field(default_factory=Curriculum)
    optimization: Optimization = field(default_factory=Optimization)
    training: Training = field(default_factory=Training)
    pixels: int | None = None

    def __post_init__(self) -> None:
        if "preset" not in self.model:
            raise PerceiversError("model.preset is missing: name one of `perceivers models`.")
        check("pixels", self.pixels, self.pixels is None or self.pixels >= 1, "at least 1")

    def run(self) -> Path:
        """Trains; -> the run's folder."""
        L.seed_everything(self.training.seed, verbose=False)
        with torch.device("meta"):  # a wrong setting shows before any data is read
            output = build_flow_model(self.model | {"start": "normal"}).outputs["flow"]
        assert isinstance(output, FlowOutput)
        whole = self.pixels is None or output.upsampling is None
        check("pixels", self.pixels, whole, "left out for models with convolutional downsampling")
        training, held_out = self.data.open()
        module = FlowEstimator(build_flow_model(self.model), self)
        written = {"experiment": "optical_flow", **asdict(self)}
        return train(module, FlowBatches(training, held_out, self), self.training, "test_epe", written, best="min")


def build_flow_model(config: Mapping[str, Any]) -> PerceiverIO:
    """A fresh model of a preset and its settings.

    Raises:
        PerceiversError: a setting is wrong, or the preset is of another experiment.
    """
    settings = {name: value for name, value in config.items() if name not in ("preset", "start")}
    experiment = preset(config["preset"]).experiment
    if experiment != "optical_flow":
        raise PerceiversError(f"model.preset = {config['preset']} is of {experiment}: a flow model is needed.")
    start = config.get("start", "normal")
    check("model.start", start, start in ("normal", "local"), "'normal' or 'local'")
    model = create_model(config["preset"], **settings)
    assert isinstance(model, PerceiverIO)
    if start == "local":
        start_locally(model)
    return model


class FlowBatches(L.LightningDataModule):
    """Batches for training and evaluation."""

    def __init__(self, training: Pairs, held_out: Pairs, config: OpticalFlow) -> None:
        super().__init__()
        self.training, self.held_out, self.config = training, held_out, config

    def train_dataloader(self) -> ResumableLoader:
        assert self.trainer is not None
        size = self.config.training.batch_per_process(self.trainer.world_size)
        return self.loader(self.training, size, self.config.training.seed)

    def val_dataloader(self) -> ResumableLoader:
        assert self.trainer is not None
        stored = self.config.data.validation is not None  # and may be of any sizes
        return self.loader(self.held_out, 1 if stored else self.config.training.batch_per_process(1), None)

    def loader(self, pairs: Pairs, batch_size: int, seed: int | None) -> ResumableLoader:
        assert self.trainer is not None
        workers, rank, world = self.config.training.workers, self.trainer.global_rank, self.trainer.world_size
        return ResumableLoader(pairs, len(pairs), batch_size, seed, workers, pairs.collate, rank, world)


class FlowEstimator(Trained):
    """End-point error of pairs that are augmented as the curriculum says."""

    def __init__(self, model: PerceiverIO, config: OpticalFlow) -> None:
        super().__init__(model, config.optimization)
        frames = model.inputs["frames"]
        assert isinstance(frames, FramePairInput)
        self.config = config
        self.size = frames.size
        self.augment = FlowAugment(config.augmentation, frames.size)
        self.generator: FlowGenerator | None = None
        self.errors, self.zero = FlowErrors("pairs"), FlowErrors("pairs")
        self.shown: list[Tensor] = []

    def on_fit_start(self) -> None:
        data = self.config.data
        if data.path is None or data.validation is None:
            self.generator = FlowGenerator(data.scenes, self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        progress = self.progress()
        frames, flow = self.pairs(batch, self.config.curriculum.is_plain(progress))
        strength = self.config.curriculum.strength(progress)
        if strength or frames.shape[-2:] != self.size:
            frames, flow = self.augment(frames, flow, strength)
        loss = self.loss(frames, flow)
        self.log("train_epe", loss, prog_bar=True)
        self.log("augmentation", strength)
        return loss

    def progress(self) -> float:
        """Which part of the run's steps is done."""
        batches = self.trainer.num_training_batches
        return (self.trainer.current_epoch + self.trainer.fit_loop.batch_idx / batches) / (self.trainer.max_epochs or 1)

    def pairs(self, batch: dict[str, Tensor], reversed: bool) -> tuple[Tensor, Tensor]:
        """Frames and their flow, NaN where it is not known; if asked for, followed by the same reversed."""
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

    def loss(self, frames: Tensor, flow_B2YX: Tensor) -> Tensor:
        """Mean end-point error in pixels, over all pixels whose flow is known, or over some drawn at random."""
        outputs = None
        if self.config.pixels is not None:
            points_P = torch.randint(flow_B2YX[0, 0].numel(), (self.config.pixels,), device=flow_B2YX.device)
            outputs, flow_B2YX = {"flow": points_P}, flow_B2YX.flatten(2)[..., points_P]
        predicted = self.model({"frames": frames}, outputs)["flow"].float()
        if outputs is not None:
            predicted = predicted.mT
        known = ~flow_B2YX.isnan().any(1)
        return ((predicted - flow_B2YX.nan_to_num()).norm(dim=1) * known).sum() / known.sum().clamp_min(1)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        frames, flow_B2YX = self.pairs(batch, reversed=False)
        predicted = self.predict(frames)
        self.errors.update(predicted, flow_B2YX)
        self.zero.update(torch.zeros_like(predicted), flow_B2YX)
        if len(self.shown) < SHOWN:
            pictures = zip(frames, flow_B2YX.cpu(), predicted.cpu(), strict=True)
            self.shown += [show(*pair) for pair in pictures][: SHOWN - len(self.shown)]

    def predict(self, frames: Tensor) -> Tensor:
        """Flow [B, 2, Y, X] of frames of any size."""
        if frames.shape[-2:] == self.size:
            return self.model({"frames": frames})["flow"].float()
        frames = frames / 255 if frames.dtype == torch.uint8 else frames
        assert isinstance(self.model, PerceiverIO)
        flows = [tiled(self.model, pair, OVERLAP, 1, progress=False) for pair in frames.cpu()]
        return torch.stack(flows).to(frames.device)

    def on_validation_epoch_end(self) -> None:
        for name, value in self.errors.compute().items():
            self.log(f"test_{name}", value, prog_bar=name == "epe", sync_dist=True)
        self.log("test_zero", self.zero.compute()["epe"], sync_dist=True)
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger) and self.trainer.is_global_zero:
                for place, picture in enumerate(self.shown):
                    logger.experiment.add_image(f"held_out_{place}", picture, self.global_step)
        self.errors.reset()
        self.zero.reset()
        self.shown = []


def show(frames: Tensor, flow: Tensor, predicted: Tensor) -> Tensor:
    """The first frame, its flow and the prediction side by side, in the same colours; bytes [3, Y, 3 * X]."""
    largest = float(flow.norm(dim=0).nan_to_num().max()) or 1.0
    frame = frames[0].cpu()
    frame = frame if frame.dtype == torch.uint8 else (255 * frame).round().byte()
    return torch.cat([frame, flow_picture(flow, largest), flow_picture(predicted, largest)], -1)
