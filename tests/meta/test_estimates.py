"""A cell of a record becomes one number, or one sentence that says why it has none."""

import math
import statistics

import numpy as np
import pytest

from gate.estimates import Estimate, estimate, location, session_of

pytestmark = pytest.mark.meta

CELL = {
    "backend": "fa2_varlen",
    "collator": "packed",
    "mode": "eval",
    "causal": False,
    "dtype": "bfloat16",
    "execution": "eager",
    "workload": "article",
    "lengths": "uniform",
}
WALL = [10.0, 20.0, 40.0]
TIMED = {"cell": CELL, "verdict": "timed", "wall_ms": WALL, "device_ms": None, "median_wall_ms": 20.0}


def test_the_estimate_is_on_the_log_scale():
    found = estimate(TIMED)
    assert isinstance(found, Estimate)
    assert found.cell == "fa2_varlen-packed-eval-full-bfloat16-eager-article"
    assert (found.clock, found.steps) == ("wall", 3)
    assert found.ms == pytest.approx(20.0)
    assert found.batch_log_ms == pytest.approx([math.log(ms) for ms in WALL])


def test_the_device_clock_goes_first_where_it_was_read():
    both = TIMED | {"device_ms": [5.0], "median_device_ms": 5.0}
    assert estimate(both).clock == "device"
    assert estimate(both, "wall").ms == pytest.approx(20.0)
    assert estimate(TIMED, "device") == "no device time was read"


def test_a_slower_process_differs_by_the_log_of_its_ratio():
    slower = TIMED | {"wall_ms": [ms * 1.05 for ms in WALL], "median_wall_ms": 21.0}
    assert estimate(slower).log_ms - estimate(TIMED).log_ms == pytest.approx(math.log(1.05))


def test_steps_of_one_batch_are_one_number():
    times = [10.0, 20.0, 10.0, 20.0, 90.0, 20.0]
    found = estimate(TIMED | {"wall_ms": times, "median_wall_ms": 20.0, "batches": [0, 1, 0, 1, 0, 1]})
    assert found.batch_log_ms == pytest.approx([math.log(10), math.log(20)])
    assert found.steps == 6


def test_the_drift_is_that_of_the_passes_over_the_pace():
    passes = TIMED | {"batches": [0, 1, 2] * 3, "wall_ms": [*WALL, *WALL, *(ms * 1.3 for ms in WALL)]}
    found = estimate(passes)
    assert found.drift == pytest.approx(statistics.stdev([0, 0, math.log(1.3)]))
    pace = {"product_ms": [1.0] * 6 + [1.3] * 3, "block_ms": [2.0] * 6 + [2.6] * 3}
    assert estimate(passes | pace).drift == pytest.approx(0)
    # A batch that was timed once is its own middle.
    assert estimate(TIMED).drift == 0
    assert estimate(passes | {"device_ms": passes["wall_ms"]}).drift == 0


def timed(logs):
    """The estimate of a process whose batches take 20 ms, and these logs more."""
    times = [20 * math.exp(log) for log in logs]
    return estimate(TIMED | {"wall_ms": times, "median_wall_ms": statistics.median(times)})


def test_a_spoilt_step_does_not_let_the_longest_batch_count():
    times = [10.0, 11.0, 12.0, 13.0, 14.0, 40.0]
    spoilt = [10.0, 11.0, 50.0, 13.0, 14.0, 40.0]
    then, now = (estimate(TIMED | {"wall_ms": ms, "median_wall_ms": statistics.median(ms)}) for ms in (times, spoilt))
    assert now.log_ms > then.log_ms + 0.02
    assert now.over(then) == pytest.approx(0)
    assert now.beside([then, then]) == pytest.approx(then.beside([then, then])) == pytest.approx(then.log_ms)


def test_a_process_is_judged_by_one_rule_among_others_and_beside_them():
    rng = np.random.default_rng(0)
    drawn = [timed(rng.exponential(0.05, 12)) for _ in range(4)]
    one, *others = drawn
    assert one.over(others[0]) == pytest.approx(-others[0].over(one))
    assert sum(each.beside(drawn) for each in drawn) == pytest.approx(sum(each.log_ms for each in drawn))


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_a_baseline_says_how_far_a_new_process_lies_from_it(processes):
    """Spoilt steps scatter: what the old processes show of it among themselves is what a new one shows beside them."""
    rng = np.random.default_rng(1)
    between, within = [], []
    for _ in range(400):
        new, *olds = (timed(rng.normal(0, 0.01, 12) + rng.exponential(0.02, 12)) for _ in range(processes + 1))
        logs = [old.beside(olds) for old in olds]
        between.append(new.beside(olds) - statistics.fmean(logs))
        within.append(statistics.variance(logs))
    expected = math.sqrt(statistics.fmean(within) * (1 + 1 / processes))
    assert statistics.pstdev(between) == pytest.approx(expected, rel=0.08)
    assert abs(statistics.fmean(between)) < 3 * expected / math.sqrt(400)


def test_processes_of_other_batches_are_compared_by_their_own_means():
    few = estimate(TIMED | {"wall_ms": WALL[:2], "median_wall_ms": 15.0})
    assert few.over(estimate(TIMED)) == pytest.approx(few.log_ms - estimate(TIMED).log_ms)
    first, turned = (estimate(TIMED | {"tokens": sizes}) for sizes in ([5, 6, 7], [7, 5, 6]))
    other = estimate(TIMED | {"tokens": [7, 5, 6], "wall_ms": [WALL[2], *WALL[:2]]})
    assert first.over(other) == pytest.approx(0)
    assert turned.over(other) == pytest.approx(0)


def test_a_few_spoilt_batches_do_not_move_the_location():
    clean = [math.log(20.0)] * 24
    assert location([*clean[:20], *[math.log(500.0)] * 4]) == pytest.approx(math.log(20.0))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"verdict": "wrong", "reason": "logits differ"}, "wrong: logits differ"),
        ({"verdict": "out of memory"}, "out of memory"),
        ({"verdict": "crashed"}, "crashed"),
        ({"wall_ms": []}, "no step was timed (zero rounds)"),
        ({"wall_ms": "fast"}, "no step was timed (zero rounds)"),
        ({"wall_ms": [10.0, math.nan, 40.0]}, "a step time is nan, not a positive number of milliseconds"),
        ({"wall_ms": [10.0, math.inf, 40.0]}, "a step time is inf, not a positive number of milliseconds"),
        ({"wall_ms": [10.0, -1.0, 40.0]}, "a step time is -1.0, not a positive number of milliseconds"),
        ({"wall_ms": [10.0, 0, 40.0]}, "a step time is 0, not a positive number of milliseconds"),
        ({"wall_ms": [10.0, "20", 40.0]}, "a step time is '20', not a positive number of milliseconds"),
        ({"wall_ms": None}, "no wall time was read"),
        ({"median_wall_ms": 10.0}, "median_wall_ms is 10.0, which its wall_ms do not have: the record was edited"),
        ({"median_wall_ms": math.nan}, "median_wall_ms is nan, which its wall_ms do not have: the record was edited"),
        ({"batches": [0, 1]}, "3 step times for 2 batch numbers"),
    ],
)
def test_a_cell_without_a_valid_time_says_why(change, reason):
    assert estimate(TIMED | change) == reason


def test_records_without_a_session_count_as_one():
    assert session_of({"machine_info": {"session": "a1"}}) == "a1"
    assert session_of({"machine_info": {}}) == session_of({}) == "unknown"
