"""One number for one cell of one process: the robust mean of the logs of its step times.

Logs, as noise and slowdowns of steps are shares of them. The same batches are timed in every process: between processes
each batch is compared with itself, so that what is cut off are spoilt steps, and not the longest and the shortest.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, zip_longest
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gate.host import held_up, slow_host
from gate.records import Record, cell_id, is_number
from gate.waiting import without_waiting_ms

Clock = Literal["device", "wall"]

#: The share of batches left out at each end: a host that was busy elsewhere spoils a few steps by any amount.
TRIMMED = 0.2


#: What is timed beside each step on a CPU (tests/performance/pace.py), and how much of a slower machine a step shares
#: with it. Where the block took 25% longer, for memory had neighbours, the steps of 25 cells took longer by 0.25 to 1.1
#: of that (median 0.7), the products by next to none; clocks slow all three alike, so the shares add up to 1.
PACE = {"product_ms": 0.2, "block_ms": 0.8}

#: How far the true share of the block lies from that, from cell to cell.
PACE_SHARE_SD = 0.2


@dataclass(frozen=True)
class Estimate:
    """A cell's time in one process; `log_ms` is the natural logarithm of milliseconds a step.

    `batch_log_ms` holds one number a batch, in the order of the batches, from `steps` timed steps in all.
    `paced_batch_logs` are the steps' times over those of the work beside them (`PACE`), where that was timed: a shared
    CPU that is slower for a while leaves them alone. `batch_tokens` are the batches' sizes: they tell one from another.
    `drift` is how far the levels of the passes over the batches lie apart (the standard deviation of their logs, over
    the pace where it is there), of a wall's time alone, and 0 where each batch was timed once: a cell that moved within
    a process may be as far apart from one process to the next.
    `held_up` says how a slow host held up the steps that are left out, "" where none is: a batch without any other is
    NaN, so that `log_ms` is of fewer batches than those of other processes, and only `over` these is it to be used.
    """

    cell: str
    clock: Clock
    log_ms: float
    steps: int
    batch_log_ms: tuple[float, ...]
    paced_batch_logs: tuple[float, ...] | None = None
    batch_tokens: tuple[int, ...] = ()
    held_up: str = ""
    drift: float = 0.0

    @property
    def ms(self) -> float:
        """Milliseconds a step, a geometric mean over the batches."""
        return math.exp(self.log_ms)

    def logs(self, *, paced: bool = False) -> tuple[float, ...]:
        """One number a batch: over the pace, if asked and there."""
        return self.paced_batch_logs if paced and self.paced_batch_logs is not None else self.batch_log_ms

    @cached_property
    def paced_log(self) -> float:
        """The robust mean over the batches of what is over the pace, or else of the times themselves."""
        return location(self.logs(paced=True))

    def level(self, *, paced: bool = False) -> float:
        """The robust mean over the batches of what `logs` holds."""
        return self.paced_log if paced else self.log_ms

    def over(self, other: "Estimate", *, paced: bool = False) -> float:
        """The log of this process's time over another's, each batch with itself: the robust mean of the differences.

        It changes its sign when the two are swapped. Of other batches, or in another order, the difference of means.
        """
        return float(self._ratios([other], paced=paced)[0])

    def beside(self, others: Sequence["Estimate"], *, paced: bool = False) -> float:
        """The log of this process's time by its ratios to these: their mean log, and the mean of the ratios to each.

        This process may be one of them: what is said of it and of another one is said by the same rule.
        """
        level = statistics.fmean(one.level(paced=paced) for one in others)
        return level + float(np.mean(self._ratios(others, paced=paced)))

    def _ratios(self, others: Sequence["Estimate"], *, paced: bool) -> NDArray[np.float64]:
        ratios = np.array([self.level(paced=paced) - one.level(paced=paced) for one in others])
        alike = [one.has_batches_of(self) for one in others]
        theirs = np.array([one.logs(paced=paced) for one in compress(others, alike)])
        if len(theirs):
            ratios[alike] = _trimmed_means(np.array(self.logs(paced=paced)) - theirs)
        return ratios

    def has_batches_of(self, other: "Estimate") -> bool:
        """Whether the two are of the same batches in the same order."""
        return self.batch_tokens == other.batch_tokens and len(self.batch_log_ms) == len(other.batch_log_ms)


def estimate(
    info: dict[str, Any],
    clock: Clock | None = None,
    *,
    net: bool = True,
    calm_ms: float | None = None,
    partial: bool = False,
) -> Estimate | str:
    """The time of a cell's `extra_info`, or the sentence that says why it has no valid one.

    `clock` None takes the device's where it was read, else the wall's. A wall time is `net`, without what its step
    waited for a core (gate/waiting.py), where that was read. A device's counts only if no slow host held it up, but for
    `partial`: that takes the steps that it did not hold up, where enough remain. `calm_ms` (optional) is the pace of
    the host at its calmest in the session (gate/host.py), `info["batches"]` (optional) the number of the batch of each
    step; without it each step is a batch of its own.
    """
    verdict = info.get("verdict", "no verdict")
    if verdict != "timed":
        reason = info.get("reason")
        return f"{verdict}: {reason}" if reason else str(verdict)
    if clock is None:
        clock = "device" if info.get("device_ms") is not None else "wall"
    times = info.get(f"{clock}_ms")
    if times is None:
        return f"no {clock} time was read"
    if not isinstance(times, list) or not times:
        return "no step was timed (zero rounds)"
    bad = next((ms for ms in times if not _is_time(ms)), None)
    if bad is not None:
        return f"a step time is {bad!r}, not a positive number of milliseconds"
    stored = info.get(f"median_{clock}_ms")
    if stored is not None and not (_is_time(stored) and math.isclose(stored, statistics.median(times), rel_tol=1e-6)):
        return f"median_{clock}_ms is {stored!r}, which its {clock}_ms do not have: the record was edited"
    batches = info.get("batches") or list(range(len(times)))
    if len(batches) != len(times):
        return f"{len(times)} step times for {len(batches)} batch numbers"
    if net and clock == "wall" and (waits := info.get("waited_ms")):
        if len(waits) != len(times):
            return f"{len(times)} step times for {len(waits)} waits"
        bad = next((ms for ms in waits if not _is_time(ms) and ms != 0), None)
        if bad is not None:
            return f"waited_ms holds {bad!r}, not a number of milliseconds"
        times = [without_waiting_ms(*both) for both in zip(times, waits, strict=True)]
    held = slow_host(info, calm_ms) if clock == "device" else ""
    if held and not partial:
        return held
    left_out = held_up(info, calm_ms) if held else []
    if left_out is None:
        return held
    logs = batch_logs(times, batches, left_out)
    paced_logs = None
    paced_times = times
    if clock == "wall" and has_pace(info):
        paces = [1.0] * len(times)
        for key, share in PACE.items():
            if len(info[key]) != len(times) or not all(map(_is_time, info[key])):
                return f"{key} does not hold {len(times)} positive numbers of milliseconds"
            paces = [pace * ms**share for pace, ms in zip(paces, info[key], strict=True)]
        paced_times = [ms / pace for ms, pace in zip(times, paces, strict=True)]
        paced_logs = batch_logs(paced_times, batches)
    tokens = info.get("tokens") or ()
    sizes = tuple(size for _, size in sorted(dict(zip(batches, tokens, strict=False)).items()))
    steps = len(times) - sum(left_out)
    moved = drift(paced_times, batches) if clock == "wall" else 0.0
    return Estimate(cell_id(info["cell"]), clock, location(logs), steps, logs, paced_logs, sizes, held, moved)


def logs_among(estimates: Sequence[Estimate], *, paced: bool = False) -> list[float]:
    """The log of each process's time by its ratios to all of them."""
    return [one.beside(estimates, paced=paced) for one in estimates]


