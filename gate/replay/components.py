"""How much step times scatter, and where: between steps, rounds, processes and sessions, of recorded processes."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gate.baseline import baselines
from gate.baseline.noise import DEFAULT, Component, Group, Kind, Observation, noise
from gate.estimates import Estimate, estimate, logs_among
from gate.host import waits_mostly
from gate.replay.data import Data
from gate.replay.effects import step_ms

Floats = NDArray[np.float64]

#: The session and the time of each process in which a cell has a valid one.
_Times = list[tuple[str, Estimate]]

#: What a group is called.
CLOCKS: dict[Kind, str] = {
    "device": "device",
    "host": "device, waits for the host",
    "wall": "wall",
    "paced": "wall, over the pace",
}


def components(data: Data) -> list[dict[str, Any]]:
    """A row for each clock, mode and execution: standard deviations of log times, as shares, and what they rest on.

    *step*: all timed steps of a cell in one process, whose batches differ in length. *round*: one timed step about its
    batch's and its process's level. *process* and *session*: of the gate's estimate of a cell's time
    (gate/baseline/noise.py), None where these records cannot show it. *apart*: the cells that are noisier than the
    others of their row, which those two leave out, each with its own noise between processes.
    """
    groups: dict[Group, dict[str, _Times]] = {}
    for cell in data.cells:
        key = data.recordings[0].process.cells[cell]["cell"]
        times, infos = _valid(data, cell)
        kind: Kind = "device" if data.is_gpu else "wall"
        if data.is_gpu and waits_mostly(infos):
            kind = "host"
        groups.setdefault((kind, key["mode"], key["execution"]), {})[cell] = times
    return [_row(data, group, cells) for group, cells in sorted(groups.items())]


def _row(data: Data, group: Group, cells: Mapping[str, _Times]) -> dict[str, Any]:
    estimates = {cell: times for cell, times in cells.items() if times}
    # As gate/baseline/verdicts.py compares them.
    paced = bool(estimates) and all(
        one.paced_batch_logs is not None for _, one in (pair for pairs in estimates.values() for pair in pairs)
    )
    kind: Kind = "paced" if paced else group[0]
    found = noise((kind, *group[1:]), {cell: _logs(pairs, paced) for cell, pairs in estimates.items()})
    step, round_ = _within(data, cells)
    return {
        "clock": CLOCKS[kind],
        "mode": group[1],
        "execution": group[2],
        "cells": len(cells),
        "step": step,
        "round": round_,
        "process": _measured(found.process),
        "session": _measured(found.session, found.few_sessions),
        "apart": {cell: own.sd for cell, (own, _) in sorted(found.apart.items())},
    }


def _valid(data: Data, cell: str) -> tuple[_Times, list[dict[str, Any]]]:
    """The cell's valid times, and its `extra_info` in the processes that they are of."""
    times, infos = [], []
    for recording in data.recordings:
        info, calm = recording.process.cells[cell], data.calm_ms[baselines.host_of(recording.process)]
        one = estimate(info, calm_ms=calm)
        if isinstance(one, Estimate):
            times.append((recording.process.session, one))
            infos.append(info)
    return times, infos


def _logs(times: _Times, paced: bool) -> list[Observation]:
    logs = logs_among([one for _, one in times], paced=paced)
    return [(session, log) for (session, _), log in zip(times, logs, strict=True)]


def _measured(component: Component, few: Component | None = None) -> Mapping[str, Any]:
    """A component as figures; where a default stands in for it, `few` is what was seen."""
    default = component.source == DEFAULT
    seen = {"seen": few.sd, "df": few.df} if few is not None else {"df": component.df}
    return {"sd": None if default else component.sd, "assumed": component.sd if default else None} | seen


def _within(data: Data, cells: Iterable[str]) -> tuple[float, float]:
    """The standard deviations of steps, and of rounds, pooled over cells."""
    squares, free = np.zeros(2), np.zeros(2)
    for cell in cells:
        infos = [recording.process.cells[cell] for recording in data.recordings]
        logs: list[Floats] = [np.log(step_ms(info)) for info in infos]
        orders = [np.array(info.get("batches") or range(len(row))) for info, row in zip(infos, logs, strict=True)]
        for row in logs:
            squares[0] += float(np.sum((row - row.mean()) ** 2))
            free[0] += len(row) - 1
        every, batches = np.concatenate(logs), np.concatenate(orders)
        processes = np.repeat(np.arange(len(logs)), [len(row) for row in logs])
        # All processes time the same batches equally often, so that their means can be taken off one after the other.
        rest = _centred(_centred(every, batches), processes)
        squares[1] += float(rest @ rest)
        free[1] += len(every) - len(set(batches.tolist())) - len(logs) + 1
    step, round_ = np.sqrt(squares / free)
    return float(step), float(round_)


def _centred(values: Floats, groups: NDArray[np.int64]) -> Floats:
    """The values less the mean of their group."""
    centred = values.copy()
    for group in np.unique(groups):
        centred[groups == group] -= values[groups == group].mean()
    return centred
