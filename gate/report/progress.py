"""Progress of a timed run: which cell runs, and what came of it."""

import time
from collections.abc import Generator, Mapping
from typing import Any

import pytest

from gate.record.cell import CellRecord, format_ms
from gate.report.markdown import no_time_word


class Progress:
    """A line a timed test, in place of pytest's dot: its name when it starts, its result when it ends.

    Marked tests only (`performance`); works through pytest's own way to append to an open line, so that
    output in between, -v and -q garble nothing.
    """

    def __init__(self, config: pytest.Config, entries: Mapping[str, dict[str, Any]]) -> None:
        self.config = config
        self.entries = entries
        self.prefixes: dict[str, str] = {}
        self.live = False
        self.done = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        # Without a reporter, as with -p no:terminal, nobody reads a line.
        self.reporter: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        timed = [item for item in session.items if self.reporter and item.get_closest_marker("performance")]
        self.began = time.monotonic()
        for position, item in enumerate(timed, start=1):
            label = item.callspec.id if hasattr(item, "callspec") else item.name
            self.prefixes[item.nodeid] = f"[{position}/{len(timed)}] {label}: "

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logstart(self, nodeid: str) -> Generator[None, None, None]:
        if nodeid not in self.prefixes:
            yield
            return
        self.reporter.showfspath = False
        try:
            yield
        finally:
            self.reporter.showfspath = None
        self._write(nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self) -> Generator[None, Any, Any]:
        status = yield
        return (status[0], "", "") if self.live else status

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None, None, None]:
        self.live = live = report.nodeid in self.prefixes
        try:
            yield
        finally:
            self.live = False
        if live and (report.when == "call" or not report.passed):
            self._write(report.nodeid, _result(report, self.entries.get(report.nodeid)) + self._left())

    def _left(self) -> str:
        """Say how long the rest will take, where that is more than a minute."""
        self.done += 1
        left = (time.monotonic() - self.began) / self.done * (len(self.prefixes) - self.done)
        return f"; {left / 60:.0f} min left" if left > 60 else ""

    def _write(self, nodeid: str, result: str = "") -> None:
        self.reporter.write_ensure_prefix(self.prefixes[nodeid], result)
        self.reporter.flush()


def _result(report: pytest.TestReport, entry: dict[str, Any] | None) -> str:
    """`97.8 ms (97.1..99.0), 41.2 GB`: median, smallest and largest step, peak memory; FAILED before it."""
    words = []
    if report.failed:
        words.append("FAILED" if report.when == "call" else f"ERROR in {report.when}")
    elif report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "expected failure"
        words.append(reason if reason.startswith("Skipped") else f"skipped, {reason}")
    if entry is not None and "cell" not in entry["extra_info"]:
        words.append(f"{format_ms(entry['stats']['median'] * 1e3)} ms")
    elif entry is not None:
        record = CellRecord.read(entry["extra_info"])
        if record.step_ms is None:
            words.append(no_time_word(record))
        else:
            spread = f"({format_ms(min(record.times_ms))}..{format_ms(max(record.times_ms))})"
            words.append(f"{format_ms(record.step_ms)} ms {spread}")
            words += [] if record.peak_bytes is None else [f"{record.peak_bytes / 1e9:.1f} GB"]
    return ", ".join(words) or "passed"
