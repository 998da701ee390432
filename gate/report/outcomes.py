"""Counts how the tests of each cell ended: a pytest plugin of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from gate.record.cell import cell_id, cell_of

#: The workload of cells whose batches are drawn, and have lengths of no other kind.
DRAWN = "drawn"

#: What the suite adds to a page: parts of `gate.report.page.Page` by name, asked for when the session ends.
FACTS = pytest.StashKey[Callable[[], dict[str, Any]]]()


@dataclass
class Outcome:
    """How the tests of a cell ended, and the first reason of the worst."""

    passed: int = 0
    failed: int = 0
    known: int = 0
    skipped: int = 0
    why: str = ""

    @property
    def state(self) -> str:
        """The state that the tests give the cell."""
        if self.failed:
            return "wrong"
        if self.known:
            return "known failure"
        return "right" if self.passed else "unavailable"


@dataclass(eq=False)
class Outcomes:
    """The outcomes of this session by cell id."""

    cells: dict[str, Outcome] = field(default_factory=dict)
    others: int = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test when it ended, in the process that writes the report."""
        if report.when != "call" and report.passed:
            return
        found = self.cells.setdefault(name, Outcome()) if (name := cell_in(report.nodeid)) else None
        if found is None:
            self.others += report.failed
            return
        if report.failed:
            found.why = found.why if found.failed else first_line(report)
            found.failed += 1
        elif report.skipped:
            kind = "known" if hasattr(report, "wasxfail") else "skipped"
            found.why = found.why or (report.wasxfail if kind == "known" else skip_reason(report))
            setattr(found, kind, getattr(found, kind) + 1)
        else:
            found.passed += 1


def cell_in(nodeid: str) -> str:
    """Return the id of the cell that a test's id names, "" if it names none.

    Tests of drawn batches may name a variant of the model behind it, which is left out.
    """
    try:
        key = cell_of(nodeid.rpartition("[")[2].removesuffix("]"))
    except ValueError:
        return ""
    if key["mode"] not in ("eval", "train") or key["execution"] not in ("eager", "compiled"):
        return ""
    return cell_id(key | {"lengths": "uniform"} if key["workload"] == DRAWN else key)


def first_line(report: pytest.TestReport) -> str:
    """Return the first line of what a failed test says."""
    lines = [line for line in str(report.longreprtext).splitlines() if line.strip()]
    return lines[0].strip() if lines else "failed"


def skip_reason(report: pytest.TestReport) -> str:
    """Return why a test was skipped."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "expected failure"
    return str(reason).removeprefix("Skipped: ")
