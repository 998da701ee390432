"""Faults of the gate: what it compares, counts and passes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from gate import comparing
from gate.baseline import screen, store
from gate.baseline.screen import Screening
from gate.judge import live, pairs, verdicts
from gate.judge.live import LiveJudge
from gate.judge.verdicts import CellVerdict, Change, Threshold, Verdict
from gate.live import comparison
from gate.live.pair import LivePair
from gate.measure import bench
from gate.record import cell
from tests.meta.faults.fault import Faults, everywhere

GATE = Faults("gate")
plant = GATE.plant

SCREEN, COMPARING, RULES, LIVE = (f"test_{name}.py::" for name in ("screen", "comparing", "pair_rules", "live_pairs"))
LEFT = COMPARING + "test_a_cell_that_vanishes_is_missing_unless_the_run_leaves_out_just_that"
COSTS = "test_a_cost_that_rose_fails_whatever_the_time_and_one_that_fell_hides_no_time"
FALSE = RULES + "test_unchanged_code_is_called_slower_in_at_most_5_percent_of_comparisons"
FAILS = RULES + "test_each_verdict_fails_a_run_as_it_must"
TOO_SLOW = "test_step_verdicts.py::test_the_limit_is_on_all_steps_to_come_and_the_seconds_of_compilation_are_no_step"


@plant(COMPARING + "test_a_run_without_a_cell_of_the_record_compares_nothing")
def new_cells_alone_pass(patch: pytest.MonkeyPatch) -> None:
    """A run that has no cell in common with the record has no cell that fails, and passes."""
    everywhere(patch, verdicts.nothing_judged, lambda found: False)


@plant(FAILS)
def what_is_new_counts_as_judged(patch: pytest.MonkeyPatch) -> None:
    """A cell of head alone counts as one that was compared."""
    patch.setattr(verdicts, "JUDGED", (*verdicts.JUDGED, Verdict.NEW))


@plant(FAILS)
def missing_cells_pass_when_strict(patch: pytest.MonkeyPatch) -> None:
    """One of the two verdicts that fail a strict run is dropped from its exit status."""
    patch.setattr(verdicts, "STRICT", (Verdict.INCONCLUSIVE,))


@plant(FAILS)
def what_is_inconclusive_passes_when_strict(patch: pytest.MonkeyPatch) -> None:
    """The other one is dropped: a run passes where noise hides what matters."""
    patch.setattr(verdicts, "STRICT", (Verdict.MISSING,))


@plant(LEFT)
def compiled_cells_are_never_missing(patch: pytest.MonkeyPatch) -> None:
    """Compiled cells of a baseline that a default run no longer has count as left out on purpose."""
    right = comparing.Comparing._asked_for
    patch.setattr(
        comparing.Comparing,
        "_asked_for",
        lambda self, record, head: record.cell["execution"] != "compiled" and right(self, record, head),
    )


@plant(LEFT)
def a_narrowed_run_misses_nothing(patch: pytest.MonkeyPatch) -> None:
    """A run of one backend is asked for none of the baseline's cells."""
    right = comparing.Comparing._asked_for
    patch.setattr(
        comparing.Comparing,
        "_asked_for",
        lambda self, record, head: not self.config.getoption("backend", None) and right(self, record, head),
    )


@plant(LEFT)
def cells_matched_without_their_execution(patch: pytest.MonkeyPatch) -> None:
    """A cell's id lacks whether it is compiled: a compiled one is compared with an eager one."""
    right = cell.cell_id
    everywhere(patch, right, lambda key: right({**key, "execution": "eager"}))


@plant("test_baseline_store.py::test_a_harmed_baseline_is_an_error_that_says_what_to_do")
def digests_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """A baseline that the index names is taken as it is, whatever it holds."""
    patch.setattr(store, "check_index", lambda root: {(root / name).resolve() for name in store.read_index(root)})


def _costs_ignored(found: CellVerdict) -> CellVerdict:
    faster = found.base_ms is not None and found.head_ms is not None and found.head_ms < 0.98 * found.base_ms
    return replace(found, verdict=Verdict.IMPROVED) if faster else found


@plant(SCREEN + COSTS)
def a_cost_that_rose_passes_where_the_time_fell(patch: pytest.MonkeyPatch) -> None:
    """A cell is *improved* by its time, though it takes more memory than before."""
    right = screen._with_costs
    patch.setattr(screen, "_with_costs", lambda *given: _costs_ignored(right(*given)))


@plant(LIVE + COSTS)
def a_cost_that_rose_passes_where_head_is_faster(patch: pytest.MonkeyPatch) -> None:
    """The same in a live comparison."""
    right = LiveJudge.verdict
    patch.setattr(LiveJudge, "verdict", lambda self, name: _costs_ignored(right(self, name)))


@plant(LIVE + COSTS)
def a_cost_that_fell_hides_a_slower_step(patch: pytest.MonkeyPatch) -> None:
    """A cell with any exact cost below base's is *improved*, whatever its time."""
    right = LiveJudge.verdict

    def verdict(self: LiveJudge, name: str) -> CellVerdict:
        found = right(self, name)
        better = any(finding.kind == "better" for finding in found.findings)
        return replace(found, verdict=Verdict.IMPROVED) if better else found

    patch.setattr(LiveJudge, "verdict", verdict)


