import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import perceivers
from perceivers import FourierPositions, InputArray, LearnedPositions, PerceiverIO, PerceiversError
from perceivers.adapters import ArrayInput, ArrayOutput, LabelInput, LabelOutput
from perceivers.model.kernels import folding
from perceivers.model.linear import Linear


def two_modalities(**settings):
    """Sound on a line and a set of points in; a picture, a line and a label out."""
    defaults = {"latents": 6, "channels": 16, "depth": 2, "heads": 2}
    return PerceiverIO(
        inputs={"sound": ArrayInput(3, FourierPositions((12,), 4)), "points": ArrayInput(5)},
        outputs={
            "picture": ArrayOutput(3, FourierPositions((4, 5), 3)),
            "line": ArrayOutput(2, LearnedPositions((7,), 9)),
            "label": LabelOutput(10, query_channels=8),
        },
        **(defaults | settings),
    )


@pytest.fixture
def data():
    return {"sound": torch.randn(2, 12, 3), "points": torch.randn(2, 9, 5)}


def test_shapes_of_several_inputs_and_outputs(data):
    out = two_modalities()(data)
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "picture": (2, 4, 5, 3),
        "line": (2, 7, 2),
        "label": (2, 10),
    }


def test_the_model_is_the_papers_formula(data):
    model = two_modalities(num_blocks=2, output_channels=11, query_residual=False).double()
    sound = torch.cat([data["sound"], model.inputs["sound"].positions().expand(2, -1, -1)], -1).double()
    points = data["points"].double()
    common = 12 + 4  # the widest modality has 3 + 9 channels
    assert model.input_padding.channels == common
    padding = model.input_padding.vectors
    x = torch.cat(
        [
            torch.cat([sound, padding["sound"].expand(2, 12, -1)], -1),
            torch.cat([points, padding["points"].expand(2, 9, -1)], -1),
        ],
        1,
    )
    z = model.encoder.cross_attentions[0](model.encoder.latents.expand(2, -1, -1), x)
    for layer in [*model.encoder.layers] * 2:
        z = layer(z)
    encoded = model.encode({name: value.double() for name, value in data.items()})
    torch.testing.assert_close(encoded.latents, z)
    query = torch.cat([model.outputs["label"].query, model.query_padding.vectors["label"].expand(1, 1, -1)], -1)
    y = model.heads["label"](model.projection(model.decoder(query.expand(2, -1, -1), z)))[:, 0]
    torch.testing.assert_close(model.decode(encoded, {"label": None})["label"], y)


MODEL = two_modalities().double().eval()
ENCODED = MODEL.encode({"sound": torch.randn(2, 12, 3), "points": torch.randn(2, 9, 5)})
FULL = MODEL.decode(ENCODED, max_memory=None)


@settings(deadline=None, max_examples=30)
@given(st.sets(st.sampled_from(["picture", "line", "label"]), min_size=1), st.sampled_from([None, 1, 4000, 30000]))
def test_any_outputs_and_chunk_size_equal_the_full_decode(names, max_memory):
    some = MODEL.decode(ENCODED, dict.fromkeys(names), max_memory)
    assert some.keys() == names
    for name in names:
        torch.testing.assert_close(some[name], FULL[name])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**30), st.integers(1, 9), st.sampled_from([None, 1, 4000, 30000]))
def test_any_points_equal_those_of_the_full_decode(seed, count, max_memory):
    points = torch.randint(20, (2, count), generator=torch.Generator().manual_seed(seed))
    flat = FULL["picture"].flatten(1, 2)
    own = MODEL.decode(ENCODED, {"picture": points}, max_memory)["picture"]
    torch.testing.assert_close(own, torch.stack([flat[b, points[b]] for b in range(2)]))
    shared = MODEL.decode(ENCODED, {"picture": points[0]}, max_memory)["picture"]
    torch.testing.assert_close(shared, flat[:, points[0]])


def test_decoding_never_encodes_again_and_keeps_its_memory_bound(data):
    model = two_modalities().eval()
    encoded = model.encode(data)
    model.encoder.register_forward_pre_hook(lambda *_: pytest.fail("encoded again"))
    seen = []
    model.decoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[1]))
    model.decode(encoded, {"picture": None}, max_memory=7 * model.peak_bytes_per_query(encoded.latents))
    assert seen == [7, 7, 6]


