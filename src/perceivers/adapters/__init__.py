"""Input and output adapters of modalities that users combine, one file each."""

from perceivers.adapters.array import ArrayInput, ArrayOutput
from perceivers.adapters.audio import AudioInput, AudioOutput, ConvAudioInput, MelInput
from perceivers.adapters.image import ConvStem, ImageInput, Patches
from perceivers.adapters.label import LabelInput, LabelOutput
from perceivers.adapters.set import SetOutput
from perceivers.adapters.text import TextInput, TextOutput
from perceivers.adapters.video import VideoInput, VideoOutput

__all__ = [
    "ArrayInput",
    "ArrayOutput",
    "AudioInput",
    "AudioOutput",
    "ConvAudioInput",
    "ConvStem",
    "ImageInput",
    "LabelInput",
    "LabelOutput",
    "MelInput",
    "Patches",
    "SetOutput",
    "TextInput",
    "TextOutput",
    "VideoInput",
    "VideoOutput",
]
