"""Live comparisons whose answer is known: of equal code, and with one cell slower by a planted slowdown, in turn.

    python -m tests.meta.planted.live --equal 3 --planted 'device_sleep=0.02@fa2_varlen-packed-train-*-eager-*' \
        --folder live -- --workload article --cells '...' --steps 12

What follows `--` is for `python -m gate ab`. Run again, it goes on where it was: a comparison with a report is not
repeated.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gate.selecting import ROOT
from gate.table import markdown_box, render
from tests.meta.planted.slowdowns import PLACE, VARIABLE, planted_in, slowdowns

#: What a checkout does not need to be timed, and what is large.
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "baselines")

SIDES = ("base", "head")

#: Characters of a slowdown that its folder is called by.
LONGEST_NAME = 100

#: The cause that each kind of slowdown is to be given.
CAUSES = {
    "host_sleep": "host",
    "device_sleep": "device",
    "kernel": "device",
    "recompile": "recompiled",
    "multiple": "padding",
}


def main() -> int:
    """Run what has no report yet, print the table of all, and return 1 if a comparison was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.meta.planted.live", description=main.__doc__)
    parser.add_argument("--equal", type=int, default=3, metavar="N", help="comparisons of equal code (default 3)")
    parser.add_argument("--planted", nargs="*", default=[], metavar="KIND=VALUE@GLOB", help="a comparison for each")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="keep all there")
    parser.add_argument("ab", nargs="*", metavar="ARGUMENT", help="after --: for python -m gate ab, as they are")
    args = parser.parse_args()
    try:
        for planted in args.planted:
            slowdowns(planted)
    except ValueError as error:
        parser.error(str(error))
    runs = [run for both in zip_longest(args.planted, [""] * args.equal) for run in both if run is not None]
    for number, planted in enumerate(runs):
        compared(planted, number, args.folder, args.ab)
        print(table(rows(runs, args.folder)), flush=True)
    found = rows(runs, args.folder)
    return int(len(found) < len(runs) or not all(row["right"] for row in found))


def compared(planted: str, number: int, folder: Path, arguments: Sequence[str]) -> None:
    """Compare two copies of this checkout, in one of which `planted` ("" for nothing) makes cells slower."""
    folder = folder.resolve()
    run = folder / name(planted, number)
    if (run / "report.json").exists():
        return
    base, head = (copied(folder, side) for side in SIDES)
    variables = dict(os.environ)
    if planted:
        # Both sides load the plugin, and one of them is slower.
        variables |= {"PYTEST_PLUGINS": "tests.meta.planted.slowdowns", VARIABLE: planted, PLACE: str(head)}
    asked = [f"--base={base}", f"--head={head}", f"--seed={number}", f"--folder={run}", *arguments]
    given = [f"--resume={run}"] if (run / "plan.json").exists() else asked
    run.mkdir(parents=True, exist_ok=True)
    with (run / "output.log").open("a") as output:
        command = [sys.executable, "-m", "gate", "ab", *given]
        subprocess.run(command, cwd=ROOT, env=variables, stdout=output, stderr=subprocess.STDOUT, check=False)


def copied(folder: Path, side: str) -> Path:
    """A side's copy of this checkout as it was when the first comparison began, whole or not at all."""
    copy = folder / side
    if not copy.exists():
        begun = folder / f"{side}.partial"
        shutil.rmtree(begun, ignore_errors=True)
        # The folder may lie in the checkout.
        shutil.copytree(ROOT, begun, ignore=lambda at, names: {*LEFT_OUT(at, names), *_inside(folder, at, names)})
        begun.rename(copy)
    return copy


def _inside(folder: Path, at: str, names: Sequence[str]) -> set[str]:
    return {each for each in names if (Path(at) / each).resolve() == folder}


def name(planted: str, number: int) -> str:
    """The folder of a comparison; another slowdown has another one. Several in one are more than a file name holds."""
    told = re.sub(r"[^A-Za-z0-9_.=-]+", "_", planted) or "equal"
    if len(told) > LONGEST_NAME:
        told = f"{told[:LONGEST_NAME]}-{hashlib.sha256(planted.encode()).hexdigest()[:8]}"
    return f"{number + 1:02}-{told}"


def rows(runs: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """What each comparison with a report said, and whether it was right."""
    reports = [(planted, folder / name(planted, number) / "report.json") for number, planted in enumerate(runs)]
    return [row(planted, json.loads(path.read_text())) for planted, path in reports if path.exists()]


def row(planted: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """One comparison: the red cells among those that were slower and among the others, and the cause that was named."""
    wanted = slowdowns(planted) if planted else []
    cells = report["cells"]
    red = [cell for cell in cells if cell["verdict"] == "regressed"]
    kinds = {cell["cell"]: one.kind for cell in cells if (one := planted_in(cell["cell"], wanted))}
    slower = [cell for cell in cells if cell["cell"] in kinds]
    found, wrong = [cell for cell in red if cell in slower], [cell for cell in red if cell not in slower]
    caused = all(cell["cause"] == CAUSES[kinds[cell["cell"]]] for cell in found)
    return {
        "planted": planted or "nothing",
        "found": f"{len(found)} of {len(slower)}" if planted else "-",
        "change": ", ".join(_change(cell) for cell in slower) or "-",
        "cause": ", ".join(str(cell["cause"]) for cell in found) or "-",
        "wrong": ", ".join(cell["cell"] for cell in wrong) or "none",
        "untold": sum(cell["verdict"] == "cannot tell" for cell in cells),
        "minutes": f"{report['seconds'] / 60:.1f}",
        "right": not wrong and len(found) == len(slower) and caused,
    }


def _change(cell: Mapping[str, Any]) -> str:
    if cell["change"] is None:
        return str(cell["verdict"])
    return f"{cell['change']:+.1%} ({cell['low']:+.1%} .. {cell['high']:+.1%})"


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """The comparisons as Markdown."""
    made = markdown_box("planted", "found", "change", "cause", "wrongly red", "cannot tell", "minutes")
    for each in found:
        columns = ("planted", "found", "change", "cause", "wrong", "untold", "minutes")
        made.add_row(*(str(each[column]) for column in columns))
    return render(made, 10_000)


if __name__ == "__main__":
    raise SystemExit(main())
