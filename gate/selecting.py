"""The options that say which cells are timed, as the gate's commands pass them on to pytest."""

import argparse
from pathlib import Path

#: The checkout that this gate belongs to.
ROOT = Path(__file__).resolve().parents[1]


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Add pytest's own options of the selection (tests/selection.py)."""
    group = parser.add_argument_group("what is timed")
    group.add_argument("--workload", metavar="NAME", help="smoke, article, long; this machine's default without it")
    group.add_argument("--lengths", metavar="NAME|FILE", help="a length distribution, or a file of lengths")
    group.add_argument("--cells", metavar="PATTERN", help="only cells whose id matches one of these globs")
    group.add_argument("--backend", action="append", metavar="NAME", help="only this attention backend (repeatable)")
    group.add_argument("--collator", action="append", metavar="NAME", help="only this collator (repeatable)")
    group.add_argument("--steps", type=int, metavar="N", help="only the workload's first N batches")
    group.add_argument(
        "--cell-seconds", type=float, metavar="SECONDS", help="a cell that would take longer is too slow (default 300)"
    )
    group.add_argument(
        "--stall-seconds",
        type=float,
        default=300,
        metavar="S",
        help="a process that prints nothing for so long counts as hung (default 300)",
    )


def selection(args: argparse.Namespace) -> list[str]:
    """Return pytest's arguments for what `args` select."""
    lengths = args.lengths
    if lengths is not None:
        file, colon, column = lengths.partition(":")
        # Processes run in their checkouts.
        lengths = f"{Path(file).absolute()}{colon}{column}" if Path(file).is_file() else lengths
    given = {"workload": args.workload, "lengths": lengths, "cells": args.cells, "steps": args.steps}
    given |= {"cell-seconds": args.cell_seconds}
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    options += [f"--backend={name}" for name in args.backend or ()]
    return options + [f"--collator={name}" for name in args.collator or ()]
