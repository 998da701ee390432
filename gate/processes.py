"""Times cells in fresh pytest processes; a process that crashes or hangs costs the cell that ran, and nothing else."""

import glob
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gate.records import Record, cell_id, cells, load_record, record_from_journal

#: Where a checkout has its timed cells: collecting nothing else saves seconds of every process.
TIMED = "tests/performance"

#: pytest, without Python's own end: to take all modules apart takes seconds, and the record is on disk by then.
PYTEST = "import os, sys, pytest; status = pytest.main(); sys.stdout.flush(); sys.stderr.flush(); os._exit(status)"

#: pytest's: all passed, and some failed, as a cell does that is wrong.
FINISHED = (0, 1)

#: The exit status of a command that was interrupted.
INTERRUPTED = 130

#: A line of gate/progress.py: `[3/16] ID: ` when the cell starts, with its result behind once it ended.
PROGRESS = re.compile(r"^\[\d+/\d+\] (\S+): ?(.*)$", re.MULTILINE)

#: What pytest's faulthandler writes behind the name of a cell that takes its process with it.
FATAL = "Fatal Python error"

#: The key of a record's entries without `stats`.
LATER = "cells_without_time"

COLLECTED = re.compile(r"::\S*?\[(\S+)\]$", re.MULTILINE)


@dataclass(frozen=True)
class Side:
    """A version of the code and its packages: a checkout, a Python, and a folder for what it compiles."""

    name: str
    checkout: Path
    python: Path
    cache: Path


@dataclass(frozen=True)
class Ended:
    """How one pytest process ended: its exit status (None: killed, as it hung), and its output."""

    status: int | None
    log: str
    stall_s: float

    def __str__(self) -> str:
        if self.status is None:
            return f"killed after {self.stall_s:g} s without a sign of life"
        if self.status >= 0:
            return f"exit status {self.status}"
        return f"killed by {signal.Signals(-self.status).name}"

    @property
    def running(self) -> str | None:
        """The id of the cell that was running, None between cells."""
        cell, result = self.results[-1] if self.results else (None, "")
        return cell if not result or result.startswith(FATAL) else None

    @property
    def unprepared(self) -> list[str]:
        """The ids of the cells whose test failed before it began: they are in no record."""
        return [cell for cell, result in self.results if result.startswith("ERROR in setup")]

    @property
    def results(self) -> list[tuple[str, str]]:
        """Every cell that was started, and what was said of it."""
        return [(cell, result.strip()) for cell, result in PROGRESS.findall(self.log)]

    @property
    def error(self) -> str:
        """The line that says what was wrong, for a process that timed nothing."""
        lines = [line.strip() for line in self.log.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("ERROR", "E  ", "error")) or "rror: " in line]
        return (told or lines or ["no output"])[-1]


def run_cells(
    side: Side,
    options: Sequence[str],
    folder: Path,
    name: str,
    *,
    ids: Sequence[str] | None = None,
    stall_s: float = 300,
) -> Record:
    """Time cells in a fresh process and return its record; logs are left in `folder`, under `name`.

    `ids` are exact (None: what `options` select). A cell whose process crashed, or printed nothing for `stall_s`
    seconds, gets the verdict "crashed"; the cells after it are run in another process, as are those that failed after
    another cell had: a broken CUDA context fails whatever follows. ValueError if pytest does not get to a cell.
    """
    done: dict[str, dict[str, Any]] = {}
    header: Record = {}
    left = None if ids is None else list(ids)
    for attempt in range(1, 1000):
        storage = folder / f"{name}-{attempt}"
        # A run that was interrupted left its journal there.
        shutil.rmtree(storage, ignore_errors=True)
        ended = _run(side, [*options, *exactly(left), *_storage(storage)], folder / f"{name}-{attempt}.log", stall_s)
        record = _kept(storage)
        shutil.rmtree(storage, ignore_errors=True)
        unprepared = [lost_entry(cell, "failed", "its test could not be set up") for cell in ended.unprepared]
        record[LATER] = [*record.get(LATER, []), *unprepared]
        header = header or {key: value for key, value in record.items() if key not in ("benchmarks", LATER)}
        fresh = _trusted(record)
        crashed = ended.running if ended.status not in FINISHED else None
        if crashed is not None:
            fresh[crashed] = lost_entry(crashed, "crashed", str(ended))
        if not fresh and (ended.status not in FINISHED or (ended.status != 0 and not done)):
            raise ValueError(f"{side.name}: pytest ended before a cell did ({ended}): {ended.error}")
        done |= fresh
        poisoned = cells(record).keys() - fresh.keys()
        if ended.status in FINISHED and not poisoned:
            break
        if left is None:
            left = collected(side, options, folder / f"{name}-collected.log", stall_s)
        left = [cell for cell in left if cell not in done]
        if not left:
            break
    stamp = {"machine_info": {}, "datetime": datetime.now(UTC).isoformat()}
    timed = [entry for entry in done.values() if "stats" in entry]
    return stamp | header | {"benchmarks": timed, LATER: [entry for entry in done.values() if "stats" not in entry]}


