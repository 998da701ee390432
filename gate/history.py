"""Show the course of each cell's step time over all records kept, and where it changed for good.

A point is one version of the code in one session: the mean of its processes. A session (a machine between two boots)
has a level of its own, so change points are looked for twice: among the means of sessions, and among the points within
each session; what differs between two sessions alone is never called a change of the code.

ruptures proposes the change points, and a t test with the scatter within segments confirms them. apache-otava, made for
this, cannot be used here: its release 0.8.0 requires numpy 2.2 to the minor version, scipy before 1.17 and clients of
BigQuery, PostgreSQL and Slack.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from gate.baseline import baselines
from gate.baseline.baselines import Process
from gate.estimates import estimate
from gate.records import format_ms

#: A change needs two points on either side: one alone may be anything.
LEAST = 2

#: The probability that a cell without changes is said to have one, over all places where it might be.
ALPHA = 0.001

#: Smaller changes are true at best, and never of use (gate/baseline/verdicts.py has the same threshold).
PRACTICAL = 0.01

#: Of a change point, in units of variance times log count. The BIC's 2 splits noise up.
PENALTY = 6.0

#: Points that happen to agree do not make a millionth a change: the standard deviation of a log is taken for no less.
LEAST_SCATTER = 0.0005

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "12345678"
NO_TIME, NEW_SESSION = "x", "|"


@dataclass(frozen=True)
class Point:
    """One version in one session; `log_ms` is the mean over its processes, None where none has a valid time."""

    at: datetime
    session: str
    commit: str
    processes: int
    log_ms: float | None


@dataclass(frozen=True)
class Change:
    """A change for good: the ratio less 1 between the levels after and before, with what lies on either side."""

    change: float
    before: Point
    after: Point
    between_sessions: bool

    def __str__(self) -> str:
        where = "between sessions" if self.between_sessions else "within a session"
        before, after = (f"{p.commit or 'unknown commit'} of {p.at:%Y-%m-%d %H:%M}" for p in (self.before, self.after))
        return f"{self.change:+.1%} from {before} to {after}, {where}"


@dataclass(frozen=True)
class Course:
    """All points of one cell on one GPU model by time."""

    device: str
    workload: str
    cell: str
    points: list[Point]

    @property
    def timed(self) -> list[Point]:
        """The points that have a time."""
        return [point for point in self.points if point.log_ms is not None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m gate history`."""
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="FOLDER|RECORD",
        help="records and baselines, or folders of them or of device folders (default: .benchmarks and baselines)",
    )
    parser.add_argument("--cells", metavar="PATTERN", default="*", help="only cells whose id matches the glob")


def run(args: argparse.Namespace) -> int:
    """Print the courses; 1 if a record could not be read, which is named."""
    paths = args.paths or [path for path in (Path(".benchmarks"), Path("baselines")) if path.is_dir()]
    processes, unreadable = read(paths)
    for reason in unreadable:
        print(f"unreadable: {reason}")
    found = [course for course in courses(processes) if fnmatchcase(course.cell, args.cells)]
    if not found:
        looked = ", ".join(map(str, paths)) or ".benchmarks or baselines"
        raise ValueError(
            f"no record in {looked} holds a cell like {args.cells!r}. Make one: pytest -m performance "
            "--benchmark-save=NAME"
        )
    for line in lines(found):
        print(line)
    return 1 if unreadable else 0


def read(paths: Iterable[Path]) -> tuple[list[Process], list[str]]:
    """Every process in these files and folders by time, once each, and a sentence for each file that is no record."""
    found: dict[tuple[datetime, str, str], Process] = {}
    unreadable = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist: name a record, a baseline, or a folder of them.")
        # No deeper: there are the files of `gate ab`, and records that were put aside.
        files = sorted([*path.glob("*.json"), *path.glob("*/*.json")]) if path.is_dir() else [path]
        for file in (file for file in files if file.name != baselines.INDEX):
            try:
                processes = baselines.load(file).processes
            except ValueError as error:
                unreadable.append(str(error))
                continue
            for process in processes:
                # A process is both in its record and in the baseline that was promoted from it.
                found.setdefault((process.at, process.session, _device(process)), process)
    return sorted(found.values(), key=lambda process: process.at), unreadable


