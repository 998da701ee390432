"""Compare two commits or two environments on one machine, by fresh processes that take turns."""

import argparse
import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gate.ab.judge import judge
from gate.ab.plan import SIDES, Plan, planned, resumed
from gate.ab.report import write_report
from gate.ab.run import Duel
from gate.ab.worktrees import checkout
from gate.baseline.verdicts import fail
from gate.processes import INTERRUPTED, Side
from gate.selecting import ROOT, add_selection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m gate ab`."""
    for side in SIDES:
        parser.add_argument(f"--{side}", metavar="REF", help=f"{side}: a commit, or a folder with a checkout")
    for side in SIDES:
        parser.add_argument(f"--{side}-env", metavar="DIR", help=f"{side}: a virtual environment, or a python in it")
    add_selection(parser)
    group = parser.add_argument_group("how it is judged")
    group.add_argument("--screen-pairs", type=int, default=2, metavar="N", help="pairs over all cells (default 2)")
    group.add_argument("--confirm-pairs", type=int, default=6, metavar="N", help="fresh pairs of flagged ones (6)")
    group.add_argument("--threshold-percent", type=float, default=1.0, metavar="P", help="smaller changes pass (1)")
    group.add_argument("--threshold-us", type=float, default=20.0, metavar="US", help="and so do these (20)")
    group.add_argument(
        "--alpha", type=float, default=0.05, help="family-wise error of slowdowns, and of speedups (0.05)"
    )
    group.add_argument("--seed", type=int, default=0, help="of who starts, and of the order of cells")
    group.add_argument("--minutes", type=float, metavar="M", help="start no pair that would end later than this")
    group.add_argument("--gate-strict", action="store_true", help="cells that cannot be told or are missing fail too")
    group.add_argument("--folder", type=Path, metavar="DIR", help="keep all there (.benchmarks/ab/TIME)")
    group.add_argument("--cache", type=Path, metavar="DIR", help="of compiled code, kept for later runs (FOLDER/cache)")
    group.add_argument(
        "--resume", type=Path, metavar="DIR", help="go on with an interrupted run in its folder, as it was planned"
    )


def run(args: argparse.Namespace) -> int:
    """Time, judge and report: 0 nothing regressed, 1 something did (or cannot be told, if strict), 130 interrupted."""
    plan, folder = resumed(args, _defaults()) if args.resume else planned(args)
    again = f"python -m gate ab --resume {folder}"
    try:
        with _sides(plan, folder) as sides:
            print(f"{plan.asked[0]} against {plan.asked[1]}; after an interruption, go on with: {again}", flush=True)
            duel = Duel(
                sides,
                folder,
                plan.options,
                seed=plan.seed,
                one_environment=plan.one_environment,
                deadline=None if args.minutes is None else time.monotonic() + args.minutes * 60,
                stall_s=plan.stall_s,
            )
            found = judge(duel, plan.screen_pairs, plan.confirm_pairs, plan.threshold, plan.alpha, costs_asked=True)
    except KeyboardInterrupt:
        print(f"interrupted; finished processes are kept, go on with: {again}")
        return INTERRUPTED
    print(write_report(found, asdict(plan), folder, strict=plan.strict))
    return int(fail(found.verdicts, strict=plan.strict))


def _defaults() -> dict[str, Any]:
    """Every option as it is where it is not given."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return vars(parser.parse_args([]))


@contextmanager
def _sides(plan: Plan, folder: Path) -> Iterator[dict[str, Side]]:
    """Both checkouts, gone afterwards.

    Sides with the same packages share what is compiled: its keys are digests of the code and the versions. Kernels are
    chosen by timing them when they are compiled; were that done once a side, the two sides of equal code would differ
    for good, and no number of pairs would show it as noise. Two environments have a cache each: what a package other
    than torch and triton changes is in no key.
    """
    sides = {}
    cache = Path(plan.cache) if plan.cache else folder / "cache"
    with ExitStack() as stack:
        for name, commit, python in zip(SIDES, plan.commits, plan.pythons, strict=True):
            place = stack.enter_context(checkout(commit, folder / "worktrees" / name, ROOT))
            key = hashlib.sha256(python.encode()).hexdigest()[:12]
            sides[name] = Side(name, place, Path(python), cache / key)
        yield sides
