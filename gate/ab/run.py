"""Runs pairs of processes, base and head in turn, and keeps each on disk when it is finished."""

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gate.ab.disturbances import control_shifts, disturbance
from gate.estimates import Estimate, estimate
from gate.host import calm_ms, held_share, pace_ms, slow_host, without_held_up
from gate.processes import Side, run_cells, write_json
from gate.records import Record, cells, same_versions

#: The pace of the host at its calmest on base and on head, in ms; None where it was not timed.
Calm = tuple[float | None, float | None]
UNKNOWN: Calm = (None, None)

#: Pairs that replace disturbed ones, at most.
SPARE_PAIRS = 2

#: A cell that failed so often on a side is not run again: it has its verdict, and each crash costs a process.
FAILS_TWICE = 2


@dataclass(frozen=True)
class Times:
    """A cell's times in a pair, and the log of head / base, batch by batch."""

    base: Estimate
    head: Estimate
    log_ratio: float


@dataclass(frozen=True)
class Pair:
    """One process of each side, one after the other; `disturbed` says why they cannot be compared, "" if they can."""

    name: str
    base: Record
    head: Record
    disturbed: str
    shifts: Mapping[str, float]

    def times(self, cell: str, calm: Calm = UNKNOWN) -> Times | None:
        """A cell's times on base and head; None if one of them has no valid time.

        `calm` is the pace of the host at its calmest: what a slow host made is no time.
        """
        found = self._both(cell, calm)
        if found is None or found[0].clock != found[1].clock:
            return None
        base, head = found
        # The pace is one for both, unless torch is another.
        both_paced = base.paced_batch_logs is not None and head.paced_batch_logs is not None
        paced = both_paced and same_versions(self.base, self.head)
        return Times(base, head, head.over(base, paced=paced))

    @cached_property
    def calm_ms(self) -> Calm:
        """The pace of the host at its calmest in any cell of each process."""
        base, head = (calm_ms(cells(record).values()) for record in (self.base, self.head))
        return base, head

    def held_up(self, cell: str, calm: Calm) -> str:
        """Why a cell has no time, as a slow host made one of its times; "" where it has, or for another reason."""
        if self._both(cell, calm) is not None:
            return ""
        both = zip((self.base, self.head), self._telling(cell, calm), strict=True)
        sides = [(info, ms) for record, ms in both if (info := cells(record).get(cell)) is not None]
        return next((reason for info, ms in sides if (reason := slow_host(info, ms))), "")

    def calm_infos(self, cell: str, calm: Calm) -> tuple[dict[str, Any], dict[str, Any]]:
        """A cell's `extra_info` on base and head, without the steps that a slow host held up on one of them."""
        infos = cells(self.base)[cell], cells(self.head)[cell]
        return without_held_up(infos, self._telling(cell, calm))

    def _both(self, cell: str, calm: Calm) -> tuple[Estimate, Estimate] | None:
        """A cell's times on base and head; None if one of them has none.

        A time of some of the batches is one only beside a time of the same batches.
        """
        base, head = map(_estimated, (self.base, self.head), (cell, cell), self._telling(cell, calm))
        if not isinstance(base, Estimate) or not isinstance(head, Estimate):
            return None
        return (base, head) if base.has_batches_of(head) or not (base.held_up or head.held_up) else None

    def _telling(self, cell: str, calm: Calm) -> Calm:
        """`calm`, if both sides can tell what a slow host held up: to leave it out of one alone would favour that."""
        infos = (cells(self.base).get(cell), cells(self.head).get(cell))
        tell = all(info and pace_ms(info) is not None and held_share(info) is not None for info in infos)
        return calm if tell else UNKNOWN


def _estimated(record: Record, cell: str, calm_ms: float | None = None) -> Estimate | str:
    info = cells(record).get(cell)
    return "not run" if info is None else estimate(info, calm_ms=calm_ms, partial=True)


def calmest(pairs: Sequence[Pair]) -> Calm:
    """The pace of the host at its calmest in any cell of these pairs, in ms; all are of one session.

    Of each side for itself: each runs that work as its own checkout has it, in its own torch.
    """
    sides = [[ms for ms in column if ms is not None] for column in zip(*(pair.calm_ms for pair in pairs), strict=True)]
    if not sides:
        return UNKNOWN
    base, head = (min(side, default=None) for side in sides)
    return base, head


