"""A step that waited for a slow host tells nothing of the code; any other does."""

import math
import os
import statistics
import time

import pytest
import torch

from gate.baseline.report import lines
from gate.baseline.verdicts import Comparison, Verdict
from gate.cause import host_bound
from gate.estimates import estimate
from gate.host import STEP_LISTS, calm_ms, held_share, held_up, slow_host, waits_mostly, without_held_up
from gate.records import cell_id
from gate.timing import StepTimer
from tests.meta.gate_cells import MACHINE, baseline, key, process, timed
from tests.performance import pace as pace_module
from tests.performance.pace import REST, HostPace, allowed, move, told

pytestmark = pytest.mark.meta

CELL, OTHER = key(), key("backend1")
ID = cell_id(CELL)
LOG = math.log(100)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: events time its steps")


def beside(cell=CELL, log_ms=LOG, *, pace=0.2, held=0.0):
    """A cell beside a host of this pace, which held up this share of its steps."""
    info = timed(cell, log_ms)
    steps = info["device_ms"]
    leads = [0.01 * ms if place < held * len(steps) else ms for place, ms in enumerate(steps)]
    return info | {"lead_ms": leads, "host_pace_ms": [pace] * len(steps)}


def judged(now, thens, confirmed=None):
    """The comparison of one process with processes of its session; in each the host is calm beside another cell."""
    calm = beside(OTHER)
    olds = baseline([process([then, calm], hours=number) for number, then in enumerate(thens)])
    comparison = Comparison(process([now, calm], hours=6), olds, [])
    (found,) = [one for one in comparison.judge(confirmed) if one.cell == ID]
    return comparison, found


def test_only_steps_that_wait_for_a_slow_host_are_none() -> None:
    assert held_share(beside(held=0.5)) == 0.5
    assert calm_ms([beside(), beside(pace=0.3), timed(CELL)]) == 0.2
    assert slow_host(beside(pace=0.3, held=0.5), 0.2) == (
        "the host was slow and held up 50% of the steps: its own work took 1.5 times as long"
    )
    assert slow_host(beside(pace=0.3), 0.2) == ""
    assert slow_host(beside(held=1.0), 0.2) == ""
    # As many steps are cut off as the slowest ones.
    assert slow_host(beside(pace=0.3, held=1 / 6), 0.2) == ""


def test_the_limits_are_those_that_an_h100_showed() -> None:
    # 75 us are slow beside a calmest of 52 to 60, 65 are not; a fifth of a step left is held up, a third is not.
    assert slow_host(beside(pace=0.075, held=1.0), 0.058)
    assert not slow_host(beside(pace=0.065, held=1.0), 0.054)
    steps = beside()["device_ms"]
    fifth, third = (beside(pace=0.1) | {"lead_ms": [share * ms for ms in steps]} for share in (0.2, 0.33))
    assert slow_host(fifth, 0.055)
    assert not slow_host(third, 0.055)


def test_what_a_slow_host_held_up_is_left_out_while_enough_remains() -> None:
    quarter, third = (beside(pace=0.3, held=share) for share in (1 / 4, 1 / 3))
    assert held_up(quarter, 0.2) == [True] * 6 + [False] * 18
    assert held_up(third, 0.2) is None
    assert held_up(beside(held=1 / 4), 0.2) == held_up(beside(pace=0.3), 0.2) == []
    # However often a batch is timed: it is the steps that count.
    twice = quarter | {"batches": [*range(12), *range(12)]}
    assert held_up(twice, 0.2) == [True] * 6 + [False] * 18
    assert held_up(third | {"batches": [*range(12), *range(12)]}, 0.2) is None
    few = quarter | {"batches": [batch % 9 for batch in range(24)]}
    assert held_up(few, 0.2) is None


def test_both_sides_lose_the_steps_that_a_slow_host_held_up_on_one() -> None:
    calm, slow = beside(), beside(pace=0.3, held=1 / 4)
    later = slow | {"lead_ms": slow["lead_ms"][::-1]}
    for sides, left in (((calm, slow), slice(6, None)), ((slow, later), slice(6, 18)), ((calm, calm), slice(None))):
        found = without_held_up(sides, (0.2, 0.2))
        assert [{key: one[key] for key in STEP_LISTS} for one in found] == [
            {key: one[key][left] for key in STEP_LISTS} for one in sides
        ]
    # In another order a side loses its own.
    turned = calm | {"batches": [*range(24)][::-1]}
    assert [len(one["device_ms"]) for one in without_held_up((slow, turned), (0.2, 0.2))] == [18, 24]


