"""What a model that reads clips sees of each, and how it is given that."""

from collections.abc import Mapping

from torch import Tensor

from perceivers.adapters.audio import AudioInput, ConvAudioInput, MelInput
from perceivers.adapters.video import VideoInput
from perceivers.clips.windows import Window
from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputArray
from perceivers.model.perceiver_io import PerceiverIO


def window_of(model: PerceiverIO) -> Window:
    """What a model sees of a clip.

    Raises:
        PerceiversError: it reads neither video nor sound.
    """
    frames = samples = None
    size, sample_rate = (0, 0), 48000
    for adapter in model.inputs.values():
        if isinstance(adapter, VideoInput):
            frames, height, width = (a * b for a, b in zip(adapter.patch, adapter.positions.grid, strict=True))
            size = (height, width)
        elif isinstance(adapter, AudioInput | ConvAudioInput):
            samples, sample_rate = adapter.patch * adapter.positions.grid[0], adapter.sample_rate
        elif isinstance(adapter, MelInput):
            samples = adapter.hop * adapter.patch[0] * adapter.positions.grid[0]
            sample_rate = adapter.sample_rate
    if frames is None and samples is None:
        raise PerceiversError(f"this model reads {', '.join(model.inputs)}: none of these is video or sound.")
    return Window(frames, size, samples=samples, sample_rate=sample_rate)


def masked_inputs(model: PerceiverIO, batch: Mapping[str, Tensor]) -> dict[str, InputArray]:
    """A batch of windows as the model's inputs "video" and "audio"; what a clip does not have gets no weight.

    Args:
        model: reads clips.
        batch: "video" and "shown", "audio" and "heard", as `Seen` has them, of several clips.
    """
    pairs = (("video", "shown"), ("audio", "heard"))
    return {name: InputArray(batch[name], batch[there]) for name, there in pairs if name in model.inputs}
