"""What an answer attends to in the inputs.

Shape suffixes: B batch, H heads, P queries, N latents, M inputs
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from perceivers.model.intermediates import record_attention
from perceivers.model.perceiver_io import PerceiverIO


def answer_with_attention(
    model: PerceiverIO, data: Mapping[str, Any], outputs: Mapping[str, Tensor | None]
) -> tuple[dict[str, Any], Tensor]:
    """Returns the outputs of a model, and the weights [B, M] with which their queries reach the elements of the inputs.

    The weights of the decoder's attention to the latents are multiplied by those of the encoder's first
    cross-attention, averaged over heads and queries; they sum to 1. A model without queries, which averages the
    latents, gives each the same weight. What self-attention moves between latents is not in them.
    """
    with record_attention(model.encoder.cross_attentions[0]) as reads:
        encoded = model.encode(data)
    weight_BNM = reads["attention"][0].float().mean(1)
    if not hasattr(model, "decoder"):
        return model.decode(encoded, outputs), weight_BNM.mean(1)
    with record_attention(model.decoder) as queries:
        answers = model.decode(encoded, outputs, max_memory=None)
    (weight_BHPN,) = queries["attention"]
    return answers, (weight_BHPN.float().mean((1, 2))[:, None] @ weight_BNM)[:, 0]