@plant(SCREEN + "test_a_time_that_was_lost_regressed_and_why_is_told")
def a_cell_without_a_time_is_compared_by_none(patch: pytest.MonkeyPatch) -> None:
    """A cell that had a time and is too slow, wrong or out of memory now is the same as before."""
    right = Screening._without_time

    def without_time(self: Screening, *given: Any) -> CellVerdict:
        found = right(self, *given)
        return replace(found, verdict=Verdict.SAME) if found.verdict == Verdict.REGRESSED else found

    patch.setattr(Screening, "_without_time", without_time)


@plant(SCREEN + "test_only_comparable_cells_that_seem_slower_are_suspects_and_the_live_verdict_on_them_holds")
def suspects_are_judged_by_the_first_time(patch: pytest.MonkeyPatch) -> None:
    """Suspects are settled live, and judged by the times that made them suspects."""
    right = Screening.verdicts
    patch.setattr(Screening, "verdicts", lambda self, settled, why_not: right(self, {}, why_not))


@plant(RULES + "test_a_change_must_pass_both_thresholds")
def one_threshold_is_enough(patch: pytest.MonkeyPatch) -> None:
    """A change counts beyond the smaller of the two thresholds, not beyond both."""
    patch.setattr(Threshold, "log", lambda self, base_ms: min(self.percent / 100, self.us / 1e3 / base_ms))


@plant(LIVE + "test_slower_and_faster_cells_are_told_with_what_they_cost")
def base_over_head(patch: pytest.MonkeyPatch) -> None:
    """Ratios are of base's times over head's: what is slower is called faster."""
    right = pairs.block_log
    everywhere(patch, right, lambda base, head, *deficits: right(head, base, *deficits))


@plant(FALSE)
def blocks_tell_what_processes_scatter(patch: pytest.MonkeyPatch) -> None:
    """The interval of a settled cell is that of the blocks of one pair: that processes differ is forgotten."""

    def settled(fresh: Sequence[pairs.PairChange], noise: pairs.Noise, cells: int, *, alpha: float) -> Change:
        mean, half = sum(one.log for one in fresh) / len(fresh), 3 * fresh[0].error
        return Change(mean, mean - half, mean + half)

    patch.setattr(live.pairs, "settled", settled)


@plant(FALSE)
def what_is_not_flagged_tells_the_noise_of_all(patch: pytest.MonkeyPatch) -> None:
    """Where noise flags most cells, the few that it left tell how noisy they are."""
    patch.setattr(pairs, "QUIET_SHARE", 0.0)


@plant(RULES + "test_a_slowdown_of_most_cells_is_found_though_few_are_left_to_tell_the_noise")
def flagged_cells_are_noise(patch: pytest.MonkeyPatch) -> None:
    """The screening's noise is that of every cell, slower ones too: a slowdown of most cells is hidden by itself."""

    def screening_noise(quiet: Sequence[pairs.PairChange], cells: int) -> pairs.Noise:
        return pairs.Noise(0.05, cells)

    patch.setattr(pairs, "screening_noise", screening_noise)


@plant(LIVE + "test_new_cells_alone_are_no_comparison")
def a_base_without_any_time_passes(patch: pytest.MonkeyPatch) -> None:
    """A comparison in which base has no time of any cell calls all of them new."""
    patch.setattr(comparison, "_beside_nothing", lambda found: found)


@plant(LIVE + "test_two_that_fit_alone_and_not_together_blame_neither")
def a_side_is_blamed_for_the_memory_of_both(patch: pytest.MonkeyPatch) -> None:
    """What does not fit twice counts as what does not fit."""
    full = {"verdict": "out of memory", "reason": "said so"}
    patch.setattr(LivePair, "_alone", lambda self, name: {"base": full, "head": full})


@plant(LIVE + "test_a_crash_beside_a_cell_out_of_memory_shifts_no_answer", errors=(KeyError,))
def a_greeting_is_taken_for_an_answer(patch: pytest.MonkeyPatch) -> None:
    """A worker that was started again in the midst of a cell is asked on before its greeting was read."""

    patch.setattr(LivePair, "_send", lambda self, side, do, **given: self.workers[side].send(do, **given))


@plant(TOO_SLOW)
def compilation_counts_as_a_step(patch: pytest.MonkeyPatch) -> None:
    """The seconds of the first step hold what it compiled: a compiled cell is too slow for its compilation."""
    right = bench.CellBench.first_step_s

    def first_step_s(self: bench.CellBench, *given: Any) -> float:
        before = self.compiler.seconds
        return right(self, *given) + self.compiler.seconds - before

    patch.setattr(bench.CellBench, "first_step_s", first_step_s)


@plant(TOO_SLOW)
def one_step_is_held_to_the_limit(patch: pytest.MonkeyPatch) -> None:
    """A cell is too slow where a single step takes longer than the limit of all of them."""
    right = bench.too_slow
    everywhere(patch, right, lambda step_s, steps, limit_s: right(step_s, 1, limit_s))
