"""A record of a noisy device holds several processes: one of them says little about the next."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gate.baseline.baselines import entry_of, process_of
from gate.baseline.fresh import fresh_records
from gate.processes import CHILD

#: Processes in a record of a CPU, where they differ by 2% to 8% and the passes of one by 1% (gate/baseline/noise.py).
PROCESSES = 3


def add_options(group: Any) -> None:
    """Add the option of a save to pytest's group."""
    group.addoption(
        "--gate-processes",
        type=int,
        metavar="N",
        help="Saving: N processes time what the record holds, this one and N - 1 fresh ones. "
        f"Default: {PROCESSES} on a CPU, 1 on a GPU.",
    )


def saves(config: pytest.Config) -> bool:
    """Whether this session was asked to save a record."""
    return any(getattr(config.option, f"benchmark_{name}", None) for name in ("save", "autosave"))


def check_options(config: pytest.Config) -> None:
    """ValueError for a number of processes that is none, or that nothing reads."""
    given = config.getoption("gate_processes")
    if given is None:
        return
    if given < 1:
        raise ValueError(f"--gate-processes {given}: a record holds at least 1.")
    if not saves(config):
        raise ValueError("--gate-processes is of a record that is saved; add --benchmark-save=NAME.")


def more_processes(config: pytest.Config, cells: Mapping[str, dict[str, Any]]) -> int:
    """How many fresh processes a save of these cells is to hold beside this one."""
    if not cells or not saves(config) or os.environ.get(CHILD):
        return 0
    given = config.getoption("gate_processes")
    noisy = any(info.get("pace_ms") for info in cells.values())
    return (PROCESSES if noisy else 1) - 1 if given is None else int(given) - 1


def timed_by_others(
    config: pytest.Config, cells: Mapping[str, dict[str, Any]], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Time the cells in as many fresh processes as the record is to hold, and return these as a record keeps them.

    An interrupt ends the timing, and what is done is kept.
    """
    number = more_processes(config, cells)
    if not number:
        return []
    what = "1 fresh process" if number == 1 else f"{number} fresh processes"
    say(f"Timing all for the record again in {what}, as one says little (--gate-processes=1: not) ...")
    found: list[dict[str, Any]] = []
    try:
        for record in fresh_records(config, list(cells), number):
            if isinstance(record, str):
                say(record)
            else:
                found.append(entry_of(process_of(record)))
    except KeyboardInterrupt:
        say(f"Interrupted: the record holds {len(found) + 1} of {number + 1} processes.")
    return found
