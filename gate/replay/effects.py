"""Slowdowns that a replay adds to recorded times: how much longer each step takes, and what the host's part is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from gate.cause import host_bound
from gate.waiting import without_waiting_ms

Info = dict[str, Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Slower:
    """A cell's `extra_info` with slower steps, and the milliseconds that were added to each."""

    info: Info
    added_ms: Floats


@dataclass(frozen=True)
class Kind:
    """A way of being slower; `cause` is what is to be named for it on a GPU (a CPU's host does all the work).

    It is added to the cells that `shows_in`: elsewhere it would make no step slower.
    """

    name: str
    slower: Callable[[Info, float], Slower]
    cause: str
    shows_in: Callable[[Info], bool] = lambda _: True


def step_ms(info: Info) -> Floats:
    """Milliseconds of each step as the gate judges them: the device's, else the wall's without waiting for a core."""
    if info.get("device_ms") is not None:
        return np.array(info["device_ms"], dtype=float)
    waits: Sequence[float] = info.get("waited_ms") or [0.0] * len(info["wall_ms"])
    return np.array([without_waiting_ms(*both) for both in zip(info["wall_ms"], waits, strict=True)])


def every_step(info: Info, size: float) -> Slower:
    """Each step takes `size` (a share) longer, on the device where there is one: a slower kernel, a device's sleep."""
    return _on_device(info, size * step_ms(info))


def half_of_the_steps(info: Info, size: float) -> Slower:
    """Every second batch takes twice `size` longer, the others as long as before."""
    steps = step_ms(info)
    batches = np.array(info.get("batches") or range(len(steps)))
    return _on_device(info, np.where(batches % 2 == 1, 2 * size, 0.0) * steps)


def host_sleep(info: Info, size: float) -> Slower:
    """The host sleeps equally long in each step, so long that steps take `size` longer in the mean of their logs."""
    steps = step_ms(info)

    def excess(sleep_ms: float) -> float:
        return float(np.mean(np.log1p(sleep_ms / steps))) - math.log1p(size)

    sleep_ms = float(optimize.brentq(excess, 0.0, (size + 1) * np.max(steps))) if size > 0 else 0.0
    slower = _with(info, np.full_like(steps, sleep_ms))
    if info.get("host_ms"):
        slower.info["host_ms"] = [ms + sleep_ms for ms in info["host_ms"]]
    if info.get("lead_ms"):
        slower.info["lead_ms"] = [max(ms - sleep_ms, 0.0) for ms in info["lead_ms"]]
    return slower


def waits_for_the_host(info: Info) -> bool:
    """Whether the host's own time is the step's: not where a GPU has work left when all of a step is queued, as a short
    sleep costs nothing there."""
    return host_bound(info) is not False


KINDS: tuple[Kind, ...] = (
    Kind("every step", every_step, "device"),
    Kind("half of the steps, twice as much", half_of_the_steps, "device"),
    Kind("a host sleep in each step", host_sleep, "host", waits_for_the_host),
)


def _on_device(info: Info, added_ms: Floats) -> Slower:
    """Slower by the work of the device: it is busy for longer, too, and what its kernels took is not known any more."""
    slower = _with(info, added_ms)
    if info.get("device_busy_ms") is not None:
        slower.info["device_busy_ms"] = info["device_busy_ms"] + float(added_ms.mean())
    slower.info.pop("kernels", None)
    return slower


def _with(info: Info, added_ms: Floats) -> Slower:
    """The cell's times with these milliseconds more; the paces and waits beside them stay as they were."""
    changed = dict(info)
    for clock in ("device_ms", "wall_ms"):
        if info.get(clock) is not None:
            changed[clock] = [float(ms) for ms in np.array(info[clock]) + added_ms]
            changed[f"median_{clock}"] = float(np.median(changed[clock]))
    return Slower(changed, added_ms)
