"""Perceiver IO: any arrays in, any arrays out, in time linear in both (Jaegle et al., ICLR 2022, section 3).

    inputs -> encode -> process -> latents -> decode(queries) -> outputs

Shape suffixes:
    B batch, M inputs, C input channels, N latents, D latent channels,
    O outputs, P some of the outputs, Q query channels, E output channels
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from perceivers.errors import PerceiversError
from perceivers.model import kernels
from perceivers.model.adapter import Encoded, InputAdapter, InputArray, OutputAdapter
from perceivers.model.attention import CrossAttention, KeyValues, SelfAttention
from perceivers.model.kernels.eager import is_concrete
from perceivers.model.kernels.folding import decode
from perceivers.model.linear import Linear, trunc_normal_parameter
from perceivers.model.modalities import Padding, check_masked, check_names, check_new_names, concatenate
from perceivers.model.saving import Model
from perceivers.model.sizes import Sizes, takes_sizes

MODALITY_CHANNELS = 4
"""Fewest channels of the vector that marks the modality of an input, where there are several (section 5)."""

QUERY_MODALITY_CHANNELS = 2
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
        run = recompute if self.checkpointing else keep
        z_BND = self.latents.expand(x_BMC.shape[0], -1, -1)
        for block in range(self.num_blocks):
            if block < self.num_cross_attends:
                cross_attention = self.cross_attentions[block % len(self.cross_attentions)]
                z_BND = run(cross_attention, z_BND, x_BMC, mask_BM)
            for layer in self.layers:
                z_BND = run(layer, z_BND)
        return z_BND


def keep(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Calls a module or function, keeping its activations for the backward pass."""
    return function(*arguments)


