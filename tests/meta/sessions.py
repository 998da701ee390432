"""Runs pytest sessions and keeps what they collected and printed: `run` from a test, `python -m tests.meta.sessions`.

Each session is forked from a process that has imported all, on the CPU, with nothing else in it: importing torch and
the tests takes longer than most sessions. Where a injected fault is run (tests/meta/faults), this process is one, and
the fault is in the sessions too.
"""

import contextlib
import functools
import importlib
import io
import json
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis.database import DirectoryBasedExampleDatabase

from model.cells import Cell
from tests.meta.faults import runner
from tests.selection import MARKS

ROOT = Path(__file__).parents[2]

#: In place of options: run the command that the one red test of the session before printed.
AGAIN = ["again"]


@dataclass(frozen=True)
class Item:
    """One test of a session: its cell's backend and collator, "" where it has none, and whether it builds a decoder.

    `strict` is that of an expected failure as its mark says it, None where nothing says it.
    """

    id: str
    file: str
    function: str
    backend: str
    collator: str
    decoder: bool
    marks: tuple[str, ...]
    skipped: bool
    xfails: bool
    strict: bool | None


@dataclass(frozen=True)
class Ran:
    """How a session ended: pytest's exit code, what it printed, what it collected, and how each test ended with the
    seconds that it took."""

    code: int
    printed: str
    items: tuple[Item, ...] = ()
    ended: dict[str, tuple[str, float]] = field(default_factory=dict)


class Recorder:
    """Pytest plugin that keeps what a session collected, and how its tests ended."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.ended: dict[str, tuple[str, float]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Keep what is left after all plugins have chosen."""
        self.items = [described(item) for item in session.items if isinstance(item, pytest.Function)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep a call's outcome, or that of a setup that kept it from being called."""
        if report.when == "call" or report.outcome != "passed":
            outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
            self.ended[report.nodeid] = outcome, report.duration


def described(item: pytest.Function) -> dict[str, Any]:
    """Return `item` as plain data."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    workbench = params.get("workbench")
    # A test that got no cell has a parameter that is none.
    made = (workbench[0] if isinstance(workbench, tuple) else None, params.get("attention"), params.get("cell"))
    cell = next((each for each in made if isinstance(each, Cell)), None)
    expected = item.get_closest_marker("xfail")
    return {
        "id": item.nodeid,
        "file": item.path.relative_to(ROOT).as_posix(),
        "function": item.originalname,
        "backend": cell.backend.name if cell else "",
        "collator": cell.collator.name if cell else "",
        "decoder": "workbench" in params,
        "marks": [mark.name for mark in item.iter_markers() if mark.name in MARKS],
        "skipped": item.get_closest_marker("skip") is not None,
        "xfails": expected is not None,
        "strict": expected.kwargs.get("strict") if expected else None,
    }


def _session(options: Sequence[str], inject: str, sender: Connection) -> None:
    printed, recorder = io.StringIO(), Recorder()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        pytest.MonkeyPatch.context() as patch,
    ):
        if inject:
            # What it finds would be tried first wherever the same is drawn, after it.
            patch.setattr(DirectoryBasedExampleDatabase, "save", lambda *args: None)
            patch.setattr(DirectoryBasedExampleDatabase, "fetch", lambda *args: iter(()))
            getattr(importlib.import_module("tests.meta.injected.reds"), inject)(patch)
        code = pytest.main(["-p", "no:cacheprovider", "-n0", *options], plugins=[recorder])
    sender.send((int(code), printed.getvalue(), recorder.items, recorder.ended))


def _forked(options: Sequence[str], inject: str = "") -> list[Any]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_session, args=(options, inject, sender))
    process.start()
    sender.close()
    try:
        return list(receiver.recv())
    finally:
        process.join()


def _ran(code: int, printed: str, items: Sequence[dict[str, Any]], ended: dict[str, Any]) -> Ran:
    found = tuple(Item(**{**item, "marks": tuple(item["marks"])}) for item in items)
    return Ran(code, printed, found, {name: (outcome, seconds) for name, (outcome, seconds) in ended.items()})


def command_of(printed: str) -> list[str]:
    """Return the options of the command that runs the one red test of a session again."""
    (options,) = re.findall(r"^ *again: pytest (.*)$", printed, re.MULTILINE)
    return shlex.split(options)


def run(
    *sessions: Sequence[str], injects: Sequence[str] = (), profile: str = "ci", folders: Sequence[str] = runner.FOLDERS
) -> list[Ran]:
    """Return what came of a session for each list of options, of tests in `folders`, under `profile`.

    `injects` names a function of injected/reds.py for each, which breaks something before it. Under a injected fault
    examples are drawn as there: only what is collected can be asked for.
    """
    jobs = [[list(options), inject] for options, inject in zip(sessions, injects or [""] * len(sessions), strict=True)]
    if runner.preloaded and not any(injects):
        return [_ran(*_forked(*job)) for job in jobs]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "CI")}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    started = subprocess.run(
        [sys.executable, "-m", "tests.meta.sessions"],
        input=json.dumps({"profile": profile, "folders": folders, "jobs": jobs}),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert started.returncode == 0, started.stdout + started.stderr
    return [_ran(*found) for found in json.loads(started.stdout)]


def collected(sessions: Mapping[str, Sequence[str]]) -> Callable[[str], Ran]:
    """Return what gives each of `sessions` by its name, only collected: all run at once where importing costs."""
    quiet = {name: ["--collect-only", "-qq", *options] for name, options in sessions.items()}
    if runner.preloaded:
        return functools.cache(lambda name: run(quiet[name])[0])
    return dict(zip(quiet, run(*quiet.values()), strict=True)).__getitem__


def main() -> None:
    """Run the sessions of standard input, and print what came of them as JSON."""
    asked = json.load(sys.stdin)
    runner.preload(asked["profile"], asked["folders"])
    start = time.monotonic()
    found: list[list[Any]] = []
    for options, inject in asked["jobs"]:
        chosen = command_of(found[-1][1]) if options == AGAIN else options
        found.append(_forked([f"--hypothesis-profile={asked['profile']}", *chosen], inject))
    print(f"{len(found)} sessions in {time.monotonic() - start:.1f} s", file=sys.stderr)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
