"""Models of clips, and the rows of the paper's autoencoding and AudioSet tables (sections 4.3 and 4.6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from perceivers.adapters.audio import AudioInput, AudioOutput, ConvAudioInput, MelInput
from perceivers.adapters.label import LabelInput, LabelOutput
from perceivers.adapters.video import VideoInput, VideoOutput
from perceivers.checks import Count
from perceivers.errors import PerceiversError
from perceivers.model.adapter import InputAdapter, OutputAdapter
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.positions import FourierPositions
from perceivers.model.sizes import ModelConfig, Sizes
from perceivers.presets import Preset, make_example

FRAME_RATE = 25
"""Frames a second of clips that are autoencoded (section 4.3)."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(ModelConfig, Sizes):
    """Autoencoding of video, sound and label (section 4.3). The defaults are the paper's model of 88x compression.

    Inputs and outputs "video": [B, frames, 3, height, width] in [0, 1]; "audio": [B, frames * samples_per_frame] in
    [-1, 1]; "label": class index [B] in, logits [B, classes] out. All inputs are maskable: with the label masked the
    model is a classifier.

    Attributes:
        frames: number of frames of a clip.
        image_size: their height and width in pixels.
        patch_size: side of the video's input patches, in pixels; it must divide the image size.
        video_bands: frequencies of the video's Fourier positions in each dimension.
        samples_per_frame: samples of the sound for each frame, of which a second has 25; no sound, if null.
        samples_per_patch: samples of one element of the sound.
        audio_bands: frequencies of the sound's Fourier positions.
        classes: number of classes; no label, if null.
        class_names: what they are called.
        label_query_channels: channels of the label's query.
        output_channels: of the linear layer behind the decoder that all outputs share.
    """

    latents: Count = 784
    channels: Count = 512
    depth: Count = 8
    query_residual: bool = False
    frames: Count = 16
    image_size: tuple[Count, Count] = (224, 224)
    patch_size: Count = 4
    video_bands: Count = 32
    samples_per_frame: Count | None = 1920
    samples_per_patch: Count = 16
    audio_bands: Count = 192
    classes: Count | None = 700
    class_names: list[str] | None = None
    label_query_channels: Count = 1024
    output_channels: Count = 512

    def build(self) -> PerceiverIO:
        size = (self.frames, *self.image_size)
        grid = divide("patch_size", size, (1, self.patch_size, self.patch_size))
        pixels = FourierPositions(size, self.video_bands, grid, endpoint=False)
        inputs: dict[str, InputAdapter] = {
            "video": VideoInput((1, self.patch_size, self.patch_size), FourierPositions(grid, self.video_bands))
        }
        outputs: dict[str, OutputAdapter] = {"video": VideoOutput(pixels)}
        if self.samples_per_frame is not None:
            samples = self.frames * self.samples_per_frame
            patches = divide("samples_per_patch", (samples,), (self.samples_per_patch,))
            positions = FourierPositions(patches, self.audio_bands, (samples,))
            inputs["audio"] = AudioInput(self.samples_per_patch, positions, FRAME_RATE * self.samples_per_frame)
            places = FourierPositions(patches, self.audio_bands, (samples,), endpoint=False)
            outputs["audio"] = AudioOutput(self.samples_per_patch, places)
        if self.classes is not None:
            inputs["label"] = LabelInput(self.classes)
            outputs["label"] = LabelOutput(self.classes, self.label_query_channels, self.class_names)
        return PerceiverIO(
            inputs=inputs,
            outputs=outputs,
            maskable=list(inputs),
            output_channels=self.output_channels,
            **self.sizes(),
        )


