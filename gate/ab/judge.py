"""The verdicts of an A/B comparison: screen every cell, confirm the flagged ones, decide on the confirmation alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gate.ab.causes import costlier_causes, slower_causes
from gate.ab.pairs import (
    FEWEST_PAIRS,
    FLAG_SHARE,
    TO_BE_SEEN,
    Shift,
    Spread,
    Threshold,
    confirmed,
    screened_shift,
    spreads,
    visible,
    worth_confirming,
)
from gate.ab.run import Duel, Phase, any_time, calmest, failures, mostly_held_up
from gate.baseline.verdicts import CellVerdict, Verdict
from gate.cause import Cause
from gate.exact import FAILS_STRICT, Finding, compare
from gate.records import cells, same_versions

#: A cell that too few pairs count for is told so many reasons of; what disturbed whole pairs is told below the table.
MOST_REASONS = 2


@dataclass
class Found:
    """What came of a comparison: a verdict a cell, and what it rests on."""

    verdicts: list[CellVerdict]
    screens: Phase
    confirms: Phase
    shifts: dict[str, Shift]
    noise: dict[str, Spread]
    causes: dict[str, Cause]
    seconds: float
    notes: list[str] = field(default_factory=list)


@dataclass
class Evidence:
    """All that verdicts are drawn from."""

    duel: Duel
    threshold: Threshold
    alpha: float
    wanted: tuple[int, int]
    screens: Phase
    confirms: Phase = field(default_factory=Phase)
    shifts: dict[str, Shift] = field(default_factory=dict)
    noise: dict[str, Spread] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)
    costs_asked: bool = False

    def base_ms(self, cell: str) -> float:
        """A cell's time on base, in the pairs that its change is from."""
        phase = self.confirms if cell in self.chosen and self.confirms.valid(cell) else self.screens
        return phase.base_ms(cell)

    def limit(self, cell: str) -> float:
        """The practical threshold of a cell, as a log-ratio."""
        return self.threshold.log(self.screens.base_ms(cell))

    def same_versions(self) -> bool:
        """Whether both sides ran with the same packages: others have other exact costs."""
        first = self.screens.pairs[0]
        return same_versions(first.base, first.head)


def judge(
    duel: Duel,
    screen_pairs: int,
    confirm_pairs: int,
    threshold: Threshold,
    alpha: float,
    *,
    costs_asked: bool = False,
) -> Found:
    """Run what is needed, and judge every cell of either side; ValueError if neither ran any.

    `costs_asked`: both processes of the first pair were to measure exact costs, so one that is lost leaves its cell
    untold. Recorded processes are replayed with or without theirs.
    """
    first = duel.first()
    base, head = cells(first.base), cells(first.head)
    if not base and not head:
        place = duel.folder / "logs"
        raise ValueError(f"cells were to be compared, and neither side ran one: see why in {place}, and start anew.")
    both = [cell for cell in base if cell in head]
    pairs = duel.pairs("screen", both, screen_pairs, begun=[first])
    screens = Phase(pairs, calmest(pairs))
    seen = Evidence(duel, threshold, alpha, (screen_pairs, confirm_pairs), screens, costs_asked=costs_asked)
    logs = {cell: valid for cell in both if len(valid := screens.valid(cell)) > 1}
    seen.noise = spreads(logs)
    seen.chosen = [cell for cell in logs if worth_confirming(logs[cell], seen.noise[cell], seen.limit(cell))]
    seen.shifts = {
        cell: screened_shift(logs[cell], seen.noise[cell], len(logs), alpha=alpha)
        for cell in logs
        if cell not in seen.chosen
    }
    if seen.chosen:
        print(f"to confirm: {', '.join(seen.chosen)}", flush=True)
        fresh = duel.pairs("confirm", seen.chosen, confirm_pairs, earlier=pairs)
        seen.confirms = Phase(fresh, calmest([*pairs, *fresh]))
        enough = [cell for cell in seen.chosen if len(seen.confirms.valid(cell)) >= FEWEST_PAIRS]
        table = {cell: seen.confirms.log_ratios(cell) for cell in enough}
        seen.shifts |= confirmed(table, seen.noise, alpha=alpha)
    verdicts = [_verdict(seen, cell, base, head) for cell in dict.fromkeys([*base, *head])]
    if not any_time([*pairs, *seen.confirms.pairs], "base"):
        verdicts = [_beside_nothing(found) for found in verdicts]
    red = [found.cell for found in verdicts if found.verdict == Verdict.REGRESSED and not _lost(seen, found.cell)]
    slower = [cell for cell in red if _slower(seen, cell)]
    causes = slower_causes(duel, slower, seen.confirms, first)
    causes |= costlier_causes([cell for cell in red if cell not in slower], screens, first)
    order = list(Verdict)
    verdicts.sort(key=lambda found: (order.index(found.verdict), -(found.change or 0.0)))
    return Found(
        verdicts, screens, seen.confirms, seen.shifts, seen.noise, causes, duel.seconds, _notes(seen, verdicts)
    )


