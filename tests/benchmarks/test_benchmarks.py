"""The benchmark itself, on toy models: that both sides do the same work, and that the figures are worked out right."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import machine, measure, models, report, rows, scaling, targets, worker
from benchmarks.operators import kind_of, profile_operators
from benchmarks.run import chosen, line_of

ROWS = [rows.tiny(row) for row in rows.cpu_rows() if row.sides == rows.BOTH and row.dtype == "float32"]
ONE_A_WORK = list({row.work: replace(row, batch=row.batch if row.lengths else 2) for row in ROWS}.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in models.MODELS:
        models.make(name, folder / name, tiny=True)
    return folder


@pytest.fixture(scope="module")
def workers(folder):
    return {side: worker.Worker(side, "cpu", folder, tiny=True) for side in rows.BOTH}


def ask(process, do, **arguments):
    answer = process.handle({"do": do, **arguments})
    assert "error" not in answer, answer
    return answer


def do_row(side, row, file):
    found = ask(side, "prepare", row=row.to_json())
    found |= {"first": ask(side, "warm")["seconds"], "seconds": [ask(side, "run")["seconds"]]}
    return found | ask(side, "finish", answer=str(file))


@pytest.mark.parametrize("row", ONE_A_WORK, ids=lambda row: row.work)
def test_both_sides_do_the_same_work(row, workers, tmp_path):
    found = {name: do_row(side, row, tmp_path / name) for name, side in workers.items()}
    assert all(one["peak"] > 0 and one["seconds"][0] > 0 for one in found.values())
    flops = {name: ask(side, "flops", row=row.to_json(), side=name)["flops"] for name, side in workers.items()}
    assert min(flops.values()) > 0
    answers = [torch.load(tmp_path / name) for name in rows.BOTH]
    if row.equal:
        assert answers[0].std() > 0
        assert measure.difference(*answers) < measure.TOLERANCE
    else:
        assert answers[0].shape == answers[1].shape


def test_a_clip_in_bfloat16_answers_alike(workers, tmp_path):
    (row,) = [rows.tiny(row) for row in rows.cpu_rows() if row.model == "clip" and row.key.endswith("1, bfloat16")]
    for name, side in workers.items():
        do_row(side, row, tmp_path / name)
    assert measure.difference(*[torch.load(tmp_path / name) for name in rows.BOTH]) < 0.3


def test_flops_are_those_of_the_products(workers):
    (row,) = [row for row in ONE_A_WORK if row.work == rows.LANGUAGE]
    latents, channels, embedded, tokens, qk, v = 12, 32, 24, 40, 16, 32
    encoder = latents * channels * qk + tokens * embedded * (qk + v) + latents * tokens * (qk + v)
    encoder += latents * v * channels + 2 * latents * channels**2
    layer = (
        latents * channels * (2 * qk + v) + latents**2 * (qk + v) + latents * v * channels + 2 * latents * channels**2
    )
    decoder = tokens * embedded * 256 + latents * channels * (256 + embedded) + tokens * latents * (256 + embedded)
    decoder += tokens * embedded**2 + 2 * tokens * embedded**2 + tokens * embedded * 262
    found = ask(workers["theirs"], "flops", row=row.to_json(), side="theirs")["flops"]
    assert found == 2 * row.batch * (encoder + 2 * layer + decoder)


def test_parts_of_a_clip_stand_for_all_of_it(workers, monkeypatch):
    (row,) = [row for row in ONE_A_WORK if row.work == rows.CLIP]
    ask(workers["theirs"], "prepare", row=row.to_json())
    times = iter([10.0, 13.0])
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(times))
    assert ask(workers["theirs"], "run")["seconds"] == pytest.approx(4.0)  # three of four parts took three seconds


@pytest.mark.skipif(not worker.CLEAR.exists(), reason="the kernel tells a peak that starts anew on Linux only")
def test_the_peak_starts_anew():
    torch.zeros(1)
    peaks = []
    for size in (2**28, 2**26):  # 1 GiB and 256 MiB
        before = worker.reset_peak("cpu")
        array = torch.ones(size)
        del array
        peaks.append(worker.peak("cpu") - before)
    assert peaks[0] == pytest.approx(2**30, rel=0.05)
    assert peaks[1] == pytest.approx(2**28, rel=0.3)


def test_the_worker_answers_line_by_line_and_goes_on_after_an_error(tmp_path):
    side = measure.Side("ours", "cpu", tmp_path, tiny=True)
    (row,) = [row for row in ROWS if row.work == "as perceiver-pytorch"]
    with pytest.raises(measure.SideError, match="is neither a folder"):
        side.ask("prepare", row=replace(row, model="language").to_json())
    assert side.alive()
    assert side.ask("prepare", row=row.to_json())["resident"] > 0
    side.ask("warm")
    assert side.ask("run")["seconds"] > 0
    assert side.ask("finish", answer=str(tmp_path / "answer.pt"))["peak"] > 0
    assert torch.load(tmp_path / "answer.pt").shape == (1, 1000)
    side.process.kill()
    with pytest.raises(measure.SideError, match="killed") as caught:
        side.ask("run")
    assert caught.value.memory
    side.close()


class FakeSides:
    """Sides that need memory for more than two examples, and of which the compiled one cannot work."""

    device = "cuda"

    def __init__(self, folder):
        self.folder = folder
        self.batch = 0
        self.times = iter([4.0, 1.0, 6.0, 2.0])

    def flops(self, row, side):
        return 3.0 * row.batch

    def get(self, model, side):
        self.side = side
        return self

    def ask(self, do, row=None, answer=None):
        if do == "prepare":
            self.batch = row["batch"]
            if "compiled" in self.side:
                raise measure.SideError("no compiler")
            if self.batch > 2:
                raise measure.SideError("out of memory", memory=True)
        if answer:
            torch.save(torch.arange(4.0), answer)
        answers = {"prepare": {"resident": 1}, "warm": {"seconds": 9.0}, "finish": {"peak": 2}}
        return {"seconds": next(self.times)} if do == "run" else answers[do]


def test_a_row_on_a_gpu_halves_its_batch_and_leaves_out_a_side_that_fails(tmp_path):
    row = rows.Row("work", "flow", "bfloat16", batch=8, rounds=2, sides=("theirs", "ours", "ours compiled"))
    found = measure.measure(row, FakeSides(tmp_path))
    assert found["batch"] == 2
    assert found["left_out"] == {"ours compiled": "no compiler"}
    assert found["ratios"] == {"ours": {"median": 3.5, "lowest": 3.0, "highest": 4.0}}
    assert found["sides"]["theirs"]["seconds"] == [4.0, 6.0]  # in turn with the other side's 1 and 2
    assert found["sides"]["ours"]["flops"] == 6
    assert found["difference"] == 0


def test_answers_that_differ_in_float32_fail_the_run():
    assert measure.agrees({"dtype": "float32", "difference": 9e-4})
    assert not measure.agrees({"dtype": "float32", "difference": 2e-3})
    assert not measure.agrees({"dtype": "float32", "difference": float("nan")})
    assert measure.agrees({"dtype": "bfloat16", "difference": 0.1})
    assert measure.agrees({"dtype": "float32", "skipped": "no compiler"})


@pytest.mark.parametrize("exponent", [0.5, 0.97, 1.0, 1.05, 2.0])
def test_the_exponent_is_found_beside_a_fixed_part(exponent):
    values = [0.3 + 2e-6 * count**exponent for count in scaling.COUNTS]
    found = scaling.fit(scaling.COUNTS, values)
    assert found.exponent == pytest.approx(exponent, abs=2e-3)
    assert found.fixed == pytest.approx(0.3, rel=0.01)
    assert found.error < 1e-3


def test_the_exponent_bears_noise_and_a_fixed_part_is_never_negative():
    noises = (1, 1.03, 0.97, 1, 1.02, 0.99)
    values = [(0.02 + 1e-6 * count) * noise for count, noise in zip(scaling.COUNTS, noises, strict=True)]
    assert scaling.fit(scaling.COUNTS, values).exponent == pytest.approx(1, abs=0.05)
    found = scaling.fit(scaling.COUNTS, [1e-6 * count - 5e-4 for count in scaling.COUNTS])
    assert found.fixed == 0


def test_the_transformer_stops_before_it_takes_too_long():
    points = [{"count": 4096, "seconds": 1.0}, {"count": 16384, "seconds": 10.0}]
    assert scaling.predicted(points, 65536) == pytest.approx(100.0)
    assert scaling.predicted(points[:1], 65536) == 0


def test_rows_have_names_of_their_own_and_the_quick_ones_are_there():
    keys = [row.key for row in rows.cpu_rows()]
    assert len(set(keys)) == len(keys)
    quick = {(row.work, row.dtype) for row in chosen(rows.cpu_rows(), quick=True, only=[])}
    assert (rows.FOURIER_STEP, "bfloat16") in quick
    assert {(work, dtype) for work in (rows.LANGUAGE, rows.FILL, rows.FOURIER) for dtype in models.DTYPES} <= quick
    assert [row.model for row in chosen(rows.cpu_rows(), False, ["CLIP"])] == ["clip"] * 3
    row = rows.cpu_rows()[0]
    assert rows.Row.from_json(json.loads(json.dumps(row.to_json()))) == row


def side(seconds, flops, peak=1e9, resident=0.5e9):
    return {"seconds": seconds, "flops": flops, "peak": peak, "resident": resident, "first": 1.0}


def made_up_row(work, dtype, theirs, ours, mode="forward", **changes):
    row = rows.Row(work, "flow", dtype, mode=mode).to_json()
    sides = {"theirs": theirs, "ours": ours}
    ratios = measure.ratios(theirs["seconds"], ours["seconds"])
    return row | {"sides": sides, "left_out": {}, "ratios": {"ours": ratios}, "difference": 1e-6} | changes


@pytest.fixture
def run():
    """What a run might have found: peaks of 200 and 400 GFLOP/s."""
    start, end = (
        {dtype: {"flops": peak * factor, "way": "linear"} for dtype, peak in (("float32", 2e11), ("bfloat16", 4e11))}
        for factor in (0.9, 1.0)
    )
    linear = [1024 * 4**step for step in range(6)]
    points = [
        {"count": count, "seconds": 1e-2 + 1e-6 * count, "peak": 3e8 + 1e-3 * count**2, "resident": 3e8, "beyond": 1e9}
        for count in linear
    ]
    fits = {field: scaling.fit(linear, [point[field] for point in points])._asdict() for field in ("seconds", "peak")}
    return {
        "command": "python benchmarks/run.py",
        "date": "2030-01-02",
        "tiny": False,
        "quick": False,
        "device": "cpu",
        "kind": "cpu",
        "seconds": 90.0,
        "machine": {"processor": "Abacus", "cores": 2, "threads": 2},
        "versions": {"torch": "9.9"},
        "peaks": {"start": start, "end": end},
        "rows": [
            made_up_row(rows.FLOW, "float32", side([30.0, 33.0], 3e12), side([10.0, 10.0], 1.9e12, peak=1.3e9)),
            made_up_row(rows.FLOW, "bfloat16", side([15.0, 15.0], 3e12), side([10.0, 10.0], 3.2e12)),
            made_up_row(rows.LANGUAGE, "float32", side([1.0], 1e11), side([0.88], 1e11)),
            made_up_row(
                rows.LANGUAGE_STEP, "float32", side([4.0], 3e11, peak=2e9), side([2.0], 3e11, peak=1.7e9), "train"
            ),
            rows.Row(rows.CLIP, "clip", "float32").to_json() | {"skipped": "it was killed"},
        ],
        "scaling": {"inputs": {"points": points, "ended": "", "fits": fits}},
        "choices": [["product 256 1280 1280 weight, 2 threads: oneDNN, MKL", "MKL"]],
    }


def test_the_fraction_is_of_the_best_peak_of_the_run(run):
    assert targets.peak_of(run, "float32") == 2e11
    assert targets.fraction(run, run["rows"][0], "ours") == pytest.approx(1.9e12 / 10 / 2e11)
    assert targets.fraction(run, run["rows"][0], "theirs") == pytest.approx(3e12 / 31.5 / 2e11)


def test_targets_are_judged(run):
    found = {one.key: one for one in targets.targets(run)}
    assert {key: one.reached for key, one in found.items() if one.reached is not None} == {
        f"{rows.FLOW}, float32": True,
        f"{rows.FLOW}, bfloat16": False,
        "every row, float32": False,
        "every row, bfloat16": True,
        "flow peak memory": False,
        f"{rows.LANGUAGE_STEP}, memory": True,
        "fraction of the peak, float32": True,
        "fraction of the peak, bfloat16": True,
        "scaling exponent in inputs: time": True,
        "scaling exponent in inputs: memory": False,
        "a million inputs": True,
    }
    assert found[f"{rows.FLOW}, float32"].measured == "3.15 x (3.00 to 3.30)"
    assert found["every row, float32"].measured.startswith("2 of 3 rows; lowest 1.14 x (language, 2,048")
    assert found["every row, float32"].remark == "below it: language, 2,048 bytes, batch 1, float32 1.14"
    # Language has 100 GFLOPs, not more.
    assert found["fraction of the peak, float32"].measured.startswith("median of 2 rows 85%; lowest 75% (language tr")
    # 57% short; 3.2 TFLOPs at 400 GFLOP/s would take 8 s beside their 15.
    assert "57% short, at 80%" in found[f"{rows.FLOW}, bfloat16"].remark
    assert "1.88 x" in found[f"{rows.FLOW}, bfloat16"].remark
    assert set(report.LIMITS) <= set(found)


def test_gpu_targets_take_the_faster_of_ours(run):
    row = made_up_row(rows.FOURIER_STEP, "bfloat16", side([3.0], 1e12), side([2.5], 1e12), "train", batch=64)
    row["sides"]["ours compiled"] = side([1.0], 2.5e11)
    row["ratios"]["ours compiled"] = measure.ratios([3.0], [1.0])
    run |= {"device": "cuda", "kind": "cuda", "rows": [row], "scaling": {}}
    found = {one.key: one.reached for one in targets.targets(run)}
    assert found[f"{rows.FOURIER_STEP}, bfloat16"] is True
    assert found[f"{rows.FOURIER_STEP}, GPU, fraction"] is True  # 250 of 400 GFLOP/s
    assert "| ours compiled" not in report.document({"page": run})
    row["batch"] = 32
    assert all(one.reached is None for one in targets.targets(run))


def test_the_document_says_what_was_found(run, tmp_path, monkeypatch, capsys):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(run))
    monkeypatch.setitem(report.LIMITS, f"{rows.FLOW}, bfloat16", "Because of the abacus.")
    monkeypatch.setattr(report.sys, "argv", ["report.py", str(file), "--output", str(tmp_path / "page.md")])
    report.main()
    page = (tmp_path / "page.md").read_text()
    assert "| flow 368 x 496 | float32 | at least 2.5 x | 3.15 x (3.00 to 3.30) | **reached** |" in page
    assert "| flow 368 x 496 | bfloat16 | at least 3.5 x | 1.50 x (1.50 to 1.50) | **not reached** |" in page
    assert "| autoencoding of a clip | float32 | at least 15 x | not measured | not measured |" in page
    assert "for 1.88 x. Because of the abacus." in page
    assert "- autoencoding of a clip, batch 1, float32: it was killed" in page
    assert "Abacus, 2 cores" in page
    assert "| product 256 1280 1280 weight, 2 threads | oneDNN, MKL | MKL |" in page
    assert "| 31.5 s | 1.00 GB | 3,000 | 48% | 10 s | 1.30 GB | 1,900 | 95% | **3.15** (3.00 to 3.30) |" in page
    for picture in ("run_ratios.png", "run_scaling.png"):
        assert (tmp_path / picture).stat().st_size > 1000
        assert f"({picture})" in page
    assert "**not reached**" in capsys.readouterr().out


def test_a_cpu_without_bfloat16_has_rows_and_a_page_of_its_own(run):
    found = rows.rows_without_bfloat16()
    assert [(row.work, row.batch, row.rounds) for row in found if row.dtype == "bfloat16"] == [(rows.OTHER, 1, 1)]
    assert [row for row in found if row.dtype == "float32"] == [x for x in rows.cpu_rows() if x.dtype == "float32"]
    page = report.document({"one": run, "two": run | {"kind": "cpu_without_bfloat16"}})
    first, second = page.split("## On a CPU without instructions for bfloat16\n")
    assert "(one_ratios.png)" in first
    assert "(two_ratios.png)" in second
    assert "float32. Of the rows in bfloat16, only the smallest is measured" in second


def test_a_row_is_printed_with_its_fraction_and_ratio(run):
    said = line_of(run["rows"][0], run["peaks"]["end"])
    assert "perceivers 10 s, 1.30 GB, 95%, 3.15 x" in said
    assert line_of(run["rows"][-1], run["peaks"]["end"]) == "left out: it was killed"


def test_the_time_of_a_call_is_that_of_its_operators():
    kinds = {"aten::addmm": "products", "aten::bmm": "products", "mkldnn::_linear_pointwise": "products"}
    kinds |= {"aten::gelu_backward": "GELU", "aten::native_layer_norm": "norms", "aten::_softmax": "softmax"}
    kinds |= {"aten::copy_": "copies", "aten::add_": "sums, factors", "aten::view": "other", "addmm": "products"}
    kinds |= {"aten::_scaled_dot_product_flash_attention_for_cpu": "fused attention", "MyBackward0": "other"}
    assert {name: kind_of(name) for name in kinds} == kinds
    a = torch.randn(600, 600)
    found = profile_operators(lambda: (a @ a).softmax(-1))
    assert sum(found.values()) == pytest.approx(1)
    assert found["products"] > 0.2
    assert found["softmax"] > 0
    assert found["GELU"] == 0


def test_the_peak_of_the_machine_is_of_the_fastest_product(monkeypatch):
    times = iter([0.0, 2.0] * machine.REPEATS + [0.0, 1.0] * machine.REPEATS)
    monkeypatch.setattr(machine, "now", lambda device: next(times))
    ways = {"slow": lambda: None, "fast": lambda: None}
    monkeypatch.setattr(machine, "products", lambda a, b: ways)
    assert machine.peak("float32", "cpu", side=8) == {"flops": 2 * 8**3, "way": "fast"}


def test_every_way_to_a_product_gives_the_product():
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    ways = machine.products(a, b)
    torch.testing.assert_close(ways["torch.matmul"](), a @ b)
    for name in set(ways) - {"torch.matmul"}:
        torch.testing.assert_close(ways[name](), a @ b.T)


def test_paths_of_the_repository_are_right():
    assert (measure.ROOT / "benchmarks" / "worker.py").is_file()
    assert Path(report.ROOT / "Makefile").is_file()
