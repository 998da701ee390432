"""How long a step's threads stood ready to run while other programs had the cores (Linux's scheduler statistics).

On a shared CPU that is most of the noise of a wall time, and no property of the code that is timed. A step that sleeps,
reads a disk or waits for a lock is not ready to run: such waits stay in its time. What one thread of the process takes
from another counts as waiting too, so keep threads and cores in balance (OMP_NUM_THREADS).

Source: /proc/PID/task/TID/schedstat, https://docs.kernel.org/scheduler/sched-stats.html: ns on a core, ns of waiting
for one, time slices.
"""

import time
from collections.abc import Callable
from pathlib import Path

TASKS = Path("/proc/self/task")

#: Of a step's time, at most this share is taken for waiting: the two clocks are not read in one instant.
MOST_WAITING = 0.95

Waits = dict[str, float]


def waits_ms() -> Waits:
    """Return what each thread of this process has waited for a core so far, in ms; {} where nothing counts it."""
    found = {}
    try:
        for task in TASKS.iterdir():
            try:
                found[task.name] = int((task / "schedstat").read_bytes().split()[1]) / 1e6
            except (OSError, IndexError, ValueError):
                # A thread that just ended, or a kernel without the file.
                continue
    except OSError:
        return {}
    return found


def waited_ms(before: Waits, after: Waits) -> float | None:
    """Return the longest that any one thread waited between two readings, in ms; None where there is no count.

    The longest, not the sum: threads that share out a step wait for each other at its end.

    >>> waited_ms({"7": 1.0, "8": 5.0}, {"7": 3.0, "8": 6.0})
    2.0
    """
    both = before.keys() & after.keys()
    return max((after[thread] - before[thread] for thread in both), default=None)


def without_waiting_ms(wall_ms: float, waited: float) -> float:
    """Return the time of a step less the time that its threads waited for a core."""
    return wall_ms - min(waited, MOST_WAITING * wall_ms)


def net_ms(work: Callable[[], object]) -> float:
    """Run `work` and return its wall time without waiting for a core, in ms."""
    waits, begin = waits_ms(), time.perf_counter()
    work()
    wall_ms = (time.perf_counter() - begin) * 1e3
    return without_waiting_ms(wall_ms, waited_ms(waits, waits_ms()) or 0.0)
