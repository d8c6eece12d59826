"""Class labels, in and out. Shape suffixes as in `perceivers.model.adapter`."""

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, InputAdapter, InputArray, OutputAdapter
from perceivers.model.arguments import check_indices
from perceivers.model.linear import trunc_normal_parameter


class LabelInput(InputAdapter):
    """A class label as one element, one-hot (section 5).

    Args:
        classes: number of classes.

    Examples:
        >>> import torch
        >>> LabelInput(4)(torch.tensor([2])).x_BMC
        tensor([[[0., 0., 1., 0.]]])
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.channels = classes

    def forward(self, data: Tensor) -> InputArray:
        """Takes class indices [B] in 0 ... classes - 1."""
        check_indices("class indices", data, self.channels)
        return InputArray(F.one_hot(data, self.channels)[:, None, :].float())


class LabelOutput(OutputAdapter):
    """Logits of classes, from one learned query (section 6).

    Args:
        classes: number of classes.
        query_channels: Q; "any" for as many as the widest other query of the model or, without one, the latents: the
            decoder then costs no more than it must. None takes the average of the latents instead of a query, as the
            first Perceiver does.
        names: names of the classes, in order; optional, saved with the model.
        multilabel: several classes can apply at once, so that each has a probability of its own.

    Examples:
        >>> import torch
        >>> from perceivers import PerceiverIO
        >>> from perceivers.adapters import ArrayInput
        >>> output = LabelOutput(2, names=["cat", "dog"])
        >>> model = PerceiverIO({"points": ArrayInput(3)}, {"label": output}, latents=4, channels=16, depth=1)
        >>> model({"points": torch.randn(5, 9, 3)})["label"].softmax(-1).sum(-1).round(decimals=3)
        tensor([1., 1., 1., 1., 1.], grad_fn=...)
    """

    def __init__(
        self,
        classes: int,
        query_channels: int | Literal["any"] | None = "any",
        names: list[str] | None = None,
        multilabel: bool = False,
    ) -> None:
        super().__init__()
        if names is not None and len(names) != classes:
            raise PerceiversError(f"{len(names)} names were given for classes = {classes}: give one for each.")
        self.classes = self.channels = classes
        self.query_channels = query_channels
        self.names = names
        self.multilabel = multilabel
        if isinstance(query_channels, int):
            self.bind_query(query_channels)

    def bind_query(self, channels: int) -> None:
        self.query_channels = channels
        self.query = trunc_normal_parameter(1, 1, channels)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes: their indices, if they have no names."""
        return self.names or [str(index) for index in range(self.classes)]

    @property
    def channel_names(self) -> list[str]:
        """Names of the classes; classes without names are those of another model if there are as many."""
        return self.names or [f"{index} of {self.classes}" for index in range(self.classes)]

    def queries(self, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        return self.query if indices is None else self.query.expand(-1, indices.shape[-1], -1)

    def postprocess(self, y_BOE: Tensor, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        """Returns logits [B, classes], whatever the indices: there is one query."""
        return y_BOE[:, 0]


def read_decoder(label: LabelOutput, channels: int) -> dict[str, Any]:
    """Returns the fields `decoder` and `query_channels` of the config of a classifier with latents of some channels."""
    query_channels = None if label.query_channels == channels else label.query_channels
    return {"decoder": "average" if label.query_channels is None else "query", "query_channels": query_channels}
