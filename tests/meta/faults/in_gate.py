"""Faults of the gate: what it compares, counts and passes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gate.baseline import promote, screen, store
from gate.baseline.screen import Screening
from gate.comparing import Comparing
from gate.judge import cause, compatible, exact, live, pairs, verdicts
from gate.judge.live import LiveJudge
from gate.judge.verdicts import CellVerdict, Threshold, Verdict
from gate.live import comparison, pair
from gate.live.pair import LivePair
from gate.measure import bench
from gate.record import cell, files
from gate.record.cell import CellRecord, is_number
from gate.record.files import Record
from tests.meta.faults.fault import Faults, everywhere

GATE = Faults("gate")
inject = GATE.inject

COMPARING, SCREEN, LIVE = "test_comparing.py::", "test_screen.py::", "test_live_pairs.py::"
PAIRS, STORE = "test_pair_rules.py::", "test_baseline_store.py::"
LEFT = COMPARING + "test_a_cell_that_vanishes_is_missing_unless_the_run_leaves_out_just_that"
EACH = SCREEN + "test_each_verdict_fails_a_run_as_it_must"
COSTS = "test_a_cost_that_rose_fails_whatever_the_time_and_one_that_fell_hides_no_time"
SLOWER = LIVE + "test_slower_and_faster_cells_are_told_with_what_they_cost"
HARMED = STORE + "test_a_harmed_baseline_is_an_error_that_says_what_to_do"
TOO_SLOW = "test_step_verdicts.py::test_the_limit_is_on_all_steps_to_come_and_the_seconds_of_compilation_are_no_step"


@inject(COMPARING + "test_a_run_without_a_cell_of_the_record_compares_nothing")
def new_cells_alone_pass(patch: pytest.MonkeyPatch) -> None:
    """A run that has no cell in common with the record has no cell that fails, and passes."""
    everywhere(patch, verdicts.nothing_judged, lambda found: False)


@inject(LIVE + "test_new_cells_alone_are_no_comparison")
def new_cells_alone_pass_live(patch: pytest.MonkeyPatch) -> None:
    """In live pairs, too, cells that only head can time pass for a comparison."""
    patch.setattr(comparison, "_beside_nothing", lambda found: found)


@inject(EACH)
def missing_cells_pass_when_strict(patch: pytest.MonkeyPatch) -> None:
    """One of the two verdicts that fail a strict run is dropped from its exit status."""
    patch.setattr(verdicts, "STRICT", (Verdict.INCONCLUSIVE,))


@inject(EACH)
def inconclusive_cells_pass_when_strict(patch: pytest.MonkeyPatch) -> None:
    """The other one is dropped: a run passes where noise hides what matters."""
    patch.setattr(verdicts, "STRICT", (Verdict.MISSING,))


@inject(LEFT)
def compiled_cells_are_never_missing(patch: pytest.MonkeyPatch) -> None:
    """Compiled cells of a baseline that a default run no longer has count as left out on purpose."""
    right = Comparing._asked_for

    def asked_for(self: Comparing, base: CellRecord, head: Record) -> bool:
        return base.cell["execution"] != "compiled" and right(self, base, head)

    patch.setattr(Comparing, "_asked_for", asked_for)


@inject(LEFT)
def a_narrowed_run_misses_nothing(patch: pytest.MonkeyPatch) -> None:
    """A run of one backend is asked for none of the baseline's cells."""
    right = Comparing._asked_for

    def asked_for(self: Comparing, base: CellRecord, head: Record) -> bool:
        return not self._selection.get("backends") and right(self, base, head)

    patch.setattr(Comparing, "_asked_for", asked_for)


@inject(LEFT)
def cells_matched_without_their_execution(patch: pytest.MonkeyPatch) -> None:
    """A cell's id lacks whether it is compiled: a compiled one is compared with an eager one."""
    right = cell.cell_id
    patch.setattr(cell, "cell_id", lambda key: right({**key, "execution": "eager"}))


@inject(COMPARING + "test_a_part_of_a_run_stands_for_no_whole_one")
def a_part_of_a_run_is_saved_as_a_whole_one(patch: pytest.MonkeyPatch) -> None:
    """A record tells nothing of what was left out, so that the next run is held to a part of the cells."""
    right = files.record_of
    everywhere(patch, right, lambda content: replace(right(content), partial=False))


