"""Verdicts: each cell of a run against a baseline, with an interval that holds for all cells at once."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np

from gate.baseline import doubts
from gate.baseline.baselines import Baseline, Host, Process, calm_by_host, host_of
from gate.baseline.noise import Group, Kind, Noise, family_quantile, noise
from gate.cause import Cause, cause
from gate.estimates import PACE, PACE_SHARE_SD, Clock, Estimate, estimate, logs_among
from gate.exact import FAILS_STRICT, Finding, compare
from gate.host import STEP_LISTS, slow_host, waits_mostly
from gate.records import NO_TIME_WORDS, step_versions

#: Processes of one boot of one machine are of one session for so long: rooms and neighbours change within a day.
SESSION_LASTS = timedelta(hours=12)

#: Practical thresholds in percent, by what is read: a CPU has neighbours that no step time is free of.
THRESHOLD_PERCENT: dict[Kind, float] = {"device": 1.0, "host": 1.0, "wall": 10.0, "paced": 10.0}
THRESHOLD_US = 20.0

#: What a record holds of a cell's timed steps, and of what was beside them.
OF_STEPS = (*STEP_LISTS, *PACE, "batches", "tokens", "waited_ms", "host_pace_ms", "median_device_ms", "median_wall_ms")

#: *Same* promises that the noise (half of the interval) is no more than so many thresholds. One would be no more than
#: the noise of five fresh processes on a quiet GPU, where all cells are to hold at once.
PROMISE = 3.0


class Verdict(StrEnum):
    """What is said of a cell, the worst first."""

    REGRESSED = "regressed"
    MISSING = "missing"
    CANNOT_TELL = "cannot tell"
    IMPROVED = "improved"
    NEW = "new"
    SAME = "same"


#: Verdicts that fail a run where nothing may pass unjudged.
STRICT = (Verdict.CANNOT_TELL, Verdict.MISSING)

#: Verdicts that say how a cell stands beside what it was: a run without any of them compared nothing.
JUDGED = (Verdict.REGRESSED, Verdict.IMPROVED, Verdict.SAME)


@dataclass(frozen=True)
class CellVerdict:
    """A cell's verdict; `change` is now / then - 1, with `low` and `high` that hold for all cells at once.

    All three are None, as are the times, where no time was compared.
    """

    cell: str
    verdict: Verdict
    why: str
    change: float | None = None
    low: float | None = None
    high: float | None = None
    now_ms: float | None = None
    then_ms: float | None = None
    findings: tuple[Finding, ...] = ()
    cause: Cause | None = None

    def fails(self, *, strict: bool) -> bool:
        """Whether the cell fails the run."""
        kinds = {finding.kind for finding in self.findings}
        unjudged = self.verdict in STRICT or bool(kinds & set(FAILS_STRICT))
        return self.verdict == Verdict.REGRESSED or (strict and unjudged)


def nothing_judged(verdicts: Sequence[CellVerdict]) -> bool:
    """Whether no cell was compared, as where no cell is on both sides: *new* cells alone are no pass."""
    return not any(one.verdict in JUDGED for one in verdicts)


def fail(verdicts: Sequence[CellVerdict], *, strict: bool) -> bool:
    """Whether a run fails: by one of its cells, or, if strict, as none of them was compared."""
    return any(one.fails(strict=strict) for one in verdicts) or (strict and nothing_judged(verdicts))


@dataclass(frozen=True)
class Rule:
    """What is a regression: a change beyond noise, by more than both practical thresholds.

    `percent` None takes `THRESHOLD_PERCENT` of the clock. `level` is the probability of at least one false alarm in a
    run without any change.
    """

    percent: float | None = None
    microseconds: float = THRESHOLD_US
    level: float = 0.05

    def threshold(self, clock: Clock, then_ms: float) -> float:
        """The practical threshold as a share of a cell's time."""
        return max(self.percent_of(clock) / 100, self.microseconds / 1e3 / then_ms)

    def percent_of(self, kind: Kind) -> float:
        """The practical threshold in percent."""
        return THRESHOLD_PERCENT[kind] if self.percent is None else self.percent


