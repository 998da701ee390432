"""Faults of the gate: what it compares, counts and passes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gate.ab import judge as ab
from gate.baseline.verdicts import CellVerdict, Comparison, Rule, Verdict

from gate import records
from gate.baseline import baselines, comparing, report, verdicts
from tests.meta.faults.fault import Faults, everywhere

GATE = Faults("gate")
plant = GATE.plant

VERDICTS, COMPARING = "test_verdicts.py::", "test_comparing.py::"
LEFT = COMPARING + "test_a_cell_that_vanishes_is_missing_unless_the_run_leaves_out_just_that"
COSTS = "test_a_cost_that_rose_fails_whatever_the_time_and_one_that_fell_hides_no_time"
TOO_SLOW = "test_step_verdicts.py::test_the_limit_is_on_all_steps_to_come_and_the_seconds_of_compilation_are_no_step"


@plant(COMPARING + "test_a_run_without_a_cell_of_the_record_compares_nothing")
def new_cells_alone_pass(patch: pytest.MonkeyPatch) -> None:
    """A run that has no cell in common with the record has no cell that fails, and passes."""
    everywhere(patch, verdicts.nothing_judged, lambda found: False)


@plant("test_ab.py::test_sides_without_a_cell_in_common_are_no_comparison")
def what_is_new_counts_as_judged(patch: pytest.MonkeyPatch) -> None:
    """In A/B comparisons, too, a cell of head alone counts as one that was compared."""
    patch.setattr(verdicts, "JUDGED", (*verdicts.JUDGED, Verdict.NEW))


@plant(LEFT)
def compiled_cells_are_never_missing(patch: pytest.MonkeyPatch) -> None:
    """Compiled cells of a baseline that a default run no longer has count as left out on purpose."""
    right = comparing.Comparing._asked_for

    def asked_for(self: Any, info: dict[str, Any], found: set[tuple[str, str]]) -> bool:
        return info["cell"]["execution"] != "compiled" and right(self, info, found)

    patch.setattr(comparing.Comparing, "_asked_for", asked_for)


@plant(LEFT)
def a_narrowed_run_misses_nothing(patch: pytest.MonkeyPatch) -> None:
    """A run of one backend is asked for none of the baseline's cells."""
    right = comparing.Comparing._asked_for
    patch.setattr(
        comparing.Comparing,
        "_asked_for",
        lambda self, info, found: not self.config.getoption("backend", None) and right(self, info, found),
    )


@plant("test_baselines.py::test_an_entry_of_the_index_without_one_of_its_fields_is_refused")
def digests_are_optional(patch: pytest.MonkeyPatch) -> None:
    """A baseline whose entry in the index has no digest is taken as it is."""

    right = baselines.read_index

    def read_index(root: Path) -> dict[str, str]:
        try:
            return right(root)
        except ValueError:
            entries = baselines._json(root / baselines.INDEX)["baselines"]
            if not all(each.get("path") for each in entries):
                raise
            return {each["path"]: baselines.digest_of(baselines._json(root / each["path"])) for each in entries}

    patch.setattr(baselines, "read_index", read_index)


def costs_ignored_where_faster(found: CellVerdict) -> CellVerdict:
    faster = found.change is not None and found.change < -0.02
    return replace(found, verdict=Verdict.IMPROVED) if faster else found


@plant(VERDICTS + COSTS)
def a_cost_that_rose_passes_where_the_time_fell(patch: pytest.MonkeyPatch) -> None:
    """A cell is *improved* by its time, though it takes more memory than before."""
    right = Comparison._cell
    patch.setattr(Comparison, "_cell", lambda self, *given: costs_ignored_where_faster(right(self, *given)))


@plant("test_ab.py::" + COSTS)
def a_cost_that_rose_passes_where_head_is_faster(patch: pytest.MonkeyPatch) -> None:
    """The same in an A/B comparison."""
    right = ab._verdict
    patch.setattr(ab, "_verdict", lambda *given: costs_ignored_where_faster(right(*given)))


@plant(VERDICTS + COSTS)
def a_cost_that_fell_hides_a_slower_step(patch: pytest.MonkeyPatch) -> None:
    """A cell with any exact cost below the baseline's is *improved*, whatever its time."""
    right = Comparison._cell

    def cell(self: Comparison, *given: Any) -> CellVerdict:
        found = right(self, *given)
        better = any(finding.kind == "better" for finding in found.findings)
        return replace(found, verdict=Verdict.IMPROVED) if better else found

    patch.setattr(Comparison, "_cell", cell)


