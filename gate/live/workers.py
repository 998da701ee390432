"""Starts workers and talks to them; one that crashes, hangs or is killed is an error of one request, and no more."""

import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from gate import ROOT
from gate.baseline.recording import how_ended
from gate.measure.ranks import GRACE_S, joined_replies, place_of
from gate.measure.worker import START

#: The exit status of a command that was interrupted.
INTERRUPTED = 130


@dataclass(frozen=True)
class Side:
    """A version of the code and its packages: a checkout, a Python, and a folder for what it compiles."""

    name: str
    checkout: Path
    python: Path
    cache: Path


class Lost(Exception):
    """A worker that is gone; `str()` says how it ended."""


class Worker:
    """A process of one side; `log` holds what it printed."""

    def __init__(self, side: Side, log: Path, stall_s: float, place: Mapping[str, str] | None = None) -> None:
        self.side, self.log, self.stall_s = side, log, stall_s
        log.parent.mkdir(parents=True, exist_ok=True)
        variables = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(side.cache.absolute()), "PYTHONUNBUFFERED": "1"}
        variables |= place or {}
        with log.open("a") as output:
            self.process = subprocess.Popen(
                [str(side.python), "-c", START, str(ROOT), str(side.checkout)],
                cwd=side.checkout,
                env=variables,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        self._read, self.killed = b"", False

    def send(self, do: str, **arguments: Any) -> None:
        """Ask for something; of a process that is gone, `answer` says so."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()

    @property
    def answers(self) -> IO[bytes]:
        """What its answers are read from."""
        assert self.process.stdout is not None
        return self.process.stdout

    def answer(self) -> dict[str, Any]:
        """Return what it answers; `Lost` if it crashed, or was killed as it did not answer for `stall_s` seconds."""
        until = time.monotonic() + self.stall_s
        while b"\n" not in self._read:
            ready, _, _ = select.select([self.answers], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.kill()
                raise Lost(f"killed after {self.stall_s:g} s without an answer")
            piece = os.read(self.answers.fileno(), 1 << 16)
            if not piece:
                raise Lost(self.end())
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def end(self) -> str:
        """Wait for a process that is ending, and say how it ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)
        self.kill()
        return how_ended(self.process.returncode)

    def kill(self) -> None:
        """End it and all that it started: compile workers outlive a process that was killed."""
        # Once: later its number may be another process's.
        if self.killed:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self.killed = True

    @property
    def last_line(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


class RankedWorker:
    """The workers of one side's ranks, asked at once and answering as one; the first that fails answers for all.

    A rank that lost another waits for it in a collective and answers nobody, so they end together.
    """

    def __init__(self, side: Side, log: Path, stall_s: float, ranks: int) -> None:
        self.side, self.stall_s, self.killed, self.last_line = side, stall_s, False, ""
        self._meeting = TemporaryDirectory()
        self.ranks: list[Worker] = []
        try:
            for rank in range(ranks):
                named = log.with_name(f"{log.stem}-rank-{rank}.log")
                self.ranks.append(Worker(side, named, stall_s, place_of(rank, ranks)))
        except BaseException:
            self.kill()
            raise

    def send(self, do: str, **arguments: Any) -> None:
        """Ask every rank."""
        where = {"store": f"{self._meeting.name}/store"} if do == "hello" else {}
        for worker in self.ranks:
            worker.send(do, **arguments, **where)

    def answer(self) -> dict[str, Any]:
        """Return what all answer; `Lost` if one crashed, or was killed as it did not answer for `stall_s` seconds."""
        answers: dict[int, dict[str, Any]] = {}
        failed: list[int] = []
        until = time.monotonic() + self.stall_s
        while waiting := {one.answers: rank for rank, one in enumerate(self.ranks) if rank not in answers}:
            ready, _, _ = select.select([*waiting], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                break
            for rank in map(waiting.__getitem__, ready):
                try:
                    answers[rank] = self.ranks[rank].answer()
                except Lost as lost:
                    answers[rank] = {"verdict": "crashed", "reason": str(lost)}
                if "error" in answers[rank] or answers[rank].get("verdict", "ready") not in ("ready", "timed"):
                    until = min(until, time.monotonic() + GRACE_S)
                    failed.append(rank)
        world = len(self.ranks)
        if failed:
            return self._failure(answers, failed)
        if silent := [str(rank) for rank in range(world) if rank not in answers]:
            self.kill()
            raise Lost(f"rank {', '.join(silent)} of {world}: killed after {self.stall_s:g} s without an answer")
        return joined_replies([answers[rank] for rank in range(world)])

    def _failure(self, answers: Mapping[int, dict[str, Any]], failed: Sequence[int]) -> dict[str, Any]:
        """Return the answer of the rank that failed first, `Lost` if it crashed; all end, unless all say the same."""

        def forced(rank: int) -> bool:
            # One that ended without a word makes others fail. But where another failed, NCCL aborts the process.
            one = answers[rank]
            return one.get("verdict") != "crashed" or "SIGABRT" in one["reason"]

        first, world = min(failed, key=forced), len(self.ranks)
        found, self.last_line = answers[first], self.ranks[first].last_line
        # Out of memory, each may have got to another collective.
        if found.get("verdict") != "out of memory" and all(answers.get(rank) == found for rank in range(world)):
            return found
        self.kill()
        key = "error" if "error" in found else "reason"
        told = f"rank {first} of {world}: {found[key]}"
        if found.get("verdict") == "crashed":
            raise Lost(told)
        return {**found, key: told}

    def kill(self) -> None:
        """End all ranks and what they started."""
        for worker in self.ranks:
            worker.kill()
        self._meeting.cleanup()
        self.killed = True


@contextmanager
def stoppable() -> Iterator[None]:
    """Have SIGTERM and SIGINT end what runs as Ctrl-C does: workers are killed, and not left alone.

    SIGINT too, as a shell has what it starts in the background ignore it.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
