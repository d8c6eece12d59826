"""The interface between a domain and the architecture: input adapters make arrays, output adapters make queries.

Shape suffixes:
    B batch, M inputs, C input channels, N latents, D latent channels,
    O outputs, P some of the outputs, Q query channels, E output channels,
    G dimensions of coordinates, T elements of all examples of a ragged batch
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.arguments import check_coordinates
from perceivers.model.config import Configurable
from perceivers.model.masks import to_bool_mask, zero_padding
from perceivers.model.ragged import Ragged, check_offsets, to_ragged

Indices = Tensor | Ragged
"""Elements of an output: integer indices [P] or [B, P], real coordinates [P, G] or [B, P, G], or either ragged."""


class InputArray(NamedTuple):
    """An input array.

    Attributes:
        x_BMC: the elements; [1, T, C] in a ragged batch.
        mask_BM: True or 1 for real elements, False or 0 for padding, which has weight 0; None if all are real.
        grid: size of each dimension, if the elements lie on a grid; an output can take the shape of an input from it.
        coordinates_BMG: real coordinates or times of the elements, if they have any.
        offsets: [B + 1], index of the first element of each example and T, in a ragged batch; see `Ragged`.

    Examples:
        >>> import torch
        >>> from perceivers.adapters import ArrayInput
        >>> padded = InputArray(torch.randn(2, 4, 3), mask_BM=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool())
        >>> ArrayInput(3)(padded).mask_BM.sum(1)
        tensor([4, 2])
    """

    x_BMC: Tensor
    mask_BM: Tensor | None = None
    grid: tuple[int, ...] | None = None
    coordinates_BMG: Tensor | None = None
    offsets: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of examples."""
        return self.x_BMC.shape[0] if self.offsets is None else self.offsets.shape[0] - 1


def read_input(data: Any, channel_dims: int = 0) -> InputArray:
    """Returns an adapter's data, a tensor, an `InputArray` or a ragged batch, as an `InputArray` with padding as 0.

    Args:
        data: what a model was given.
        channel_dims: number of the tensor's last dimensions that are not dimensions of elements.

    Raises:
        PerceiversError: the data is no tensor, or masks, coordinates or offsets do not fit it.
    """
    data = to_ragged(data)
    if isinstance(data, Ragged):
        data = InputArray(data.values[None], offsets=data.offsets)
    array, mask, grid, coordinates, offsets = data if isinstance(data, InputArray) else InputArray(data)
    if not isinstance(array, Tensor):
        raise PerceiversError(f"a {type(array).__name__} was given as data of the model: a torch.Tensor is expected.")
    mask = to_bool_mask(mask)
    shape = array.shape[: array.dim() - channel_dims]
    if mask is not None and mask.shape != shape:
        found = f"a mask of shape {tuple(mask.shape)} was given for an array of shape {tuple(array.shape)}"
        raise PerceiversError(f"{found}: its shape must be {tuple(shape)}.")
    if offsets is not None:
        if mask is not None:
            raise PerceiversError("a ragged batch has no padding: give offsets or a mask, not both.")
        if len(array) != 1:
            raise PerceiversError(f"a ragged batch has the shape [1, elements, ...], not {list(array.shape)}.")
        check_offsets("a ragged batch", offsets, shape[1])
    if coordinates is not None:
        check_coordinates("coordinates of an input", coordinates, shape)
        coordinates = zero_padding(coordinates, mask)
    return InputArray(zero_padding(array, mask), mask, grid, coordinates, offsets)


def read_array(data: Any, channel_dims: int = 0) -> tuple[Tensor, Tensor | None]:
    """Returns the tensor and the mask of the data of an adapter that takes nothing else: see `read_input`."""
    array = read_input(data, channel_dims)
    if array.offsets is not None or array.coordinates_BMG is not None:
        kind = "ragged batches" if array.offsets is not None else "coordinates"
        raise PerceiversError(f"an input was given that takes no {kind}: give a tensor, with a mask of padding.")
    return array.x_BMC, array.mask_BM


class Encoded(NamedTuple):
    """Encoded inputs: everything that is needed to decode outputs, as often as wanted.

    Attributes:
        latents: [B, N, D].
        context: by the name of an output, what its `OutputAdapter.context` keeps of the inputs. The methods of an
            output adapter are given their own.
        coordinates: [B or 1, N, G], coordinates of the latents in a model with rotary positions.
    """

    latents: Tensor
    context: Any = None
    coordinates: Tensor | None = None


class InputAdapter(Configurable, nn.Module, ABC):
    """Turns data of a domain into an input array.

    Attributes:
        channels: C of the array it returns.

    Examples:
        >>> import torch
        >>> from perceivers import InputArray
        >>> class Temperatures(InputAdapter):
        ...     channels = 2
        ...
        ...     def forward(self, data):
        ...         return InputArray(torch.stack([data.nan_to_num(), data.square().nan_to_num()], -1), ~data.isnan())
        >>> Temperatures()(torch.tensor([[20.0, float("nan")]])).x_BMC.shape
        torch.Size([1, 2, 2])
    """

    channels: int

    @abstractmethod
    def forward(self, data: Any) -> InputArray:
        """Takes the data of one modality."""


