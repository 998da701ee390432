"""Runs the catalogue and says what was caught: `python -m tests.studies.faults [NAME ...] [--json | --write]`.

Without names it runs every fault, and every selection of tests without one. `--write` writes
docs/results/injected-faults.md. `--json` runs faults alone: the suite itself runs their tests without one. It runs on
the CPU wherever it is started.
"""

import argparse
import json
import sys
import time

from tests.meta.faults import CATALOGUE
from tests.meta.faults.fault import Fault
from tests.meta.faults.runner import WORKERS, Job, Verdict, preload, verdicts
from tests.meta.faults.table import PATH, document, produced


def main() -> int:
    """Run what is asked for; 1 where a fault was not caught or a selection without one is red."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.faults", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these faults, and what they are run on")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="print a JSON object of verdicts, by fault")
    shape.add_argument("--write", action="store_true", help=f"write {PATH}")
    asked = parser.parse_args()
    faults = [fault for fault in CATALOGUE if fault.name in asked.names or not asked.names]
    if unknown := set(asked.names) - {fault.name for fault in faults}:
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}; see docs/results/injected-faults.md.")
    if asked.write and asked.names:
        parser.error("--write takes no names: the document holds the whole catalogue.")
    chosen = () if asked.json else tuple(dict.fromkeys(fault.selection for fault in faults))
    # What compiles takes longest, and comes first so that no core waits for it at the end.
    slow, quick = [[each for each in chosen if each.compiled is compiled] for compiled in (True, False)]
    groups = [tuple(slow), *(tuple(quick[at::WORKERS]) for at in range(WORKERS))]
    ordered = sorted(faults, key=lambda fault: not fault.selection.compiled)
    jobs: list[Job] = [*filter(None, groups), *ordered]
    start = time.monotonic()
    preload()
    found: dict[str, Verdict] = {}
    for job, part, seconds in verdicts(jobs):
        found |= part
        word = "caught" if isinstance(job, Fault) else "green"
        for name, verdict in part.items():
            said = word if verdict.right else f"NOT {word}"
            print(f"{said}: {name}: {verdict.seen} [{seconds:.1f} s]", file=sys.stderr)
    seconds = time.monotonic() - start
    if asked.json:
        print(json.dumps({name: vars(verdict) for name, verdict in found.items()}))
    if asked.write:
        caught = {fault.name: found[fault.name].right for fault in CATALOGUE}
        PATH.write_text(document(caught, produced(seconds)), encoding="utf-8")
    wrong = [name for name, verdict in found.items() if not verdict.right]
    print(f"{len(faults)} faults, {len(chosen)} selections, {seconds:.0f} s", file=sys.stderr)
    if wrong:
        print(f"not as they must be: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
