"""Waiting for a core that others have is told apart from a step's own time, sleep included."""

import math
import threading
import time

import pytest

from gate import waiting
from gate.estimates import estimate
from gate.timing import StepTimer
from gate.waiting import waited_ms, waits_ms, without_waiting_ms
from tests.meta.test_estimates import TIMED
from tests.performance.pace import Pace

pytestmark = pytest.mark.meta

counted = pytest.mark.skipif(not waits_ms(), reason="needs Linux's scheduler statistics (/proc/self/task/*/schedstat)")


def test_the_longest_wait_of_one_thread_counts():
    assert waited_ms({"7": 1.0, "8": 5.0}, {"7": 3.0, "8": 6.0, "9": 50.0}) == 2.0
    assert waited_ms({}, {}) is None


def test_no_wait_is_longer_than_its_step():
    assert without_waiting_ms(10.0, 4.0) == 6.0
    assert without_waiting_ms(10.0, 40.0) == pytest.approx(0.5)


def test_a_system_that_counts_no_waits_gives_none(monkeypatch, tmp_path):
    monkeypatch.setattr(waiting, "TASKS", tmp_path / "nothing")
    assert waits_ms() == {}
    timer = StepTimer(lambda _: None, "cpu")
    timer(None)
    assert (len(timer.samples.wall_ms), timer.samples.waited_ms) == (1, [])
    (tmp_path / "7").mkdir()
    monkeypatch.setattr(waiting, "TASKS", tmp_path)
    assert waits_ms() == {}


@counted
def test_a_sleep_is_no_wait_for_a_core():
    timer = StepTimer(lambda _: time.sleep(0.2), "cpu")
    timer(None)
    assert timer.samples.wall_ms[0] > 200
    assert without_waiting_ms(timer.samples.wall_ms[0], timer.samples.waited_ms[0]) > 150


@counted
def test_what_another_thread_took_is_a_wait():
    # Two threads of Python take turns by its lock, not by the scheduler: hashing large buffers gives the lock up.
    import hashlib
    import os

    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("needs sched_setaffinity: two threads are put on one core")
    cores = os.sched_getaffinity(0)
    block, done = bytes(10_000_000), threading.Event()

    def busy():
        while not done.is_set():
            hashlib.sha256(block)

    timer = StepTimer(lambda _: [hashlib.sha256(block) for _ in range(10)], "cpu")
    other = threading.Thread(target=busy)
    try:
        os.sched_setaffinity(0, {min(cores)})
        other.start()
        timer(None)
    finally:
        done.set()
        other.join()
        os.sched_setaffinity(0, cores)
    assert timer.samples.waited_ms[0] > 0.2 * timer.samples.wall_ms[0]


def test_the_estimate_leaves_waiting_out():
    waited = TIMED | {"waited_ms": [5.0, 10.0, 20.0]}
    assert estimate(waited).ms == pytest.approx(10.0)
    assert estimate(waited, net=False).ms == pytest.approx(20.0)
    assert estimate(TIMED | {"waited_ms": None}).log_ms == pytest.approx(math.log(20))
    assert estimate(TIMED | {"waited_ms": [1.0]}) == "3 step times for 1 waits"
    assert estimate(TIMED | {"waited_ms": [1.0, math.nan, 1.0]}) == "waited_ms holds nan, not a number of milliseconds"


def test_a_machine_that_is_slower_for_a_while_leaves_the_paced_time_alone():
    pace = {"product_ms": [1.0, 1.0, 1.0], "block_ms": [3.0, 3.0, 3.0]}
    slower = {"wall_ms": [20.0, 40.0, 80.0], "median_wall_ms": 40.0, "product_ms": [2.0] * 3, "block_ms": [6.0] * 3}
    then, now = estimate(TIMED | pace), estimate(TIMED | slower)
    assert now.log_ms - then.log_ms == pytest.approx(math.log(2))
    assert now.paced_batch_logs == pytest.approx(then.paced_batch_logs)
    assert estimate(TIMED).paced_batch_logs is None
    assert estimate(TIMED | pace | {"product_ms": None}).paced_batch_logs is None
    broken = pace | {"block_ms": [3.0, 0.0, 3.0]}
    assert estimate(TIMED | broken) == "block_ms does not hold 3 positive numbers of milliseconds"


def test_a_pace_is_taken_before_and_after_each_step():
    pace = Pace(product_ms=[1.0, 2.0, 4.0], block_ms=[5.0, 5.0, 6.0])
    assert pace.steps() == {"product_ms": [1.5, 3.0], "block_ms": [5.0, 5.5]}
    fresh = Pace()
    fresh.tick()
    assert len(fresh.product_ms) == len(fresh.block_ms) == 1
    assert fresh.product_ms[0] > 0
    assert fresh.block_ms[0] > 0
    assert all(parameter.grad is None for parameter in fresh.parameters)
