"""Judges the cells of a live comparison: which of them fresh pairs settle, and what all their pairs say of each."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from gate.judge import pairs
from gate.judge.cause import cause
from gate.judge.exact import compare
from gate.judge.verdicts import CellVerdict, Change, Threshold, Verdict, with_costs
from gate.record.cell import CellRecord

#: The verdict of a side that could be opened alone, and was not timed.
FITS = "fits alone"


@dataclass
class PairResult:
    """What one live pair measured of a cell: both sides, and the log of head / base of each block.

    `note` says why two that fit alone were not timed.
    """

    cell: str
    base: CellRecord
    head: CellRecord
    blocks: list[float] = field(default_factory=list)
    note: str = ""

    @cached_property
    def lost(self) -> dict[str, str]:
        """Why a side has no time, by side; empty where both have one."""
        both = {"base": self.base, "head": self.head}
        return {side: one.no_time for side, one in both.items() if one.verdict != FITS and one.no_time}

    @cached_property
    def change(self) -> pairs.PairChange | None:
        """The cell's change in this pair, None where it was not timed on both sides."""
        return pairs.pair_change(self.blocks) if self.blocks and not self.lost else None

    def written(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        content = {"cell": self.cell, "blocks": self.blocks, "note": self.note}
        return content | {"base": self.base.written(), "head": self.head.written()}

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "PairResult":
        """Return what was written; ValueError, KeyError or TypeError where it was not."""
        base, head = (CellRecord.read(content[side]) for side in ("base", "head"))
        return cls(content["cell"], base, head, [float(log) for log in content["blocks"]], content["note"])


class LiveJudge:
    """The results of each cell so far, its screening first and then its fresh pairs, and what follows from them.

    With other packages on the two sides (`same_versions`) other exact costs are expected: only times are judged.
    """

    def __init__(self, threshold: Threshold, alpha: float, *, same_versions: bool = True) -> None:
        self.threshold, self.alpha, self.same_versions = threshold, alpha, same_versions
        self.results: dict[str, list[PairResult]] = {}
        self.noise = pairs.Noise(0.0, 0)
        self.flagged: list[str] = []

    def add(self, result: PairResult) -> None:
        """Add what one more pair measured."""
        self.results.setdefault(result.cell, []).append(result)

    def flag(self) -> list[str]:
        """Choose, once all are screened, what fresh pairs settle: changed cells, and those that one side alone lost."""
        quiet = []
        for cell, (one, *_) in self.results.items():
            if one.change is None:
                if len(one.lost) == 1:
                    self.flagged.append(cell)
            elif pairs.flagged(one.change, self._limit(cell)):
                self.flagged.append(cell)
            else:
                quiet.append(one.change)
        self.noise = pairs.screening_noise(quiet, len(self.results))
        return self.flagged

    def unsettled(self) -> list[str]:
        """Return the flagged cells that need another pair."""
        return [cell for cell in self.flagged if not self._is_settled(cell)]

    def _is_settled(self, cell: str) -> bool:
        results = self.results[cell]
        if len(results) - 1 < pairs.FEWEST_PAIRS:
            return False
        if any(one.change is None for one in results):
            return True
        change = self._change(cell)
        return change is not None and pairs.decided(change, self._limit(cell))

    def _limit(self, cell: str) -> float:
        return self.threshold.log(next(ms for one in self.results[cell] if (ms := one.base.step_ms)))

    def _change(self, cell: str) -> Change | None:
        """Return the change by the fresh pairs of a flagged cell, else by its screening; None where pairs lack."""
        screening, *fresh = (one.change for one in self.results[cell])
        if cell not in self.flagged:
            assert screening is not None
            return pairs.screened(screening, self.noise, len(self.results), alpha=self.alpha)
        known = [change for change in fresh if change is not None]
        if len(known) < pairs.FEWEST_PAIRS:
            return None
        return pairs.settled(known, self.noise, len(self.flagged), alpha=self.alpha)

    def verdict(self, cell: str) -> CellVerdict:
        """Return the verdict of a cell that both sides run."""
        results = self.results.get(cell)
        if not results:
            return CellVerdict(cell, Verdict.INCONCLUSIVE, "not measured: --minutes ended the run first")
        if any(one.lost for one in results):
            if cell in self.flagged and len(results) <= pairs.FEWEST_PAIRS:
                return CellVerdict(
                    cell, Verdict.INCONCLUSIVE, f"{_lost(cell, results).why}; {_too_few(len(results) - 1)}"
                )
            return _lost(cell, results)
        if note := next((one.note for one in results if one.note), ""):
            return CellVerdict(cell, Verdict.INCONCLUSIVE, note)
        findings = compare(results[0].head, results[0].base)
        return with_costs(self._by_time(cell), findings, same_packages=self.same_versions)

    def _by_time(self, cell: str) -> CellVerdict:
        results = self.results[cell]
        screening, *fresh = results
        change, limit = self._change(cell), self._limit(cell)
        if change is None:
            return CellVerdict(cell, Verdict.INCONCLUSIVE, _too_few(len(fresh)))
        told = fresh or [screening]
        base_ms = statistics.median(one.base.step_ms or math.nan for one in told)
        judged = CellVerdict(cell, Verdict.SAME, "", change, base_ms, base_ms * math.exp(change.log))
        if not fresh:
            hidden = pairs.FLAG_SHARE * limit + (change.high - change.log) / 2
            if hidden > pairs.TO_BE_SEEN * limit:
                return replace(judged, verdict=Verdict.INCONCLUSIVE, why=f"noise hides changes below {hidden:.1%}")
            return judged
        by = f"{len(fresh)} fresh pairs"
        shown, word = change.low > 0 or change.high < 0, "slower" if change.log > 0 else "faster"
        # A cell that some processes run slower than others is now slower and now faster.
        agreed = screening.change is not None and screening.change.log * change.log > 0
        if shown and agreed and change.log > limit:
            # The first fresh pair profiled both sides.
            found = cause(fresh[0].head, fresh[0].base)
            return replace(judged, verdict=Verdict.REGRESSED, why=f"{word} in {by}", cause=found)
        if shown and agreed and change.log < -limit:
            return replace(judged, verdict=Verdict.IMPROVED, why=f"{word} in {by}")
        if abs(change.log) > limit or max(change.high, -change.low) > pairs.TO_BE_SEEN * limit:
            first, *each = (f"{math.expm1(one.change.log):+.1%}" for one in results if one.change)
            why = f"undecided after {by}: {', '.join(each)} (screening: {first})"
            return replace(judged, verdict=Verdict.INCONCLUSIVE, why=why)
        return replace(
            judged, why=f"{word}, but by less than the threshold" if shown else f"{by} did not confirm a change"
        )


def _too_few(fresh: int) -> str:
    return f"{fresh} of {pairs.FEWEST_PAIRS} fresh pairs were run within --minutes"


def _lost(cell: str, results: Sequence[PairResult]) -> CellVerdict:
    """Judge a cell that has no time in some pair."""
    runs = len(results)
    reasons = {side: [one.lost[side] for one in results if side in one.lost] for side in ("base", "head")}
    why = "; ".join(_often(each, side, runs) for side, each in reasons.items() if each)
    on_base, on_head = (len(each) for each in reasons.values())
    if on_base and on_head:
        # A cell that does not fit is a result, and it is still the same; one that fails or is wrong says nothing.
        full = all(reason.partition(":")[0] == "out of memory" for each in reasons.values() for reason in each)
        return CellVerdict(cell, Verdict.SAME if full and on_base == on_head == runs else Verdict.INCONCLUSIVE, why)
    if on_head == runs:
        return CellVerdict(cell, Verdict.REGRESSED, why)
    if on_base == runs:
        return CellVerdict(cell, Verdict.NEW, f"{why}; it runs on head")
    return CellVerdict(cell, Verdict.INCONCLUSIVE, why)


def _often(reasons: Sequence[str], side: str, runs: int) -> str:
    """`crashed on head: killed by SIGSEGV`, and in how many pairs where it was not all."""
    kind, _, detail = reasons[0].partition(": ")
    often = "" if len(reasons) == runs else f" in {len(reasons)} of {runs} pairs"
    return f"{kind} on {side}{often}{': ' + detail if detail else ''}"
