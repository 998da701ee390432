"""Other gates on the same recorded processes, by their own code: pytest-benchmark's comparison, and benchmatrix.

pytest-benchmark compares one run with one saved run, `--benchmark-compare-fail=FIELD:PERCENT`. benchmatrix 1.2.1
(https://pypi.org/project/benchmatrix/1.2.1/) compares two groups of at least five runs each: the ratio of medians of
mean step times, a BCa bootstrap interval with Bonferroni's correction over the matrix, "regressed" where all of the
interval lies beyond the threshold (5%).
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from pytest_benchmark.stats import Stats
from pytest_benchmark.utils import parse_compare_fail

from gate.records import Record
from gate.replay.data import Data, Recording
from gate.replay.effects import step_ms
from gate.replay.remembering import remembered
from gate.replay.rules import Outcome, Planted, shuffled

#: As many runs a side as benchmatrix asks for.
RUNS = 5

PACKAGE = "benchmatrix"

#: Which times a rival is given: those that pytest-benchmark took itself, or the steps' times that the gate judges.
OWN_ROUNDS, GATE_TIMES = "its own rounds", "the gate's step times"


@dataclass(frozen=True)
class Rival:
    """Another tool, with the settings and times it is run with; `compare` takes whole sides, older first."""

    name: str
    times: str
    runs: int
    compare: Callable[[Sequence[Recording], Sequence[Recording], "Sides"], tuple[frozenset[str], frozenset[str]]]


@dataclass(frozen=True)
class Sides:
    """The times that both sides have: seconds of each round, of a cell of a recording, on the head or not."""

    data: Data
    times: str
    planted: Planted | None

    def seconds(self, recording: Recording, cell: str, *, head: bool) -> list[float]:
        """The rounds of a cell, with what is planted added on the head."""
        info = recording.process.cells[cell]
        steps = step_ms(info) / 1e3
        rounds = recording.rounds_s.get(cell) if self.times == OWN_ROUNDS else None
        base = steps if rounds is None else np.array(rounds)
        if head and self.planted and self.planted.cell == cell:
            added = self.planted.kind.slower(info, self.planted.size).added_ms / 1e3
            if len(added) != len(base):
                raise ValueError(f"{recording.name}: {cell} has {len(base)} rounds for {len(added)} steps.")
            base = base + added
        return [float(value) for value in base]


def rivals(data: Data) -> list[Rival]:
    """The tools that can be run here, with the times that they can be given; all runs that they ask for or fewer."""
    recorded = all(cell in recording.rounds_s for recording in data.recordings for cell in data.cells)
    sources = ([OWN_ROUNDS] if recorded else []) + ([GATE_TIMES] if data.is_gpu or not recorded else [])
    runs = min(RUNS, min(map(len, data.sessions.values())) // 2)
    found = []
    for times in sources:
        found += [Rival(f"pytest-benchmark, `{check}`", times, 1, _stock(check)) for check in ("median:5%", "mean:2%")]
        if installed():
            few = "" if runs == RUNS else f", `--minimum-runs {runs}`"
            found.append(Rival(f"benchmatrix{few}", times, runs, _benchmatrix(5.0, runs)))
            found.append(Rival(f"benchmatrix, `--threshold 1`{few}", times, runs, _benchmatrix(1.0, runs)))
    return found


def installed() -> str:
    """The version of benchmatrix, "" without it."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return ""


def pairs_wanted(cells: int) -> int:
    """How many pairs benchmatrix's paired mode collects before it compares: both orders for each order of the cells."""
    return int(import_module(PACKAGE).balanced_order_supercycle_length(cells))


def remembering() -> AbstractContextManager[None]:
    """Have benchmatrix compute the interval of the same numbers once: it takes 50,000 resamples."""
    if not installed():
        return nullcontext()
    return remembered(import_module(f"{PACKAGE}.bench_compare"), "bootstrap_median_ratio_interval")


