"""Models of clips, and the rows of the autoencoding and AudioSet tables of the paper (sections 4.3 and 4.6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from perceivers.adapters.audio import AudioInput, AudioOutput, ConvAudioInput, MelInput
from perceivers.adapters.label import LabelInput, LabelOutput, read_decoder
from perceivers.adapters.video import VideoInput, VideoOutput
from perceivers.checks import Count, Range
from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputAdapter, InputArray, OutputAdapter
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.positions import FourierPositions
from perceivers.model.sizes import ModelConfig, Sizes, sizes_of
from perceivers.presets import Preset, make_example

FRAME_RATE = 25
"""Frames per second of autoencoded clips (section 4.3)."""


@dataclass(frozen=True)
class Window:
    """The part of a clip that a model reads: frames and sound that begin at the same time.

    Attributes:
        frames: number of frames; None: no video.
        size: height and width in pixels; frames are resized and center-cropped.
        rate: frames per second.
        samples: number of samples of mono sound; None: no sound.
        sample_rate: samples per second.
    """

    frames: int | None = None
    size: tuple[int, int] = (224, 224)
    rate: float = 25.0
    samples: int | None = None
    sample_rate: int = 48000

    @property
    def seconds(self) -> Fraction:
        """Duration of the window: that of the longer one of video and sound."""
        video = Fraction(self.frames or 0) / Fraction(self.rate)
        return max(video, Fraction(self.samples or 0, self.sample_rate))


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(ModelConfig, Sizes):
    """Autoencoding of video, sound and label (section 4.3). The defaults are the paper's model with compression 88x.

    Inputs and outputs "video": [B, frames, 3, height, width] in [0, 1]; "audio": [B, frames * samples_per_frame] in
    [-1, 1]; "label": class index [B] in, logits [B, classes] out. All inputs are maskable: with a hidden label the
    model is a classifier.

    Attributes:
        frames: duration of a clip in frames, at 25 per second.
        image_size: height and width of the frames in pixels; null for no video.
        patch_size: side of the input patches of the video in pixels; must divide the image size.
        video_bands: number of frequencies of the Fourier positions of the video in each dimension.
        samples_per_frame: sound samples for each frame; null for no sound.
        samples_per_patch: sound samples in a patch.
        audio_bands: number of frequencies of the Fourier positions of the sound.
        audio_scale: standard deviation of the sound of the data: samples are divided by it in the model.
        classes: number of classes; null for no label.
        class_names: names of the classes, in order.
        label_query_channels: channels of the query of the label.
        output_channels: channels of the linear layer after the decoder, shared by all outputs.
    """

    latents: Count = 784
    channels: Count = 512
    depth: Count = 8
    query_residual: bool = False
    frames: Count = 16
    image_size: tuple[Count, Count] | None = (224, 224)
    patch_size: Count = 4
    video_bands: Count = 32
    samples_per_frame: Count | None = 1920
    samples_per_patch: Count = 16
    audio_bands: Count = 192
    audio_scale: Annotated[float, Range(above=0)] = 1.0
    classes: Count | None = 700
    class_names: list[str] | None = None
    label_query_channels: Count = 1024
    output_channels: Count = 512

    def build(self) -> PerceiverIO:
        inputs: dict[str, InputAdapter] = {}
        outputs: dict[str, OutputAdapter] = {}
        if self.image_size is not None:
            size = (self.frames, *self.image_size)
            patch = (1, self.patch_size, self.patch_size)
            grid = patch_grid("patch_size", size, patch)
            inputs["video"] = VideoInput(patch, FourierPositions(grid, self.video_bands))
            outputs["video"] = VideoOutput(FourierPositions(size, self.video_bands, grid, endpoint=False))
        if self.samples_per_frame is not None:
            samples = self.frames * self.samples_per_frame
            patches = patch_grid("samples_per_patch", (samples,), (self.samples_per_patch,))
            positions = FourierPositions(patches, self.audio_bands, (samples,))
            sample_rate = FRAME_RATE * self.samples_per_frame
            inputs["audio"] = AudioInput(self.samples_per_patch, positions, sample_rate, scale=self.audio_scale)
            queries = FourierPositions(patches, self.audio_bands, (samples,), endpoint=False)
            outputs["audio"] = AudioOutput(self.samples_per_patch, queries, self.audio_scale)
        if self.classes is not None:
            inputs["label"] = LabelInput(self.classes)
            outputs["label"] = LabelOutput(self.classes, self.label_query_channels, self.class_names)
        if not {"video", "audio"} & inputs.keys():
            raise PerceiversError(
                "model.image_size and model.samples_per_frame are both null: give video, sound or both."
            )
        return PerceiverIO(inputs, outputs, maskable=list(inputs), output_channels=self.output_channels, **self.sizes())

    @classmethod
    def from_model(cls, model: nn.Module) -> "AutoencoderConfig | None":
        if not isinstance(model, PerceiverIO) or set(model.inputs) != set(model.outputs) or not model.maskable:
            return None
        inputs, outputs = dict(model.inputs.items()), dict(model.outputs.items())
        video, sound = inputs.get("video"), inputs.get("audio")
        pixels, label = outputs.get("video"), outputs.get("label")
        found = sizes_of(model) | {"output_channels": model.config["output_channels"]}
        found |= {"image_size": None, "samples_per_frame": None, "classes": None}
        if isinstance(sound, AudioInput):
            samples_per_frame = sound.sample_rate // FRAME_RATE
            found |= {"frames": sound.patch * sound.positions.grid[0] // max(1, samples_per_frame)}
            found |= {"samples_per_frame": samples_per_frame, "samples_per_patch": sound.patch}
            found |= {"audio_bands": getattr(sound.positions, "bands", None), "audio_scale": sound.scale}
        if isinstance(video, VideoInput) and isinstance(pixels, VideoOutput):
            frames, height, width = pixels.positions.grid
            found |= {"frames": frames, "image_size": (height, width), "patch_size": video.patch[1]}
            found |= {"video_bands": getattr(video.positions, "bands", None)}
        if isinstance(label, LabelOutput):
            found |= {
                "classes": label.classes,
                "class_names": label.names,
                "label_query_channels": label.query_channels,
            }
        config = cls(**found)
        return config if config.has_inputs_of(model) else None


@dataclass(frozen=True, kw_only=True)
class ClipClassifierConfig(ModelConfig, Sizes):
    """Classification of clips by video, sound or both (AudioSet, section 4.6 and appendix).

    The defaults are the paper's model of raw sound and video. Input "video": [B, frames, 3, height, width] in [0, 1];
    input "audio": [B, samples] in [-1, 1]; output "label": logits [B, classes].

    Attributes:
        frames: number of frames of a clip; null for no video.
        image_size: height and width of the frames in pixels.
        video_patch: frames, rows and columns of a patch; must divide those of the video.
        video_bands: number of frequencies of the Fourier positions of the video in each dimension.
        sound: "samples", patches of `samples_per_patch`; "conv", patches after a convolution with `filters` channels
            (`ConvAudioInput`); "mel", see `MelInput` for `mel_patch`, `mel_bands`, `hop` and `window`; null for no
            sound.
        samples: number of sound samples of a clip.
        samples_per_patch: sound samples in a patch.
        audio_bands: number of frequencies of the Fourier positions of the sound in each dimension.
        filters: channels of the convolution of "conv".
        mel_patch: spectra and bands of a patch of the mel-spectrogram.
        mel_bands: number of bands of the mel-spectrogram.
        hop: samples from one spectrum to the next.
        window: samples of a spectrum.
        sample_rate: samples per second.
        normalize: whether to normalize the level of each recording and, except for "samples", each filter or band.
        classes: number of classes.
        class_names: names of the classes, in order.
        multilabel: whether several classes can apply at once.
        decoder: "query" as in Perceiver IO, or "average" as in the first Perceiver.
        query_channels: channels of the query of the label; by default those of the latents.
    """

    latents: Count = 512
    channels: Count = 512
    depth: Count = 12
    frames: Count | None = 32
    image_size: tuple[Count, Count] = (224, 224)
    video_patch: tuple[Count, Count, Count] = (2, 8, 8)
    video_bands: Count = 16
    sound: Literal["samples", "conv", "mel"] | None = "samples"
    samples: Count = 61440
    samples_per_patch: Count = 128
    audio_bands: Count = 128
    filters: Count = 64
    mel_patch: tuple[Count, Count] = (1, 1)
    mel_bands: Count = 40
    hop: Count = 512
    window: Count = 2048
    sample_rate: Count = 48000
    normalize: bool = False
    classes: Count = 527
    class_names: list[str] | None = None
    multilabel: bool = True
    decoder: Literal["query", "average"] = "query"
    query_channels: Count | None = None

    def build(self) -> PerceiverIO:
        inputs: dict[str, InputAdapter] = {}
        if self.frames is not None:
            grid = patch_grid("video_patch", (self.frames, *self.image_size), self.video_patch)
            inputs["video"] = VideoInput(self.video_patch, FourierPositions(grid, self.video_bands))
        samples, rate, bands = self.samples, self.sample_rate, self.audio_bands
        if self.sound == "mel":
            (spectra,) = patch_grid("hop", (samples,), (self.hop,))
            positions = FourierPositions(patch_grid("mel_patch", (spectra, self.mel_bands), self.mel_patch), bands)
            sizes = (self.mel_patch, positions, self.mel_bands, self.hop, self.window)
            inputs["audio"] = MelInput(*sizes, rate, self.normalize)
        elif self.sound is not None:
            grid = patch_grid("samples_per_patch", (samples,), (self.samples_per_patch,))
            if self.sound == "samples":
                positions = FourierPositions(grid, bands, (samples,))
                inputs["audio"] = AudioInput(self.samples_per_patch, positions, rate, self.normalize)
            else:
                positions = FourierPositions(grid, bands)
                inputs["audio"] = ConvAudioInput(
                    self.samples_per_patch, positions, rate, self.filters, normalize=self.normalize
                )
        if not inputs:
            raise PerceiversError("model.frames and model.sound are both null: give video, sound or both.")
        query_channels = (self.query_channels or self.channels) if self.decoder == "query" else None
        label = LabelOutput(self.classes, query_channels, self.class_names, self.multilabel)
        return PerceiverIO(inputs=inputs, outputs={"label": label}, **self.sizes())

    @classmethod
    def from_model(cls, model: nn.Module) -> "ClipClassifierConfig | None":
        if not isinstance(model, PerceiverIO) or list(model.outputs) != ["label"]:
            return None
        label, inputs = model.outputs["label"], dict(model.inputs.items())
        video, sound = inputs.pop("video", None), inputs.pop("audio", None)
        if inputs or not isinstance(label, LabelOutput) or not isinstance(video, VideoInput | None):
            return None
        found = sizes_of(model) | read_decoder(label, model.config["channels"]) | {"frames": None, "sound": None}
        found |= {"classes": label.classes, "class_names": label.names, "multilabel": label.multilabel}
        if video is not None:
            frames, height, width = (a * b for a, b in zip(video.patch, video.positions.grid, strict=True))
            found |= {"frames": frames, "image_size": (height, width), "video_patch": video.patch}
            found |= {"video_bands": getattr(video.positions, "bands", None)}
        if isinstance(sound, AudioInput | ConvAudioInput | MelInput):
            step = sound.hop * sound.patch[0] if isinstance(sound, MelInput) else sound.patch
            found |= {"samples": step * sound.positions.grid[0], "sample_rate": sound.sample_rate}
            found |= {"audio_bands": getattr(sound.positions, "bands", None), "normalize": sound.normalize}
        if isinstance(sound, MelInput):
            found |= {"sound": "mel", "mel_patch": sound.patch, "mel_bands": sound.bands}
            found |= {"hop": sound.hop, "window": sound.window}
        elif isinstance(sound, ConvAudioInput):
            found |= {"sound": "conv", "samples_per_patch": sound.patch, "filters": sound.convolution.out_channels}
        elif isinstance(sound, AudioInput):
            found |= {"sound": "samples", "samples_per_patch": sound.patch}
        config = cls(**found)
        return config if config.has_inputs_of(model) else None


def get_window(model: PerceiverIO) -> Window:
    """Returns the window of a clip that a model reads, or raises a PerceiversError if it reads no video or sound."""
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
        raise PerceiversError(f"this model reads {', '.join(model.inputs)}, neither video nor sound.")
    return Window(frames, size, samples=samples, sample_rate=sample_rate)


def get_inputs(model: PerceiverIO, batch: Mapping[str, Tensor]) -> dict[str, InputArray]:
    """Returns the inputs "video" and "audio" of a model, with their masks, from a batch of `ClipDataset`."""
    names = [name for name in ("video", "audio") if name in model.inputs]
    return {name: InputArray(batch[name], batch[f"{name}_mask"]) for name in names}


def patch_grid(field: str, sizes: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Returns the number of patches in each dimension; raises a PerceiversError if they do not fill it."""
    if any(size % side for size, side in zip(sizes, patch, strict=True)):
        raise PerceiversError(f"model.{field} = {list(patch)} is not allowed: it must divide {list(sizes)}.")
    return tuple(size // side for size, side in zip(sizes, patch, strict=True))


def kinetics_preset(row: str, **settings: Any) -> Preset:
    """Returns a row of the paper's autoencoding table (section 4.3), with the outputs of a training step."""
    label = make_example(dtype=torch.long)
    inputs = {"video": make_example(16, 3, 224, 224), "audio": make_example(16 * 1920), "label": label}
    indices = torch.empty(512, dtype=torch.long, device="meta")
    outputs = {"video": indices, "audio": indices, "label": None}
    return Preset("autoencoding", row, AutoencoderConfig(**settings), inputs, 20.0e6, 310e9, outputs)


def audioset_preset(row: str, paper_parameters: float, paper_flops: float, **settings: Any) -> Preset:
    """Returns a row of the paper's AudioSet table (section 4.6 and appendix)."""
    inputs = {"video": make_example(32, 3, 224, 224), "audio": make_example(61440)}
    return Preset("clip_classification", row, ClipClassifierConfig(**settings), inputs, paper_parameters, paper_flops)


PERCEIVER: dict[str, Any] = {"decoder": "average"}  # the first Perceiver, as the paper reproduces it
MEL: dict[str, Any] = {"sound": "mel", "audio_bands": 64}  # 120 spectra of 40 bands: the paper's 4,800 elements

AUTOENCODER_88X = kinetics_preset("compression 88x", latents=784)
AUTOENCODER_176X = kinetics_preset("compression 176x", latents=392)
AUTOENCODER_352X = kinetics_preset("compression 352x", latents=196)
AUDIOSET_RAW_PERCEIVER = audioset_preset("Perceiver, raw audio + video", 21.0e6, 52.3e9, **PERCEIVER)
AUDIOSET_RAW = audioset_preset("Perceiver IO, raw audio + video", 25.0e6, 52.9e9, query_channels=1024)
AUDIOSET_MEL_PERCEIVER = audioset_preset("Perceiver, mel + video", 21.0e6, 60.7e9, **MEL, **PERCEIVER)
AUDIOSET_MEL = audioset_preset("Perceiver IO, mel + video", 88.2e6, 129.5e9, **MEL, channels=1024)
