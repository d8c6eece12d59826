"""Small models of `transformers` with random weights, of all its classes that can be loaded."""

import torch
import transformers

from perceivers.released import transformers as port

SMALL = {
    "num_latents": 12,
    "d_latents": 32,
    "num_blocks": 2,
    "num_self_attends_per_block": 2,
    "num_self_attention_heads": 4,
    "num_cross_attention_heads": 1,
}
CONFIGS = {
    port.LANGUAGE: SMALL
    | {
        "num_blocks": 1,
        "num_cross_attention_heads": 8,
        "num_self_attention_heads": 8,
        "d_model": 24,
        "qk_channels": 16,
        "v_channels": 32,
        "max_position_embeddings": 40,
        "vocab_size": 262,
        "self_attention_widening_factor": 2,
        "hidden_act": "gelu_pytorch_tanh",
    },
    port.FOURIER: SMALL | {"num_labels": 5, "image_size": 224},
    port.LEARNED: SMALL | {"num_labels": 5, "image_size": 12, "cross_attention_widening_factor": 2},
    port.CONV: SMALL | {"num_labels": 5, "image_size": 224},
    port.FLOW: SMALL | {"train_size": [16, 24], "num_blocks": 1},
    port.AUTOENCODER: SMALL
    | {
        "num_labels": 7,
        "num_frames": 3,
        "image_size": 4,
        "output_shape": [1, 3, 16, 16],
        "audio_samples_per_frame": 32,
        "output_num_channels": 20,
        "_label_trainable_num_channels": 48,
    },
}


def peer(architecture, folder, **changes):
    """A model of theirs with random weights, saved to a folder."""
    torch.manual_seed(1)
    config = transformers.PerceiverConfig(**(CONFIGS[architecture] | changes))
    model = getattr(transformers, architecture)(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    for parameter in model.parameters():  # theirs starts with zero biases and norms of one, which would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model
