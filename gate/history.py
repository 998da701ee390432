"""Show each cell's step time in all records kept: a column a record or baseline, the oldest first."""

import argparse
import statistics
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from gate.baseline.store import INDEX, Baseline, load
from gate.record.cell import format_ms
from gate.report.markdown import markdown_box, render

#: Device, workload and lengths: what a table is of.
Kind = tuple[str, str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m gate history`."""
    parser.add_argument(
        "paths",
        nargs="*",
        type=Path,
        metavar="FOLDER|RECORD",
        help="records and baselines, or folders of them or of device folders (default: .benchmarks and baselines)",
    )
    parser.add_argument("--cells", metavar="PATTERN", default="*", help="only cells whose id matches the glob")


def run(args: argparse.Namespace) -> int:
    """Print a table for each device and workload; 1 if a record could not be read, which is named."""
    paths = args.paths or [path for path in (Path(".benchmarks"), Path("baselines")) if path.is_dir()]
    found, unreadable = read(paths)
    for why in unreadable:
        print(f"unreadable: {why}")
    written = tables(found, args.cells)
    if not written:
        looked = ", ".join(map(str, paths)) or ".benchmarks or baselines"
        raise ValueError(
            f"no record in {looked} holds a cell like {args.cells!r}. Make one: pytest -m performance "
            "--benchmark-save=NAME"
        )
    print("\n\n".join(written))
    return 1 if unreadable else 0


def read(paths: Iterable[Path]) -> tuple[list[Baseline], list[str]]:
    """Return every record and baseline in these files and folders by time, and a sentence for each that is none."""
    found, unreadable = [], []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} does not exist: name a record, a baseline, or a folder of them.")
        # No deeper: there are the files of `gate ab`, and records that were put aside.
        files = sorted([*path.glob("*.json"), *path.glob("*/*.json")]) if path.is_dir() else [path]
        for file in (file for file in files if file.name != INDEX):
            try:
                found.append(load(file))
            except ValueError as error:
                unreadable.append(str(error))
    return sorted(found, key=lambda one: one.at), unreadable


def tables(found: Sequence[Baseline], pattern: str = "*") -> list[str]:
    """Return a table of the cells like `pattern` for each device and workload; "-" where a record has no time."""
    kinds: dict[Kind, list[Baseline]] = {}
    for one in found:
        for workload in sorted(one.workloads):
            kinds.setdefault((str(one.newest.machine.get("device")), *workload), []).append(one)
    written = []
    for kind, records in sorted(kinds.items()):
        cells = {cell: each.cell for one in records for cell in one.cell_ids for each in one.records(cell)[-1:]}
        alike = [
            cell
            for cell, key in cells.items()
            if (key["workload"], key["lengths"]) == kind[1:] and fnmatchcase(cell, pattern)
        ]
        if alike:
            written.append(f"{kind[0]}, {kind[1]} workload, {kind[2]} lengths, ms a step\n\n{_table(records, alike)}")
    return written


def _table(records: Sequence[Baseline], cells: Sequence[str]) -> str:
    table = markdown_box("cell")
    for one in records:
        table.add_column(f"{one.path.stem} {one.at:%Y-%m-%d}", justify="right")
    table.add_column("last / first", justify="right")
    for cell in sorted(cells):
        times = [_median_ms(one, cell) for one in records]
        known = [ms for ms in times if ms is not None]
        change = f"{known[-1] / known[0] - 1:+.1%}" if len(known) > 1 else "-"
        table.add_row(cell, *("-" if ms is None else format_ms(ms) for ms in times), change)
    return render(table)


def _median_ms(one: Baseline, cell: str) -> float | None:
    times = [ms for record in one.records(cell) if (ms := record.step_ms) is not None]
    return statistics.median(times) if times else None
