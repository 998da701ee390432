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
    head_ms = _batch_ms(head)
    for base in bases:
        base_ms = _batch_ms(base) if base.clock == head.clock else {}
        if both := [batch for batch in head_ms if batch in base_ms]:
            known = head.host_deficit_ms is not None and base.host_deficit_ms is not None
            deficits = [(one.host_deficit_ms or 0.0) if known else 0.0 for one in (base, head)]
            logs.append(block_log([base_ms[batch] for batch in both], [head_ms[batch] for batch in both], *deficits))
    if not logs:
        raise ValueError(f"{head.id}: head and base timed no batch in common; time the same batches on both.")
    return statistics.fmean(logs)


def _batch_ms(record: CellRecord) -> dict[float, float]:
    """Return the median time of each batch by its number; without numbers each step is a batch of its own."""
    if record.no_time:
        return {}
    times: dict[float, list[float]] = {}
    for batch, ms in zip(record.batches or range(len(record.times_ms)), record.times_ms, strict=True):
        times.setdefault(batch, []).append(ms)
    return {batch: statistics.median(steps) for batch, steps in times.items()}


@dataclass(frozen=True)
class Screening:
    """A run beside a baseline: which cells live pairs must settle, and the verdicts when they have.

    `scope` are the baseline's cells that the run was asked for.
    """

    head: Record
    baseline: Baseline
    scope: Sequence[str]
    threshold: Threshold

    @cached_property
    def suspects(self) -> list[str]:
        """The comparable cells that are slower than the threshold, in the order they were run."""
        return [cell for cell in self._changes if self._slower(cell)]

    def verdicts(self, settled: Mapping[str, CellVerdict], why_not: Mapping[str, str]) -> list[CellVerdict]:
        """Return every verdict, the worst first.

        `settled` are those of live pairs, `why_not` says why the other suspects have none, both by cell.
        """
        found = [self._verdict(cell, settled.get(cell), why_not.get(cell, "")) for cell in self.head.cells]
        missing = [cell for cell in self.scope if cell not in self.head.cells]
        found += [CellVerdict(cell, Verdict.MISSING, "in the record, but head did not run it") for cell in missing]
        return worst_first(found)

    def _timed_bases(self, cell: str) -> list[CellRecord]:
        return [record for record in self.baseline.records(cell) if not record.no_time]

    def _doubts(self, cell: str) -> list[str]:
        """Return why the times of a cell that has some on both sides are not comparable: by the newest process."""
        head, base = self.head.cells[cell], self._timed_bases(cell)[-1]
        machine = self.baseline.newest_of(cell).machine
        doubts = reasons_of_machines(self.head.machine, machine) + reasons_of_cells(head, base)
        if not doubts and not (_batch_ms(head).keys() & _batch_ms(base).keys()):
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

    def _slower(self, cell: str) -> bool:
        return self._changes[cell] > self.threshold.log(self._base_ms(cell))

    def _verdict(self, cell: str, settled: CellVerdict | None, why_not: str) -> CellVerdict:
        bases = self.baseline.records(cell)
        if not bases:
            return CellVerdict(cell, Verdict.NEW, "not in the record")
        head, timed = self.head.cells[cell], self._timed_bases(cell)
        if head.no_time or not timed:
            return self._without_time(cell, head, bases[-1])
        machines = self.head.machine, self.baseline.newest_of(cell).machine
        # Other packages, or another device, have other exact costs.
        same = same_packages(*machines) and machines[0].get("device") == machines[1].get("device")
        return with_costs(settled or self._by_time(cell, why_not), compare(head, timed[-1]), same_packages=same)

    def _without_time(self, cell: str, head: CellRecord, base: CellRecord) -> CellVerdict:
        if self._timed_bases(cell):
            why = f"{head.no_time}; the record has a time"
            return CellVerdict(cell, Verdict.REGRESSED, why, base_ms=self._base_ms(cell))
        if not head.no_time:
            verdict = Verdict.INCONCLUSIVE if base.verdict == "timed" else Verdict.NEW
            return CellVerdict(cell, verdict, f"no time in the record ({base.no_time})", head_ms=head.step_ms)
        if head.verdict == base.verdict == "out of memory":
            return CellVerdict(cell, Verdict.SAME, "out of memory, as before")
        return CellVerdict(cell, Verdict.INCONCLUSIVE, f"{head.no_time} on head; {base.no_time} on base")

    def _by_time(self, cell: str, why_not: str) -> CellVerdict:
        """Return the verdict of a cell that live pairs did not settle."""
        base_ms, head = self._base_ms(cell), self.head.cells[cell]
        if cell not in self._changes:
            why = "; ".join(self._doubts(cell))
            return CellVerdict(cell, Verdict.INCONCLUSIVE, why, base_ms=base_ms, head_ms=head.step_ms)
        log, slower = self._changes[cell], self._slower(cell)
        told = f"{math.expm1(log):+.1%} beside the record" if abs(log) > TOLD * self.threshold.log(base_ms) else ""
        judged = CellVerdict(cell, Verdict.SAME, told, base_ms=base_ms, head_ms=base_ms * math.exp(log))
        if slower and log > math.log1p(RECORD_ALONE[head.clock] / 100):
            said = cause(head, self._timed_bases(cell)[-1])
            return replace(
                judged,
                verdict=Verdict.REGRESSED,
                why=f"{told}: too large for noise, even without a live pair",
                cause=said,
            )
        if slower:
            return replace(judged, verdict=Verdict.INCONCLUSIVE, why=f"{told}; not settled: {why_not}")
        return judged
