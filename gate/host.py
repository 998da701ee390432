"""Whether a GPU's step waited for the host that queues it, and whether that host was slow just then.

A host has neighbours: on one H100's machine its cores took 1.6 times as long for a second or so each, most of them at
most times, and cells that otherwise wait for the device were slower by up to a third. Two numbers beside each step tell
such a time from slower code: how long the device still had to work when the host had queued the step (`lead_ms`), and
what a fixed piece of the host's own work took around it (`host_pace_ms`, tests/performance/pace.py), in which none of
the code under test is. A pair of `gate ab` does without the steps that it held up, while enough others remain.
"""

import statistics
from collections.abc import Iterable
from itertools import compress
from typing import Any

from gate.records import is_number

Info = dict[str, Any]

#: The host held a step up that the device finished within this share of its time after the host had queued all of it.
#: On an H100 next to nothing was left in loops and eager NestedTensors; a fifth in two cells that synchronise in each
#: step, which wait for the host after that, and were slower beside a slow one (by up to 2% and 8%); elsewhere a third
#: or more, but for the cells that a slow host held up. That was with one step in the queue; with three (gate/timing.py)
#: cells that wait for the device have more left.
HELD_LEAD = 0.25

#: A cell waits for the host where more of its steps do: fewer are cut off as the slowest ones (`estimates.TRIMMED`).
HELD_SHARE = 0.2

#: A cell has a time beside a slow host if so many of its steps are left without those that it held up: any two such
#: processes share half of their batches. On two H100s eight of these lay 0.3% (root mean square; at most 0.5%) from
#: those beside a calm host, which lay 0.3% to 0.4% from each other; with all of their steps up to 1.4%. Of fewer steps,
#: in processes that queued one step ahead, up to 3.4%.
LEFT_SHARE = 3 / 4

#: Of fewer batches than these too few would be common to two processes for any to be cut off.
FEWEST_BATCHES = 10

#: The times of each step that a GPU's record holds.
STEP_LISTS = ("device_ms", "wall_ms", "host_ms", "lead_ms")

#: The host is slow where its own work takes this many times what it took in the calmest cell of the session. On the
#: machine of an H100 that was 52 us; beside the cells that it held up, and that were slower for it, it took 73 or more.
SLOW = 1.25


def held_share(info: Info) -> float | None:
    """The share of a cell's steps that the host held up, None where that was not read."""
    held = _held(info)
    return None if held is None else sum(held) / len(held)


def _held(info: Info) -> list[bool] | None:
    """Which of a cell's steps the host held up, None where that was not read."""
    leads, steps = info.get("lead_ms"), info.get("device_ms")
    if not isinstance(leads, list) or not isinstance(steps, list) or not leads or len(leads) != len(steps):
        return None
    if not all(map(is_number, [*leads, *steps])):
        return None
    return [lead < HELD_LEAD * step for lead, step in zip(leads, steps, strict=True)]


def waits_mostly(infos: Iterable[Info]) -> bool | None:
    """Whether a cell waits for the host in most of these processes; None where none of them tells."""
    shares = [share for info in infos if (share := held_share(info)) is not None]
    return 2 * sum(share > HELD_SHARE for share in shares) > len(shares) if shares else None


def pace_ms(info: Info) -> float | None:
    """The median time of the host's own work beside a cell, None where it was not timed."""
    times = info.get("host_pace_ms")
    if not isinstance(times, list) or not times or not all(is_number(ms) and ms > 0 for ms in times):
        return None
    return statistics.median(times)


def calm_ms(infos: Iterable[Info]) -> float | None:
    """The pace of the host at its calmest, over cells of one session; None without any."""
    return min((ms for info in infos if (ms := pace_ms(info)) is not None), default=None)


def slow_host(info: Info, calm: float | None) -> str:
    """How a host that was slow made a cell's steps wait, "" if it did not: what they took tells of it, not of the code.

    A cell that waits for the device is as fast beside a slow host; one that waits for a calm host tells of the code.
    """
    pace, held = pace_ms(info), held_share(info)
    if pace is None or held is None or calm is None or held <= HELD_SHARE or pace <= SLOW * calm:
        return ""
    return f"the host was slow and held up {held:.0%} of the steps: its own work took {pace / calm:.1f} times as long"


def held_up(info: Info, calm: float | None) -> list[bool] | None:
    """Which steps are to be left out, as a slow host held them up; None where too little would remain.

    Empty where none is. `info["batches"]` (optional) is the number of the batch of each step.
    """
    held = _held(info)
    if held is None or not slow_host(info, calm):
        return []
    enough = held.count(False) >= LEFT_SHARE * len(held) and len(set(_batches(info))) >= FEWEST_BATCHES
    return held if enough else None


def without_held_up(infos: tuple[Info, Info], calm: tuple[float | None, float | None]) -> tuple[Info, Info]:
    """A cell's `extra_info` on both sides, without the steps that a slow host held up on either.

    Batches differ in length: medians can be compared of the same ones. Sides that ran them in another order lose their
    own.
    """
    found = [held_up(info, ms) or [] for info, ms in zip(infos, calm, strict=True)]
    masks = [mask for mask in found if mask]
    if _batches(infos[0]) == _batches(infos[1]) and len(set(map(len, masks))) == 1:
        found = [[any(steps) for steps in zip(*masks, strict=True)]] * 2
    first, second = map(_without, infos, found)
    return first, second


def _batches(info: Info) -> list[int]:
    return list(info.get("batches") or range(len(info.get("device_ms") or ())))


def _without(info: Info, left_out: list[bool]) -> Info:
    lists = {key: times for key in STEP_LISTS if isinstance(times := info.get(key), list)}
    kept = [not held for held in left_out]
    return info | {key: list(compress(times, kept)) for key, times in lists.items() if len(times) == len(kept)}