@inject(HARMED)
def digests_are_optional(patch: pytest.MonkeyPatch) -> None:
    """A baseline whose entry in the index has no digest is taken as it is."""
    right = store.read_index

    def read_index(root: Path) -> dict[str, str]:
        try:
            return right(root)
        except ValueError:
            content = store._json((root / store.INDEX).read_text())
            entries = content["baselines"] if isinstance(content, dict) else []
            names = [each["path"] for each in entries if each.keys() == {"path"}]
            if not names or not all((root / name).is_file() for name in names):
                raise
            return {name: store.digest_of(store._lines(root / name) or []) for name in names}

    patch.setattr(store, "read_index", read_index)


@inject(HARMED)
def an_edited_baseline_is_taken(patch: pytest.MonkeyPatch) -> None:
    """A digest is of a baseline's first line alone: the times below it can be edited."""
    right = store.digest_of
    patch.setattr(store, "digest_of", lambda lines: right(lines[:1]))


@inject(STORE + "test_the_newest_is_taken_but_for_one_in_doubt_or_a_part_that_lacks_cells")
def a_run_in_doubt_is_compared_with(patch: pytest.MonkeyPatch) -> None:
    """The record of a run that was slower is the newest: the next run, as slow, passes."""
    patch.setattr(store.Baseline, "doubts", "")


@inject("test_promote.py::test_what_does_not_fit_is_not_promoted")
def wrong_cells_are_promoted(patch: pytest.MonkeyPatch) -> None:
    """A baseline may hold a cell whose result was wrong, beside which no run of it can regress."""
    patch.setattr(promote, "NO_FAULT", (*promote.NO_FAULT, "wrong"))


def change(found: CellVerdict) -> float:
    return 0.0 if found.head_ms is None or found.base_ms is None else math.log(found.head_ms / found.base_ms)


@inject(SCREEN + COSTS)
def a_cost_that_rose_passes_where_the_time_fell(patch: pytest.MonkeyPatch) -> None:
    """A cell is as its time says, though it takes more memory than before, where it is faster."""
    right = verdicts.with_costs

    def with_costs(judged: CellVerdict, findings: Sequence[exact.Finding], *, same_packages: bool) -> CellVerdict:
        return judged if change(judged) < -0.02 else right(judged, findings, same_packages=same_packages)

    everywhere(patch, right, with_costs)


@inject(LIVE + COSTS)
def a_cost_that_rose_passes_where_head_is_faster(patch: pytest.MonkeyPatch) -> None:
    """In live pairs, too, a cell is *improved* by its time, though it takes more memory than on base."""
    right = LiveJudge.verdict

    def verdict(self: LiveJudge, cell: str) -> CellVerdict:
        found = right(self, cell)
        return replace(found, verdict=Verdict.IMPROVED) if change(found) < -0.02 else found

    patch.setattr(LiveJudge, "verdict", verdict)


@inject(SCREEN + COSTS)
def a_cost_that_fell_hides_a_slower_step(patch: pytest.MonkeyPatch) -> None:
    """A cell with any exact cost below the baseline's is *improved*, whatever its time."""
    right = verdicts.with_costs

    def with_costs(judged: CellVerdict, findings: Sequence[exact.Finding], *, same_packages: bool) -> CellVerdict:
        better = any(finding.kind == "better" for finding in findings)
        found = right(judged, findings, same_packages=same_packages)
        return replace(found, verdict=Verdict.IMPROVED) if better else found

    everywhere(patch, right, with_costs)


@inject(SCREEN + "test_costs_are_those_of_the_newest_process")
def costs_of_the_oldest_process(patch: pytest.MonkeyPatch) -> None:
    """A run is held to the exact costs of a baseline's oldest process, not of its newest."""
    right = Screening._timed_bases
    patch.setattr(Screening, "_timed_bases", lambda self, cell: right(self, cell)[::-1])