def test_memory_of_a_query_is_what_decoding_takes():
    model = PerceiverIO({"a": ArrayInput(4)}, {"b": ArrayOutput(2, FourierPositions((4096,), 32))}, 64, 32, 1, heads=1)
    encoded = model.eval().encode({"a": torch.randn(2, 8, 4)})
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        model.decode(encoded, max_memory=None)
    held = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    bound = 4096 * model.peak_bytes_per_query(encoded.latents)
    assert bound / 4 < peak < bound * 1.1


def test_order_of_elements_does_not_matter(data):
    model = two_modalities().double()
    shuffled = data["points"][:, torch.randperm(9)]
    a, b = model(data), model(data | {"points": shuffled})
    for name in a:
        torch.testing.assert_close(a[name], b[name])
    x_BMC = model.inputs["sound"](data["sound"].double()).x_BMC  # elements that carry their positions
    x_BMC = model.input_padding("sound", x_BMC)
    order = torch.randperm(12)
    torch.testing.assert_close(model.encoder(x_BMC[:, order]), model.encoder(x_BMC))
    assert not torch.allclose(model(data | {"sound": data["sound"][:, order]})["label"], a["label"])


def test_masked_elements_change_nothing(data):
    model = two_modalities().double()
    junk = torch.cat([data["points"], torch.full((2, 3, 5), 99.0)], 1)
    mask = torch.arange(12).expand(2, -1) < 9
    a, b = model(data), model(data | {"points": InputArray(junk, mask)})
    for name in a:
        torch.testing.assert_close(a[name], b[name])


def test_fourier_positions_take_other_sizes(data):
    model = two_modalities()
    assert model(data | {"sound": torch.randn(2, 31, 3)})["label"].shape == (2, 10)


def test_blocks_share_weights(data):
    one, three = two_modalities(), two_modalities(num_blocks=3)
    assert sum(p.numel() for p in one.parameters()) == sum(p.numel() for p in three.parameters())
    three.load_state_dict(one.state_dict())
    z = one.encode(data).latents
    for layer in [*one.encoder.layers] * 2:
        z = layer(z)
    torch.testing.assert_close(three.encode(data).latents, z)
    deep = two_modalities(depth=6)
    assert len(deep.encoder.layers) == 3 * len(three.encoder.layers)


def test_repeated_cross_attention_of_the_first_perceiver(data):
    shared = two_modalities(num_blocks=3, num_cross_attends=2)
    apart = two_modalities(num_blocks=3, num_cross_attends=2, share_cross_attention=False)
    assert (len(shared.encoder.cross_attentions), len(apart.encoder.cross_attentions)) == (1, 2)
    seen = []
    for cross_attention in apart.encoder.cross_attentions:
        cross_attention.register_forward_pre_hook(lambda module, _: seen.append(module))
    apart.encode(data)
    assert seen == list(apart.encoder.cross_attentions)
    state = apart.state_dict()
    for name in list(state):
        if "cross_attentions.0" in name:
            state[name.replace("cross_attentions.0", "cross_attentions.1")] = state[name]
    apart.load_state_dict(state)
    shared.load_state_dict({name: value for name, value in state.items() if "cross_attentions.1" not in name})
    torch.testing.assert_close(apart.encode(data).latents, shared.encode(data).latents)
    assert not torch.allclose(apart.encode(data).latents, two_modalities(num_blocks=3).encode(data).latents)


def test_average_decoder_of_the_first_perceiver(data):
    model = PerceiverIO(
        {"points": ArrayInput(5)}, {"label": LabelOutput(10, query_channels=None)}, latents=6, channels=16, depth=1
    )
    assert not hasattr(model, "decoder")
    encoded = model.encode({"points": data["points"]})
    want = encoded.latents.mean(1) @ model.heads["label"].weight.T + model.heads["label"].bias
    torch.testing.assert_close(model.decode(encoded)["label"], want)


def test_label_input_is_one_hot():
    array = LabelInput(4)(torch.tensor([2, 0]))
    assert array.x_BMC.tolist() == [[[0, 0, 1, 0]], [[1, 0, 0, 0]]]


