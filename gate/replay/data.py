"""Recorded fresh processes of unchanged code: what a replay draws its comparisons from."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from gate.baseline import baselines, doubts
from gate.baseline.baselines import Infos, Process
from gate.estimates import Estimate, estimate
from gate.records import Record, cell_id, load_record

Info = dict[str, Any]

#: Fewer processes of a session than these make few comparisons that differ: only their noise is told.
FEWEST = 6

#: One process has no other to differ from.
FEWEST_AT_ALL = 2

#: Seconds until a process runs its first cell: one of three cells took 19 s on an H100, 6.5 of them for their steps.
START_S = 12.0

#: Records that are further apart were not made one right after the other.
LONGEST_S = 1800.0


@dataclass(frozen=True)
class Recording:
    """A recorded process; `rounds_s` is what pytest-benchmark timed itself: seconds of each round, by cell.

    `seconds` is what the process took, where that was kept.
    """

    name: str
    process: Process
    rounds_s: Mapping[str, tuple[float, ...]]
    seconds: float | None = None

    def record(self, infos: Infos) -> Record:
        """A record of this process that holds these cells alone."""
        entries = [{"extra_info": info} for info in infos.values()]
        machine = self.process.machine | {"session": self.process.session}
        return {
            "machine_info": machine,
            "datetime": self.process.at.isoformat(),
            "benchmarks": [],
            "cells_without_time": entries,
        }


@dataclass(frozen=True)
class Data:
    """Recordings of one device, one version of the code and its packages, by time, and the cells to compare.

    `left_out` says of each other cell why it is none of them.
    """

    recordings: tuple[Recording, ...]
    cells: tuple[str, ...]
    left_out: Mapping[str, str]

    @cached_property
    def sessions(self) -> dict[str, list[Recording]]:
        """The recordings of each session that has enough to form comparisons of."""
        found: dict[str, list[Recording]] = {}
        for recording in self.recordings:
            found.setdefault(recording.process.session, []).append(recording)
        return {name: group for name, group in found.items() if len(group) >= FEWEST}

    @cached_property
    def calm_ms(self) -> dict[baselines.Host, float | None]:
        """The pace of each host at its calmest."""
        return baselines.calm_by_host(recording.process for recording in self.recordings)

    @cached_property
    def is_gpu(self) -> bool:
        """Whether the device's clock was read."""
        return self.recordings[0].process.cells[self.cells[0]].get("device_ms") is not None

    @cached_property
    def _whole(self) -> list[Recording]:
        """The recordings with the most cells: those that confirm have few."""
        return [each for each in self.recordings if self._is_whole(each)]

    @cached_property
    def _most_cells(self) -> int:
        return max(len(each.process.cells) for each in self.recordings)

    def _is_whole(self, recording: Recording) -> bool:
        return len(recording.process.cells) == self._most_cells

    @cached_property
    def process_s(self) -> float | None:
        """What one process of all cells took, the median: as it was kept, else between records made in a row."""
        if known := [each.seconds for each in self._whole if each.seconds is not None]:
            return statistics.median(known)
        gaps = [
            (later.process.at - earlier.process.at).total_seconds()
            for group in self.sessions.values()
            for earlier, later in pairwise(group)
            if self._is_whole(later)
        ]
        near = [gap for gap in gaps if gap <= LONGEST_S]
        return statistics.median(near) if near else None

    @cached_property
    def cell_s(self) -> dict[str, float]:
        """What is known of each recorded cell's own seconds: its warm-up, its timed steps and what it compiled."""
        found: dict[str, list[float]] = {}
        for recording in self._whole:
            for cell, info in recording.process.cells.items():
                steps_ms = math.fsum([*(info.get("warmup_ms") or ()), *(info.get("wall_ms") or ())])
                found.setdefault(cell, []).append(steps_ms / 1e3 + float(info.get("compile_s") or 0))
        return {cell: statistics.median(each) for cell, each in found.items()}

    def seconds(self, cells: Sequence[str]) -> float:
        """About so long takes a process of these cells: what is not known to be a cell's own is the start of the
        process, and beyond that each cell's model and check, all alike."""
        other = max((self.process_s or 0.0) - math.fsum(self.cell_s.values()), 0.0)
        start = min(START_S, other)
        return start + (other - start) * len(cells) / len(self.cell_s) + math.fsum(self.cell_s[cell] for cell in cells)


