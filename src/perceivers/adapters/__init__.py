"""Input and output adapters of modalities that users combine, one file each."""

from perceivers.adapters.array import ArrayInput, ArrayOutput
from perceivers.adapters.audio import AudioInput, AudioOutput, ConvAudioInput, MelInput
from perceivers.adapters.category import CategoryInput
from perceivers.adapters.image import ConvStem, ImageInput, Patches
from perceivers.adapters.label import LabelInput, LabelOutput
from perceivers.adapters.number import NumberInput
from perceivers.adapters.series import SeriesInput, SeriesOutput
from perceivers.adapters.set import SetOutput
from perceivers.adapters.text import TextInput, TextOutput
from perceivers.adapters.video import VideoInput, VideoOutput
from perceivers.adapters.words import WordInput

__all__ = [
    "ArrayInput",
    "ArrayOutput",
    "AudioInput",
    "AudioOutput",
    "CategoryInput",
    "ConvAudioInput",
    "ConvStem",
    "ImageInput",
    "LabelInput",
    "LabelOutput",
    "MelInput",
    "NumberInput",
    "Patches",
    "SeriesInput",
    "SeriesOutput",
    "SetOutput",
    "TextInput",
    "TextOutput",
    "VideoInput",
    "VideoOutput",
    "WordInput",
]
