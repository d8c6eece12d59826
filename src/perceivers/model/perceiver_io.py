"""Perceiver IO: any arrays in, any arrays out, in time linear in both (Jaegle et al., ICLR 2022, section 3).

    inputs -> encode -> process -> latents -> decode(queries) -> outputs

Shape suffixes:
    B batch, M inputs, C input channels, N latents, D latent channels,
    O outputs, P some of the outputs, Q query channels, E output channels
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.errors import PerceiversError
from perceivers.model import kernels
from perceivers.model.adapter import Adapters, Encoded, InputAdapter, InputArray, OutputAdapter, module_key, read_array
from perceivers.model.arguments import check_batch_sizes, check_devices, check_indices, check_mapping, check_names
from perceivers.model.attention import CrossAttention, KeyValues, SelfAttention
from perceivers.model.intermediates import Intermediates, record_attention, record_latents
from perceivers.model.kernels.folding import decode
from perceivers.model.linear import Linear, trunc_normal_parameter
from perceivers.model.masks import drop_trivial_mask, to_bool_mask
from perceivers.model.modalities import ModalityPadding, concatenate
from perceivers.model.saving import Model
from perceivers.model.sizes import Sizes, takes_sizes
from perceivers.model.transfer import transfer_weights

MIN_INPUT_PADDING = 4
"""Minimum channels of the vector that tells the modality of an input, where there are several (section 5)."""

MIN_QUERY_PADDING = 2
"""The same for queries."""


class Encoder(nn.Module):
    """Encodes an input array into latents and processes them (section 3.1).

    One block of `depth` self-attention layers is applied `num_blocks` times, with the same weights. A cross-attention
    to the inputs precedes the first `num_cross_attends` of them (1 in Perceiver IO; the first Perceiver repeats it).
    """

    def __init__(
        self,
        latents: int,
        channels: int,
        cross_attentions: list[CrossAttention],
        layers: list[SelfAttention],
        num_blocks: int,
        num_cross_attends: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.latents = trunc_normal_parameter(latents, channels)
        self.cross_attentions = nn.ModuleList(cross_attentions)
        self.layers = nn.ModuleList(layers)
        self.num_blocks = num_blocks
        self.num_cross_attends = num_cross_attends
        self.checkpointing = checkpointing

    def forward(self, x_BMC: Tensor, mask_BM: Tensor | None = None) -> Tensor:
        """[B, M, C] -> [B, N, D]."""
        run = checkpointed if self.checkpointing else call
        z_BND = self.latents.expand(x_BMC.shape[0], -1, -1)
        for block in range(self.num_blocks):
            if block < self.num_cross_attends:
                cross_attention = self.cross_attentions[block % len(self.cross_attentions)]
                z_BND = run(cross_attention, z_BND, x_BMC, mask_BM)
            for layer in self.layers:
                z_BND = run(layer, z_BND)
        return z_BND


def call(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Calls a module or function."""
    return function(*arguments)


