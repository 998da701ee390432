"""Compares two sides: one live pair screens every cell, and pairs of fresh workers settle those that it flags."""

import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gate.judge import pairs
from gate.judge.compatible import same_packages
from gate.judge.live import LiveJudge, PairResult
from gate.judge.verdicts import PERCENT, CellVerdict, Threshold, Verdict, worst_first
from gate.live.pair import SIDES, LivePair
from gate.live.workers import Side
from gate.record.files import write_json


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

    def _run(self) -> Found:
        greeted = self._pair(0).ready()
        device, machine = (greeted["head"][key] for key in ("device", "machine"))
        if greeted["base"]["device"] != device:
            raise ValueError(
                f"base runs on {greeted['base']['device']}, head on {device}; give both sides the same device."
            )
        percent = PERCENT[device] if self.request.percent is None else self.request.percent
        same_versions = same_packages(machine, greeted["base"]["machine"])
        threshold = Threshold(percent, self.request.us)
        self.judge = LiveJudge(threshold, self.request.alpha, same_versions=same_versions)
        # Why a side cannot run a cell that it has, "" where it can.
        base, head = ({each["id"]: each["unavailable"] for each in greeted[side]["cells"]} for side in SIDES)
        if all([*base.values(), *head.values()]):
            why = next(iter(head.values()), "none is declared here")
            raise ValueError(f"neither side can run a cell that was asked for: {why}. Choose other cells.")
        both = [cell for cell, why in head.items() if not why and base.get(cell) == ""]
        random.Random(self.request.seed).shuffle(both)
        # A GPU's host has cores to spare: fresh pairs start while others run.
        ahead = pairs.FEWEST_PAIRS if device == "cuda" else 0
        self._start(ahead)
        self._measure(0, both)
        if chosen := self.judge.flag():
            self.say(f"fresh pairs will settle: {', '.join(chosen)}")
        for number in range(1, pairs.MOST_PAIRS + 1):
            chosen = self.judge.unsettled()
            if not chosen or self.stopped:
                break
            if ahead:
                self._start(min(number + 1, pairs.MOST_PAIRS))
            self._measure(number, chosen)
        verdicts = [self.judge.verdict(cell) for cell in both]
        verdicts += _one_sided(Verdict.MISSING, "runs on base, not on head", base, head)
        verdicts += _one_sided(Verdict.NEW, "runs on head, not on base", head, base)
        results = self.judge.results
        if not any(one.base.step_ms for each in results.values() for one in each):
            verdicts = [_beside_nothing(one) for one in verdicts]
        count = max(map(len, results.values()), default=0)
        seconds = time.monotonic() - self.begun
        found = Found(worst_first(verdicts), results, machine, threshold, self.judge.noise, count, seconds)
        found.notes = self._notes(found.verdicts)
        return found

    def _start(self, number: int) -> None:
        """Start the workers of this pair and of those before it, where they are not started."""
        request = self.request
        while len(self.live) <= number:
            name, logs = f"pair-{len(self.live)}", request.folder / "logs"
            self.live.append(LivePair(name, request.sides, request.hello, logs, request.stall_s))

    def _pair(self, number: int) -> LivePair:
        """Return the pair of this number (0 screens); those before it end."""
        self._start(number)
        for before in self.live[:number]:
            before.close()
        return self.live[number]

    def _measure(self, number: int, cells: Sequence[str]) -> None:
        """Measure cells by the pair of this number, or take what an earlier run left of them in the folder."""
        kind = f"fresh pair {number}" if number else "screening"
        started = time.monotonic()
        for place, cell in enumerate(cells, start=1):
            path = self.request.folder / "pairs" / str(number) / f"{cell}.json"
            if path.exists():
                result = _finished(path)
            elif self._out_of_time():
                self.stopped = True
                return
            else:
                began = time.monotonic()
                rng = random.Random(f"{self.request.seed} {number} {cell}")
                result = self._pair(number).measure(
                    cell, self.judge.threshold, rng, costs=number <= pairs.FEWEST_PAIRS, kernels=number == 1
                )
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                write_json(path, result.written())
            self.judge.add(result)
            left = (time.monotonic() - started) / place * (len(cells) - place)
            soon = f"; {left / 60:.1f} min of it left" if left > 2 else ""
            self.say(f"{kind} [{place}/{len(cells)}] {cell}: {_line(result)}{soon}")

    def _out_of_time(self) -> bool:
        minutes = self.request.minutes
        return minutes is not None and time.monotonic() - self.begun + self.longest_s > minutes * 60

    def _notes(self, verdicts: Sequence[CellVerdict]) -> list[str]:
        notes = []
        if better := sum(finding.kind == "better" for one in verdicts for finding in one.findings):
            notes.append(f"{better} exact costs are lower than on base. Promote a new baseline to keep them low.")
        if self.stopped:
            notes.append("--minutes ended the run before all pairs were run.")
        if not self.judge.same_versions:
            notes.append("The packages of the two sides differ: exact costs are shown, but only times are judged.")
        return notes


def _finished(path: Path) -> PairResult:
    try:
        return PairResult.read(json.loads(path.read_text(encoding="utf8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a finished cell ({error}); delete it to measure the cell again.") from None


def _line(result: PairResult) -> str:
    change = result.change
    if change is None:
        return result.note or "; ".join(f"{side}: {why}" for side, why in result.lost.items())
    return (
        f"{result.base.step_ms:.2f} -> {result.head.step_ms:.2f} ms, {math.expm1(change.log):+.2%} "
        f"(standard error {change.error:.2%}, {change.blocks} blocks)"
    )


def _one_sided(verdict: Verdict, what: str, one: Mapping[str, str], other: Mapping[str, str]) -> list[CellVerdict]:
    """Judge the cells that `one` side runs and the `other` does not."""
    return [
        CellVerdict(cell, verdict, f"{what}: {other[cell]}" if cell in other else what)
        for cell, why in one.items()
        if not why and other.get(cell) != ""
    ]


def _beside_nothing(found: CellVerdict) -> CellVerdict:
    """Judge a cell where base has no time of any: *new* cells alone must not pass for a comparison."""
    if found.verdict not in (Verdict.NEW, Verdict.SAME):
        return found
    return replace(
        found, verdict=Verdict.INCONCLUSIVE, why=f"{found.why}; base has no time of any cell, so nothing is compared"
    )
