"""Runs a function on every rank: in gloo processes of its own, or, under torchrun, in the processes that it started."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pytest
import torch
import torch.distributed as dist

from gate.measure.rank import start_group

#: A job that has not answered after so many seconds hangs.
TIMEOUT_S = 60.0

#: After a rank failed the others have so many seconds to say what they know, as one may have ended that makes it fail.
GRACE_S = 1.0

#: Under torchrun the others may be right, and so much later; a rank that raised then ends the session, as those that
#: wait for it in a collective are told of nothing.
LATE_S = 10.0

#: Called on every rank with the arguments that were given, it returns what can be pickled.
Job = Callable[..., Any]


class RankFailed(AssertionError):
    """A rank raised, ended or did not answer; the message names the first that did."""


class Ranks(Protocol):
    """Several ranks that run the same job."""

    world: int

    def run(self, job: Job, *arguments: Any, timeout_s: float = TIMEOUT_S) -> list[Any]:
        """Return what the job returned on each rank."""


class Torchrun:
    """The ranks that torchrun started, of which this process is one."""

    def __init__(self) -> None:
        self.world, self.jobs = int(os.environ["WORLD_SIZE"]), 0
        # NCCL ends a process whose collective takes longer, and gloo raises there.
        start_group(int(os.environ["LOCAL_RANK"]), timedelta(seconds=TIMEOUT_S))
        self.store = dist.PrefixStore("jobs", dist.distributed_c10d._get_default_store())

    def run(self, job: Job, *arguments: Any, timeout_s: float = TIMEOUT_S) -> list[Any]:
        """Run the job here, and gather what all ranks returned, or the first error.

        Where another rank has no answer the session ends, and torchrun ends that rank. `timeout_s` is not looked at, as
        no rank is a collective's time behind the others.
        """
        try:
            answer = (True, job(*arguments))
        except Exception:
            answer = (False, traceback.format_exc())
        self.jobs += 1
        rank = dist.get_rank()
        keys = [f"{self.jobs}/{each}" for each in range(self.world)]
        self.store.set(keys[rank], "answered")
        limit = TIMEOUT_S if answer[0] else LATE_S
        try:
            self.store.wait(keys, timedelta(seconds=limit))
        except RuntimeError:
            lost = ", ".join(str(each) for each, key in enumerate(keys) if not self.store.check([key]))
            told = f"no answer of rank {lost} within {limit:g} s"
            told += "" if answer[0] else f", and this one raised:\n{answer[1]}"
            test = os.environ.get("PYTEST_CURRENT_TEST", "")
            pytest.exit(f"rank {rank} of {self.world} ends the session in {test}: {told}", returncode=1)
        answers: list[Any] = [None] * self.world
        dist.all_gather_object(answers, answer)
        for rank, (fine, value) in enumerate(answers):
            if not fine:
                raise RankFailed(f"rank {rank} of {self.world} raised:\n{value}")
        return [value for _, value in answers]

    def close(self) -> None:
        """End the process group."""
        dist.destroy_process_group()


class Processes:
    """Forked processes, one a rank, in a gloo group; a failed job ends them, and the next one starts new ones."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.processes: list[Any] = []
        self.ends: list[Connection] = []

    def run(self, job: Job, *arguments: Any, timeout_s: float = TIMEOUT_S) -> list[Any]:
        """Run the job on every rank; `RankFailed` for the first rank that raises, ends, or does not answer in time."""
        if not self.processes:
            self._start()
        for end in self.ends:
            end.send_bytes(pickle.dumps((job, arguments)))
        answers: dict[int, Any] = {}
        failures: dict[int, str] = {}
        until = time.monotonic() + timeout_s
        while len(answers) + len(failures) < self.world:
            pending = [end for rank, end in enumerate(self.ends) if rank not in answers and rank not in failures]
            ready = wait(pending, max(0.0, until - time.monotonic()))
            if not ready:
                break
            for rank, end in enumerate(self.ends):
                if end in ready:
                    fine, value = self._answer(rank, end)
                    (answers if fine else failures)[rank] = value
            if failures:
                until = min(until, time.monotonic() + GRACE_S)
        if failures or len(answers) < self.world:
            self.close()
            # A rank that ended makes others raise, which may be heard of first.
            first = next((told for told in failures.values() if " ended with code " in told), None)
            silent = ", ".join(str(rank) for rank in range(self.world) if rank not in answers)
            lost = f"rank {silent} of {self.world} did not answer within {timeout_s:g} s"
            raise RankFailed(first or next(iter(failures.values()), lost))
        return [answers[rank] for rank in range(self.world)]

    def _answer(self, rank: int, end: Connection) -> tuple[bool, Any]:
        """Return whether a rank's job went well, and what it returned or how it failed."""
        try:
            fine, value = pickle.loads(end.recv_bytes())
        except EOFError:
            self.processes[rank].join(5)
            return False, f"rank {rank} of {self.world} ended with code {self.processes[rank].exitcode}"
        return fine, value if fine else f"rank {rank} of {self.world} raised:\n{value}"

    def _start(self) -> None:
        # Forked: a fault that a test injected is in them too, and they need no import of torch.
        context = multiprocessing.get_context("fork")
        self.folder = TemporaryDirectory()
        for rank in range(self.world):
            here, there = context.Pipe()
            store = str(Path(self.folder.name) / "store")
            others = [*self.ends, here]
            process = context.Process(target=_serve, args=(there, others, rank, self.world, store), daemon=True)
            process.start()
            there.close()
            self.processes.append(process)
            self.ends.append(here)

    def close(self) -> None:
        """End every process; none is left behind."""
        for end in self.ends:
            end.close()
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.join()
        if self.processes:
            self.folder.cleanup()
        self.processes, self.ends = [], []


def _serve(end: Connection, others: Sequence[Connection], rank: int, world: int, store: str) -> None:
    """Run jobs until the other end closes."""
    for other in others:
        other.close()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    while True:
        try:
            job, arguments = pickle.loads(end.recv_bytes())
        except EOFError:
            os._exit(0)
        try:
            answer = (True, job(*arguments))
        except BaseException:
            answer = (False, traceback.format_exc())
        end.send_bytes(pickle.dumps(answer))
