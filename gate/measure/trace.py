"""What the profiler saw of one step: launches, synchronisations and kernels, read from its Chrome trace.

Categories are Kineto's: `user_annotation`, `cpu_op`,
`cuda_runtime`, `cuda_driver`, `kernel`, `gpu_memcpy`, `gpu_memset`.
"""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from gate.record.kernels import KernelTime, Profile, as_data

#: The name of the annotation around each profiled step.
STEP = "varlen_gate_step"

#: C++ names of templates run to thousands of characters.
NAME_LENGTH = 300

CALLS = ("cuda_runtime", "cuda_driver")
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")

#: `cudaLaunchKernel`, `cudaLaunchKernelExC`, `cuLaunchKernelEx`, `cudaLaunchCooperativeKernel`, `cudaGraphLaunch`, ...
LAUNCH = re.compile(r"cu(da)?(Launch(Cooperative)?Kernel(Ex|ExC|MultiDevice)?|GraphLaunch)(_v\d+)?(_ptsz)?")

#: Calls that return only once the device has got somewhere. `cudaFree` too waits, but whether it is called is up to
#: what the allocator has cached.
SYNCHRONISES = re.compile(
    r"(cuda(Device|Stream|Event)|cu(Ctx|Stream|Event))Synchronize(_v\d+)?(_ptsz)?"
    r"|cudaMemcpy(2D|3D|ToSymbol|FromSymbol)?(_v\d+)?(_ptds)?|cuMemcpy(DtoH|HtoD)(_v\d+)?(_ptds)?"
)

COPIES = re.compile(r"cu(da)?Memcpy\w*Async\w*")


@dataclass(frozen=True)
class Event:
    """One complete event of a trace; times in microseconds. A call and what it made the device do share a number."""

    category: str
    name: str
    start_us: float
    duration_us: float
    thread: int | str
    correlation: int | None

    @property
    def end_us(self) -> float:
        """When it ended."""
        return self.start_us + self.duration_us


def of_steps(trace: dict[str, Any]) -> list[Event]:
    """Of a Chrome trace, the calls made inside the annotated steps, by any thread, and what these made the device do.

    Work on the device whose call was not seen is taken for the step's, as all else that runs here was seen.
    """
    every = [
        Event(
            str(each.get("cat")),
            str(each["name"]),
            float(each["ts"]),
            float(each.get("dur", 0)),
            each.get("tid", 0),
            each.get("args", {}).get("correlation"),
        )
        for each in trace["traceEvents"]
        if each.get("ph") == "X"
    ]
    every.sort(key=lambda event: event.start_us)
    steps = [event for event in every if (event.category, event.name) == ("user_annotation", STEP)]
    calls = [event for event in every if event.category in CALLS]
    inside = [call for call in calls if any(step.start_us <= call.start_us < step.end_us for step in steps)]
    others = {call.correlation for call in calls} - {call.correlation for call in inside}
    device = [event for event in every if event.category in ON_DEVICE and event.correlation not in others]
    return inside + device


def kernel_launches(step: Iterable[Event]) -> int:
    """How many launches the step made, one of a graph counted once.

    Counted by their numbers over calls and kernels: Kineto may drop kernels at the start of a session
    (pytorch/pytorch#192021), and a library may launch through an entry that it does not see.
    """
    launched = (
        event.correlation
        for event in step
        if event.category == "kernel" or (event.category in CALLS and LAUNCH.fullmatch(event.name))
    )
    return len(set(launched))


def lost_kernels(step: Sequence[Event]) -> int:
    """How many launches have no kernel in the trace: above 0 its kernels' times are not the whole step's."""
    seen = {event.correlation for event in step if event.category == "kernel"}
    calls = {event.correlation for event in step if event.category in CALLS and LAUNCH.fullmatch(event.name)}
    return len(calls - seen)


def synchronisations(step: Sequence[Event]) -> int:
    """How often the host waited for the device: waiting calls, and copies to pageable memory without one after them.

    `.item()` and `.cpu()` copy and then wait: one each.
    """
    pageable = {event.correlation for event in step if event.category == "gpu_memcpy" and "-> Pageable" in event.name}
    count = 0
    copied: set[int | str] = set()
    for call in (event for event in step if event.category in CALLS):
        if SYNCHRONISES.fullmatch(call.name):
            count += 1
            copied.discard(call.thread)
            continue
        count += call.thread in copied
        copied.discard(call.thread)
        if COPIES.fullmatch(call.name) and call.correlation in pageable:
            copied.add(call.thread)
    return count + len(copied)


def busy_us(step: Iterable[Event]) -> float:
    """How long the device was at work, in microseconds: streams that overlap count once."""
    total, until = 0.0, float("-inf")
    for event in sorted((e for e in step if e.category in ON_DEVICE), key=lambda event: event.start_us):
        total += max(0.0, event.end_us - max(event.start_us, until))
        until = max(until, event.end_us)
    return total


@contextmanager
def detached_afterwards() -> Iterator[None]:
    """Have CUPTI let go of the process when a profile within ends; a TEARDOWN_CUPTI that is set is respected.

    It stays attached else, and each later call into CUDA costs the host more (https://github.com/pytorch/pytorch/issues/144455):
    on an H100 cells that wait for the host took up to half as long again once another cell had been profiled.
    """
    before = os.environ.get("TEARDOWN_CUPTI")
    os.environ.setdefault("TEARDOWN_CUPTI", "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ["TEARDOWN_CUPTI"]


def profiled(run: Callable[[], object], *, steps: int = 1, lead_in: int = 0) -> list[Event]:
    """Run `run` on the GPU under the profiler and return the events of `steps` runs of it, after `lead_in` others.

    The device is idle before and after each run, and that waiting is no event of the step.
    """
    torch.cuda.synchronize()
    with detached_afterwards(), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(lead_in):
            run()
        torch.cuda.synchronize()
        for _ in range(steps):
            with record_function(STEP):
                run()
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return of_steps(json.loads(path.read_text(encoding="utf8")))


def device_profile(step: Iterable[Event], steps: int = 1) -> Profile:
    """Every kernel, copy and fill of `steps` traced steps by its name, a mean step."""
    found: Profile = {}
    for event in step:
        if event.category in ON_DEVICE:
            name = event.name[:NAME_LENGTH]
            before = found.get(name, KernelTime(0, 0))
            found[name] = KernelTime(before.count + 1 / steps, before.total_us + event.duration_us / steps)
    return found


def step_profile(run: Callable[[], object], device: str, *, steps: int = 3) -> dict[str, Any]:
    """The `kernels` of a mean of `steps` runs as a record keeps them, or why they are `kernels_unmeasured`.

    On a CPU its operators, with their own time only.
    """
    if device == "cuda":
        # Kineto may drop the first kernels of a session (pytorch/pytorch#192021): they are those of a step before.
        seen = profiled(run, steps=steps, lead_in=1)
        if lost := lost_kernels(seen):
            return {"kernels_unmeasured": f"the profiler lost {lost} kernels"}
        return {"kernels": as_data(device_profile(seen, steps))}
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            run()
    operators = {
        each.key: KernelTime(each.count / steps, each.self_cpu_time_total / steps) for each in profiler.key_averages()
    }
    return {"kernels": as_data(operators)}
