"""Models of others, as `PerceiverIO` with their weights: what they compute is what ours does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from perceivers import FourierFeatures, InputAdapter, InputArray, OutputAdapter, PerceiverIO, RotaryPositions
from perceivers.adapters import ArrayInput, ArrayOutput
from perceivers.model.intermediates import record_latents
from perceivers.model.rotary import spaced_periods

OTHERS = Path(__file__).parents[3] / "shared/fixtures/others"


def read(name):
    if not (OTHERS / name).exists():
        pytest.skip(f"the reference outputs of {name} are absent")
    folder = OTHERS / name
    arrays = [
        {key: torch.from_numpy(value) for key, value in np.load(folder / f"{part}.npz").items()}
        for part in ("inputs", "outputs")
    ]
    return (
        json.loads((folder / "config.json").read_text())["arguments"],
        load_file(folder / "weights.safetensors"),
        *arrays,
    )


def attention_weights(theirs, prefix):
    """Translates the weights of an attention with one matrix for keys and values."""
    query = theirs.get(f"{prefix}.to_q.weight")
    if query is None:
        query, key, value = theirs[f"{prefix}.to_qkv.weight"].chunk(3)
    else:
        key, value = theirs[f"{prefix}.to_kv.weight"].chunk(2)
    weights = {"query.weight": query, "key.weight": key, "value.weight": value}
    weights |= {f"{name}.bias": torch.zeros(len(query)) for name in ("query", "key", "value")}
    return weights | {f"output.{name}": theirs[f"{prefix}.to_out.{name}"] for name in ("weight", "bias")}


def translate(theirs, names):
    """Renames weights by the beginnings of their names."""
    return {
        ours + key.removeprefix(prefix): value
        for prefix, ours in names.items()
        for key, value in theirs.items()
        if key.startswith(prefix)
    }


class Spikes(InputAdapter):
    """Spikes of units at times, as POYO takes them."""

    def __init__(self, units, types, channels):
        super().__init__()
        self.channels = channels
        self.unit = torch.nn.Embedding(units, channels)
        self.kind = torch.nn.Embedding(types, channels)

    def forward(self, data):
        x_BMC = self.unit(data["unit"]) + self.kind(data["type"])
        return InputArray(x_BMC, data["mask"], None, data["time"][..., None])


class Behavior(OutputAdapter):
    """A vector at any time of a session; the query is the embedding of the session, which is its context."""

    coordinate_dims = 1

    def __init__(self, sessions, channels, out):
        super().__init__()
        self.query_channels, self.channels = channels, out
        self.session = torch.nn.Embedding(sessions, channels)

    def queries(self, encoded, indices=None):
        return self.session(encoded.context)[:, None].expand(-1, indices.shape[-2], -1)


def poyo(sizes, periods):
    dim, head = sizes["dim"], sizes["dim_head"]
    return PerceiverIO(
        {"spikes": Spikes(12, 4, dim)},
        {"behavior": Behavior(4, dim, sizes["dim_out"])},
        latents=sizes["num_latents_per_step"],
        channels=dim,
        depth=sizes["depth"],
        heads=sizes["self_heads"],
        qk_channels=sizes["self_heads"] * head,
        widening_factor=4,
        cross_heads=sizes["cross_heads"],
        cross_qk_channels=sizes["cross_heads"] * head,
        cross_widening_factor=4,
        decoder_heads=sizes["cross_heads"],
        decoder_qk_channels=sizes["cross_heads"] * head,
        decoder_widening_factor=4,
        gelu="exact",
        gated=True,
        rotary=RotaryPositions(periods, rotate_values=["encoder", "processor"]),
    ).eval()


def poyo_weights(theirs, depth):
    blocks = {"encoder.cross_attentions.0": ("enc_atn", "enc_ffn"), "decoder": ("dec_atn", "dec_ffn")}
    blocks |= {f"encoder.layers.{i}": (f"proc_layers.{i}.0", f"proc_layers.{i}.1") for i in range(depth)}
    ours = {
        "inputs.spikes.unit.weight": theirs["unit_emb.weight"],
        "inputs.spikes.kind.weight": theirs["token_type_emb.weight"],
        "outputs.behavior.session.weight": theirs["session_emb.weight"],
        "encoder.latents": theirs["latent_emb.weight"],
        "heads.behavior.weight": theirs["readout.weight"],
        "heads.behavior.bias": theirs["readout.bias"],
    }
    for block, (attention, mlp) in blocks.items():
        ours |= {f"{block}.attention.{name}": value for name, value in attention_weights(theirs, attention).items()}
        first = "norm_z" if "layers" in block else "norm_q"
        names = {f"{attention}.norm.": f"{first}.", f"{attention}.norm_context.": "norm_x.", f"{mlp}.0.": "norm_h."}
        names |= {f"{mlp}.1.net.0.": "mlp.hidden.", f"{mlp}.1.net.3.": "mlp.output."}
        ours |= {f"{block}.{name}": value for name, value in translate(theirs, names).items()}
    return ours


def test_poyo():
    sizes, theirs, inputs, outputs = read("poyo")
    frequencies = theirs["rotary_emb.omega"].double()
    periods = (2 * torch.pi / frequencies[frequencies > 0]).tolist()
    torch.testing.assert_close(periods, spaced_periods(4, 1e-4, 2.0627))  # theirs are rounded to float32
    model = poyo(sizes, periods)
    model.load_state_dict(poyo_weights(theirs, sizes["depth"]))
    spikes = {"unit": "input_unit_index", "type": "input_token_type", "mask": "input_mask", "time": "input_timestamps"}
    encoded = model.encode(
        {"spikes": {name: inputs[key] for name, key in spikes.items()}},
        latents=model.encoder.latents[inputs["latent_index"]],
        latent_coordinates=inputs["latent_timestamps"][..., None],
    )
    encoded.context["behavior"] = inputs["session_index"]
    found = model.decode(encoded, {"behavior": inputs["output_timestamps"][..., None]})["behavior"]
    torch.testing.assert_close(found, outputs["y"], atol=1e-5, rtol=1e-5)


def test_shape2vecset():
    sizes, theirs, inputs, outputs = read("shape2vecset")
    dim = sizes["dim"]
    features = FourierFeatures(3, [2.0**k for k in range(8)], projection=dim)
    model = PerceiverIO(
        {"points": ArrayInput(0, features)},
        {"occupancy": ArrayOutput(1, features)},
        latents=0,
        channels=dim,
        depth=sizes["depth"],
        heads=sizes["heads"],
        widening_factor=4,
        cross_widening_factor=4,
        decoder_widening_factor=0,
        query_residual=False,
        gelu="exact",
        gated=True,
    ).eval()
    # Ours are coordinates, sines, cosines; theirs are sines, cosines, coordinates.
    order = torch.cat([torch.arange(48, 51), torch.arange(48)])
    ours = {
        f"{part}.positions.projection.{name}": theirs[f"point_embed.mlp.{name}"]
        for part in ("inputs.points", "outputs.occupancy")
        for name in ("weight", "bias")
    }
    for part in ("inputs.points", "outputs.occupancy"):
        ours[f"{part}.positions.projection.weight"] = theirs["point_embed.mlp.weight"][:, order]
    blocks = {"encoder.cross_attentions.0": ("cross_attend_blocks.0", "cross_attend_blocks.1")}
    blocks |= {f"encoder.layers.{i}": (f"layers.{i}.0", f"layers.{i}.1") for i in range(sizes["depth"])}
    blocks |= {"decoder": ("decoder_cross_attn", "none")}
    for block, (attention, mlp) in blocks.items():
        weights = attention_weights(theirs, f"{attention}.fn")
        ours |= {f"{block}.attention.{name}": value for name, value in weights.items()}
        first = "norm_z" if "layers" in block else "norm_q"
        names = {f"{attention}.norm.": f"{first}.", f"{attention}.norm_context.": "norm_x.", f"{mlp}.norm.": "norm_h."}
        names |= {f"{mlp}.fn.net.0.": "mlp.hidden.", f"{mlp}.fn.net.2.": "mlp.output."}
        ours |= {f"{block}.{name}": value for name, value in translate(theirs, names).items()}
    ours |= {f"heads.occupancy.{name}": theirs[f"to_outputs.{name}"] for name in ("weight", "bias")}
    model.load_state_dict(ours | {"encoder.latents": torch.empty(0, dim)})

    def points(coordinates):
        return InputArray(coordinates.new_empty(*coordinates.shape[:2], 0), coordinates_BMG=coordinates)

    latents = model.inputs["points"](points(inputs["sampled"])).x_BMC
    with record_latents(model.encoder) as steps:
        encoded = model.encode({"points": points(inputs["points"])}, latents=latents)
    torch.testing.assert_close(steps[0], outputs["latents"], atol=1e-5, rtol=1e-5)  # before the processor
    found = model.decode(encoded, {"occupancy": inputs["queries"]})["occupancy"]
    torch.testing.assert_close(found, outputs["y"], atol=1e-5, rtol=1e-5)
