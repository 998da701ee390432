"""Writes docs/results/injected-faults.md: each fault with the test that finds it, and each real bug with its fault."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.meta.faults import CATALOGUE
from tests.meta.faults.fault import Fault
from tests.meta.faults.upstream import BUGS, NOT_INJECTED, url

PATH = Path(__file__).parents[3] / "docs" / "results" / "injected-faults.md"

#: How the line starts that says where and when the table was made.
PRODUCED = "Produced "

HEAD = """# Injected faults

A green run means something only if the tests can turn red. Each row below is a fault that was injected into the code
under test. A fault is a small patch of a collator, a backend, the decoder or the step, for example. The row names the
test that turned red, and the cells. That test failed by its own assertion (in a few rows by an error that the catalogue
names). It is green without the fault. The patches are in `tests/meta/faults`. `pytest -m meta` injects them again.

`python -m tests.studies.faults --write` runs every fault on the CPU and writes this file. With names of faults and
without `--write`, it runs only those."""


def produced(seconds: float) -> str:
    """Return the line about this run."""
    versions = f"Python {platform.python_version()}, torch {version('torch')}, hypothesis {version('hypothesis')}"
    return f"{PRODUCED}on {platform.machine()} in {seconds:.0f} s with {versions}."


def linked(bugs: Sequence[str]) -> str:
    """Return links to reports."""
    return ", ".join(f"[{bug}]({url(bug)})" for bug in bugs)


def row(*cells: str) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"


def fault_row(fault: Fault, caught: bool) -> str:
    """Return the row of one fault."""
    selection = fault.selection
    cells = f"`{selection.cells}`" if selection.cells else ""
    return row(
        f"`{fault.name}`",
        fault.summary,
        f"`{selection.test}`",
        cells,
        "yes" if caught else "**no**",
        linked(fault.links),
    )


def bug_row(bug: str) -> str:
    """Return the row of one upstream bug."""
    faults = ", ".join(f"`{fault.name}`" for fault in CATALOGUE if bug in fault.links)
    return row(linked([bug]), BUGS[bug], faults or f"not injected: {NOT_INJECTED[bug]}")


def document(caught: Mapping[str, bool], where: str) -> str:
    """Return the whole file; `where` is the line about the run."""
    lines = [HEAD, "", f"{len(CATALOGUE)} faults, {sum(caught.values())} caught.", where]
    for room in dict.fromkeys(fault.room for fault in CATALOGUE):
        lines += ["", f"## In {room}", "", row("fault", "what is wrong", "property", "cells", "caught", "drawn from")]
        lines.append(row(*["---"] * 6))
        lines += [fault_row(fault, caught[fault.name]) for fault in CATALOGUE if fault.room == room]
    lines += ["", "## Real bugs of this field", "", row("report", "what happened", "injected as"), row(*["---"] * 3)]
    lines += [bug_row(bug) for bug in BUGS]
    return "\n".join(lines) + "\n"
