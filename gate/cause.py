"""Why a cell is slower: recompiled, more padding, the device or the host; and which kernels moved."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gate.estimates import Estimate, estimate
from gate.host import HELD_SHARE, held_share
from gate.kernels import Move, from_data, moved
from gate.records import format_ms

Kind = Literal["recompiled", "padding", "device", "host", "unclear"]

Info = dict[str, Any]

#: The share of a slowdown that something must explain to be named its cause.
EXPLAINS = 0.5

#: The host holds a step up where queueing it takes this share of the step's time ...
HOST_BUSY = 0.9

#: ... and follows it, batch by batch, this much closer than the step before. A host that waits for a full queue of
#: launches is busy too, but with the step before, and what it takes follows that one.
FOLLOWS = 0.4

#: Kernels that a sentence names at most, and the least share of all that was gained for one to be named.
NAMED = 3
NAMED_SHARE = 0.1


@dataclass(frozen=True)
class Cause:
    """What made a cell slower, and a short sentence about it."""

    kind: Kind
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def cause(now: Info, then: Info, *, paced: bool = False) -> Cause:
    """Why the cell of `now` takes longer than it did `then`; both are its `extra_info`.

    `paced` is whether its times were compared over those of the work beside them (on a CPU). Looked for in this order:
    more compilations; as much more padding as explains the slowdown; then whose time it is, the device's or the host's
    that the device waits for. "unclear" says what was seen. What a record lacks is no error: less is told.
    """
    if rose := _rise(now, then, "compilations"):
        return Cause("recompiled", f"recompiled: {rose[0]:g} compilations, was {rose[1]:g}")
    slowdown = _slowdown(now, then, paced=paced)
    if (rose := _rise(now, then, "padded_token_share")) and rose[0] < 1:
        more_slots = math.log((1 - rose[1]) / (1 - rose[0]))
        if slowdown is None or more_slots >= EXPLAINS * slowdown:
            return Cause("padding", f"padding: {rose[0]:.1%} of the tokens, was {rose[1]:.1%}")
    if slowdown is None:
        return Cause("unclear", "unclear: step times of both sides are needed")
    if slowdown <= 0:
        return Cause("unclear", "unclear: its steps were no slower")
    if _times(now, "device_ms") is None or _times(then, "device_ms") is None:
        return _of_cpu(now, then, f", {math.expm1(slowdown):+.1%} over the pace" if paced else "")
    return _of_gpu(now, then)


def host_bound(info: Info) -> bool | None:
    """Whether the device waits for the host to queue steps; None where the clocks do not tell.

    By what the device had left to do when a step was queued, where that was read, else by the courses of both clocks.
    """
    if (held := held_share(info)) is not None:
        return held > HELD_SHARE
    host, device = _times(info, "host_ms"), _times(info, "device_ms")
    if host is None or device is None or len(host) != len(device) or len(host) < 2:
        return None
    if np.median(host) < HOST_BUSY * np.median(device):
        return False
    return _distance(host[1:], device[1:]) < FOLLOWS * _distance(host[1:], device[:-1])


def _of_gpu(now: Info, then: Info) -> Cause:
    rise_ms = _median(now, "device_ms") - _median(then, "device_ms")
    busy_ms = _busy_change_ms(now, then)
    device_did = None if busy_ms is None else busy_ms >= EXPLAINS * rise_ms
    host_now, host_then = _times(now, "host_ms"), _times(then, "host_ms")
    host_known = host_now is not None and host_then is not None
    host_did = host_known and _median(now, "host_ms") - _median(then, "host_ms") >= EXPLAINS * rise_ms
    bound = host_bound(now)
    told = _levels(now, then)
    had_slack = host_known and _median(then, "host_ms") < HOST_BUSY * _median(then, "device_ms")
    # A step that waits for the device in its midst keeps the host as long as the device: then the kernels tell. Not
    # where the host had time to spare and has none now.
    if bound and host_did and (had_slack or not device_did):
        return Cause("host", f"host: {told}; the device waits for it")
    if device_did or bound is False:
        return Cause("device", f"device: {_movers(now, then) or told}")
    if device_did is False and host_did:
        return Cause("host", f"host: {told}; the device's own work takes no longer")
    if bound is None:
        return Cause("unclear", f"unclear: {told}")
    return Cause("device", f"device: {_movers(now, then) or told}")


def _of_cpu(now: Info, then: Info, over_pace: str) -> Cause:
    """Without events all the time is the host's; its operators tell where it went."""
    told = f"wall {_was(now, then, 'wall_ms')}{over_pace}"
    if from_data(now.get("kernels")) and from_data(then.get("kernels")):
        movers = _movers(now, then)
        told += f"; {movers}" if movers else "; torch's operators take no longer"
    return Cause("host", f"host: {told}")


