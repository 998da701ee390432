"""A run beside a baseline: nothing passes unjudged in silence, and only live pairs convict a cell that seems slower."""

import math

import pytest

from gate.baseline.screen import Screening, change_of
from gate.judge.exact import EXACT, Finding
from gate.judge.verdicts import CellVerdict, Threshold, Verdict, fail
from tests.meta.gate_cells import BATCHES, MACHINE, baseline, key, record, timed

pytestmark = pytest.mark.meta

CELL = timed().id
WHY_NOT = "no commit"


def screening(head, *bases, machine=MACHINE, scope=()):
    bases = [record(*(base if isinstance(base, tuple) else (base,)), hours=n) for n, base in enumerate(bases)]
    heads = head if isinstance(head, tuple) else (head,)
    return Screening(record(*heads, hours=9, machine=machine), baseline(*bases), scope, Threshold(1.0))


def judged(head, *bases, settled=None, **options):
    """The verdict of the one cell of the run."""
    (found,) = screening(head, *bases, **options).verdicts({CELL: settled} if settled else {}, {CELL: WHY_NOT})
    return found


def test_each_batch_is_compared_with_itself_whatever_the_order_and_the_passes():
    base = timed()
    order = [*reversed(range(BATCHES))] * 2
    times = [base.device_ms[batch] * 1.03 for batch in order]
    head = timed(batches=order, device_ms=times, tokens=[1000 + batch for batch in order])
    assert change_of(head, [base]) == pytest.approx(math.log(1.03))
    assert change_of(base, [head]) == pytest.approx(-math.log(1.03))
    assert change_of(head, [base, timed(103.0)]) == pytest.approx(math.log(1.03) / 2)
    times[:3] = [1e4, 1e-4, 1e4]
    assert change_of(timed(batches=order, device_ms=times), [base]) == pytest.approx(math.log(1.03))


def test_what_launches_add_counts_where_both_sides_know_it():
    assert change_of(timed(host_deficit_ms=50.0), [timed()]) == 0
    assert change_of(timed(host_deficit_ms=50.0), [timed(host_deficit_ms=0.0)]) == pytest.approx(
        math.log(1.5), rel=0.01
    )
    with pytest.raises(ValueError, match="timed no batch in common"):
        change_of(timed(batches=[batch + 50 for batch in range(BATCHES)]), [timed()])


@pytest.mark.parametrize(
    ("ms", "verdict", "why"),
    [
        (100.3, Verdict.SAME, ""),
        (100.8, Verdict.SAME, "+0.8% beside the record"),
        (103.2, Verdict.INCONCLUSIVE, "+3.2% beside the record; not settled: no commit"),
        (124.0, Verdict.INCONCLUSIVE, "+24.0% beside the record; not settled: no commit"),
        (126.0, Verdict.REGRESSED, "+26.0% beside the record: too large for noise, even without a live pair"),
        (97.0, Verdict.SAME, "-3.0% beside the record"),
    ],
)
def test_a_change_is_told_and_convicts_by_the_record_alone_only_where_no_noise_explains_it(ms, verdict, why):
    found = judged(timed(ms), timed(), timed())
    assert (found.verdict, found.why, found.change) == (verdict, why, None)
    assert found.head_ms == pytest.approx(ms)


def test_a_change_must_pass_both_thresholds_and_a_shared_cpu_moves_further():
    assert judged(timed(0.55), timed(0.5)).verdict == Verdict.INCONCLUSIVE
    assert judged(timed(0.515), timed(0.5)).verdict == Verdict.SAME, "3%, which is 15 us"

    def cpu(ms):
        return timed(ms, device_ms=None, wall_ms=timed(ms).device_ms)

    assert judged(cpu(190.0), cpu(100.0)).verdict == Verdict.INCONCLUSIVE
    assert judged(cpu(210.0), cpu(100.0)).verdict == Verdict.REGRESSED


def test_only_comparable_cells_that_seem_slower_are_suspects_and_the_live_verdict_on_them_holds():
    cells = {mode: key(mode, "eval") for mode in ("slower", "same", "faster", "throttled", "new", "lost")}
    ms = {"slower": 103.0, "faster": 90.0, "throttled": 103.0, "new": 200.0}
    odd = {
        "throttled": {"gpu_after": {"throttle_reasons": ["hw_slowdown"]}},
        "lost": {"verdict": "out of memory"},
    }
    heads = tuple(timed(ms.get(name, 100.0), cell=cell, **odd.get(name, {})) for name, cell in cells.items())
    bases = tuple(timed(cell=cell) for name, cell in cells.items() if name != "new")
    found = screening(heads, bases)
    slower = timed(cell=cells["slower"]).id
    assert found.suspects == [slower]
    for verdict in (Verdict.REGRESSED, Verdict.SAME):
        live = CellVerdict(slower, verdict, "by 2 fresh pairs")
        assert live in found.verdicts({slower: live}, {})


@pytest.mark.parametrize("verdict", ["out of memory", "too slow", "wrong", "failed", "crashed"])
def test_a_time_that_was_lost_regressed_and_why_is_told(verdict):
    found = judged(timed(verdict=verdict, reason="so"), timed(verdict="out of memory"), timed())
    assert (found.verdict, found.why) == (Verdict.REGRESSED, f"{verdict}: so; the record has a time")


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (timed(device_ms=[math.nan] * BATCHES), "a step time is nan"),
        (timed(device_ms=[], batches=[]), "zero rounds"),
        (timed(device_ms=[0.0] * BATCHES), "a step time is 0.0"),
        (timed(batches=[0]), "24 step times for 1 batch numbers"),
    ],
)
def test_a_time_that_is_none_is_no_pass(head, why):
    assert (found := judged(head, timed())).verdict == Verdict.REGRESSED
    assert why in found.why
    assert (found := judged(timed(), head)).verdict == Verdict.INCONCLUSIVE
    assert why in found.why


