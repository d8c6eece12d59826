"""Perceiver IO for tables: every column is a modality of its own. Shape suffixes: B batch, M elements of an input."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import nn

from perceivers.checks import Count, Range
from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded
from perceivers.model.perceiver_io import PerceiverIO
from perceivers.model.sizes import ModelConfig, takes_sizes
from perceivers.tables.columns import Column
from perceivers.tables.windows import Window

Size = Literal["small", "medium", "large"]

SIZES = {
    "small": {"latents": 4, "channels": 32, "depth": 1, "heads": 2},
    "medium": {"latents": 8, "channels": 32, "depth": 2, "heads": 2},
    "large": {"latents": 32, "channels": 128, "depth": 4, "heads": 8},
}
"""Sizes of models by name."""


def choose_size(rows: int, has_signals: bool) -> Size:
    """Returns the size of a model for a number of training rows, and columns of raw signals."""
    rows = 10 * rows if has_signals else rows
    return "small" if rows < 2000 else "medium" if rows < 100_000 else "large"


class TableModel(PerceiverIO):
    """Predicts columns of a table from others. A cell that is missing is replaced by the mask token of its column.

    Args:
        inputs: the columns to read, by name, with what they have learned.
        outputs: the columns to predict, by name.
        latents, channels, depth, sizes: as in `PerceiverIO`.
        window: for tables of series, how examples are cut from them.
    """

    @takes_sizes
    def __init__(
        self,
        inputs: Mapping[str, Column],
        outputs: Mapping[str, Column],
        latents: int,
        channels: int,
        depth: int,
        *,
        window: Window | None = None,
        **sizes: Any,
    ) -> None:
        inputs = {**inputs, **{name: column for name, column in outputs.items() if column.is_continued}}
        super().__init__(
            {name: column.input_adapter(channels) for name, column in inputs.items()},
            {name: column.output_adapter(name, channels) for name, column in outputs.items()},
            latents,
            channels,
            depth,
            maskable=list(inputs),
            **sizes,
        )
        self.input_columns, self.output_columns, self.window = dict(inputs), dict(outputs), window

    def predict(self, frame: Any) -> Any:
        """Returns the predictions for the rows of a pandas DataFrame, as another one with the same index.

        Columns that are missing are masked. The columns of the result are those that `perceivers predict` writes.
        """
        from perceivers.tables.predict import predict_frame

        return predict_frame(self, frame)


def encode_rows(model: PerceiverIO, batch: Mapping[str, Any]) -> Encoded:
    """Encodes a batch of `TableSamples`."""
    return model.encode(batch["inputs"], {name: rows_B[:, None] for name, rows_B in batch["hidden"].items()})


@dataclass(frozen=True, kw_only=True)
class TableModelConfig(ModelConfig):
    """Config of a model of a table. The data decides the columns and, if no sizes are given, the size.

    Attributes:
        size: "small", "medium" or "large"; by default chosen by the number of rows.
        latents: number of latents; this and the following are those of `size` by default.
        channels: channels of each latent.
        depth: number of self-attention layers.
        heads: heads of the attention layers.
        widening_factor: hidden width of the MLPs, as a multiple of the channels.
        dropout: probability of dropping an attention weight in training.
        columns: the columns by "inputs" and "outputs", and the window.
    """

    size: Size | None = None
    latents: Count | None = None
    channels: Count | None = None
    depth: Count | None = None
    heads: Count | None = None
    widening_factor: Count = 2
    dropout: Annotated[float, Range(least=0, below=1)] = 0.0
    columns: dict[str, Any] | None = None

    def build(self) -> TableModel:
        if self.columns is None:
            raise PerceiversError("the columns of the model are those of a table: open one first.")
        sizes = SIZES[self.size or "medium"]
        given = {name: getattr(self, name) for name in sizes}
        chosen: dict[str, Any] = {name: sizes[name] if given[name] is None else given[name] for name in sizes}
        return TableModel(
            **self.columns,
            **chosen,
            widening_factor=self.widening_factor,
            cross_widening_factor=self.widening_factor,
            decoder_widening_factor=self.widening_factor,
            cross_heads=chosen["heads"],
            qk_channels=chosen["channels"],
            v_channels=chosen["channels"],
            dropout=self.dropout,
        )

    @classmethod
    def from_model(cls, model: nn.Module) -> "TableModelConfig | None":
        if not isinstance(model, TableModel):
            return None
        names = ("latents", "channels", "depth", "heads", "widening_factor", "dropout")
        columns = {"inputs": model.input_columns, "outputs": model.output_columns, "window": model.window}
        return cls(columns=columns, **{name: model.config[name] for name in names})