def _slowdown(now: Info, then: Info, *, paced: bool) -> float | None:
    """The log of the ratio of the median steps, by the device's clock where both sides have it; over the pace, that of
    the estimates: a slow minute of the machine would hide a slower step."""
    if paced:
        new, old = estimate(now), estimate(then)
        return new.over(old, paced=True) if isinstance(new, Estimate) and isinstance(old, Estimate) else None
    for clock in ("device_ms", "wall_ms"):
        if _times(now, clock) is not None and _times(then, clock) is not None:
            return math.log(_median(now, clock) / _median(then, clock))
    return None


def _busy_change_ms(now: Info, then: Info) -> float | None:
    """How much longer the device was at work in a step, in ms: by the kernels where profiled, else as it was traced
    for the exact costs."""
    new, old = from_data(now.get("kernels")), from_data(then.get("kernels"))
    if new and old:
        return (sum(k.total_us for k in new.values()) - sum(k.total_us for k in old.values())) / 1e3
    busy = now.get("device_busy_ms"), then.get("device_busy_ms")
    if all(isinstance(ms, int | float) and ms > 0 for ms in busy):
        return float(busy[0] - busy[1])  # type: ignore[operator]
    return None


def _movers(now: Info, then: Info) -> str:
    """The kernels that gained most, "" where they were not profiled on both sides or none gained."""
    new, old = from_data(now.get("kernels")), from_data(then.get("kernels"))
    if not new or not old:
        return ""
    gained = [move for move in moved(new, old) if move.change_us > 0]
    total = sum(move.change_us for move in gained)
    named: list[Move] = [move for move in gained[:NAMED] if move.change_us >= NAMED_SHARE * total]
    return ", ".join(map(str, named))


def _levels(now: Info, then: Info) -> str:
    host = f", host {_was(now, then, 'host_ms')} to queue it" if _times(now, "host_ms") is not None else ""
    return f"step {_was(now, then, 'device_ms')}{host}"


def _was(now: Info, then: Info, clock: str) -> str:
    old = format_ms(_median(then, clock)) if _times(then, clock) is not None else "unknown"
    return f"{format_ms(_median(now, clock))} ms (was {old})"


def _rise(now: Info, then: Info, cost: str) -> tuple[float, float] | None:
    new, old = now.get(cost), then.get(cost)
    if not isinstance(new, int | float) or not isinstance(old, int | float):
        return None
    return (new, old) if new > old else None


def _median(info: Info, clock: str) -> float:
    return float(np.median(info[clock]))


def _times(info: Info, clock: str) -> NDArray[np.float64] | None:
    times = info.get(clock)
    if not isinstance(times, list) or not times or not all(isinstance(ms, int | float) for ms in times):
        return None
    found = np.asarray(times, dtype=float)
    return found if bool(np.all(np.isfinite(found) & (found > 0))) else None


def _distance(host: NDArray[np.float64], device: NDArray[np.float64]) -> float:
    """How far apart two courses are: the median size of the log of their ratio."""
    return float(np.median(np.abs(np.log(host / device))))
