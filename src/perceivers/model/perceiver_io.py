"""Perceiver IO: any arrays in, any arrays out, in time linear in both (Jaegle et al., ICLR 2022, section 3).

    inputs -> encode -> process -> latents -> decode(queries) -> outputs

Shape suffixes:
    B batch, M inputs, C input channels, N latents, D latent channels,
    O outputs, P some of the outputs, Q query channels, E output channels
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model import kernels
from perceivers.model.adapter import (
    Adapters,
    Encoded,
    Indices,
    InputAdapter,
    InputArray,
    OutputAdapter,
    module_key,
    read_input,
)
from perceivers.model.arguments import (
    check_batch_sizes,
    check_coordinates,
    check_devices,
    check_mapping,
    check_names,
    check_pair_mask,
)
from perceivers.model.attention import Attention, CrossAttention, KeyValues, SelfAttention
from perceivers.model.encoder import Encoder, call, checkpointed
from perceivers.model.intermediates import Intermediates, record_attention, record_latents
from perceivers.model.kernels.folding import decode
from perceivers.model.linear import Linear
from perceivers.model.masks import PairMask, SameExample, drop_trivial_mask, to_bool_mask
from perceivers.model.modalities import ModalityPadding, concatenate, concatenate_masks
from perceivers.model.ragged import Ragged, regular_offsets, to_ragged
from perceivers.model.rotary import RotaryPositions, Rotation
from perceivers.model.saving import Model
from perceivers.model.selection import Selection, select
from perceivers.model.sizes import Sizes, takes_sizes
from perceivers.model.transfer import transfer_weights

MIN_INPUT_PADDING = 4
"""Minimum channels of the vector that tells the modality of an input, where there are several (section 5)."""

MIN_QUERY_PADDING = 2
"""The same for queries."""


class PerceiverIO(Model):
    """Encodes any named inputs into a small latent array, processes it, and decodes any named outputs from it.

    Args:
        inputs: input adapters by name.
        outputs: output adapters by name.
        latents: N, number of learned latents; 0 if the caller of `encode` always gives latents.
        channels: D, channels of each latent.
        depth: self-attention layers of one block.
        rotary: rotary positions of all attentions: inputs and latents then need coordinates. Queries that have none,
            such as that of a label, are at the origin.
        maskable: inputs whose elements can be hidden in `encode`: each gets a learned mask token (section 5).
        output_channels: E of a linear layer after the decoder that all outputs share; no such layer by default.
        sizes: the other fields of `Sizes`.

    Raises:
        PerceiversError: a size is out of range, or names of inputs or outputs are wrong.

    Examples:
        >>> import torch
        >>> from perceivers import FourierPositions
        >>> from perceivers.adapters import ArrayInput, ArrayOutput, LabelOutput
        >>> model = PerceiverIO(
        ...     inputs={"points": ArrayInput(3)},
        ...     outputs={"label": LabelOutput(10), "map": ArrayOutput(2, FourierPositions((8, 8), bands=4))},
        ...     latents=16,
        ...     channels=32,
        ...     depth=2,
        ... )
        >>> encoded = model.encode({"points": torch.randn(5, 100, 3)})
        >>> outputs = model.decode(encoded, {"label": None, "map": torch.tensor([0, 63])})
        >>> outputs["label"].shape, outputs["map"].shape
        (torch.Size([5, 10]), torch.Size([5, 2, 2]))
    """

    @takes_sizes
    def __init__(
        self,
        inputs: Mapping[str, InputAdapter],
        outputs: Mapping[str, OutputAdapter],
        latents: int,
        channels: int,
        depth: int,
        *,
        rotary: RotaryPositions | None = None,
        maskable: Sequence[str] = (),
        output_channels: int | None = None,
        **sizes: Any,
    ) -> None:
        super().__init__()
        size = Sizes(latents=latents or 1, channels=channels, depth=depth, **sizes)
        self.rotary = rotary
        rotate_values = () if rotary is None else rotary.rotate_values
        if not inputs or not outputs:
            raise PerceiversError("a model needs at least one input and one output.")
        check_names("input", maskable, inputs)

        self.inputs = Adapters(inputs)
        input_channels = {name: adapter.channels for name, adapter in inputs.items()}
        self.input_padding = ModalityPadding(input_channels, MIN_INPUT_PADDING, maskable)
        self.maskable = list(maskable)
        cross_attentions = [
            CrossAttention(
                channels,
                self.input_padding.channels,
                heads=size.cross_heads,
                qk_channels=size.cross_qk_channels or size.qk_channels,
                v_channels=size.cross_v_channels or (None if size.cross_qk_channels else size.v_channels),
                widening_factor=size.cross_widening_factor,
                dropout=size.dropout,
                gelu=size.gelu,
                longer="inputs",
                gated=size.gated,
                rotate_values="encoder" in rotate_values,
            )
            for _ in range(1 if size.share_cross_attention else size.num_cross_attends)
        ]
        layers = [
            SelfAttention(
                channels,
                heads=size.heads,
                qk_channels=size.qk_channels,
                v_channels=size.v_channels,
                widening_factor=size.widening_factor,
                dropout=size.dropout,
                gelu=size.gelu,
                gated=size.gated,
                rotate_values="processor" in rotate_values,
            )
            for _ in range(depth)
        ]
        self.encoder = Encoder(
            latents,
            channels,
            cross_attentions,
            layers,
            size.num_blocks,
            size.num_cross_attends,
            size.checkpointing,
            size.nested_latents,
        )

        self.outputs = Adapters(outputs)
        for adapter in outputs.values():
            adapter.bind_inputs(inputs)
        widths = [a.query_channels for a in outputs.values() if isinstance(a.query_channels, int)]
        for adapter in outputs.values():
            if adapter.query_channels == "any":  # all queries are padded to the widest: a wider one would cost all more
                adapter.bind_query(max(widths, default=channels))
        query_channels = {name: a.query_channels for name, a in outputs.items() if isinstance(a.query_channels, int)}
        if query_channels:
            self.query_padding = ModalityPadding(query_channels, MIN_QUERY_PADDING)
            decoder_channels = self.query_padding.channels
            self.decoder = CrossAttention(
                decoder_channels,
                channels,
                heads=size.decoder_heads,
                qk_channels=size.decoder_qk_channels,
                v_channels=size.decoder_v_channels,
                widening_factor=size.decoder_widening_factor,
                query_residual=size.query_residual,
                dropout=size.dropout,
                gelu=size.gelu,
                longer="queries",
                gated=size.gated,
                rotate_values="decoder" in rotate_values,
            )
            self.projection = nn.Identity() if output_channels is None else Linear(decoder_channels, output_channels)
        self.heads = nn.ModuleDict()  # the last linear layers of outputs
        for name, adapter in outputs.items():
            in_features = (output_channels or decoder_channels) if name in query_channels else channels
            out_features = query_channels.get(name, in_features) if adapter.channels is None else adapter.channels
            if adapter.channels is not None or out_features < in_features:
                self.heads[module_key(name)] = Linear(in_features, out_features)
        if rotary is not None:
            for layer in self.modules():
                if isinstance(layer, Attention):
                    layer.check_rotation(rotary.channels)
        kernels.optimize(self)

    def encode(
        self,
        data: Mapping[str, Any],
        hidden: Mapping[str, Tensor | Ragged] | None = None,
        *,
        latents: Tensor | None = None,
        num_latents: int | None = None,
        latent_coordinates: Tensor | None = None,
        input_masks: Mapping[str, Tensor] | None = None,
        latent_mask: Tensor | None = None,
    ) -> Encoded:
        """Encodes all inputs into latents.

        Args:
            data: for each input, by name, what its adapter takes.
            hidden: for `maskable` inputs, by name, the elements to hide from the model: True where the mask token of
                the modality replaces them; [B, M], or a shape that expands to it.
            latents: latents to begin with, instead of the learned ones: [N, D] or [B, N, D], in any number. Those of
                an earlier call continue a stream.
            num_latents: number of learned latents to use, the first ones; all by default.
            latent_coordinates: coordinates of the latents, [N, G] or [B, N, G], for rotary positions.
            input_masks: by the name of an input, which latents may read which of its elements, [B or 1, N, M], or
                [B or 1, N, 1] for all or none of them; all by default. A latent that may read nothing reads zeros.
            latent_mask: which latents may read which in the processor, [B or 1, N, N]; all by default.

        Raises:
            PerceiversError: an argument does not fit the model or the data.
        """
        check_mapping("data", data, self.inputs)
        check_names("input", data, self.inputs, all_needed=True)
        for name in hidden or {}:
            if name not in self.maskable:
                can = ", ".join(self.maskable) or "none"
                raise PerceiversError(
                    f"the input {name!r} cannot be hidden: build the model with it in maskable ({can})."
                )
        check_devices(data, self.device)
        check_devices({"latents": latents}, self.device)
        inputs = {name: self.read_input(name, data[name]) for name in self.inputs}
        check_batch_sizes({name: array.batch_size for name, array in inputs.items()})
        array = concatenate([self.pad_input(name, array, hidden or {}) for name, array in inputs.items()])
        z_BND = self.encoder.first_latents(array.batch_size, latents, num_latents).to(self.dtype)
        if latent_mask is not None:
            check_pair_mask("latent_mask", latent_mask, array.batch_size, z_BND.shape[1], z_BND.shape[1])
        if self.rotary is not None and latent_coordinates is not None and latent_coordinates.dim() == 2:
            latent_coordinates = latent_coordinates[None]
        z_BND = self.encoder(
            array.x_BMC,
            array.mask_BM,
            array.offsets,
            z_BND,
            concatenate_masks(inputs, input_masks, z_BND.shape[1]),
            latent_mask,
            self.rotate_by("the inputs", array.coordinates_BMG, array.x_BMC),
            self.rotate_by("the latents", latent_coordinates, z_BND),
        )
        context = {name: adapter.context(inputs) for name, adapter in self.outputs.items()}
        return Encoded(z_BND, context, latent_coordinates)

    def read_input(self, name: str, data: Any) -> InputArray:
        """Calls the adapter of an input, and checks what it returns."""
        array = self.inputs[name](to_ragged(data))
        if not isinstance(array, InputArray):
            raise PerceiversError(f"the adapter of input {name!r} must return an InputArray, not {type(array)}.")
        checked = read_input(array, channel_dims=1)
        return checked._replace(mask_BM=drop_trivial_mask(checked.mask_BM))

    def pad_input(self, name: str, array: InputArray, hidden: Mapping[str, Tensor | Ragged]) -> InputArray:
        """Pads an input to the common channels, and replaces hidden elements by the mask token."""
        hidden_BM = to_ragged(hidden.get(name))
        if isinstance(hidden_BM, Ragged):
            hidden_BM = hidden_BM.values[None]
        x_BMC = self.input_padding(name, array.x_BMC.to(self.dtype), to_bool_mask(hidden_BM))
        return array._replace(x_BMC=x_BMC)

    def rotate_by(self, what: str, coordinates_BMG: Tensor | None, x_BMC: Tensor) -> Rotation | None:
        """Returns the rotation of an array by its coordinates, if the model has rotary positions."""
        if self.rotary is None:
            return None
        if coordinates_BMG is None:
            raise PerceiversError(f"the model has rotary positions: {what} need coordinates.")
        shape = (coordinates_BMG.shape[0] if len(coordinates_BMG) == 1 else x_BMC.shape[0], x_BMC.shape[1])
        check_coordinates(f"the coordinates of {what}", coordinates_BMG, shape, self.rotary.dimensions)
        rotation: Rotation = self.rotary(coordinates_BMG)
        return rotation

    def decode(
        self,
        encoded: Encoded,
        outputs: Mapping[str, Indices | None] | None = None,
        max_memory: int | None = 2**27,
        *,
        masks: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """Decodes all outputs, selected outputs, or selected elements of outputs.

        Every output depends on its own query and the latents alone (section 3.2), so any subset, in any order,
        equals the corresponding entries of the full decode.

        Args:
            encoded: the result of `encode`; it can be decoded as often as wanted.
            outputs: the outputs to decode, by name: integer indices [P] or [B, P] of elements; real coordinates [P, G]
                or [B, P, G]; either of them ragged, [T] or [T, G]; or None for all elements.
            max_memory: approximate bound in bytes on temporary memory: queries are decoded in chunks that keep within
                it. While gradients are recorded, chunks are recomputed in the backward pass, so that a loss of all
                outputs keeps within it, too. None decodes all at once.
            masks: by the name of an output, which latents each query may read, [B or 1, P, N]; all by default.

        Returns:
            The predictions of each output: all in the domain's own shape, those at indices as [B, P, ...], those of a
            ragged batch as `Ragged`.
        """
        outputs = dict.fromkeys(self.outputs) if outputs is None else outputs
        check_mapping("outputs", outputs, self.outputs)
        check_names("output", outputs, self.outputs)
        check_names("output", masks or {}, outputs)
        selected = {}
        for name, indices in outputs.items():
            own = encoded._replace(context=encoded.context[name])
            selected[name] = select(name, self.outputs[name], own, indices, (masks or {}).get(name))
        with_queries = [name for name in outputs if self.outputs[name].query_channels is not None]
        key_values = {
            is_ragged: self.project_latents(encoded, is_ragged)
            for is_ragged in {selected[name].offsets is not None for name in with_queries}
        }
        predictions = {}
        for name, elements in selected.items():
            own = encoded._replace(context=encoded.context[name])
            if name in with_queries:
                own_key_values = key_values[elements.offsets is not None]
                predictions[name] = self.decode_output(name, own, own_key_values, elements, max_memory)
            else:
                mean_B1D = encoded.latents.mean(1, keepdim=True)
                predictions[name] = self.outputs[name].postprocess(self.output_layer(name)(mean_B1D), own)
        return predictions

    def project_latents(self, encoded: Encoded, is_ragged: bool) -> KeyValues:
        """Projects latents to the decoder's keys and values; for ragged queries, all examples one behind another."""
        z_BND, rotation = encoded.latents, self.rotate_by("the latents", encoded.coordinates, encoded.latents)
        if is_ragged:
            rotation = None if rotation is None else rotation.flatten_batch(len(z_BND))
            z_BND = z_BND.flatten(0, 1)[None]
        return self.decoder.project_keys_values(z_BND, None, rotation)

    def decode_output(
        self, name: str, encoded: Encoded, key_values: KeyValues, elements: Selection, max_memory: int | None
    ) -> Any:
        """Decodes one output from the latents' keys and values, in chunks if memory asks for it."""
        latents, is_ragged = encoded.latents, elements.offsets is not None
        query_bytes = self.peak_bytes_per_query(latents[:1] if is_ragged else latents)
        size = elements.num_queries if max_memory is None else max(1, max_memory // query_bytes)
        if elements.num_queries <= size:
            y_BPE = self.decode_queries(name, encoded, key_values, elements)
        else:
            run = checkpointed if torch.is_grad_enabled() else call
            chunks = elements.split(size, latents.device)
            y_BPE = torch.cat([run(self.decode_queries, name, encoded, key_values, chunk) for chunk in chunks], 1)
        predictions = self.outputs[name].postprocess(y_BPE, encoded, elements.indices)
        return predictions if elements.offsets is None else Ragged(predictions[0], elements.offsets)

    def decode_queries(self, name: str, encoded: Encoded, key_values: KeyValues, elements: Selection) -> Tensor:
        """Makes the queries of some elements and decodes them; -> [B, P, E], or [1, T, E] if they are ragged."""
        adapter, (batch_size, length, _) = self.outputs[name], encoded.latents.shape
        q_BPQ = adapter.queries(encoded, elements.indices).to(encoded.latents.dtype)
        q_BPQ = self.query_padding(name, q_BPQ)
        pair_mask: PairMask | None = elements.mask
        if elements.offsets is None:
            q_BPQ = q_BPQ.expand(batch_size, -1, -1)
        else:
            pair_mask = SameExample(elements.offsets, regular_offsets(batch_size, length, q_BPQ.device))
        coordinates, rotation = adapter.query_coordinates(encoded, elements.indices), None
        if coordinates is not None:
            rotation = self.rotate_by(f"the queries of output {name!r}", coordinates, q_BPQ)
        query_mask = drop_trivial_mask(adapter.query_mask(encoded, elements.indices))
        head = (self.projection, self.output_layer(name))
        return decode(self.decoder, head, q_BPQ, key_values, query_mask, pair_mask, rotation)

    def index_names(self) -> dict[str, tuple[int, list[str]]]:
        """Returns the names of the channels of each head, such as those of classes."""
        return {
            f"heads.{module_key(name)}.{leaf}": (0, adapter.channel_names)
            for name, adapter in self.outputs.items()
            if adapter.channel_names is not None
            for leaf in ("weight", "bias")
        }

    def with_outputs(self, outputs: Mapping[str, OutputAdapter]) -> "PerceiverIO":
        """Returns a new model with the same inputs and weights, and other outputs, such as a head for other classes.

        What outputs of this model of the same name know of the same classes is kept; everything else of the outputs is
        fresh. The decoder keeps its weights if the new queries have as many channels.

        Args:
            outputs: output adapters by name; those of this model are copied.
        """
        model = type(self)(**copy.deepcopy(self.config | {"outputs": dict(outputs)}))
        transfer_weights(self, model)
        return model.to(self.device, self.dtype).train(self.training)

    def output_layer(self, name: str) -> nn.Module:
        """Returns the last linear layer of an output, or the identity if it has none."""
        key = module_key(name)
        return self.heads[key] if key in self.heads else nn.Identity()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.encoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.encoder.parameters()).dtype

    def peak_bytes_per_query(self, latents: Tensor) -> int:
        """Returns the peak bytes needed to decode one more query per example, excluding the result."""
        attention = self.decoder.attention
        hidden = self.decoder.mlp.hidden.out_features if hasattr(self.decoder, "mlp") else 0
        vectors = 6 * self.query_padding.channels + 2 * hidden
        vectors += attention.query.out_features + attention.value.out_features
        vectors += getattr(self.projection, "out_features", 0)
        scores = 2 * attention.heads * latents.shape[1] if attention.dropout.p and self.training else 0
        return latents.shape[0] * (vectors + scores) * latents.element_size()

    def forward(
        self,
        data: Mapping[str, Any],
        outputs: Mapping[str, Indices | None] | None = None,
        hidden: Mapping[str, Tensor | Ragged] | None = None,
        max_memory: int | None = 2**27,
    ) -> dict[str, Any]:
        """Encodes `data` and decodes `outputs` (all by default): see `encode` and `decode`."""
        return self.decode(self.encode(data, hidden), outputs, max_memory)

    def forward_intermediates(
        self,
        data: Mapping[str, Any],
        outputs: Mapping[str, Indices | None] | None = None,
        hidden: Mapping[str, Tensor | Ragged] | None = None,
        attention: bool = False,
    ) -> tuple[dict[str, Any], Intermediates]:
        """Computes the model, and returns what it computes on the way.

        Args:
            data: as in `encode`.
            outputs: as in `decode`.
            hidden: as in `encode`.
            attention: whether to return the attention maps, which need the memory of all score matrices.

        Returns:
            The predictions, and the `Intermediates`.
        """
        with record_latents(self.encoder) as latents, record_attention(self if attention else nn.Identity()) as maps:
            predictions = self(data, outputs, hidden)
        return predictions, Intermediates(latents, maps)
