"""Compares two sides: one live pair screens every cell, and pairs of fresh workers settle those that it flags."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gate.judge import pairs
from gate.judge.cause import Cause, cause
from gate.judge.exact import FAILS_STRICT, Finding, compare
from gate.judge.verdicts import JUDGED, PERCENT, CellVerdict, Change, Threshold, Verdict, worst_first
from gate.live.pair import FITS, LivePair, PairResult
from gate.live.workers import Side

#: The packages that a step runs: with others of these it has other exact costs.
STEP_PACKAGES = ("torch", "triton", "flash-attn", "xformers", "transformers")


@dataclass(frozen=True)
class Request:
    """What is compared, and by which rule; `percent` None takes the device's (`PERCENT`)."""

    sides: Mapping[str, Side]
    folder: Path
    hello: Mapping[str, Any]
    percent: float | None = None
    us: float = 20.0
    alpha: float = 0.05
    seed: int = 0
    stall_s: float = 300.0
    minutes: float | None = None


@dataclass
class Found:
    """What came of a comparison: a verdict a cell, what it rests on, and the machine."""

    verdicts: list[CellVerdict]
    results: dict[str, list[PairResult]]
    machine: dict[str, Any]
    threshold: Threshold
    noise: pairs.Noise
    pairs: int
    seconds: float
    notes: list[str] = field(default_factory=list)


