"""Which cores the threads run on that queue a GPU's steps.

A rented machine's cores are threads of a host's cores, whose other threads have other tenants: while one of these
works, a core takes 1.6 times as long, for a second or so (docs/h100.md). At most times some cores have idle neighbours.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: What torch names the threads that run backward passes.
AUTOGRAD = "pt_autograd"

THREADS = Path("/proc/self/task")


def allowed() -> list[int]:
    """Return the cores that this thread may run on; none where the system cannot tell, or has only one."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return cores if len(cores) > 1 else []


def move(threads: list[int], cores: list[int]) -> None:
    """Let these threads run on these cores only; one that has ended meanwhile needs none."""
    for thread in threads:
        try:
            os.sched_setaffinity(thread, cores)
        except ProcessLookupError:
            continue


def queueing() -> list[int]:
    """Return the threads that queue steps: this one, and those of backward passes."""
    named = [int(thread.parent.name) for thread in THREADS.glob("*/comm") if _name(thread).startswith(AUTOGRAD)]
    return [threading.get_native_id(), *named]


@contextmanager
def restored() -> Iterator[None]:
    """Let the threads that queue steps run where this one did before, in the end."""
    cores = allowed()
    try:
        yield
    finally:
        if cores:
            move(queueing(), cores)


def _name(comm: Path) -> str:
    try:
        return comm.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
