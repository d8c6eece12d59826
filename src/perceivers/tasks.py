"""The models of the paper's tasks: which inputs, outputs and sizes make a Perceiver IO for each.

Every function returns a `PerceiverIO`; its defaults are the paper's model. Nothing here computes anything.
"""

from collections.abc import Sequence
from typing import Literal

import torch

from perceivers.adapters.audio import AudioInput, AudioOutput, ConvAudioInput, MelInput
from perceivers.adapters.image import IMAGENET_MEAN, IMAGENET_STD, ConvStem, ImageInput, Patches
from perceivers.adapters.label import LabelInput, LabelOutput
from perceivers.adapters.text import TextInput, TextOutput
from perceivers.adapters.video import VideoInput, VideoOutput
from perceivers.errors import PerceiversError
from perceivers.flow.adapter import FlowOutput, FramePairInput
from perceivers.model.adapter import InputAdapter, OutputAdapter
from perceivers.model.attention import Gelu
from perceivers.model.perceiver_io import PerceiverIO, check_sizes
from perceivers.model.positions import FourierPositions, LearnedPositions, Positions
from perceivers.text.bert import BERT
from perceivers.text.task_output import TaskOutput

FRAME_RATE = 25
"""Frames a second of clips that are autoencoded (section 4.3)."""