def spoilt(*, held=1 / 4, **changes):
    """A cell whose first steps took three times as long beside a slow host that held them up."""
    info = beside(pace=0.35, held=held, **changes)
    times = [ms * (1 if lead > ms / 2 else 3) for ms, lead in zip(info["device_ms"], info["lead_ms"], strict=True)]
    leads = [0.01 if lead < ms / 2 else lead for ms, lead in zip(info["device_ms"], info["lead_ms"], strict=True)]
    return info | {"device_ms": times, "median_device_ms": statistics.median(times), "lead_ms": leads}


def test_a_time_of_what_is_left_is_compared_batch_by_batch() -> None:
    calm, slow = estimate(beside()), estimate(spoilt(), calm_ms=0.2, partial=True)
    assert slow.steps == 18
    assert slow.held_up.startswith("the host was slow and held up 25% of the steps")
    assert slow.over(calm) == pytest.approx(0) == -calm.over(slow)
    assert estimate(spoilt(), calm_ms=0.2) == slow.held_up


@pytest.mark.parametrize("lost", [{"lead_ms": None}, {"host_pace_ms": None}, {"lead_ms": [1.0]}, {"host_pace_ms": [0]}])
def test_what_was_not_read_doubts_nothing(lost) -> None:
    assert slow_host(beside(pace=0.3, held=1.0) | lost, 0.2) == ""


def test_a_time_that_a_slow_host_made_is_timed_again() -> None:
    slow = beside(log_ms=LOG + 0.3, pace=0.35, held=1.0)
    comparison, alone = judged(slow, [beside()] * 5)
    assert comparison.suspects() == [ID]
    assert alone.verdict == Verdict.CANNOT_TELL
    assert alone.why.startswith("the host was slow and held up 100% of the steps")
    assert judged(slow, [beside()] * 5, {ID: [slow, slow]})[1].verdict == Verdict.CANNOT_TELL
    assert judged(slow, [beside()] * 5, {ID: [slow, beside()]})[1].verdict == Verdict.SAME
    slower = beside(log_ms=LOG + 0.05)
    assert judged(slow, [beside()] * 5, {ID: [slow, slower]})[1].verdict == Verdict.REGRESSED


def test_the_cause_is_that_of_a_time_which_no_slow_host_made() -> None:
    full = spoilt(held=1.0)
    full["host_ms"] = full["device_ms"]
    slower = beside(log_ms=LOG + 0.05) | {"compilations": None}
    _, found = judged(full | {"compilations": 2}, [beside() | {"compilations": 2}] * 5, {ID: [full, slower]})
    assert found.verdict == Verdict.REGRESSED
    assert found.cause.kind == "device"
    olds = [beside() | {"compilations": 2}] * 4 + [full | {"compilations": 1}]
    _, found = judged(beside(log_ms=LOG + 0.05) | {"compilations": 2}, olds)
    assert found.cause.kind == "recompiled"
    _, found = judged(beside(log_ms=LOG + 0.05), [*[beside()] * 4, full])
    assert found.cause.kind == "device"


def test_what_costs_more_is_red_beside_a_slow_host_too() -> None:
    slow = beside(log_ms=LOG + 0.3, pace=0.35, held=1.0) | {"compilations": 4}
    _, found = judged(slow, [beside() | {"compilations": 2}] * 5)
    assert found.verdict == Verdict.REGRESSED
    assert "compilations 4, was 2" in found.why


def test_all_cells_that_are_judged_share_the_family() -> None:
    slow = beside(log_ms=LOG + 0.3, pace=0.35, held=1.0)
    alone, _ = judged(slow, [beside()] * 5)
    both, _ = judged(beside(), [beside()] * 5)
    assert alone._timed == both._timed == 2


def test_another_torch_has_another_pace() -> None:
    new = MACHINE | {"versions": {"torch": "2.14.0"}}
    olds = baseline([process([beside(pace=0.2)], hours=number) for number in range(5)])
    now = process([beside(pace=0.3, held=1.0)], hours=6, machine=new)
    assert Comparison(now, olds, []).suspects() == []