def test_without_a_time_on_both_sides_only_out_of_memory_is_the_same():
    oom, wrong = timed(verdict="out of memory"), timed(verdict="wrong")
    assert judged(oom, oom).verdict == Verdict.SAME
    for head, base in ((wrong, wrong), (oom, wrong), (wrong, oom)):
        assert judged(head, base).verdict == Verdict.INCONCLUSIVE
    assert judged(timed(), oom).verdict == Verdict.NEW


def test_a_renamed_cell_is_missing_and_new():
    renamed = timed(cell=key("fa3_varlen"))
    found = screening(renamed, timed(), scope=[CELL]).verdicts({}, {})
    assert [(one.cell, one.verdict) for one in found] == [(CELL, Verdict.MISSING), (renamed.id, Verdict.NEW)]
    assert fail(found, strict=True)
    assert [one.verdict for one in screening(renamed, timed()).verdicts({}, {})] == [Verdict.NEW], "out of scope"


def gpu(**state):
    return timed(gpu_after=state)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (gpu(throttle_reasons=["hw_slowdown"]), "throttling differs: hw_slowdown on head, none on base"),
        (gpu(other_processes=2), "2 other processes on head's GPU"),
        (gpu(sm_clock_mhz=1500), "other SM clock rates: 1500 MHz on head, 1980 MHz on base"),
        (timed(tokens=[7] * BATCHES), "other batches: their sizes add up to 7 tokens on head"),
        (timed(batches=[batch + 50 for batch in range(BATCHES)]), "other batches: head and base have none in common"),
        (timed(device_ms=[100.0] * 4, batches=[0, 1, 2, 3]), "too few steps: 4 on head, at least 5"),
        (
            timed(device_ms=None, wall_ms=timed().wall_ms),
            "other timers: the wall clock on head, the device clock on base",
        ),
        ({"device": "NVIDIA H200"}, "another device: NVIDIA H200 on head, NVIDIA H100 80GB HBM3 on base"),
        ({"power_limit_w": 500.0, "max_sm_clock_mhz": 1500}, "power limit (W) is 500 on head, 700 on base"),
    ],
)
def test_a_time_under_other_conditions_is_inconclusive(head, why):
    machine = head if isinstance(head, dict) else {}
    base = gpu(sm_clock_mhz=1980, throttle_reasons=["sw_power_cap"])
    found = judged(timed() if machine else head, base, machine=MACHINE | machine)
    assert found.verdict == Verdict.INCONCLUSIVE
    assert why in found.why
    assert found.fails(strict=True)


@pytest.mark.parametrize("cost", EXACT)
def test_a_cost_that_rose_fails_whatever_the_time_and_one_that_fell_hides_no_time(cost):
    for ms, by_time in ((90.0, Verdict.SAME), (100.0, Verdict.SAME), (103.0, Verdict.INCONCLUSIVE)):
        worse, better, lost = (judged(timed(ms, **{cost: value}), timed(**{cost: 1})) for value in (2, 0, None))
        assert worse.verdict == Verdict.REGRESSED
        assert better.verdict == (Verdict.IMPROVED if by_time == Verdict.SAME else by_time)
        assert lost.verdict == Verdict.INCONCLUSIVE
        assert [one.findings[0].kind for one in (worse, better, lost)] == ["worse", "better", "lost"]
        assert judged(timed(ms, **{cost: 1}), timed()).verdict == by_time, "a cost that base lacks is new"


def test_costs_are_judged_beside_a_live_verdict_and_not_under_other_packages_or_on_another_device():
    live = CellVerdict(CELL, Verdict.SAME, findings=(Finding("graph_breaks", 2, 1, "worse"),))
    assert judged(timed(103.0), timed(), settled=live).verdict == Verdict.REGRESSED
    head, base = timed(peak_bytes=2), timed(peak_bytes=1)
    other = judged(head, base, machine=MACHINE | {"versions": {"torch": "2.14.0"}})
    assert (other.verdict, other.findings) == (Verdict.SAME, ())
    assert "peak memory" in other.why
    assert not judged(head, base, machine=MACHINE | {"device": "NVIDIA H200"}).findings
    throttled = timed(peak_bytes=2, gpu_after={"throttle_reasons": ["hw_slowdown"]})
    assert judged(throttled, base).verdict == Verdict.REGRESSED, "a throttled device asks for no more memory"


def test_costs_are_those_of_the_newest_process():
    old, new = timed(peak_bytes=2), timed(peak_bytes=1)
    assert judged(new, old, new).verdict == Verdict.SAME
    assert judged(old, old, new).verdict == Verdict.REGRESSED


@pytest.mark.parametrize("verdict", Verdict)
def test_each_verdict_fails_a_run_as_it_must(verdict):
    found = [CellVerdict(CELL, verdict), CellVerdict("another", Verdict.SAME)]
    fails = verdict == Verdict.REGRESSED
    assert fail(found, strict=False) == fails
    assert fail(found, strict=True) == (fails or verdict in (Verdict.MISSING, Verdict.INCONCLUSIVE))


def test_the_worst_comes_first():
    heads = tuple(timed(ms, cell=key(name)) for name, ms in (("a", 100.0), ("b", 103.0), ("c", 200.0)))
    found = screening(heads, tuple(timed(cell=key(name)) for name in "abc")).verdicts(
        {}, {timed(cell=key(name)).id: WHY_NOT for name in "abc"}
    )
    assert [one.verdict for one in found] == [Verdict.REGRESSED, Verdict.INCONCLUSIVE, Verdict.SAME]
    assert [one.cause is None for one in found] == [False, True, True]
