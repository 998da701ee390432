"""What is said of a cell: its verdict, its change, and what a run makes of all of them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from gate.judge.cause import Cause
from gate.judge.exact import FAILS_STRICT, Finding


class Verdict(StrEnum):
    """What is said of a cell, the worst first."""

    REGRESSED = "regressed"
    MISSING = "missing"
    INCONCLUSIVE = "inconclusive"
    IMPROVED = "improved"
    NEW = "new"
    SAME = "same"


#: Verdicts that fail a run where nothing may pass unjudged.
STRICT = (Verdict.INCONCLUSIVE, Verdict.MISSING)

#: Verdicts that say how a cell stands beside what it was: a run without any of them compared nothing.
JUDGED = (Verdict.REGRESSED, Verdict.IMPROVED, Verdict.SAME)

#: Practical thresholds in percent, by device: what is smaller is of no use to know, and on a CPU costs minutes to see.
PERCENT = {"cuda": 1.0, "cpu": 3.0}


def device_of(slug: str) -> str:
    """Return cpu or cuda, by the name of a device's folder of records."""
    return "cpu" if slug.startswith("cpu-") else "cuda"


@dataclass(frozen=True)
class Threshold:
    """What a change must pass to matter: both this many percent and this many microseconds a step."""

    percent: float
    us: float = 20.0

    def log(self, base_ms: float) -> float:
        """Return the threshold of a cell that takes `base_ms`, as a log-ratio."""
        return max(math.log1p(self.percent / 100), math.log1p(self.us / 1e3 / base_ms))


@dataclass(frozen=True)
class Change:
    """The log of head / base, and an interval that holds for all cells of the run at once."""

    log: float
    low: float
    high: float

    def __str__(self) -> str:
        """`+2.1% (+1.8% .. +2.4%)`."""
        return f"{math.expm1(self.log):+.1%} ({math.expm1(self.low):+.1%} .. {math.expm1(self.high):+.1%})"


@dataclass(frozen=True)
class CellVerdict:
    """A cell's verdict and why; without a change and times where none were compared."""

    cell: str
    verdict: Verdict
    why: str = ""
    change: Change | None = None
    base_ms: float | None = None
    head_ms: float | None = None
    findings: tuple[Finding, ...] = ()
    cause: Cause | None = None

    def fails(self, *, strict: bool) -> bool:
        """Tell whether the cell fails the run."""
        unjudged = self.verdict in STRICT or any(finding.kind in FAILS_STRICT for finding in self.findings)
        return self.verdict == Verdict.REGRESSED or (strict and unjudged)

    @property
    def told(self) -> str:
        """Why, what cost changed, and the cause, as one text."""
        said = [self.why, *map(str, self.findings), str(self.cause) if self.cause else ""]
        return "; ".join(filter(None, said))


def with_costs(judged: CellVerdict, findings: Sequence[Finding], *, same_packages: bool) -> CellVerdict:
    """Return the verdict of a cell by its time and its exact costs; `judged` may hold findings already.

    Of other packages other costs are expected: they are told, and only times are judged.
    """
    if not same_packages:
        return replace(judged, why="; ".join(filter(None, [judged.why, *map(str, findings)])))
    verdict, known = judged.verdict, {finding.cost for finding in findings}
    findings = (*findings, *(finding for finding in judged.findings if finding.cost not in known))
    passes = verdict in (Verdict.SAME, Verdict.IMPROVED)
    if any(finding.worse for finding in findings):
        verdict = Verdict.REGRESSED
    elif passes and any(finding.kind in FAILS_STRICT for finding in findings):
        verdict = Verdict.INCONCLUSIVE
    elif passes and any(finding.kind == "better" for finding in findings):
        verdict = Verdict.IMPROVED
    return replace(judged, verdict=verdict, findings=findings)


def worst_first(verdicts: Sequence[CellVerdict]) -> list[CellVerdict]:
    """Return the verdicts in the order of `Verdict`, then the largest slowdown first."""
    order = list(Verdict)
    return sorted(verdicts, key=lambda one: (order.index(one.verdict), -(one.change.log if one.change else 0.0)))


def nothing_judged(verdicts: Sequence[CellVerdict]) -> bool:
    """Tell whether no cell was compared, as where no cell is on both sides: *new* cells alone are no pass."""
    return not any(one.verdict in JUDGED for one in verdicts)


def fail(verdicts: Sequence[CellVerdict], *, strict: bool) -> bool:
    """Tell whether a run fails: by one of its cells, or, if strict, as none of them was compared."""
    return any(one.fails(strict=strict) for one in verdicts) or (strict and nothing_judged(verdicts))


def counts(verdicts: Sequence[CellVerdict], *, strict: bool) -> str:
    """Return the last line of a report: `FAILED: 1 regressed, 21 same`; no pass where nothing was compared."""
    numbers = Counter(one.verdict for one in verdicts)
    told = ", ".join(f"{numbers[verdict]} {verdict}" for verdict in Verdict if numbers[verdict]) or "no cell"
    nothing = "nothing was judged" if numbers[Verdict.INCONCLUSIVE] else "nothing was compared"
    nothing = nothing if nothing_judged(verdicts) else ""
    if fail(verdicts, strict=strict):
        return "; ".join(filter(None, [f"FAILED: {told}", nothing]))
    if nothing:
        return f"NO VERDICT: {told}; {nothing} (fails only under --gate-strict)"
    unjudged = any(one.fails(strict=True) for one in verdicts)
    words = " and ".join(verdict for verdict in reversed(STRICT))
    return f"passed: {told}" + (f" ({words} fail under --gate-strict)" if unjudged else "")
