"""Live comparisons whose answer is known: of equal code, and with cells made slower on head.

    python -m tests.studies.live FOLDER equal 'device_sleep=0.9@fa2_varlen-train-eager' -- --steps 12

Each word is a comparison: `equal`, or what tests/studies/injected.py injects (`multiple=N` pads to a multiple of N).
What follows `--` is for `python -m gate ab`. A comparison with a report is not run again.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from gate import ROOT
from gate.report.markdown import markdown_box, render

EQUAL = "equal"

#: The cause that each kind of slowdown is to be given.
CAUSES = {
    "host_sleep": "host",
    "device_sleep": "device",
    "kernel": "device",
    "multiple": "padding",
    "prepare": "preparation",
}


def main() -> int:
    """Run what has no report yet, print the table of all, and return 1 if a comparison was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.live", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("comparisons", nargs="+", metavar=f"{EQUAL}|KIND=VALUE@GLOB")
    parser.add_argument("--seconds", type=float, default=1e9, help="start none that would end later")
    words = sys.argv[1:]
    at = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:at])
    begun, longest, rows = time.monotonic(), 0.0, []
    for number, injected in enumerate(args.comparisons, start=1):
        run = args.folder.resolve() / f"{number:02}-{re.sub(r'[^A-Za-z0-9_.=-]+', '_', injected)[:80]}"
        if time.monotonic() - begun + longest > args.seconds:
            print(f"no time for {injected}")
            continue
        began = time.monotonic()
        if not (run / "report.json").exists():
            compared(injected, number, args.folder.resolve(), run, words[at + 1 :])
        longest = max(longest, time.monotonic() - began)
        if (run / "report.json").exists():
            rows.append(row(injected, json.loads((run / "report.json").read_text())))
        print(table(rows), flush=True)
    return int(len(rows) < len(args.comparisons) or not all(each["right"] for each in rows))


def compared(injected: str, seed: int, folder: Path, run: Path, arguments: Sequence[str]) -> None:
    """Compare two copies of this checkout's models, where `injected` makes cells of head slower."""
    base, head = copied(folder / "base", EQUAL), copied(folder / f"{run.name}-head", injected)
    run.mkdir(parents=True, exist_ok=True)
    options = [f"--base={base}", f"--head={head}", f"--seed={seed}", f"--folder={run}", f"--cache={folder / 'cache'}"]
    with (run / "output.log").open("a") as output:
        command = [sys.executable, "-m", "gate", "ab", *options, *arguments]
        subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, check=False)


def copied(place: Path, injected: str) -> Path:
    """Return a copy of the models and collators, in which the slowdowns are injected."""
    if place.exists():
        return place
    for name in ("model", "collators"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    if injected == EQUAL:
        return place
    words = injected.split(",")
    for word in [word for word in words if word.startswith("multiple=")]:
        path = place / "model" / "workloads.py"
        path.write_text(path.read_text().replace("multiple: int = 64", f"multiple: int = {int(word[9:])}"))
        words.remove(word)
    if not words:
        return place
    shutil.copy(Path(__file__).with_name("injected.py"), place / "model" / "injected.py")
    with (place / "model" / "steps.py").open("a") as steps:
        steps.write(f"\n\nfrom model.injected import install\n\ninstall(globals(), {','.join(words)!r})\n")
    return place


def row(injected: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """Say of one comparison which cells are red, rightly or wrongly, and which cause was named."""
    words = [] if injected == EQUAL else injected.split(",")
    wanted = {}
    for cell in report["cells"]:
        backend, collator, mode, _, _, execution, *_ = cell["cell"].split("-")
        for word in words:
            what, _, glob = word.partition("@")
            kind = what.partition("=")[0]
            if (kind == "multiple" and collator.endswith("multiple")) or fnmatch(f"{backend}-{mode}-{execution}", glob):
                wanted[cell["cell"]] = CAUSES[kind]
    red = {cell["cell"]: cell for cell in report["cells"] if cell["verdict"] == "regressed"}
    wrong = [cell for cell in red if cell not in wanted]
    changes = [
        f"{each['change']:+.2%} ({each['low']:+.2%} .. {each['high']:+.2%})"
        for each in report["cells"]
        if each["cell"] in wanted and each["change"] is not None
    ]
    return {
        "injected": injected,
        "cells": len(report["cells"]),
        "found": f"{sum(cell in red for cell in wanted)} of {len(wanted)}",
        "change": ", ".join(changes) or "-",
        "cause": ", ".join(str(red[cell]["cause"]) for cell in wanted if cell in red) or "-",
        "wrongly red": ", ".join(wrong) or "none",
        "inconclusive": sum(cell["verdict"] == "inconclusive" for cell in report["cells"]),
        "minutes": f"{report['seconds'] / 60:.1f}",
        "right": not wrong and all(cell in red and red[cell]["cause"] == wanted[cell] for cell in wanted),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the comparisons as Markdown."""
    if not rows:
        return "no comparison has a report"
    made = markdown_box(*rows[0])
    for each in rows:
        made.add_row(*map(str, each.values()))
    return render(made)


if __name__ == "__main__":
    raise SystemExit(main())
