"""The rule of live pairs on noise that is known: no more false slowdowns than promised, and slowdowns are found."""

import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
from scipy import stats

from gate.judge.exact import Finding, Kind
from gate.judge.live import LiveJudge, PairResult
from gate.judge.pairs import MOST_BLOCKS, MOST_PAIRS, block_log, flagged, host_deficit_ms, pair_change, precise
from gate.judge.verdicts import CellVerdict, Threshold, Verdict, counts, fail
from gate.record.cell import CellRecord

pytestmark = pytest.mark.meta

ALPHA, STEP_MS = 0.05, 50.0
THRESHOLD = Threshold(1.0)

Rng = np.random.Generator
#: The logs of one process's cells beside the mean of all processes.
Processes = Callable[[Rng, int], np.ndarray]
#: The logs of a pair's blocks, by cell.
Blocks = Callable[[Rng, int], np.ndarray]


def normal(percent: float) -> Processes:
    return lambda rng, cells: rng.normal(0, percent / 100, cells)


def every_second_process(rng: Rng, cells: int) -> np.ndarray:
    """The first cell takes 12% longer in every second process, and is steady within each."""
    logs = rng.normal(0, 0.002, cells)
    logs[0] += math.log(1.12) * rng.integers(2)
    return logs


def steady(rng: Rng, cells: int) -> np.ndarray:
    return rng.normal(0, 0.005, (cells, MOST_BLOCKS))


def heavy_tails(rng: Rng, cells: int) -> np.ndarray:
    """A busy host: Student's t with 2 degrees of freedom, whose variance is infinite."""
    return 0.01 * rng.standard_t(2, (cells, MOST_BLOCKS))


def compared(
    rng: Rng, cells: int, processes: Processes, blocks: Blocks, change: float = 0.0
) -> tuple[list[Verdict], bool]:
    """Compare once; only the last cell changed. Return the verdicts, and whether all intervals hold the truth."""
    truth = np.zeros(cells)
    truth[-1] = math.log1p(change)
    judge = LiveJudge(THRESHOLD, ALPHA)
    timed = CellRecord({}, "timed", wall_ms=[STEP_MS])

    def measure(chosen: list[str]) -> None:
        logs = truth + processes(rng, cells) - processes(rng, cells)
        drawn = logs[:, None] + blocks(rng, cells)
        for cell in chosen:
            row = drawn[int(cell)]
            enough = (
                n for n in range(12, MOST_BLOCKS + 1, 12) if precise(pair_change(row[:n]), THRESHOLD.log(STEP_MS))
            )
            judge.add(PairResult(cell, timed, timed, list(row[: next(enough)])))

    ids = [str(number) for number in range(cells)]
    measure(ids)
    judge.flag()
    for _ in range(MOST_PAIRS):
        if chosen := judge.unsettled():
            measure(chosen)
    found = [judge.verdict(cell) for cell in ids]
    changes = [one.change for one in found]
    held = all(one is None or one.low <= log <= one.high for one, log in zip(changes, truth, strict=True))
    return [one.verdict for one in found], held


def at_most(share: float, runs: int) -> float:
    """The largest share of `runs` that a true share would show in 999 of 1000 tries."""
    return float(stats.binom.ppf(0.999, runs, share)) / runs


WORLDS = {
    "quiet": (normal(0.3), steady),
    "noisy processes": (normal(1.5), steady),
    "12% in every second process": (every_second_process, steady),
    "heavy tails": (normal(0.3), heavy_tails),
}


@pytest.mark.parametrize("cells", [16, 40])
@pytest.mark.parametrize("world", WORLDS)
def test_unchanged_code_is_called_slower_in_at_most_5_percent_of_comparisons(cells: int, world: str):
    runs, rng = 3200 // cells, np.random.default_rng(1)
    found = [compared(rng, cells, *WORLDS[world]) for _ in range(runs)]
    assert np.mean([Verdict.REGRESSED in verdicts for verdicts, _ in found]) <= ALPHA
    assert np.mean([Verdict.IMPROVED in verdicts for verdicts, _ in found]) <= ALPHA
    assert np.mean([not held for _, held in found]) <= at_most(ALPHA, runs)


@pytest.mark.parametrize(
    ("change", "verdict", "share"),
    [(0.02, Verdict.REGRESSED, 0.95), (-0.02, Verdict.IMPROVED, 0.95), (0.004, Verdict.SAME, 0.95)],
)
def test_a_change_of_two_thresholds_is_found_and_one_of_half_a_threshold_is_no_matter(
    change: float, verdict: Verdict, share: float
):
    rng = np.random.default_rng(2)
    found = [compared(rng, 16, normal(0.2), steady, change)[0] for _ in range(100)]
    assert np.mean([verdicts[-1] == verdict for verdicts in found]) >= share