def test_checkpointing_gives_the_same_gradients_in_less_memory(data):
    plain, checkpointed = two_modalities(depth=4), two_modalities(depth=4, checkpointing=True)
    checkpointed.load_state_dict(plain.state_dict())
    saved = {}
    for name, model in (("plain", plain), ("checkpointed", checkpointed)):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            loss = model(data)["picture"].square().sum()
        loss.backward()
        saved[name] = sum(sizes)
    assert saved["checkpointed"] < 0.6 * saved["plain"]
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


def test_compiles_without_a_graph_break(data):
    model = two_modalities(depth=1, checkpointing=True).double()  # in float32 processors differ by rounding
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    data = {name: array.double() for name, array in data.items()}
    data = data | {"points": InputArray(data["points"], torch.rand(2, 9) < 0.7)}
    outputs = {"picture": torch.tensor([3, 7]), "label": None}
    for run in (model, compiled):
        sum(value.square().sum() for value in run(data, outputs).values()).backward()
    for (name, a), b in zip(model.named_parameters(), compiled.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=1e-7, rtol=1e-6, msg=name)


def test_exports_for_any_batch_and_length(data):
    model = two_modalities(depth=1).eval()
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=512)
    shapes = {"sound": {0: batch}, "points": {0: batch, 1: length}}
    program = torch.export.export(model, (data, None, None), dynamic_shapes=(shapes, None, None))
    other = {"sound": torch.randn(5, 12, 3), "points": torch.randn(5, 31, 5)}
    for name, value in program.module()(other, None, None).items():
        torch.testing.assert_close(value, model(other)[name])


def test_runs_in_bfloat16_and_under_autocast(data):
    model = two_modalities().eval()
    want = model(data)["picture"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(data)["picture"]
    low = model.bfloat16()({name: value.bfloat16() for name, value in data.items()})["picture"]
    assert low.dtype == torch.bfloat16
    for got in (mixed, low):
        assert (got.float() - want).norm() < 0.03 * want.norm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 18, "heads": 4}, "channels = 18 cannot be split over heads = 4"),
        ({"latents": -1}, "latents = -1 is not allowed: it must be at least 1"),
        ({"num_cross_attends": 2}, "num_cross_attends = 2 is not allowed: it must be from 1 to 1"),
        ({"gelu": "erf"}, "gelu = 'erf' is not allowed"),
    ],
)
def test_sizes_that_cannot_be_are_refused(settings, message):
    with pytest.raises(PerceiversError, match=message):
        two_modalities(**settings)


@pytest.mark.parametrize("name", ["values", "type", "keys", "train", "a.b", "", "forward", "training"])
def test_inputs_and_outputs_may_have_any_name(name, tmp_path):
    def build(name):
        torch.manual_seed(0)
        inputs, outputs = {name: ArrayInput(2), "x": ArrayInput(3)}, {name: LabelOutput(2, 8), "y": LabelOutput(3, 8)}
        return PerceiverIO(inputs, outputs, latents=3, channels=8, depth=1, heads=2, maskable=[name])

    model, same = build(name), build("plain")
    data = {"x": torch.randn(2, 4, 3)}
    value, hidden = torch.randn(2, 5, 2), torch.arange(5) < 2
    got, want = (m(data | {n: value}, hidden={n: hidden[None]}) for m, n in ((model, name), (same, "plain")))
    assert list(got) == [name, "y"]
    assert torch.equal(got[name], want["plain"])
    assert [name for name, _ in model.inputs.items()] == [name, "x"]
    model.save(tmp_path)
    loaded = perceivers.load(tmp_path)
    torch.testing.assert_close(loaded(data | {name: value})[name], model.eval()(data | {name: value})[name])
    assert set(model.state_dict()) - set(same.state_dict()) == {
        key.replace("plain", f"{name.replace('.', '_')}_") for key in same.state_dict() if "plain" in key
    }


def test_names_that_become_the_same_are_refused():
    with pytest.raises(PerceiversError, match=r"names are too similar: values, values_\. Choose others"):
        PerceiverIO({"values": ArrayInput(2), "values_": ArrayInput(2)}, {"y": LabelOutput(2)}, 1, 8, 1)


def test_a_hook_of_the_identity_after_the_decoder_is_called(data):
    model, shapes = two_modalities(), []
    model.projection.register_forward_hook(lambda _layer, _inputs, output: shapes.append(output.shape[-1]))
    model(data)
    assert shapes == [model.query_padding.channels] * len(model.outputs)


