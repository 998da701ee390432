"""Starts workers and talks to them; one that crashes, hangs or is killed is an error of one request, and no more."""

import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gate import ROOT
from gate.baseline.recording import how_ended
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

    def __init__(self, side: Side, log: Path, stall_s: float) -> None:
        self.side, self.log, self.stall_s = side, log, stall_s
        log.parent.mkdir(parents=True, exist_ok=True)
        variables = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(side.cache.absolute()), "PYTHONUNBUFFERED": "1"}
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
        self._read, self._killed = b"", False

    def send(self, do: str, **arguments: Any) -> None:
        """Ask for something; of a process that is gone, `answer` says so."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return what it answers; `Lost` if it crashed, or was killed as it did not answer for `stall_s` seconds."""
        assert self.process.stdout is not None
        until = time.monotonic() + self.stall_s
        while b"\n" not in self._read:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.kill()
                raise Lost(f"killed after {self.stall_s:g} s without an answer")
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
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
        if self._killed:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._killed = True

    @property
    def last_line(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


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
