"""Shows records of packing: `python -m tests.studies.packing table|diff|reproduce`."""

import argparse
from pathlib import Path

from model.huggingface.families import family_named
from model.huggingface.inputs import WAYS, way_named
from tests.packing.records import load
from tests.packing.report import difference, report
from tests.packing.reproduction import reproduction


def main() -> None:
    """Print a report, a difference, or the lines that reproduce a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.packing", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("table", help="the report of a record").add_argument("record", type=Path)
    compare = commands.add_parser("diff", help="what changed for packing between two records")
    compare.add_argument("before", type=Path)
    compare.add_argument("after", type=Path)
    lines = commands.add_parser("reproduce", help="lines that show one finding")
    lines.add_argument("family")
    lines.add_argument("implementation", nargs="?", default="sdpa", help="an attn_implementation (default: sdpa)")
    lines.add_argument("way", nargs="?", default=WAYS[0].name, help=f"one of: {'; '.join(way.name for way in WAYS)}")
    lines.add_argument("--positions-from", type=int, default=0, metavar="N", help="the first position of a sequence")
    given = parser.parse_args()
    try:
        if given.command == "table":
            print(report(load(given.record)), end="")
        elif given.command == "diff":
            print(difference(load(given.before), load(given.after)), end="")
        else:
            way = way_named(given.way)
            print(reproduction(family_named(given.family), given.implementation, way, given.positions_from), end="")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