def test_no_indices_give_no_elements(data):
    model = two_modalities().bfloat16()  # in chunks, not by the fused kernel
    assert model({k: v.bfloat16() for k, v in data.items()}, {"picture": torch.tensor([], dtype=torch.long)})[
        "picture"
    ].shape[:2] == (2, 0)


def test_an_adapter_that_returns_a_tensor_is_refused(data):
    class Bare(ArrayInput):
        def forward(self, data):
            return super().forward(data).x_BMC

    model = PerceiverIO({"points": Bare(5)}, {"y": LabelOutput(2)}, latents=2, channels=8, depth=1, heads=1)
    with pytest.raises(PerceiversError, match="the adapter of input 'points' must return an InputArray"):
        model({"points": data["points"]})


def test_what_is_encoded_keeps_only_what_outputs_need(data):
    model = two_modalities()
    encoded = model.encode(data)
    assert encoded.context == dict.fromkeys(model.outputs)
    assert encoded.latents.shape == (2, 6, 16)


@pytest.mark.parametrize("attention", [False, True])
def test_intermediate_values(data, attention):
    model = two_modalities(num_blocks=2, num_cross_attends=2).eval()
    predictions, intermediates = model.forward_intermediates(data, attention=attention)
    want = model(data)
    for name, prediction in predictions.items():
        torch.testing.assert_close(prediction, want[name])
    depth = len(model.encoder.layers)
    assert len(intermediates.latents) == 2 * (1 + depth)
    torch.testing.assert_close(intermediates.latents[-1], model.encode(data).latents)
    first = model.encoder.cross_attentions[0]
    z = model.encoder.layers[0](intermediates.latents[0])
    torch.testing.assert_close(intermediates.latents[1], z)
    if not attention:
        assert intermediates.attention == {}
        return
    maps = intermediates.attention["encoder.cross_attentions.0.attention"]
    assert len(maps) == 2
    assert maps[0].shape[:3] == (2, first.attention.heads, 6)
    torch.testing.assert_close(maps[0].sum(-1), torch.ones_like(maps[0].sum(-1)))
    assert "decoder.attention" in intermediates.attention


def test_wrong_inputs_are_refused(data):
    model = two_modalities()
    with pytest.raises(PerceiversError, match="indices of output 'picture' go from 3 to 20, but must be from 0 to 19"):
        model(data, {"picture": torch.tensor([3, 20])})
    with pytest.raises(
        PerceiversError,
        match=r"mask of shape \(2, 1\) was given for an array of shape \(2, 9, 5\): its shape must be \(2, 9\)",
    ):
        model(data | {"points": InputArray(data["points"], torch.ones(2, 1, dtype=torch.bool))})
    with pytest.raises(PerceiversError, match="no input 'sounds': did you mean 'sound'"):
        model({"sounds": data["sound"]})
    with pytest.raises(PerceiversError, match="input 'points' is missing"):
        model({"sound": data["sound"]})
    with pytest.raises(PerceiversError, match="no output 'labels': did you mean 'label'"):
        model(data, {"labels": None})
    with pytest.raises(PerceiversError, match=r"shape \(2, 12, 4\) was given, but .* 3 channels"):
        model(data | {"sound": torch.randn(2, 12, 4)})
    with pytest.raises(PerceiversError, match=r"shape \(12, 3\)"):
        model(data | {"sound": torch.randn(12, 3)})
    with pytest.raises(PerceiversError, match="at least one input"):
        PerceiverIO({}, {}, latents=1, channels=8, depth=1)


def test_gradients_reach_every_parameter(data):
    model = two_modalities()
    sum(value.square().sum() for value in model(data).values()).backward()
    missing = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or math.isnan(parameter.grad.sum())
    ]
    assert missing == []
    assert isinstance(model.projection, nn.Identity)