def has_pace(info: dict[str, Any]) -> bool:
    """Whether the work beside each step of a cell was timed."""
    return all(info.get(key) is not None for key in PACE)


def batch_logs(times_ms: Sequence[float], batches: Sequence[int], left_out: Sequence[bool] = ()) -> tuple[float, ...]:
    """The log of each batch's time, its median where it was timed more than once; in the order of batch numbers.

    NaN for a batch all of whose steps are `left_out`.
    """
    return tuple(statistics.median(logs or [math.nan]) for logs in _by_batch(times_ms, batches, left_out))


def drift(times_ms: Sequence[float], batches: Sequence[int]) -> float:
    """The standard deviation of the passes' levels: how far their steps lie from the middle of their batches, in logs.

    0 where there is one pass.
    """
    apart = ([log - statistics.median(logs) for log in logs] for logs in _by_batch(times_ms, batches))
    levels = [location(one_pass) for one_pass in zip_longest(*apart, fillvalue=math.nan)]
    return statistics.stdev(levels) if len(levels) > 1 else 0.0


def _by_batch(times_ms: Sequence[float], batches: Sequence[int], left_out: Sequence[bool] = ()) -> list[list[float]]:
    """The logs of each batch's times, without those `left_out`; in the order of batch numbers, then of time."""
    passes: dict[int, list[float]] = {}
    for batch, ms, out in zip_longest(batches, times_ms, left_out, fillvalue=False):
        logs = passes.setdefault(batch, [])
        if not out:
            logs.append(math.log(ms))
    return [passes[batch] for batch in sorted(passes)]


def location(logs: Sequence[float]) -> float:
    """The mean of what is left when `TRIMMED` of the values are left out at each end; NaN counts for none."""
    return float(_trimmed_means(np.array(logs)))


def _trimmed_means(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    # Not at the top: every session of pytest imports this module, and scipy.stats takes more than a second.
    from scipy import stats

    if not np.isnan(logs).any():
        return np.asarray(stats.trim_mean(logs, TRIMMED, axis=-1))
    rows = [stats.trim_mean(row[~np.isnan(row)], TRIMMED) for row in np.atleast_2d(logs)]
    return np.array(rows).reshape(logs.shape[:-1])


def session_of(record: Record) -> str:
    """The session of a record's process: the same for all processes of one machine and GPU between two boots.

    "unknown" for records from before it was kept: they count as one session, whose own noise they cannot show.
    """
    return str(record.get("machine_info", {}).get("session") or "unknown")


def _is_time(ms: object) -> bool:
    return is_number(ms) and ms > 0
