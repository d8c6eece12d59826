"""The resampler, and the weights of four public ones, which give the outputs of those."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

from perceivers import PerceiversError, Resampler, record_attention
from perceivers.checkpoints.load import load_model
from perceivers.model import kernels
from perceivers.resampler import MediaResampler
from tests.support.models import shaken

READERS = {
    "ip_adapter": ("from_ip_adapter", {}),
    "ip_adapter_pooled": ("from_ip_adapter", {}),
    "open_flamingo": ("from_open_flamingo", {}),
    "aurora": ("from_aurora", {}),
    "aurora_decoder": ("from_aurora", {"query_residual": False}),
}

KINDS = {
    "default": {},
    "grouped": {"kv_heads": 2, "head_channels": 6, "output_channels": 20},
    "layer norm": {"norm": "layer", "gated": False, "activation": "exact", "positions": 12, "pooled_latents": 2},
    "inputs alone": {"attend_to_latents": False, "project_inputs": False, "mlp_bias": True, "pooled_latents": 1},
    "given latents": {"latents": None, "attend_to_latents": False, "project_inputs": False, "post_norm": True,
                      "qk_norm_layers": 1, "query_residual": False},
}  # fmt: skip

MASK = torch.arange(9) < torch.tensor([[9], [4], [0]])


def make(kind="default", **arguments):
    return shaken(Resampler(12, 16, **({"latents": 5, "depth": 2, "heads": 4} | KINDS[kind] | arguments)))


def arguments_of(model, batch=3, length=9):
    """Features, a mask, and latents if the resampler has none of its own."""
    latents = torch.randn(batch, 5, 16) if model.latents_ND is None else None
    return torch.randn(batch, length, 12), MASK[:, :length], latents


def idefics2(hidden=48, latents=5, depth=2, heads=6, head_dim=10, kv_heads=2):
    sizes = {"resampler_n_latents": latents, "resampler_depth": depth, "resampler_n_heads": heads}
    sizes |= {"hidden_size": hidden, "resampler_head_dim": head_dim, "num_key_value_heads": kv_heads}
    return shaken(Idefics2PerceiverResampler(Idefics2PerceiverConfig(**sizes)))


def read_arrays(file):
    return {name: torch.from_numpy(array) for name, array in np.load(file).items()}


@pytest.fixture(params=READERS)
def reference(request, shared_fixtures):
    """A function that reads the resampler of a fixture, and the folder of the fixture."""
    folder = shared_fixtures / "others" / request.param
    if not folder.is_dir():
        pytest.skip(f"needs the reference outputs in {folder}")
    name, arguments = READERS[request.param]
    return lambda weights, **further: getattr(Resampler, name)(weights, 4, **arguments, **further), folder


@torch.no_grad()
def test_outputs_are_those_of_the_other_implementation(reference):
    read, folder = reference
    inputs, expected = (read_arrays(folder / f"{kind}.npz") for kind in ("inputs", "outputs"))
    weights = load_file(folder / "weights.safetensors")
    larger = {f"perceiver.{name}": array for name, array in weights.items()} | {"unet.weight": torch.ones(2)}
    for model in (read(folder / "weights.safetensors"), read(weights), read(larger, prefix="perceiver.")):
        found = model(inputs["x"], **({"latents": inputs["latents"]} if "latents" in inputs else {}))
        torch.testing.assert_close(found, expected["y"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_read_resampler_is_saved_and_loaded(reference, tmp_path):
    read, folder = reference
    inputs, model = read_arrays(folder / "inputs.npz"), read(folder / "weights.safetensors")
    model.save(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert type(loaded) is type(model)
    latents = {"latents": inputs["latents"]} if "latents" in inputs else {}
    torch.testing.assert_close(loaded(inputs["x"], **latents), model(inputs["x"], **latents), atol=0, rtol=0)


def test_weights_of_one_implementation_are_refused_by_the_others(reference):
    read, folder = reference
    weights = load_file(folder / "weights.safetensors")
    own = READERS[folder.name][0]
    for name in {name for name, _ in READERS.values()} - {own} | {"from_idefics2"}:
        with pytest.raises(PerceiversError, match=r"has no array|has an array"):
            getattr(Resampler, name)(weights, 4)
    for name in weights:
        pair = ("pos_emb", "frame_embs", "media_time_embs")  # without which there are resamplers of that kind
        if not name.startswith(pair):
            with pytest.raises(PerceiversError, match=r"has no array|has an array|has the shape"):
                read({other: array for other, array in weights.items() if other != name})
    with pytest.raises(PerceiversError, match="has an array 'further', which the resampler of"):
        read(weights | {"further": torch.ones(3)})


@pytest.mark.parametrize("sizes", [{}, {"heads": 4, "kv_heads": 4, "latents": 1}, {"kv_heads": 1, "depth": 1}])
@torch.no_grad()
def test_outputs_are_those_of_idefics2(sizes):
    theirs = idefics2(**sizes)
    ours = Resampler.from_idefics2(theirs.state_dict(), theirs.config.resampler_n_heads)
    x_BMC = 3 * torch.randn(3, 9, 48)
    for mask_BM, given_BM in ((torch.ones(3, 9), None), (MASK.long(), MASK)):
        torch.testing.assert_close(ours(x_BMC, given_BM), theirs(x_BMC, mask_BM), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_epsilon_of_idefics2_is_given():
    theirs = idefics2()
    for module in theirs.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.1
    ours = Resampler.from_idefics2(theirs.state_dict(), 6, norm_eps=0.1)
    x_BMC = torch.randn(2, 9, 48)
    torch.testing.assert_close(ours(x_BMC), theirs(x_BMC, torch.ones(2, 9)), atol=1e-5, rtol=0)


def assert_copied(read, weights):
    weights = {name: array.bfloat16() for name, array in weights.items()}
    before = copy.deepcopy(weights)
    model = read(weights)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for parameter in model.parameters():
        parameter.data.zero_()
    assert all((weights[name] == before[name]).all() for name in weights)


def test_weights_are_copied_in_their_precision(reference):
    read, folder = reference
    assert_copied(read, load_file(folder / "weights.safetensors"))


def test_weights_of_idefics2_are_copied_in_their_precision():
    assert_copied(lambda weights: Resampler.from_idefics2(weights, 6), idefics2().state_dict())


HIDDEN, LATENTS = "layers.1.mlp.up_proj.weight", "latents"
BAD_WEIGHTS = {
    "missing": (lambda w: w.pop("layers.1.input_context_norm.weight"), "no array 'layers.1.input_context_norm.weight'"),
    "no layers": (lambda w: [w.pop(name) for name in [*w] if "layers" in name], "no array 'layers.0.self_attn.q_proj"),
    "left over": (lambda w: w.update(bias=torch.ones(3)), "an array 'bias', which the resampler of Idefics2 does not"),
    "a layer left out": (lambda w: w.update({"layers.7.norm.weight": torch.ones(3)}), "no array 'layers.2."),
    "other shape": (lambda w: w.update({HIDDEN: torch.ones(192, 47)}), "have different shapes"),
    "other channels": (lambda w: w.update({LATENTS: torch.ones(5, 47)}), r"latents has the shape \(5, 47\)"),
    "NaN": (lambda w: w.update({LATENTS: torch.full((5, 48), torch.nan)}), "NaN or infinite"),
    "integers": (lambda w: w.update({LATENTS: torch.ones(5, 48).int()}), "numbers of type torch.int32"),
    "a scalar": (lambda w: w.update({LATENTS: torch.ones(())}), "has no array as 'latents'"),
    "a vector": (lambda w: w.update({"layers.0.self_attn.q_proj.weight": torch.ones(60)}), "the shape|does not divide"),
    "nested": (lambda w: w.update(image_proj={}), "has no array as 'image_proj'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights_are_refused(case):
    change, message = BAD_WEIGHTS[case]
    weights = dict(idefics2().state_dict())
    change(weights)
    with pytest.raises(PerceiversError, match=message):
        Resampler.from_idefics2(weights, 6)


def test_prefix_heads_and_files_are_checked(tmp_path):
    weights = idefics2().state_dict()
    larger = {f"model.{name}": array for name, array in weights.items()}
    with pytest.raises(PerceiversError, match=r"give prefix='model\.'"):
        Resampler.from_idefics2(larger, 6)
    with pytest.raises(PerceiversError, match=r"no array whose name begins with 'vision\.'"):
        Resampler.from_idefics2(larger, 6, "vision.")
    for heads in (0, 7):
        with pytest.raises(PerceiversError, match=f"heads = {heads} does not divide the 60 channels of queries"):
            Resampler.from_idefics2(weights, heads)
    with pytest.raises(PerceiversError, match=r"weights\.bin is not a \.safetensors file"):
        Resampler.from_idefics2(tmp_path / "weights.bin", 6)
    with pytest.raises(PerceiversError, match="is not a readable file"):
        Resampler.from_idefics2(tmp_path / "weights.safetensors", 6)
    (tmp_path / "weights.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(PerceiversError, match="truncated or damaged"):
        Resampler.from_idefics2(tmp_path / "weights.safetensors", 6)
    save_file(larger, tmp_path / "model.safetensors")
    assert Resampler.from_idefics2(tmp_path / "model.safetensors", 6, "model.").config["depth"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_compute_the_formula(kind):
    model = make(kind).double()
    formula = copy.deepcopy(model)
    kernels.reset(formula)
    assert all(layer.attention.kernel is not None for layer in model.layers)
    assert all(layer.attention.kernel is None for layer in formula.layers)
    x_BMC, mask_BM, latents = arguments_of(model)
    arguments = [x_BMC.double(), mask_BM, None if latents is None else latents.double()]
    found, expected = model(*arguments), formula(*arguments)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    weight = torch.randn_like(expected)
    gradients = (torch.autograd.grad((y * weight).sum(), [*m.parameters()])
                 for y, m in ((found, model), (expected, formula)))  # fmt: skip
    for gradient, of_formula in zip(*gradients, strict=True):
        assert of_formula.abs().max() > 0
        torch.testing.assert_close(gradient, of_formula, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_has_no_influence(kind):
    model = make(kind)
    x_BMC, mask_BM, latents = arguments_of(model)
    found = model(x_BMC, mask_BM, latents)
    for filling in (100.0, torch.nan):
        other_BMC = x_BMC.masked_fill(~mask_BM[..., None], filling)
        torch.testing.assert_close(model(other_BMC, mask_BM, latents), found, atol=0, rtol=0)
    alone = model(x_BMC[1:2, :4], None, None if latents is None else latents[1:2])
    torch.testing.assert_close(alone, found[1:2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(x_BMC, mask_BM.long(), latents), found, atol=0, rtol=0)
    changed = model(x_BMC + mask_BM[..., None], mask_BM, latents)
    assert (changed - found).abs().amax((1, 2))[:2].min() > 1e-3
    assert found.isfinite().all()
    assert (changed[2] == found[2]).all()  # all of its inputs are masked


def test_a_mask_that_hides_nothing_costs_nothing():
    model, seen = make(), []
    model.layers[0].register_forward_pre_hook(lambda layer, arguments: seen.append(arguments[2]))
    for length in (9, 8):
        model(torch.randn(1, 9, 12), torch.arange(9)[None] < length)
    assert seen[0] is None
    assert seen[1].sum() == 8


@torch.no_grad()
def test_without_real_inputs_latents_read_latents_or_zeros():
    mask_BM = torch.zeros(1, 9, dtype=torch.bool)
    model = make()
    with record_attention(model) as maps:
        model(torch.randn(1, 9, 12), mask_BM)
    weight_BHNM = maps["layers.0.attention"][0]
    assert weight_BHNM.shape == (1, 4, 5, 9 + 5)
    assert (weight_BHNM[..., :9] == 0).all()
    torch.testing.assert_close(weight_BHNM[..., 9:].sum(-1), torch.ones(1, 4, 5))
    alone = make("inputs alone", depth=1, pooled_latents=0)
    z_BND, layer = alone.latents_ND[None], alone.layers[0]
    expected = alone.norm(z_BND + layer.mlp(layer.norm_h(z_BND)))
    torch.testing.assert_close(alone(torch.randn(1, 9, 12), mask_BM), expected)


@torch.no_grad()
def test_order_matters_with_positions_only():
    x_BMC, order = torch.randn(2, 9, 12), torch.randperm(9)
    for model, is_same in ((make(), True), (make(positions=9), False)):
        assert torch.allclose(model(x_BMC), model(x_BMC[:, order]), atol=1e-5) is is_same


@torch.no_grad()
def test_pooled_latents_stand_before_the_others():
    model = make(pooled_latents=2, output_channels=20)
    x_BMC = torch.randn(3, 9, 12)
    assert model(x_BMC).shape == (3, 2 + 5, 20)
    projected = model.input_projection(x_BMC)
    latents = model.make_latents(projected, None, None)
    assert (latents[:, 2:] == model.latents_ND).all()
    mean = projected.sum(1) / 9
    for index in (0, 1):
        rows = slice(16 * index, 16 * index + 16)
        expected = model.pool[0](mean) @ model.pool[1].weight[rows].T + model.pool[1].bias[rows]
        torch.testing.assert_close(latents[:, index], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_media_are_resampled_one_by_one():
    model = shaken(MediaResampler(make(), media=3, frames=2))
    x_BTFMC, mask_BTFM = torch.randn(2, 3, 2, 4, 12), torch.rand(2, 3, 2, 4) < 0.5
    found = model(x_BTFMC, mask_BTFM)
    assert found.shape == (2, 3, 5, 16)
    for medium in range(3):
        x_BFMC = x_BTFMC[:, medium] + model.medium_TC[medium] + model.frame_FC[:, None]
        expected = model.resampler(x_BFMC.flatten(1, 2), mask_BTFM[:, medium].flatten(1))
        torch.testing.assert_close(found[:, medium], expected, atol=1e-5, rtol=1e-5)
    for shape, message in (
        ((1, 4, 2, 4, 12), "4 media"),
        ((1, 3, 3, 4, 12), "3 frames"),
        ((3, 2, 4, 12), "is expected"),
    ):
        with pytest.raises(PerceiversError, match=message):
            model(torch.randn(shape))


BAD_CALLS = {
    "channels": (make, (torch.randn(2, 9, 11),), r"\(2, 9, 11\) were given, but \[batch, inputs, 12 channels\]"),
    "dimensions": (make, (torch.randn(9, 12),), r"inputs of shape \(9, 12\) were given"),
    "mask": (make, (torch.randn(2, 9, 12), torch.ones(2, 8)), r"a mask of shape \(2, 8\)"),
    "scores": (make, (torch.randn(2, 9, 12), torch.full((2, 9), -10.0)), "values other than 0 and 1"),
    "a list": (make, ([[1.0] * 12],), "a list was given"),
    "own latents": (make, (torch.randn(2, 9, 12), None, torch.randn(2, 5, 16)), "the resampler has its own"),
    "no latents": (lambda: make("given latents"), (torch.randn(2, 9, 12),), "has no latents of its own"),
    "latents' channels": (
        lambda: make("given latents"), (torch.randn(2, 9, 12), None, torch.randn(2, 5, 12)),
        r"latents of shape \(2, 5, 12\) were given, but \[2, latents, 16 channels\] is expected",
    ),
    "latents' batch": (
        lambda: make("given latents"), (torch.randn(2, 9, 12), None, torch.randn(1, 5, 16)), r"\(1, 5, 16\) were given"
    ),
    "positions": (lambda: make(positions=8), (torch.randn(2, 9, 12),), "9 inputs were given, but .* built for 8"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_one_sentence(case):
    build, arguments, message = BAD_CALLS[case]
    with pytest.raises(PerceiversError, match=message):
        build()(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": 0}, "latents = 0 is not allowed: it must be at least 1"),
        ({"depth": -1}, "depth = -1 is not allowed"),
        ({"heads": 3}, "qk_channels = 16 cannot be split over heads = 3"),
        ({"heads": 4, "kv_heads": 3}, "heads = 4 cannot share kv_heads = 3"),
        ({"norm": "batch"}, "norm = 'batch' is not allowed: it must be 'rms' or 'layer'"),
        ({"activation": "relu"}, "activation = 'relu' is not allowed"),
        ({"norm_eps": 0}, "norm_eps = 0 is not allowed: it must be above 0"),
        ({"channels": 16.0}, "channels = 16.0 is not allowed: it must be of type int"),
        ({"pooled_latents": -1}, "pooled_latents = -1 is not allowed"),
        (
            {"project_inputs": False},
            "latents of channels = 16 cannot be attended to beside inputs of input_channels = 12",
        ),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, message):
    with pytest.raises(PerceiversError, match=message):
        Resampler(**({"input_channels": 12, "channels": 16} | arguments))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_bfloat16_is_near(kind):
    model = make(kind)
    x_BMC, mask_BM, latents = arguments_of(model)
    expected = model(x_BMC, mask_BM, latents)
    found = model.bfloat16()(x_BMC.bfloat16(), mask_BM, None if latents is None else latents.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 0.01 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_a_graph_break(kind):
    model = make(kind)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    arguments = arguments_of(model)
    expected = model(*arguments)
    torch.testing.assert_close(compiled(*arguments), expected, atol=1e-5, rtol=1e-5)
    expected.square().sum().backward()
    compiled(*arguments).square().sum().backward()
    for one, other in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_exports_for_any_batch_and_length(kind):
    model = make(kind)
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=12)
    has_own = model.latents_ND is not None
    shapes = ({0: batch, 1: length}, {0: batch, 1: length}, None if has_own else {0: batch})
    program = torch.export.export(model, arguments_of(model), dynamic_shapes=shapes).module()
    x_BMC, mask_BM = torch.randn(4, 12, 12), torch.arange(12) < torch.tensor([[12], [1], [0], [7]])
    latents = None if has_own else torch.randn(4, 5, 16)
    expected = model(x_BMC, mask_BM, latents)
    torch.testing.assert_close(program(x_BMC, mask_BM, latents), expected, atol=1e-5, rtol=1e-5)


class Captioner(nn.Module):
    """A user's model."""

    def __init__(self):
        super().__init__()
        self.resampler = Resampler(12, 16, latents=3, depth=1, heads=2, output_channels=8)
        self.head = nn.Linear(3 * 8, 2)

    def forward(self, x_BMC, mask_BM=None):
        return self.head(self.resampler(x_BMC, mask_BM).flatten(1))


def test_it_trains_inside_any_module():
    """Which of two directions is the one vector among noise in."""
    model, directions = Captioner(), torch.randn(2, 12)
    label_B, x_BMC = torch.arange(64) % 2, torch.randn(64, 9, 12)
    x_BMC[torch.arange(64), torch.randint(9, (64,))] = 2 * directions[label_B]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x_BMC), label_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert (model(x_BMC).argmax(1) == label_B).all()
    other = Captioner()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x_BMC), model(x_BMC), atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_saved_resampler_gives_the_same(kind, tmp_path):
    model = make(kind)
    model.save(tmp_path / "model")
    loaded, arguments = load_model(tmp_path / "model"), arguments_of(model)
    torch.testing.assert_close(loaded(*arguments), model(*arguments), atol=0, rtol=0)