def recompute(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Calls a module or function and computes its activations again in the backward pass instead of keeping them."""
    return checkpoint(function, *arguments, use_reentrant=False)


def needed(mask_BM: Tensor | None) -> Tensor | None:
    """The mask, if it hides anything."""
    return None if mask_BM is None or (is_concrete(mask_BM) and mask_BM.all()) else mask_BM


def check_points(name: str, points: Tensor, total: int) -> None:
    """Raises a PerceiversError for points that the output does not have; on an accelerator this would wait for it."""
    if points.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if points.numel() and not 0 <= int(points.min()) <= int(points.max()) < total:
        raise PerceiversError(
            f"points of output {name!r} go from {int(points.min())} to {int(points.max())}, "
            f"but it has points 0 to {total - 1}."
        )


class PerceiverIO(Model):
    """Reads any named inputs into a small latent array, processes it, and answers any named queries from it.

    Args:
        inputs: input adapters by name.
        outputs: output adapters by name.
        latents: N, number of latents.
        channels: D, channels of each.
        depth: self-attention layers of one block.
        maskable: inputs whose elements can be masked in `encode`: each gets a learned mask vector (section 5).
        output_channels: E of a linear layer after the decoder that all outputs share; none, if not given.
        sizes: the other fields of `Sizes`.

    Raises:
        PerceiversError: a size that cannot be, naming the field.
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
        check_new_names(inputs)
        check_new_names(outputs)

        self.inputs = nn.ModuleDict(inputs)
        check_names("input", dict.fromkeys(maskable), self.inputs, all_needed=False)
        self.input_padding = Padding(
            {name: adapter.channels for name, adapter in inputs.items()}, MODALITY_CHANNELS, maskable
        )
        common = self.input_padding.common
        cross_attentions = [
            CrossAttention(
                channels,
                common,
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

        self.outputs = nn.ModuleDict(outputs)
        for adapter in outputs.values():
            adapter.connect(inputs)
        asking = {name: a.query_channels for name, a in outputs.items() if a.query_channels is not None}
        if asking:
            self.query_padding = Padding(asking, QUERY_MODALITY_CHANNELS)
            decoded = self.query_padding.common
            self.decoder = CrossAttention(
                decoded,
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
            self.projection = nn.Identity() if output_channels is None else Linear(decoded, output_channels)
        self.heads = nn.ModuleDict()
        for name, adapter in outputs.items():
            if adapter.channels is not None:
                read = (output_channels or decoded) if name in asking else channels
                self.heads[name] = Linear(read, adapter.channels)
        kernels.optimize(self)

    def encode(self, data: Mapping[str, Any], masked: Mapping[str, Tensor] | None = None) -> Encoded:
        """Reads all inputs into the latents.

        Args:
            data: for each input, by name, what its adapter takes.
            masked: for inputs that are `maskable`, elements that the model must not see, which it is to tell from the
                rest: True where the modality's mask vector takes their place; [B, M], or a shape that expands to it.

        Returns:
            z_BND, and the input arrays.
        """
        check_names("input", data, self.inputs, all_needed=True)
        inputs = {name: InputArray(*adapter(data[name])) for name, adapter in self.inputs.items()}
        for name, (x_BMC, mask_BM, _) in inputs.items():
            if mask_BM is not None and mask_BM.shape != x_BMC.shape[:2]:
                raise PerceiversError(
                    f"the mask of input {name!r} has shape {tuple(mask_BM.shape)}, "
                    f"but its array has {tuple(x_BMC.shape[:2])} (batch, elements)."
                )
        dtype = self.encoder.latents.dtype
        masked = {} if masked is None else masked
        check_masked(masked, self.input_padding)
        inputs = {name: array._replace(mask_BM=needed(array.mask_BM)) for name, array in inputs.items()}
        x_BMC, mask_BM = concatenate(
            [self.input_padding(name, array.x_BMC.to(dtype), masked.get(name)) for name, array in inputs.items()],
            [array.mask_BM for array in inputs.values()],
        )
        return Encoded(self.encoder(x_BMC, mask_BM), inputs)

    def decode(
        self,
        encoded: Encoded,
        outputs: Mapping[str, Tensor | None] | None = None,
        max_memory: int | None = 2**28,
    ) -> dict[str, Any]:
        """Reads outputs from the latents: all of them, or some outputs, or some points of each.

        Every output depends on its own query and the latents alone (section 3.2), so that any subset, in any
        order, gives the entries that the full decode has there.

        Args:
            encoded: what `encode` returned; it can be decoded as often as wanted.
            outputs: for each output wanted, by name, integer points [P] or [B, P], or None for all points.
            max_memory: bound in bytes on what decoding needs at a time beside its results: queries are decoded in
                chunks that keep within it. While gradients are recorded, what a chunk needs is computed again in the
                backward pass, so that a loss of all outputs keeps within it too. None decodes all at once.

        Returns:
            For each output its predictions: all in the domain's own shape, those of points as [B, P, ...].
        """
        outputs = dict.fromkeys(self.outputs) if outputs is None else outputs
        check_names("output", outputs, self.outputs, all_needed=False)
        asking = any(self.outputs[name].query_channels is not None for name in outputs)
        seen = self.decoder.project_keys_values(encoded.z_BND) if asking else None
        return {name: self.decode_output(name, encoded, seen, points, max_memory) for name, points in outputs.items()}

    def decode_output(
        self, name: str, encoded: Encoded, seen: KeyValues | None, points: Tensor | None, max_memory: int | None
    ) -> Any:
        """Decodes one output from what the decoder has seen of the latents, in chunks if memory asks for it."""
        adapter = self.outputs[name]
        assert isinstance(adapter, OutputAdapter)
        if adapter.query_channels is None or seen is None:
            return adapter.read(self.head(name)(encoded.z_BND.mean(1, keepdim=True)), encoded)
        total = adapter.count(encoded)
        if points is not None:
            check_points(name, points, total)
        count = total if points is None else points.shape[-1]
        chunk = count if max_memory is None else max(1, max_memory // self.bytes_per_query(encoded.z_BND))
        if count <= chunk:
            y_BPE = self.answer(name, encoded, seen, points)
        else:
            all_points = torch.arange(count, device=encoded.z_BND.device) if points is None else points
            run = recompute if torch.is_grad_enabled() else keep
            chunks = [run(self.answer, name, encoded, seen, some) for some in all_points.split(chunk, -1)]
            y_BPE = torch.cat(chunks, 1)
        return adapter.read(y_BPE, encoded, points)

    def answer(self, name: str, encoded: Encoded, seen: KeyValues, points: Tensor | None) -> Tensor:
        """Makes the queries of some points and decodes them; -> [B, P, E]."""
        adapter = self.outputs[name]
        assert isinstance(adapter, OutputAdapter)
        z_BND = encoded.z_BND
        q_BPQ = adapter.queries(encoded, points).to(z_BND.dtype)
        q_BPQ = self.query_padding(name, q_BPQ).expand(z_BND.shape[0], -1, -1)
        head = [layer for layer in (self.projection, self.head(name)) if not isinstance(layer, nn.Identity)]
        return decode(self.decoder, head, q_BPQ, seen, needed(adapter.mask(encoded, points)))

    def head(self, name: str) -> nn.Module:
        """The last linear layer of an output, if it has one."""
        return self.heads[name] if name in self.heads else nn.Identity()

    def bytes_per_query(self, z_BND: Tensor) -> int:
        """What decoding one more query of every example takes at its peak, without its result."""
        batch, latents, _ = z_BND.shape
        attention = self.decoder.attention
        query = self.query_padding.common
        hidden = self.decoder.mlp.hidden.out_features
        read = getattr(self.projection, "out_features", 0)
        vectors = 6 * query + 2 * hidden + attention.query.out_features + attention.value.out_features + read
        kept = 2 * attention.heads * latents if attention.dropout.p and self.training else 0  # scores
        return batch * (vectors + kept) * z_BND.element_size()

    def forward(
        self,
        data: Mapping[str, Any],
        outputs: Mapping[str, Tensor | None] | None = None,
        masked: Mapping[str, Tensor] | None = None,
        max_memory: int | None = 2**28,
    ) -> dict[str, Any]:
        """Encodes `data` and decodes `outputs` (all, if not given): see `encode` and `decode`."""
        return self.decode(self.encode(data, masked), outputs, max_memory)