def judged(rival: Rival, data: Data, rng: np.random.Generator, planted: Planted | None = None) -> Outcome:
    """What a rival says of processes drawn from one session, none of them on both sides."""
    processes = shuffled(data, rng)
    head, base = processes[: rival.runs], processes[rival.runs : 2 * rival.runs]
    alarms, unsure = rival.compare(base, head, Sides(data, rival.times, planted))
    # A saved run is there already; the other tool's baseline is as many runs as the candidate.
    timed = rival.runs if rival.runs == 1 else 2 * rival.runs
    return Outcome(alarms, unsure, seconds=timed * data.seconds(data.cells))


def _stock(check: str) -> Callable[..., tuple[frozenset[str], frozenset[str]]]:
    """`--benchmark-compare-fail=CHECK`: cells whose statistic grew by more than the percentage."""
    rule: Any = parse_compare_fail(check)  # type: ignore[no-untyped-call]

    def compare(
        base: Sequence[Recording], head: Sequence[Recording], sides: Sides
    ) -> tuple[frozenset[str], frozenset[str]]:
        failed = frozenset(
            cell
            for cell in sides.data.cells
            if rule.fails(
                stats(sides.seconds(head[0], cell, head=True)).as_dict(),
                stats(sides.seconds(base[0], cell, head=False)).as_dict(),
            )
        )
        return failed, frozenset()

    return compare


def stats(seconds: Sequence[float]) -> Any:
    """pytest-benchmark's statistics of rounds."""
    found: Any = Stats()  # type: ignore[no-untyped-call]
    for value in seconds:
        found.update(value)
    return found


def _benchmatrix(threshold_percent: float, runs: int) -> Callable[..., tuple[frozenset[str], frozenset[str]]]:
    """`benchmatrix compare BASE... HEAD... --fail-on-regression`, with its defaults but these two."""

    def compare(
        base: Sequence[Recording], head: Sequence[Recording], sides: Sides
    ) -> tuple[frozenset[str], frozenset[str]]:
        tool = import_module(PACKAGE)
        with tempfile.TemporaryDirectory(prefix="gate-replay-") as name:
            found = tool.compare_benchmark_run_groups(
                [_loaded(Path(name), exported(recording, sides, head=False)) for recording in base],
                [_loaded(Path(name), exported(recording, sides, head=True)) for recording in head],
                regression_policy=tool.RegressionPolicy(default_threshold_percent=threshold_percent),
                evidence_policy=tool.EvidencePolicy(minimum_runs=runs),
            )
        if len(found.matched) != len(sides.data.cells):
            raise ValueError(f"benchmatrix compared {len(found.matched)} of {len(sides.data.cells)} cells.")
        regressed, unsure = (
            frozenset(row.implementation_name for row in rows) for rows in (found.regressed, found.inconclusive)
        )
        return regressed, unsure

    return compare


def _loaded(folder: Path, content: Record) -> Any:
    path = folder / "run.json"
    path.write_text(json.dumps(content), encoding="utf8")
    return import_module(PACKAGE).load_benchmark_run(path)


def exported(recording: Recording, sides: Sides, *, head: bool) -> Record:
    """A process as benchmatrix would have written it: single-call latency, a cell an implementation."""
    entries = []
    for cell in sides.data.cells:
        seconds = sides.seconds(recording, cell, head=head)
        info = {
            "benchmatrix_producer": PACKAGE,
            "benchmatrix_schema_version": 1,
            "metric_name": "single_call_latency",
            "implementation_name": cell,
            "case_name": recording.process.cells[cell]["cell"]["workload"],
            "case_fresh_inputs": False,
        }
        values = stats(seconds).as_dict() | {"data": seconds, "iterations": 1}
        entries.append({"name": cell, "fullname": cell, "extra_info": info, "stats": values})
    return {
        "machine_info": recording.process.machine,
        "datetime": recording.process.at.isoformat(),
        "benchmarks": entries,
    }
