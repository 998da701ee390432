"""Replay recorded fresh processes as comparisons: false alarms, sensitivity, noise, and what other tools would say.

Needs no GPU: `python -m gate record --processes 16` makes the records, this draws comparisons of unchanged code from
them, and the same with a slowdown added to one cell.
"""

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pytest_benchmark import __version__ as pytest_benchmark_version

from gate import estimates
from gate.baseline.comparing import CONFIRM
from gate.cause import host_bound
from gate.processes import write_json
from gate.replay.components import components
from gate.replay.data import Data, comparable, read
from gate.replay.effects import KINDS, Kind
from gate.replay.remembering import remembered
from gate.replay.rivals import RUNS, installed, judged, pairs_wanted, remembering, rivals
from gate.replay.rules import BASELINE, CONFIRM_PAIRS, SCREEN_PAIRS, Outcome, Planted, rules
from gate.replay.tables import figures_path, markdown, written

#: Slowdowns, as shares, by whether a GPU is timed: those of the power curve, and those that every kind of slowdown is
#: tried with. A shared CPU's threshold is ten times as large.
CURVE = {True: (0.005, 0.01, 0.015, 0.02, 0.03, 0.05), False: (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)}
SIZES = {True: (0.01, 0.02, 0.05), False: (0.05, 0.1, 0.2)}

#: Fewer comparisons without an alarm say little: 59 independent ones without any would bound its probability by 5%.
COMPARISONS = 60

KIND, SCHEMA = "varlen-gate replay", 1

