"""Times steps on the host's clock and the device's, as a training loop runs them: a few steps are launched ahead."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

#: Steps that a GPU still has to run while the next one is launched. A loop that reads nothing back runs ahead until the
#: queue of launches is full; a hiccup of the host costs the device nothing while it has so much left to do.
AHEAD = 3

#: Cycles of `torch.cuda._sleep` a millisecond, roughly: what it takes is measured.
CYCLES_PER_MS = 1.8e6


@dataclass
class Samples:
    """Times of finished steps in milliseconds, one number a step.

    `device_ms` lies between the CUDA events at the ends of the step before and of this one (of a first step, from an
    event before it), `wall_ms` between the moments when the host had launched the two, `host_ms` is what the host took
    to launch the step, and `lead_ms` what the device still had to do of it then. A CPU has no events: there
    `wall_ms` is what the step took, and the other lists stay empty. `ahead_ms` is the lead before the first step.
    """

    wall_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)
    lead_ms: list[float] = field(default_factory=list)
    ahead_ms: float = 0.0

    @property
    def times_ms(self) -> list[float]:
        """The device's times where there are any, else the wall's."""
        return self.device_ms or self.wall_ms


def timed_steps(
    step: Callable[[Any], object], batches: Iterable[Any], device: str, *, ahead_ms: float = 0.0
) -> Samples:
    """Run `step` on each of `batches` and return its times; the device is idle before and after.

    On a GPU at most `AHEAD` steps are launched before the host waits for the first of them: the device is not drained
    between steps, and what the host hides behind the device costs nothing. A few steps alone would show the host's
    launches: with `ahead_ms` the device spins for so long before them, while the host is launching already.
    """
    if device != "cuda":
        wall_ms = []
        for batch in batches:
            began = time.perf_counter()
            step(batch)
            wall_ms.append((time.perf_counter() - began) * 1e3)
        return Samples(wall_ms)
    torch.cuda.synchronize()
    idle, start = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    idle.record()
    if ahead_ms:
        torch.cuda._sleep(int(ahead_ms * CYCLES_PER_MS))
    start.record()
    launched: list[tuple[float, float, torch.cuda.Event]] = []
    waiting: deque[torch.cuda.Event] = deque()
    at = time.perf_counter()
    for batch in batches:
        began = time.perf_counter()
        step(batch)
        end = torch.cuda.Event(enable_timing=True)
        end.record()
        launched.append((began, time.perf_counter(), end))
        waiting.append(end)
        if len(waiting) > AHEAD:
            waiting.popleft().synchronize()
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    mark.synchronize()
    # Both clocks are read at one moment: events tell how long before it each step ended.
    now = time.perf_counter()
    samples, before = Samples(ahead_ms=idle.elapsed_time(start)), start
    for began, done, end in launched:
        samples.device_ms.append(before.elapsed_time(end))
        samples.wall_ms.append((done - at) * 1e3)
        samples.host_ms.append((done - began) * 1e3)
        samples.lead_ms.append((now - done) * 1e3 - end.elapsed_time(mark))
        before, at = end, done
    return samples


def matmul_tflops(device: str, dtype: torch.dtype, *, repeats: int = 10) -> float:
    """Measure a large square matrix product of random numbers, in TFLOP/s: what utilisation is a share of.

    The median of `repeats`; 8192 x 8192 x 8192 on a GPU, 1024 cubed on a CPU.
    """
    size = 8192 if device == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in range(2))
    # The first products of a CPU pay for its thread pool.
    milliseconds = median(timed_steps(lambda _: left @ right, range(repeats + 3), device).times_ms[-repeats:])
    return 2 * size**3 / milliseconds / 1e9
