"""Tells whether the machine was in one state for both processes of a pair: by the control work, clocks and company."""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from gate.baseline.doubts import CONTROL, control_ms, foreign_processes, throttled
from gate.estimates import has_pace
from gate.records import Record, cells, same_versions

Info = dict[str, Any]

#: How far the control may move between two processes. Judged before a cell's times are looked at, and by its size
#: alone: which side was the slower one plays no part, so that leaving such pairs out favours neither. It is there for
#: another state of the machine; what moves less is noise, of which the statistics take care. On an H100 a product took
#: up to 5% longer right after the steps of a cell, with an SD of up to 1.7% between processes of one cell, whose own
#: times knew nothing of it. A CPU's is much noisier.
LIMITS = {"cuda": 0.08, "cpu": 0.25}


def control_shifts(base: Record, head: Record) -> dict[str, float]:
    """The log of head / base of each kind of control work, the median over the cells that both have it for."""
    then, now = cells(base), cells(head)
    shifts = {}
    for work in CONTROL:
        logs = [
            math.log(new / old)
            for cell in then.keys() & now.keys()
            if (old := control_ms(then[cell], work)) and (new := control_ms(now[cell], work))
        ]
        if logs:
            shifts[work] = statistics.median(logs)
    return shifts


def disturbance(base: Record, head: Record, usual: Mapping[str, float]) -> str:
    """Why the two processes cannot be compared, "" if they can; `usual` is what a kind of control work moves by.

    That is nothing between two versions of one code, and unknown between two environments, whose cuBLAS may differ.
    """
    infos = cells(head).values()
    device = "cuda" if any(info.get("device_ms") for info in infos) else "cpu"
    # A time in units of the work beside each step is compared as such (`Pair.times`): that is the better control.
    timed = [info for info in infos if info.get("verdict") == "timed"]
    paced = bool(timed) and all(map(has_pace, timed)) and same_versions(base, head)
    for work, shift in control_shifts(base, head).items():
        moved = shift - usual.get(work, 0.0)
        if abs(moved) > LIMITS[device] and not paced:
            return f"the control moved ({work.removesuffix('_ms')} {math.expm1(moved):+.1%})"
    for words, seen in (("other processes on the GPU", _company), ("throttled", _throttled)):
        then, now = seen(cells(base).values()), seen(cells(head).values())
        if then != now:
            return f"{words}: {now or 'none'} on head, {then or 'none'} on base"
    return ""


def _company(infos: Iterable[Info]) -> int:
    return max(map(foreign_processes, infos), default=0)


def _throttled(infos: Iterable[Info]) -> str:
    return ", ".join(sorted({reason for info in infos for reason in throttled(info)}))
