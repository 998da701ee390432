"""Why cells regressed in an A/B comparison: a profile of both sides, beside the times that were compared."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from gate.ab.run import Duel, Pair, Phase
from gate.cause import Cause, cause
from gate.host import STEP_LISTS
from gate.records import Record, cells


def slower_causes(duel: Duel, slower: Sequence[str], confirms: Phase, exact: Pair) -> dict[str, Cause]:
    """Why each cell takes longer; profiles both sides where there is time, and keeps that in the duel's folder."""
    profiled: Pair | None = None
    if slower and duel.in_time("profile", slower):
        try:
            profiled = duel.pair("profile", slower, 1000 * (duel.seed + 1), False, "--profile-kernels")
        except ValueError as error:
            # A checkout from before that option.
            print(f"no profile: {error}", flush=True)
    return {cell: _said(confirms, profiled or exact, cell) for cell in slower}


def costlier_causes(regressed: Sequence[str], screens: Phase, exact: Pair) -> dict[str, Cause]:
    """What exact costs tell of cells that take no longer: that they are compiled more often, or padded more."""
    said = {cell: _said(screens, exact, cell) for cell in regressed}
    return {cell: found for cell, found in said.items() if found.kind in ("recompiled", "padding")}


def _said(phase: Phase, exact: Pair, cell: str) -> Cause:
    counting = phase.valid_times(cell)
    infos = [pair.calm_infos(cell, phase.calm) for pair, _ in counting]
    base = _pooled(exact.base, cell, [base for base, _ in infos], [times.base.log_ms for _, times in counting])
    moved = [times.base.log_ms + times.log_ratio for _, times in counting]
    head = _pooled(exact.head, cell, [head for _, head in infos], moved)
    return cause(head, base)


def _pooled(exact: Record, cell: str, infos: Sequence[dict[str, Any]], logs: Sequence[float]) -> dict[str, Any]:
    """A cell's costs as one process measured them, with the step times of all pairs, as they were compared.

    `infos` and `logs` are those of one side of each pair, the latter where there is no device's clock.
    """
    pooled = dict(cells(exact).get(cell) or {"verdict": "timed"})
    for clock in STEP_LISTS:
        lists = [times for info in infos if isinstance(times := info.get(clock), list)]
        pooled[clock] = list(chain.from_iterable(lists)) if lists and len(lists) == len(infos) else None
    if pooled["device_ms"] is None:
        # What a shared CPU adds to a wall time is most of it at times, and is in no estimate either.
        pooled["wall_ms"] = [math.exp(log) for log in logs] or None
    for clock in ("device", "wall"):
        times = pooled[f"{clock}_ms"]
        pooled[f"median_{clock}_ms"] = float(np.median(times)) if times else None
    return pooled
