"""Runs a property with a fault injected, each in a process of its own that is forked from one that has imported all.

A fork starts with every module imported and nothing else: no patch, cache or setting of torch leaks from one fault into
another, or into the session that asked.
"""

import contextlib
import fnmatch
import gc
import importlib
import io
import multiprocessing
import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import Phase, settings

from tests.correctness.report import Red
from tests.meta.faults.fault import FOLDERS, Fault, Selection

PROFILE = "faults"
HERE = Path(__file__).parent

#: One process a core; a pytest session of a fault has no use for more than one thread.
WORKERS = min(os.cpu_count() or 1, 4)


@dataclass(frozen=True)
class Failure:
    """One failed phase of one test: the exceptions behind it, each with the file that raised it."""

    test: str
    when: str
    errors: tuple[tuple[type[BaseException], str], ...]
    message: str


@dataclass(eq=False)
class Recorder:
    """Pytest plugin that keeps what failed and how much passed.

    Pytest puts plugins in sets where tests lie in several folders that have a conftest, so it is hashable.
    """

    passed: int = 0
    failures: list[Failure] = field(default_factory=list)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Keep the exceptions themselves: a report has only their text."""
        report = yield
        if report.failed:
            errors = tuple(_errors(call.excinfo.value)) if call.excinfo else ()
            message = _message(call.excinfo.value) if call.excinfo else str(report.longrepr)
            self.failures.append(Failure(report.nodeid, report.when, errors, message))
        self.passed += report.when == "call" and report.passed
        return report


def _errors(error: BaseException) -> Iterator[tuple[type[BaseException], str]]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _errors(part)
        return
    # What the property raised stands behind its report.
    if isinstance(error, Red):
        yield from _errors(error.error)
        return
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    yield type(error), trace.tb_frame.f_code.co_filename if trace else ""


def _message(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:300]


@dataclass(frozen=True)
class Verdict:
    """Whether a fault was caught, or a selection without one is green (`right`), and what was seen."""

    right: bool
    seen: str


#: Whether this process, or the one that it is forked from, has imported what sessions import.
preloaded = False


def preload(profile: str = PROFILE, folders: Sequence[str] = FOLDERS) -> None:
    """Import what the sessions of faults import, and choose the examples that they draw: those of `ci`, not shrunk."""
    global preloaded
    preloaded = True
    # Nothing has asked for a GPU yet: the cells are the CPU's, whatever this machine has.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.pop("PYTEST_ADDOPTS", None)
    # Threads do not survive a fork.
    torch.set_num_threads(1)
    importlib.import_module("conftest")
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile(PROFILE, settings.get_profile("ci"), phases=phases, report_multiple_bugs=False)
    # Tests have the settings of the profile under which they are imported.
    code, printed = _pytest(["--collect-only", "-q", f"--hypothesis-profile={profile}", *folders])
    if code != pytest.ExitCode.OK:
        raise RuntimeError(f"{folders} cannot be collected:\n{printed}")
    # Pytest collects garbage at the end of every session: half a second among all that is imported here.
    gc.freeze()


def _pytest(options: Sequence[str], plugins: Sequence[Any] = ()) -> tuple[int, str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = pytest.main(["-p", "no:cacheprovider", f"--hypothesis-profile={PROFILE}", *options], plugins=plugins)
    return int(code), printed.getvalue()


def judged(fault: Fault) -> Verdict:
    """Inject `fault` and tell whether its property turned red for it."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        fault.apply(patch)
        code, printed = _pytest([*fault.selection.options, "--exitfirst"], [recorder])
    if not recorder.failures:
        lines = printed.strip().splitlines() or [""]
        return Verdict(False, f"exit code {code}, {recorder.passed} passed: {lines[-1]}")
    failure = recorder.failures[0]
    accepted = (AssertionError, pytest.fail.Exception)
    right = failure.when == "call" and all(
        issubclass(error, accepted) or (issubclass(error, fault.errors) and Path(file).parent != HERE)
        for error, file in failure.errors
    )
    seen = f"{failure.when} of {failure.test}: {failure.message}"
    return Verdict(right and bool(failure.errors), seen)


@dataclass(eq=False)
class Controls(Recorder):
    """Keeps of a session what `selections` ask for, and what came of each."""

    selections: tuple[Selection, ...] = ()
    passed_of: dict[Selection, int] = field(default_factory=dict)

    def chosen(self, item: pytest.Item) -> list[Selection]:
        """Return the selections that `item` belongs to."""
        params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        cell = params.get("attention") or params.get("workbench", (None,))[0]
        function = item.nodeid.partition("[")[0]
        return [
            selection
            for selection in self.selections
            if function.startswith(selection.path)
            and (not selection.cells or (cell is not None and fnmatch.fnmatch(cell.id, selection.cells)))
        ]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave the tests of the selections."""
        items[:] = [item for item in items if self.chosen(item)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Count for each selection."""
        report = yield from super().pytest_runtest_makereport(item, call)
        if report.when == "call" and report.passed:
            for selection in self.chosen(item):
                self.passed_of[selection] = self.passed_of.get(selection, 0) + 1
        return report


def controlled(selections: tuple[Selection, ...]) -> dict[str, Verdict]:
    """Run `selections` in one session without a fault and tell of each whether it is green."""
    recorder = Controls(selections=selections)
    tests = dict.fromkeys(selection.path for selection in selections)
    code, _ = _pytest([*tests], [recorder])
    found = {}
    for selection in selections:
        failed = [failure for failure in recorder.failures if failure.test.startswith(selection.path)]
        passed = recorder.passed_of.get(selection, 0)
        seen = "; ".join(f"{failure.test}: {failure.message}" for failure in failed)
        found[selection.name] = Verdict(not failed and passed > 0, seen or f"exit code {code}, {passed} passed")
    return found


#: A fault, or what to run without one.
Job = Fault | tuple[Selection, ...]


def _work(job: Job, sender: Connection) -> None:
    start = time.monotonic()
    found = {job.name: judged(job)} if isinstance(job, Fault) else controlled(job)
    sender.send((found, time.monotonic() - start))


def verdicts(jobs: Sequence[Job], workers: int = WORKERS) -> Iterator[tuple[Job, dict[str, Verdict], float]]:
    """Yield each job with its verdicts by name and the seconds it took, as they come; `preload` was called."""
    context = multiprocessing.get_context("fork")
    waiting = list(jobs)
    running: dict[Connection, tuple[Job, multiprocessing.context.ForkProcess]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            job = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(job, sender))
            process.start()
            sender.close()
            running[receiver] = job, process
        for ready in wait(list(running)):
            receiver = cast(Connection, ready)
            job, process = running.pop(receiver)
            try:
                found, seconds = receiver.recv()
            except EOFError:
                process.join()
                verdict = Verdict(False, f"its process ended with code {process.exitcode}")
                names = [job.name] if isinstance(job, Fault) else [selection.name for selection in job]
                found, seconds = dict.fromkeys(names, verdict), 0.0
            process.join()
            yield job, found, seconds
