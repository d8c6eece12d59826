"""BERT (Devlin et al., 2019): the Transformer that the paper compares its language models with (section 4.1).

It has the embedding, the attention and the MLP of the Perceiver IO beside it, and the same calls, so that both are
trained by the same code. Layers are normalized before attention and MLP (pre-norm), as Perceiver IO's are.

Shape suffixes: B batch, M tokens, P some of the tokens, C channels, V vocabulary
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.adapters.ngrams import HashedNgrams
from perceivers.adapters.text import TextInput
from perceivers.errors import PerceiversError
from perceivers.model import kernels
from perceivers.model.adapter import Adapters
from perceivers.model.arguments import check_indices
from perceivers.model.attention import SelfAttention
from perceivers.model.kernels.onednn import linear
from perceivers.model.linear import Linear, activate
from perceivers.model.saving import Model
from perceivers.model.sizes import Gelu
from perceivers.text.task_output import TaskHeads


class TokenLogits(nn.Module):
    """Logits of tokens: a linear layer, GELU and norm, then products with the transposed embedding, and a bias."""

    def __init__(self, text: TextInput, gelu: Gelu) -> None:
        super().__init__()
        self.text = (text,)  # in a tuple, so that torch does not take the input's weights for this module's own
        self.gelu = gelu
        self.hidden = Linear(text.channels, text.channels)
        self.norm = nn.LayerNorm(text.channels)
        self.bias = nn.Parameter(torch.zeros(text.embedding.num_embeddings))

    def forward(self, h_BPC: Tensor) -> Tensor:
        """[B, P, C] -> logits [B, P, V]."""
        h_BPC = self.norm(activate(self.hidden(h_BPC), self.gelu))
        return linear(h_BPC, self.text[0].embedding.weight, self.bias)


class BERT(Model):
    """A Transformer encoder of text. The defaults are BERT Base.

    Input "text": tokens [B, M], or `InputArray(tokens, mask_BM)`. Output "text": logits [B, M, V], or [B, P, V] of some
    indices; or, where `tasks` are given, "label": by task, logits [B, classes] read at the first token.

    Args:
        vocabulary: V, number of tokens.
        length: maximum number of tokens of a text.
        channels: C, channels of a token.
        depth: number of self-attention layers.
        heads: heads of each layer.
        widening_factor: width of their MLPs relative to `channels`.
        tasks, names: as in `TaskHeads`: predict labels instead of tokens.
        num_task_tokens: as in `TextInput`.
        dropout: probability of dropping an attention weight in training.
        gelu: as in `PerceiverIO`.
        ngrams: as in `TextInput`.
    """

    def __init__(
        self,
        vocabulary: int = 32000,
        length: int = 512,
        channels: int = 768,
        depth: int = 12,
        heads: int = 12,
        widening_factor: int = 4,
        tasks: dict[str, int] | None = None,
        names: dict[str, list[str]] | None = None,
        num_task_tokens: int = 0,
        dropout: float = 0.0,
        gelu: Gelu = "tanh",
        ngrams: HashedNgrams | None = None,
    ) -> None:
        super().__init__()
        text = TextInput(vocabulary, length, channels, num_task_tokens, ngrams)
        self.inputs = Adapters({"text": text})
        self.norm_x = nn.LayerNorm(channels)  # else what layers add at first, much larger, hides the tokens
        self.layers = nn.ModuleList(
            SelfAttention(channels, heads, widening_factor=widening_factor, dropout=dropout, gelu=gelu)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels)
        self.tasks = len(tasks or ())
        self.outputs: Adapters[nn.Module] = Adapters(
            {"text": TokenLogits(text, gelu)} if tasks is None else {"label": TaskHeads(tasks, channels, names)}
        )
        kernels.optimize(self)

    def forward(self, data: Mapping[str, Any], outputs: Mapping[str, Tensor | None] | None = None) -> dict[str, Any]:
        """Reads `data` and predicts `outputs`, by name those at integer indices [P] or [B, P], or all for None."""
        x_BMC, mask_BM = self.inputs["text"](data["text"])[:2]
        x_BMC = self.norm_x(x_BMC)
        for layer in self.layers:
            x_BMC = layer(x_BMC, mask_BM)
        predictions = {}
        for name, indices in (dict.fromkeys(self.outputs) if outputs is None else outputs).items():
            if name not in self.outputs:
                raise PerceiversError(f"the model has no output {name!r}: it has {', '.join(self.outputs)}.")
            if indices is not None:
                total = self.tasks if name == "label" else x_BMC.shape[1]
                check_indices(f"indices of output {name!r}", indices, total, batch_size=len(x_BMC))
            if name == "label":  # every task reads the first token
                asked = torch.arange(self.tasks) if indices is None else indices
                predictions[name] = self.outputs[name](self.norm(x_BMC[:, :1]).expand(-1, len(asked), -1), indices)
            else:
                h_BPC = x_BMC if indices is None else x_BMC.take_along_dim(indices.expand(len(x_BMC), -1)[..., None], 1)
                predictions[name] = self.outputs[name](self.norm(h_BPC))
        return predictions
