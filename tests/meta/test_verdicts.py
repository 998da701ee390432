"""Each cell gets the verdict that its times deserve, and no doubt passes for a verdict."""

import dataclasses
import math
from typing import get_args

import numpy as np
import pytest

from gate.baseline.report import counts, lines
from gate.baseline.verdicts import CellVerdict, Comparison, Rule, Verdict, fail
from gate.exact import EXACT, Finding, Kind
from gate.records import cell_id
from tests.meta.gate_cells import MACHINE, baseline, key, process, simulated, timed

pytestmark = pytest.mark.meta

CELL = key()
ID = cell_id(CELL)
LOG = math.log(100)


def judged(now, then, *, rule=None, session="s0", scope=None, confirmed=None, machine=MACHINE):
    """The verdict on one cell: `now` and `then` are infos, the latter of five processes."""
    olds = baseline([process([then], hours=number) for number in range(5)])
    comparison = Comparison(
        process([now], session=session, hours=6, machine=machine), olds, scope or [], rule or Rule()
    )
    (found,) = [one for one in comparison.judge(confirmed) if one.cell == cell_id(now["cell"])]
    return found


@pytest.mark.parametrize(
    ("change", "verdict"),
    [(0.0, "same"), (0.005, "same"), (0.05, "regressed"), (-0.05, "improved")],
)
def test_a_change_beyond_noise_and_threshold_is_told(change, verdict):
    olds = baseline([process([timed(CELL)], hours=number) for number in range(2)])
    (found,) = Comparison(process([timed(CELL, LOG + math.log1p(change))], hours=3), olds, []).judge()
    assert found.verdict == verdict
    assert found.change == pytest.approx(change)
    assert found.low < change < found.high


def test_what_cannot_be_told_says_what_could_be_seen():
    olds = baseline([process([timed(CELL)])])
    (found,) = Comparison(process([timed(CELL)], session="s1"), olds, []).judge()
    assert found.verdict == Verdict.CANNOT_TELL
    assert found.why == f"noise hides what is below {found.high:.1%}"
    assert 0.03 < found.high < 0.06
    (wide,) = Comparison(process([timed(CELL)], session="s1"), olds, [], Rule(percent=2)).judge()
    assert wide.verdict == Verdict.SAME


def test_a_real_but_meaningless_change_passes():
    assert judged(timed(CELL, LOG + 0.008), timed(CELL)).verdict == Verdict.SAME
    assert judged(timed(CELL, LOG + 0.008), timed(CELL), rule=Rule(percent=0.5)).verdict == Verdict.REGRESSED
    short = math.log(0.1)
    assert judged(timed(CELL, short + math.log1p(0.15)), timed(CELL, short)).verdict == Verdict.SAME
    assert judged(timed(CELL, short + math.log1p(0.25)), timed(CELL, short)).verdict == Verdict.REGRESSED


@pytest.mark.parametrize(
    ("lost", "verdict", "why"),
    [
        ({"verdict": "out of memory"}, "regressed", "OOM; had a time before"),
        ({"verdict": "wrong", "reason": "logits"}, "regressed", "wrong: logits; had a time before"),
        ({"verdict": "crashed"}, "regressed", "crashed; had a time before"),
        ({"verdict": "too slow", "reason": "as it is"}, "regressed", "too slow: as it is; had a time before"),
        ({"device_ms": [math.nan] * 24}, "cannot tell", "a step time is nan, "),
        ({"device_ms": []}, "cannot tell", "no step was timed (zero rounds)"),
        ({"median_device_ms": 1.0}, "cannot tell", "median_device_ms is 1.0, which its device_ms do not have"),
    ],
)
def test_a_time_that_was_lost_is_no_pass(lost, verdict, why):
    found = judged(timed(CELL) | lost, timed(CELL))
    assert found.verdict == verdict
    assert found.why.startswith(why)
    assert found.fails(strict=True)
    assert found.change is None


def test_a_time_that_was_won_is_new():
    found = judged(timed(CELL), timed(CELL) | {"verdict": "out of memory"})
    assert (found.verdict, found.why) == (Verdict.NEW, "no time in the record (out of memory)")
    lost = timed(CELL) | {"verdict": "out of memory"}
    assert judged(lost, lost).verdict == Verdict.SAME
    broken = timed(CELL) | {"device_ms": [math.nan]}
    assert judged(broken, broken).verdict == Verdict.CANNOT_TELL


