"""Profiles the kernels of a step: how often each ran, and for how long."""

from collections.abc import Callable, Iterable
from typing import Any

from gate.measure.trace import ON_DEVICE, Event, lost_kernels, profiled
from gate.record.kernels import KernelTime, Profile, as_data

#: C++ names of templates run to thousands of characters.
NAME_LENGTH = 300


def device_profile(step: Iterable[Event], steps: int = 1) -> Profile:
    """Every kernel, copy and fill of `steps` traced steps by its name, a mean step."""
    counts: dict[str, int] = {}
    times: dict[str, float] = {}
    for event in step:
        if event.category in ON_DEVICE:
            name = event.name[:NAME_LENGTH]
            counts[name] = counts.get(name, 0) + 1
            times[name] = times.get(name, 0.0) + event.duration_us
    return {name: KernelTime(counts[name] / steps, times[name] / steps) for name in counts}


def step_profile(run: Callable[[], object], device: str, *, steps: int = 3) -> list[dict[str, Any]] | str:
    """The kernels of a mean of `steps` runs as a record keeps them, or the sentence why there are none.

    On a CPU its operators, with their own time only.
    """
    if device == "cuda":
        # Kineto may drop the first kernels of a session (pytorch/pytorch#192021): they are those of a step before.
        seen = profiled(run, steps=steps, lead_in=1)
        if lost := lost_kernels(seen):
            return f"the profiler lost {lost} kernels"
        return as_data(device_profile(seen, steps))
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            run()
    averages = profiler.key_averages()
    return as_data({each.key: KernelTime(each.count / steps, each.self_cpu_time_total / steps) for each in averages})
