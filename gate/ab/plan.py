"""The plan of an A/B comparison: made from a command, or read again to go on with it."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from gate.ab.pairs import FEWEST_PAIRS, MOST_PAIRS, Threshold
from gate.ab.worktrees import resolved
from gate.processes import write_json
from gate.selecting import ROOT, selection

SCHEMA = 1
SIDES = ("base", "head")

#: The options of a resumed run that are not as they were planned: strict it may become, and it stays so.
MAY_BE_NEW = ("resume", "minutes", "gate_strict")


@dataclass(frozen=True)
class Plan:
    """What was asked for, as `plan.json` keeps it for `--resume`; `commits` and `pythons` are of base and head."""

    commits: tuple[str, str]
    pythons: tuple[str, str]
    asked: tuple[str, str]
    options: list[str]
    screen_pairs: int = 2
    confirm_pairs: int = 6
    alpha: float = 0.05
    seed: int = 0
    stall_s: float = 300
    cache: str | None = None
    strict: bool = False
    threshold: Threshold = field(default_factory=Threshold)
    schema: int = SCHEMA

    @property
    def one_environment(self) -> bool:
        """Whether both sides run with the same packages."""
        return self.pythons[0] == self.pythons[1]


def planned(args: argparse.Namespace) -> tuple[Plan, Path]:
    """The plan of a new run, written to its folder; ValueError for a command that makes no sense."""
    for pair in (("base", "head"), ("base_env", "head_env")):
        given = [name for name in pair if getattr(args, name) is not None]
        if len(given) == 1:
            missing = next(name for name in pair if name not in given)
            raise ValueError(f"--{given[0]} needs --{missing} to compare with.".replace("_", "-"))
    if args.base is None and args.base_env is None:
        raise ValueError("nothing to compare: give --base and --head, or --base-env and --head-env.")
    _check_numbers(args)
    commits = (str(ROOT), str(ROOT)) if args.base is None else (resolved(args.base, ROOT), resolved(args.head, ROOT))
    pythons = (_python(args.base_env), _python(args.head_env))
    asked = [" in ".join(filter(None, (getattr(args, side), getattr(args, f"{side}_env")))) for side in SIDES]
    plan = Plan(
        commits=commits,
        pythons=pythons,
        asked=(asked[0], asked[1]),
        options=selection(args),
        screen_pairs=args.screen_pairs,
        confirm_pairs=args.confirm_pairs,
        alpha=args.alpha,
        seed=args.seed,
        stall_s=args.stall_seconds,
        cache=str(args.cache.absolute()) if args.cache else None,
        strict=args.gate_strict,
        threshold=Threshold(args.threshold_percent, args.threshold_us),
    )
    folder = args.folder or Path(".benchmarks") / "ab" / f"{datetime.now():%Y%m%d-%H%M%S}"
    if (folder / "plan.json").exists():
        raise ValueError(f"{folder} holds a run already; go on with --resume {folder}, or choose another --folder.")
    write_json(folder / "plan.json", asdict(plan))
    return plan, folder


def _check_numbers(args: argparse.Namespace) -> None:
    limits = {
        "screen_pairs": (2, MOST_PAIRS),
        "confirm_pairs": (FEWEST_PAIRS, MOST_PAIRS - 2),
        "threshold_percent": (0, 100),
        "threshold_us": (0, float("inf")),
        "alpha": (2.0**-args.confirm_pairs, 0.5),
        "minutes": (0, float("inf")),
        "stall_seconds": (1, float("inf")),
    }
    for name, (low, high) in limits.items():
        value = getattr(args, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} {value:g} is not between {low:g} and {high:g}.")


def resumed(args: argparse.Namespace, defaults: Mapping[str, Any]) -> tuple[Plan, Path]:
    """The plan of an interrupted run; ValueError if it cannot be read or something else is asked for.

    `defaults` are the options of a command that gives none.
    """
    path = args.resume / "plan.json"
    others = [name for name in defaults if name not in MAY_BE_NEW and getattr(args, name) != defaults[name]]
    if others:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise ValueError(
            "--resume goes on with the run as it was planned; only --minutes and --gate-strict may be new, "
            f"got {told}: leave that out, or start another run."
        )
    _check_numbers(args)
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf8"))
        if kept.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {kept.get('schema')}, this gate's is {SCHEMA}")
        kept |= {key: tuple(kept[key]) for key in ("commits", "pythons", "asked")}
        plan = Plan(**kept | {"threshold": Threshold(**kept["threshold"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no plan to go on with ({error}).") from None
    if args.gate_strict and not plan.strict:
        plan = replace(plan, strict=True)
        write_json(path, asdict(plan))
    return plan, args.resume


def _python(environment: str | None) -> str:
    """The Python of an environment; never resolved, as a link into a virtual environment is what makes it one."""
    if environment is None:
        return sys.executable
    path = Path(environment).absolute()
    path = path / "bin" / "python" if path.is_dir() else path
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise ValueError(f"{environment!r} holds no python that can be run; give a virtual environment's folder.")
    return str(path)
