"""Checkouts and a Python for tests of the process runner: nothing is timed (tests/meta/fake_pytest.py)."""

import json
import sys
from pathlib import Path
from typing import Any

from gate.processes import Side

CELLS = [f"sdpa_loop-packed-train-causal-bfloat16-eager-w{number}" for number in range(4)]


def checkout(folder: Path, **fake: Any) -> Path:
    """Make a folder that looks like a checkout, with cells of 30 ms, and return it."""
    (folder / "tests" / "performance").mkdir(parents=True, exist_ok=True)
    fake = {"cells": dict.fromkeys(CELLS, 30.0)} | fake
    (folder / "tests" / "performance" / "fake.json").write_text(json.dumps(fake))
    return folder


def python(folder: Path) -> Path:
    """Make an executable that runs the stand-in for pytest, whatever it is asked for."""
    path = folder / "python"
    script = Path(__file__).with_name("fake_pytest.py")
    path.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} -S {script} "$@"\n')
    path.chmod(0o755)
    return path


def side(folder: Path, **fake: Any) -> Side:
    """Return a side whose processes do what `fake` says."""
    return Side("head", checkout(folder / "head", **fake), python(folder), folder / "cache")