@dataclass(frozen=True)
class _Seen:
    """A cell's valid times in some processes; `waits` says whether its device waits for the host in most of them, None
    where they do not tell."""

    estimates: tuple[Estimate, ...]
    sessions: tuple[str, ...]
    waits: bool | None

    @cached_property
    def ms(self) -> float:
        return math.exp(_mean(self.logs(paced=False)))

    def ms_of(self, estimates: Iterable[Estimate]) -> float:
        """The time of other processes, by their ratios to these."""
        return math.exp(_mean(one.beside(self.estimates) for one in estimates))

    def logs(self, *, paced: bool) -> list[float]:
        """The logs of these times, over the pace if asked."""
        return self._paced_logs if paced else self._logs

    @cached_property
    def _logs(self) -> list[float]:
        return logs_among(self.estimates)

    @cached_property
    def _paced_logs(self) -> list[float]:
        return logs_among(self.estimates, paced=True)


@dataclass(frozen=True)
class Comparison:
    """A run beside a baseline. `scope` are the baseline's cells that the run was asked for."""

    now: Process
    baseline: Baseline
    scope: Sequence[str]
    rule: Rule = field(default_factory=Rule)

    @cached_property
    def _cells(self) -> list[str]:
        return [cell for cell in self.now.cells if self.baseline.infos(cell)]

    @cached_property
    def net(self) -> bool:
        """Whether wall times are compared without what their steps waited for a core: both sides must tell."""
        return self._all_have("waited_ms")

    @cached_property
    def paced(self) -> bool:
        """Whether wall times are compared in those of the work beside them: both sides must have it, and run the same
        code in it, which is torch's."""
        return all(map(self._all_have, PACE)) and self.net and self.same_versions

    def _all_have(self, key: str) -> bool:
        infos = [info for cell in self._cells for _, info in self.baseline.infos(cell)]
        infos += [self.now.cells[cell] for cell in self._cells]
        timed = [info for info in infos if info.get("verdict") == "timed"]
        return bool(timed) and all(info.get(key) is not None for info in timed)

    def estimate(self, info: dict[str, Any], process: Process) -> Estimate | str:
        """A cell's time in a process as both sides can tell it; none where a slow host made it."""
        return estimate(info, net=self.net, calm_ms=self.calm_ms(process))

    def calm_ms(self, process: Process) -> float | None:
        """The pace of the host at its calmest in the session of a process."""
        return self._calm[self._near(process)][host_of(process)]

    @cached_property
    def _calm(self) -> dict[bool, dict[Host, float | None]]:
        """The paces of hosts in processes that are not long ago, and in those that are."""
        every = (self.now, *self.baseline.processes)
        return {near: calm_by_host(one for one in every if self._near(one) is near) for near in (True, False)}

    def _near(self, process: Process) -> bool:
        """Whether a process ran not so long ago that its boot's session has ended."""
        return abs(self.now.at - process.at) <= SESSION_LASTS

    @cached_property
    def then(self) -> dict[str, _Seen]:
        """The baseline's valid times of every cell that is compared."""
        found = {}
        for cell in self._cells:
            olds = self.baseline.infos(cell)
            every = [(process.session, self.estimate(info, process), info) for process, info in olds]
            valid = [(session, one, info) for session, one, info in every if isinstance(one, Estimate)]
            if valid:
                sessions, estimates, infos = zip(*valid, strict=True)
                found[cell] = _Seen(estimates, sessions, waits_mostly(infos))
        return found

    @cached_property
    def noises(self) -> dict[Group, Noise]:
        """The noise of each group of cells."""
        groups: dict[Group, dict[str, list[tuple[str, float]]]] = {}
        for cell, seen in self.then.items():
            pairs = zip(seen.sessions, seen.logs(paced=self.paced), strict=True)
            groups.setdefault(self.group(cell), {})[cell] = list(pairs)
        return {group: noise(group, observations) for group, observations in groups.items()}

    def group(self, cell: str) -> Group:
        """The group whose noise the cell shares."""
        key = self.now.cells[cell]["cell"]
        seen = self.then[cell]
        kind: Kind = "paced" if self.paced else seen.estimates[0].clock
        # A baseline from before that was read does not tell.
        waits = waits_mostly([self.now.cells[cell]]) if seen.waits is None else seen.waits
        if kind == "device" and waits:
            kind = "host"
        return kind, key["mode"], key["execution"]

    @cached_property
    def same_session(self) -> bool:
        """Whether the baseline holds a process of this session that is not long ago."""
        return any(
            process.session == self.now.session != "unknown" and self._near(process)
            for process in self.baseline.processes
        )

    @cached_property
    def _timed(self) -> int:
        """How many cells are compared by time: the family that the interval holds for."""
        return sum(self._held_up(cell) or isinstance(self._now(cell), Estimate) for cell in self.then)

    def _now(self, cell: str) -> Estimate | str:
        return self.estimate(self.now.cells[cell], self.now)

    def change(self, cell: str, news: Sequence[Estimate], *, level: float, family: int) -> tuple[float, float, float]:
        """The log ratio of new times to the baseline's, the half-width of its interval, and how far the cell moved
        within its processes where that is more than the noise between them, else 0."""
        seen = self.then[cell]
        same = self.same_session and self.now.session in seen.sessions
        kept = [not same or session == self.now.session for session in seen.sessions]
        shares = list(_counts([*compress(seen.sessions, kept)]).values())
        moved = {
            paced: _mean(one.beside(seen.estimates, paced=paced) for one in news)
            - _mean(compress(seen.logs(paced=paced), kept))
            for paced in {False, self.paced}
        }
        difference = moved[self.paced]
        deviation, df = self.noises[self.group(cell)].prediction(cell, new=len(news), shares=shares, same_session=same)
        # The log ratio of the pace beside the cell now to then, 0 where times are compared without.
        pace = PACE_SHARE_SD * (moved[False] - difference)
        drift = self._drift(cell, news)
        half = math.hypot(max(deviation, drift), pace) * family_quantile(df, family, level)
        return difference, half, drift if drift > deviation else 0.0

    def _drift(self, cell: str, news: Sequence[Estimate]) -> float:
        """How far a cell's level may lie in one process from that in another, by how far it moved within them.

        What moves it lasts for minutes, as long as processes in a row: more of them know no more of it. Noise between
        processes holds what cells move by as a rule; only what is more than that widens an interval.
        """
        then, now = (_mean(one.drift**2 for one in ones) for ones in (self.then[cell].estimates, news))
        return math.sqrt(then + now)

    def suspects(self) -> list[str]:
        """The cells worth timing again before anything is said: slower than the threshold, and than chance alone; and
        those that a slow host held up, of which nothing could be said.

        Each on its own, not all at once: what is said in the end is said of the new times.
        """
        found = []
        for cell in self.then:
            new = self._now(cell)
            if self._held_up(cell):
                found.append(cell)
            elif isinstance(new, Estimate) and not self._incomparable(cell, new):
                change, half, _ = self.change(cell, [new], level=0.1, family=1)
                if change > half and math.expm1(change) > self.rule.threshold(new.clock, self.then[cell].ms):
                    found.append(cell)
        return found

    def _held_up(self, cell: str) -> bool:
        """Whether a cell has no time in this run, as a slow host made it."""
        return bool(slow_host(self.now.cells[cell], self.calm_ms(self.now)))

    def _again(self, cell: str, info: dict[str, Any]) -> Estimate | str:
        """The time of a confirming process, or what speaks against it: the same as against the first."""
        one = self.estimate(info, self.now)
        doubted = self._doubts(cell, info) if isinstance(one, Estimate) else []
        return "; ".join(doubted) or one

    def _doubts(self, cell: str, info: dict[str, Any]) -> list[str]:
        olds = [old for _, old in self.baseline.infos(cell)]
        return list(dict.fromkeys(doubt for old in olds for doubt in doubts.between_cells(info, old)))

    def _incomparable(self, cell: str, new: Estimate) -> list[str]:
        found = doubts.between_processes(self.now, self.baseline.newest)
        found += self._doubts(cell, self.now.cells[cell])
        if new.clock != self.then[cell].estimates[0].clock:
            found.append(f"{new.clock} clock now, {self.then[cell].estimates[0].clock} clock then")
        return list(dict.fromkeys(found))

    def judge(self, confirmed: Mapping[str, Sequence[dict[str, Any]]] | None = None) -> list[CellVerdict]:
        """Every verdict, the worst first. `confirmed` holds new `extra_info`s of the suspects, one a fresh process;
        they are judged by these alone, which the choice of suspects did not favour."""
        found = [self._cell(cell, (confirmed or {}).get(cell)) for cell in self.now.cells]
        missing = [cell for cell in self.scope if cell not in self.now.cells]
        found += [CellVerdict(cell, Verdict.MISSING, "in the record, not run now") for cell in missing]
        order = list(Verdict)
        return sorted(found, key=lambda one: (order.index(one.verdict), -(one.change or 0.0)))

    def _cell(self, cell: str, confirmed: Sequence[dict[str, Any]] | None) -> CellVerdict:
        info = self.now.cells[cell]
        if not self.baseline.infos(cell):
            return CellVerdict(cell, Verdict.NEW, "not in the record")
        newest = self.baseline.infos(cell)[-1][1]
        new = self._now(cell)
        if self._held_up(cell):
            # Timed again it may have a time.
            again = [self.estimate(other, self.now) for other in confirmed or ()]
            new = next((one for one in again if isinstance(one, Estimate)), new)
        # Exact costs were measured all the same where a time is none; of the baseline by the newest that was timed.
        olds = [old for _, old in self.baseline.infos(cell) if old.get("verdict") == "timed"]
        costs = tuple(compare(info, olds[-1])) if olds and info.get("verdict") == "timed" else ()
        findings = costs if self.same_versions else ()
        if isinstance(new, str) or cell not in self.then:
            judged = self._without_time(cell, new, newest)
        else:
            judged = self._timed_cell(cell, new, confirmed)
        told = [str(finding) for finding in costs]
        verdict, why = judged.verdict, judged.why
        if any(finding.worse for finding in findings):
            verdict = Verdict.REGRESSED
        elif any(finding.kind == "better" for finding in findings):
            told.append("a new baseline would hold it to that")
            verdict = Verdict.IMPROVED if verdict == Verdict.SAME else verdict
        why = "; ".join([*([why] if why else []), *told])
        explained = verdict == Verdict.REGRESSED and judged.change is not None
        said = self._cause(cell, confirmed or ()) if explained else None
        return replace(judged, verdict=verdict, why=why, findings=findings, cause=said)

    def _cause(self, cell: str, confirmed: Sequence[dict[str, Any]]) -> Cause:
        """Why a cell takes longer than in the baseline's newest process: by the costs of both, and by their steps, or
        those of the next process that has a time where a slow host made these."""
        sides = []
        news = [(self.now, self.now.cells[cell]), *((self.now, info) for info in confirmed)]
        for infos in (news, [*reversed(self.baseline.infos(cell))]):
            valid = (info for process, info in infos if isinstance(self.estimate(info, process), Estimate))
            costs = infos[0][1]
            steps = next(valid, costs)
            sides.append(costs | {key: steps.get(key) for key in OF_STEPS})
        new, old = sides
        return cause(new, old, paced=self.paced)

    @cached_property
    def same_versions(self) -> bool:
        """Other versions of torch and kernels have other exact costs: only step times are comparable then."""
        new, old = self.now.machine, self.baseline.newest.machine
        return step_versions(new) == step_versions(old) and new.get("device") == old.get("device")

    def _without_time(self, cell: str, new: Estimate | str, newest: dict[str, Any]) -> CellVerdict:
        old = self.estimate(newest, self.baseline.infos(cell)[-1][0])
        if isinstance(new, Estimate):
            verdict = Verdict.CANNOT_TELL if newest.get("verdict") == "timed" else Verdict.NEW
            return CellVerdict(cell, verdict, f"no time in the record ({old})", now_ms=new.ms)
        lost = self.now.cells[cell].get("verdict")
        if cell in self.then:
            known = lost != "timed"
            verdict = Verdict.REGRESSED if known else Verdict.CANNOT_TELL
            return CellVerdict(cell, verdict, f"{_words(new)}; had a time before", then_ms=self.then[cell].ms)
        if lost != "timed" and lost == self.baseline.infos(cell)[-1][1].get("verdict"):
            return CellVerdict(cell, Verdict.SAME, f"{_words(str(lost))}, as before")
        return CellVerdict(cell, Verdict.CANNOT_TELL, f"{_words(new)} now; {old} before")

    def _timed_cell(self, cell: str, new: Estimate, confirmed: Sequence[dict[str, Any]] | None) -> CellVerdict:
        seen = self.then[cell]
        if reasons := self._incomparable(cell, new):
            why = "; ".join(reasons)
            return CellVerdict(cell, Verdict.CANNOT_TELL, why, now_ms=seen.ms_of([new]), then_ms=seen.ms)
        news, note = [new], ""
        if confirmed is not None:
            again = [self._again(cell, info) for info in confirmed]
            valid = [one for one in again if isinstance(one, Estimate)]
            failed = [one for one, info in zip(again, confirmed, strict=True) if info.get("verdict") != "timed"]
            if failed or not valid:
                # What crashes each time it is timed again has a time by chance.
                verdict = Verdict.REGRESSED if failed and len(failed) == len(again) else Verdict.CANNOT_TELL
                why = f"slower, and not confirmed: {(failed or again or ['no process timed it again'])[0]}"
                return CellVerdict(cell, verdict, why, now_ms=seen.ms_of([new]), then_ms=seen.ms)
            news, note = valid, f"timed again in {len(valid)} process{'es' * (len(valid) > 1)}"
        change, half, drift = self.change(cell, news, level=self.rule.level, family=self._timed)
        threshold = self.rule.threshold(new.clock, seen.ms)
        noisy = f", as it moved by {math.expm1(drift):.1%} within a process" if drift else ""
        verdict, why = _said(change, half, threshold, noisy)
        now_ms = seen.ms_of(news)
        if self.paced and verdict in (Verdict.REGRESSED, Verdict.IMPROVED):
            wall = math.log(now_ms / seen.ms)
            if wall * math.copysign(1, change) < math.log1p(threshold) / 2:
                verdict = Verdict.CANNOT_TELL
                why = f"the work beside it moved and not the step: {math.expm1(wall):+.1%} by the wall clock"
        infos = [info for _, info in self.baseline.infos(cell)]
        beside = confirmed or [self.now.cells[cell]]
        moved = [one for info in beside if (one := doubts.control_change(info, infos)) is not None]
        control = float(np.mean(moved)) if moved and not self.paced else None
        if verdict in (Verdict.REGRESSED, Verdict.IMPROVED) and doubts.explained_by_control(change, control):
            verdict = Verdict.CANNOT_TELL
            why = f"the machine itself moved: the product and the copy beside it by {math.expm1(control or 0):+.1%}"
        return CellVerdict(
            cell,
            verdict,
            "; ".join(filter(None, (why, note))),
            math.expm1(change),
            math.expm1(change - half),
            math.expm1(change + half),
            now_ms,
            seen.ms,
        )


def _said(change: float, half: float, threshold: float, noisy: str) -> tuple[Verdict, str]:
    """The verdict on a log ratio with an interval of change +- half, and its reason where it needs one; `noisy` says
    why there is so much noise."""
    size = math.expm1(change)
    if abs(change) > half:
        if size > threshold:
            return Verdict.REGRESSED, ""
        if size < -threshold:
            return Verdict.IMPROVED, ""
        return Verdict.SAME, f"moved, by less than the threshold of {threshold:.1%}"
    if math.expm1(half) > PROMISE * threshold:
        return Verdict.CANNOT_TELL, f"noise hides what is below {math.expm1(half):.1%}{noisy}"
    return Verdict.SAME, f"within the noise of {math.expm1(half):.1%}{noisy}" if size > threshold else ""


def _words(reason: str) -> str:
    verdict, colon, rest = reason.partition(":")
    return f"{NO_TIME_WORDS.get(verdict, verdict)}{colon}{rest}"


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _counts(names: Sequence[str]) -> dict[str, int]:
    return {name: names.count(name) for name in dict.fromkeys(names)}
