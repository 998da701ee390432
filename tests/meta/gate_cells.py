"""Made-up cells, processes and baselines for tests of the gate's judgement."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from gate.baseline.baselines import Baseline, Process
from gate.records import cell_id

START = datetime(2026, 3, 1, tzinfo=UTC)
MACHINE = {
    "device": "NVIDIA H100 80GB HBM3",
    "device_slug": "NVIDIA-H100-80GB-HBM3",
    "power_limit_w": 700.0,
    "versions": {"torch": "2.13.0"},
}
BACKENDS = tuple(f"backend{number}" for number in range(12))
BATCHES = 24


def key(backend="backend0", mode="train", **changes):
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


LOG = math.log(100)


def timed(cell, log_ms=LOG, **changes):
    """A cell's `extra_info` on a GPU whose batches differ in length; `log_ms` moves them all."""
    times = [math.exp(log_ms) * (1 + 0.02 * (batch % 5 - 2)) for batch in range(BATCHES)]
    return {
        "cell": cell,
        "verdict": "timed",
        "device_ms": times,
        "wall_ms": times,
        "host_ms": [ms / 2 for ms in times],
        "median_device_ms": float(np.median(times)),
        "tokens": [1000 + batch for batch in range(BATCHES)],
        "control": {"matmul_ms": [0.2] * 12, "copy_ms": [0.1] * 12},
    } | changes


def process(infos, *, session="s0", hours=0.0, machine=MACHINE):
    cells = {cell_id(info["cell"]): info for info in infos}
    return Process(START + timedelta(hours=hours), session, machine, {"id": "c0ffee", "dirty": False}, cells)


def baseline(processes, committed=True):
    return Baseline(Path("baselines/x/article.json"), tuple(processes), committed)


def simulated(rng, count, *, session, hours=0.0, process_sd=0.003, session_sd=0.0, slower=None):
    """Processes of one session over 24 cells, with the noise given; `slower` adds logs by cell id."""
    cells = [key(backend, mode) for backend in BACKENDS for mode in ("train", "eval")]
    shared = {cell_id(cell): rng.normal(0, session_sd) for cell in cells}
    found = []
    for number in range(count):
        infos = []
        for place, cell in enumerate(cells):
            name = cell_id(cell)
            log = math.log(20 + 10 * place) + shared[name] + rng.normal(0, process_sd) + (slower or {}).get(name, 0.0)
            infos.append(timed(cell, log))
        found.append(process(infos, session=session, hours=hours + number / 10))
    return found