@pytest.mark.parametrize("now", [{"held": 1.0}, {"pace": 0.35}])
def test_slower_code_is_slower_beside_a_calm_host_and_on_the_device_beside_a_slow_one(now) -> None:
    comparison, found = judged(beside(log_ms=LOG + 0.05, **now), [beside(held=now.get("held", 0.0))] * 5)
    assert comparison.suspects() == [ID]
    assert found.verdict == Verdict.REGRESSED


@pytest.mark.parametrize(("held", "verdict"), [(1.0, Verdict.CANNOT_TELL), (0.0, Verdict.REGRESSED)])
def test_what_waits_for_the_host_is_noisier_than_two_processes_show(held, verdict) -> None:
    slower = beside(log_ms=LOG + 0.03, held=held)
    comparison, found = judged(slower, [beside(held=held)] * 2)
    assert comparison.group(ID)[0] == ("host" if held else "device")
    assert found.verdict == verdict


def test_the_noise_of_cells_that_wait_for_the_host_is_told_apart() -> None:
    comparison, _ = judged(beside(held=1.0), [beside(held=1.0)] * 2)
    told = [line for line in lines(comparison, comparison.judge(), strict=False) if line.startswith("noise, ")]
    assert [line.partition(":")[0] for line in told] == [
        "noise, train eager, waiting for the host",
        "noise, train eager",
    ]


def test_a_cell_waits_for_the_host_where_it_does_in_most_processes() -> None:
    assert waits_mostly([beside(held=1.0), beside(held=1.0), beside()])
    assert not waits_mostly([beside(held=1.0), beside(), timed(CELL)])
    assert not waits_mostly([timed(CELL)])


def test_a_slow_host_in_the_baseline_does_not_pass_for_noise() -> None:
    slow = beside(log_ms=LOG + 0.3, pace=0.35, held=1.0)
    _, found = judged(beside(log_ms=LOG + 0.05), [beside(), beside(), slow, beside(), beside()])
    assert found.verdict == Verdict.REGRESSED
    assert found.change == pytest.approx(math.expm1(0.05))
    _, found = judged(beside(), [slow] * 5)
    assert found.verdict == Verdict.CANNOT_TELL
    assert found.why.startswith("no time in the record (the host was slow")


def test_who_holds_a_step_up_is_told_from_what_the_device_has_left() -> None:
    assert host_bound(beside(held=1.0)) is True
    assert host_bound(beside()) is False


def test_the_fastest_of_a_few_attempts_is_the_pace(monkeypatch) -> None:
    attempts = iter([9.0, 2.0, 1.0, 3.0, 5.0, 4.0, 6.0, 7.0])
    monkeypatch.setattr(HostPace, "_dispatched_ms", lambda _: next(attempts))
    pace = HostPace(cores=[])
    assert not pace.tick()
    assert not pace.tick()
    assert pace.left_ms == pace.taken_ms == [1.0, 4.0]


def test_the_pace_of_the_host_is_timed_around_each_step() -> None:
    pace = HostPace()
    for _ in range(4):
        pace.tick()
    times = pace.steps()["host_pace_ms"]
    assert len(times) == 3
    assert min(times) > 0


@pytest.fixture
def busy(monkeypatch):
    """Four cores, the last of which has an idle neighbour; this thread runs on the first."""
    times, here = {0: 1.0, 1: 1.1, 2: 0.9, 3: 0.5}, [0]
    monkeypatch.setattr(pace_module, "move", lambda core, _: here.__setitem__(0, core) or True)
    monkeypatch.setattr(HostPace, "_dispatched_ms", lambda _: times[here[0]])
    return times, here


def test_steps_are_queued_from_the_calmest_core(busy) -> None:
    _, here = busy
    pace = HostPace(cores=[0, 1, 2, 3])
    assert pace.tick()
    assert here == [3]
    assert not pace.tick()
    # What was slow before the first step is no step's pace.
    assert pace.steps() == {"host_pace_ms": [0.5]}


def test_where_a_core_gets_slow_another_one_is_taken(busy) -> None:
    times, here = busy
    pace = HostPace(cores=[0, 1, 2, 3])
    pace.tick()
    times.update({1: 0.52, 2: 0.51, 3: 1.0})
    assert pace.tick()
    # The first that is calm will do.
    assert here == [1]
    # The step before it was queued from a calm core that had got slow, the one after it from a calm one.
    assert not pace.tick()
    assert pace.steps() == {"host_pace_ms": [0.75, 0.52]}