def checkpointed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Calls a module or function, recomputing its activations in the backward pass instead of keeping them."""
    return checkpoint(function, *arguments, use_reentrant=False)


class PerceiverIO(Model):
    """Encodes any named inputs into a small latent array, processes it, and decodes any named outputs from it.

    Args:
        inputs: input adapters by name.
        outputs: output adapters by name.
        latents: N, number of latents.
        channels: D, channels of each latent.
        depth: self-attention layers of one block.
        maskable: inputs whose elements can be hidden in `encode`: each gets a learned mask token (section 5).
        output_channels: E of a linear layer after the decoder that all outputs share; no such layer by default.
        sizes: the other fields of `Sizes`.

    Raises:
        PerceiversError: a size is out of range, or names of inputs or outputs are wrong.
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
        maskable: Sequence[str] = (),
        output_channels: int | None = None,
        **sizes: Any,
    ) -> None:
        super().__init__()
        size = Sizes(latents=latents, channels=channels, depth=depth, **sizes)
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
                qk_channels=size.qk_channels,
                v_channels=size.v_channels,
                widening_factor=size.cross_widening_factor,
                dropout=size.dropout,
                gelu=size.gelu,
                longer="inputs",
            )
            for _ in range(1 if size.share_cross_attention else size.num_cross_attends)
        ]
        layers = [
            SelfAttention(
                channels, size.heads, size.qk_channels, size.v_channels, size.widening_factor, size.dropout, size.gelu
            )
            for _ in range(depth)
        ]
        self.encoder = Encoder(
            latents, channels, cross_attentions, layers, size.num_blocks, size.num_cross_attends, size.checkpointing
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
            )
            self.projection = nn.Identity() if output_channels is None else Linear(decoder_channels, output_channels)
        self.heads = nn.ModuleDict()  # the last linear layers of outputs
        for name, adapter in outputs.items():
            in_features = (output_channels or decoder_channels) if name in query_channels else channels
            out_features = query_channels.get(name, in_features) if adapter.channels is None else adapter.channels
            if adapter.channels is not None or out_features < in_features:
                self.heads[module_key(name)] = Linear(in_features, out_features)
        kernels.optimize(self)

    def encode(self, data: Mapping[str, Any], hidden: Mapping[str, Tensor] | None = None) -> Encoded:
        """Encodes all inputs into latents.

        Args:
            data: for each input, by name, what its adapter takes.
            hidden: for `maskable` inputs, by name, the elements to hide from the model: True where the mask token of
                the modality replaces them; [B, M], or a shape that expands to it.
        """
        check_mapping("data", data, self.inputs)
        check_names("input", data, self.inputs, all_needed=True)
        check_devices(data, self.encoder.latents.device)
        inputs = {name: adapter(data[name]) for name, adapter in self.inputs.items()}
        for name, array in inputs.items():
            if not isinstance(array, InputArray):
                raise PerceiversError(f"the adapter of input {name!r} must return an InputArray, not {type(array)}.")
            x_BMC, mask_BM = read_array(array, channel_dims=1)
            inputs[name] = InputArray(x_BMC, drop_trivial_mask(mask_BM), array.grid)
        check_batch_sizes({name: array.x_BMC for name, array in inputs.items()})
        dtype = self.encoder.latents.dtype
        hidden = {name: to_bool_mask(mask) for name, mask in (hidden or {}).items()}
        for name in hidden:
            if name not in self.maskable:
                can = ", ".join(self.maskable) or "none"
                raise PerceiversError(
                    f"the input {name!r} cannot be hidden: build the model with it in maskable ({can})."
                )
        x_BMC, mask_BM = concatenate(
            [self.input_padding(name, array.x_BMC.to(dtype), hidden.get(name)) for name, array in inputs.items()],
            [array.mask_BM for array in inputs.values()],
        )
        context = {name: adapter.context(inputs) for name, adapter in self.outputs.items()}
        return Encoded(self.encoder(x_BMC, mask_BM), context)

    def decode(
        self,
        encoded: Encoded,
        outputs: Mapping[str, Tensor | None] | None = None,
        max_memory: int | None = 2**28,
    ) -> dict[str, Any]:
        """Decodes all outputs, selected outputs, or selected elements of outputs.

        Every output depends on its own query and the latents alone (section 3.2), so any subset, in any order,
        equals the corresponding entries of the full decode.

        Args:
            encoded: the result of `encode`; it can be decoded as often as wanted.
            outputs: the outputs to decode, by name: integer indices [P] or [B, P] of elements, or None for all of them.
            max_memory: approximate bound in bytes on temporary memory: queries are decoded in chunks that keep within
                it. While gradients are recorded, chunks are recomputed in the backward pass, so that a loss of all
                outputs keeps within it, too. None decodes all at once.

        Returns:
            The predictions of each output: all in the domain's own shape, those at indices as [B, P, ...].
        """
        outputs = dict.fromkeys(self.outputs) if outputs is None else outputs
        check_mapping("outputs", outputs, self.outputs)
        check_names("output", outputs, self.outputs)
        uses_decoder = any(self.outputs[name].query_channels is not None for name in outputs)
        key_values = self.decoder.project_keys_values(encoded.latents) if uses_decoder else None
        return {
            name: self.decode_output(name, encoded, key_values, indices, max_memory)
            for name, indices in outputs.items()
        }

    def decode_output(
        self, name: str, encoded: Encoded, key_values: KeyValues | None, indices: Tensor | None, max_memory: int | None
    ) -> Any:
        """Decodes one output from the latents' keys and values, in chunks if memory asks for it."""
        adapter, latents = self.outputs[name], encoded.latents
        encoded = Encoded(latents, encoded.context[name])
        total = adapter.num_queries(encoded)
        if indices is not None:
            check_indices(f"indices of output {name!r}", indices, total, batch_size=latents.shape[0])
        if adapter.query_channels is None or key_values is None:
            return adapter.postprocess(self.output_layer(name)(latents.mean(1, keepdim=True)), encoded)
        count = total if indices is None else indices.shape[-1]
        chunk = count if max_memory is None else max(1, max_memory // self.peak_bytes_per_query(latents))
        if count <= chunk:
            y_BPE = self.decode_queries(name, encoded, key_values, indices)
        else:
            all_indices = torch.arange(count, device=latents.device) if indices is None else indices
            run = checkpointed if torch.is_grad_enabled() else call
            chunks = all_indices.split(chunk, -1)
            y_BPE = torch.cat([run(self.decode_queries, name, encoded, key_values, part) for part in chunks], 1)
        return adapter.postprocess(y_BPE, encoded, indices)

    def decode_queries(self, name: str, encoded: Encoded, key_values: KeyValues, indices: Tensor | None) -> Tensor:
        """Makes the queries at some indices and decodes them; -> [B, P, E]."""
        adapter, latents = self.outputs[name], encoded.latents
        q_BPQ = adapter.queries(encoded, indices).to(latents.dtype)
        q_BPQ = self.query_padding(name, q_BPQ).expand(latents.shape[0], -1, -1)
        head = (self.projection, self.output_layer(name))
        return decode(self.decoder, head, q_BPQ, key_values, drop_trivial_mask(adapter.query_mask(encoded, indices)))

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
        return model.to(self.encoder.latents).train(self.training)

    def output_layer(self, name: str) -> nn.Module:
        """Returns the last linear layer of an output, or the identity if it has none."""
        key = module_key(name)
        return self.heads[key] if key in self.heads else nn.Identity()

    def peak_bytes_per_query(self, latents: Tensor) -> int:
        """Returns the peak bytes needed to decode one more query per example, excluding the result."""
        attention = self.decoder.attention
        vectors = 6 * self.query_padding.channels + 2 * self.decoder.mlp.hidden.out_features
        vectors += attention.query.out_features + attention.value.out_features
        vectors += getattr(self.projection, "out_features", 0)
        scores = 2 * attention.heads * latents.shape[1] if attention.dropout.p and self.training else 0
        return latents.shape[0] * (vectors + scores) * latents.element_size()

    def forward(
        self,
        data: Mapping[str, Any],
        outputs: Mapping[str, Tensor | None] | None = None,
        hidden: Mapping[str, Tensor] | None = None,
        max_memory: int | None = 2**28,
    ) -> dict[str, Any]:
        """Encodes `data` and decodes `outputs` (all by default): see `encode` and `decode`."""
        return self.decode(self.encode(data, hidden), outputs, max_memory)

    def forward_intermediates(
        self,
        data: Mapping[str, Any],
        outputs: Mapping[str, Tensor | None] | None = None,
        hidden: Mapping[str, Tensor] | None = None,
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