@dataclass(frozen=True)
class Phase:
    """The pairs of the screening or of the confirmation, and the pace of the host at its calmest until its end."""

    pairs: Sequence[Pair] = ()
    calm: Calm = UNKNOWN

    def log_ratios(self, cell: str) -> list[float]:
        """The log of head / base of a cell in each pair that was not disturbed; NaN without two valid times."""
        return [math.nan if times is None else times.log_ratio for _, times in self._times(cell)]

    def valid(self, cell: str) -> list[float]:
        """The log-ratios of a cell in the pairs that count for it."""
        return [times.log_ratio for _, times in self.valid_times(cell)]

    def valid_times(self, cell: str) -> list[tuple[Pair, Times]]:
        """The pairs that count for a cell, each with its times."""
        return [(pair, times) for pair, times in self._times(cell) if times is not None]

    def base_ms(self, cell: str) -> float:
        """A cell's time on base: of all its batches, where it has one."""
        bases = [times.base for _, times in self.valid_times(cell)]
        whole = [base for base in bases if not base.held_up] or bases
        return math.exp(statistics.fmean(base.log_ms for base in whole))

    def held_up(self, cell: str) -> int:
        """In how many of the pairs that count for a cell a slow host held up steps that are left out."""
        return sum(bool(times.base.held_up or times.head.held_up) for _, times in self.valid_times(cell))

    def _times(self, cell: str) -> list[tuple[Pair, Times | None]]:
        return [(pair, pair.times(cell, self.calm)) for pair in self.pairs if not pair.disturbed]


@dataclass
class Duel:
    """Two sides, and the processes that were run on them so far.

    `deadline` is a time of `time.monotonic()` after which no pair shall end; `cell_seconds` is what the last pair took
    for each of its cells.
    """

    sides: Mapping[str, Side]
    folder: Path
    options: Sequence[str]
    seed: int = 0
    one_environment: bool = True
    deadline: float | None = None
    stall_s: float = 300
    runs: dict[str, Record] = field(default_factory=dict)
    seconds: float = 0.0
    cell_seconds: float = 0.0
    stopped: bool = False

    def process(self, name: str, side: str, ids: Sequence[str] | None, order_seed: int, *options: str) -> Record:
        """Run one process, or take what an earlier run of it with these cells left in the folder."""
        kept = self._kept(name, side, ids)
        if kept is None:
            begin = time.monotonic()
            given = [*self.options, f"--order-seed={order_seed}", *options]
            if ids is not None:
                # Exact ids take the place of the patterns they were found by.
                given = [option for option in given if not option.startswith("--cells=")]
            logs = self.folder / "logs"
            record = run_cells(self.sides[side], given, logs, f"{name}-{side}", ids=ids, stall_s=self.stall_s)
            path = self._path(name, side)
            write_json(path, {"seconds": time.monotonic() - begin, "cells": ids, "record": record})
            kept = _read(path)
        self.seconds += kept["seconds"]
        print(f"{name} {side}: {len(cells(kept['record']))} cells in {kept['seconds']:.0f} s", flush=True)
        self.runs[f"{name}-{side}"] = kept["record"]
        return kept["record"]

    def _path(self, name: str, side: str) -> Path:
        return self.folder / "processes" / f"{name}-{side}.json"

    def _kept(self, name: str, side: str, ids: Sequence[str] | None) -> dict[str, Any] | None:
        """What a process of this name left in the folder; None if it was not run, or with other cells.

        A run that --minutes stopped in its screening may have confirmed; its other pairs may flag other cells.
        """
        path = self._path(name, side)
        kept = _read(path) if path.exists() else None
        return kept if kept is not None and _cell_set(kept.get("cells")) == _cell_set(ids) else None

    def pair(self, name: str, ids: Sequence[str] | None, order_seed: int, head_first: bool, *options: str) -> Pair:
        """Run a process on each side, with the cells in one order."""
        order, before = ("head", "base") if head_first else ("base", "head"), self.seconds
        records = {side: self.process(name, side, ids, order_seed, *options) for side in order}
        base, head = records["base"], records["head"]
        self.cell_seconds = (self.seconds - before) / max(len(cells(base)), len(cells(head)), 1)
        return Pair(name, base, head, "", control_shifts(base, head))

    def first(self) -> Pair:
        """Run the first pair of the screening, which shows which cells there are and measures their exact costs too.

        It fills the caches of compiled code; a cell compiles before its timed steps, so these count all the same.
        """
        return self._next("screen", 1, None, [])

    def pairs(
        self, phase: str, ids: Sequence[str], wanted: int, earlier: Sequence[Pair] = (), begun: Sequence[Pair] = ()
    ) -> list[Pair]:
        """Run pairs, AB BA AB ..., until `wanted` count for each cell, with up to `SPARE_PAIRS` more.

        A pair that was disturbed counts for none, one beside a slow host not for the cells that have no time in it;
        where most of those that count lack steps that it held up, more are wanted too. Those beyond `wanted` run only
        such cells. `begun` are the phase's first ones. Cells that failed twice on a side, here or in `earlier`
        pairs, are not run again.
        """
        done = list(begun)
        while len(done) < wanted + SPARE_PAIRS:
            number = len(done) + 1
            left = [cell for cell in ids if max(map(len, failures([*earlier, *done], cell))) < FAILS_TWICE]
            if len(done) >= wanted:
                calm = calmest([*earlier, *done])
                left = [cell for cell in left if _lacks(done, cell, calm, wanted)]
            if not left:
                break
            if not self.in_time(f"{phase}-{number}", left):
                self.stopped = True
                break
            done.append(self._next(phase, number, left, [*earlier, *done], "--no-exact-costs"))
        return done

    def in_time(self, name: str, ids: Sequence[str]) -> bool:
        """Whether a pair of these cells would end before the deadline; one that is on disk takes no time."""
        if self.deadline is None or time.monotonic() + self.cell_seconds * len(ids) <= self.deadline:
            return True
        return all(self._kept(name, side, ids) is not None for side in self.sides)

    def _next(self, phase: str, number: int, ids: Sequence[str] | None, earlier: Sequence[Pair], *options: str) -> Pair:
        """Run a phase's pair of this number, with the reason why it does not count, if there is one."""
        confirming = phase == "confirm"
        order_seed = 1000 * (self.seed + 1) + 100 * confirming + number
        pair = self.pair(f"{phase}-{number}", ids, order_seed, (number + self.seed + confirming) % 2 == 0, *options)
        # The first of all tells by itself what is usual between two environments.
        reason = disturbance(pair.base, pair.head, self._usual(earlier or [pair]))
        if reason:
            print(f"{pair.name} does not count: {reason}", flush=True)
        return replace(pair, disturbed=reason)

    def _usual(self, pairs: Sequence[Pair]) -> dict[str, float]:
        """What the control moves by between two environments, as far as the pairs so far tell."""
        if self.one_environment:
            return {}
        kinds = {kind for pair in pairs for kind in pair.shifts}
        return {kind: statistics.median(p.shifts[kind] for p in pairs if kind in p.shifts) for kind in kinds}


