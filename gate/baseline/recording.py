"""Record a workload in several fresh processes, as a baseline needs them."""

import argparse
import os
import sys
from pathlib import Path

from gate.estimates import estimate
from gate.processes import Side, run_cells, write_json
from gate.records import Record, cells
from gate.selecting import ROOT, add_selection, selection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m gate record`."""
    add_selection(parser)
    parser.add_argument("--processes", type=int, default=5, metavar="N", help="fresh processes (default 5)")
    parser.add_argument("--name", default="record", help="records are NUMBER_NAME.json (default: record)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of cells, another one in each process")
    parser.add_argument(
        "--storage",
        # As pytest-benchmark takes it too.
        type=lambda text: Path(text.removeprefix("file://")),
        default=Path(".benchmarks"),
        metavar="DIR",
        help="records go to its folder of this device",
    )
    parser.add_argument("pytest_arguments", nargs="*", metavar="ARGUMENT", help="after --: for pytest, as they are")


def run(args: argparse.Namespace) -> int:
    """Time the cells in each process and save a record after each; 1 if a cell has no valid time."""
    if args.processes < 1:
        raise ValueError(f"--processes {args.processes}: a record needs at least one.")
    if not args.name or Path(args.name).name != args.name:
        raise ValueError(f"--name {args.name!r} is not a file name.")
    if not args.stall_seconds > 0:
        raise ValueError(f"--stall-seconds {args.stall_seconds:g}: a process needs some time to print a line.")
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    side = Side("record", ROOT, Path(sys.executable), Path(cache) if cache else args.storage / "compiled")
    without_time: dict[str, str] = {}
    for number in range(args.processes):
        options = [*selection(args), f"--order-seed={args.seed + number}", *args.pytest_arguments]
        record = run_cells(side, options, args.storage / "logs", args.name, stall_s=args.stall_seconds)
        found = cells(record)
        if not found:
            raise ValueError("no cell was timed: all that were selected are skipped here (pytest --matrix says why).")
        path = save(record, args.storage, args.name)
        without_time |= {cell: reason for cell, info in found.items() if isinstance(reason := estimate(info), str)}
        print(f"[{number + 1}/{args.processes}] {len(found)} cells in {path}", flush=True)
    for cell, reason in without_time.items():
        print(f"no time: {cell} ({reason})")
    return 1 if without_time else 0


def save(record: Record, storage: Path, name: str) -> Path:
    """Write a record where pytest-benchmark would, under its next number, and return its path."""
    folder = storage / record["machine_info"].get("device_slug", "unknown-device")
    taken = [int(path.name[:4]) for path in folder.glob("[0-9][0-9][0-9][0-9]_*.json")]
    path = folder / f"{max(taken, default=0) + 1:04}_{name}.json"
    write_json(path, record)
    return path
