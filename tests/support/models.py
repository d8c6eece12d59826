"""A tiny model for each task, with random weights that leave no part without effect."""

import torch

from perceivers import PerceiverIO
from perceivers.clips.model import AutoencoderConfig, ClipClassifierConfig
from perceivers.flow.model import OpticalFlowConfig
from perceivers.images.model import ImageClassifierConfig
from perceivers.text.model import LanguageConfig, text_tasks

TRUNK = {"latents": 6, "channels": 16, "depth": 1, "heads": 2}
TILE = (22, 28)


def shaken(model: PerceiverIO) -> PerceiverIO:
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def language(**settings):
    channels = {"embedding_channels": 16, "qk_channels": 8, "v_channels": 16}
    decoder = {"decoder_heads": 2, "decoder_qk_channels": 8, "decoder_v_channels": 16}
    return shaken(LanguageConfig(**({"length": 48, "cross_heads": 2} | TRUNK | channels | decoder | settings)).build())


def labels(tasks=None, names=None, num_task_tokens=0, shared_query=False, **settings):
    """Of texts; if nothing is said, of three classes."""
    return shaken(text_tasks(language(**settings), tasks or {"topic": 3}, names, num_task_tokens, shared_query))


def optical(**settings):
    return shaken(
        OpticalFlowConfig(**({"image_size": TILE, "feature_channels": 8, "bands": 3} | TRUNK | settings)).build()
    )


def constant_flow(right, down):
    """Answers the same everywhere, whatever it sees."""
    model = optical()
    model.heads["flow"].weight.data.zero_()
    model.heads["flow"].bias.data = torch.tensor([right, down]) / model.outputs["flow"].scale
    return model


def classifier(**settings):
    sizes = {"image_size": 12, "bands": 3, "query_channels": 16, "classes": 10, "num_blocks": 2}
    return shaken(ImageClassifierConfig(**(sizes | TRUNK | settings)).build())


def coder(**settings):
    clip = {"frames": 4, "image_size": (16, 16), "samples_per_frame": 320, "video_bands": 3, "audio_bands": 4}
    channels = {"classes": 7, "label_query_channels": 16, "output_channels": 20}
    return shaken(AutoencoderConfig(**(clip | channels | TRUNK | settings)).build())


def hearer(**settings):
    clip = {"frames": 4, "image_size": (16, 16), "video_patch": (2, 8, 8), "video_bands": 3, "samples": 1280}
    sound = {"samples_per_patch": 16, "audio_bands": 4, "sample_rate": 8000, "classes": 5, "query_channels": 16}
    return shaken(ClipClassifierConfig(**(clip | sound | TRUNK | settings)).build())


MODELS = {
    "fill-mask": language,
    "classify-text": labels,
    "flow": optical,
    "autoencode": coder,
    "classify-image": classifier,
    "classify-clip": hearer,
}