@dataclass(frozen=True, kw_only=True)
class ClipClassifierConfig(ModelConfig, Sizes):
    """Classes of clips from video and sound, or from one of them (AudioSet, section 4.6 and appendix).

    The defaults are the paper's model of raw sound and video. Input "video": [B, frames, 3, height, width] in [0, 1];
    input "audio": [B, samples] in [-1, 1]; output "label": logits [B, classes].

    Attributes:
        frames: number of frames of a clip; no video, if null.
        image_size: their height and width in pixels.
        video_patch: frames, rows and columns of a patch; each divides the video's.
        video_bands: frequencies of the video's Fourier positions in each dimension.
        sound: "samples", cut into patches of `samples_per_patch`; "conv", the same through `filters`, as in
            `ConvAudioInput`; "mel", as in `MelInput` with `mel_patch`, `mel_bands`, `hop`, `window`; or null for video
            alone.
        samples: samples of the sound.
        samples_per_patch: samples of one element of the sound.
        audio_bands: frequencies of the sound's Fourier positions in each dimension.
        filters: channels of the convolution of "conv".
        mel_patch: spectra and bands of a patch of the mel-spectrogram.
        mel_bands: bands of the mel-spectrogram.
        hop: samples from one spectrum to the next.
        window: samples of one spectrum.
        sample_rate: samples a second.
        classes: number of classes.
        class_names: what they are called.
        multilabel: whether several classes can apply at once.
        decoder: "query" as in Perceiver IO, or "average" as in the first Perceiver.
        query_channels: channels of the label's query.
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
    classes: Count = 527
    class_names: list[str] | None = None
    multilabel: bool = True
    decoder: Literal["query", "average"] = "query"
    query_channels: Count = 1024

    def build(self) -> PerceiverIO:
        inputs: dict[str, InputAdapter] = {}
        if self.frames is not None:
            grid = divide("video_patch", (self.frames, *self.image_size), self.video_patch)
            inputs["video"] = VideoInput(self.video_patch, FourierPositions(grid, self.video_bands))
        samples, rate, bands = self.samples, self.sample_rate, self.audio_bands
        if self.sound == "mel":
            (spectra,) = divide("hop", (samples,), (self.hop,))
            positions = FourierPositions(divide("mel_patch", (spectra, self.mel_bands), self.mel_patch), bands)
            inputs["audio"] = MelInput(self.mel_patch, positions, self.mel_bands, self.hop, self.window, rate)
        elif self.sound is not None:
            grid = divide("samples_per_patch", (samples,), (self.samples_per_patch,))
            if self.sound == "samples":
                positions = FourierPositions(grid, bands, (samples,))
                inputs["audio"] = AudioInput(self.samples_per_patch, positions, rate)
            else:
                positions = FourierPositions(grid, bands)
                inputs["audio"] = ConvAudioInput(self.samples_per_patch, positions, rate, self.filters)
        if not inputs:
            raise PerceiversError("model.frames and model.sound are both null: a clip has video, sound or both.")
        query_channels = self.query_channels if self.decoder == "query" else None
        label = LabelOutput(self.classes, query_channels, self.class_names, self.multilabel)
        return PerceiverIO(inputs=inputs, outputs={"label": label}, **self.sizes())


def divide(field: str, sizes: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Returns how many patches there are along each dimension.

    Raises:
        PerceiversError: the patches do not fill the sizes.
    """
    if any(size % side for size, side in zip(sizes, patch, strict=True)):
        raise PerceiversError(f"model.{field} = {list(patch)} is not allowed: it must divide {list(sizes)}.")
    return tuple(size // side for size, side in zip(sizes, patch, strict=True))


def kinetics(row: str, **settings: Any) -> Preset:
    """Returns a row of the paper's autoencoding table (section 4.3); decoded is what a training step decodes."""
    label = make_example(dtype=torch.long)
    inputs = {"video": make_example(16, 3, 224, 224), "audio": make_example(16 * 1920), "label": label}
    points = torch.empty(512, dtype=torch.long, device="meta")
    outputs = {"video": points, "audio": points, "label": None}
    return Preset("autoencoding", row, AutoencoderConfig(**settings), inputs, 20.0e6, 310e9, outputs)


def audioset(row: str, paper_parameters: float, paper_flops: float, **settings: Any) -> Preset:
    """Returns a row of the paper's AudioSet table (section 4.6 and appendix)."""
    inputs = {"video": make_example(32, 3, 224, 224), "audio": make_example(61440)}
    config = ClipClassifierConfig(**settings)
    return Preset("clip_classification", row, config, inputs, paper_parameters, paper_flops)


PERCEIVER: dict[str, Any] = {"decoder": "average"}  # the first Perceiver, as the paper reproduces it
MEL: dict[str, Any] = {"sound": "mel", "audio_bands": 64}  # 120 spectra of 40 bands: the paper's 4,800 elements

AUTOENCODER_88X = kinetics("compression 88x", latents=784)
AUTOENCODER_176X = kinetics("compression 176x", latents=392)
AUTOENCODER_352X = kinetics("compression 352x", latents=196)
AUDIOSET_RAW_PERCEIVER = audioset("Perceiver, raw audio + video", 21.0e6, 52.3e9, **PERCEIVER)
AUDIOSET_RAW = audioset("Perceiver IO, raw audio + video", 25.0e6, 52.9e9)
AUDIOSET_MEL_PERCEIVER = audioset("Perceiver, mel + video", 21.0e6, 60.7e9, **MEL, **PERCEIVER)
AUDIOSET_MEL = audioset("Perceiver IO, mel + video", 88.2e6, 129.5e9, **MEL, channels=1024)