@inject("test_exact.py::test_other_batches_are_no_ground_to_compare_costs")
def fewer_batch_sizes_are_the_same_work(patch: pytest.MonkeyPatch) -> None:
    """Exact costs are compared where head left out some of base's batches, such as the largest."""
    right = exact._other_work

    def other_work(head: CellRecord, base: CellRecord) -> str:
        return "" if {*(head.tokens or ())} <= {*(base.tokens or ())} else right(head, base)

    patch.setattr(exact, "_other_work", other_work)


@inject(PAIRS + "test_a_change_must_pass_both_thresholds")
def one_threshold_is_enough(patch: pytest.MonkeyPatch) -> None:
    """A change counts beyond the smaller of the two thresholds, not beyond both."""

    def log(self: Threshold, base_ms: float) -> float:
        return min(math.log1p(self.percent / 100), math.log1p(self.us / 1e3 / base_ms))

    patch.setattr(Threshold, "log", log)


@inject(SCREEN + "test_a_change_is_told_and_convicts_by_the_record_alone_only_where_no_noise_explains_it")
def base_over_head(patch: pytest.MonkeyPatch) -> None:
    """Ratios are of the baseline's times over those of the run: what is slower is called faster."""
    right = screen.change_of
    patch.setattr(screen, "change_of", lambda head, bases: -right(head, bases))


@inject(SLOWER)
def head_and_base_swapped_in_blocks(patch: pytest.MonkeyPatch) -> None:
    """In live pairs, each block is of base over head."""
    right = pair.block_logs
    patch.setattr(pair, "block_logs", lambda blocks: [-log for log in right(blocks)])


@inject(PAIRS + "test_unchanged_code_is_called_slower_in_at_most_5_percent_of_comparisons")
def each_cell_is_a_family_of_its_own(patch: pytest.MonkeyPatch) -> None:
    """Intervals hold for one cell at a time, and a run of many cells has a false alarm in most cases."""
    for name in ("settled", "screened"):
        right = getattr(pairs, name)
        patch.setattr(
            pairs,
            name,
            lambda changes, noise, cells, *, alpha, right=right: right(changes, noise, 1, alpha=alpha),
        )


@inject(SLOWER)
def a_screening_counts_as_a_fresh_pair(patch: pytest.MonkeyPatch) -> None:
    """A flagged cell is judged by the very pair that flagged it, and one of fresh workers."""
    right, right_change = LiveJudge._is_settled, LiveJudge._change

    def twice(self: LiveJudge, cell: str) -> LiveJudge:
        judge = LiveJudge(self.threshold, self.alpha, same_versions=self.same_versions)
        judge.noise, judge.flagged = self.noise, self.flagged
        judge.results = self.results | {cell: [self.results[cell][0], *self.results[cell]]}
        return judge

    patch.setattr(LiveJudge, "_is_settled", lambda self, cell: right(twice(self, cell), cell))
    patch.setattr(
        LiveJudge,
        "_change",
        lambda self, cell: right_change(twice(self, cell) if cell in self.flagged else self, cell),
    )


@inject(SLOWER)
def fresh_pairs_run_in_the_workers_of_the_screening(patch: pytest.MonkeyPatch) -> None:
    """No pair has fresh workers: all share the memory layout that made a cell seem slower."""
    right = comparison.Comparison._pair
    patch.setattr(comparison.Comparison, "_pair", lambda self, number: right(self, 0))


@inject(SCREEN + "test_only_comparable_cells_that_seem_slower_are_suspects_and_the_live_verdict_on_them_holds")
def suspects_are_judged_by_the_record(patch: pytest.MonkeyPatch) -> None:
    """Suspects are settled by live pairs, and judged by the times that made them suspects."""
    right = Screening.verdicts
    patch.setattr(Screening, "verdicts", lambda self, settled, why_not: right(self, {}, why_not))


@inject(SCREEN + "test_a_time_that_was_lost_regressed_and_why_is_told")
def a_lost_time_passes(patch: pytest.MonkeyPatch) -> None:
    """A cell that had a time and is too slow, wrong or out of memory now is the same as before."""
    right = Screening._without_time

    def without_time(self: Screening, *given: Any) -> CellVerdict:
        found = right(self, *given)
        return replace(found, verdict=Verdict.SAME) if found.verdict == Verdict.REGRESSED else found

    patch.setattr(Screening, "_without_time", without_time)