class OutputAdapter(Configurable, nn.Module):
    """Queries a domain's outputs, and turns what was decoded into predictions.

    Attributes:
        query_channels: Q of the queries. "any": learned queries, which can have as many as the model chooses. None: the
            output has no queries and gets the average of the latents, as in the first Perceiver; it then has one
            element.
        channels: E of the vectors that `postprocess` takes: the model ends in a linear layer to them. None: it takes
            the decoder's output, of Q channels: a linear layer reduces it to these if queries were padded to more.
        coordinate_dims: G, if elements at real coordinates can be decoded, too, whether or not they are on a grid.
        takes_ragged: whether `queries` takes a ragged batch of indices or coordinates.

    Examples:
        >>> import torch
        >>> from perceivers import PerceiverIO
        >>> from perceivers.adapters import ArrayInput
        >>> class Value(OutputAdapter):  # one number, from one learned query of 16 channels
        ...     query_channels, channels = 16, 1
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.query = torch.nn.Parameter(torch.randn(1, 1, 16))
        ...
        ...     def queries(self, encoded, indices=None):
        ...         return self.query
        ...
        ...     def postprocess(self, y_BOE, encoded, indices=None):
        ...         return y_BOE[:, 0, 0]
        >>> model = PerceiverIO({"points": ArrayInput(3)}, {"value": Value()}, latents=4, channels=16, depth=1)
        >>> model({"points": torch.randn(5, 9, 3)})["value"].shape
        torch.Size([5])
    """

    query_channels: int | Literal["any"] | None
    channels: int | None
    coordinate_dims: int | None = None
    takes_ragged: bool = False

    @property
    def channel_names(self) -> list[str] | None:
        """Names of the E channels, such as those of classes, if they have any: fine-tuning keeps the weights of those
        of the same name.
        """
        return None

    def bind_inputs(self, inputs: Mapping[str, InputAdapter]) -> None:
        """Called once by the model with its input adapters, whose channels and weights the output may use."""

    def bind_query(self, channels: int) -> None:
        """Called once by the model if `query_channels` is "any": sets it, and makes the learned queries."""

    def context(self, inputs: Mapping[str, InputArray]) -> Any:
        """Returns what the output needs from the encoded inputs: the other methods find it in `encoded.context`."""
        return None

    def num_queries(self, encoded: Encoded) -> int:
        """Returns O, the number of queries."""
        return 1

    def query_offsets(self, encoded: Encoded) -> Tensor | None:
        """Returns the offsets [B + 1] of all queries of a ragged batch, or None if all examples have as many."""
        return None

    def queries(self, encoded: Encoded, indices: Any = None) -> Tensor:
        """Makes all queries, [B or 1, O, Q], or those at integer `indices` [P] or [B, P], [B or 1, P, Q].

        Indices can be real coordinates [P, G] or [B, P, G] if the output has `coordinate_dims`, and both can be ragged,
        with values [T] or [T, G], if it `takes_ragged`. The queries of a ragged batch are [1, T, Q].
        """
        raise PerceiversError(f"{type(self).__name__} has query_channels: it must define queries.")

    def query_coordinates(self, encoded: Encoded, indices: Any = None) -> Tensor | None:
        """Returns the coordinates of queries for rotary positions, [B or 1, P, G]; None if they are at the origin."""
        if indices is None or self.coordinate_dims is None:
            return None
        coordinates = indices.values if isinstance(indices, Ragged) else indices
        return coordinates if coordinates.dim() == 3 else coordinates[None]

    def query_mask(self, encoded: Encoded, indices: Any = None) -> Tensor | None:
        """Returns which queries are real, [B, O] or [B, P]: the others read nothing. None if all are."""
        return None

    def postprocess(self, y_BOE: Tensor, encoded: Encoded, indices: Any = None) -> Any:
        """Turns decoded vectors into predictions: all in the domain's own shape, those at `indices` as [B, P, ...].

        Vectors and predictions of a ragged batch are [1, T, ...].
        """
        return y_BOE


A = TypeVar("A", bound=nn.Module)
T = TypeVar("T", bound=nn.Module)

RESERVED = {*dir(nn.Module()), *dir(nn.ModuleDict()), *dir(nn.ParameterDict())}


def module_key(name: str) -> str:
    """Returns the submodule's name of an input or output: with a suffix if it clashes with an attribute of torch's."""
    return f"{name.replace('.', '_')}_" if not name or "." in name or name in RESERVED else name


class Adapters(nn.Module, Generic[A]):
    """Adapters by name. Unlike `torch.nn.ModuleDict`, it allows any name, such as "values" or "type"."""

    def __init__(self, adapters: Mapping[str, A]) -> None:
        super().__init__()
        self.keys_by_name = {name: module_key(name) for name in adapters}
        if len(set(self.keys_by_name.values())) < len(adapters):
            raise PerceiversError(f"names are too similar: {', '.join(adapters)}. Choose others.")
        for name, adapter in adapters.items():
            self.add_module(self.keys_by_name[name], adapter)

    def __getitem__(self, name: str) -> A:
        return self._modules[self.keys_by_name[name]]  # type: ignore[return-value]

    def get_as(self, kind: type[T], name: str) -> T:
        """Returns the adapter of a name; raises a PerceiversError if it is not of that class."""
        adapter = self._modules.get(self.keys_by_name.get(name, ""))
        if not isinstance(adapter, kind):
            have = ", ".join(f"{key!r} ({type(part).__name__})" for key, part in self.items())
            raise PerceiversError(f"the model needs a {kind.__name__} named {name!r}: it has {have}.")
        return adapter

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_by_name)

    def __len__(self) -> int:
        return len(self.keys_by_name)

    def __contains__(self, name: object) -> bool:
        return name in self.keys_by_name

    def keys(self) -> list[str]:
        """Returns the names."""
        return list(self)

    def values(self) -> list[A]:
        """Returns the adapters."""
        return [self[name] for name in self]

    def items(self) -> list[tuple[str, A]]:
        """Returns names and adapters."""
        return [(name, self[name]) for name in self]
