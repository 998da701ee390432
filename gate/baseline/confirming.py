"""Times suspect cells again in fresh processes before a comparison calls them slower."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gate.processes import Side, run_cells
from gate.records import cells
from gate.selecting import selection


def timed_again(
    config: pytest.Config, suspects: Sequence[str], processes: int
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Each suspect's `extra_info` in each of `processes` fresh ones, and sentences on processes that told nothing.

    They run in this session's checkout and with its Python, variables, workload and plugins (`-p`).
    """
    found: dict[str, list[dict[str, Any]]] = {cell: [] for cell in suspects}
    troubles = []
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory(prefix="gate-again-") as name:
        folder = Path(name)
        side = Side("again", config.rootpath, Path(sys.executable), Path(cache) if cache else folder / "compiled")
        for number in range(processes):
            options = [*child_options(config), "--no-exact-costs", f"--order-seed={number}"]
            try:
                record = run_cells(side, options, folder, f"again-{number}", ids=list(suspects))
            except ValueError as error:
                troubles.append(str(error))
                continue
            for cell, info in cells(record).items():
                found.setdefault(cell, []).append(info)
    return found, troubles


def child_options(config: pytest.Config) -> list[str]:
    """What a process needs to time the same as this one; which cells is another matter."""
    names = ("workload", "lengths", "steps", "cell_seconds")
    given = {name: config.getoption(name, None) for name in names}
    options = selection(argparse.Namespace(cells=None, backend=None, collator=None, **given))
    plugins = [name for name in config.option.plugins or () if not name.startswith("no:")]
    return [*options, *(word for name in plugins for word in ("-p", name))]