@inject(LIVE + "test_a_crash_in_one_pair_of_several_is_told_with_its_count")
def one_crash_of_several_pairs_passes(patch: pytest.MonkeyPatch) -> None:
    """A cell that head crashes on in some of its pairs is the same as before."""
    right = live._lost

    def lost(cell: str, results: Sequence[live.PairResult]) -> CellVerdict:
        found = right(cell, results)
        return replace(found, verdict=Verdict.SAME) if found.verdict == Verdict.INCONCLUSIVE else found

    patch.setattr(live, "_lost", lost)


@inject(
    LIVE + "test_a_cell_that_one_side_alone_cannot_open_is_regressed_or_new_and_the_others_go_on", errors=(ValueError,)
)
def a_dead_worker_is_asked_again(patch: pytest.MonkeyPatch) -> None:
    """No other worker is started for one that died: the next cell is asked of nobody."""
    right = LivePair._start

    def start(self: LivePair, side: str) -> None:
        if side not in self.workers:
            right(self, side)

    patch.setattr(LivePair, "_start", start)


@inject("test_record_files.py::test_a_bad_time_is_read_and_is_no_time")
def a_step_without_a_time_is_dropped(patch: pytest.MonkeyPatch) -> None:
    """Steps whose time is NaN or null are left out as a record is read, and nobody is told."""
    right = CellRecord.read

    def read(info: Mapping[str, Any]) -> CellRecord:
        times = info.get("device_ms") or []
        good = [number for number, ms in enumerate(times) if is_number(ms)]
        kept = {
            name: [value[number] for number in good]
            for name, value in info.items()
            if isinstance(value, list) and len(value) == len(times)
        }
        return right({**info, **kept})

    patch.setattr(CellRecord, "read", read)


@inject(SCREEN + "test_what_launches_add_counts_where_both_sides_know_it")
def what_launches_add_is_left_out(patch: pytest.MonkeyPatch) -> None:
    """A step that became host-bound takes as long as the device's work in it, beside a record."""
    right = screen.block_log
    patch.setattr(screen, "block_log", lambda base, head, *deficits: right(base, head))


@inject(LIVE + "test_what_launches_add_to_a_step_counts_in_its_block")
def what_launches_add_is_left_out_live(patch: pytest.MonkeyPatch) -> None:
    """In live pairs, too, what the host's launches add to a step is no part of its time."""
    patch.setattr(pair, "_deficit", lambda blocks, side: None)


@inject(SCREEN + "test_a_time_under_other_conditions_is_inconclusive")
def power_limits_are_no_matter(patch: pytest.MonkeyPatch) -> None:
    """Times of a GPU are compared with those of one that may draw more power."""
    patch.delitem(compatible.SETTINGS, "power_limit_w")


@inject(SCREEN + "test_a_time_under_other_conditions_is_inconclusive")
def neighbours_on_the_gpu_are_no_matter(patch: pytest.MonkeyPatch) -> None:
    """Times are compared though another process used the GPU."""
    patch.setattr(compatible, "other_processes", lambda record: 0)


@inject("test_cause.py::test_the_cause_is_what_explains_half_of_the_slowdown")
def a_cost_that_rose_is_no_cause(patch: pytest.MonkeyPatch) -> None:
    """Neither more compilations nor more padding is what made a cell slower."""
    patch.setattr(cause, "_rise", lambda new, old: None)


@inject(TOO_SLOW)
def compilation_counts_as_a_step(patch: pytest.MonkeyPatch) -> None:
    """The seconds of the first step hold what it compiled: a compiled cell is too slow for its compilation."""
    right = bench.CellBench.first_step_s

    def first_step_s(self: bench.CellBench, *given: Any) -> float:
        before = self.compiler.seconds
        return right(self, *given) + self.compiler.seconds - before

    patch.setattr(bench.CellBench, "first_step_s", first_step_s)


@inject(TOO_SLOW)
def one_step_is_held_to_the_limit(patch: pytest.MonkeyPatch) -> None:
    """A cell is too slow where a single step takes longer than the limit of all of them."""
    right = bench.too_slow
    everywhere(patch, right, lambda step_s, steps, limit_s: right(step_s, 1, limit_s))