def test_a_slowdown_of_most_cells_is_found_though_few_are_left_to_tell_the_noise():
    rng = np.random.default_rng(3)
    slow = {str(cell): 0.05 + rng.normal(0, 0.003, 6) for cell in range(12)}
    judge = LiveJudge(THRESHOLD, ALPHA)
    timed = CellRecord({}, "timed", wall_ms=[STEP_MS])
    for pair in range(MOST_PAIRS + 1):
        for cell in [*slow, "quiet"] if pair == 0 else judge.unsettled():
            log = slow[cell][pair] if cell in slow else 0.001
            judge.add(PairResult(cell, timed, timed, [log - 1e-4, log + 1e-4] * 12))
        if pair == 0:
            assert judge.flag() == [*slow]
    assert not judge.noise.of_most
    assert {judge.verdict(cell).verdict for cell in slow} == {Verdict.REGRESSED}


def test_one_failure_is_no_verdict_before_fresh_pairs_repeat_it():
    timed, crashed = CellRecord({}, "timed", wall_ms=[STEP_MS]), CellRecord({}, "crashed", "killed by SIGSEGV")
    judge = LiveJudge(THRESHOLD, ALPHA)
    for pair in range(3):
        judge.add(PairResult("cell", timed, crashed))
        if pair == 0:
            assert judge.flag() == ["cell"]
        found = judge.verdict("cell")
        if pair < 2:
            assert found.verdict is Verdict.INCONCLUSIVE
            assert found.why.endswith(f"; {pair} of 2 fresh pairs were run within --minutes")
    assert (found.verdict, found.why) == (Verdict.REGRESSED, "crashed on head: killed by SIGSEGV")


def test_a_block_is_the_middle_of_its_steps_and_holds_what_the_host_adds():
    assert block_log([1.0] * 10, [2.0] * 8 + [90.0, 0.01]) == pytest.approx(math.log(2))
    assert block_log([1.0], [1.0], 0.0, 0.1) == pytest.approx(math.log(1.1))
    # 15 ms ahead and 13 left after 10 steps; a host that is busy in one block costs the loop nothing.
    assert host_deficit_ms([15.0] * 3, [13.0, 13.0, 1.0], 10) == pytest.approx(0.2)
    assert host_deficit_ms([15.0], [20.0], 10) == 0.0


def test_a_pair_runs_until_its_error_is_small_beside_the_threshold_or_for_long_enough():
    wild = [0.2, -0.2] * (MOST_BLOCKS // 2)
    assert not precise(pair_change([0.0] * 11), 0.01)
    assert precise(pair_change([0.0] * 24), 0.01)
    assert not precise(pair_change(wild[:-1]), 0.01)
    assert precise(pair_change(wild), 0.01)
    assert 0 < pair_change([0.01] * 24).error < math.inf == pair_change([0.01]).error


def test_slowdowns_are_settled_sooner_than_speedups():
    assert [flagged(pair_change([log] * 24), 0.01) for log in (0.007, 0.005, -0.007, -0.011)] == [
        True,
        False,
        False,
        True,
    ]


def test_a_change_must_pass_both_thresholds():
    assert Threshold(1, 20).log(50.0) == pytest.approx(math.log(1.01))
    assert Threshold(1, 20).log(0.5) == pytest.approx(math.log(1.04))


FAILING = {True: (Verdict.REGRESSED, Verdict.MISSING, Verdict.INCONCLUSIVE), False: (Verdict.REGRESSED,)}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("verdict", Verdict)
def test_each_verdict_fails_a_run_as_it_must(verdict: Verdict, strict: bool):
    """As docs/explanation/how-the-gate-decides.md has it; beside a cell that is the same, and alone."""
    one, same = CellVerdict("one", verdict), CellVerdict("same", Verdict.SAME)
    fails = verdict in FAILING[strict]
    assert fail([same, one], strict=strict) is fails
    assert counts([same, one], strict=strict).startswith("FAILED: " if fails else "passed: ")
    compared = verdict in (Verdict.REGRESSED, Verdict.IMPROVED, Verdict.SAME)
    assert fail([one], strict=strict) is (fails or (strict and not compared))
    assert ("passed" in counts([one], strict=strict)) is (compared and not fails)


@pytest.mark.parametrize("kind", get_args(Kind))
def test_each_kind_of_a_changed_cost_fails_a_run_as_it_must(kind: Kind):
    finding = Finding("peak_bytes", 1.0, 2.0, kind)
    found = CellVerdict("one", Verdict.REGRESSED if finding.worse else Verdict.SAME, findings=(finding,))
    assert fail([found], strict=False) is (kind == "worse")
    assert fail([found], strict=True) is (kind in ("worse", "lost", "other work"))
