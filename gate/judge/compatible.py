"""Why base and head cannot be compared: what differs between two runs that is not the code, a sentence each."""

import math
from collections.abc import Mapping
from typing import Any

from gate.record.cell import CellRecord, is_number
from gate.record.files import STEP_PACKAGES

#: Fewer timed steps than these have no location worth comparing.
FEWEST_STEPS = 5

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

#: SM clocks after a cell, read once each: they wander by this much (log ratio) under a power cap that nobody moved.
CLOCK_WANDERS = 0.2


def reasons_of_machines(
    head: Mapping[str, Any], base: Mapping[str, Any], sides: tuple[str, str] = ("on head", "on base")
) -> list[str]:
    """Return what speaks against comparing any time of two `machine_info`s: another device, or one set otherwise.

    `sides` is what the sentences call the two.
    """
    found = []
    here, there = sides
    if head.get("device") != base.get("device"):
        found.append(f"another device: {head.get('device')} {here}, {base.get('device')} {there}")
    for key, name in SETTINGS.items():
        new, old = head.get(key), base.get(key)
        if is_number(new) and is_number(old) and new != old:
            found.append(f"{name} is {new:g} {here}, {old:g} {there}")
    return found


def reasons_of_cells(head: CellRecord, base: CellRecord) -> list[str]:
    """Return what speaks against comparing the times of one cell, of which both sides have some."""
    found = []
    new, old = throttled(head), throttled(base)
    if new != old:
        found.append(f"throttling differs: {_list(new)} on head, {_list(old)} on base")
    for record, side in ((head, "head"), (base, "base")):
        if others := other_processes(record):
            found.append(f"{others} other process{'es' * (others > 1)} on {side}'s GPU")
        if len(record.times_ms) < FEWEST_STEPS:
            found.append(f"too few steps: {len(record.times_ms)} on {side}, at least {FEWEST_STEPS} are needed")
    if head.clock != base.clock:
        found.append(f"other timers: the {head.clock} clock on head, the {base.clock} clock on base")
    clocks = [_sm_clock(record) for record in (head, base)]
    if all(map(is_number, clocks)) and abs(math.log(clocks[0] / clocks[1])) > CLOCK_WANDERS:
        found.append(f"other SM clock rates: {clocks[0]:g} MHz on head, {clocks[1]:g} MHz on base")
    if (work := sorted({*(head.tokens or ())})) and (before := sorted({*(base.tokens or ())})) and work != before:
        found.append(f"other batches: their sizes add up to {sum(work):,} tokens on head, {sum(before):,} on base")
    return found


def same_packages(head: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Tell whether two `machine_info`s have the same packages, as far as a step runs them."""
    return not other_packages(head, base)


def other_packages(head: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    """Return the packages that a step runs and that two `machine_info`s have in other versions, a phrase each.

    None is a package that is not installed, which may change the kernel that another one takes. An older record does
    not name every package.
    """
    new, old = (machine.get("versions") or {} for machine in (head, base))
    both = [name for name in STEP_PACKAGES if name in new and name in old]
    return [f"{name} {new[name]}, was {old[name]}" for name in both if new[name] != old[name]]


def throttled(record: CellRecord) -> set[str]:
    """Return the reasons of `THROTTLED` that held before or after the cell."""
    states = [state or {} for state in (record.gpu_before, record.gpu_after)]
    reasons = [state.get("throttle_reasons") for state in states]
    return {reason for given in reasons if isinstance(given, list) for reason in given} & THROTTLED


def other_processes(record: CellRecord) -> int:
    """Return the most other processes seen on the GPU before or after the cell; 0 where nobody could tell."""
    counts = [(state or {}).get("other_processes") for state in (record.gpu_before, record.gpu_after)]
    return max((count for count in counts if isinstance(count, int)), default=0)


def _sm_clock(record: CellRecord) -> Any:
    # After the cell, not before: a GPU that waited for a model to be built has slowed its clocks down.
    return (record.gpu_after or {}).get("sm_clock_mhz")


def _list(reasons: set[str]) -> str:
    return ", ".join(sorted(reasons)) or "none"
