"""How domains enter and leave the architecture: one file a modality."""

from perceivers.adapters.array import ArrayInput, ArrayOutput
from perceivers.adapters.image import ConvStem, ImageInput, Patches
from perceivers.adapters.label import LabelInput, LabelOutput

__all__ = ["ArrayInput", "ArrayOutput", "ConvStem", "ImageInput", "LabelInput", "LabelOutput", "Patches"]
