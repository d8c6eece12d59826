"""Text in and out: tokens, such as bytes, and logits of the token at each index (sections 2 to 4.1, tables 5, 6).

Shape suffixes: B batch, M tokens, V vocabulary; others as in `perceivers.model.adapter`
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from perceivers.adapters.ngrams import HashedNgrams
from perceivers.adapters.set import select_elements
from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, Indices, InputAdapter, InputArray, OutputAdapter, read_input
from perceivers.model.arguments import check_range
from perceivers.model.eager import is_concrete
from perceivers.model.kernels.onednn import linear
from perceivers.model.linear import trunc_normal_parameter
from perceivers.model.positions import LearnedPositions
from perceivers.model.ragged import Ragged, find_examples


class TextInput(InputAdapter):
    """Tokens as learned vectors, to which learned positions are added. A text may have any length up to `length`.

    Args:
        vocabulary: V, number of tokens.
        length: maximum number of tokens of a text.
        channels: C of the vectors.
        num_task_tokens: further tokens from V on that no text has, one for each task (section 4.1).
        ngrams: vectors of n-grams and words, which are added to those of tokens.

    Examples:
        >>> import torch
        >>> TextInput(vocabulary=256, length=64, channels=32)(torch.tensor([list(b"any bytes")])).x_BMC.shape
        torch.Size([1, 9, 32])
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

    def forward(self, data: Tensor | InputArray | Ragged) -> InputArray:
        """Takes tokens [B, M] in 0 ... V - 1; texts of different lengths as `InputArray(tokens, mask_BM)`, or ragged.

        In models with rotary positions, the coordinate of a token is its index.
        """
        token_BM, mask_BM, _, _, offsets = read_input(data)
        if token_BM.dim() != 2 or token_BM.is_floating_point():
            raise PerceiversError(
                f"tokens of shape {tuple(token_BM.shape)} and type {token_BM.dtype} were given, "
                f"but integers of shape [batch, tokens] are expected."
            )
        check_range("tokens", token_BM, 0, self.embedding.num_embeddings - 1)
        index_M = index_tokens(token_BM.shape[1], offsets, token_BM.device, self.length)
        x_BMC = self.embedding(token_BM) + self.positions(indices=index_M)
        if self.ngrams is not None:
            is_text_BM = token_BM < self.vocabulary  # False for the token of a task
            x_BMC = x_BMC + self.ngrams(token_BM, index_M, is_text_BM if mask_BM is None else is_text_BM & mask_BM)
        grid = None if offsets is not None else (len(index_M),)
        return InputArray(x_BMC, mask_BM, grid, to_coordinates(index_M, x_BMC).expand(len(x_BMC), -1, 1), offsets)


def index_tokens(count: int, offsets: Tensor | None, device: torch.device, most: int) -> Tensor:
    """Returns the index of each token in its text, [M]; raises a PerceiversError if a text is longer than `most`."""
    index_M = torch.arange(count, device=device)
    if offsets is not None:
        index_M = index_M - offsets[find_examples(offsets, count)]
        count = int(offsets.diff().max()) if is_concrete(offsets) else min(count, most)
    if count > most:
        raise PerceiversError(f"a text of {count} tokens was given, but the model reads at most {most}.")
    return index_M


def to_coordinates(index_BP: Tensor, like: Tensor) -> Tensor:
    """Returns indices [P] or [B, P] as coordinates [1 or B, P, 1], exact also in half precision."""
    return index_BP.to(torch.promote_types(like.dtype, torch.float32)).view(-1, index_BP.shape[-1], 1)


class TextOutput(OutputAdapter):
    """Logits of every token of an input text; the queries are learned positions, or the elements of the input.

    The logits are the decoder's output times the transposed embedding of the input, plus a bias.

    Args:
        input: name of the input that is a `TextInput`.
        local_queries: query each token by its element of the input, as optical flow does, instead of by a learned
            position: the decoder then sees what is next to a masked token, if the input has n-grams.

    Examples:
        >>> import torch
        >>> from perceivers import PerceiverIO
        >>> from perceivers.adapters import TextInput
        >>> inputs, outputs = {"text": TextInput(256, 64, 32)}, {"text": TextOutput("text")}
        >>> model = PerceiverIO(inputs, outputs, latents=8, channels=32, depth=1)
        >>> model({"text": torch.tensor([list(b"any bytes")])})["text"].shape
        torch.Size([1, 9, 256])
    """

    channels = None  # takes the decoder's output
    takes_ragged = True

    def __init__(self, input: str, local_queries: bool = False) -> None:
        super().__init__()
        self.input = input
        self.local_queries = local_queries

    def bind_inputs(self, inputs: Mapping[str, InputAdapter]) -> None:
        text = inputs.get(self.input)
        if not isinstance(text, TextInput):
            raise PerceiversError(f"a text output needs an input {self.input!r} that is a TextInput: name that one.")
        self.text = (text,)  # in a tuple, so that torch does not take the input's weights for this module's own
        self.query_channels = text.channels
        self.positions = None if self.local_queries else LearnedPositions([text.length], text.channels)
        self.bias = nn.Parameter(torch.zeros(text.embedding.num_embeddings))

    def context(self, inputs: Mapping[str, InputArray]) -> tuple[int, Tensor | None, Tensor | None, Tensor | None]:
        """Keeps the number of tokens, their mask, their offsets, and their elements if these are the queries."""
        text = inputs[self.input]
        return text.x_BMC.shape[1], text.mask_BM, text.offsets, text.x_BMC if self.local_queries else None

    def num_queries(self, encoded: Encoded) -> int:
        return int(encoded.context[0])

    def query_offsets(self, encoded: Encoded) -> Tensor | None:
        offsets: Tensor | None = encoded.context[2]
        return offsets

    def queries(self, encoded: Encoded, indices: Indices | None = None) -> Tensor:
        if self.positions is None:
            return select_elements(encoded.context[3], indices, encoded.context[2])
        q_PQ: Tensor = self.positions(indices=self.index_queries(encoded, indices))
        return q_PQ if q_PQ.dim() == 3 else q_PQ[None]

    def query_coordinates(self, encoded: Encoded, indices: Indices | None = None) -> Tensor:
        return to_coordinates(self.index_queries(encoded, indices), encoded.latents)

    def index_queries(self, encoded: Encoded, indices: Indices | None) -> Tensor:
        """Returns the indices of tokens in their text, [P] or [B, P]."""
        if indices is None:
            count, _, offsets, _ = encoded.context
            return index_tokens(count, offsets, encoded.latents.device, self.text[0].length)
        return indices.values if isinstance(indices, Ragged) else indices

    def query_mask(self, encoded: Encoded, indices: Indices | None = None) -> Tensor | None:
        mask_BM: Tensor | None = encoded.context[1]
        if mask_BM is None or indices is None:
            return mask_BM
        if isinstance(indices, Ragged):
            return mask_BM[indices.examples(), indices.values][None]
        return mask_BM.gather(1, indices.expand(mask_BM.shape[0], -1))

    def postprocess(self, y_BOE: Tensor, encoded: Encoded, indices: Indices | None = None) -> Tensor:
        """Returns logits [B, M, V], or [B, P, V] at indices."""
        return linear(y_BOE, self.text[0].embedding.weight, self.bias)