def courses(processes: Iterable[Process]) -> list[Course]:
    """The course of each cell on each GPU model, from processes by time; a time that a slow host made is none."""
    processes = list(processes)
    calm = baselines.calm_by_host(processes)
    entries: dict[tuple[str, str, str], list[tuple[Process, float | None]]] = {}
    for process in processes:
        for cell, info in process.cells.items():
            time = estimate(info, calm_ms=calm[baselines.host_of(process)])
            workload = f"{info['cell']['workload']} workload, {info['cell']['lengths']} lengths"
            key = (_device(process), workload, cell)
            entries.setdefault(key, []).append((process, None if isinstance(time, str) else time.log_ms))
    return [
        Course(device, workload, cell, _points(of_cell))
        for (device, workload, cell), of_cell in sorted(entries.items())
    ]


def _points(entries: Sequence[tuple[Process, float | None]]) -> list[Point]:
    points = []
    for (session, commit), group in groupby(entries, key=lambda entry: (_session(entry[0]), _version(entry[0]))):
        together = list(group)
        logs = [log for _, log in together if log is not None]
        mean = float(np.mean(logs)) if logs else None
        points.append(Point(together[0][0].at, session, commit, len(together), mean))
    return points


def _device(process: Process) -> str:
    return str(process.machine.get("device") or "unknown device")


def _session(process: Process) -> str:
    """The session; records from before it was kept are each of their own, as nothing says that two were of one."""
    return f"unknown, {process.at}" if process.session == "unknown" else process.session


def _version(process: Process) -> str:
    """The commit in short, with a `+` where the tree was not it."""
    commit = str(process.commit.get("id") or "")[:9]
    return f"{commit}+" if process.commit.get("dirty") else commit


def changes(course: Course) -> list[Change]:
    """Changes for good, by time: among sessions, and within each; ImportError without ruptures."""
    sessions: dict[str, list[Point]] = {}
    for point in course.timed:
        sessions.setdefault(point.session, []).append(point)
    groups = list(sessions.values())
    found = []
    levels = [float(np.mean([point.log_ms for point in group])) for group in groups]
    for place, change in shifts(levels):
        found.append(Change(change, groups[place - 1][-1], groups[place][0], between_sessions=True))
    for group in groups:
        for place, change in shifts([point.log_ms for point in group if point.log_ms is not None]):
            found.append(Change(change, group[place - 1], group[place], between_sessions=False))
    return sorted(found, key=lambda change: change.after.at)


def shifts(logs: Sequence[float]) -> list[tuple[int, float]]:
    """Where a series of logs changes its level: the index of the first value after, and the ratio less 1.

    ruptures' PELT with the squared error and a penalty that goes by the scatter between neighbours; then each place is
    kept if a t test tells the levels beside it apart (Bonferroni over all places) by `PRACTICAL` or more.
    """
    import ruptures

    series = np.asarray(logs, dtype=float)
    count = len(series)
    if count < 2 * LEAST:
        return []
    neighbours = np.abs(np.diff(series))
    # Differences of two normal values; the median is blind to the few that a change makes.
    scatter = max(float(np.median(neighbours)) / (0.6745 * math.sqrt(2)), LEAST_SCATTER)
    search = ruptures.Pelt(model="l2", min_size=LEAST, jump=1).fit(series)
    ends = [0, *search.predict(pen=PENALTY * scatter**2 * math.log(count))]
    # One place less at a time, the least sure first: segments that are none leave too little scatter within.
    while len(ends) > 2:
        found = _tested(series, ends)
        weakest = max(found, key=lambda each: each[2])
        if weakest[2] < ALPHA:
            return [(place, change) for place, change, _ in found if abs(change) >= PRACTICAL]
        ends.remove(weakest[0])
    return []