def image_classifier(
    *,
    preprocessing: Literal["patches", "conv"] = "patches",
    patch_size: int = 1,
    feature_channels: int | None = None,
    padding: Literal["same", "port"] = "same",
    positions: Literal["fourier", "learned"] = "fourier",
    bands: int = 64,
    position_channels: int = 256,
    image_size: int | Sequence[int] = 224,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop: float = 224 / 256,
    classes: int = 1000,
    class_names: list[str] | None = None,
    latents: int = 512,
    channels: int = 1024,
    depth: int = 6,
    blocks: int = 8,
    heads: int = 8,
    widening: int = 1,
    qk_channels: int | None = None,
    v_channels: int | None = None,
    cross_heads: int = 1,
    cross_widening: int = 1,
    cross_attends: int = 1,
    share_cross_attention: bool = True,
    decoder: Literal["query", "average"] = "query",
    query_channels: int = 1024,
    query_residual: bool = True,
    dropout: float = 0.0,
    gelu: Gelu = "tanh",
    checkpointing: bool = False,
) -> PerceiverIO:
    """Image classification (section 6; table 6 of the appendix). The defaults are the paper's 2D Fourier model.

    Input "image": [B, len(mean), height, width] in [0, 1]; output "label": logits [B, classes].

    Args:
        preprocessing: "patches" (of one pixel by default, so pixels) or "conv" (7x7 convolution and pooling).
        patch_size: side of a patch in pixels.
        feature_channels: channels to which patches are projected (not at all, if not given) or the convolution gives.
        padding: of the convolution, as in `ConvStem`.
        positions: "fourier" with `bands` frequencies per dimension, or "learned" with `position_channels`.
        image_size: side, or height and width, of the training images in pixels.
        mean, std, crop: as in `ImageInput`.
        classes, class_names: as in `LabelOutput`.
        decoder: "query" as in Perceiver IO, or "average" as in the first Perceiver.
        query_channels: channels of the label's query.
        The others are those of `PerceiverIO`.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    features: Patches | ConvStem
    if preprocessing == "patches":
        features = Patches(patch_size, len(mean), feature_channels)
    elif preprocessing == "conv":
        features = ConvStem(feature_channels or 64, len(mean), padding)
    else:
        raise PerceiversError(f"preprocessing = {preprocessing!r} is not allowed: it is 'patches' or 'conv'.")
    encoding: Positions
    grid = features.grid(height, width)
    if positions == "fourier":
        port = preprocessing == "conv" and padding == "port"  # its grid is smaller than what bounds its frequencies
        encoding = FourierPositions(grid, bands, ConvStem().grid(height, width) if port else None)
    elif positions == "learned":
        encoding = LearnedPositions(grid, position_channels, projected=True)
    else:
        raise PerceiversError(f"positions = {positions!r} is not allowed: it is 'fourier' or 'learned'.")
    if decoder not in ("query", "average"):
        raise PerceiversError(f"decoder = {decoder!r} is not allowed: it is 'query' or 'average'.")
    return PerceiverIO(
        inputs={"image": ImageInput((height, width), features, encoding, mean, std, crop)},
        outputs={"label": LabelOutput(classes, query_channels if decoder == "query" else None, class_names)},
        latents=latents,
        channels=channels,
        depth=depth,
        blocks=blocks,
        heads=heads,
        widening=widening,
        qk_channels=qk_channels,
        v_channels=v_channels,
        cross_heads=cross_heads,
        cross_widening=cross_widening,
        cross_attends=cross_attends,
        share_cross_attention=share_cross_attention,
        query_residual=query_residual,
        dropout=dropout,
        gelu=gelu,
        checkpointing=checkpointing,
    )


def language_model(
    *,
    vocabulary: int = 262,
    length: int = 2048,
    embedding_channels: int = 768,
    latents: int = 256,
    channels: int = 1280,
    depth: int = 26,
    blocks: int = 1,
    heads: int = 8,
    widening: int = 1,
    qk_channels: int | None = 256,
    v_channels: int | None = 1280,
    cross_heads: int = 8,
    cross_widening: int = 1,
    decoder_heads: int = 8,
    decoder_qk_channels: int | None = 256,
    decoder_v_channels: int | None = 768,
    dropout: float = 0.0,
    gelu: Gelu = "tanh",
    checkpointing: bool = False,
) -> PerceiverIO:
    """Masked language modelling (section 4.1; section 3 of the appendix). The defaults are the paper's byte model.

    Input "text": tokens [B, M], M up to `length`; output "text": logits [B, M, vocabulary].

    Args:
        vocabulary: number of tokens: for bytes 6 special ones (see `perceivers.text.tokenizers`) and 256.
        length: the most tokens of a text.
        embedding_channels: channels of a token, of its position and of the queries.
        The others are those of `PerceiverIO`.
    """
    return PerceiverIO(
        inputs={"text": TextInput(vocabulary, length, embedding_channels)},
        outputs={"text": TextOutput("text")},
        latents=latents,
        channels=channels,
        depth=depth,
        blocks=blocks,
        heads=heads,
        widening=widening,
        qk_channels=qk_channels,
        v_channels=v_channels,
        cross_heads=cross_heads,
        cross_widening=cross_widening,
        decoder_heads=decoder_heads,
        decoder_qk_channels=decoder_qk_channels,
        decoder_v_channels=decoder_v_channels,
        query_residual=False,
        dropout=dropout,
        gelu=gelu,
        checkpointing=checkpointing,
    )


def text_tasks(
    language: PerceiverIO | BERT,
    tasks: dict[str, int],
    names: dict[str, list[str]] | None = None,
    extra: int = 0,
    shared_query: bool = False,
) -> PerceiverIO | BERT:
    """A language model's weights in a model that predicts labels of texts (section 4.1).

    Input "text" as before; output "label": by task, logits [B, classes].

    Args:
        language: a model that `language_model` makes, or BERT.
        tasks, names: as in `TaskHeads`.
        extra: as in `TextInput`.
        shared_query: as in `TaskOutput`; BERT has no queries.
    """
    text = language.inputs["text"]
    assert isinstance(text, TextInput)
    model: PerceiverIO | BERT
    if isinstance(language, BERT):
        model = BERT(**(language.config | {"tasks": tasks, "names": names, "extra": extra}))
    else:
        inputs = {"text": TextInput(text.vocabulary, text.length, text.channels, extra)}
        outputs = {"label": TaskOutput(tasks, text.channels, names, shared_query)}
        model = PerceiverIO(**(language.config | {"inputs": inputs, "outputs": outputs}))
    weights = language.state_dict()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name in weights:
                tensor[: len(weights[name])] = weights[name]  # extra tokens keep their fresh vectors
    return model


def optical_flow(
    *,
    image_size: Sequence[int] = (368, 496),
    frames: Literal["concatenated", "separate"] = "concatenated",
    downsampling: Literal["none", "conv"] = "none",
    patch_size: int = 3,
    feature_channels: int = 64,
    bands: int = 64,
    scale: float = 0.2,
    latents: int = 2048,
    channels: int = 512,
    depth: int = 24,
    blocks: int = 1,
    heads: int = 16,
    widening: int = 1,
    qk_channels: int | None = None,
    v_channels: int | None = None,
    cross_heads: int = 1,
    cross_widening: int = 1,
    dropout: float = 0.0,
    gelu: Gelu = "tanh",
    checkpointing: bool = False,
) -> PerceiverIO:
    """Optical flow (section 4.2; its ablation in the appendix). The defaults are the released model.

    Input "frames": [B, 2, 3, height, width] in [0, 1]; output "flow": [B, 2, height, width] in pixels, to the right
    and down.

    Args:
        image_size: height and width of the frames in training, in pixels.
        frames: as in `FramePairInput`: one image of six colours, or each frame by itself.
        downsampling: "none", for the patch around every pixel; or "conv", for a 7x7 convolution and pooling to a
            quarter of each side, and flow that is upsampled from there.
        patch_size: side of the patch around a pixel; the convolution has none.
        feature_channels: channels to which patches are projected or the convolution gives.
        bands: frequencies of the Fourier positions in each dimension.
        scale: pixels of flow for a 1 of the last layer.
        The others are those of `PerceiverIO`.
    """
    if len(image_size) != 2 or min(image_size) < 1:
        raise PerceiversError(
            f"image_size = {list(image_size)} is not allowed: it must be two numbers, height and width, of at least 1."
        )
    check_sizes(patch_size=patch_size, feature_channels=feature_channels)
    separate = frames == "separate"
    colours = 3 if separate else 6
    features: Patches | ConvStem
    if downsampling == "none":
        features = Patches(patch_size, colours, feature_channels, overlapping=True)
    elif downsampling == "conv":
        features = ConvStem(feature_channels, colours)
    else:
        raise PerceiversError(f"downsampling = {downsampling!r} is not allowed: it is 'none' or 'conv'.")
    grid = features.grid(*image_size)
    positions = FourierPositions((2, *grid) if separate else grid, bands)
    return PerceiverIO(
        inputs={"frames": FramePairInput(image_size, features, positions, frames)},
        outputs={"flow": FlowOutput("frames", scale, 4 if downsampling == "conv" else None)},
        latents=latents,
        channels=channels,
        depth=depth,
        blocks=blocks,
        heads=heads,
        widening=widening,
        qk_channels=qk_channels,
        v_channels=v_channels,
        cross_heads=cross_heads,
        cross_widening=cross_widening,
        query_residual=False,
        dropout=dropout,
        gelu=gelu,
        checkpointing=checkpointing,
    )


def autoencoder(
    *,
    frames: int = 16,
    image_size: Sequence[int] = (224, 224),
    patch_size: int = 4,
    video_bands: int = 32,
    samples_per_frame: int | None = 1920,
    samples_per_patch: int = 16,
    audio_bands: int = 192,
    classes: int | None = 700,
    class_names: list[str] | None = None,
    label_query_channels: int = 1024,
    output_channels: int = 512,
    latents: int = 784,
    channels: int = 512,
    depth: int = 8,
    blocks: int = 1,
    heads: int = 8,
    widening: int = 1,
    qk_channels: int | None = None,
    v_channels: int | None = None,
    cross_heads: int = 1,
    cross_widening: int = 1,
    dropout: float = 0.0,
    gelu: Gelu = "tanh",
    checkpointing: bool = False,
) -> PerceiverIO:
    """Autoencoding of video, sound and label (section 4.3). The defaults are the paper's model of 88x compression.

    Inputs and outputs "video": [B, frames, 3, height, width] in [0, 1]; "audio": [B, frames * samples_per_frame] in
    [-1, 1]; "label": class index [B] in, logits [B, classes] out. All inputs are maskable: with the label masked the
    model is a classifier.

    Args:
        frames, image_size: of a clip, in pixels.
        patch_size: side of the video's input patches, in pixels; it must divide the image size.
        video_bands, audio_bands: frequencies of the Fourier positions in each dimension.
        samples_per_frame, samples_per_patch: of the sound, and of one of its elements; a second has 25 frames. No
            sound, if the first is None.
        classes, class_names: as in `LabelOutput`; no label, if `classes` is None.
        label_query_channels: channels of the label's query.
        output_channels: of the linear layer behind the decoder that all outputs share.
        The others are those of `PerceiverIO`.
    """
    height, width = image_size
    grid = divide("patch_size", (frames, height, width), (1, patch_size, patch_size))
    pixels = FourierPositions((frames, height, width), video_bands, grid, endpoint=False)
    inputs: dict[str, InputAdapter] = {
        "video": VideoInput((1, patch_size, patch_size), FourierPositions(grid, video_bands))
    }
    outputs: dict[str, OutputAdapter] = {"video": VideoOutput(pixels)}
    if samples_per_frame is not None:
        samples = frames * samples_per_frame
        patches = divide("samples_per_patch", (samples,), (samples_per_patch,))
        positions = FourierPositions(patches, audio_bands, (samples,))
        inputs["audio"] = AudioInput(samples_per_patch, positions, FRAME_RATE * samples_per_frame)
        places = FourierPositions(patches, audio_bands, (samples,), endpoint=False)
        outputs["audio"] = AudioOutput(samples_per_patch, places)
    if classes is not None:
        inputs["label"] = LabelInput(classes)
        outputs["label"] = LabelOutput(classes, label_query_channels, class_names)
    return PerceiverIO(
        inputs=inputs,
        outputs=outputs,
        latents=latents,
        channels=channels,
        depth=depth,
        blocks=blocks,
        heads=heads,
        widening=widening,
        qk_channels=qk_channels,
        v_channels=v_channels,
        cross_heads=cross_heads,
        cross_widening=cross_widening,
        query_residual=False,
        maskable=list(inputs),
        output_channels=output_channels,
        dropout=dropout,
        gelu=gelu,
        checkpointing=checkpointing,
    )


def clip_classifier(
    *,
    frames: int | None = 32,
    image_size: Sequence[int] = (224, 224),
    video_patch: Sequence[int] = (2, 8, 8),
    video_bands: int = 16,
    sound: Literal["samples", "conv", "mel"] | None = "samples",
    samples: int = 61440,
    samples_per_patch: int = 128,
    audio_bands: int = 128,
    filters: int = 64,
    mel_patch: Sequence[int] = (1, 1),
    mel_bands: int = 40,
    hop: int = 512,
    window: int = 2048,
    sample_rate: int = 48000,
    classes: int = 527,
    class_names: list[str] | None = None,
    several: bool = True,
    latents: int = 512,
    channels: int = 512,
    depth: int = 12,
    blocks: int = 1,
    heads: int = 8,
    widening: int = 1,
    qk_channels: int | None = None,
    v_channels: int | None = None,
    cross_heads: int = 1,
    cross_widening: int = 1,
    decoder: Literal["query", "average"] = "query",
    query_channels: int = 1024,
    query_residual: bool = True,
    dropout: float = 0.0,
    gelu: Gelu = "tanh",
    checkpointing: bool = False,
) -> PerceiverIO:
    """Classes of clips from video and sound, or from one of them (AudioSet, section 4.6 and appendix).

    The defaults are the paper's model of raw sound and video. Input "video": [B, frames, 3, height, width] in [0, 1];
    input "audio": [B, samples] in [-1, 1]; output "label": logits [B, classes].

    Args:
        frames, image_size: of the video; no video, if `frames` is None.
        video_patch: frames, rows and columns of a patch; each divides the video's.
        video_bands, audio_bands: frequencies of the Fourier positions in each dimension.
        sound: "samples", cut into patches of `samples_per_patch`; "conv", the same through `filters`, as in
            `ConvAudioInput`; "mel", as in `MelInput` with `mel_patch`, `mel_bands`, `hop`, `window`; or None for video
            alone.
        samples, sample_rate: of the sound; a second has `sample_rate` samples.
        classes, class_names, several: as in `LabelOutput`.
        decoder: "query" as in Perceiver IO, or "average" as in the first Perceiver.
        query_channels: channels of the label's query.
        The others are those of `PerceiverIO`.

    Raises:
        PerceiversError: there is neither video nor sound, or sizes do not fit.
    """
    inputs: dict[str, InputAdapter] = {}
    if frames is not None:
        grid = divide("video_patch", (frames, *image_size), video_patch)
        inputs["video"] = VideoInput(video_patch, FourierPositions(grid, video_bands))
    if sound == "samples":
        grid = divide("samples_per_patch", (samples,), (samples_per_patch,))
        inputs["audio"] = AudioInput(samples_per_patch, FourierPositions(grid, audio_bands, (samples,)), sample_rate)
    elif sound == "conv":
        grid = divide("samples_per_patch", (samples,), (samples_per_patch,))
        inputs["audio"] = ConvAudioInput(samples_per_patch, FourierPositions(grid, audio_bands), sample_rate, filters)
    elif sound == "mel":
        (spectra,) = divide("hop", (samples,), (hop,))
        grid = divide("mel_patch", (spectra, mel_bands), mel_patch)
        positions = FourierPositions(grid, audio_bands)
        inputs["audio"] = MelInput(mel_patch, positions, mel_bands, hop, window, sample_rate)
    elif sound is not None:
        raise PerceiversError(f"sound = {sound!r} is not allowed: it is 'samples', 'conv', 'mel' or None.")
    if not inputs:
        raise PerceiversError("frames and sound are both None: a clip has video, sound or both.")
    if decoder not in ("query", "average"):
        raise PerceiversError(f"decoder = {decoder!r} is not allowed: it is 'query' or 'average'.")
    label = LabelOutput(classes, query_channels if decoder == "query" else None, class_names, several)
    return PerceiverIO(
        inputs=inputs,
        outputs={"label": label},
        latents=latents,
        channels=channels,
        depth=depth,
        blocks=blocks,
        heads=heads,
        widening=widening,
        qk_channels=qk_channels,
        v_channels=v_channels,
        cross_heads=cross_heads,
        cross_widening=cross_widening,
        query_residual=query_residual,
        dropout=dropout,
        gelu=gelu,
        checkpointing=checkpointing,
    )


def divide(field: str, sizes: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """How many patches there are along each dimension.

    Raises:
        PerceiversError: the patches do not fill the sizes.
    """
    if len(patch) != len(sizes) or any(side < 1 or size % side for size, side in zip(sizes, patch, strict=True)):
        raise PerceiversError(f"{field} = {list(patch)} is not allowed: it must divide {list(sizes)}.")
    return tuple(size // side for size, side in zip(sizes, patch, strict=True))