def _verdict(seen: Evidence, cell: str, base: Mapping[str, Any], head: Mapping[str, Any]) -> CellVerdict:
    if cell not in head:
        return CellVerdict(cell, Verdict.MISSING, "runs on base, not on head")
    if cell not in base:
        return CellVerdict(cell, Verdict.NEW, "runs on head, not on base")
    findings = tuple(compare(head[cell], base[cell]))
    lost = _lost(seen, cell)
    verdict, why = lost or _by_time(seen, cell)
    # Of other versions of torch or a kernel other costs are expected; they are told, and judged by time.
    if seen.same_versions():
        if any(finding.worse for finding in findings):
            verdict = Verdict.REGRESSED
        elif any(finding.kind == "better" for finding in findings) and verdict == Verdict.SAME:
            verdict = Verdict.IMPROVED
        if seen.costs_asked and verdict in (Verdict.IMPROVED, Verdict.SAME) and _unjudged(findings):
            verdict = Verdict.CANNOT_TELL
        kept = findings
    else:
        kept = ()
    why = "; ".join(filter(None, [why, *map(str, findings)]))
    if lost or cell not in seen.shifts:
        return CellVerdict(cell, verdict, why, findings=kept)
    shift, then_ms = seen.shifts[cell], seen.base_ms(cell)
    change, low, high = (math.expm1(log) for log in (shift.log_ratio, shift.low, shift.high))
    return CellVerdict(cell, verdict, why, change, low, high, then_ms * (1 + change), then_ms, kept)


def _unjudged(findings: Sequence[Finding]) -> bool:
    """Whether an exact cost is one that cannot be judged, which fails where nothing may pass unjudged."""
    return any(finding.kind in FAILS_STRICT and not finding.worse for finding in findings)


def _beside_nothing(found: CellVerdict) -> CellVerdict:
    """The verdict on a cell where base has no time of any: *new* cells alone must not pass for a comparison."""
    if found.verdict not in (Verdict.NEW, Verdict.SAME):
        return found
    return replace(found, verdict=Verdict.CANNOT_TELL, why=f"{found.why}; no cell has a time on base to compare with")


def _lost(seen: Evidence, cell: str) -> tuple[Verdict, str] | None:
    """The verdict on a cell that has no valid time in some process, None where it always has."""
    pairs = [*seen.screens.pairs, *seen.confirms.pairs]
    on_base, on_head = failures(pairs, cell)
    if not on_base and not on_head:
        return None
    runs = sum(cell in cells(pair.head) for pair in pairs)
    told = [_told(reasons, side, runs) for reasons, side in ((on_base, "base"), (on_head, "head")) if reasons]
    why = "; ".join(told)
    if on_base and on_head:
        # A cell that does not fit is a result, and it is still the same; one that fails or is wrong says nothing.
        full = all(reason.partition(":")[0] == "out of memory" for reason in (*on_base, *on_head))
        alike = full and len(on_base) == len(on_head) == runs
        return (Verdict.SAME if alike else Verdict.CANNOT_TELL), why
    if len(on_head) == runs:
        return Verdict.REGRESSED, why
    if len(on_base) == runs:
        return Verdict.NEW, f"{why}; it has a time on head"
    return Verdict.CANNOT_TELL, why


