"""Times one cell on several ranks: starts a process for each, waits for them, and joins what they measured.

gate/measure/rank.py says what each of them does.
"""

import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gate import ROOT
from gate.record.cell import NoTime

#: Ranks of which none got further for so many seconds hang.
STALL_S = 300.0

#: After a rank failed, the others have so many seconds to say what they know, as one may have ended that made it fail.
GRACE_S = 2.0

#: What a cell costs as much as the rank that needs the most of it.
HIGHEST = (
    "peak_bytes",
    "kernel_launches",
    "synchronisations",
    "compilations",
    "graph_breaks",
    "compile_s",
    "padded_token_share",
)

Answer = dict[str, Any]


def stall_of(cell_seconds: float) -> float:
    """Return after how many seconds ranks hang: all steps of a stage may take `--cell-seconds`."""
    return STALL_S + min(cell_seconds, 3600.0)


def timed_on_ranks(plan: Mapping[str, Any], ranks: int, *, stall_s: float = STALL_S) -> dict[str, Any]:
    """Run `plan` (the arguments of `gate.measure.rank.timed`) on `ranks` fresh processes, and return the record's
    fields.

    `NoTime` says which rank had no time first, and why. No process is left, however this ends.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "plan.json").write_text(json.dumps({**plan, "ranks": ranks, "stall_s": stall_s}))
        processes = [_started(rank, ranks, folder) for rank in range(ranks)]
        try:
            answers = _answers(processes, folder, stall_s)
        finally:
            for process in processes:
                # Compile workers outlive a process that was killed.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return joined(answers)


def place_of(rank: int, ranks: int) -> dict[str, str]:
    """Return the variables of a rank's process, as torchrun sets them: one thread of OpenMP, unless that is set."""
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return {"OMP_NUM_THREADS": threads, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}


def _started(rank: int, ranks: int, folder: Path) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with (folder / f"{rank}.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gate.measure.rank", str(folder), str(os.getpid())],
            env={**os.environ, **place_of(rank, ranks), "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _answers(processes: Sequence["subprocess.Popen[bytes]"], folder: Path, stall_s: float) -> list[Answer]:
    """Return what each rank measured; `NoTime` if one fails, ends without an answer, or none gets further."""
    failed, seen, until = False, 0.0, time.monotonic() + stall_s
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        marked = max((path.stat().st_mtime for path in folder.glob("*.at")), default=0.0)
        if not failed and any(process.poll() for process in processes):
            failed, until = True, time.monotonic() + GRACE_S
        elif not failed and marked != seen:
            seen, until = marked, time.monotonic() + stall_s
        time.sleep(0.05)
    codes, told = [process.poll() for process in processes], [_told(folder, rank) for rank in range(len(processes))]
    if any(codes) or None in codes:
        raise _failure(codes, told, folder, stall_s)
    return told


def _told(folder: Path, rank: int) -> Answer:
    """Return what a rank has told: what it measured, or why it failed; empty before."""
    path = folder / f"{rank}.json"
    answer: Answer = json.loads(path.read_text()) if path.exists() else {}
    return answer


def _failure(codes: Sequence[int | None], told: Sequence[Answer], folder: Path, stall_s: float) -> NoTime:
    """Return why there is no time, of the rank that failed first.

    One that ended without a word makes others fail. But where another failed, NCCL aborts the process.
    """
    world = len(codes)
    failed = [rank for rank, code in enumerate(codes) if code]
    if not failed:
        where = {path.stem: path.read_text() for path in folder.glob("*.at")}
        silent = [f"rank {rank} in {where.get(str(rank), 'its start')}" for rank in range(world) if not told[rank]]
        return NoTime("failed", f"no rank of {world} got further for {stall_s:g} s: {', '.join(silent)}")
    first = min(failed, key=lambda rank: told[rank].get("at", math.inf if codes[rank] == -signal.SIGABRT else 0))
    if answer := told[first]:
        # What all found together is told of the first.
        first = next(rank for rank in range(world) if told[rank].get("reason") == answer["reason"])
        print(answer["traceback"], file=sys.stderr)
        return NoTime(answer["verdict"], f"rank {first} of {world}: {answer['reason']}")
    lines = (folder / f"{first}.log").read_text(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return NoTime("crashed", f"rank {first} of {world} ended with code {codes[first]}: {last}")


def joined(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fields of a record, from what the ranks measured.

    The step's times are those of the rank that took the longest in all. Each rank's own work is the same step, of the
    same batches on all ranks at once, without communication. What a step takes beyond the most own work of a rank is
    exposed communication, which holds what the wrapper itself costs. Efficiency is tokens a second of each rank beside
    those of rank 0 while the others waited.
    """
    clock = "device_ms" if answers[0]["device_ms"] else "wall_ms"
    slowest = max(answers, key=lambda one: sum(one[clock]))
    steps, world = len(slowest[clock]), len(answers)
    total_ms = sum(slowest[clock])
    own = list(zip(*(one["own_ms"] for one in answers), strict=True))
    most, mean = sum(max(each) for each in own), sum(statistics.fmean(each) for each in own)
    tokens = [sum(each) for each in zip(*(one["tokens"] for one in answers), strict=True)]
    per_rank = sum(tokens) / total_ms / world * 1e3
    alone = sum(answers[0]["tokens"]) / sum(answers[0]["alone_ms"]) * 1e3
    shown = ("tokens", "own_ms", "alone_ms", "peak_bytes")
    return {
        **{key: value for key, value in slowest.items() if key not in ("at", "own_ms", "alone_ms")},
        **_highest(answers),
        "tokens": tokens,
        "tokens_per_s": per_rank * world,
        "tokens_per_s_rank": per_rank,
        "efficiency": per_rank / alone,
        "imbalance": most / mean - 1,
        "exposed_ms": (total_ms - most) / steps,
        "ranks": [
            {"step_ms": one[clock]} | {key: one[key] for key in shown if one.get(key) is not None} for one in answers
        ],
    }


def joined_replies(replies: Sequence[Mapping[str, Any]]) -> Answer:
    """Return what the ranks of a live pair's side answered to one request, as one worker would.

    A block is that of the rank that took the longest in all, the tokens of a step are those of all ranks, and costs
    are the highest of a rank. All else is rank 0's, its kernels too.
    """
    if "wall_ms" in replies[0]:
        return dict(max(replies, key=lambda one: sum(one["device_ms"] or one["wall_ms"])))
    tokens = [sum(each) for each in zip(*(one.get("tokens", ()) for one in replies), strict=True)]
    return {**replies[0], **_highest(replies), **({"tokens": tokens} if tokens else {})}


def _highest(answers: Sequence[Mapping[str, Any]]) -> Answer:
    """Return the costs that ranks told, each of the rank that needs the most of it."""
    return {
        name: max(known) for name in HIGHEST if (known := [one[name] for one in answers if one.get(name) is not None])
    }
