"""Runs pytest in forks of a process that has imported torch, which takes longer than most mutants live."""

import contextlib
import gc
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: Imported before the fork; nothing of this repository is, as each fork imports its own mutant of it.
PRELOADED = (
    "hypothesis",
    "numpy",
    "pytest",
    "rich",
    "torch",
    "torch._dynamo",
    "torch.nn.attention.flex_attention",
    "torch.nn.attention.varlen",
    "torch.profiler",
    "torch.utils.data",
)

OPTIONS = (
    *("-x", "-q", "--tb=short", "--compiled=none", "-m", "correctness or meta"),
    # In one process, without what a mutant could leave behind, or a plugin that only takes its time to load.
    *("-n", "0", "-p", "no:cacheprovider", "-p", "no:anyio"),
)


#: A run may wait for a processor, or for what never comes, this many times as long as it may compute.
PATIENCE = 6


@dataclass(frozen=True)
class Ended:
    """How a run of pytest ended: its exit status, and what it said.

    `seconds` are those of a processor: a busy machine neither stops a run nor makes it look slow. `late` says at which
    limit the run was stopped, of computing or of waiting; it is empty where the run ended by itself.
    """

    status: int
    seconds: float
    output: str
    late: str = ""


class NoShrinking:
    """Has Hypothesis draw what it draws in CI, but not look for a smaller example of what failed: it takes minutes."""

    def pytest_configure(self) -> None:
        """Load a profile that is CI's without that phase."""
        from hypothesis import Phase, settings

        settings.register_profile("mutation", settings.get_profile("ci"), phases=(Phase.explicit, Phase.generate))
        settings.load_profile("mutation")


def preload() -> None:
    """Import what every fork needs."""
    for name in PRELOADED:
        __import__(name)
    # The collector of each fork need not go through all of torch.
    gc.freeze()


def run_pytest(
    root: Path, arguments: Sequence[str], log: Path, *, limit: float, coverage_data: Path | None = None
) -> Ended:
    """Run pytest with `arguments` on the repository at `root` in a fork, for at most `limit` seconds of a processor."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        _become_pytest(root, arguments, log, limit, coverage_data)
    late = ""
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() - start > PATIENCE * limit:
            late = "waited"
            os.kill(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            break
        time.sleep(0.05)
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) == signal.SIGXCPU:
            late = "computed"
        # What it had started in its turn.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    seconds = used.ru_utime + used.ru_stime
    return Ended(os.waitstatus_to_exitcode(status), seconds, log.read_text(encoding="utf-8", errors="replace"), late)


def _become_pytest(root: Path, arguments: Sequence[str], log: Path, limit: float, coverage_data: Path | None) -> None:
    """Run pytest and end the process: nothing of the parent may run on in a fork."""
    status = 70
    try:
        os.setsid()
        if math.isfinite(limit):
            before = resource.getrusage(resource.RUSAGE_SELF)
            seconds = math.ceil(before.ru_utime + before.ru_stime + limit)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(root)
        # Nothing of the repository that this runs from, which is what `tests` and the first path still are.
        sys.path[:] = [str(root), *sys.path[1:]]
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        # A mutant in the cache could be taken for the next one, of the same size and second.
        sys.dont_write_bytecode = coverage_data is None
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        status = _pytest_status(arguments, coverage_data)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _pytest_status(arguments: Sequence[str], coverage_data: Path | None) -> int:
    import pytest

    every = [*OPTIONS, *arguments]
    if coverage_data is None:
        return int(pytest.main(every, plugins=[NoShrinking()]))
    import coverage

    measured = coverage.Coverage(data_file=str(coverage_data), source=["collators", "model"], config_file=False)
    measured.start()
    try:
        return int(pytest.main(every, plugins=[NoShrinking()]))
    finally:
        measured.stop()
        measured.save()
