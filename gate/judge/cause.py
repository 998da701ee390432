"""Why a cell is slower: recompiled, more padding, batch preparation, the device or the host, and which kernels."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gate.record.cell import CellRecord, format_ms, is_number
from gate.record.kernels import from_data, moved

Kind = Literal["recompiled", "padding", "preparation", "device", "host", "unclear"]

#: The share of a slowdown that something must explain to be named its cause.
EXPLAINS = 0.5

#: A step counts as host-bound if the GPU finished it within this share of the step time after the last launch ...
HOST_BOUND_LEAD = 0.25

#: ... and a cell if more than this share of its steps are; in a live pair, if launching takes longer than the device's
#: work by this share of a step.
HOST_BOUND_SHARE = 0.2
HOST_DEFICIT = 0.02

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


def cause(head: CellRecord, base: CellRecord) -> Cause:
    """Return why the cell takes longer on head than on base.

    Looked for in this order: more compilations; as much more padding, or time to prepare a batch, as explains half of
    the slowdown; then whose time it is, the device's or the host's that the device waits for. "unclear" says what was
    seen. What a record lacks is no error: less is told.
    """
    if more := _rise(head.compilations, base.compilations):
        return Cause("recompiled", f"recompiled: {more[0]:g} compilations, was {more[1]:g}")
    if head.step_ms is None or base.step_ms is None:
        return Cause("unclear", "unclear: step times of both sides are needed")
    if head.step_ms <= base.step_ms:
        return Cause("unclear", "unclear: the median step is not slower on head")
    rise_ms = head.step_ms - base.step_ms
    if (more := _rise(head.padded_token_share, base.padded_token_share)) and more[0] < 1:
        more_slots = math.log((1 - more[1]) / (1 - more[0]))
        if more_slots >= EXPLAINS * math.log(head.step_ms / base.step_ms):
            return Cause("padding", f"padding: {more[0]:.1%} of the slots, was {more[1]:.1%}")
    prepared, was = _median(head.prepare_ms), _median(base.prepare_ms)
    if prepared is not None and was is not None and prepared - was >= EXPLAINS * rise_ms:
        return Cause("preparation", f"batch preparation: {_ms(prepared)} ms a batch (was {_ms(was)})")
    if head.device_ms is None or base.device_ms is None:
        return _of_cpu(head, base)
    return _of_gpu(head, base, rise_ms)


def host_bound(record: CellRecord) -> bool | None:
    """Tell whether the device waits for the host to launch steps; None where no lead was measured."""
    if record.host_deficit_ms is not None and record.step_ms is not None:
        return record.host_deficit_ms > HOST_DEFICIT * record.step_ms
    leads, steps = record.lead_ms, record.device_ms
    if not leads or not steps or len(leads) != len(steps) or not all(map(is_number, [*leads, *steps])):
        return None
    bound = [lead < HOST_BOUND_LEAD * step for lead, step in zip(leads, steps, strict=True)]
    return sum(bound) > HOST_BOUND_SHARE * len(bound)


def _of_gpu(head: CellRecord, base: CellRecord, rise_ms: float) -> Cause:
    host, was = _median(head.host_ms), _median(base.host_ms)
    levels = f"step {_was(head.step_ms, base.step_ms)}, host {_was(host, was)} to launch it"
    busy_ms = _busy_change_ms(head, base)
    device_did = None if busy_ms is None else busy_ms >= EXPLAINS * rise_ms
    host_did = host is not None and was is not None and host - was >= EXPLAINS * rise_ms
    bound = host_bound(head)
    # A step that waits for the device in its midst keeps the host as long as the device: then the kernels tell.
    if bound and host_did and not device_did:
        return Cause("host", f"host: {levels}; the device waits for the host")
    if device_did or bound is False:
        return Cause("device", f"device: {_movers(head, base) or levels}")
    return Cause("unclear", f"unclear: {levels}")


def _of_cpu(head: CellRecord, base: CellRecord) -> Cause:
    """Without events all the time is the host's; its operators tell where it went."""
    told = f"wall {_was(head.step_ms, base.step_ms)}"
    if from_data(head.kernels) and from_data(base.kernels):
        movers = _movers(head, base)
        told += f"; {movers}" if movers else "; no torch operator is slower"
    return Cause("host", f"host: {told}")


def _busy_change_ms(head: CellRecord, base: CellRecord) -> float | None:
    """Return how much longer the device was at work in a step, in ms: by its kernels where they were profiled."""
    new, old = from_data(head.kernels), from_data(base.kernels)
    if new and old:
        return (sum(k.total_us for k in new.values()) - sum(k.total_us for k in old.values())) / 1e3
    if head.device_busy_ms and base.device_busy_ms:
        return head.device_busy_ms - base.device_busy_ms
    return None


def _movers(head: CellRecord, base: CellRecord) -> str:
    """Name the kernels that gained most, "" where they were not profiled on both sides or none gained."""
    new, old = from_data(head.kernels), from_data(base.kernels)
    if not new or not old:
        return ""
    gained = [move for move in moved(new, old) if move.change_us > 0]
    total = sum(move.change_us for move in gained)
    return ", ".join(str(move) for move in gained[:NAMED] if move.change_us >= NAMED_SHARE * total)


def _was(new: float | None, old: float | None) -> str:
    return f"{_ms(new)} ms (was {_ms(old)})"


def _ms(ms: float | None) -> str:
    return "unknown" if ms is None else format_ms(ms)


def _rise(new: float | None, old: float | None) -> tuple[float, float] | None:
    return None if new is None or old is None or not new > old else (new, old)


def _median(times: Sequence[float] | None) -> float | None:
    return statistics.median(times) if times and all(map(is_number, times)) else None