def test_a_renamed_cell_is_missing_and_new():
    renamed = key("renamed")
    comparison = Comparison(process([timed(renamed)]), baseline([process([timed(CELL)])]), [ID])
    missing, new = comparison.judge()
    assert (missing.cell, missing.verdict) == (ID, Verdict.MISSING)
    assert (new.cell, new.verdict) == (cell_id(renamed), Verdict.NEW)
    assert missing.fails(strict=True)
    assert not missing.fails(strict=False)


FAILING = {True: (Verdict.REGRESSED, Verdict.MISSING, Verdict.CANNOT_TELL), False: (Verdict.REGRESSED,)}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("verdict", Verdict)
def test_each_verdict_fails_a_run_as_it_must(verdict, strict):
    """As docs/gate.md has it; beside a cell that is the same, and alone."""
    one, same = CellVerdict("one", verdict, ""), CellVerdict("same", Verdict.SAME, "")
    fails = verdict in FAILING[strict]
    assert fail([same, one], strict=strict) is fails
    assert counts([same, one], strict=strict).startswith("FAILED: " if fails else "passed: ")
    compared = verdict in (Verdict.REGRESSED, Verdict.IMPROVED, Verdict.SAME)
    assert fail([one], strict=strict) is (fails or (strict and not compared))
    assert ("passed" in counts([one], strict=strict)) is (compared and not fails)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", get_args(Kind))
def test_each_kind_of_a_changed_cost_fails_a_run_as_it_must(kind, strict):
    finding = Finding("peak_bytes", 1.0, 2.0, kind)
    found = CellVerdict("one", Verdict.REGRESSED if finding.worse else Verdict.SAME, "", findings=(finding,))
    assert fail([found], strict=strict) is (kind == "worse" or (strict and kind in ("lost", "other work")))


def gpu(**state):
    return {"gpu_before": state, "gpu_after": state}


@pytest.mark.parametrize(
    ("now", "then", "why"),
    [
        (
            gpu(throttle_reasons=["hw_thermal_slowdown"]),
            {},
            "throttled in another way: hw_thermal_slowdown now, not then",
        ),
        ({}, gpu(throttle_reasons=["hw_slowdown"]), "throttled in another way: not now, hw_slowdown then"),
        (gpu(other_processes=1), {}, "1 other process on the GPU now"),
        ({}, gpu(other_processes=2), "2 other processes on the GPU then"),
        (gpu(sm_clock_mhz=1000), gpu(sm_clock_mhz=1980), "other clocks: 1000 MHz now, 1980 MHz then"),
        ({"tokens": [5] * 24}, {}, "other batches: sizes of 5 tokens in all now, of 24,276 then"),
        ({"device_ms": [100.0] * 4, "median_device_ms": 100.0}, {}, "too few samples: 4 steps now"),
    ],
)
def test_a_time_under_other_conditions_is_not_judged(now, then, why):
    found = judged(timed(CELL, LOG + 0.5) | now, timed(CELL) | then)
    assert found.verdict == Verdict.CANNOT_TELL
    assert found.why.startswith(why)


def test_a_power_cap_that_is_touched_is_no_throttling():
    capped = gpu(throttle_reasons=["sw_power_cap", "gpu_idle"])
    assert judged(timed(CELL) | capped, timed(CELL)).verdict == Verdict.SAME


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"device": "NVIDIA A100"}, "another device: NVIDIA A100 now, NVIDIA H100 80GB HBM3 then"),
        ({"power_limit_w": 500.0}, "power limit (W) is 500 now, was 700 then"),
    ],
)
def test_another_device_or_setting_is_not_judged(change, why):
    found = judged(timed(CELL), timed(CELL), machine=MACHINE | change)
    assert (found.verdict, found.why) == (Verdict.CANNOT_TELL, why)