def random_weights(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


@pytest.mark.parametrize("name", ["sound", "points"])
def test_what_a_masked_element_was_does_not_matter(data, name):
    model = random_weights(two_modalities(maskable=["sound", "points"]))
    elements = data[name].shape[1]
    masked = torch.rand(2, elements) < 0.5
    masked[:, 0], masked[:, 1] = True, False
    other = data | {name: torch.where(masked[..., None], 99.0, data[name])}
    seen = data | {name: torch.where(masked[..., None], data[name], 99.0)}
    latents = model.encode(data, {name: masked}).latents
    assert torch.equal(model.encode(other, {name: masked}).latents, latents)
    assert not torch.allclose(model.encode(data).latents, latents)
    assert not torch.allclose(model.encode(seen, {name: masked}).latents, latents)


def test_a_masked_element_is_the_mask_vector_of_its_modality(data):
    model = random_weights(two_modalities(maskable=["points"]))
    masked = torch.tensor([[True] + [False] * 8, [False] * 8 + [True]])
    arrays = {name: model.input_padding(name, adapter(data[name]).x_BMC) for name, adapter in model.inputs.items()}
    points = arrays["points"].clone()
    points[0, 0] = points[1, 8] = model.input_padding.masks["points"]
    want = model.encoder(torch.cat([arrays["sound"], points], 1).double())
    torch.testing.assert_close(model.encode(data, {"points": masked}).latents, want)


def test_masking_all_of_an_input_forgets_it_and_a_mask_may_expand(data):
    model = random_weights(two_modalities(maskable=["points"]))
    everything = torch.ones(2, 9, dtype=torch.bool)
    latents = model.encode(data, {"points": everything}).latents
    other = data | {"points": torch.randn(2, 9, 5)}
    assert torch.equal(model.encode(other, {"points": everything}).latents, latents)
    for shape in ((2, 1), (1, 9), (1, 1)):
        expanded = model.encode(other, {"points": torch.ones(shape, dtype=torch.bool)}).latents
        assert torch.equal(expanded, latents)
    one = model.encode(data, {"points": torch.tensor([[True], [False]])}).latents
    torch.testing.assert_close(one[0], latents[0])
    torch.testing.assert_close(one[1], model.encode(data).latents[1])


def test_masking_nothing_changes_nothing(data):
    model = random_weights(two_modalities(maskable=["points"]))
    nothing = torch.zeros(2, 9, dtype=torch.bool)
    assert torch.equal(model.encode(data, {"points": nothing}).latents, model.encode(data).latents)


def test_inputs_that_cannot_be_masked_are_refused(data):
    model, masked = two_modalities(maskable=["points"]), torch.ones(2, 1, dtype=torch.bool)
    with pytest.raises(
        PerceiversError, match=r"'sound' cannot be hidden: build the model with it in maskable \(points\)"
    ):
        model.encode(data, {"sound": masked})
    with pytest.raises(PerceiversError, match=r"'points' cannot be hidden: .* maskable \(none\)"):
        two_modalities().encode(data, {"points": masked})
    with pytest.raises(PerceiversError, match="no input 'point': did you mean 'points'"):
        two_modalities(maskable=["point"])


def test_a_masked_query_reads_nothing_from_the_latents(data):
    class Some(ArrayOutput):
        def query_mask(self, encoded, indices=None):
            real = torch.tensor([[True, False, True, True], [False, True, True, False]])
            return real if indices is None else real.gather(1, indices.expand(2, -1))

    inputs, outputs = {"points": ArrayInput(5)}, {"some": Some(3, FourierPositions((4,), 2))}
    model = random_weights(PerceiverIO(inputs, outputs, 6, 16, 1, heads=2, query_residual=False))
    encoded = model.encode({"points": data["points"]})
    read = []
    model.decoder.attention.register_forward_hook(lambda attention, arguments, result: read.append(result))
    full = model.decode(encoded)["some"]
    attention, q_OQ = model.decoder.attention, model.outputs["some"].positions().double()
    q_BOQ, latents = model.decoder.norm_q(q_OQ).expand(2, -1, -1), model.decoder.norm_x(encoded.latents)
    real = model.outputs["some"].query_mask(encoded)
    unmasked = attention(q_BOQ, latents)
    torch.testing.assert_close(read[0], torch.where(real[..., None], unmasked, attention.output.bias))
    assert not torch.allclose(unmasked, attention.output.bias.expand_as(unmasked))
    for points in (torch.tensor([1, 3, 0]), torch.tensor([[1, 2], [0, 3]])):
        want = full.take_along_dim(points.expand(2, -1)[..., None], 1)
        torch.testing.assert_close(model.decode(encoded, {"some": points})["some"], want)
        torch.testing.assert_close(model.decode(encoded, {"some": points}, max_memory=1)["some"], want)


def test_keys_and_values_of_the_decoder_are_made_once_for_all_outputs_and_chunks(data):
    model = two_modalities().eval()
    encoded = model.encode(data)
    calls = []
    model.decoder.norm_x.register_forward_hook(lambda *_: calls.append(1))
    model.decode(encoded, max_memory=5 * model.peak_bytes_per_query(encoded.latents))
    assert len(calls) == 1


@pytest.mark.parametrize("queries", ["one head", "heads"])
def test_a_loss_of_all_outputs_keeps_its_memory_bound_and_has_the_same_gradients(queries, data):
    heads = {"decoder_heads": 3, "decoder_qk_channels": 12} if queries == "heads" else {}
    model = two_modalities(query_residual=False, **heads).double()
    data = {name: value.double() for name, value in data.items()}

    def gradients(max_memory):
        encoded = model.encode(data)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda array: kept.append(array.numel()) or array, lambda a: a):
            picture = model.decode(encoded, {"picture": None}, max_memory)["picture"]
        model.zero_grad()
        picture.square().sum().backward()
        return sum(kept), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    (all_kept, expected), (kept, got) = (
        gradients(None),
        gradients(4 * model.peak_bytes_per_query(torch.empty(2, 6, 16))),
    )
    torch.testing.assert_close(got, expected)
    assert kept < all_kept / 4


