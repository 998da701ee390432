"""A matrix product and a copy, timed after each cell: what they take tells one state of the machine from another."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gate.baseline.doubts import CONTROL_REPEATS
from model.attention import Device

#: Rows of the square matrices and bytes of the copy: together below 50 ms a cell, and past the caches where that costs
#: nothing (an H100 takes about 0.2 ms for a product, 0.1 ms for a copy).
SIZES: dict[Device, tuple[int, int]] = {"cuda": (4096, 128 << 20), "cpu": (256, 4 << 20)}

#: Runs of each work that are not timed: products that warm the device up where no step is queued before them, and keep
#: it busy (1.4 ms on an H100) while the host queues the others.
NOT_TIMED = {"matmul_ms": 8, "copy_ms": 2}


@dataclass(frozen=True)
class Control:
    """Work that no change of the code under test changes."""

    device: Device
    left: Tensor
    right: Tensor
    source: Tensor
    target: Tensor

    def queue(self) -> Callable[[], dict[str, list[float]]]:
        """Return what gives `matmul_ms` and `copy_ms`, `CONTROL_REPEATS` each; a GPU starts both at once.

        Timed by events there, else by the wall clock when asked. Queue it behind other work: a device that has nothing
        to do times the pauses of a slow host.
        """
        works = {"matmul_ms": lambda: self.left @ self.right, "copy_ms": lambda: self.target.copy_(self.source)}
        if self.device != "cuda":
            return lambda: {name: timed_on_host(work, NOT_TIMED[name]) for name, work in works.items()}
        queued = {name: queued_on_device(work, NOT_TIMED[name]) for name, work in works.items()}
        return lambda: {name: times() for name, times in queued.items()}


def control(device: Device, dtype: torch.dtype) -> Control:
    """Return the control work of `device`, with products in `dtype`; the same numbers in every process."""
    rows, num_bytes = SIZES[device]
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(rows, rows, device=device, dtype=dtype, generator=generator) for _ in range(2))
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    return Control(device, left, right, source, torch.empty_like(source))


def timed_on_host(work: Callable[[], object], ahead: int) -> list[float]:
    """Time `work` by the wall clock, after `ahead` runs that are not kept."""
    times = []
    for _ in range(ahead + CONTROL_REPEATS):
        begin = time.perf_counter()
        work()
        times.append((time.perf_counter() - begin) * 1e3)
    return times[ahead:]


def queued_on_device(work: Callable[[], object], ahead: int) -> Callable[[], list[float]]:
    """Queue `work` between CUDA events, after `ahead` runs that are not kept; what is returned waits for the device."""
    for _ in range(ahead):
        work()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(CONTROL_REPEATS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()

    def times() -> list[float]:
        marks[-1].synchronize()
        return [begin.elapsed_time(end) for begin, end in pairwise(marks)]

    return times
