"""The plain rule for a run beside a baseline: what seems slower is a suspect, and only live pairs settle it.

Processes of other days share no memory layout and no neighbours with this one. So a record convicts no cell, but where
no such noise explains what was lost: a time that is none, an exact cost that rose, a slowdown of another size.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from gate.baseline.store import Baseline
from gate.judge.cause import cause
from gate.judge.compatible import reasons_of_cells, reasons_of_machines, same_packages
from gate.judge.exact import compare
from gate.judge.pairs import block_log
from gate.judge.verdicts import CellVerdict, Threshold, Verdict, with_costs, worst_first
from gate.record.cell import CellRecord, Clock
from gate.record.files import Record

#: A slowdown in percent, by the clock, that no noise between processes explains: a GPU's own, and a shared CPU's.
RECORD_ALONE: dict[Clock, float] = {"device": 25.0, "wall": 100.0}

#: The share of the threshold from which on a change is told.
TOLD = 0.5


def change_of(head: CellRecord, bases: Sequence[CellRecord]) -> float:
    """Return the log of head / base: of each batch beside itself, trimmed over batches, the mean over processes.

    A batch's time is the median of its steps. What the host's launches add counts where both sides know it. ValueError
    if no base has a time of a batch that head has too, by the same clock.
    """
    logs = []
    new = _batch_ms(head)
    for base in bases:
        old = _batch_ms(base) if base.clock == head.clock else {}
        if both := [batch for batch in new if batch in old]:
            known = head.host_deficit_ms is not None and base.host_deficit_ms is not None
            deficits = [(one.host_deficit_ms or 0.0) if known else 0.0 for one in (base, head)]
            logs.append(block_log([old[batch] for batch in both], [new[batch] for batch in both], *deficits))
    if not logs:
        raise ValueError(f"{head.id}: head and base have no batch in common that both have a time of.")
    return statistics.fmean(logs)


def _batch_ms(record: CellRecord) -> dict[float, float]:
    """Return the median time of each batch by its number; without numbers each step is a batch of its own."""
    if record.no_time:
        return {}
    times: dict[float, list[float]] = {}
    for batch, ms in zip(record.batches or range(len(record.times_ms)), record.times_ms, strict=True):
        times.setdefault(batch, []).append(ms)
    return {batch: statistics.median(steps) for batch, steps in times.items()}


def screen(head: Record, baseline: Baseline, scope: Sequence[str], threshold: Threshold) -> "Screening":
    """Compare a run with a baseline; `scope` are the baseline's cells that the run was asked for."""
    return Screening(head, baseline, tuple(scope), threshold)


@dataclass(frozen=True)
class Screening:
    """A run beside a baseline: which cells live pairs must settle, and the verdicts when they have."""

    head: Record
    baseline: Baseline
    scope: tuple[str, ...]
    threshold: Threshold

    @cached_property
    def suspects(self) -> list[str]:
        """The comparable cells that are slower than the threshold, in the order they were run."""
        return [cell for cell in self._changes if self._slower(cell)]

    @cached_property
    def same_packages(self) -> bool:
        """Whether exact costs are comparable: other packages, or another device, have others."""
        new, old = self.head.machine, self.baseline.newest.machine
        return same_packages(new, old) and new.get("device") == old.get("device")

    def verdicts(self, settled: Mapping[str, CellVerdict], why_not: str) -> list[CellVerdict]:
        """Return every verdict, the worst first.

        `settled` are those of live pairs, by cell; `why_not` says why the other suspects have none.
        """
        found = [self._verdict(cell, settled.get(cell), why_not) for cell in self.head.cells]
        missing = [cell for cell in self.scope if cell not in self.head.cells]
        found += [CellVerdict(cell, Verdict.MISSING, "in the record, not run on head") for cell in missing]
        return worst_first(found)

    def _timed_bases(self, cell: str) -> list[CellRecord]:
        return [record for record in self.baseline.records(cell) if not record.no_time]

    def _doubts(self, cell: str) -> list[str]:
        """Return why the times of a cell that has some on both sides are not comparable: by the newest process."""
        newest = self._timed_bases(cell)[-1]
        machines = reasons_of_machines(self.head.machine, self.baseline.newest.machine)
        doubts = machines + reasons_of_cells(self.head.cells[cell], newest)
        if not doubts and not (_batch_ms(self.head.cells[cell]).keys() & _batch_ms(newest).keys()):
            doubts.append("other batches: head and base have none in common")
        return doubts

    @cached_property
    def _changes(self) -> dict[str, float]:
        """The change of each cell whose times are comparable."""
        return {
            cell: change_of(record, self._timed_bases(cell))
            for cell, record in self.head.cells.items()
            if not record.no_time and self._timed_bases(cell) and not self._doubts(cell)
        }

    def _base_ms(self, cell: str) -> float:
        return statistics.median(ms for record in self._timed_bases(cell) if (ms := record.step_ms) is not None)

    def _limit(self, cell: str) -> float:
        return self.threshold.log(self._base_ms(cell))

    def _slower(self, cell: str) -> bool:
        return self._changes[cell] > self._limit(cell)

    def _verdict(self, cell: str, settled: CellVerdict | None, why_not: str) -> CellVerdict:
        olds = self.baseline.records(cell)
        if not olds:
            return CellVerdict(cell, Verdict.NEW, "not in the record")
        head, timed = self.head.cells[cell], self._timed_bases(cell)
        if head.no_time or not timed:
            return self._without_time(cell, head, olds, timed)
        judged = settled or self._by_time(cell, why_not)
        findings = compare(head, timed[-1])
        return with_costs(judged, findings, same_packages=self.same_packages)

    def _without_time(
        self, cell: str, head: CellRecord, olds: Sequence[CellRecord], timed: Sequence[CellRecord]
    ) -> CellVerdict:
        if timed:
            why = f"{head.no_time}; had a time before"
            return CellVerdict(cell, Verdict.REGRESSED, why, base_ms=self._base_ms(cell))
        lacking = olds[-1].no_time
        if not head.no_time:
            why = f"no time in the record ({lacking})"
            verdict = Verdict.INCONCLUSIVE if olds[-1].verdict == "timed" else Verdict.NEW
            return CellVerdict(cell, verdict, why, head_ms=head.step_ms)
        if head.verdict == olds[-1].verdict == "out of memory":
            return CellVerdict(cell, Verdict.SAME, "out of memory, as before")
        return CellVerdict(cell, Verdict.INCONCLUSIVE, f"{head.no_time} on head; {lacking} on base")

    def _by_time(self, cell: str, why_not: str) -> CellVerdict:
        """Return the verdict of a cell that live pairs did not settle."""
        base_ms, head = self._base_ms(cell), self.head.cells[cell]
        if cell not in self._changes:
            why = "; ".join(self._doubts(cell))
            return CellVerdict(cell, Verdict.INCONCLUSIVE, why, base_ms=base_ms, head_ms=head.step_ms)
        log, limit = self._changes[cell], self._limit(cell)
        told = f"{math.expm1(log):+.1%} beside the record" if abs(log) > TOLD * limit else ""
        judged = CellVerdict(cell, Verdict.SAME, told, base_ms=base_ms, head_ms=base_ms * math.exp(log))
        if log > math.log1p(RECORD_ALONE[head.clock] / 100) and self._slower(cell):
            said = cause(head, self._timed_bases(cell)[-1])
            return replace(judged, verdict=Verdict.REGRESSED, why=f"{told}: slower by the record alone", cause=said)
        if self._slower(cell):
            return replace(judged, verdict=Verdict.INCONCLUSIVE, why=f"{told}; not settled: {why_not}")
        return judged
