"""Record step times in several fresh processes, for a baseline; pytest's options follow `--`."""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from gate import ROOT
from gate.record.cell import cell_of
from gate.record.files import Content, load_content, record_from_journal, record_of, write_json

#: pytest's exit statuses when it got to its end: all passed, and some failed, as a cell does that is wrong.
FINISHED = (0, 1)

#: A test's id and its cell, as `pytest --collect-only -q` lists it.
COLLECTED = re.compile(r"^(\S+::\S*?\[(\S+)\])$", re.MULTILINE)

#: A line of gate/report/progress.py: `[3/16] ID: ` when the cell starts, with its result behind once it ended.
PROGRESS = re.compile(r"^\[\d+/\d+\] (\S+): ?(.*)$", re.MULTILINE)

#: What pytest's faulthandler writes behind the name of a cell that takes its process with it.
FATAL = "Fatal Python error"


def how_ended(status: int) -> str:
    """Return in words how a process ended."""
    return f"exit status {status}" if status >= 0 else f"killed by {signal.Signals(-status).name}"


@dataclass(frozen=True)
class Ended:
    """How a pytest process ended: its exit status (None: killed, as it hung), and its output."""

    status: int | None
    log: str

    def __str__(self) -> str:
        if self.status is None:
            return "killed, because it printed nothing for --stall-seconds"
        return how_ended(self.status)

    @property
    def results(self) -> dict[str, str]:
        """What was said of each cell that was started, "" of one that did not end."""
        found = {cell: result.strip() for cell, result in PROGRESS.findall(self.log)}
        return {cell: "" if result.startswith(FATAL) else result for cell, result in found.items()}

    @property
    def error(self) -> str:
        """The line that says what was wrong, for a process that timed nothing."""
        lines = [line.strip() for line in self.log.splitlines() if line.strip()] or ["no output"]
        return ([line for line in lines if line.startswith(("ERROR", "E  ")) or "rror: " in line] or lines)[-1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m gate record`."""
    parser.add_argument("--processes", type=int, default=5, metavar="N", help="number of fresh processes (default 5)")
    parser.add_argument("--name", default="record", help="save the records as NUMBER_NAME.json (default: record)")
    parser.add_argument(
        "--seed", type=int, default=0, help="fixes the order of the cells, which differs in each process (0)"
    )
    parser.add_argument(
        "--stall-seconds",
        type=float,
        default=300,
        metavar="S",
        help="kill a process that prints nothing for longer than this (default 300)",
    )
    parser.add_argument(
        "--storage",
        # As pytest-benchmark takes it too.
        type=lambda text: Path(text.removeprefix("file://")),
        default=Path(".benchmarks"),
        metavar="DIR",
        help="save the records in DIR/DEVICE (default .benchmarks)",
    )
    parser.add_argument("pytest_arguments", nargs="*", metavar="ARGUMENT", help="options of pytest, after --")


def run(args: argparse.Namespace) -> int:
    """Time the cells in each process and save a record after each; 1 if a cell has no valid time."""
    if args.processes < 1:
        raise ValueError(f"--processes {args.processes} is less than 1; give 1 or more.")
    if not args.name or Path(args.name).name != args.name:
        raise ValueError(f"--name {args.name!r} is not a file name; give one without slashes.")
    if not args.stall_seconds > 0:
        raise ValueError(f"--stall-seconds {args.stall_seconds:g} is not more than 0; give seconds.")
    logs = args.storage.absolute() / "logs"
    ended = run_pytest([*args.pytest_arguments, "--collect-only"], logs / "collected.log", args.stall_seconds)
    tests = {cell: test for test, cell in COLLECTED.findall(ended.log)}
    if ended.status != 0 or not tests:
        raise ValueError(f"pytest collected no cell ({ended}): {ended.error}")
    without_time: dict[str, str] = {}
    for number in range(args.processes):
        order = random.Random(f"{args.seed} {number}").sample(list(tests), len(tests))
        shuffled = {cell: tests[cell] for cell in order}
        content = process(shuffled, args.pytest_arguments, logs, args.name, args.stall_seconds)
        cells = record_of(content).cells
        if not cells:
            raise ValueError(
                "no cell was timed: this machine skips every selected cell. Run pytest --matrix to see why."
            )
        path = save(content, args.storage, args.name)
        without_time |= {cell: record.no_time for cell, record in cells.items() if record.no_time}
        print(f"[{number + 1}/{args.processes}] {len(cells)} cells in {path}", flush=True)
    for cell, why in without_time.items():
        print(f"no time: {cell} ({why})")
    return 1 if without_time else 0


def process(tests: dict[str, str], options: Sequence[str], logs: Path, name: str, stall_s: float) -> Content:
    """Time cells in a fresh process, in the order of `tests` (pytest's ids by cell), and return its record.

    A cell whose process crashed or hung gets the verdict "crashed", and those after it are run in another process.
    ValueError if pytest does not get to a cell.
    """
    left = dict(tests)
    header: Content = {"machine_info": {}, "datetime": datetime.now(UTC).isoformat()}
    entries: dict[str, Content] = {}
    while left:
        with TemporaryDirectory() as storage:
            saved = [f"--benchmark-storage=file://{storage}", "--benchmark-save=process"]
            log = logs / f"{name}-{len(tests) - len(left)}.log"
            ended = run_pytest([*left.values(), *options, *saved], log, stall_s)
            content = _kept(Path(storage))
        results = ended.results
        if ended.status != 0 and not results.keys() & left.keys():
            raise ValueError(f"pytest ended before it finished a cell ({ended}): {ended.error}")
        for entry in content.pop("benchmarks", []) + content.pop("cells_without_time", []):
            entries[entry["fullname"]] = entry
        # It names the tests one by one, which makes a part of a run; together they are the whole.
        header |= {key: value for key, value in content.items() if key != "gate"}
        for cell, result in results.items():
            if result.startswith("ERROR in setup"):
                entries[tests[cell]] = _lost(cell, tests[cell], "failed", "its test could not be set up")
            elif not result and ended.status not in FINISHED:
                entries[tests[cell]] = _lost(cell, tests[cell], "crashed", str(ended))
        if ended.status in FINISHED:
            break
        left = {cell: test for cell, test in left.items() if cell not in results}
    timed = [entry for entry in entries.values() if "stats" in entry]
    return header | {"benchmarks": timed, "cells_without_time": [one for one in entries.values() if one not in timed]}


def _lost(cell: str, test: str, verdict: str, why: str) -> Content:
    """Return the entry of a cell that has none: it took its process with it, or was never set up."""
    return {"name": cell, "fullname": test, "extra_info": {"cell": cell_of(cell), "verdict": verdict, "reason": why}}


def _kept(storage: Path) -> Content:
    """Return what a process saved, or else what its journal holds; empty without either."""
    for path in storage.glob("*/*.json"):
        # One that was cut short leaves the journal, which goes only after it.
        with suppress(ValueError):
            return load_content(path)
    return next((record_from_journal(path) for path in storage.glob("*/journal-*.jsonl")), {})


def run_pytest(arguments: Sequence[str], log: Path, stall_s: float) -> Ended:
    """Run pytest on timed tests, and kill all that it started when it hangs or when this process is interrupted."""
    command = [sys.executable, "-m", "pytest", "-m", "performance", "-n0", "-p", "no:cacheprovider", "-q", *arguments]
    # Unbuffered, as output is the sign of life.
    variables = {"TORCHINDUCTOR_CACHE_DIR": str(log.parents[1] / "compiled")} | os.environ | {"PYTHONUNBUFFERED": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    status, size, since = None, 0, time.monotonic()
    with log.open("w") as output:
        started = subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while status is None and time.monotonic() - since < stall_s:
                with suppress(subprocess.TimeoutExpired):
                    status = started.wait(timeout=min(1.0, stall_s))
                if (printed := log.stat().st_size) != size:
                    size, since = printed, time.monotonic()
        finally:
            # Compile workers outlive a process that was killed.
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()
    return Ended(status, log.read_text(errors="replace"))


def save(content: Content, storage: Path, name: str) -> Path:
    """Write a record where pytest-benchmark would, under its next number, and return its path."""
    folder = storage / content["machine_info"].get("device_slug", "unknown-device")
    taken = [int(path.name[:4]) for path in folder.glob("[0-9][0-9][0-9][0-9]_*.json")]
    path = folder / f"{max(taken, default=0) + 1:04}_{name}.json"
    write_json(path, content, indent=1)
    return path
