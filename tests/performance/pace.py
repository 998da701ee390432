"""How fast a CPU is while a cell is timed: a matrix product between every two steps.

Neighbours on a shared host slow a step down by its caches, clocks and shared cores even while it runs, and by turns of
seconds. A product right before and right after a step is slowed down alike, so that what remains is the step's own.
(Rows of tiny operations, tried beside it, follow Python's dispatch more closely within a process, and differ by 5% from
one process to the next.)
"""

import statistics
import time
from dataclasses import dataclass, field

import torch

from gate.waiting import waited_ms, waits_ms, without_waiting_ms
from model.attention import Device

#: About 3 ms on one core of a server: long enough to be timed, short against a step.
ROWS = 512
REPEATS = 3

#: How often every batch is timed. A neighbour comes and goes within seconds, and a CPU's cell takes about one a pass.
PASSES: dict[Device, int] = {"cuda": 1, "cpu": 3}


@dataclass
class Pace:
    """Times of the products, `REPEATS` before each step and after the last, without what they waited for a core."""

    left: torch.Tensor = field(default_factory=lambda: _numbers(0))
    right: torch.Tensor = field(default_factory=lambda: _numbers(1))
    times_ms: list[list[float]] = field(default_factory=list)

    def tick(self) -> None:
        """Time the products now: call it before each step, and after the last."""
        self.times_ms.append([self._product_ms() for _ in range(REPEATS)])

    def steps_ms(self) -> list[float]:
        """Return the median product around each step."""
        around = zip(self.times_ms[:-1], self.times_ms[1:], strict=True)
        return [statistics.median(before + after) for before, after in around]

    def _product_ms(self) -> float:
        waits, begin = waits_ms(), time.perf_counter()
        _ = self.left @ self.right
        wall_ms = (time.perf_counter() - begin) * 1e3
        return without_waiting_ms(wall_ms, waited_ms(waits, waits_ms()) or 0.0)


def _numbers(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, ROWS, generator=torch.Generator().manual_seed(seed))
