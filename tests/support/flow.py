"""A small run of optical flow."""

from perceivers.flow import generator
from perceivers.flow.data import FlowData
from perceivers.flow.model import OpticalFlowConfig
from perceivers.flow.scenes import SceneConfig
from perceivers.flow.training import Curriculum, OpticalFlow
from perceivers.training.optimization import Optimization
from tests.support.runs import run_settings

SIZE = (16, 20)
SCENES = SceneConfig(SIZE, shapes=(1, 2), motion=2.0)
TINY = {
    "image_size": SIZE, "feature_channels": 4, "bands": 2, "latents": 4, "channels": 16, "depth": 1, "heads": 2,
}  # fmt: skip


def use_few_textures(monkeypatch):
    """Makes only four textures and shapes, which takes less time."""
    monkeypatch.setattr(generator, "TEXTURES", 4)
    monkeypatch.setattr(generator, "SHAPES", 4)


def small_run(output, data=None, model=None, curriculum=None, pixels=None, **training):
    """Two epochs of four updates."""
    training = {"max_epochs": 2, "batch_size": 2, "output": str(output)} | training
    return OpticalFlow(
        model=OpticalFlowConfig(**(TINY | (model or {}))),
        data=FlowData(scenes=SCENES, pairs=8, validation_pairs=3) if data is None else data,
        curriculum=curriculum or Curriculum(0.5, 0.25),
        optimization=Optimization(lr=1e-3),
        **run_settings(**training),
        pixels=pixels,
    )