def test_a_machine_that_is_slower_itself_is_not_the_code():
    slow = {"matmul_ms": [0.208] * 12, "copy_ms": [0.104] * 12}
    found = judged(timed(CELL, LOG + math.log(1.05), control=slow), timed(CELL))
    assert found.verdict == Verdict.CANNOT_TELL
    assert found.why == "the machine itself moved: the product and the copy beside it by +4.0%"
    fast = {"matmul_ms": [0.192] * 12, "copy_ms": [0.096] * 12}
    assert judged(timed(CELL, LOG + math.log(1.05), control=fast), timed(CELL)).verdict == Verdict.REGRESSED


def test_exact_costs_fail_and_ask_for_a_new_baseline():
    now, then = timed(CELL, compilations=3), timed(CELL, compilations=2)
    worse = judged(now, then)
    assert (worse.verdict, worse.why) == (Verdict.REGRESSED, "compilations 3, was 2 (+50.0%)")
    better = judged(then, now)
    assert better.verdict == Verdict.IMPROVED
    assert better.why.endswith("a new baseline would hold it to that")
    other = MACHINE | {"versions": {"torch": "2.14.0"}}
    told = judged(now, then, machine=other)
    assert (told.verdict, told.why, told.findings) == (Verdict.SAME, "compilations 3, was 2 (+50.0%)", ())
    elsewhere = MACHINE | {"versions": MACHINE["versions"] | {"hypothesis": "99"}}
    assert judged(now, then, machine=elsewhere).verdict == Verdict.REGRESSED
    # A newest process that ran out of memory measured nothing.
    olds = baseline([process([then]), process([timed(CELL) | {"verdict": "out of memory"}], hours=1)])
    (found,) = Comparison(process([now], hours=2), olds, [ID]).judge()
    assert found.verdict == Verdict.REGRESSED


#: How the time moved (log), what else the cell has now, and the verdict by its time alone.
TIMES = {
    "improved": (-0.05, {}, Verdict.IMPROVED),
    "same": (0.0, {}, Verdict.SAME),
    "regressed": (0.05, {}, Verdict.REGRESSED),
    "inconclusive": (0.05, {"gpu_after": {"throttle_reasons": ["hw_slowdown"]}}, Verdict.CANNOT_TELL),
    "none": (0.0, {"device_ms": [math.nan] * 24}, Verdict.CANNOT_TELL),
}


@pytest.mark.parametrize("cost", EXACT)
@pytest.mark.parametrize("moved", [1, 0, -1])
@pytest.mark.parametrize("time", TIMES)
def test_a_cost_that_rose_fails_whatever_the_time_and_one_that_fell_hides_no_time(time, moved, cost):
    change, info, by_time = TIMES[time]
    costs = dict.fromkeys(EXACT, 2)
    found = judged(timed(CELL, LOG + change, **costs | {cost: 2 + moved}, **info), timed(CELL, **costs))
    fell = Verdict.IMPROVED if by_time == Verdict.SAME else by_time
    assert found.verdict == {1: Verdict.REGRESSED, 0: by_time, -1: fell}[moved]
    assert found.fails(strict=False) == (found.verdict == Verdict.REGRESSED)
    assert len(found.findings) == abs(moved)


def test_suspects_are_judged_by_their_new_times():
    now, then = timed(CELL, LOG + 0.05), timed(CELL)
    assert judged(now, then, confirmed={ID: [timed(CELL, LOG)] * 2}).verdict == Verdict.SAME
    again = judged(now, then, confirmed={ID: [timed(CELL, LOG + 0.06)] * 2})
    assert again.verdict == Verdict.REGRESSED
    assert again.change == pytest.approx(math.expm1(0.06))
    assert again.why == "timed again in 2 processes"
    crashed, fast = timed(CELL) | {"verdict": "crashed"}, timed(CELL, LOG)
    lost = judged(now, then, confirmed={ID: [fast, crashed, fast]})
    assert (lost.verdict, lost.why) == (Verdict.CANNOT_TELL, "slower, and not confirmed: crashed")
    assert judged(now, then, confirmed={ID: [crashed] * 3}).verdict == Verdict.REGRESSED
    untold = judged(now, then, confirmed={ID: []})
    assert (untold.verdict, untold.why) == (
        Verdict.CANNOT_TELL,
        "slower, and not confirmed: no process timed it again",
    )
    busy = timed(CELL, LOG + 0.06, gpu_after={"other_pids": [7, 8], "other_processes": 2})
    beside = judged(now, then, confirmed={ID: [busy] * 3})
    assert (beside.verdict, "2 other processes" in beside.why) == (Verdict.CANNOT_TELL, True)
    assert judged(now, then, confirmed={ID: []}).why == "slower, and not confirmed: no process timed it again"


