"""Timed pytest sessions within a test, over made-up cells on a simulated GPU: nothing is run that takes time."""

import json
from pathlib import Path
from typing import Any

import pytest

from gate.record.cell import cell_id

SLUG = "NVIDIA-H100-80GB-HBM3"
ENVIRONMENT = {
    "device": "NVIDIA H100 80GB HBM3",
    "device_slug": SLUG,
    "power_limit_w": 700.0,
    "versions": {"torch": "2.13.0", "xformers": None},
}

# Hypothesis' plugin imports all of Hypothesis anew in every inner session: a second each.
WITHOUT = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")

#: With the options of tests/selection.py: that plugin leaves no test without the suite's own cells.
CONFTEST = """
    from gate.comparing import ASKED

    pytest_plugins = ["gate.plugin"]

    def pytest_addoption(parser):
        parser.addoption("--cells")
        parser.addoption("--backend", action="append")
        parser.addoption("--collator", action="append")
        parser.addoption("--compiled", default="default")

    def pytest_configure(config):
        config.addinivalue_line("markers", "performance: timed")
        options = {"cells": "cells", "backends": "backend", "collators": "collator", "compiled": "compiled"}
        config.stash[ASKED] = {"selection": {key: config.getoption(name) for key, name in options.items()}}
"""

TEST = """
    import os
    import pytest

    INFOS = {infos!r}

    @pytest.mark.performance
    @pytest.mark.parametrize("info", INFOS, ids=[info["id"] for info in INFOS])
    def test_step(info, benchmark, record_cell):
        if info["verdict"] != "timed":
            return record_cell(info)
        benchmark.extra_info.update(info)
        benchmark.pedantic(lambda: None, rounds=3)
        {last}

    def test_quick():
        pass
"""


def info(backend="fa2_varlen", ms=31.0, verdict="timed", workload="article", lengths="uniform", **changes):
    """A cell's `extra_info`; its name is under "id"."""
    cell = {
        "backend": backend,
        "collator": "packed",
        "mode": "eval",
        "causal": False,
        "dtype": "bfloat16",
        "execution": "eager",
        "workload": workload,
        "lengths": lengths,
    } | changes
    times = [ms - 1, ms - 0.5, *[ms] * 6, ms + 0.5, ms + 2]
    steps = {"device_ms": times, "batches": [*range(10)], "tokens": [1000 + number for number in range(10)]}
    found = {"cell": cell, "verdict": verdict, "id": cell_id(cell)}
    return found | (steps | {"peak_bytes": 41_200_000_000} if verdict == "timed" else {})


FA2, XFORMERS = info()["id"], info("xformers_auto")["id"]


class Session:
    """Runs pytest in this process over given cells."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.store = pytester.path / ".benchmarks" / SLUG

    def __call__(self, *args: str, infos: list[dict[str, Any]] | None = None, last: str = "pass") -> pytest.RunResult:
        self.write(infos or [info()], last)
        return self.pytester.runpytest_inprocess(*WITHOUT, *args)

    def write(self, infos: list[dict[str, Any]], last: str) -> None:
        self.pytester.makepyfile(test_step=TEST.format(infos=infos, last=last))

    def saved(self) -> list[Path]:
        return sorted(self.store.glob("*.json"))

    def journals(self) -> list[Path]:
        return sorted(self.store.glob("journal-*.jsonl"))

    def place(self, name: str, infos: list[dict[str, Any]], day: int = 1, **keys: Any) -> Path:
        """Write a record of a day of March by hand, below .benchmarks or at a path."""
        stats = {"mean": 1.0, "median": 1.0, "ops": 1.0}
        entries = [{"fullname": each["id"], "name": each["id"], "extra_info": each, "stats": stats} for each in infos]
        record = {"datetime": f"2026-03-{day:02}T00:00:00+00:00", "machine_info": ENVIRONMENT, "benchmarks": entries}
        path = self.pytester.path / name if "/" in name else self.store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record | keys))
        return path
