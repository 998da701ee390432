"""Exact costs: a byte or a launch more is named and fails, less asks for a baseline, and what is lost is no pass."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gate.judge.exact import EXACT, FAILS_STRICT, compare
from gate.measure.costs import exact_costs, requested_bytes
from gate.record.cell import CellRecord, cell_of
from gate.record.files import load_record

pytestmark = pytest.mark.meta

COSTS = {
    "peak_bytes": 20_367_128_576,
    "compilations": 1,
    "graph_breaks": 0,
    "kernel_launches": 1024,
    "synchronisations": 2,
    "padded_token_share": 0.25,
}


CELL = cell_of("fa2_varlen-packed-train-causal-bfloat16-eager-article")


def timed(**changes):
    return CellRecord(**{"cell": CELL, "verdict": "timed", "tokens": [16_215, 15_839]} | COSTS | changes)


def test_the_same_costs_are_no_findings() -> None:
    assert set(COSTS) == set(EXACT)
    assert compare(timed(), timed()) == []
    # However often each batch was run.
    assert compare(timed(tokens=[15_839, 16_215, 15_839]), timed()) == []


@pytest.mark.parametrize("cost", EXACT)
def test_a_cost_that_rose_fails_and_one_that_fell_asks_for_a_baseline(cost: str) -> None:
    least = 1e-9 if cost == "padded_token_share" else 1
    more, less = timed(**{cost: COSTS[cost] + least}), timed()
    (worse,), (better,) = compare(more, less), compare(less, more)
    assert (worse.cost, worse.now, worse.then, worse.kind) == (cost, COSTS[cost] + least, COSTS[cost], "worse")
    assert (better.kind, worse.worse, better.worse) == ("better", True, False)


@pytest.mark.parametrize("cost", EXACT)
def test_a_cost_that_one_side_lacks_is_named(cost: str) -> None:
    lacks = timed(**{cost: None})
    (lost,), (new,) = compare(lacks, timed()), compare(timed(), lacks)
    assert (lost.kind, lost.kind in FAILS_STRICT, lost.worse) == ("lost", True, False)
    assert (new.kind, new.kind in FAILS_STRICT) == ("new", False)
    assert "is not measured now, was" in str(lost)
    assert "not measured before" in str(new)
    assert compare(lacks, lacks) == []


def test_a_cost_that_could_not_be_measured_says_why() -> None:
    (lost,) = compare(timed(kernel_launches=None, unmeasured="the profiler saw no launch of a kernel"), timed())
    assert lost.kind == "lost"
    assert str(lost) == "kernel launches: not measured now, as the profiler saw no launch of a kernel"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, True])
def test_a_cost_that_is_no_number_is_not_compared_in_silence(value: object) -> None:
    odd = timed(kernel_launches=value)
    for head, base in ((odd, timed()), (timed(), odd)):
        (finding,) = compare(head, base)
        assert finding.kind == "lost"
        assert str(finding).startswith("kernel launches: ")
        assert f" has {value!r}, " in str(finding)


def test_other_batches_are_no_ground_to_compare_costs() -> None:
    (finding,) = compare(timed(tokens=[1], peak_bytes=1), timed())
    assert finding.kind in FAILS_STRICT
    assert str(finding) == (
        "other batches: 1 of head's 1 sizes are not on base, 2 of base's 2 not on head; exact costs are not compared"
    )
    (finding,) = compare(timed(tokens=[15_839], peak_bytes=1), timed())
    assert finding.kind == "other work", "head leaves out the largest batch"


def test_a_cell_without_a_time_has_a_verdict_that_says_more() -> None:
    assert compare(timed(verdict="out of memory", peak_bytes=None), timed()) == []
    assert compare(timed(), timed(verdict="wrong")) == []


@pytest.mark.parametrize(
    ("cost", "now", "then", "sentence"),
    [
        ("peak_bytes", 20_410_000_000, 20_370_000_000, "peak memory 20.41 GB, was 20.37 GB (+0.20%)"),
        (
            "peak_bytes",
            20_367_128_577,
            20_367_128_576,
            "peak memory 20,367,128,577, was 20,367,128,576 (+0.000000005%)",
        ),
        ("compilations", 12, 2, "compilations 12, was 2 (+500.0%)"),
        ("graph_breaks", 1, 0, "graph breaks 1, was 0"),
        ("kernel_launches", 1030, 1024, "kernel launches 1,030, was 1,024 (+0.59%)"),
        ("synchronisations", 0, 2, "synchronisations 0, was 2 (-100.0%)"),
        ("padded_token_share", 0.3, 0.25, "padded-token share 30.0%, was 25.0% (+20.0%)"),
    ],
)
def test_findings_are_small_sentences(cost: str, now: float, then: float, sentence: str) -> None:
    (finding,) = compare(timed(**{cost: now}), timed(**{cost: then}))
    assert str(finding) == sentence


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: its allocator is watched")
def test_on_a_gpu_peak_memory_is_what_a_step_asks_for_whatever_is_cached() -> None:
    class Slots:
        num_slots, num_tokens = 4, 3

    def costs() -> dict[str, object]:
        base = requested_bytes("cuda")
        weight = torch.ones(700, 700, device="cuda")

        def step(_: object) -> None:
            (weight @ weight @ weight).sum().item()

        step(None)
        return exact_costs(step, [Slots()], "cuda", base)  # type: ignore[list-item]

    first = costs()
    # Blocks of odd sizes in the cache, one of which is 1 MiB less 512 bytes larger than the product needs.
    blocks = [torch.ones(size, dtype=torch.uint8, device="cuda") for size in (3_008_064, 1_960_000, 700, 5_000_000)]
    del blocks
    assert costs() == first | {"device_busy_ms": pytest.approx(first["device_busy_ms"], rel=1)}
    assert first["synchronisations"] == 1
    # The weight and a product at least.
    assert first["peak_bytes"] >= 2 * 4 * 700 * 700


def test_the_same_code_costs_the_same_in_every_process(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    cells = "sdpa_loop-packed-eval-full-float32-eager-smoke,sdpa_padded-pad_fixed-eval-full-float32-compiled-smoke"
    command = [sys.executable, "-m", "pytest", "-m", "performance", "-n0", "-p", "no:cacheprovider", "--workload=smoke"]
    command += [f"--benchmark-storage=file://{tmp_path / 'store'}", "--steps=1", f"--cells={cells}"]
    records = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.json"
        options = [f"--order-seed={seed}", f"--benchmark-json={path}"]
        run = subprocess.run([*command, *options], cwd=pytestconfig.rootpath, stdout=subprocess.PIPE, text=True)
        assert run.returncode == 0, run.stdout
        records.append(load_record(path).cells)
    base, head = records
    assert set(head) == set(base) != set()
    assert list(head) != list(base), "both orders are the same: choose other seeds"
    assert {cell: list(map(str, compare(head[cell], base[cell]))) for cell in head} == {cell: [] for cell in head}
    assert sorted(one.compilations for one in base.values()) == [0, 1]
