"""The formulas of the architecture, and of rotary positions, written again for one example at a time.

Shape suffixes: O queries, M inputs, N latents, H heads, K channels of a head
"""

import math

import torch
from torch import nn


def plain_rotate(x_MHK, position_MG, rotary, sign=1):
    """Rotates pairs of channels as complex numbers: each dimension turns its own share of the channels."""
    if position_MG is None:
        return x_MHK
    channels = list(x_MHK.unbind(-1))
    for dimension in range(rotary.dimensions):
        for index, period in enumerate(rotary.periods):
            angle_M = sign * 2 * math.pi * position_MG[:, dimension] / period
            first = 2 * (dimension * len(rotary.periods) + index)
            turned = torch.complex(channels[first], channels[first + 1]) * torch.exp(1j * angle_M)[:, None]
            channels[first], channels[first + 1] = turned.real, turned.imag
    return torch.stack(channels, -1)


def plain_attention(layer, q_OC, x_MC, readable_OM=None, q_position=None, x_position=None, rotary=None):
    def heads(x_MC):
        return x_MC.unflatten(-1, (layer.heads, -1))

    q_OHK = plain_rotate(heads(nn.functional.linear(q_OC, layer.query.weight, layer.query.bias)), q_position, rotary)
    k_MHK = plain_rotate(heads(nn.functional.linear(x_MC, layer.key.weight, layer.key.bias)), x_position, rotary)
    v_MHV = heads(nn.functional.linear(x_MC, layer.value.weight, layer.value.bias))
    if layer.rotate_values:
        v_MHV = plain_rotate(v_MHV, x_position, rotary)
    rows = []
    for index, q_HK in enumerate(q_OHK):
        real = torch.ones(len(x_MC), dtype=torch.bool) if readable_OM is None else readable_OM[index]
        if not real.any():
            rows.append(v_MHV.new_zeros(v_MHV.shape[1:]))
            continue
        score_MH = (k_MHK[real] * q_HK).sum(-1) / math.sqrt(q_HK.shape[-1])
        rows.append((score_MH.softmax(0)[..., None] * v_MHV[real]).sum(0))
    r_OHV = torch.stack(rows)
    if layer.rotate_values:
        r_OHV = plain_rotate(r_OHV, q_position, rotary, -1)
    return nn.functional.linear(r_OHV.flatten(1), layer.output.weight, layer.output.bias)


def plain_mlp(mlp, x_MC):
    hidden = nn.functional.linear(x_MC, mlp.hidden.weight, mlp.hidden.bias)
    approximate = "none" if mlp.activation == "exact" else "tanh"
    if mlp.gated:
        hidden, gate = hidden.chunk(2, -1)
        hidden = hidden * nn.functional.gelu(gate, approximate=approximate)
    else:
        hidden = nn.functional.gelu(hidden, approximate=approximate)
    return nn.functional.linear(hidden, mlp.output.weight, mlp.output.bias)


def plain_cross(block, q_OC, x_MC, *arguments):
    h = plain_attention(block.attention, block.norm_q(q_OC), block.norm_x(x_MC), *arguments)
    h = h + q_OC if block.query_residual else h
    return h + plain_mlp(block.mlp, block.norm_h(h)) if hasattr(block, "mlp") else h


def plain_self(block, z_ND, readable_NN=None, position=None, rotary=None):
    n_ND = block.norm_z(z_ND)
    h = z_ND + plain_attention(block.attention, n_ND, n_ND, readable_NN, position, position, rotary)
    return h + plain_mlp(block.mlp, block.norm_h(h))


def plain_encode(model, x_MC, z_ND=None, readable_NM=None, readable_NN=None, x_position=None, z_position=None):
    """Encodes one example; [M, C] -> [N, D]."""
    encoder, rotary = model.encoder, model.rotary
    z_ND = encoder.latents if z_ND is None else z_ND
    for block in range(encoder.num_blocks):
        if block < encoder.num_cross_attends:
            cross = encoder.cross_attentions[block % len(encoder.cross_attentions)]
            z_ND = plain_cross(cross, z_ND, x_MC, readable_NM, z_position, x_position, rotary)
        for layer in encoder.layers:
            z_ND = plain_self(layer, z_ND, readable_NN, z_position, rotary)
    return z_ND


def plain_decode(model, name, q_OC, z_ND, readable_ON=None, q_position=None, z_position=None):
    """Decodes one example; [O, Q], [N, D] -> [O, E]."""
    y_OE = plain_cross(model.decoder, q_OC, z_ND, readable_ON, q_position, z_position, model.rotary)
    return model.output_layer(name)(model.projection(y_OE))
