"""How domains enter and leave the architecture: one file a modality."""

from perceivers.adapters.array import ArrayInput, ArrayOutput
from perceivers.adapters.audio import AudioInput, AudioOutput, ConvAudioInput, MelInput
from perceivers.adapters.elements import ElementOutput
from perceivers.adapters.image import ConvStem, ImageInput, Patches
from perceivers.adapters.label import LabelInput, LabelOutput
from perceivers.adapters.text import TextInput, TextOutput
from perceivers.adapters.video import VideoInput, VideoOutput

__all__ = [
    "ArrayInput",
    "ArrayOutput",
    "AudioInput",
    "AudioOutput",
    "ConvAudioInput",
    "ConvStem",
    "ElementOutput",
    "ImageInput",
    "LabelInput",
    "LabelOutput",
    "MelInput",
    "Patches",
    "TextInput",
    "TextOutput",
    "VideoInput",
    "VideoOutput",
]
