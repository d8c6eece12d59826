import copy
import math

import pytest
import torch

import perceivers
from perceivers import PerceiversError
from perceivers.checkpoints.load import load_model, pretrained_config
from perceivers.model import kernels
from perceivers.model.attention import SelfAttention
from perceivers.model.config import to_config
from perceivers.model.costs import count_flops, count_parameters
from perceivers.model.transfer import transfer_weights
from perceivers.text.perceiver_ar import PerceiverAR, PerceiverARConfig, causal_mask, load_causal_model
from tests.support.causal import SIZES, causal, random_bytes
from tests.support.models import language


def close(got, want, atol=1e-10):
    torch.testing.assert_close(got, want, atol=atol, rtol=0)


def norm(x, weights, name):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def turn(x, position):
    """A vector of a head as complex numbers, each turned by its own period."""
    pairs = torch.view_as_complex(x.reshape(-1, 2))
    periods = torch.logspace(math.log10(2 * math.pi), math.log10(2e4 * math.pi), len(pairs), dtype=torch.float64)
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(periods), 2 * math.pi * position / periods)).flatten()


def attend(q_NC, k_MC, v_MC, own, others, heads=2):
    """Each query, at its own position, over the inputs at other positions up to it; one head at a time."""
    rows = []
    for q_C, position in zip(q_NC, own, strict=True):
        seen = [index for index, other in enumerate(others) if other <= position]
        row = []
        for h in range(heads):
            part = slice(h * len(q_C) // heads, (h + 1) * len(q_C) // heads)
            q = turn(q_C[part], position)
            scores = torch.stack([q @ turn(k_MC[index, part], others[index]) for index in seen])
            row.append(torch.softmax(scores / math.sqrt(len(q)), 0) @ v_MC[seen, part])
        rows.append(torch.cat(row))
    return torch.stack(rows)


def plain_formula(model, byte_M, latents, kept=None):
    """One text; `kept` are the positions that are read."""
    weights = model.state_dict()
    kept = list(range(len(byte_M))) if kept is None else kept
    own = kept[-latents:]
    x = weights["embedding.weight"][byte_M[kept]]
    z = x[-latents:]
    for layer in range(-1, len(model.layers)):
        part = "cross_attention" if layer < 0 else f"layers.{layer}"
        n = norm(z, weights, f"{part}.norm_{'q' if layer < 0 else 'z'}")
        seen, others = (norm(x, weights, f"{part}.norm_x"), kept) if layer < 0 else (n, own)
        q, k, v = (
            linear(a, weights, f"{part}.attention.{name}") for a, name in ((n, "query"), (seen, "key"), (seen, "value"))
        )
        z = z + linear(attend(q, k, v, own, others), weights, f"{part}.attention.output")
        hidden = gelu(linear(norm(z, weights, f"{part}.norm_h"), weights, f"{part}.mlp.hidden"))
        z = z + linear(hidden, weights, f"{part}.mlp.output")
    return linear(norm(z, weights, "norm"), weights, "output")


@pytest.mark.parametrize("choose", [kernels.reset, kernels.optimize])
@pytest.mark.parametrize(("count", "latents"), [(24, 8), (11, 3), (8, 8), (9, 1), (1, 1)])
def test_logits_are_those_of_the_plain_formula(choose, count, latents):
    model, byte_BM = causal(), random_bytes(2, count)
    choose(model)
    logits_BNV = model(byte_BM, latents)
    for byte_M, logits_NV in zip(byte_BM, logits_BNV, strict=True):
        close(logits_NV, plain_formula(model, byte_M, latents))


def test_a_short_text_has_as_many_latents_as_bytes():
    model = causal()
    assert model(random_bytes(1, 24)).shape == (1, 8, 256)
    assert model(random_bytes(3, 5).to(torch.uint8)).shape == (3, 5, 256)


@pytest.mark.parametrize("position", [0, 10, 16, 20, 23])
@pytest.mark.parametrize("training", [False, True])
def test_a_byte_changes_no_earlier_prediction(position, training):
    model, byte_BM = causal(prefix_dropout=0.4).train(training), random_bytes(1, 24)
    other_BM = byte_BM.clone()
    other_BM[0, position] = (byte_BM[0, position] + 1) % 256
    results = []
    for each in (byte_BM, other_BM):
        torch.manual_seed(1)  # for the same dropout
        results.append(model(each)[0])
    first = max(position - 16, 0)
    assert torch.equal(results[0][:first], results[1][:first])
    is_dropped = training and torch.equal(*results)
    assert is_dropped or ((results[0][first:] - results[1][first:]).abs().amax(-1) > 1e-6).all()
    assert not is_dropped or position < 16


def test_with_as_many_latents_as_bytes_it_is_a_decoder_only_transformer():
    model, byte_BM = causal(length=12, latents=12), random_bytes(2, 12)
    first = model.cross_attention
    first.norm_x.load_state_dict(first.norm_q.state_dict())
    weights = {name.replace("norm_q", "norm_z"): value for name, value in first.state_dict().items()}
    layers = [SelfAttention(16, 2, widening_factor=4).double(), *model.layers]
    layers[0].load_state_dict({name: value for name, value in weights.items() if "norm_x" not in name})
    x_BMC, causal_1MM = model.embedding(byte_BM), torch.ones(1, 12, 12).tril().bool()
    rotation = model.positions(torch.arange(12.0).double()[None, :, None])
    for layer in layers:
        x_BMC = layer(x_BMC, None, causal_1MM, rotation)
    close(model(byte_BM), model.output(model.norm(x_BMC)))


def test_masks_are_lower_triangles_that_end_in_the_last_corner():
    assert causal_mask(1, 7, torch.device("cpu")) is None
    assert causal_mask(3, 5, torch.device("cpu")).int().tolist() == [[[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1] * 5]]


def test_training_leaves_out_a_fraction_of_the_bytes_before_the_latents(monkeypatch):
    model, byte_BM, chosen = causal(prefix_dropout=0.3), random_bytes(5, 24), []
    choose = model.choose_bytes
    monkeypatch.setattr(model, "choose_bytes", lambda *given: chosen.append(choose(*given)) or chosen[-1])
    assert torch.equal(model(byte_BM), model(byte_BM))
    assert chosen[0].tolist() == [list(range(24))]
    model.train()
    first, second = model(byte_BM), model(byte_BM)
    assert not torch.allclose(first, second)
    for index_BK in chosen[2:]:
        assert index_BK.shape == (5, 12 + 8)  # 0.3 of 16 are 4
        assert len({tuple(sorted(row[:12].tolist())) for row in index_BK}) > 1
        for row in index_BK.tolist():
            assert row[12:] == list(range(16, 24))
            assert len({*row[:12]} & {*range(16)}) == 12
    close(first[0], plain_formula(model, byte_BM[0], 8, chosen[2][0].tolist()))


def test_attention_weights_are_dropped_in_training_only():
    model, byte_BM = causal(dropout=0.5), random_bytes(2, 24)
    assert torch.equal(model(byte_BM), model(byte_BM))
    model.train()
    assert not torch.allclose(model(byte_BM), model(byte_BM))


def test_at_first_all_bytes_are_equally_probable():
    assert torch.equal(PerceiverAR(**SIZES)(random_bytes(2, 24)), torch.zeros(2, 8, 256))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.zeros(1, 25, dtype=torch.long),), "a text of 25 bytes was given: from 1 to 24 are expected"),
        ((torch.zeros(1, 0, dtype=torch.long),), "a text of 0 bytes was given: from 1 to 24"),
        ((torch.zeros(1, 9),), r"bytes of shape \(1, 9\) and type torch.float32 were given: integers of shape"),
        ((torch.zeros(9, dtype=torch.long),), r"bytes of shape \(9,\)"),
        ((torch.full((1, 9), 256),), "bytes go from 256 to 256, but must be from 0 to 255"),
        ((torch.zeros(1, 9, dtype=torch.long), 10), "latents = 10 is not allowed: it must be from 1 to 9"),
        ((torch.zeros(1, 9, dtype=torch.long), 0), "latents = 0 is not allowed"),
    ],
)
def test_texts_that_cannot_be_read(given, message):
    with pytest.raises(PerceiversError, match=message):
        causal()(*given)


