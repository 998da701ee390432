"""Print the tables of a record as Markdown; of a baseline each cell's process in the middle."""

import argparse
from pathlib import Path

from gate.baseline.store import load
from gate.report.tables import tables, typical


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m gate table`."""
    parser.add_argument("record", type=Path, metavar="RECORD", help="a record that was saved, or a baseline")


def run(args: argparse.Namespace) -> int:
    """Print the tables; ValueError for a file that cannot be read."""
    found = load(args.record)
    if found.committed:
        print(f"{found}: of each cell the process in the middle.\n")
    print(tables(typical(found.processes), heading="### "))
    return 0