def read(paths: Sequence[Path]) -> list[Recording]:
    """Every process in these records, baselines, processes of `gate ab`, and folders of them, by time.

    ValueError for a file that is none of them.
    """
    found: dict[tuple[str, str], Recording] = {}
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist: name records, or a folder of them (python -m gate record).")
        files = sorted([*path.glob("*.json"), *path.glob("*/*.json")]) if path.is_dir() else [path]
        for file in (file for file in files if file.name != baselines.INDEX):
            for recording in _recordings(file):
                # A process is both in its record, with its rounds, and in the baseline that was promoted from it.
                key = (recording.process.at.isoformat(), recording.process.session)
                if key not in found or not found[key].rounds_s:
                    found[key] = recording
    return sorted(found.values(), key=lambda recording: recording.process.at)


def _recordings(path: Path) -> list[Recording]:
    if kept := _of_ab(path):
        return [_recording(path.name, kept["record"], float(kept["seconds"]))]
    baseline = baselines.load(path)
    if not baseline.committed:
        return [_recording(path.name, load_record(path))]
    numbered = enumerate(baseline.processes, 1)
    return [Recording(f"{path.name}[{number}]", process, {}) for number, process in numbered]


def _of_ab(path: Path) -> dict[str, Any] | None:
    """What `gate ab` keeps of a process, None if the file is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and {"seconds", "record"} <= content.keys() else None


def _recording(name: str, record: Record, seconds: float | None = None) -> Recording:
    try:
        process = baselines.process_of(record)
        rounds = {
            cell_id(entry["extra_info"]["cell"]): tuple(entry["stats"].get("data") or ())
            for entry in record["benchmarks"]
            if "cell" in entry["extra_info"]
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{name} is not a readable process ({type(error).__name__}: {error}).") from None
    return Recording(name, process, {cell: data for cell, data in rounds.items() if data}, seconds)


def comparable(recordings: Sequence[Recording], wanted: Sequence[str] | None = None) -> Data:
    """The recordings as data of one A/A experiment, with the cells of `wanted` (None: all) that each has a time of.

    ValueError for too few of them, for other devices, versions or code among them, and without a common cell.
    """
    if len(recordings) < FEWEST_AT_ALL:
        raise ValueError(
            f"a replay needs at least {FEWEST} fresh processes of one session, {FEWEST_AT_ALL} to tell their noise; "
            f"got {len(recordings)}. Record some: python -m gate record --processes 16"
        )
    first = recordings[0]
    for other in recordings[1:]:
        if different := doubts.between_processes(other.process, first.process):
            raise ValueError(f"{other.name} does not fit {first.name}: {different[0]}; replay one device at a time.")
        if other.process.machine.get("versions") != first.process.machine.get("versions"):
            raise ValueError(f"{other.name} has other package versions than {first.name}; a difference may be real.")
        if other.process.commit.get("id") != first.process.commit.get("id"):
            raise ValueError(f"{other.name} is of another commit than {first.name}; a difference may be real.")
    names = dict.fromkeys(cell for recording in recordings for cell in recording.process.cells)
    reasons = {cell: _reason(recordings, cell) for cell in names}
    cells = [cell for cell, reason in reasons.items() if not reason and (wanted is None or cell in wanted)]
    if not cells:
        told = next((f": {cell}: {reason}" for cell, reason in reasons.items() if reason), "")
        raise ValueError(f"no cell of these records has a valid time in each of {len(recordings)} processes{told}")
    return Data(tuple(recordings), tuple(cells), {cell: reason for cell, reason in reasons.items() if reason})


def _reason(recordings: Sequence[Recording], cell: str) -> str:
    """Why a cell cannot be compared, "" if it can."""
    infos = [recording.process.cells.get(cell) for recording in recordings]
    absent = sum(info is None for info in infos)
    if absent:
        return f"not in {absent} of {len(recordings)} processes"
    times = [estimate(info) for info in infos if info is not None]
    wrong = next((time for time in times if isinstance(time, str)), None)
    if wrong is not None:
        return wrong
    clocks = {time.clock for time in times if isinstance(time, Estimate)}
    if len(clocks) > 1:
        return "of two clocks"
    work = {tuple(sorted(set(info.get("tokens") or ()))) for info in infos if info is not None}
    return "timed on other batches in some" if len(work) > 1 else ""
