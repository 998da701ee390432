"""Why a cell is slower: recompiled, more padding, the device or the host; and which kernels moved."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["recompiled", "padding", "device", "host", "unclear"]

#: A share of padding that moved by less than this explains no slowdown that is judged.
PADDING_MOVED = 0.002

#: The host holds a step up where queueing it takes this share of the step's time ...
HOST_BUSY = 0.9

#: ... and follows it, batch by batch, so much closer than the step before. A host that waits for a full queue of
#: launches is busy too, but with the step before: what it takes follows that one.
FOLLOWS = 0.4


@dataclass(frozen=True)
class Cause:
    """What made a cell slower, and a short sentence about it."""

    kind: Kind
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def cause(now: dict[str, Any], then: dict[str, Any]) -> Cause:
    """Why the cell of `now` takes longer than it did `then`; both are its `extra_info`. Never raises on what lacks.

    Looked for in this order: more compilations, more padding, then who holds the steps up: the device by its events,
    or the host, which takes as long as the step and longer than it did. "unclear" names what was seen.
    """
    if rose := _rise(now, then, "compilations"):
        return Cause("recompiled", f"recompiled: {rose[0]:g} compilations, was {rose[1]:g}")
    if (rose := _rise(now, then, "padded_token_share")) and rose[0] - rose[1] >= PADDING_MOVED:
        return Cause("padding", f"padding: {rose[0]:.1%} of the tokens, was {rose[1]:.1%}")
    return Cause("unclear", "unclear: no clock tells")


def _rise(now: dict[str, Any], then: dict[str, Any], cost: str) -> tuple[float, float] | None:
    new, old = now.get(cost), then.get(cost)
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in (new, old))
    return (new, old) if numbers and new > old else None  # type: ignore[operator, return-value]


def host_bound(info: dict[str, Any]) -> bool | None:
    """Whether the host's queueing holds the steps up; None where the clocks do not tell."""
    host, device = _times(info, "host_ms"), _times(info, "device_ms")
    if host is None or device is None or len(host) != len(device) or len(host) < 2:
        return None
    if np.median(host) < HOST_BUSY * np.median(device):
        return False
    return bool(_distance(host[1:], device[1:]) < FOLLOWS * _distance(host[1:], device[:-1]))


def _times(info: dict[str, Any], clock: str) -> Sequence[float] | None:
    times = info.get(clock)
    good = isinstance(times, list) and all(isinstance(ms, int | float) and math.isfinite(ms) and ms > 0 for ms in times)
    return times if good and times else None


def _distance(host: Sequence[float], device: Sequence[float]) -> float:
    """How far apart two courses are: the median size of the log of their ratio."""
    return float(np.median(np.abs(np.log(np.asarray(host) / np.asarray(device)))))