def test_only_cells_that_seem_slower_are_suspects():
    faster, slower = key("backend1"), key("backend2")
    then = baseline([process([timed(CELL), timed(faster), timed(slower)])])
    now = process([timed(CELL), timed(faster, LOG - 0.1), timed(slower, LOG + 0.1)])
    assert Comparison(now, then, []).suspects() == [cell_id(slower)]


def wall(log_ms, *, pace=3.0, waited=0.0, **changes):
    times = [ms + waited for ms in timed(CELL, log_ms)["device_ms"]]
    return (
        timed(CELL)
        | {
            "device_ms": None,
            "host_ms": None,
            "wall_ms": times,
            "median_wall_ms": float(np.median(times)),
            "waited_ms": [waited] * len(times),
            "product_ms": [pace] * len(times),
            "block_ms": [pace] * len(times),
        }
        | changes
    )


def test_a_cpu_is_compared_in_its_own_pace():
    then = wall(LOG)
    assert judged(wall(LOG + 0.2, pace=3 * math.exp(0.2), waited=40.0), then).verdict == Verdict.SAME
    # The pace of a machine that is half as fast is not exact enough.
    assert judged(wall(LOG + 0.7, pace=3 * math.exp(0.7)), then).verdict == Verdict.CANNOT_TELL
    assert judged(wall(LOG + 0.2), then).verdict == Verdict.REGRESSED
    assert judged(wall(LOG + 0.7, pace=3 * math.exp(0.5), waited=40.0), then).change == pytest.approx(math.expm1(0.2))
    # A record from before either was kept is compared without.
    assert judged(wall(LOG + 0.2), then | {"block_ms": None, "waited_ms": None}).change == pytest.approx(
        math.expm1(0.2)
    )


def test_a_pace_of_another_torch_is_no_measure():
    """A slower torch slows the work beside the steps down too: the wall's clock is left, and its larger noise."""
    other = MACHINE | {"versions": MACHINE["versions"] | {"torch": "9.9"}}
    then, now = wall(LOG), wall(LOG + 0.7, pace=3 * math.exp(0.7))
    assert judged(now, then, machine=other).change == pytest.approx(math.expm1(0.7))
    assert judged(now, then).change == pytest.approx(0)


def test_a_machine_of_another_pace_widens_the_interval():
    same, other = (judged(wall(LOG + moved, pace=3 * math.exp(moved)), wall(LOG)) for moved in (0.0, 0.3))
    assert [same.change, other.change] == pytest.approx([0, 0])
    assert other.high > 1.5 * same.high


def in_passes(*levels):
    """A cell of a CPU whose batches were timed once at each level."""
    once = wall(LOG)
    repeated = {name: once[name] * len(levels) for name in ("waited_ms", "product_ms", "block_ms", "tokens")}
    times = [ms * math.exp(level) for level in levels for ms in once["wall_ms"]]
    batches = [*range(len(once["wall_ms"]))] * len(levels)
    return once | repeated | {"wall_ms": times, "median_wall_ms": float(np.median(times)), "batches": batches}


@pytest.mark.parametrize("moved", ["then", "now"])
def test_a_cell_that_moved_within_a_process_may_be_as_far_apart_in_the_next(moved):
    """Its machine got slower in a way that the work beside it did not tell: another such level is no slower code."""
    steady, unsteady = in_passes(0.0, 0.0, 0.0), in_passes(0.0, 0.0, 0.23)
    then, now = (unsteady, steady) if moved == "then" else (steady, unsteady)
    now = now | {"wall_ms": [ms * 1.18 for ms in now["wall_ms"]], "median_wall_ms": now["median_wall_ms"] * 1.18}
    found = judged(now, then, confirmed={ID: [now] * 3})
    assert (found.verdict, found.change) == (Verdict.SAME, pytest.approx(0.18))
    assert "within the noise of 29.7%, as it moved by 14.2% within a process; timed again" in found.why
    found = judged(now, then, confirmed={ID: [now] * 3}, rule=Rule(percent=5))
    assert found.why.startswith("noise hides what is below 29.7%, as it moved by 14.2% within a process")
    assert found.verdict == Verdict.CANNOT_TELL
    found = judged(in_passes(0.18, 0.18, 0.18), steady)
    assert (found.verdict, "within a process" in found.why) == (Verdict.REGRESSED, False)