def _lacks(pairs: Sequence[Pair], cell: str, calm: Calm, wanted: int) -> bool:
    """Whether fewer pairs than `wanted` would count for a cell, had it a time in each that it was run in; or these tell
    too little of the host."""
    run = [pair for pair in pairs if cell in cells(pair.base) and cell in cells(pair.head)]
    counting = sum(not pair.disturbed and not pair.held_up(cell, calm) for pair in run)
    return counting < wanted or mostly_held_up(Phase(pairs, calm), cell)


def mostly_held_up(phase: Phase, cell: str) -> bool:
    """Whether most pairs that count for a cell lack steps that a slow host held up: where it does that, it would not
    show that head's own work on the host takes longer."""
    return 2 * phase.held_up(cell) > len(phase.valid_times(cell))


def failures(pairs: Sequence[Pair], cell: str) -> tuple[list[str], list[str]]:
    """Why a cell that was run has no valid time, a sentence a process: on base, and on head."""
    found: tuple[list[str], list[str]] = ([], [])
    for pair in pairs:
        for reasons, record in zip(found, (pair.base, pair.head), strict=True):
            if cell in cells(record) and isinstance(reason := _estimated(record, cell), str):
                reasons.append(reason)
    return found


def _cell_set(ids: Sequence[str] | None) -> frozenset[str] | None:
    """Which cells a process was asked for, in whatever order; None: those that its options select."""
    return None if ids is None else frozenset(ids)


def any_time(pairs: Sequence[Pair], side: str) -> bool:
    """Whether any cell has a valid time on this side, in any of these pairs."""
    records: list[Record] = [getattr(pair, side) for pair in pairs]
    return any(isinstance(_estimated(record, cell), Estimate) for record in records for cell in cells(record))


def _read(path: Path) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        cells(kept["record"])
        float(kept["seconds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a finished process ({type(error).__name__}: {error}); delete it.") from None
    return kept