@plant(VERDICTS + "test_a_real_but_meaningless_change_passes")
def one_threshold_is_enough(patch: pytest.MonkeyPatch) -> None:
    """A change counts beyond the smaller of the two thresholds, not beyond both."""

    def threshold(self: Rule, clock: Any, then_ms: float) -> float:
        return min(self.percent_of(clock) / 100, self.microseconds / 1e3 / then_ms)

    patch.setattr(Rule, "threshold", threshold)


@plant(VERDICTS + "test_a_change_beyond_noise_and_threshold_is_told")
def then_over_now(patch: pytest.MonkeyPatch) -> None:
    """Ratios are of the baseline's times over those of the run: what is slower is called faster."""
    right = Comparison.change

    def change(self: Comparison, *given: Any, **options: Any) -> tuple[float, float, float]:
        moved, half, drift = right(self, *given, **options)
        return -moved, half, drift

    patch.setattr(Comparison, "change", change)


@plant(VERDICTS + "test_unchanged_code_is_called_slower_in_at_most_one_run_of_twenty")
def each_cell_is_a_family_of_its_own(patch: pytest.MonkeyPatch) -> None:
    """Intervals hold for one cell at a time, and a run of many cells has a false alarm in most cases."""
    right = verdicts.family_quantile
    patch.setattr(verdicts, "family_quantile", lambda df, family, level: right(df, 1, level))


@plant(VERDICTS + "test_each_verdict_fails_a_run_as_it_must")
def missing_cells_pass_when_strict(patch: pytest.MonkeyPatch) -> None:
    """One of the two statuses that fail a strict run is dropped from its exit status."""
    for module in (verdicts, report):
        patch.setattr(module, "STRICT", (Verdict.CANNOT_TELL,))


@plant(VERDICTS + "test_each_verdict_fails_a_run_as_it_must")
def what_cannot_be_told_passes_when_strict(patch: pytest.MonkeyPatch) -> None:
    """The other one is dropped: a run passes where noise hides what matters."""
    for module in (verdicts, report):
        patch.setattr(module, "STRICT", (Verdict.MISSING,))


@plant(LEFT)
def cells_matched_without_their_execution(patch: pytest.MonkeyPatch) -> None:
    """A cell's id lacks whether it is compiled: a compiled one is compared with an eager one."""
    right = records.cell_id
    patch.setattr(records, "cell_id", lambda cell: right({**cell, "execution": "eager"}))


@plant(VERDICTS + "test_a_time_that_was_lost_is_no_pass")
def a_cell_without_a_time_is_compared_by_none(patch: pytest.MonkeyPatch) -> None:
    """A cell that had a time and is too slow, wrong or out of memory now is the same as before."""
    right = Comparison._without_time

    def without_time(self: Comparison, cell: str, new: Any, newest: dict[str, Any]) -> CellVerdict:
        found = right(self, cell, new, newest)
        return replace(found, verdict=Verdict.SAME) if found.verdict == Verdict.REGRESSED else found

    patch.setattr(Comparison, "_without_time", without_time)


@plant(VERDICTS + "test_suspects_are_judged_by_their_new_times")
def suspects_are_judged_by_the_first_time(patch: pytest.MonkeyPatch) -> None:
    """Suspects are timed again, and judged by the times that made them suspects."""
    right = Comparison.judge
    patch.setattr(Comparison, "judge", lambda self, confirmed=None: right(self))


@plant(TOO_SLOW)
def compilation_counts_as_a_step(patch: pytest.MonkeyPatch) -> None:
    """The seconds of the first step hold what it compiled: a compiled cell is too slow for its compilation."""
    from tests.performance.bench import CellBench

    right = CellBench.first_step_s

    def first_step_s(self: CellBench, *given: Any) -> float:
        before = self.compiler.seconds
        return right(self, *given) + self.compiler.seconds - before

    patch.setattr(CellBench, "first_step_s", first_step_s)


@plant(TOO_SLOW)
def one_step_is_held_to_the_limit(patch: pytest.MonkeyPatch) -> None:
    """A cell is too slow where a single step takes longer than the limit of all of them."""
    from tests.performance import bench

    right = bench.too_slow
    everywhere(patch, right, lambda step_s, steps, limit_s: right(step_s, 1, limit_s))
