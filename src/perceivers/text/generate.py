"""Generates text with a causal model, byte by byte: `perceivers generate`.

Shape suffixes: B batch, M bytes, V = 256 logits of the next byte, in the order of their size
"""

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from perceivers.checks import Checked, Range, check_field
from perceivers.errors import PerceiversError
from perceivers.files import warn
from perceivers.model.attention import Cache
from perceivers.text.perceiver_ar import BYTES, PerceiverAR, load_causal_model
from perceivers.text.tokenizers import check_unicode


def generate(
    model: PerceiverAR | str | Path,
    prompt: str,
    length: int = 200,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Iterator[str]:
    """Returns the text that follows a prompt, in pieces, while it is generated: `"".join(generate(...))` is all of it.

    A character of several bytes comes when its last byte does; bytes that are not UTF-8 are replaced by a mark.

    Args:
        model, device, dtype: as in `load_for_inference`; a causal model of bytes.
        prompt: the text to continue; of a long one, the model reads only the end.
        length: maximum number of bytes to generate.
        temperature, top_k, top_p, seed: as in `Sampler`.
        stop: text after which generation ends.

    Raises:
        PerceiversError: the prompt is empty, a setting is out of range, or the model is of another kind.
    """
    sampler = Sampler(temperature, top_k, top_p, seed)
    check_field("length", length, length >= 1, "at least 1")
    check_field("stop", stop, stop != "", "some text, or left out")
    check_unicode(prompt)
    if not prompt:
        raise PerceiversError("the prompt is empty: give at least one character to continue.")
    reader = Reader(load_causal_model(model, device, dtype))
    content = prompt.encode()
    if len(content) > reader.most:
        warn(f"The prompt has {len(content)} bytes: the model reads the last {reader.most}.")
    return decode(generate_bytes(reader, content, length, sampler, None if stop is None else stop.encode()))


def generate_bytes(
    reader: "Reader", prompt: bytes, length: int, sampler: "Sampler", stop: bytes | None
) -> Iterator[bytes]:
    """Yields the bytes that follow a prompt, one at a time."""
    generated, last = bytearray(), prompt
    for _ in range(length):
        last = bytes([sampler.draw(reader.read(last))])
        generated += last
        yield last
        if stop is not None and generated.endswith(stop):
            return


def decode(parts: Iterable[bytes]) -> Iterator[str]:
    """Yields the text of bytes, as soon as characters are complete."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for part in parts:
        if text := decoder.decode(part):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


class Reader:
    """Predicts the next byte of a text that grows, from a window of its last bytes.

    A window begins with at most the last `length - stride + 1` bytes, of which the last `latents - stride + 1` are
    latents, and grows until it has `latents` of them, when the next one begins; the stride is half of the latents.
    Predictions are those of the model for the bytes and latents of the window, without rounding errors exactly, and
    those that `AllWindows` measures. Since keys and values are cached, a byte costs one latent, and only the first one
    of a window costs all of them.

    Attributes:
        most: number of bytes with which a window begins.
    """

    def __init__(self, model: PerceiverAR) -> None:
        self.model = model
        self.most = model.length - model.stride + 1
        self.text = bytearray()
        self.caches: list[Cache] = []

    @torch.inference_mode()
    def read(self, further: bytes) -> Tensor:
        """Adds bytes to the text, and returns the logits [256] of the next one, in float64.

        Raises:
            PerceiversError: they are not finite.
        """
        self.text += further
        if not self.caches or len(self.caches[-1]) == self.model.latents:
            self.caches = self.model.make_caches()
            further = bytes(self.text[-self.most :])
            latents = min(len(further), self.model.latents - self.model.stride + 1)
        else:
            latents = len(further)
        byte_BM = torch.tensor([list(further)], device=self.model.embedding.weight.device)
        logits = self.model.read(byte_BM, latents, self.caches)[0, -1].double().cpu()
        if not logits.isfinite().all():
            raise PerceiversError("the model's logits have NaN or infinite values: try precision float32.")
        return logits


@dataclass
class Sampler(Checked):
    """Draws bytes.

    Attributes:
        temperature: divides the logits; 0 for the most probable byte.
        top_k: number of most probable bytes to draw from; all by default.
        top_p: draw from the fewest most probable bytes, of these, that have this probability together.
        seed: seed of the draws; by default, they differ each time.
    """

    temperature: Annotated[float, Range(least=0)] = 1.0
    top_k: Annotated[int, Range(least=1, most=BYTES)] | None = None
    top_p: Annotated[float, Range(above=0, most=1)] | None = None
    seed: Annotated[int, Range(least=0, most=2**63 - 1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.generator = torch.Generator()
        if self.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.seed)

    def draw(self, logits: Tensor) -> int:
        """Returns a byte, given the logits [256] of all."""
        if self.temperature == 0:
            return int(logits.argmax())
        logits_V, byte_V = logits.sort(descending=True)
        logits_V = logits_V[: self.top_k]
        probability_V = ((logits_V - logits_V[0]) / self.temperature).softmax(-1)
        if self.top_p is not None:
            before_V = probability_V.cumsum(-1) - probability_V
            probability_V = probability_V[before_V < self.top_p]
        return int(byte_V[probability_V.multinomial(1, generator=self.generator)])