class Comparison:
    """Runs what is needed for a verdict on every cell, and keeps each finished cell of each pair in the folder."""

    def __init__(self, request: Request, say: Callable[[str], None] = print) -> None:
        self.request, self.say = request, say
        self.begun = time.monotonic()
        #: The results of each cell: its screening, then its fresh pairs.
        self.results: dict[str, list[PairResult]] = {}
        self.noise = pairs.Noise(0.0, 0)
        self.longest_s = 0.0
        self.stopped = False
        self.live: list[LivePair] = []

    def run(self) -> Found:
        """Measure and judge; ValueError if a side cannot be driven, or neither runs a cell."""
        try:
            return self._run()
        finally:
            for pair in self.live:
                pair.close()

    def _pair(self, number: int) -> LivePair:
        """Return the pair of this number (0 screens), and have the next one start meanwhile on a GPU's host."""
        while len(self.live) <= number:
            name = f"pair-{len(self.live)}"
            request = self.request
            logs = request.folder / "logs"
            self.live.append(LivePair(name, request.sides, request.hello, logs, request.stall_s))
        for before in self.live[:number]:
            before.close()
        return self.live[number]

    def _run(self) -> Found:
        first = self._pair(0)
        greeted = first.ready()
        device = greeted["head"]["device"]
        percent = PERCENT[device] if self.request.percent is None else self.request.percent
        self.threshold = Threshold(percent, self.request.us)
        machine, versions = greeted["head"]["machine"], [step_versions(greeted[side]["machine"]) for side in greeted]
        self.same_versions = versions[0] == versions[1]
        listed = {side: {each["id"]: each for each in greeted[side]["cells"]} for side in greeted}
        runs = {side: [cell for cell, each in cells.items() if not each["unavailable"]] for side, cells in listed.items()}
        if not runs["base"] and not runs["head"]:
            why = next((each["unavailable"] for each in listed["head"].values()), "none is declared here")
            raise ValueError(f"neither side runs a cell of what was asked for: {why}.")
        both = [cell for cell in runs["head"] if cell in runs["base"]]
        random.Random(self.request.seed).shuffle(both)
        if device == "cuda":
            # A GPU's host has cores to spare: the first fresh pair starts while the screening runs.
            self.live.append(
                LivePair("pair-1", self.request.sides, self.request.hello, self.request.folder / "logs", self.request.stall_s)
            )
        self._measure(0, both)
        chosen = self._flagged(both)
        self.noise = pairs.screening_noise(
            [one.change for cell in both if cell not in chosen and (one := self._screening(cell)) and one.change]
        )
        self.flagged = list(chosen)
        if chosen:
            self.say(f"to settle by fresh pairs: {', '.join(chosen)}")
        for number in range(1, pairs.MOST_PAIRS + 1):
            if not chosen or self.stopped:
                break
            self._measure(number, chosen)
            if number >= pairs.FEWEST_PAIRS:
                chosen = [cell for cell in chosen if not self._is_settled(cell)]
        verdicts = [self._verdict(cell) for cell in both]
        verdicts += [self._one_sided(cell, listed["head"], "base") for cell in runs["base"] if cell not in both]
        verdicts += [self._one_sided(cell, listed["base"], "head") for cell in runs["head"] if cell not in both]
        if not any(result.base.step_ms for results in self.results.values() for result in results):
            verdicts = [_beside_nothing(one) for one in verdicts]
        seconds = time.monotonic() - self.begun
        count = 1 + max((len(results) - 1 for results in self.results.values()), default=0)
        found = Found(worst_first(verdicts), self.results, machine, self.threshold, self.noise, count, seconds)
        found.notes = self._notes(found.verdicts)
        return found

    def _measure(self, number: int, cells: Sequence[str]) -> None:
        """Measure cells by the pair of this number, or take what an earlier run left of them in the folder."""
        for place, cell in enumerate(cells, start=1):
            path = self.request.folder / "pairs" / str(number) / f"{cell}.json"
            if path.exists():
                result = PairResult.load(path)
            else:
                if self._out_of_time():
                    self.stopped = True
                    return
                began = time.monotonic()
                rng = random.Random(f"{self.request.seed} {number} {cell}")
                result = self._pair(number).measure(cell, self.threshold, rng, kernels=number == 1)
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                result.save(path)
            self.results.setdefault(cell, []).append(result)
            kind = "screening" if number == 0 else f"fresh pair {number}"
            self.say(f"{kind} [{place}/{len(cells)}] {cell}: {_line(result)}")

    def _out_of_time(self) -> bool:
        minutes = self.request.minutes
        return minutes is not None and time.monotonic() - self.begun + self.longest_s > minutes * 60

    def _screening(self, cell: str) -> PairResult | None:
        return next(iter(self.results.get(cell, ())), None)

    def _limit(self, cell: str) -> float:
        base_ms = next((ms for one in self.results[cell] if (ms := one.base.step_ms)), 1.0)
        return self.threshold.log(base_ms)

    def _flagged(self, cells: Sequence[str]) -> list[str]:
        """Return the cells that fresh pairs settle: their change passes the rule, or one side alone has no time."""
        found = []
        for cell in cells:
            one = self._screening(cell)
            if one is None or one.note:
                continue
            if one.change is not None:
                if pairs.flagged(one.change, self._limit(cell)):
                    found.append(cell)
            elif len(one.lost) == 1:
                found.append(cell)
        return found

    def _fresh(self, cell: str) -> list[pairs.PairChange]:
        return [one.change for one in self.results[cell][1:] if one.change is not None]

    def _change(self, cell: str) -> Change | None:
        """Return the change of a cell: by its fresh pairs where it was flagged, else by the screening."""
        if cell in self.flagged:
            fresh = self._fresh(cell)
            enough = len(fresh) >= pairs.FEWEST_PAIRS
            return pairs.settled(fresh, self.noise, len(self.flagged), alpha=self.request.alpha) if enough else None
        one = self._screening(cell)
        if one is None or one.change is None:
            return None
        return pairs.screened(one.change, self.noise, len(self.results), alpha=self.request.alpha)

    def _is_settled(self, cell: str) -> bool:
        if any(one.lost or one.note for one in self.results[cell]):
            return True
        change = self._change(cell)
        return change is not None and pairs.decided(change, self._limit(cell))

    def _verdict(self, cell: str) -> CellVerdict:
        results = self.results.get(cell, [])
        if not results:
            return CellVerdict(cell, Verdict.INCONCLUSIVE, "no time was left for it within --minutes")
        note = next((one.note for one in results if one.note), "")
        lost = _lost(cell, results)
        if note or lost:
            return lost or CellVerdict(cell, Verdict.INCONCLUSIVE, note)
        findings = tuple(compare(results[0].head, results[0].base))
        judged = self._by_time(cell, results)
        verdict = judged.verdict
        if not self.same_versions:
            # Of other packages other costs are expected: they are told, and only times are judged.
            told = "; ".join(filter(None, [judged.why, *map(str, findings)]))
            return replace(judged, why=told)
        if any(finding.worse for finding in findings):
            verdict = Verdict.REGRESSED
        elif any(finding.kind in FAILS_STRICT for finding in findings) and verdict in (Verdict.SAME, Verdict.IMPROVED):
            verdict = Verdict.INCONCLUSIVE
        elif any(finding.kind == "better" for finding in findings) and verdict == Verdict.SAME:
            verdict = Verdict.IMPROVED
        return replace(judged, verdict=verdict, findings=findings)

    def _by_time(self, cell: str, results: Sequence[PairResult]) -> CellVerdict:
        change, limit = self._change(cell), self._limit(cell)
        told = results[1:] if cell in self.flagged and len(results) > 1 else results
        base_ms = statistics.median(ms for one in told if (ms := one.base.step_ms) is not None)
        if change is None:
            why = f"{len(self._fresh(cell))} of {pairs.FEWEST_PAIRS} fresh pairs were run within --minutes"
            return CellVerdict(cell, Verdict.INCONCLUSIVE, why)
        judged = CellVerdict(cell, Verdict.SAME, "", change, base_ms, base_ms * math.exp(change.log))
        half = change.high - change.log
        if cell not in self.flagged:
            hidden = pairs.FLAG_SHARE * limit + half / 2
            if hidden > pairs.TO_BE_SEEN * limit:
                return replace(judged, verdict=Verdict.INCONCLUSIVE, why=f"noise hides what is below {hidden:.1%}")
            return judged
        by = f"{len(told)} fresh pairs"
        shown, word = change.low > 0 or change.high < 0, "slower" if change.log > 0 else "faster"
        if abs(change.log) > limit and shown:
            verdict = Verdict.REGRESSED if change.log > 0 else Verdict.IMPROVED
            said = _cause(told) if verdict == Verdict.REGRESSED else None
            return replace(judged, verdict=verdict, why=f"{word} in {by}", cause=said)
        if abs(change.log) > limit or max(change.high, -change.low) > pairs.TO_BE_SEEN * limit:
            each = ", ".join(f"{math.expm1(one.log):+.1%}" for one in self._fresh(cell))
            return replace(judged, verdict=Verdict.INCONCLUSIVE, why=f"its pairs disagree: {each}")
        return replace(judged, why=f"{word}, by less than the threshold" if shown else f"not confirmed by {by}")

    def _one_sided(self, cell: str, other: Mapping[str, Any], side: str) -> CellVerdict:
        """Judge a cell that one side alone runs; `other` are the cells that the other side lists."""
        why = other[cell]["unavailable"] if cell in other else ""
        if side == "head":
            return CellVerdict(cell, Verdict.NEW, "runs on head, not on base" + (f": {why}" if why else ""))
        return CellVerdict(cell, Verdict.MISSING, "runs on base, not on head" + (f": {why}" if why else ""))

    def _notes(self, verdicts: Sequence[CellVerdict]) -> list[str]:
        notes = []
        better: list[Finding] = [f for one in verdicts for f in one.findings if f.kind == "better"]
        if better:
            notes.append(f"{len(better)} exact costs are lower than on base: a new baseline would hold that.")
        if self.stopped:
            notes.append("Stopped at the limit of --minutes before all pairs were run.")
        if not self.same_versions:
            notes.append("The sides have other packages: exact costs are told, and only times are judged.")
        return notes


