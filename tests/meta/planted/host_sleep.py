"""Pytest plugin: every timed step of some cells sleeps for a share of its own time.

VARLEN_GATE_PLANTED_SHARE=0.2 VARLEN_GATE_PLANTED_CELLS='sdpa_loop-*' \
    pytest -m performance --benchmark-compare -p tests.meta.planted.host_sleep

Variables, not options: the fresh processes that time suspects again have to be as slow.
"""

import os
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from typing import Any

import pytest

from gate.waiting import waited_ms, waits_ms
from tests.performance.bench import CellBench

SHARE = "VARLEN_GATE_PLANTED_SHARE"
CELLS = "VARLEN_GATE_PLANTED_CELLS"


def slowed(step: Callable[[Any], object], share: float) -> Callable[[Any], object]:
    """Return a step that sleeps for `share` of what it just took, less its waiting for a core."""

    def slow(batch: Any) -> object:
        waits, begin = waits_ms(), time.perf_counter()
        result = step(batch)
        took_s = time.perf_counter() - begin - (waited_ms(waits, waits_ms()) or 0.0) / 1e3
        time.sleep(max(took_s, 0.0) * share)
        return result

    return slow


@pytest.fixture(scope="session", autouse=True)
def planted() -> Iterator[None]:
    """Wrap the steps of the named cells for this session."""
    share, pattern = float(os.environ[SHARE]), os.environ.get(CELLS, "*")
    original = CellBench.timer

    def timer(bench: CellBench) -> Any:
        made = original(bench)
        if fnmatch(bench.cell.id, pattern):
            made.step = slowed(made.step, share)
        return made

    CellBench.timer = timer  # type: ignore[method-assign]
    yield
    CellBench.timer = original  # type: ignore[method-assign]