def test_several_bytes_go_on_with_a_cache():
    model, byte_BM = causal(), random_bytes(2, 23)
    caches = model.make_caches()
    parts = [model.read(byte_BM[:, :19], 3, caches), model.read(byte_BM[:, 19:], 4, caches)]
    close(torch.cat(parts, 1), model(byte_BM, 7))


def test_the_cache_takes_no_more_than_the_length():
    model = causal()
    caches = model.make_caches()
    model.read(random_bytes(1, 20), 3, caches)
    with pytest.raises(PerceiversError, match="a text of 25 bytes was given"):
        model.read(random_bytes(1, 5), 5, caches)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"latents": 25}, "latents = 25 is not allowed: it must be from 1 to length = 24"),
        ({"heads": 3}, "channels = 16 cannot be split into pairs over heads = 3: choose a multiple of 6"),
        ({"heads": 16}, "choose a multiple of 32"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(PerceiversError, match=message):
        PerceiverARConfig(**(SIZES | sizes)).build()


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model, byte_BM = causal(prefix_dropout=0.2), random_bytes(1, 24)
    model.save(tmp_path)
    for loaded in (load_model(tmp_path), load_causal_model(tmp_path, "cpu"), load_causal_model(model)):
        assert not loaded.training
        assert to_config(loaded) == to_config(model)
        assert torch.equal(loaded(byte_BM), model(byte_BM))
    assert load_causal_model(str(tmp_path), "cpu", "bfloat16").output.weight.dtype == torch.bfloat16
    with pytest.raises(PerceiversError, match="holds a PerceiverAR, not a PerceiverIO: give another model"):
        perceivers.load(tmp_path)
    config = pretrained_config(tmp_path, PerceiverARConfig)
    assert config == PerceiverARConfig(**SIZES, prefix_dropout=0.2, init=str(tmp_path))


def test_no_weight_depends_on_the_length_or_the_number_of_latents():
    model, longer, byte_BM = causal(), causal(length=48, latents=16), random_bytes(1, 24)
    assert longer(random_bytes(1, 48)).shape == (1, 16, 256)
    assert transfer_weights(model, longer).taken.keys() == longer.state_dict().keys()
    assert torch.equal(longer(byte_BM, 8), model(byte_BM))


def test_models_that_are_not_causal(tmp_path):
    language().save(tmp_path)
    for given, name in ((tmp_path, str(tmp_path)), (language(), "the model")):
        with pytest.raises(PerceiversError, match=f"{name} is a PerceiverIO: a causal model, of the experiment caus"):
            load_causal_model(given)


def test_flops_and_parameters_by_hand():
    m, n, c, w = 24, 8, 16, 4 * 16
    for dropout, read in ((0.0, m), (0.5, m - 8)):
        with torch.device("meta"):
            model = PerceiverAR(**SIZES, prefix_dropout=dropout).train()
            kernels.reset(model)
            _, flops = count_flops(lambda model=model: model(torch.zeros(1, m, dtype=torch.long)))
        cross = 2 * n * c * c + 2 * read * c * c + 2 * n * read * c + 2 * n * c * w
        layer = 4 * n * c * c + 2 * n * n * c + 2 * n * c * w
        assert flops == 2 * (cross + 2 * layer + n * c * 256)
    block = 4 * (c * c + c) + (c * w + w) + (w * c + c) + 4 * c
    assert count_parameters(model) == 256 * c + (block + 2 * c) + 2 * block + 2 * c + (c * 256 + 256)


def test_compiles_without_a_graph_break():
    model, byte_BM = causal(depth=1, prefix_dropout=0.5).train(), random_bytes(2, 24)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    for run in (model, compiled):
        torch.manual_seed(1)  # for the same dropout
        run(byte_BM).square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-7, rtol=1e-6, msg=name)


def test_runs_in_bfloat16_and_under_autocast():
    model, byte_BM = causal().float(), random_bytes(3, 24)
    want = model(byte_BM)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(byte_BM)
    rounded = model.bfloat16()(byte_BM)
    assert rounded.dtype == torch.bfloat16
    for got in (mixed, rounded):
        assert (got.float() - want).abs().mean() < 0.03 * want.abs().mean()