def step_versions(machine: Mapping[str, Any]) -> dict[str, Any]:
    """Return the versions, in a machine_info, of the packages that a step runs."""
    return {package: (machine.get("versions") or {}).get(package) for package in STEP_PACKAGES}


def _line(result: PairResult) -> str:
    if result.change is None:
        return result.note or "; ".join(f"{side}: {why}" for side, why in result.lost.items())
    change = result.change
    return (
        f"{result.base.step_ms:.2f} -> {result.head.step_ms:.2f} ms, {math.expm1(change.log):+.2%} "
        f"(standard error {change.error:.2%}, {change.blocks} blocks)"
    )


def _lost(cell: str, results: Sequence[PairResult]) -> CellVerdict | None:
    """Judge a cell that has no time in some pair, None where it always has."""
    on_base, on_head = ([one.lost[side] for one in results if side in one.lost] for side in ("base", "head"))
    if not on_base and not on_head:
        return None
    runs = len(results)
    told = [_often(reasons, side, runs) for reasons, side in ((on_base, "base"), (on_head, "head")) if reasons]
    why = "; ".join(told)
    if on_base and on_head:
        # A cell that does not fit is a result, and it is still the same; one that fails or is wrong says nothing.
        full = all(reason.partition(":")[0] == "out of memory" for reason in (*on_base, *on_head))
        alike = full and len(on_base) == len(on_head) == runs
        return CellVerdict(cell, Verdict.SAME if alike else Verdict.INCONCLUSIVE, why)
    if len(on_head) == runs:
        return CellVerdict(cell, Verdict.REGRESSED, why)
    if len(on_base) == runs:
        return CellVerdict(cell, Verdict.NEW, f"{why}; it runs on head")
    return CellVerdict(cell, Verdict.INCONCLUSIVE, why)


def _often(reasons: Sequence[str], side: str, runs: int) -> str:
    """`crashed on head: killed by SIGSEGV`, and in how many pairs where it was not all."""
    kind, _, detail = reasons[0].partition(": ")
    often = "" if len(reasons) == runs else f" in {len(reasons)} of {runs} pairs"
    return f"{kind} on {side}{often}{': ' + detail if detail else ''}"


def _cause(results: Sequence[PairResult]) -> Cause:
    """Name the cause by the first fresh pair, which profiled both sides."""
    return cause(results[0].head, results[0].base)


def _beside_nothing(found: CellVerdict) -> CellVerdict:
    """Judge a cell where base has no time of any: *new* cells alone must not pass for a comparison."""
    if found.verdict not in (Verdict.NEW, Verdict.SAME):
        return found
    return replace(found, verdict=Verdict.INCONCLUSIVE, why=f"{found.why}; no cell has a time on base to compare with")


__all__ = ["FITS", "JUDGED", "Comparison", "Found", "Request"]
