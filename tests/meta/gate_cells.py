"""Made-up cells, records and baselines for tests of the gate's judgement."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from gate.baseline.store import Baseline
from gate.record.cell import CellRecord
from gate.record.files import Record

START = datetime(2026, 3, 1, tzinfo=UTC)
MACHINE = {
    "device": "NVIDIA H100 80GB HBM3",
    "device_slug": "NVIDIA-H100-80GB-HBM3",
    "power_limit_w": 700.0,
    "versions": {"torch": "2.13.0"},
}
BATCHES = 24


def key(backend="fa2_varlen", mode="train", **changes):
    return {
        "backend": backend,
        "collator": "packed",
        "mode": mode,
        "causal": mode == "train",
        "dtype": "bfloat16",
        "execution": "eager",
        "workload": "article",
        "lengths": "uniform",
    } | changes


def timed(ms=100.0, cell=None, **changes):
    """A cell on a GPU whose batches differ in length; `ms` is that of the one in the middle."""
    times = [ms * (1 + 0.02 * (batch % 5 - 2)) for batch in range(BATCHES)]
    info = {
        "cell": cell or key(),
        "verdict": "timed",
        "batches": list(range(BATCHES)),
        "tokens": [1000 + batch for batch in range(BATCHES)],
        "device_ms": times,
        "wall_ms": times,
    }
    return CellRecord.read(info | changes)


def record(*cells, hours=0.0, machine=MACHINE, **changes):
    at = START + timedelta(hours=hours)
    return Record(at, machine, {"id": "c0ffee", "dirty": False}, {one.id: one for one in cells}, **changes)


def baseline(*records, committed=True):
    return Baseline(Path("baselines/x/article.json"), records, committed)


def content_of(one):
    """What pytest-benchmark would have saved of a record, with all its cells among those without `stats`."""
    return {
        "datetime": one.at.isoformat(),
        "machine_info": one.machine,
        "commit_info": one.commit,
        "benchmarks": [],
        "cells_without_time": [{"fullname": cell, "extra_info": each.written()} for cell, each in one.cells.items()],
        "gate": {"partial": one.partial, "regressed": list(one.regressed), "unjudged": list(one.unjudged)},
    }
