"""Compare two commits or two environments on one machine: both alive, running short blocks of steps in turn."""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gate import ROOT
from gate.judge.verdicts import PERCENT, fail
from gate.live.comparison import Comparison, Request
from gate.live.pair import SIDES
from gate.live.report import write_report
from gate.live.workers import INTERRUPTED, Side
from gate.live.worktrees import checkout, resolved
from gate.record.files import write_json

SCHEMA = 2

#: The options of a resumed run that may differ from its plan: strict it may become, and it stays so.
MAY_BE_NEW = ("resume", "minutes", "gate_strict")


@dataclass(frozen=True)
class Plan:
    """What was asked for, as `plan.json` keeps it for `--resume`; `commits` and `pythons` are of base and head."""

    commits: tuple[str, str]
    pythons: tuple[str, str]
    asked: tuple[str, str]
    hello: dict[str, Any]
    percent: float | None
    us: float
    alpha: float
    seed: int
    stall_s: float
    cache: str | None
    strict: bool
    schema: int = SCHEMA


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m gate ab`."""
    for side in SIDES:
        parser.add_argument(f"--{side}", metavar="REF", help=f"{side}: a commit, or the folder of a checkout")
    for side in SIDES:
        parser.add_argument(
            f"--{side}-env", metavar="DIR", help=f"{side}: the folder of a virtual environment, or its python"
        )
    timed = parser.add_argument_group("what is timed")
    timed.add_argument(
        "--workload", metavar="NAME", help="smoke (default without a GPU), article (default with one) or long"
    )
    timed.add_argument("--lengths", metavar="NAME|FILE", help="a length distribution, or a file of lengths")
    timed.add_argument(
        "--cells", metavar="PATTERN", help="only cells whose id matches one of these globs, separated by commas"
    )
    timed.add_argument("--backend", action="append", metavar="NAME", help="only this attention backend (repeatable)")
    timed.add_argument("--collator", action="append", metavar="NAME", help="only this collator (repeatable)")
    timed.add_argument("--model", metavar="SPEC", help="in this model: module:make or path/to/file.py:make")
    timed.add_argument(
        "--compiled",
        choices=("default", "all", "none"),
        default="default",
        help="which compiled cells run: those that the workload names (default), all, or none",
    )
    timed.add_argument("--steps", type=int, metavar="N", help="only the workload's first N batches")
    timed.add_argument(
        "--distributed",
        type=int,
        metavar="N",
        help="training steps on N GPUs, or on N processes of a CPU, in DDP and FSDP2",
    )
    timed.add_argument(
        "--cell-seconds",
        type=float,
        default=300.0,
        metavar="S",
        help="do not time a cell whose steps would take longer than this (300)",
    )
    judged = parser.add_argument_group("how it is judged")
    defaults = f"{PERCENT['cuda']:g} on a GPU, {PERCENT['cpu']:g} on a CPU"
    judged.add_argument(
        "--threshold-percent",
        type=float,
        metavar="P",
        help=f"only a change beyond this many percent counts ({defaults})",
    )
    judged.add_argument(
        "--threshold-us",
        type=float,
        default=20.0,
        metavar="US",
        help="only a change that is also beyond this many microseconds a step counts (20)",
    )
    judged.add_argument("--alpha", type=float, default=0.05, help="the probability of any false slowdown (0.05)")
    judged.add_argument(
        "--gate-strict",
        action="store_true",
        help="fail for inconclusive and missing cells too, and if no cell is compared",
    )
    runs = parser.add_argument_group("how it runs")
    runs.add_argument(
        "--seed", type=int, default=0, help="fixes the order of the cells, and which side runs each block first (0)"
    )
    runs.add_argument(
        "--minutes", type=float, metavar="M", help="start no cell that would end more than M minutes after the start"
    )
    runs.add_argument(
        "--stall-seconds",
        type=float,
        default=300.0,
        metavar="S",
        help="kill a worker that sends nothing for longer than this (300)",
    )
    runs.add_argument("--folder", type=Path, metavar="DIR", help="write all files to DIR (.benchmarks/ab/TIME)")
    runs.add_argument("--cache", type=Path, metavar="DIR", help="keep compiled code for later runs (FOLDER/cache)")
    runs.add_argument(
        "--resume", type=Path, metavar="DIR", help="resume the interrupted run in DIR, with the options of its start"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, judge and report: 0 nothing regressed, 1 something did (strict: or is inconclusive), 130 interrupted."""
    plan, folder = resumed(args) if args.resume else planned(args)
    again = f"python -m gate ab --resume {folder}"
    try:
        with sides_of(plan, folder) as sides:
            print(f"{plan.asked[0]} against {plan.asked[1]}; to resume after an interruption: {again}", flush=True)
            request = Request(
                sides, folder, plan.hello, plan.percent, plan.us, plan.alpha, plan.seed, plan.stall_s, args.minutes
            )
            found = Comparison(request, lambda line: print(line, flush=True)).run()
    except KeyboardInterrupt:
        print(f"interrupted; finished cells are kept. To resume: {again}")
        return INTERRUPTED
    print(write_report(found, plan.asked, plan.alpha, folder, strict=plan.strict))
    return int(fail(found.verdicts, strict=plan.strict))


def planned(args: argparse.Namespace) -> tuple[Plan, Path]:
    """Return the plan of a new run, written to its folder; ValueError for a command that makes no sense."""
    for pair in (("base", "head"), ("base_env", "head_env")):
        given = [name for name in pair if getattr(args, name) is not None]
        if len(given) == 1:
            missing = next(name for name in pair if name not in given)
            raise ValueError(f"--{given[0]} needs --{missing} to compare with.".replace("_", "-"))
    if args.base is None and args.base_env is None:
        raise ValueError("gate ab got nothing to compare; give --base and --head, or --base-env and --head-env.")
    _check_numbers(args)
    commits = (str(ROOT), str(ROOT)) if args.base is None else (resolved(args.base, ROOT), resolved(args.head, ROOT))
    asked = [" in ".join(filter(None, (getattr(args, side), getattr(args, f"{side}_env")))) for side in SIDES]
    plan = Plan(
        commits=commits,
        pythons=(_python(args.base_env), _python(args.head_env)),
        asked=(asked[0], asked[1]),
        hello=hello_of(args),
        percent=args.threshold_percent,
        us=args.threshold_us,
        alpha=args.alpha,
        seed=args.seed,
        stall_s=args.stall_seconds,
        cache=str(args.cache.absolute()) if args.cache else None,
        strict=args.gate_strict,
    )
    folder = args.folder or Path(".benchmarks") / "ab" / f"{datetime.now():%Y%m%d-%H%M%S}"
    if (folder / "plan.json").exists():
        raise ValueError(f"{folder} already holds a run; resume it with --resume {folder}, or choose another --folder.")
    write_json(folder / "plan.json", asdict(plan))
    return plan, folder


def hello_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what both workers are told to time."""

    def whole(file: str, colon: str, rest: str) -> str:
        # Workers run in their checkouts: files are named by their whole path.
        return f"{Path(file).absolute() if Path(file).is_file() else file}{colon}{rest}"

    return {
        "workload": args.workload,
        "lengths": args.lengths and whole(*args.lengths.partition(":")),
        "steps": args.steps,
        "cell_seconds": args.cell_seconds,
        "selection": {
            "cells": args.cells,
            "backends": [whole(*name.rpartition(":")) for name in args.backend or []],
            "collators": args.collator or [],
            "compiled": args.compiled,
        }
        # What an older harness does not know is said only if it is asked for.
        | ({"model": whole(*model.rpartition(":"))} if (model := args.model) else {}),
    } | ({"ranks": args.distributed} if args.distributed else {})


def _check_numbers(args: argparse.Namespace) -> None:
    limits = {
        "threshold_percent": (0, 100),
        "threshold_us": (0, float("inf")),
        "alpha": (1e-6, 0.5),
        "minutes": (0, float("inf")),
        "steps": (1, float("inf")),
        "distributed": (2, float("inf")),
        "cell_seconds": (1e-3, float("inf")),
        "stall_seconds": (1, float("inf")),
    }
    for name, (low, high) in limits.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            wanted = f"between {low:g} and {high:g}" if high < float("inf") else f"{low:g} or more"
            raise ValueError(f"--{name.replace('_', '-')} {value:g} is not {wanted}.")


def resumed(args: argparse.Namespace) -> tuple[Plan, Path]:
    """Return the plan of an interrupted run; ValueError if it cannot be read or something else is asked for."""
    path = args.resume / "plan.json"
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    others = [name for name in defaults if name not in MAY_BE_NEW and getattr(args, name) != defaults[name]]
    if others:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ValueError(
            f"--resume takes no other options than --minutes and --gate-strict; got {told}. "
            "Leave that out, or start another run."
        )
    _check_numbers(args)
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        if kept.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {kept.get('schema')}, this gate's is {SCHEMA}")
        plan = Plan(**kept | {key: tuple(kept[key]) for key in ("commits", "pythons", "asked")})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a plan that can be resumed ({error}); give the folder of an interrupted run."
        ) from None
    if args.gate_strict and not plan.strict:
        plan = replace(plan, strict=True)
        write_json(path, asdict(plan))
    return plan, args.resume


def _python(environment: str | None) -> str:
    """Return the Python of an environment; never resolved: a link into a virtual environment is what makes it one."""
    if environment is None:
        return sys.executable
    path = Path(environment).absolute()
    path = path / "bin" / "python" if path.is_dir() else path
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise ValueError(f"{environment!r} holds no executable bin/python; give the folder of a virtual environment.")
    return str(path)


@contextmanager
def sides_of(plan: Plan, folder: Path) -> Iterator[Mapping[str, Side]]:
    """Have both checkouts, gone afterwards.

    Sides with the same packages share what is compiled: its keys are digests of the code and the versions. Two
    environments have a cache each: what a package other than torch and triton changes is in no key.
    """
    sides = {}
    cache = Path(plan.cache) if plan.cache else folder / "cache"
    with ExitStack() as stack:
        for name, commit, python in zip(SIDES, plan.commits, plan.pythons, strict=True):
            place = stack.enter_context(checkout(commit, folder / "worktrees" / name, ROOT))
            key = hashlib.sha256(python.encode()).hexdigest()[:12]
            sides[name] = Side(name, place, Path(python), cache / key)
        yield sides
