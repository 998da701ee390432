"""Times steps on the host's clock and the device's, with the device synchronised around each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass
class StepTimer:
    """A callable that runs one step on one batch and keeps its time.

    `wall_ms` runs from before the step to the end of its last kernel; `device_ms` is the time between two CUDA
    events around it, and stays empty on the CPU.
    """

    step: Callable[[Any], object]
    device: str
    wall_ms: list[float] = field(default_factory=list)
    device_ms: list[float] = field(default_factory=list)

    def __call__(self, batch: object) -> None:
        if self.device != "cuda":
            begin = time.perf_counter()
            self.step(batch)
            self.wall_ms.append((time.perf_counter() - begin) * 1e3)
            return
        import torch

        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin = time.perf_counter()
        first.record()
        self.step(batch)
        last.record()
        torch.cuda.synchronize()
        self.wall_ms.append((time.perf_counter() - begin) * 1e3)
        self.device_ms.append(first.elapsed_time(last))

    def forget(self) -> list[float]:
        """Drop what was timed, as after warm-up, and return the wall times dropped."""
        dropped = list(self.wall_ms)
        self.wall_ms.clear()
        self.device_ms.clear()
        return dropped


def matmul_tflops(device: str, dtype: torch.dtype, *, repeats: int = 10) -> float:
    """Measure a large square matrix product of random numbers, in TFLOP/s: what utilisation is a share of.

    The median of `repeats`; 8192 x 8192 x 8192 on a GPU, 1024 cubed on a CPU.
    """
    import torch

    size = 8192 if device == "cuda" else 1024
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(size, size, device=device, dtype=dtype, generator=generator) for _ in range(2))
    timer = StepTimer(lambda _: left @ right, device)
    for _ in range(3):
        timer(None)
    timer.forget()
    for _ in range(repeats):
        timer(None)
    milliseconds = median(timer.device_ms or timer.wall_ms)
    return 2 * size**3 / milliseconds / 1e9


def median(samples: Sequence[float]) -> float:
    """Return the median; ValueError on no samples."""
    import statistics

    if not samples:
        raise ValueError("no step was timed; a cell needs at least one round.")
    return statistics.median(samples)