def collected(side: Side, options: Sequence[str], log: Path, stall_s: float = 300) -> list[str]:
    """The ids of the cells that `options` select; ValueError if pytest says no."""
    ended = _run(side, [*options, "--collect-only"], log, stall_s)
    if ended.status != 0:
        raise ValueError(f"{side.name}: no cell was collected ({ended}): {ended.error}")
    return COLLECTED.findall(ended.log)


def exactly(ids: Sequence[str] | None) -> list[str]:
    """The option that selects these cells and no other."""
    return [] if ids is None else ["--cells=" + ",".join(glob.escape(cell) for cell in ids)]


def lost_entry(cell: str, verdict: str, reason: str) -> dict[str, Any]:
    """A record's entry for a cell that has none in its process's: it took that with it, or was never set up."""
    info = {"cell": cell_of(cell), "verdict": verdict, "reason": reason}
    return {"group": None, "name": cell, "fullname": cell, "params": None, "param": cell, "extra_info": info}


def cell_of(cell: str) -> dict[str, Any]:
    """The key that an id was made of.

    >>> cell_id(cell_of("fa2_varlen-packed-train-causal-bfloat16-eager-article"))
    'fa2_varlen-packed-train-causal-bfloat16-eager-article'
    """
    parts = cell.split("-", 7)
    names = ("backend", "collator", "mode", "causal", "dtype", "execution", "workload", "lengths")
    if len(parts) < 7:
        raise ValueError(f"{cell!r} is no cell id; one has 7 or 8 words with hyphens between them.")
    key: dict[str, Any] = dict(zip(names, [*parts, "uniform"], strict=False))
    return key | {"causal": key["causal"] == "causal"}


def _trusted(record: Record) -> dict[str, dict[str, Any]]:
    """A record's entries by cell id, without cells that failed after another one had failed."""
    entries = [*record["benchmarks"], *record.get(LATER, [])]
    by_id = {cell_id(entry["extra_info"]["cell"]): entry for entry in entries if "cell" in entry["extra_info"]}
    failed = [cell for cell, entry in by_id.items() if entry["extra_info"].get("verdict") == "failed"]
    return {cell: entry for cell, entry in by_id.items() if cell not in failed[1:]}


def _storage(folder: Path) -> list[str]:
    return [f"--benchmark-storage=file://{folder.absolute()}", "--benchmark-save=process"]


def _kept(storage: Path) -> Record:
    """What a process saved, or else what its journal holds; no cell at all is an empty record."""
    for path in storage.glob("*/*.json"):
        try:
            return load_record(path)
        except ValueError:
            # Cut short while it was written: the journal goes only after that.
            break
    for path in storage.glob("*/journal-*.jsonl"):
        return record_from_journal(path)
    return {"benchmarks": []}


def _run(side: Side, arguments: Sequence[str], log: Path, stall_s: float) -> Ended:
    """Run pytest in a session of its own, and kill all of it when it hangs or when this process is interrupted."""
    tests = [TIMED] if (side.checkout / TIMED).is_dir() else []
    command = [str(side.python), "-c", PYTEST, *tests, "-m", "performance", "-n0", "-p", "no:cacheprovider", "-q"]
    # Unbuffered, as output is the sign of life.
    variables = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(side.cache.absolute()), "PYTHONUNBUFFERED": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=side.checkout,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = _wait(process, log, stall_s)
        finally:
            # Compile workers outlive a process that was killed.
            _kill(process)
    return Ended(status, log.read_text(errors="replace"), stall_s)


def _wait(process: "subprocess.Popen[bytes]", log: Path, stall_s: float) -> int | None:
    size, since = -1, time.monotonic()
    while True:
        try:
            return process.wait(timeout=min(1.0, stall_s))
        except subprocess.TimeoutExpired:
            now = log.stat().st_size
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since >= stall_s:
                return None


def _kill(process: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def stoppable() -> Iterator[None]:
    """Have SIGTERM end what runs as Ctrl-C does: the process that times cells is killed, and not left alone."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def write_json(path: Path, value: object) -> None:
    """Write a file whole or not at all: a name that is there is a file that is finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1), encoding="utf8")
    os.replace(partial, path)
