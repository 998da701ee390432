"""Times steps on the host's clock and the device's, as a training loop runs them: a few steps queued ahead."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gate.waiting import waited_ms, waits_ms

if TYPE_CHECKING:
    import torch

#: Steps that a GPU has in its queue while the next one is queued. A loop that reads nothing back runs ahead until the
#: queue of launches is full; a hiccup of the host costs the device nothing while it has so much left to do.
AHEAD = 3


@dataclass
class Samples:
    """Times of finished steps in milliseconds, and the batch of each.

    `device_ms` is the time between the CUDA events at the end of the step before and at the end of this one,
    `wall_ms` the time between the moments when the two were queued, `host_ms` what the host took to queue the step: a
    host that waits for the device queues a step whenever an earlier one has ended. `lead_ms` is
    how long the device was still at work on the step when the host had queued it: next to nothing where the host holds
    it up. On the CPU there are no events, and the host does the work itself: the lists of the device stay empty. There
    `waited_ms` is how much of `wall_ms` the step's threads waited for a core that other programs had (empty where the
    system cannot tell).
    """

    batches: list[Any] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)
    lead_ms: list[float] = field(default_factory=list)
    waited_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Queued:
    batch: Any
    kept: bool
    wall_ms: float
    host_ms: float
    end: torch.cuda.Event
    #: The host's clock when all of the step was queued, in seconds.
    at: float


class StepTimer:
    """A callable that runs one step on one batch and keeps its time in `samples`.

    On a GPU a call queues its step and then waits for the one queued `AHEAD` calls before, which is the one it times:
    the device is never drained between steps, as it is not in training, and what the host hides behind the device costs
    nothing. `finish` times those that are left, but for the last one: after a warm-up on batches 0..n, `forget`, calls
    on 0..n again and `finish`, the samples are of n, 0, ..., n-1.
    """

    def __init__(self, step: Callable[[Any], object], device: str) -> None:
        self.step = step
        self.device = device
        self.samples = Samples()
        self._queue: deque[_Queued] = deque()
        self._ended: torch.cuda.Event | None = None
        self._timed: list[_Queued] = []
        self._at = math.nan

    def __call__(self, batch: Any) -> None:
        """Run the step on `batch`; on a GPU, queue it and wait for an earlier one."""
        self._run(batch, kept=True)

    def settle(self, batch: Any) -> None:
        """Run a step that is not kept: what the host did since the one before counts for no step that is."""
        self._run(batch, kept=False)

    def _run(self, batch: Any, *, kept: bool) -> None:
        waits = waits_ms() if self.device != "cuda" else {}
        begin = time.perf_counter()
        self.step(batch)
        at = time.perf_counter()
        host_ms = (at - begin) * 1e3
        if self.device != "cuda":
            if kept:
                self.samples.batches.append(batch)
                self.samples.wall_ms.append(host_ms)
                if (waited := waited_ms(waits, waits_ms())) is not None:
                    self.samples.waited_ms.append(waited)
            return
        import torch

        wall_ms, self._at = (at - self._at) * 1e3, at
        self._queue.append(_Queued(batch, kept, wall_ms, host_ms, torch.cuda.Event(enable_timing=True), at))
        self._queue[-1].end.record()
        if len(self._queue) > AHEAD:
            self._time(self._queue.popleft())

    def _time(self, step: _Queued) -> None:
        """Wait for a step, and time it from the end of the one before; the first has none."""
        step.end.synchronize()
        if self._ended is not None and step.kept:
            self.samples.batches.append(step.batch)
            self.samples.host_ms.append(step.host_ms)
            self.samples.wall_ms.append(step.wall_ms)
            self.samples.device_ms.append(self._ended.elapsed_time(step.end))
            self._timed.append(step)
        self._ended = step.end

    def forget(self) -> Samples:
        """Start new samples, as after warm-up, and return the old ones; of steps still queued the last one counts."""
        dropped, self.samples, self._timed = self.samples, Samples(), []
        last = len(self._queue) - 1
        self._queue = deque(replace(step, kept=step.kept and place == last) for place, step in enumerate(self._queue))
        return dropped

    def finish(self) -> Samples:
        """Wait for the device, and return the samples with their `lead_ms`; nothing else is timed after it."""
        while len(self._queue) > 1:
            self._time(self._queue.popleft())
        if self._timed:
            import torch

            # Both clocks are read at one moment: events tell how long before it each step ended.
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
            mark.synchronize()
            now = time.perf_counter()
            ends = [now - step.end.elapsed_time(mark) / 1e3 for step in self._timed]
            self.samples.lead_ms = [(end - step.at) * 1e3 for end, step in zip(ends, self._timed, strict=True)]
        return self.samples


def matmul_tflops(device: str, dtype: torch.dtype, *, repeats: int = 10) -> float:
    """Measure a large square matrix product of random numbers, in TFLOP/s: what utilisation is a share of.

    The median of `repeats`; 8192 x 8192 x 8192 on a GPU, 1024 cubed on a CPU.
    """
    import torch

    size = 8192 if device == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in range(2))
    timer = StepTimer(lambda _: left @ right, device)
    for _ in range(repeats + 3):
        timer(None)
    samples = timer.finish()
    # The first products of a CPU pay for its thread pool.
    milliseconds = median((samples.device_ms or samples.wall_ms)[-repeats:])
    return 2 * size**3 / milliseconds / 1e9


def median(samples: Sequence[float]) -> float:
    """Return the median; ValueError on no samples."""
    import statistics

    if not samples:
        raise ValueError("no step was timed; a cell needs at least one round.")
    return statistics.median(samples)