def _told(reasons: Sequence[str], side: str, runs: int) -> str:
    """`crashed on head: killed by SIGSEGV`, and in how many processes where it was not all."""
    kind, _, detail = reasons[0].partition(": ")
    often = "" if len(reasons) == runs else f" in {len(reasons)} of {runs} processes"
    return f"{kind} on {side}{often}{': ' + detail if detail else ''}"


def _by_time(seen: Evidence, cell: str) -> tuple[Verdict, str]:
    phase = seen.confirms if cell in seen.chosen else seen.screens
    verdict, why = _by_its_shift(seen, cell, phase)
    if verdict in (Verdict.SAME, Verdict.IMPROVED) and mostly_held_up(phase, cell):
        pairs = f"{phase.held_up(cell)} of {len(phase.valid(cell))} pairs that count"
        why = f"a slow host held up steps in {pairs}: without these, slower work of its own there would not show"
        return Verdict.CANNOT_TELL, why
    return verdict, why


def _by_its_shift(seen: Evidence, cell: str, phase: Phase) -> tuple[Verdict, str]:
    if cell not in seen.shifts:
        wanted = seen.wanted[cell in seen.chosen]
        why = [(pair.name, pair.disturbed or pair.held_up(cell, phase.calm)) for pair in phase.pairs]
        reasons = [f"{name}: {reason}" for name, reason in why if reason]
        if len(reasons) > MOST_REASONS:
            reasons = [*reasons[:MOST_REASONS], f"and {len(reasons) - MOST_REASONS} more"]
        if seen.duel.stopped:
            reasons.append("no time for more within --minutes")
        valid = len(phase.valid(cell))
        return Verdict.CANNOT_TELL, f"{valid} of {wanted} pairs count; {'; '.join(reasons) or 'too few'}"
    shift, limit = seen.shifts[cell], seen.limit(cell)
    if shift.p_slower is None or shift.p_faster is None:
        return _not_slower(shift, limit, FLAG_SHARE, "")
    pairs, shown, p = f"{shift.pairs} fresh pairs", shift.shown(alpha=seen.alpha), min(shift.p_slower, shift.p_faster)
    word = "slower" if shift.log_ratio > 0 else "faster"
    if abs(shift.log_ratio) > limit:
        if shown:
            verdict = Verdict.REGRESSED if shown == "slower" else Verdict.IMPROVED
            return verdict, f"{word} in {pairs}, p {p:.3f}"
        return Verdict.CANNOT_TELL, f"{word} by the mean of {pairs}, but noise may be all of it (p {p:.3f})"
    if shown:
        return Verdict.SAME, f"{word}, by less than the threshold of {math.expm1(limit):.1%}"
    return _not_slower(shift, limit, 1.0, f"not confirmed by {pairs}")


def _not_slower(shift: Shift, limit: float, share: float, why: str) -> tuple[Verdict, str]:
    """*Same*, unless noise hides slowdowns that are to be seen among those that pass `share` of the threshold."""
    seen = visible(shift.noise, shift.pairs, limit, share=share)
    if seen > TO_BE_SEEN * limit:
        return Verdict.CANNOT_TELL, f"noise hides what is below {math.expm1(seen):.1%}"
    return Verdict.SAME, why


def _slower(seen: Evidence, cell: str) -> bool:
    return _by_time(seen, cell)[0] == Verdict.REGRESSED


def _notes(seen: Evidence, verdicts: Sequence[CellVerdict]) -> list[str]:
    notes = []
    better: list[tuple[str, Finding]] = [(v.cell, f) for v in verdicts for f in v.findings if f.kind == "better"]
    if better:
        notes.append(
            f"{len({cell for cell, _ in better})} cells cost less than they did: a new baseline would hold that."
        )
    if seen.duel.stopped:
        notes.append("Stopped at the limit of --minutes before all pairs were run.")
    if not seen.same_versions():
        notes.append("The sides have other packages: exact costs are told, and only times are judged.")
    return notes
