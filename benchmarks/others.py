"""Models that are not published: a configuration shared with `perceiver-pytorch`, and those that show the scaling."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.calls import Work
from benchmarks.models import DTYPES
from benchmarks.rows import Row
from perceivers import FourierPositions, PerceiverIO
from perceivers.adapters import ArrayInput, ArrayOutput, LabelOutput

INPUTS, CHANNELS, CLASSES = 4096, 64, 1000
SAME = "4,096 inputs of 64 channels, 256 latents of 512, 6 layers of 8 heads of 64, cross-attentions of 1 head of 64, \
1 query of 512 channels, 1,000 logits"
DIFFERENT = "their MLP is a gated one (GEGLU) of 4 times the width, ours a plain one of 6 times, which has as many \
weights; their projections of queries, keys and values have no bias"


class PeerWithQuery(nn.Module):
    """A `perceiver_pytorch.PerceiverIO` with its learned query, so that both sides are called with data alone."""

    def __init__(self, latents: int, channels: int, depth: int) -> None:
        super().__init__()
        import perceiver_pytorch

        self.model = perceiver_pytorch.PerceiverIO(
            depth=depth,
            dim=CHANNELS,
            queries_dim=channels,
            logits_dim=CLASSES,
            num_latents=latents,
            latent_dim=channels,
            cross_heads=1,
            latent_heads=channels // 64,
            cross_dim_head=64,
            latent_dim_head=64,
            decoder_ff=True,
        )
        self.query = nn.Parameter(torch.randn(1, channels))

    def forward(self, data: Tensor) -> Tensor:
        """[B, M, C] -> logits [B, classes]."""
        return self.model(data, queries=self.query)[:, 0]


def perceiver_pytorch_model(side: str, dtype: str, device: str, tiny: bool) -> nn.Module:
    """The configuration that both can express as nearly as they can, with random weights."""
    latents, channels, depth = (16, 128, 2) if tiny else (256, 512, 6)
    torch.manual_seed(0)
    if side == "theirs":
        model: nn.Module = PeerWithQuery(latents, channels, depth)
    else:
        model = PerceiverIO(
            inputs={"data": ArrayInput(CHANNELS)},
            outputs={"label": LabelOutput(CLASSES, channels)},
            latents=latents,
            channels=channels,
            depth=depth,
            heads=channels // 64,
            widening_factor=6,
            cross_widening_factor=6,
            decoder_qk_channels=64,
            decoder_v_channels=64,
            decoder_widening_factor=6,
            query_residual=False,
            gelu="exact",
        )
    return model.to(DTYPES[dtype]).to(device).eval()


def perceiver_pytorch_work(row: Row, side: str, model: nn.Module, device: str, tiny: bool) -> Work:
    """Logits, or the gradient of all weights for their cross-entropy."""
    torch.manual_seed(1)
    data = torch.randn(row.batch, 64 if tiny else INPUTS, CHANNELS).to(device, DTYPES[row.dtype])
    label_B = torch.arange(row.batch).to(device)

    def forward() -> Tensor:
        return model(data) if side == "theirs" else model({"data": data})["label"]

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = F.cross_entropy(forward().float(), label_B)
        loss.backward()
        return loss.detach()

    call = forward if row.mode == "forward" else step
    return Work(call, call)


LATENTS, WIDTH, DEPTH, HEADS, ANSWERED = 256, 256, 4, 8, 16
FEW = 1024
"""Inputs there are while the number of outputs grows."""


class Encoder(nn.Module):
    """A Transformer encoder of the same width, depth, heads and width of MLPs, that answers from the average."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(CHANNELS, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=False
        )
        self.encoder = nn.TransformerEncoder(layer, DEPTH)
        self.answer = nn.Linear(WIDTH, ANSWERED)

    def forward(self, data: Tensor) -> Tensor:
        """[B, M, C] -> [B, E]."""
        return self.answer(self.encoder(self.read(data)).mean(1))


def scaling_model(what: str, count: int) -> nn.Module:
    """A model for `count` inputs ("inputs", "transformer") or outputs ("outputs"), with random weights, float32."""
    torch.manual_seed(0)
    if what == "transformer":
        # Torch's "fast path" for encoders forms the score matrices on CPU; without it attention is fused, which is more
        # than twice as fast at 2,048 inputs: the better baseline.
        torch.backends.mha.set_fastpath_enabled(False)
        return Encoder().eval()
    answer: Any = (
        LabelOutput(ANSWERED, WIDTH) if what == "inputs" else ArrayOutput(ANSWERED, FourierPositions((count,), 32))
    )
    return PerceiverIO(
        {"data": ArrayInput(CHANNELS)}, {"answer": answer}, latents=LATENTS, channels=WIDTH, depth=DEPTH, heads=HEADS
    ).eval()


def scaling_work(what: str, count: int, model: nn.Module, device: str) -> Work:
    """One forward pass of one example of `scaling_model`."""
    data = torch.randn(1, FEW if what == "outputs" else count, CHANNELS, device=device)

    def call() -> Tensor:
        return model(data) if what == "transformer" else model({"data": data})["answer"]

    return Work(call, call)
