"""Settles what seems slower than a record by a live pair: the record's own commit beside this checkout."""

import glob
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gate.judge.compatible import other_packages
from gate.judge.verdicts import CellVerdict, Threshold
from gate.live.comparison import Comparison, Request
from gate.live.workers import Side
from gate.live.worktrees import checkout


def settle(
    commit: Mapping[str, Any],
    machines: Mapping[str, Mapping[str, Any]],
    head: Path,
    ids: Sequence[str],
    hello: Mapping[str, Any],
    folder: Path,
    threshold: Threshold,
    say: Callable[[str], None],
) -> tuple[dict[str, CellVerdict], str]:
    """Compare cells live, and return their verdicts by id; or none, and why that was not possible.

    `commit` is the record's commit_info, `machines` are the machine_info of `base` (the record) and `head` (now);
    `head` is this checkout, `hello` what both workers are told to time (gate/live/command.py).
    """
    if why := cannot_settle(commit, machines, head):
        return {}, why
    chosen = {**hello["selection"], "cells": ",".join(glob.escape(cell) for cell in ids)}
    cache = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or folder / "cache")
    python = Path(sys.executable)
    try:
        with checkout(commit["id"], folder / "worktree", head) as place:
            sides = {"base": Side("base", place, python, cache), "head": Side("head", head, python, cache)}
            request = Request(sides, folder, {**hello, "selection": chosen}, percent=threshold.percent, us=threshold.us)
            found = Comparison(request, say).run()
    except ValueError as error:
        return {}, str(error)
    return {one.cell: one for one in found.verdicts}, ""


def cannot_settle(commit: Mapping[str, Any], machines: Mapping[str, Mapping[str, Any]], checkout: Path) -> str:
    """Return why the record's code cannot run here as it did, "" where it can."""
    if not commit.get("id") or commit.get("id") == "unversioned":
        return "the record names no commit"
    if commit.get("dirty"):
        return "the record was made with uncommitted changes"
    known = subprocess.run(
        ["git", "cat-file", "-e", f"{commit['id']}^{{commit}}"], cwd=checkout, capture_output=True, check=False
    )
    if known.returncode:
        return f"git has no commit {commit['id'][:12]}"
    changed = other_packages(machines["head"], machines["base"])
    return f"other packages: {', '.join(changed)}" if changed else ""