@pytest.mark.parametrize("way", [1, -1])
def test_a_pace_that_moved_alone_is_no_verdict_on_the_step(way):
    """The step took as long as before; the work beside it was slow then, or now, for whatever reason."""
    found = judged(wall(LOG + 0.01, pace=3 * math.exp(-0.3 * way)), wall(LOG))
    assert found.verdict == Verdict.CANNOT_TELL
    assert found.why == "the work beside it moved and not the step: +1.0% by the wall clock"
    assert judged(wall(LOG + 0.08 * way, pace=3 * math.exp(-0.3 * way)), wall(LOG)).verdict in (
        Verdict.REGRESSED,
        Verdict.IMPROVED,
    )


@pytest.mark.parametrize(("sessions", "session_sd"), [(1, 0.0), (3, 0.015)])
def test_unchanged_code_is_called_slower_in_at_most_one_run_of_twenty(sessions, session_sd):
    rng = np.random.default_rng(7)
    alarms, runs = 0, 25
    for _ in range(runs):
        # A session's effects are its own: one draw for its processes, and for the new one where it is of the last.
        olds = [simulated(rng, 5, session=f"s{number}", session_sd=session_sd) for number in range(sessions)]
        new = "s0" if sessions == 1 else "new"
        (now,) = simulated(rng, 1, session=new, hours=1, session_sd=0.0 if sessions == 1 else session_sd)
        comparison = Comparison(now, baseline([one for some in olds for one in some]), [])
        alarms += any(one.verdict == Verdict.REGRESSED for one in comparison.judge())
    assert alarms / runs <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)


def test_a_slower_cell_is_found_and_no_other():
    rng = np.random.default_rng(8)
    found, others, runs = 0, 0, 10
    for _ in range(runs):
        olds = baseline(simulated(rng, 5, session="s0"))
        slower = cell_id(key("backend3"))
        (now,) = simulated(rng, 1, session="s0", hours=1, slower={slower: math.log1p(0.05)})
        (again,) = simulated(rng, 1, session="s0", hours=1, slower={slower: math.log1p(0.05)})
        comparison = Comparison(now, olds, [])
        suspects = {cell: [again.cells[cell]] for cell in comparison.suspects()}
        named = {one.cell for one in comparison.judge(suspects) if one.verdict == Verdict.REGRESSED}
        found += slower in named
        others += bool(named - {slower})
    assert found == runs
    assert others / runs <= 0.05


def test_the_worst_comes_first():
    then = baseline([process([timed(key(backend)) for backend in ("backend1", "backend2", "backend3")])])
    now = process([timed(key("backend1")), timed(key("backend2"), LOG + 0.1), timed(key("backend3"), LOG + 0.3)])
    found = Comparison(now, then, [ID]).judge()
    assert [one.cell.partition("-")[0] for one in found] == ["backend3", "backend2", "backend0", "backend1"]
    assert dataclasses.asdict(found[0])["verdict"] == "regressed"


@pytest.mark.parametrize(
    ("sessions", "session", "told"), [(1, "elsewhere", True), (1, "s0", False), (5, "elsewhere", False)]
)
def test_what_is_only_assumed_between_sessions_is_told_with_a_way_out(sessions, session, told):
    rng = np.random.default_rng(8)
    olds = [one for n in range(sessions) for one in simulated(rng, 5, session=f"s{n}", hours=n, session_sd=0.004)]
    (now,) = simulated(rng, 1, session=session, hours=1)
    comparison = Comparison(now, baseline(olds), [])
    text = "\n".join(lines(comparison, comparison.judge(), strict=False))
    assert ("five or more in all (gate promote --add), or use gate ab" in text) is told
