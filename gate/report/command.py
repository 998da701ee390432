"""Make one page of records, baselines and A/B runs: report.html, report.md and report.json."""

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from gate.baseline.store import load
from gate.record.cell import CellRecord
from gate.report.page import Page, write_page
from gate.report.tables import typical


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m gate report`."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="a record, a baseline, or the folder of an A/B run"
    )
    parser.add_argument("--to", type=Path, default=Path("report"), metavar="DIR", help="write there (default: report)")


def run(args: argparse.Namespace) -> int:
    """Write the page; ValueError for a file that is none of these. Returns 1 if a cell regressed or is wrong."""
    page = Page(command=shlex.join(["python", "-m", "gate", *sys.argv[1:]]))
    times: dict[str, CellRecord] = {}
    machines: dict[str, dict[str, Any]] = {}
    for path in args.files:
        report = path / "report.json" if path.is_dir() else path
        if path.is_dir() or path.name == "report.json":
            page.machine = _compared(page, report)
        else:
            processes = load(path).processes
            page.history = [*page.history, *processes]
            found = typical(processes)
            machines[str(path)] = page.machine = found.machine
            times |= found.cells
    if len({machine.get("device") for machine in machines.values()}) > 1:
        devices = ", ".join(f"{path}: {machine.get('device')}" for path, machine in machines.items())
        raise ValueError(
            f"a page needs records of one device, but these are of several ({devices}). Make one page each."
        )
    page.times = [*times.values()]
    wrong = any(one.verdict in ("wrong", "failed") for one in page.times)
    page.passed = not wrong and not any(one["verdict"] == "regressed" for one in page.comparison)
    print(write_page(page, args.to))
    return int(not page.passed)


def _compared(page: Page, path: Path) -> dict[str, Any]:
    """Take the verdicts of an A/B run, and return its machine."""
    try:
        found = json.loads(path.read_text(encoding="utf8"))
        page.comparison = [*page.comparison, *found["cells"]]
        base, head = found["asked"]
        page.compared = f"{base} (base) against {head} (head)"
        page.compare = f"python -m gate ab --base {base} --head {head}"
        return dict(found["machine"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is not the report of an A/B run ({type(error).__name__}: {error}).") from None
