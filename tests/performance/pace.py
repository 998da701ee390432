"""How fast a CPU is while a cell is timed: a matrix product and a row of tiny operations between every two steps.

Neighbours on a shared host slow a step down by its caches, clocks and shared cores even while it runs, and by turns of
seconds. What runs right before and right after a step is slowed down alike, so that what remains is the step's own.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from gate.waiting import waited_ms, waits_ms, without_waiting_ms

#: Rows of the square matrices: their product takes about 3 ms on one core of a server, short against most steps.
ROWS = 512

#: Additions of `TINY` numbers, each of which is all dispatch: about 1 ms of Python and torch.
ADDITIONS = 300
TINY = 64

REPEATS = 3


@dataclass
class Pace:
    """Times of the product and of the additions, `REPEATS` of each before each step and after the last.

    They are without what they waited for a core, as the steps beside them are compared.
    """

    left: torch.Tensor = field(default_factory=lambda: _numbers(0))
    right: torch.Tensor = field(default_factory=lambda: _numbers(1))
    products_ms: list[list[float]] = field(default_factory=list)
    additions_ms: list[list[float]] = field(default_factory=list)

    def tick(self) -> None:
        """Time both now: call it before each step, and after the last."""
        self.products_ms.append([_time_ms(self._product) for _ in range(REPEATS)])
        self.additions_ms.append([_time_ms(self._additions) for _ in range(REPEATS)])

    def steps_ms(self) -> list[float]:
        """Return the pace of each step: the geometric mean of the median product and the median row around it."""
        both = zip(_around(self.products_ms), _around(self.additions_ms), strict=True)
        return [statistics.geometric_mean(times) for times in both]

    def _product(self) -> None:
        _ = self.left @ self.right

    def _additions(self) -> None:
        row = self.left[0, :TINY]
        for _ in range(ADDITIONS):
            _ = row + row


def _around(times_ms: list[list[float]]) -> list[float]:
    """The median of the times before and after each step."""
    return [statistics.median(before + after) for before, after in itertools.pairwise(times_ms)]


def _time_ms(work: Callable[[], None]) -> float:
    waits, begin = waits_ms(), time.perf_counter()
    work()
    wall_ms = (time.perf_counter() - begin) * 1e3
    return without_waiting_ms(wall_ms, waited_ms(waits, waits_ms()) or 0.0)


def _numbers(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, ROWS, generator=torch.Generator().manual_seed(seed))
