"""Text in and out: tokens, such as bytes, and logits of the token at each place (sections 2 to 4.1, tables 5 and 6).

Shape suffixes: B batch, M tokens, V vocabulary; others as in `perceivers.model.adapter`
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, InputAdapter, InputArray, OutputAdapter
from perceivers.model.kernels.onednn import linear
from perceivers.model.linear import trunc_normal_parameter
from perceivers.model.positions import LearnedPositions


class TextInput(InputAdapter):
    """Tokens as learned vectors, to which learned positions are added.

    Text of any length up to `length` is taken as it is: nothing pads it.

    Args:
        vocabulary: V, number of tokens.
        length: the most tokens of a text.
        channels: C of the vectors.
        extra: further tokens, V ... V + extra - 1, that no text has, such as one for each task.
    """

    def __init__(self, vocabulary: int, length: int, channels: int, extra: int = 0) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.length = length
        self.channels = channels
        self.embedding = nn.Embedding(
            vocabulary + extra, channels, _weight=trunc_normal_parameter(vocabulary + extra, channels)
        )
        self.positions = LearnedPositions([length], channels)

    def forward(self, data: Tensor | InputArray) -> InputArray:
        """Takes tokens [B, M] in 0 ... V - 1; or `InputArray(tokens, mask_BM)` for texts of different lengths."""
        token_BM, mask_BM, _ = data if isinstance(data, InputArray) else InputArray(data)
        if token_BM.dim() != 2 or token_BM.is_floating_point():
            raise PerceiversError(
                f"tokens of shape {tuple(token_BM.shape)} and type {token_BM.dtype} were given, "
                f"but integers of shape [batch, tokens] are expected."
            )
        count = token_BM.shape[1]
        if count > self.length:
            raise PerceiversError(f"a text of {count} tokens was given, but the model reads at most {self.length}.")
        position_MC = self.positions(points=torch.arange(count, device=token_BM.device))
        return InputArray(self.embedding(token_BM) + position_MC, mask_BM, (count,))


class TextOutput(OutputAdapter):
    """Logits of every token of an input text, asked for with learned positions.

    They are read with the embedding of the input, transposed: a token's logit is the product of its vector and what
    comes out of the decoder, and a bias.

    Args:
        input: name of the input that is a `TextInput`.
    """

    channels = None  # of the decoder, as it is

    def __init__(self, input: str) -> None:
        super().__init__()
        self.input = input

    def connect(self, inputs: Mapping[str, InputAdapter]) -> None:
        text = inputs.get(self.input)
        if not isinstance(text, TextInput):
            raise PerceiversError(f"a text output needs an input {self.input!r} that is a TextInput: name that one.")
        self.text = (text,)  # in a tuple, so that torch does not take the input's weights for this module's own
        self.query_channels = text.channels
        self.positions = LearnedPositions([text.length], text.channels)
        self.bias = nn.Parameter(torch.zeros(text.embedding.num_embeddings))

    def count(self, encoded: Encoded) -> int:
        return encoded.inputs[self.input].x_BMC.shape[1]

    def queries(self, encoded: Encoded, points: Tensor | None = None) -> Tensor:
        if points is None:
            points = torch.arange(self.count(encoded), device=encoded.z_BND.device)
        q_PQ: Tensor = self.positions(points=points)
        return q_PQ if q_PQ.dim() == 3 else q_PQ[None]

    def mask(self, encoded: Encoded, points: Tensor | None = None) -> Tensor | None:
        """Padding of the text is not asked for."""
        mask_BM = encoded.inputs[self.input].mask_BM
        if mask_BM is None or points is None:
            return mask_BM
        return mask_BM.gather(1, points.expand(mask_BM.shape[0], -1))

    def read(self, y_BOE: Tensor, encoded: Encoded, points: Tensor | None = None) -> Tensor:
        """-> logits [B, M, V], or [B, P, V] of some places."""
        return linear(y_BOE, self.text[0].embedding.weight, self.bias)