def _tested(series: NDArray[np.float64], ends: Sequence[int]) -> list[tuple[int, float, float]]:
    """Each inner end: its place, the ratio less 1 across it, and the probability of as much at any place by chance."""
    segments = [series[start:end] for start, end in pairwise(ends)]
    freedom = len(series) - len(segments)
    squares = sum(float(np.sum((segment - segment.mean()) ** 2)) for segment in segments)
    within = max(math.sqrt(squares / freedom), LEAST_SCATTER)
    found = []
    for place, (before, after) in zip(ends[1:-1], pairwise(segments), strict=True):
        step = float(after.mean() - before.mean())
        error = within * math.sqrt(1 / len(before) + 1 / len(after))
        chance = 2 * stats.t.sf(abs(step) / error, freedom) * (len(series) - 1)
        found.append((place, math.expm1(step), float(chance)))
    return found


def lines(found: Sequence[Course]) -> list[str]:
    """The courses as text, a table for each GPU model and workload."""
    bars = BARS if _can_write(BARS) else ASCII_BARS
    written = []
    unavailable = ""
    for (device, workload), group in groupby(found, key=lambda course: (course.device, course.workload)):
        table = list(group)
        points = [point for course in table for point in course.points]
        sessions = len({point.session for point in points})
        first, last = min(point.at for point in points), max(point.at for point in points)
        written += [
            f"{device}, {workload}: {sessions} session{'s' * (sessions != 1)}, {first:%Y-%m-%d} to {last:%Y-%m-%d}"
        ]
        width = max(len("cell"), *(len(course.cell) for course in table))
        written += ["", f"{'cell':<{width}}  {'first':>8}  {'last':>8}  {'change':>7}  course"]
        for course in table:
            written.append(f"{course.cell:<{width}}  {_ends(course)}  {sparkline(course.points, bars)}")
            try:
                told = [str(change) for change in changes(course)]
            except ImportError:
                unavailable = "Change points need ruptures: pip install '.[history]'"
                told = []
            written += [f"{'':<{width}}  {each}" for each in told]
        written.append("")
    legend = "ms a step, a point a version in a session"
    written.append(f"{legend}; {NEW_SESSION} a new session, {NO_TIME} no valid time. {_needs(found)}".strip())
    return [*written, unavailable] if unavailable else written


def _needs(found: Sequence[Course]) -> str:
    """What a history that is too short lacks, "" where some cell has enough points."""
    longest = 0
    for course in found:
        sessions = [point.session for point in course.timed]
        longest = max([longest, len(set(sessions)), *(sessions.count(session) for session in sessions)])
    if longest >= 2 * LEAST:
        return ""
    return f"Too short for change points: they need {2 * LEAST} sessions, or {2 * LEAST} versions in one."


def _ends(course: Course) -> str:
    logs = [point.log_ms for point in course.timed if point.log_ms is not None]
    if not logs:
        return f"{'-':>8}  {'-':>8}  {'-':>7}"
    first, last = (format_ms(math.exp(log)) for log in (logs[0], logs[-1]))
    return f"{first:>8}  {last:>8}  {math.expm1(logs[-1] - logs[0]):>+7.1%}"


def sparkline(points: Sequence[Point], bars: str = BARS) -> str:
    """The points as bars from the least to the largest; 4% are the full height at least, so that noise stays low."""
    logs = [point.log_ms for point in points if point.log_ms is not None]
    low, height = min(logs, default=0.0), max(max(logs, default=0.0) - min(logs, default=0.0), math.log(1.04))
    text = ""
    for before, point in zip([None, *points], points, strict=False):
        text += NEW_SESSION if before is not None and before.session != point.session else ""
        text += NO_TIME if point.log_ms is None else bars[round((point.log_ms - low) / height * (len(bars) - 1))]
    return text


def _can_write(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
