"""Text in and out: tokens, such as bytes, and logits of the token at each index (sections 2 to 4.1, tables 5, 6).

Shape suffixes: B batch, M tokens, V vocabulary; others as in `perceivers.model.adapter`
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from perceivers.adapters.ngrams import HashedNgrams
from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, InputAdapter, InputArray, OutputAdapter, read_array
from perceivers.model.arguments import check_range
from perceivers.model.kernels.onednn import linear
from perceivers.model.linear import trunc_normal_parameter
from perceivers.model.positions import LearnedPositions


class TextInput(InputAdapter):
    """Tokens as learned vectors, to which learned positions are added. A text may have any length up to `length`.

    Args:
        vocabulary: V, number of tokens.
        length: maximum number of tokens of a text.
        channels: C of the vectors.
        num_task_tokens: further tokens from V on that no text has, one for each task (section 4.1).
        ngrams: vectors of n-grams and words, which are added to those of tokens.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        channels: int,
        num_task_tokens: int = 0,
        ngrams: HashedNgrams | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.length = length
        self.channels = channels
        weight = trunc_normal_parameter(vocabulary + num_task_tokens, channels)
        self.embedding = nn.Embedding(vocabulary + num_task_tokens, channels, _weight=weight)
        self.positions = LearnedPositions([length], channels)
        self.ngrams = ngrams

    def forward(self, data: Tensor | InputArray) -> InputArray:
        """Takes tokens [B, M] in 0 ... V - 1; or `InputArray(tokens, mask_BM)` for texts of different lengths."""
        token_BM, mask_BM = read_array(data)
        if token_BM.dim() != 2 or token_BM.is_floating_point():
            raise PerceiversError(
                f"tokens of shape {tuple(token_BM.shape)} and type {token_BM.dtype} were given, "
                f"but integers of shape [batch, tokens] are expected."
            )
        count = token_BM.shape[1]
        if count > self.length:
            raise PerceiversError(f"a text of {count} tokens was given, but the model reads at most {self.length}.")
        check_range("tokens", token_BM, self.embedding.num_embeddings)
        index_M = torch.arange(count, device=token_BM.device)
        x_BMC = self.embedding(token_BM) + self.positions(indices=index_M)
        if self.ngrams is not None:
            x_BMC = x_BMC + self.ngrams(token_BM, index_M, mask_BM)
        return InputArray(x_BMC, mask_BM, (count,))


class TextOutput(OutputAdapter):
    """Logits of every token of an input text; the queries are learned positions.

    The logits are the decoder's output times the transposed embedding of the input, plus a bias.

    Args:
        input: name of the input that is a `TextInput`.
    """

    channels = None  # takes the decoder's output

    def __init__(self, input: str) -> None:
        super().__init__()
        self.input = input

    def bind_inputs(self, inputs: Mapping[str, InputAdapter]) -> None:
        text = inputs.get(self.input)
        if not isinstance(text, TextInput):
            raise PerceiversError(f"a text output needs an input {self.input!r} that is a TextInput: name that one.")
        self.text = (text,)  # in a tuple, so that torch does not take the input's weights for this module's own
        self.query_channels = text.channels
        self.positions = LearnedPositions([text.length], text.channels)
        self.bias = nn.Parameter(torch.zeros(text.embedding.num_embeddings))

    def context(self, inputs: Mapping[str, InputArray]) -> tuple[int, Tensor | None]:
        """Keeps the number of tokens and their mask."""
        return inputs[self.input].x_BMC.shape[1], inputs[self.input].mask_BM

    def num_queries(self, encoded: Encoded) -> int:
        return int(encoded.context[0])

    def queries(self, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        if indices is None:
            indices = torch.arange(self.num_queries(encoded), device=encoded.latents.device)
        q_PQ: Tensor = self.positions(indices=indices)
        return q_PQ if q_PQ.dim() == 3 else q_PQ[None]

    def query_mask(self, encoded: Encoded, indices: Tensor | None = None) -> Tensor | None:
        mask_BM: Tensor | None = encoded.context[1]
        if mask_BM is None or indices is None:
            return mask_BM
        return mask_BM.gather(1, indices.expand(mask_BM.shape[0], -1))

    def postprocess(self, y_BOE: Tensor, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        """Returns logits [B, M, V], or [B, P, V] at indices."""
        return linear(y_BOE, self.text[0].embedding.weight, self.bias)
