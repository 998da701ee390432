"""Make a baseline of saved records: write its file in baselines/ and its line in the index, to be committed."""

import argparse
import itertools
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from gate.baseline.store import load, write
from gate.judge.compatible import other_packages, other_processes, reasons_of_machines
from gate.record.files import Record

#: Verdicts of a cell that a baseline may hold without a time: they are of the machine's size, not of a fault.
NO_FAULT = ("out of memory", "too slow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m gate promote`."""
    parser.add_argument(
        "records", nargs="+", type=Path, metavar="RECORD", help="a record of a fresh process, saved by gate record"
    )
    parser.add_argument(
        "--baselines",
        type=Path,
        default=Path("baselines"),
        metavar="FOLDER",
        help="the folder of baselines (default: baselines)",
    )
    parser.add_argument("--add", action="store_true", help="add the records to the processes of the existing baseline")
    parser.add_argument("--allow-dirty", action="store_true", help="accept records of uncommitted or unknown code")


def run(args: argparse.Namespace) -> int:
    """Write the baseline; ValueError says which record does not fit."""
    named = [(str(path), _recorded(path)) for path in args.records]
    found = {name: sorted(process.workloads) for name, process in named}
    workloads = {workload for each in found.values() for workload in each}
    if len(workloads) != 1:
        told = ", ".join(f"{'/'.join(pair)} in {name}" for name, pairs in found.items() for pair in pairs)
        raise ValueError(
            f"a baseline needs records of one workload; got {told or 'no cell'}. Give those of one workload."
        )
    (workload,) = workloads
    slug = str(named[0][1].machine.get("device_slug") or "")
    if not slug:
        raise ValueError(f"{named[0][0]} does not name its device; record it again with this version of the gate.")
    name, lengths, *ranks = workload
    words = [name, *([] if lengths == "uniform" else [lengths]), *ranks]
    target: Path = args.baselines / slug / f"{'-'.join(words).replace(' ', '-')}.json"
    check_cells(named, target, add=args.add)
    if args.add:
        if not target.exists():
            raise ValueError(f"--add needs an existing baseline, but {target} does not exist; leave --add out.")
        named = [(str(target), process) for process in load(target).processes] + named
    check(named, args.baselines, allow_dirty=args.allow_dirty)
    write(target, args.baselines, [process for _, process in named], workload)
    print(f"{target}: {held([process for _, process in named])}.")
    print(f"Commit it on its own: git add {target} {args.baselines / 'index.json'}")
    return 0


def _recorded(path: Path) -> Record:
    """Return what a record holds; ValueError for what is none."""
    found = load(path)
    if found.committed:
        raise ValueError(f"{path} is already a baseline; give the records to make a baseline of.")
    return found.newest


def check(named: Sequence[tuple[str, Record]], baselines: Path, *, allow_dirty: bool) -> None:
    """ValueError if the processes are not of one device, if two ran a cell with other packages or code, or if one
    holds a time that is not valid.

    Cells that are added to a baseline are of later code, and may need a package more.
    """
    for name, process in named:
        if not allow_dirty and (process.commit.get("dirty") or not process.commit.get("id")):
            raise ValueError(
                f"{name} comes from uncommitted or unknown code; commit and record again, or use --allow-dirty."
            )
        for cell, record in process.cells.items():
            if record.no_time and record.verdict not in NO_FAULT:
                raise ValueError(
                    f"{name}: {cell} has no valid time ({record.no_time}). "
                    "Correct the cell or leave it out, and record again."
                )
            if others := other_processes(record):
                raise ValueError(
                    f"{name}: {others} other process{'es' * (others > 1)} used the GPU beside {cell}; record it again."
                )
    for (name, process), (other_name, other) in itertools.combinations(named, 2):
        if process.at == other.at:
            raise ValueError(f"{name} and {other_name} come from the same process; give only one of them.")
        sides = (f"in {other_name}", f"in {name}")
        if different := reasons_of_machines(other.machine, process.machine, sides):
            raise ValueError(f"a baseline needs records of one machine; {different[0]}. Record both on one machine.")
        both = [cell for cell in process.cells if cell in other.cells]
        if not both:
            continue
        if changed := other_packages(other.machine, process.machine):
            raise ValueError(
                f"{other_name} has {', '.join(changed)} in {name}, and both hold {both[0]}; "
                "record a cell in one environment."
            )
        ids = [str(each.commit.get("id")) for each in (process, other)]
        if not allow_dirty and ids[0] != ids[1] and not differ_only_below(baselines, *ids):
            raise ValueError(
                f"{other_name} comes from commit {ids[1][:10]}, {name} from {ids[0][:10]}, their code differs, and "
                f"both hold {both[0]}. Record a cell at one commit, or promote with --allow-dirty."
            )


def check_cells(named: Sequence[tuple[str, Record]], target: Path, *, add: bool) -> None:
    """ValueError if the records hold different cells, or would replace a baseline that holds others."""
    (first_name, first), *others = named
    for name, process in others:
        if lacking := first.cells.keys() ^ process.cells.keys():
            raise ValueError(
                f"{name} and {first_name} do not both have {', '.join(sorted(lacking))}; record the same cells in both."
            )
    if not add and target.exists() and (lost := [cell for cell in load(target).cell_ids if cell not in first.cells]):
        raise ValueError(
            f"{target} holds {len(lost)} cell{'s' * (len(lost) > 1)} that the records lack, such as {lost[0]}; "
            "keep its processes with --add, or delete it first."
        )


def held(processes: Sequence[Record]) -> str:
    """Return how many processes hold how many cells: `39 cells of 4 processes, 9 cells of 5 processes`."""
    of_cells = Counter(cell for process in processes for cell in process.cells)
    return ", ".join(
        f"{cells} cell{'s' * (cells > 1)} of {count} process{'es' * (count > 1)}"
        for count, cells in sorted(Counter(of_cells.values()).items())
    )


def differ_only_below(folder: Path, one: str, other: str) -> bool:
    """Tell whether git knows both commits, and finds no difference but below this folder.

    To commit a baseline is no change of the code: what is recorded after that can be added to it.
    """
    # The first pathspec is the whole checkout, the second the folder that git runs in.
    command = ["git", "diff", "--quiet", "--end-of-options", one, other, "--", ":(top)", ":(exclude)."]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
    except OSError:
        # No git, or no such folder.
        return False