def test_a_mask_that_hides_nothing_is_dropped(data):
    model = two_modalities()
    hidden = []
    model.encoder.register_forward_pre_hook(lambda _, arguments: hidden.append(arguments[1]))
    everything = torch.ones(2, 9, dtype=torch.bool)
    with_mask = model(data | {"points": InputArray(data["points"], everything)})
    torch.testing.assert_close(with_mask, model(data))
    assert hidden == [None, None]


@pytest.mark.parametrize(("least", "projected"), [(0, 12), (folding.MIN_SKIPPED_PRODUCTS, 16)])
def test_only_small_layers_compute_padding(monkeypatch, least, projected):
    """Texts of 3 and 8 tokens: but for one token that stands for the padding, only what is real passes other layers."""
    from perceivers.text.model import LanguageConfig

    monkeypatch.setattr(folding, "MIN_SKIPPED_PRODUCTS", least)
    sizes = {"latents": 4, "channels": 16, "depth": 1, "embedding_channels": 12, "length": 8}
    heads = {"heads": 2, "cross_heads": 2, "decoder_heads": 2, "qk_channels": 8, "v_channels": 16}
    model = LanguageConfig(**sizes, **heads, decoder_qk_channels=8, decoder_v_channels=12).build()
    tokens, real = torch.randint(6, 262, (2, 8)), torch.arange(8) < torch.tensor([[3], [8]])
    attention, decoder = model.encoder.cross_attentions[0].attention, model.decoder
    layers = {"key": attention.key, "value": attention.value}
    layers |= {"query": decoder.attention.query, "mlp": decoder.mlp.hidden}
    names, rows, forward = {layer: name for name, layer in layers.items()}, {}, Linear.forward

    def count(layer, x):  # in the class, since a layer with a hook gets its padding, too
        rows.setdefault(names.get(layer), []).append(x.flatten(0, -2).shape[0])
        return forward(layer, x)

    monkeypatch.setattr(Linear, "forward", count)
    logits = model({"text": InputArray(tokens, real)})["text"]
    expected = dict.fromkeys(["key", "value", "query"], projected) | {"mlp": 12}
    assert {name: sum(rows[name]) for name in layers} == expected
    alone = model({"text": tokens[:1, :3]})["text"]
    torch.testing.assert_close(logits[:1, :3], alone)
    logits[real].sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_skipping_padding_changes_neither_real_elements_nor_gradients():
    layer = Linear(900, 900)
    x, real = torch.randn(2, 6, 900), torch.arange(6) < torch.tensor([[1], [2]])
    assert folding.is_worth_skipping(layer, real)
    weights, results = torch.randn(2, 6, 900) * real[..., None], []
    for function in (layer, lambda y: folding.skip_padding(layer, y, real)):
        y = x.clone().requires_grad_()
        output = function(y)
        grads = torch.autograd.grad((output * weights).sum(), [y, layer.weight, layer.bias])
        results.append((output[real], *grads))
    torch.testing.assert_close(results[1], results[0])
    skipped = folding.skip_padding(layer, x, real)
    torch.testing.assert_close(skipped[0, 5], layer(x[0, 1]))  # the first element of padding stands for all