def test_where_all_cores_get_slow_the_least_slow_one_is_taken(busy) -> None:
    times, here = busy
    pace = HostPace(cores=[0, 1, 2, 3])
    pace.tick()
    times[3] = 1.0
    assert pace.tick()
    assert here == [2]
    assert pace.steps() == {"host_pace_ms": [0.75]}
    # Steps are not held up by one search after another that finds nothing.
    assert [pace.tick() for _ in range(2 * REST + 2)] == ([False] * REST + [True]) * 2


def test_among_calm_cores_a_thread_stays_where_it_is(busy) -> None:
    times, here = busy
    times.update({0: 1.02, 1: 1.0, 2: 1.01, 3: 1.0})
    pace = HostPace(cores=[0, 1, 2, 3])
    assert pace.tick()
    assert here == [0]


def test_no_more_than_some_of_many_cores_are_tried_between_two_steps(busy) -> None:
    times, here = busy
    times.update(dict.fromkeys(range(100), 1.0) | {0: 0.5})
    pace = HostPace(cores=[*range(100)])
    pace.tick()
    times.update({0: 1.0, 40: 0.5})
    searched = []
    for _ in range(3 * (REST + 1)):
        if pace.tick():
            searched.append(here[0])
    assert searched == [0, 16, 40]


def test_where_no_core_can_be_chosen_steps_are_queued_from_where_they_are(monkeypatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    pace = HostPace(cores=[0, 1])
    monkeypatch.setattr(os, "sched_setaffinity", refused, raising=False)
    assert not move(0, [0, 1])
    assert allowed() == []
    assert [pace.tick(), pace.tick(), pace.tick()] == [True, False, False]
    assert len(pace.steps()["host_pace_ms"]) == 2


def test_the_cores_of_a_host_are_told_apart() -> None:
    text = told({0: [0.05, 0.1], 1: [0.06, 0.05], 2: [0.1, 0.1]})
    rows = [[column.strip() for column in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[2:5] == [
        ["0", "50", "75", "100", "50%"],
        ["1", "50", "55", "60", "0%"],
        ["2", "100", "100", "100", "100%"],
    ]
    assert text.endswith("2 of 2 rounds found a core that was not slow (1.25 times the calmest).")
    assert told({}).startswith("Only one core")


@pytest.mark.skipif(not allowed(), reason="needs two cores, and a system that can choose among them")
def test_a_thread_that_was_moved_may_run_where_it_did_before() -> None:
    before = allowed()
    assert move(before[-1], before)
    assert sorted(allowed()) == sorted(before)


def test_a_step_that_settles_is_not_kept() -> None:
    seen = []
    timer = StepTimer(seen.append, "cpu")
    timer.settle("first"), timer("second"), timer.settle("third")
    samples = timer.finish()
    assert seen == ["first", "second", "third"]
    assert samples.batches == ["second"]
    assert len(samples.wall_ms) == 1


@needs_cuda
def test_on_a_gpu_what_the_host_did_before_a_step_settled_counts_for_none() -> None:
    timer = StepTimer(lambda _: torch.cuda._sleep(1_000_000), "cuda")
    for batch in range(8):
        if batch in (3, 5):
            time.sleep(0.2)
            timer.settle(batch)
        timer(batch)
    samples = timer.finish()
    # The first has no step before it, the last one none after it.
    assert samples.batches == [1, 2, 3, 4, 5, 6]
    assert len(samples.lead_ms) == 6
    assert max(samples.device_ms) < 100


@needs_cuda
def test_on_a_gpu_a_step_that_the_host_holds_up_has_no_lead() -> None:
    cycles = 20_000_000

    def on_device(_: object) -> None:
        torch.cuda._sleep(cycles)

    def on_host(_: object) -> None:
        pace = HostPace()
        for _ in range(50):
            pace.tick()
        torch.cuda._sleep(1000)

    shares = []
    for step in (on_device, on_host):
        timer = StepTimer(step, "cuda")
        for batch in range(10):
            timer(batch)
        samples = timer.finish()
        assert len(samples.lead_ms) == len(samples.device_ms)
        shares.append(held_share({"lead_ms": samples.lead_ms, "device_ms": samples.device_ms}))
    assert shares == [0.0, 1.0]