Draw = Callable[[Data, np.random.Generator, Planted | None], Outcome]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m gate replay`."""
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="FOLDER|RECORD", help="of fresh processes (python -m gate record)"
    )
    parser.add_argument("--cells", metavar="PATTERN", help="only cells whose id matches one of these globs")
    parser.add_argument(
        "--comparisons", type=int, default=COMPARISONS, metavar="N", help="without a change (default 60)"
    )
    parser.add_argument(
        "--redraws", type=int, default=10, metavar="N", help="for each cell and slowdown (default 10; 0: none)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--no-rivals", action="store_true", help="leave out pytest-benchmark and benchmatrix")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="put the tables between the marks of this document"
    )


def run(args: argparse.Namespace) -> int:
    """Print the tables; 0 whatever they show. ValueError, one line, for records that make no experiment."""
    if args.comparisons < 1 or args.redraws < 0:
        raise ValueError(f"--comparisons {args.comparisons} --redraws {args.redraws}: at least 1 and 0 are needed.")
    document = args.markdown.read_text(encoding="utf8") if args.markdown and args.markdown.is_file() else ""
    if args.markdown:
        # Before an hour of work: whether there is a place for it.
        written(document, "", str(args.markdown))
    recordings = read(args.paths)
    globs = args.cells.split(",") if args.cells else ["*"]
    names = {cell for each in recordings for cell in each.process.cells if any(fnmatchcase(cell, g) for g in globs)}
    if recordings and not names:
        raise ValueError(f"no cell of these records is like --cells {args.cells}.")
    data = comparable(recordings, sorted(names))
    found = figures(
        data, args.comparisons, args.redraws, seed=args.seed, command=_command(args), others=not args.no_rivals
    )
    text = markdown(found)
    print(text)
    for path in filter(None, (args.json, figures_path(args.markdown) if args.markdown else None)):
        write_json(path, found)
    if args.markdown:
        args.markdown.write_text(written(document, text, str(args.markdown)), encoding="utf8")
    return 0


def figures(
    data: Data, comparisons: int, redraws: int, *, seed: int = 0, command: str = "", others: bool = True
) -> dict[str, Any]:
    """Everything that the tables show, as JSON has it."""
    ways = rules(data)
    with ExitStack() as stack:
        stack.enter_context(remembered(estimates, "location"))
        stack.enter_context(remembering())
        alarms, sensitivity = [], []
        for number, (how, rule) in enumerate(ways.items()):
            _say(f"{how}: {comparisons} comparisons without a change")
            outcomes = _drawn(rule, data, [None] * comparisons, [seed, number])
            alarms.append({"how": how} | _false_alarms(data, outcomes))
        for kind in KINDS if redraws else ():
            shown = [cell for cell in data.cells if _shows(kind, data, cell)]
            for size in (CURVE if kind is KINDS[0] else SIZES)[data.is_gpu]:
                for number, (how, rule) in enumerate(ways.items()):
                    _say(f"{how}: {kind.name}, {size:.1%}")
                    planted = [Planted(cell, kind, size) for cell in shown for _ in range(redraws)]
                    if planted:
                        outcomes = _drawn(rule, data, planted, [seed, number, 1])
                        sensitivity.append({"how": how} | _sensitivity(data, kind, size, planted, outcomes))
        sensitivity.sort(key=lambda row: list(ways).index(row["how"]))
        side_by_side = _side_by_side(data, comparisons, seed) if others and ways else []
    return {
        "kind": KIND,
        "schema": SCHEMA,
        "replay": {
            "command": command,
            "seed": seed,
            "redraws": redraws,
            "how": _how(data) if ways else "",
            "rivals": _rivals_said(len(data.cells)),
        },
        "data": _described(data),
        "components": components(data),
        "false_alarms": alarms,
        "sensitivity": sensitivity,
        "side_by_side": side_by_side,
    }


def _shows(kind: Kind, data: Data, cell: str) -> bool:
    """Whether what this kind adds makes the steps of a cell slower, in most of its processes."""
    return statistics.median(kind.shows_in(each.process.cells[cell]) for each in data.recordings) > 0.5


def _drawn(rule: Draw, data: Data, planted: Sequence[Planted | None], seed: Sequence[int]) -> list[Outcome]:
    """A comparison for each; the n-th is of the same processes whatever is planted."""
    return [rule(data, np.random.default_rng([*seed, number]), one) for number, one in enumerate(planted)]


def _false_alarms(data: Data, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "comparisons": len(outcomes),
        "alarms": sum(bool(one.alarms) for one in outcomes),
        "cells": len(outcomes) * len(data.cells),
        "cells_alarmed": sum(len(one.alarms) for one in outcomes),
        "cells_faster": sum(len(one.faster) for one in outcomes),
        "cells_not_told": sum(len(one.cannot_tell) for one in outcomes),
        "minutes": _mean(one.seconds / 60 for one in outcomes),
        "most_minutes": max(one.seconds for one in outcomes) / 60,
    }


def _sensitivity(
    data: Data, kind: Kind, size: float, planted: Sequence[Planted], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    pairs = list(zip(planted, outcomes, strict=True))
    cells = dict.fromkeys(what.cell for what in planted)
    seen = {cell: _mean(float(cell in one.alarms) for what, one in pairs if what.cell == cell) for cell in cells}
    right = kind.cause if data.is_gpu else "host"
    # Where the device waits for the host, a slower device would not have made the step slower: it is no right cause.
    waiting = {cell for cell in data.cells if right == "device" and host_bound(data.recordings[0].process.cells[cell])}
    known = [(what.cell, one) for what, one in pairs if what.cell in one.causes and what.cell not in waiting]
    causes = [one.causes[cell] == right for cell, one in known]
    return {
        "kind": kind.name,
        "size": size,
        "comparisons": len(pairs),
        "detected": _mean(seen.values()),
        "not_told": _mean(float(what.cell in one.cannot_tell) for what, one in pairs),
        "worst_cell": min(seen.values()),
        "cells": seen,
        "another_cell": _mean(float(bool(one.alarms - {what.cell})) for what, one in pairs),
        "right_cause": _mean(map(float, causes)) if causes else None,
        "minutes": _mean(one.seconds / 60 for one in outcomes),
    }


def _side_by_side(data: Data, comparisons: int, seed: int) -> list[dict[str, Any]]:
    """The gate's rules and the other tools, with as many comparisons each, the slower cells in turn."""
    sizes = SIZES[data.is_gpu]
    tools: list[tuple[str, str, Draw]] = [(how, "the gate's estimates", rule) for how, rule in rules(data).items()]
    tools += [(rival.name, rival.times, partial(judged, rival)) for rival in rivals(data)]
    rows = []
    for name, times, draw in tools:
        _say(f"side by side: {name}, {times}")
        same = _drawn(draw, data, [None] * comparisons, [seed, 2])
        turns = [data.cells[number % len(data.cells)] for number in range(comparisons)]
        slower = {size: [Planted(cell, KINDS[0], size) for cell in turns] for size in sizes}
        found = {size: _drawn(draw, data, planted, [seed, 2]) for size, planted in slower.items()}
        found[0.0] = same
        each = [(what, one) for size in sizes for what, one in zip(slower[size], found[size], strict=True)]
        rows.append(
            {
                "tool": name,
                "times": times,
                "comparisons": comparisons,
                "alarms": sum(bool(one.alarms) for one in same),
                "unsure": sum(bool(one.cannot_tell) for one in same),
                "detected": {
                    str(size): _mean(float(cell in one.alarms) for cell, one in zip(turns, found[size], strict=True))
                    for size in sorted(found)
                },
                "another_cell": _mean(float(bool(one.alarms - {what.cell})) for what, one in each),
                "minutes": _mean(one.seconds / 60 for one in same),
            }
        )
    return rows


def _described(data: Data) -> dict[str, Any]:
    first, last = data.recordings[0].process, data.recordings[-1].process
    commit = str(first.commit.get("id") or "unknown")
    commit = (commit[:9] if len(commit) == 40 else commit) + ("+" if first.commit.get("dirty") else "")
    return {
        "device": first.machine.get("device", "an unknown device"),
        "versions": first.machine.get("versions") or {},
        "commit": commit,
        "first": first.at.isoformat(),
        "last": last.at.isoformat(),
        "processes": len(data.recordings),
        "sessions": len({each.process.session for each in data.recordings}),
        "cells": len(data.cells),
        "cell_ids": list(data.cells),
        "left_out": dict(data.left_out),
        "process_s": data.process_s,
        "cell_s": data.cell_s,
    }


def _how(data: Data) -> str:
    fewest = min(map(len, data.sessions.values()))
    needed = 2 * (SCREEN_PAIRS + CONFIRM_PAIRS)
    again = "" if fewest >= needed else f", and with fewer than {needed} processes some are used again in new pairs"
    before = min(BASELINE, fewest - 1 - CONFIRM)
    return (
        f"*gate ab*: the processes of a session are shuffled and dealt in pairs of base and head{again}; "
        f"{SCREEN_PAIRS} pairs screen, {CONFIRM_PAIRS} confirm, and exact costs are compared once. Live pairs are of "
        "neighbours in time; these are not, so that a drift over the session is noise here. *against a baseline*: one "
        f"process, {before} others of its session as the baseline, {CONFIRM} further ones for what seems slower. "
        "Defaults otherwise."
    )


def _rivals_said(cells: int) -> str:
    said = (
        "*pytest-benchmark* "
        f"{pytest_benchmark_version}: one run against one saved run, by its own check of "
        "`--benchmark-compare-fail`, on its own statistics of the rounds. "
    )
    if installed():
        said += (
            f"*benchmatrix* {installed()}: `benchmatrix compare BASE HEAD --fail-on-regression` by its own API, "
            f"{RUNS} runs against {RUNS}, the metric single-call latency, and its defaults: 50,000 resamples, 95%, "
            "Bonferroni, threshold 5%, unless named otherwise. Its paired mode is not replayed: for "
            f"{cells} cells it wants {pairs_wanted(cells)} pairs of processes. "
        )
    else:
        said += "*benchmatrix* was not run (`pip install '.[replay]'`). "
    return said + (
        "No process is on both sides. *A/A*: comparisons without a change, *alarms*: those with a failed cell. "
        "*unsure*: those without a change in which a cell could not be told; the gate fails then under "
        "`--gate-strict`, benchmatrix under `--fail-on-regression`. *found*: as many comparisons, every step of "
        "one cell slower by so much, which failed; at 0% it did so without a reason."
    )


def _command(args: argparse.Namespace) -> str:
    given = [str(path) for path in args.paths]
    for name, default in (("cells", None), ("comparisons", COMPARISONS), ("redraws", 10), ("seed", 0)):
        if getattr(args, name) != default:
            given.append(f"--{name}={getattr(args, name)}")
    if args.no_rivals:
        given.append("--no-rivals")
    if args.markdown:
        given.append(f"--markdown={args.markdown}")
    return shlex.join(["python", "-m", "gate", "replay", *given])


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
