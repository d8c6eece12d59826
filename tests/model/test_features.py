"""Given latents, masks of pairs, rotary positions, real coordinates and ragged batches, alone and combined, against the
formulas of `plain`, in float64 with gradients.
"""

import copy

import pytest
import torch
from torch.testing import assert_close

from perceivers import (
    FourierFeatures,
    FourierPositions,
    InputArray,
    PerceiverIO,
    PerceiversError,
    Ragged,
    RotaryPositions,
    grid_coordinates,
)
from perceivers.adapters import ArrayInput, ArrayOutput, LabelOutput, SetOutput, TextInput, TextOutput
from perceivers.model import kernels
from tests.model.plain import plain_decode, plain_encode

LENGTHS = [5, 0, 9, 1]


def build(kernel="fast", **settings):
    """A set of points with coordinates in; each of its elements, and a field, out."""
    defaults = {"latents": 6, "channels": 16, "depth": 2, "heads": 2, "cross_heads": 1, "decoder_heads": 1}
    torch.manual_seed(3)
    model = PerceiverIO(
        {"points": ArrayInput(4)},
        {"points": SetOutput("points", 3), "field": ArrayOutput(2, FourierFeatures(2, [1, 2.5]))},
        **(defaults | settings),
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    if kernel == "formula":
        kernels.reset(model)
    return model


@pytest.fixture(params=["fast", "formula"])
def kernel(request):
    return request.param


def rotary(dimensions=2, values=("encoder", "processor")):
    return RotaryPositions([0.3, 2.0], dimensions, values)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_gradients(model, found, want):
    found, want = gradients(model, found), gradients(model, want)
    for name in found.keys() | want.keys():  # a kernel gives zeros where the formula gives none
        zeros = torch.zeros_like(model.get_parameter(name))
        assert_close(found.get(name, zeros), want.get(name, zeros), msg=lambda text, name=name: f"{name}: {text}")


def field_queries(model, coordinates):
    """The queries of the field, padded to the common channels."""
    q = model.outputs["field"].positions.encode(coordinates)
    return model.query_padding("field", q[None])[0]


def element_queries(model, x_MC):
    return model.query_padding("points", x_MC[None])[0]


def test_given_latents_take_the_place_of_learned_ones(kernel):
    model, x = build(kernel), torch.randn(2, 7, 4).double()
    z = torch.randn(2, 9, 16).double()
    encoded = model.encode({"points": x}, latents=z)
    want = torch.stack([plain_encode(model, x[b], z[b]) for b in range(2)])
    assert_close(encoded.latents, want)
    shared = model.encode({"points": x}, latents=z[0]).latents
    assert_close(shared[1], plain_encode(model, x[1], z[0]))
    same_gradients(model, encoded.latents.square().sum(), want.square().sum())


def test_a_stream_continues_with_the_latents_of_the_last_chunk(kernel):
    model, x = build(kernel), torch.randn(2, 12, 4).double()
    latents = None
    for chunk in x.split(5, 1):
        latents = model.encode({"points": chunk}, latents=latents).latents
    for example in range(2):
        z = model.encoder.latents
        for chunk in x[example].split(5):
            z = plain_encode(model, chunk, z)
        assert_close(latents[example], z)
    same = model.encode({"points": x[:, :5]}, latents=model.encoder.latents).latents
    assert_close(same, model.encode({"points": x[:, :5]}).latents)


def test_fewer_latents_are_the_first_ones(kernel):
    model, x = build(kernel), torch.randn(1, 7, 4).double()
    assert_close(
        model.encode({"points": x}, num_latents=2).latents[0], plain_encode(model, x[0], model.encoder.latents[:2])
    )
    assert model.encode({"points": x}, num_latents=6).latents.equal(model.encode({"points": x}).latents)


def test_nested_latents_are_dropped_in_training_only():
    model, x = build(nested_latents=True, latents=64), {"points": torch.randn(1, 7, 4).double()}
    counts = torch.tensor([model.encode(x).latents.shape[1] for _ in range(300)])
    assert counts.min() == 1
    assert counts.max() > 32
    octaves = [((counts >= 2**k) & (counts < 2 ** (k + 1))).float().mean() for k in range(6)]
    assert min(octaves) > 0.06, "every octave is as likely"
    assert model.eval().encode(x).latents.shape[1] == 64
    assert model.train().encode(x, num_latents=5).latents.shape[1] == 5


@pytest.mark.parametrize("cross_heads", [1, 2])
def test_masks_of_pairs(kernel, cross_heads):
    model = build(kernel, cross_heads=cross_heads, decoder_heads=cross_heads)
    x, z = torch.randn(2, 7, 4).double(), torch.randn(2, 5, 16).double()
    mask, latent_mask = torch.rand(2, 5, 7) < 0.5, torch.rand(1, 5, 5) < 0.5
    mask[0, 2], mask[1, :, 3] = False, False  # a latent that reads nothing, an input that nobody reads
    padding = torch.ones(2, 7, dtype=torch.bool)
    padding[1, 5:] = False
    data = {"points": InputArray(x, padding)}
    encoded = model.encode(data, latents=z, input_masks={"points": mask}, latent_mask=latent_mask)
    want = torch.stack([plain_encode(model, x[b], z[b], mask[b] & padding[b], latent_mask[0]) for b in range(2)])
    assert_close(encoded.latents, want)
    coordinates, read = torch.randn(2, 11, 2).double(), torch.rand(2, 11, 5) < 0.4
    read[1, 4] = False
    found = model.decode(encoded, {"field": coordinates}, masks={"field": read})["field"]
    wanted = torch.stack(
        [plain_decode(model, "field", field_queries(model, coordinates[b]), want[b], read[b]) for b in range(2)]
    )
    assert_close(found, wanted)
    chunked = model.decode(encoded, {"field": coordinates}, 1, masks={"field": read})["field"]
    assert_close(chunked, found)
    same_gradients(model, found.square().sum(), wanted.square().sum())


def test_a_mask_of_one_input_leaves_the_others():
    torch.manual_seed(0)
    model = PerceiverIO({"a": ArrayInput(3), "b": ArrayInput(4)}, {"a": SetOutput("a")}, 4, 16, 1, heads=2).double()
    a, b = torch.randn(1, 5, 3).double(), torch.randn(1, 6, 4).double()
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    hidden = model.encode({"a": a, "b": b}, input_masks={"b": mask}).latents
    assert_close(hidden, model.encode({"a": a, "b": b.roll(1, 1) + 9}, input_masks={"b": mask}).latents)
    assert not torch.allclose(hidden, model.encode({"a": a + 1, "b": b}, input_masks={"b": mask}).latents)
    some = mask.clone()
    some[0, 2] = True  # one latent reads both modalities
    z = model.encode(
        {"a": a, "b": b}, input_masks={"b": some}, latent_mask=torch.eye(4, dtype=torch.bool)[None]
    ).latents
    alone = model.encode({"a": a, "b": b}, input_masks={"b": mask}, latent_mask=torch.eye(4, dtype=torch.bool)[None])
    assert_close(z[:, [0, 1, 3]], alone.latents[:, [0, 1, 3]])
    assert not torch.allclose(z[:, 2], alone.latents[:, 2])


@pytest.mark.parametrize("values", [(), ("encoder", "processor", "decoder")])
@pytest.mark.parametrize("cross_heads", [1, 2])
def test_rotary_positions(kernel, values, cross_heads):
    sizes = {"cross_qk_channels": 20, "decoder_qk_channels": 20, "qk_channels": 24, "gated": True, "gelu": "exact"}
    model = build(kernel, rotary=rotary(2, values), cross_heads=cross_heads, decoder_heads=cross_heads, **sizes)
    x, at = torch.randn(2, 7, 4).double(), torch.randn(2, 7, 2).double()
    z_at = torch.randn(2, 6, 2).double()
    encoded = model.encode({"points": InputArray(x, coordinates_BMG=at)}, latent_coordinates=z_at)
    want = torch.stack([plain_encode(model, x[b], x_position=at[b], z_position=z_at[b]) for b in range(2)])
    assert_close(encoded.latents, want)
    queries = torch.randn(2, 5, 2).double()
    found = model.decode(encoded, {"field": queries, "points": None})
    for name, q_at in [("field", queries), ("points", at)]:
        q = [field_queries(model, queries[b]) if name == "field" else element_queries(model, x[b]) for b in range(2)]
        wanted = torch.stack([plain_decode(model, name, q[b], want[b], None, q_at[b], z_at[b]) for b in range(2)])
        assert_close(found[name], wanted)
    same_gradients(model, found["points"].square().sum(), wanted.square().sum())


def test_only_differences_of_rotary_positions_matter():
    model = build(rotary=rotary(2, ("encoder", "processor", "decoder")), cross_qk_channels=8).eval()
    x, at, z_at = torch.randn(1, 7, 4).double(), torch.randn(1, 7, 2).double(), torch.randn(6, 2).double()
    shift = torch.tensor([0.7, -31.5]).double()
    first = model.encode({"points": InputArray(x, coordinates_BMG=at)}, latent_coordinates=z_at)
    second = model.encode({"points": InputArray(x, coordinates_BMG=at + shift)}, latent_coordinates=z_at + shift)
    assert_close(first.latents, second.latents)
    assert_close(model.decode(first, {"points": None})["points"], model.decode(second, {"points": None})["points"])


def ragged_points(with_coordinates=False):
    generator = torch.Generator().manual_seed(1)
    arrays = [torch.randn(length, 4, generator=generator, dtype=torch.float64) for length in LENGTHS]
    at = [torch.randn(length, 2, generator=generator, dtype=torch.float64) for length in LENGTHS]
    points = Ragged.stack(arrays)
    data = InputArray(
        points.values[None], None, None, torch.cat(at)[None] if with_coordinates else None, points.offsets
    )
    return arrays, at, data


@pytest.mark.parametrize("cross_heads", [1, 2])
@pytest.mark.parametrize("max_memory", [None, 3000, 1])
def test_a_ragged_batch_is_one_example_at_a_time(kernel, cross_heads, max_memory):
    model = build(kernel, cross_heads=cross_heads, decoder_heads=cross_heads)
    arrays, _, data = ragged_points()
    encoded = model.encode({"points": data})
    readable = [torch.ones(6, len(x), dtype=torch.bool) for x in arrays]
    want = torch.stack([plain_encode(model, x, None, r) for x, r in zip(arrays, readable, strict=True)])
    assert_close(encoded.latents, want)
    at = Ragged.stack([torch.randn(count, 2).double() for count in (2, 3, 0, 4)])
    found = model.decode(encoded, {"points": None, "field": at}, max_memory)
    assert found["points"].offsets.tolist() == data.offsets.tolist()
    wanted = torch.cat(
        [
            plain_decode(model, "points", element_queries(model, x), z)
            for x, z in zip(arrays, want, strict=True)
            if len(x)
        ]
    )
    assert_close(found["points"].values, wanted)
    for b, (coordinates, part) in enumerate(zip(at.unbind(), found["field"].unbind(), strict=True)):
        if len(coordinates):
            assert_close(part, plain_decode(model, "field", field_queries(model, coordinates), want[b]))
    assert found["field"].unbind()[2].shape == (0, 2)
    same_gradients(model, found["points"].values.square().sum(), wanted.square().sum())


@pytest.mark.parametrize("cross_heads", [1, 2])
def test_examples_of_equal_length_are_a_batch_like_any_other(kernel, cross_heads):
    model, x = build(kernel, cross_heads=cross_heads, decoder_heads=cross_heads), torch.randn(3, 7, 4).double()
    found = model({"points": Ragged.stack(list(x))}, {"points": None})["points"]
    want = model({"points": x}, {"points": None})["points"]
    assert_close(found.values, want.flatten(0, 1))
    same_gradients(model, found.values.square().sum(), want.square().sum())


def test_ragged_rotary_and_given_latents(kernel):
    sizes = {"cross_heads": 2, "cross_qk_channels": 16, "decoder_qk_channels": 24}
    model = build(kernel, rotary=rotary(), **sizes)
    arrays, at, data = ragged_points(with_coordinates=True)
    z, z_at = torch.randn(4, 5, 16).double(), torch.randn(4, 5, 2).double()
    encoded = model.encode({"points": data}, latents=z, latent_coordinates=z_at)
    readable = [torch.ones(5, len(x), dtype=torch.bool) for x in arrays]
    want = torch.stack([plain_encode(model, arrays[b], z[b], readable[b], None, at[b], z_at[b]) for b in range(4)])
    assert_close(encoded.latents, want)
    found = model.decode(encoded, {"points": None})["points"]
    wanted = [
        plain_decode(model, "points", element_queries(model, arrays[b]), want[b], None, at[b], z_at[b])
        for b in (0, 2, 3)
    ]
    assert_close(found.values, torch.cat(wanted))
    same_gradients(model, found.values.square().sum(), torch.cat(wanted).square().sum())


def test_jagged_tensors_of_torch_are_ragged_batches():
    model = build()
    arrays, _, data = ragged_points()
    jagged = torch.nested.nested_tensor(arrays, layout=torch.jagged)
    assert model.encode({"points": jagged}).latents.equal(model.encode({"points": data}).latents)
    assert model.encode({"points": Ragged.stack(arrays)}).latents.equal(model.encode({"points": data}).latents)


def test_several_ragged_inputs_are_joined_example_by_example():
    torch.manual_seed(0)
    inputs = {"a": ArrayInput(3), "b": ArrayInput(4), "c": ArrayInput(2)}
    model = PerceiverIO(inputs, {"a": SetOutput("a")}, 4, 16, 1, heads=2).double()
    a = [torch.randn(length, 3).double() for length in (3, 1, 5)]
    b = [torch.randn(length, 4).double() for length in (2, 6, 0)]
    c = torch.randn(3, 2, 2).double()  # as long in all examples
    together = model({"a": Ragged.stack(a), "b": Ragged.stack(b), "c": c})["a"].unbind()
    for index in range(3):
        alone = model({"a": a[index][None], "b": b[index][None], "c": c[index : index + 1]})["a"][0]
        assert_close(together[index], alone)


def test_ragged_texts():
    torch.manual_seed(0)
    model = PerceiverIO({"text": TextInput(30, 12, 8)}, {"text": TextOutput("text")}, 4, 16, 1, heads=2).double()
    texts = [torch.randint(30, (length,)) for length in (3, 12, 1)]
    found = model({"text": Ragged.stack(texts)})["text"]
    for text, logits in zip(texts, found.unbind(), strict=True):
        assert_close(logits, model({"text": text[None]})["text"][0])
    encoded = model.encode({"text": Ragged.stack(texts)})
    some = model.decode(encoded, {"text": Ragged.stack([torch.tensor([2, 0]), torch.tensor([11]), torch.tensor([0])])})
    want = torch.stack([found.unbind()[0][2], found.unbind()[0][0], found.unbind()[1][11], found.unbind()[2][0]])
    assert_close(some["text"].values, want)
    padded = torch.zeros(3, 12, dtype=torch.long)
    mask = torch.arange(12) < torch.tensor([[3], [12], [1]])
    padded[mask] = torch.cat(texts)
    assert_close(model({"text": InputArray(padded, mask)})["text"][mask], found.values)
    hidden = Ragged(torch.rand(16) < 0.5, Ragged.stack(texts).offsets)
    with pytest.raises(PerceiversError, match="cannot be hidden"):
        model.encode({"text": Ragged.stack(texts)}, hidden={"text": hidden})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rotary_texts_have_their_indices_as_coordinates(dtype):
    torch.manual_seed(0)
    outputs = {"text": TextOutput("text"), "label": LabelOutput(3)}
    sizes = {"rotary": RotaryPositions([3.0, 700.0]), "cross_qk_channels": 8}
    model = PerceiverIO({"text": TextInput(30, 600, 8)}, outputs, 4, 16, 1, heads=2, **sizes).to(dtype).eval()
    z_at, text = torch.tensor([[0], [200], [400], [599]]).double(), torch.randint(30, (1, 600))
    encoded = model.encode(
        {"text": text}, latent_coordinates=z_at.to(torch.float32 if dtype == torch.bfloat16 else dtype)
    )
    found = model.decode(encoded, {"text": torch.tensor([577]), "label": None})
    array = model.inputs["text"](text)
    assert array.coordinates_BMG[0, :, 0].tolist() == list(range(600))
    if dtype == torch.float64:
        at = torch.arange(600.0, dtype=dtype)[:, None]
        z_ND = plain_encode(model, array.x_BMC[0], x_position=at, z_position=z_at.double())
        assert_close(encoded.latents[0], z_ND)
        q = model.query_padding("text", model.outputs["text"].positions(indices=torch.tensor([577]))[None])[0]
        y = plain_decode(model, "text", q, z_ND, None, at[577:578], z_at.double())
        assert_close(found["text"][0], y @ model.inputs["text"].embedding.weight.T + model.outputs["text"].bias)
        q = model.query_padding("label", model.outputs["label"].query)[0]
        origin = torch.zeros(1, 1, dtype=dtype)
        assert_close(found["label"], plain_decode(model, "label", q, z_ND, None, origin, z_at.double()))


def test_hidden_elements_of_a_ragged_batch():
    model = build(maskable=["points"])
    arrays, _, data = ragged_points()
    hidden = torch.rand(15) < 0.5
    found = model.encode({"points": data}, hidden={"points": Ragged(hidden, data.offsets)}).latents
    for index, (x, part) in enumerate(zip(arrays, hidden.split(LENGTHS), strict=True)):
        if len(x):
            assert_close(found[index : index + 1], model.encode({"points": x[None]}, {"points": part[None]}).latents)


def test_selected_elements_of_a_ragged_set():
    model = build()
    arrays, _, data = ragged_points()
    encoded = model.encode({"points": data})
    full = model.decode(encoded, {"points": None})["points"].unbind()
    some = model.decode(
        encoded, {"points": Ragged.stack([torch.tensor(i, dtype=torch.long) for i in ([4, 0], [], [8], [0])])}
    )["points"]
    assert some.offsets.tolist() == [0, 2, 2, 3, 4]
    assert_close(some.values, torch.stack([full[0][4], full[0][0], full[2][8], full[3][0]]))
    two = model.encode({"points": Ragged.stack([arrays[0], arrays[2]])})
    found = model.decode(two, {"points": torch.tensor([[1, 3], [8, 0]])})["points"]
    assert_close(found, torch.stack([full[0][[1, 3]], full[2][[8, 0]]]))
    with pytest.raises(PerceiversError, match="beyond the last element of some example"):
        model.decode(two, {"points": torch.tensor([5])})


@pytest.mark.parametrize("max_memory", [None, 4000])
def test_real_coordinates_on_and_between_the_elements_of_a_grid(max_memory):
    positions = FourierPositions((4, 5), 3)
    model = PerceiverIO({"x": ArrayInput(3)}, {"field": ArrayOutput(2, positions)}, 4, 16, 1, heads=2).double()
    encoded = model.encode({"x": torch.randn(2, 6, 3).double()})
    full = model.decode(encoded)["field"].flatten(1, 2)
    grid = grid_coordinates((4, 5)).double()
    at_grid = model.decode(encoded, {"field": grid}, max_memory)["field"]
    assert_close(at_grid, full, atol=1e-5, rtol=1e-5)  # positions of a grid are computed in float32
    between = torch.rand(2, 9, 2).double() * 2 - 1
    found = model.decode(encoded, {"field": between}, max_memory)["field"]
    for b in range(2):
        assert_close(found[b], plain_decode(model, "field", positions.encode(between[b]), encoded.latents[b]))
    fine = model.decode(encoded, {"field": grid_coordinates((7, 9)).double()}, max_memory)["field"]
    assert_close(fine.unflatten(1, (7, 9))[:, ::2, ::2].flatten(1, 2)[:, [0, 4]], full[:, [0, 4]], atol=1e-5, rtol=1e-5)


def test_inputs_at_real_coordinates():
    positions = FourierPositions((4, 5), 3)
    adapter = ArrayInput(3, positions)
    x = torch.randn(2, 4, 5, 3)
    on_grid = adapter(x).x_BMC
    scattered = adapter(InputArray(x.flatten(1, 2), coordinates_BMG=grid_coordinates((4, 5)).expand(2, -1, -1)))
    assert_close(scattered.x_BMC, on_grid, atol=1e-5, rtol=1e-5)
    assert scattered.coordinates_BMG.shape == (2, 20, 2)


def test_fourier_features_are_sines_and_cosines():
    features = FourierFeatures(2, [1, 3.5]).encode(torch.tensor([[0.25, -8.0]]))
    want = [0.25, -8, 0.5**0.5, torch.tensor(3.5 * torch.pi / 4).sin(), 0, 0, 0.5**0.5]
    assert_close(features[0, :7], torch.tensor([float(w) for w in want]), atol=2e-5, rtol=0)
    assert FourierFeatures(2, [1, 3.5], projection=5).encode(torch.zeros(3, 2)).shape == (3, 5)


def test_everything_at_once_in_half_precision_compiled_and_exported():
    model = build(rotary=rotary(2, ("encoder",)), latents=0, cross_qk_channels=8).float().eval()
    _, _, data = ragged_points(with_coordinates=True)
    data = InputArray(data.x_BMC.float(), None, None, data.coordinates_BMG.float(), data.offsets)
    z, z_at = torch.randn(4, 5, 16), torch.randn(4, 5, 2)
    at = Ragged.stack([torch.randn(count, 2) for count in (2, 3, 1, 4)])

    def run(model, data, z, z_at, at):
        encoded = model.encode({"points": data}, latents=z, latent_coordinates=z_at)
        found = model.decode(encoded, {"points": None, "field": at})
        return found["points"].values, found["field"].values

    want = run(model, data, z, z_at, at)
    compiled = torch.compile(run, fullgraph=True, backend="eager")(model, data, z, z_at, at)
    half = run(copy.deepcopy(model).bfloat16(), data, z, z_at, at)
    for index in range(2):
        assert_close(compiled[index], want[index])
        assert half[index].dtype == torch.bfloat16
        assert_close(half[index].float(), want[index], atol=0.1, rtol=0.1)


class WithMasks(torch.nn.Module):
    """What is exported: a stream's step with masks of pairs and real coordinates."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, latents, mask, coordinates):
        encoded = self.model.encode({"points": x}, latents=latents, input_masks={"points": mask})
        return encoded.latents, self.model.decode(encoded, {"field": coordinates})["field"]


def test_masks_and_coordinates_are_exported():
    model = WithMasks(build().float().eval())
    arguments = torch.randn(2, 7, 4), torch.randn(2, 6, 16), torch.rand(2, 6, 7) < 0.5, torch.randn(2, 5, 2)
    program = torch.export.export(model, arguments)
    for found, want in zip(program.module()(*arguments), model(*arguments), strict=True):
        assert_close(found, want)
