"""Language models, and the rows of the paper's language table (section 4.1; section 3 of the appendix)."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import nn

from perceivers.adapters.ngrams import HashedNgrams
from perceivers.adapters.text import TextInput, TextOutput
from perceivers.checkpoints.load import load_model
from perceivers.checks import Checked, Count, Range, check_field
from perceivers.errors import PerceiversError
from perceivers.model.device import check_dtype, choose_device, move_model
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.sizes import Gelu, ModelConfig, Sizes, sizes_of
from perceivers.model.transfer import transfer_weights
from perceivers.presets import Preset, make_example
from perceivers.text.bert import BERT
from perceivers.text.local_attention import init_local_attention
from perceivers.text.task_output import TaskOutput
from perceivers.text.tokenizers import BYTE_VOCABULARY, Bytes, Tokenizer, open_tokenizer, tokenizer_of


@dataclass(frozen=True, kw_only=True)
class NgramConfig(Checked):
    """Hash n-gram embeddings, see `HashedNgrams`. A model of bytes hashes whole words, too.

    Attributes:
        ngrams: tokens of the shortest and of the longest n-gram whose hashed vectors are added to those of tokens, such
            as [3, 6] for small models of bytes; none by default, as in the paper.
        ngram_hashes: number of vectors, which n-grams and words share by their hashes.
        ngram_channels: channels of these vectors.
    """

    ngrams: tuple[Count, Count] | None = None
    ngram_hashes: Count = 2**15
    ngram_channels: Count = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ngrams is not None:
            shortest, longest = self.ngrams
            check_field("model.ngrams", self.ngrams, shortest <= longest, "the shortest size, then the longest")

    def build_ngrams(self, channels: int, vocabulary: int) -> HashedNgrams | None:
        """Returns the vectors of n-grams for tokens of so many channels."""
        if self.ngrams is None:
            return None
        separators = Bytes().separators if vocabulary == BYTE_VOCABULARY else ()
        return HashedNgrams(channels, self.ngrams, self.ngram_hashes, self.ngram_channels, separators)


def ngram_settings(ngrams: HashedNgrams | None) -> dict[str, Any]:
    """Returns the fields of `NgramConfig`."""
    if ngrams is None:
        return {}
    config = ngrams.config
    return {"ngrams": config["sizes"], "ngram_hashes": config["hashes"], "ngram_channels": config["width"]}


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(ModelConfig, Sizes, NgramConfig):
    """Masked language modeling (section 4.1). The defaults are the paper's byte model.

    Input "text": tokens [B, M], M up to `length`; output "text": logits [B, M, vocabulary].

    Attributes:
        vocabulary: number of tokens; for bytes 6 special ones (see `perceivers.text.tokenizers`) and 256.
        length: maximum number of tokens of a text.
        embedding_channels: channels of tokens, positions and queries.
        local_queries: as in `TextOutput`.
        initialization: "normal", or "local" for small models of masked tokens, from which classifiers learn worse, see
            `init_local_attention`.
    """

    latents: Count = 256
    channels: Count = 1280
    depth: Count = 26
    qk_channels: Count | None = 256
    v_channels: Count | None = 1280
    cross_heads: Count = 8
    decoder_heads: Count = 8
    decoder_qk_channels: Count | None = 256
    decoder_v_channels: Count | None = 768
    query_residual: bool = False
    vocabulary: Count = 262
    length: Count = 2048
    embedding_channels: Count = 768
    local_queries: bool = False
    initialization: Literal["normal", "local"] = "normal"

    def build(self) -> PerceiverIO:
        ngrams = self.build_ngrams(self.embedding_channels, self.vocabulary)
        model = PerceiverIO(
            inputs={"text": TextInput(self.vocabulary, self.length, self.embedding_channels, ngrams=ngrams)},
            outputs={"text": TextOutput("text", self.local_queries)},
            **self.sizes(),
        )
        if self.initialization == "local":
            init_local_attention(model)
        return model

    @classmethod
    def from_model(cls, model: nn.Module) -> "LanguageConfig | None":
        """Returns the config of a model with the same input, whatever its outputs are."""
        text = model.inputs["text"] if isinstance(model, PerceiverIO) and list(model.inputs) == ["text"] else None
        if not isinstance(model, PerceiverIO) or not isinstance(text, TextInput):
            return None
        output = dict(model.outputs.items()).get("text")
        return cls(
            vocabulary=text.vocabulary,
            length=text.length,
            embedding_channels=text.channels,
            local_queries=isinstance(output, TextOutput) and output.local_queries,
            **ngram_settings(text.ngrams),
            **sizes_of(model),
        )


@dataclass(frozen=True, kw_only=True)
class BertConfig(ModelConfig, NgramConfig):
    """BERT (section 4.1). The defaults are BERT Base; the fields not described here are arguments of `BERT`.

    Attributes:
        initialization: "normal", or "local" for small models of masked tokens, from which classifiers learn worse, see
            `init_local_attention`.
    """

    vocabulary: Count = 32000
    length: Count = 512
    channels: Count = 768
    depth: Count = 12
    heads: Count = 12
    widening_factor: Count = 4
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    gelu: Gelu = "tanh"
    initialization: Literal["normal", "local"] = "normal"

    def build(self) -> BERT:
        own = {"initialization", *NgramConfig.__dataclass_fields__}
        settings = {name: value for name, value in self.settings().items() if name not in own}
        model = BERT(**settings, ngrams=self.build_ngrams(self.channels, self.vocabulary))
        if self.initialization == "local":
            init_local_attention(model)
        return model

    @classmethod
    def from_model(cls, model: nn.Module) -> "BertConfig | None":
        """Returns the config of a BERT, whatever its outputs are."""
        if not isinstance(model, BERT):
            return None
        settings = {name: value for name, value in model.config.items() if name in cls.__dataclass_fields__}
        return cls(**settings | ngram_settings(model.inputs.get_as(TextInput, "text").ngrams))


def choose_tokenizer(name: str | None, config: LanguageConfig | BertConfig) -> Tokenizer:
    """Returns the tokenizer of a name or file; by default that of `config.init` or, without it, bytes."""
    if name is None and config.init is not None:
        return tokenizer_of(config.init, config.vocabulary)
    return open_tokenizer(name or "bytes")


def text_input(model: PerceiverIO | BERT) -> TextInput:
    """Returns the text adapter of a model, or raises a PerceiversError if the model does not read text."""
    adapter = model.inputs["text"] if list(model.inputs) == ["text"] else None
    if not isinstance(adapter, TextInput):
        inputs = ", ".join(model.inputs)
        raise PerceiversError(f"this model reads {inputs}: a language model, which reads text, is needed.")
    return adapter


def load_text_model(
    source: str | Path, device: str | None = "cpu", dtype: str | None = None
) -> tuple[PerceiverIO | BERT, Tokenizer]:
    """Returns a saved model that reads text, in evaluation mode, and its tokenizer.

    Args:
        source: the model, in any format.
        device, dtype: as in `load_for_inference`.

    Raises:
        PerceiversError: the model is of another kind, or its tokenizer is missing.
    """
    check_dtype(dtype)
    model = load_model(source)
    if not isinstance(model, PerceiverIO | BERT):
        raise PerceiversError(f"{source} has a {type(model).__name__}: a pretrained language model is needed.")
    tokenizer = tokenizer_of(source, text_input(model).vocabulary)
    return move_model(model, device or choose_device(), dtype), tokenizer


def is_language_model(model: nn.Module) -> bool:
    """Returns whether a model reads a text and predicts its tokens."""
    return isinstance(model, PerceiverIO | BERT) and list(model.inputs) == list(model.outputs) == ["text"]


def text_tasks(
    language: PerceiverIO | BERT,
    tasks: dict[str, int],
    names: dict[str, list[str]] | None = None,
    num_task_tokens: int = 0,
    shared_query: bool = False,
) -> PerceiverIO | BERT:
    """Returns a model that predicts labels of texts, with a language model's weights (section 4.1).

    Input "text" is unchanged; output "label": by task, logits [B, classes].

    Args:
        language: a model built by `LanguageConfig`, or BERT.
        tasks, names: as in `TaskHeads`.
        num_task_tokens: as in `TextInput`.
        shared_query: as in `TaskOutput`; BERT has no queries.
    """
    text = language.inputs.get_as(TextInput, "text")
    model: PerceiverIO | BERT
    if isinstance(language, BERT):
        settings = {"tasks": tasks, "names": names, "num_task_tokens": num_task_tokens}
        model = BERT(**copy.deepcopy(language.config | settings))
    else:
        inputs = {"text": TextInput(**copy.deepcopy(text.config | {"num_task_tokens": num_task_tokens}))}
        outputs = {"label": TaskOutput(tasks, text.channels, names, shared_query)}
        model = PerceiverIO(**(language.config | {"inputs": inputs, "outputs": outputs}))
    transfer_weights(language, model)  # task tokens keep their new vectors
    return model


def language_preset(
    row: str, paper_parameters: float, paper_flops: float, config: LanguageConfig | BertConfig
) -> Preset:
    """Returns a row of the paper's language table (section 4.1)."""
    inputs = {"text": make_example(config.length, dtype=torch.long)}
    return Preset("language", row, config, inputs, paper_parameters, paper_flops)


PLUS: dict[str, Any] = {"depth": 40, "channels": 1536, "v_channels": 1536}

LANGUAGE_BYTES = language_preset("Perceiver IO, bytes", 201e6, 113e9, LanguageConfig())
LANGUAGE_BYTES_PLUS = language_preset("Perceiver IO++, bytes", 425e6, 241e9, LanguageConfig(**PLUS))
LANGUAGE_SENTENCEPIECE = language_preset(
    "Perceiver IO Base", 223e6, 119e9, LanguageConfig(vocabulary=32000, length=512)
)
BERT_BASE = language_preset("BERT Base", 110e6, 109e9, BertConfig())
BERT_BYTES = language_preset(
    "BERT, bytes, FLOPs matched", 20e6, 130e9, BertConfig(vocabulary=262, length=2048, channels=512, depth=6, heads=8)
)
