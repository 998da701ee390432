"""Why a time cannot be compared: what differs between two runs that is not the code, a sentence each."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from gate.baseline.baselines import Process
from gate.records import is_number

Info = dict[str, Any]

#: What is timed beside a cell: a product and a copy.
CONTROL = ("matmul_ms", "copy_ms")

#: How often each is timed after a cell. Records until 2026-11-27 hold as many times from before it, which are passed
#: over: a copy took 107 us or 92 of an H100 that had been idle, and 92 after the cell.
CONTROL_REPEATS = 6

#: Fewer timed steps than these have no location worth comparing.
MIN_STEPS = 5

#: Reasons for which a GPU runs below its clocks only when something is wrong with it or its cooling. Its power cap is
#: none of them: a GPU under load touches it all the time, and only its height matters (`SETTINGS`).
THROTTLED = frozenset(
    ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sync_boost")
)

#: What is set on a device, not measured: two runs with different settings are of two devices.
SETTINGS = {
    "power_limit_w": "power limit (W)",
    "max_sm_clock_mhz": "highest SM clock (MHz)",
    "max_memory_clock_mhz": "highest memory clock (MHz)",
    "memory_total_bytes": "memory (bytes)",
}

#: The control may move by so much, as a share, before it counts as another state of the machine. Less is its own noise:
#: on an H100 a product after one cell had an SD of up to 1.7% between processes, and half of it is the copy's.
CONTROL_MOVED = 0.02

#: SM clocks after a cell, read once each: they wander by this share under a power cap without being set otherwise.
CLOCK_WANDERS = 0.2


def between_processes(now: Process, then: Process) -> list[str]:
    """Doubts about every cell: another device, or one that is set otherwise."""
    found = []
    if now.machine.get("device") != then.machine.get("device"):
        found.append(f"another device: {now.machine.get('device')} now, {then.machine.get('device')} then")
    for key, name in SETTINGS.items():
        new, old = now.machine.get(key), then.machine.get(key)
        if is_number(new) and is_number(old) and new != old:
            found.append(f"{name} is {new:g} now, was {old:g} then")
    return found


def between_cells(now: Info, then: Info) -> list[str]:
    """Doubts about one cell: throttled otherwise, other programs on its GPU, other work, too few samples."""
    found = []
    new, old = throttled(now), throttled(then)
    if new != old:
        found.append(f"throttled in another way: {_list(new)} now, {_list(old)} then")
    for info, when in ((now, "now"), (then, "then")):
        if others := foreign_processes(info):
            found.append(f"{others} other process{'es' * (others > 1)} on the GPU {when}")
        for times in ("device_ms", "wall_ms"):
            samples = info.get(times)
            if isinstance(samples, list) and 0 < len(samples) < MIN_STEPS:
                found.append(f"too few samples: {len(samples)} steps {when}, at least {MIN_STEPS} are needed")
                break
    clocks = [_clock(now), _clock(then)]
    if all(map(is_number, clocks)) and abs(math.log(clocks[0] / clocks[1])) > CLOCK_WANDERS:
        found.append(f"other clocks: {clocks[0]:g} MHz now, {clocks[1]:g} MHz then")
    if (work := _work(now)) and (before := _work(then)) and work != before:
        found.append(f"other batches: sizes of {sum(work):,} tokens in all now, of {sum(before):,} then")
    return found


def throttled(info: Info) -> set[str]:
    """The reasons of `THROTTLED` that held before or after the cell."""
    states = [info.get(key) or {} for key in ("gpu_before", "gpu_after")]
    reasons = [state.get("throttle_reasons") for state in states]
    return {reason for given in reasons if isinstance(given, list) for reason in given} & THROTTLED


def foreign_processes(info: Info) -> int:
    """The most other processes seen on the GPU before or after the cell; 0 where nobody could tell."""
    counts = [(info.get(key) or {}).get("other_processes") for key in ("gpu_before", "gpu_after")]
    return max((count for count in counts if isinstance(count, int)), default=0)


def control_change(now: Info, then: Iterable[Info]) -> float | None:
    """The log ratio of the controls' times beside a cell, None without them: how much slower the machine itself was."""
    olds = [log for info in then if (log := _control_log(info)) is not None]
    new = _control_log(now)
    return None if new is None or not olds else float(new - np.mean(olds))


def explained_by_control(change: float, control: float | None) -> bool:
    """Whether a cell's change (log ratio) may be the machine's: its control moved the same way, half as far or more."""
    return control is not None and abs(control) > CONTROL_MOVED and control / change >= 0.5


def control_ms(info: Info, work: str) -> float | None:
    """The median time of a kind of control work after a cell, None where it was not timed or a time is none."""
    control = info.get("control")
    times = control.get(work) if isinstance(control, dict) else None
    if not isinstance(times, list) or not times or not all(is_number(ms) and ms > 0 for ms in times):
        return None
    return float(np.median(times[-CONTROL_REPEATS:]))


def _control_log(info: Info) -> float | None:
    """The mean log of the control's times."""
    logs = [math.log(ms) for work in CONTROL if (ms := control_ms(info, work)) is not None]
    return float(np.mean(logs)) if logs else None


def _clock(info: Info) -> Any:
    # After the cell, not before: a GPU that waited for a model to be built has slowed its clocks down.
    return (info.get("gpu_after") or {}).get("sm_clock_mhz")


def _work(info: Info) -> list[int] | None:
    # The timer may start with any batch, and run each more than once.
    tokens = info.get("tokens")
    return sorted(set(tokens)) if isinstance(tokens, list) and tokens else None


def _list(reasons: set[str]) -> str:
    return ", ".join(sorted(reasons)) or "not"
