"""Kernels that are chosen by measuring: every candidate is the formula, and choices last."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend
from torch.utils.flop_counter import FlopCounterMode

from perceivers.model.kernels import attention, chunked, half_precision, onednn, tuning
from perceivers.model.kernels.attention import attend_fused, scaled_dot_product_attention
from perceivers.model.kernels.onednn import has_onednn, linear

LOOSE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
CHUNKS = ["chunks of 640 bytes", "chunks of 160 bytes", "chunks of 160 bytes of a head"]
NAMES = ["fused", *CHUNKS, "padded channels", "weights kept"]


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Begins without choices, with a cache folder of its own, as on a CPU that multiplies in every precision."""
    monkeypatch.setattr(half_precision, "has_fast_products", lambda dtype: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(tuning.AUTOTUNE, "1")
    monkeypatch.setattr(tuning, "choices", {})
    monkeypatch.setattr(tuning, "MIN_TIMED_PRODUCTS", 1)
    monkeypatch.setattr(attention, "MIN_TIMED_PRODUCTS", 1)
    monkeypatch.setattr(onednn, "MIN_PRODUCTS", 1)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `Slow` moves."""
    now = [0.0]
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: now[0])
    return now


class Slow:
    """A candidate that takes some seconds of the clock, and counts its calls."""

    def __init__(self, clock, seconds, error=None):
        self.clock, self.seconds, self.error, self.calls = clock, seconds, error, 0

    def __call__(self, x):
        self.calls += 1
        self.clock[0] += self.seconds
        if self.error:
            raise self.error
        return x + 0


def take(name, monkeypatch):
    """Has one candidate chosen wherever it is among them; returns the names of all that were found."""
    found = set()

    def choose(key, products, candidates, sample):
        found.update(candidates)
        return candidates.get(name, next(iter(candidates.values())))

    monkeypatch.setattr(attention, "choose", choose)
    monkeypatch.setattr(onednn, "choose", choose)
    return found


def arrays(dtype, qk=5, v=5):
    q, k, values = torch.randn(3, 2, 7, qk), torch.randn(3, 2, 9, qk), torch.randn(3, 2, 9, v)
    return [array.to(dtype).requires_grad_() for array in (q, k, values)]


def assert_formula(dtype, inputs, mask=None, bias=None, pair_mask=None):
    """Compares values and gradients with softmax(q k^T / 2 + bias) v in float64."""
    q, k, v = (array.double() for array in inputs)
    score = 0.5 * q @ k.mT
    if bias is not None:
        score = score + bias.double()[:, None, None]
    for hidden in (None if mask is None else ~mask[:, None, None], None if pair_mask is None else ~pair_mask[:, None]):
        score = score if hidden is None else score.masked_fill(hidden, -math.inf)
    want = score.softmax(-1).nan_to_num() @ v
    got = scaled_dot_product_attention(*inputs, mask, bias, scale=0.5, pair_mask=pair_mask)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, atol=LOOSE[dtype], rtol=LOOSE[dtype])
    leaves = [array for array in (*inputs, bias) if array is not None]
    weight = torch.randn_like(want)
    for gradient, of_formula in zip(
        torch.autograd.grad((got.double() * weight).sum(), leaves),
        torch.autograd.grad((want * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(gradient, of_formula, atol=3 * LOOSE[dtype], rtol=3 * LOOSE[dtype])
    with torch.no_grad():
        without = scaled_dot_product_attention(*inputs, mask, bias, scale=0.5, pair_mask=pair_mask)
    torch.testing.assert_close(without.double(), want, atol=LOOSE[dtype], rtol=LOOSE[dtype])


@pytest.mark.parametrize("hidden", ["nothing", "inputs", "pairs"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", list(LOOSE))
@pytest.mark.parametrize("name", NAMES)
def test_every_candidate_attends_as_the_formula(name, dtype, biased, hidden, monkeypatch):
    monkeypatch.setattr(attention, "CPU_CHUNK_BYTES", 640)
    for kernels in (attention, chunked):
        monkeypatch.setattr(kernels, "MIN_CHUNK_QUERIES", 2)
    found = take(name, monkeypatch)
    bias = torch.randn(3, 9).to(dtype).requires_grad_() if biased else None
    mask = torch.arange(9) < torch.tensor([[9], [4], [0]]) if hidden == "inputs" else None
    pair_mask = torch.rand(3, 7, 9) < 0.6 if hidden == "pairs" else None
    assert_formula(dtype, arrays(dtype), mask, bias, pair_mask)
    assert name in found or (name == "fused" and biased)  # which gives no gradient to a bias


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("dtype", list(LOOSE))
@pytest.mark.parametrize("name", NAMES[1:])
def test_every_candidate_attends_to_keys_that_are_the_values(name, dtype, heads, monkeypatch):
    """As a folded layer does: the gradient of the array is that of both, and the timed sample shares one, too."""
    monkeypatch.setattr(attention, "CPU_CHUNK_BYTES", 640)
    for kernels in (attention, chunked):
        monkeypatch.setattr(kernels, "MIN_CHUNK_QUERIES", 2)
    take(name, monkeypatch)
    q, k = (array[:, :heads].detach().requires_grad_() for array in arrays(dtype)[:2])
    assert_formula(dtype, [q, k, k])
    sample = attention.take_sample(q, k, k, None, has_grad=True)
    assert sample[1] is sample[2]


@pytest.mark.parametrize("shared", [False, True])
def test_mixed_precision_converts_a_shared_array_once(shared, monkeypatch):
    received = []
    monkeypatch.setattr(attention, "choose_implementation", lambda *found: received.extend(found[1:3]) or attend_fused)
    q, k, v = arrays(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        scaled_dot_product_attention(q, k, k if shared else v)
    assert (received[0] is received[1]) == shared
    assert {array.dtype for array in received} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["by example", "whole batch"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", list(LOOSE))
def test_a_batch_with_padding_is_attended_to_as_the_formula(name, dtype, biased, monkeypatch):
    found = take(name, monkeypatch)
    bias = torch.randn(3, 9).to(dtype).requires_grad_() if biased else None
    assert_formula(dtype, arrays(dtype, v=6), torch.arange(9) < torch.tensor([[9], [4], [0]]), bias)
    assert name in found


@pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("name", ["oneDNN", "MKL"])
def test_both_libraries_multiply(name, monkeypatch):
    found = take(name, monkeypatch)
    x, weight, bias = torch.randn(5, 8, requires_grad=True), torch.randn(6, 8, requires_grad=True), torch.randn(6)
    y = linear(x, weight, bias)
    torch.testing.assert_close(y, x @ weight.T + bias)
    assert (type(y.grad_fn).__name__ == "OneDNNLinearBackward") is (name == "oneDNN")
    for gradient, want in zip(torch.autograd.grad(y.sum(), [x, weight]), [weight.sum(0), x.sum(0)], strict=True):
        torch.testing.assert_close(gradient, want.expand_as(gradient), atol=1e-5, rtol=1e-5)
    assert found == {"oneDNN", "MKL"}


def test_few_weights_are_kept_and_only_for_gradients(monkeypatch):
    found = take("fused", monkeypatch)
    inputs = arrays(torch.float32)
    monkeypatch.setattr(attention, "MAX_KEPT_BYTES", 4 * 3 * 2 * 7 * 9 - 1)
    scaled_dot_product_attention(*inputs)
    with torch.no_grad():
        monkeypatch.setattr(attention, "MAX_KEPT_BYTES", 4 * 3 * 2 * 7 * 9)
        scaled_dot_product_attention(*inputs)
    assert "weights kept" not in found
    scaled_dot_product_attention(*inputs)
    assert "weights kept" in found


def test_long_inputs_with_padding_are_attended_to_by_example(monkeypatch):
    found = take("whole batch", monkeypatch)
    mask = torch.arange(9) < torch.tensor([[9], [4], [5]])
    monkeypatch.setattr(attention, "MAX_TIMED_PRODUCTS", 16 * 2 * 7 * 9 * 10 - 1)
    scaled_dot_product_attention(*arrays(torch.float32), mask)
    assert "whole batch" not in found
    monkeypatch.setattr(attention, "MAX_TIMED_PRODUCTS", 16 * 2 * 7 * 9 * 10)
    scaled_dot_product_attention(*arrays(torch.float32), mask)
    assert "whole batch" in found


def test_a_mask_that_hides_nothing_is_dropped(monkeypatch):
    found = take("by example", monkeypatch)
    inputs = arrays(torch.float32)
    got = scaled_dot_product_attention(*inputs, torch.ones(3, 9, dtype=torch.bool))
    assert torch.equal(got, scaled_dot_product_attention(*inputs))
    assert "by example" not in found


def test_a_backend_may_be_named(monkeypatch):
    q, k, v = (array.detach() for array in arrays(torch.float32))
    want = attend_fused(q, k, v, None, 0.5)
    named, real = [], attention.sdpa_kernel
    monkeypatch.setattr(attention, "sdpa_kernel", lambda backend: named.append(backend) or real(backend))
    torch.testing.assert_close(attend_fused(q, k, v, None, 0.5, backend=SDPBackend.MATH), want)
    assert named == [SDPBackend.MATH]


@pytest.mark.parametrize("preferred", [False, True])
def test_the_preferred_library_is_chosen_where_nothing_is_timed(preferred, monkeypatch):
    monkeypatch.setenv(tuning.AUTOTUNE, "0")
    monkeypatch.setattr(onednn, "onednn_is_preferred", lambda: preferred)
    assert (onednn.choose_library(torch.ones(5, 8), torch.ones(6, 8)) is onednn.onednn_linear) is preferred


def test_a_backend_that_a_machine_has_not_is_not_taken(clock):
    missing = Slow(clock, 0, RuntimeError("No available kernel. Aborting execution."))
    assert tuning.measure({"here": Slow(clock, 5), "missing": missing}, (torch.zeros(1),)) == "here"
    assert tuning.measure({"missing": missing, "here": Slow(clock, 5)}, (torch.zeros(1),)) == "here"
    assert missing.calls == 2


def test_the_fastest_candidate_is_chosen_by_a_margin(clock):
    def fastest(*seconds):
        return tuning.measure({str(s): Slow(clock, s) for s in seconds}, (torch.zeros(1),))

    assert fastest(5, 3, 4) == "3"
    assert fastest(3, 5) == "3"
    assert fastest(100, 98) == "100"
    assert fastest(100, 96) == "96"


def test_slow_candidates_are_timed_twice(clock):
    slow, fast = Slow(clock, 10), Slow(clock, 1)
    tuning.measure({"slow": slow, "fast": fast}, (torch.zeros(1),))
    assert slow.calls == 1 + 2
    assert fast.calls == 1 + tuning.ROUNDS


def test_other_work_during_a_first_call_does_not_count(clock):
    fast, slow = Slow(clock, 1), Slow(clock, 2)
    call = fast.__call__

    def disturbed(x):
        clock[0] += 50 * (fast.calls == 1)
        return call(x)

    assert tuning.measure({"slow": slow, "fast": disturbed}, (torch.zeros(1),)) == "fast"


def choose(candidates, key=("test", 1), products=10):
    return tuning.choose(key, products, candidates, lambda: (torch.zeros(1),))


def test_a_choice_is_measured_once_on_a_machine(clock, monkeypatch):
    candidates = {"slow": Slow(clock, 2), "fast": Slow(clock, 1)}
    assert choose(candidates) is candidates["fast"]
    calls = candidates["fast"].calls
    assert choose(candidates) is candidates["fast"]
    tuning.choices.clear()  # as in a new process
    assert choose({"slow": Slow(clock, 1), "fast": (later := Slow(clock, 2))}) is later
    assert (candidates["fast"].calls, later.calls) == (calls, 0)
    (of_machine,) = json.loads(tuning.get_file().read_text()).values()
    assert list(of_machine.values()) == ["fast"]
    monkeypatch.setattr(tuning, "describe_machine", lambda: "another")
    tuning.choices.clear()
    assert choose({"slow": (other := Slow(clock, 1)), "fast": Slow(clock, 2)}) is other
    assert json.loads(tuning.get_file().read_text()).keys() > {"another"}


def test_choices_depend_on_the_number_of_threads(clock):
    candidates = {"slow": Slow(clock, 2), "fast": Slow(clock, 1)}
    choose(candidates)
    calls = candidates["fast"].calls
    torch.set_num_threads(2)
    choose(candidates)
    assert candidates["fast"].calls == 2 * calls


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"machine": {"test 1, 1 threads: slow, fast": []}}',
        '{"machine": {"test 1, 1 threads: slow, fast": "unknown"}}',
    ],
)
def test_a_damaged_file_is_replaced(clock, monkeypatch, content):
    monkeypatch.setattr(tuning, "describe_machine", lambda: "machine")
    tuning.get_file().parent.mkdir(parents=True)
    tuning.get_file().write_text(content)
    candidates = {"slow": Slow(clock, 2), "fast": Slow(clock, 1)}
    assert choose(candidates) is candidates["fast"]
    assert json.loads(tuning.get_file().read_text()) == {"machine": {"test 1, 1 threads: slow, fast": "fast"}}


def test_where_nothing_can_be_written_nothing_is_measured(clock, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    candidates = {"slow": Slow(clock, 2), "fast": Slow(clock, 1)}
    assert choose(candidates) is candidates["slow"]
    assert candidates["fast"].calls == 0


def test_nothing_is_measured_if_that_is_turned_off_or_would_be_seen(clock, monkeypatch):
    candidates = {"slow": Slow(clock, 2), "fast": Slow(clock, 1)}
    assert tuning.choose(("test",), 10**9, {"slow": candidates["slow"]}, list) is candidates["slow"]
    with FlopCounterMode(display=False):
        assert choose(candidates) is candidates["slow"]
    torch.func.vmap(lambda x: choose(candidates)(x))(torch.zeros(2))
    monkeypatch.setattr(tuning, "MIN_TIMED_PRODUCTS", 11)
    assert choose(candidates) is candidates["slow"]
    monkeypatch.setattr(tuning, "MIN_TIMED_PRODUCTS", 10)
    monkeypatch.setenv(tuning.AUTOTUNE, "0")
    assert choose(candidates) is candidates["slow"]
    assert candidates["fast"].calls == 0
    assert not tuning.get_file().exists()


def test_hooks_of_the_caller_do_not_see_the_measurement():
    inputs = arrays(torch.float32)
    kept = []
    with saved_tensors_hooks(lambda array: kept.append(array) or array, lambda array: array):
        scaled_dot_product_attention(*inputs)
    first = len(kept)
    with saved_tensors_hooks(lambda array: kept.append(array) or array, lambda array: array):
        scaled_dot_product_attention(*inputs)
    assert len(kept) == 2 * first
    assert tuning.choices
    assert all(array.grad is None for array in inputs)


def test_random_numbers_are_those_without_a_measurement():
    mask = torch.arange(9) < torch.tensor([[9], [4], [5]])
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        scaled_dot_product_attention(*(torch.ones(3, 2, 9, 4) for _ in range(3)), mask, dropout=0.5)
        found.append(torch.rand(()).item())
    assert found[0] == found[1]
    assert tuning.choices


def test_a_checkpointed_layer_chooses_the_same_again():
    inputs = arrays(torch.float32)
    got = torch.utils.checkpoint.checkpoint(scaled_dot_product_attention, *inputs, use_reentrant=False)
    torch.autograd.grad(got.sum(), inputs)
    assert tuning.choices


def test_parts_that_are_measured_are_small(monkeypatch):
    monkeypatch.setattr(attention, "MAX_TIMED_PRODUCTS", 2**20)
    monkeypatch.setattr(attention, "MIN_CHUNK_QUERIES", 8)
    monkeypatch.setattr(attention, "CPU_CHUNK_BYTES", 63 * 8 * 4)
    for sizes in ((4, 2, 16, 32, 8), (1, 2, 4096, 64, 8), (1, 1, 8, 10**5, 16), (1, 1, 10**4, 10**4, 16)):
        batch, heads, queries, inputs, channels = sizes
        q, k = torch.empty(batch, heads, queries, channels), torch.empty(batch, heads, inputs, channels)
        bias = torch.empty(1, queries, inputs)
        part_q, part_k, part_v, part_bias = attention.take_sample(q, k, k, bias, False)
        products = part_q.shape[:3].numel() * part_k.shape[2] * 2 * channels
        assert products <= max(2**20, heads * 8 * 64 * 2 * channels)
        assert products >= min(2**18, batch * heads * queries * inputs * 2 * channels)
        assert part_v.shape == part_k.shape
        assert (8 * part_k.shape[2] * 4 > 63 * 8 * 4) is (8 * inputs * 4 > 63 * 8 * 4)  # both in blocks, or neither
        assert part_bias.shape == (1, part_q.shape[2], part_k.shape[2])


SCRIPT = """
import torch
from perceivers import PerceiverIO
from perceivers.adapters import ArrayInput, LabelOutput
torch.manual_seed(0)
torch.set_num_threads(1)
model = PerceiverIO({"points": ArrayInput(48)}, {"label": LabelOutput(10)}, latents=64, channels=128, depth=2, heads=4)
loss = model({"points": torch.rand(4, 1000, 48)})["label"].square().mean()
loss.backward()
print(loss.item().hex(), model.encoder.latents.grad.norm().item().hex())
"""


def test_a_model_gives_equal_results_in_every_run():
    environment = os.environ | {tuning.AUTOTUNE: "1"}
    runs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, check=True, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert tuning.get_file().is_file()
    fixed = environment | {tuning.AUTOTUNE: "0"}
    other = subprocess.run([sys.executable, "-c", SCRIPT], env=fixed, check=True, capture_output=True, text=True).stdout
    for measured, of_fixed in zip(runs[0].split(), other.split(), strict=True):
        assert float.fromhex(measured) == pytest.approx(float.fromhex(of_fixed), rel=1e-3)
