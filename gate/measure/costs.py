"""The costs of a cell that are measured exactly: in one step of one batch, after everything was met once."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from collators.batch import Batch
from gate.measure.trace import busy_us, kernel_launches, lost_kernels, profiled, synchronisations
from model.attention import Device

Step = Callable[[Batch], object]


def heaviest(batches: Sequence[Batch]) -> Batch:
    """Return the batch that exact costs are measured on: the first of those with the most slots."""
    return max(batches, key=lambda batch: batch.num_slots)


def requested_bytes(device: Device) -> int:
    """Return the bytes that live tensors asked the allocator for; 0 on a CPU.

    What it allocated for them also depends on what it happens to have cached: it hands out blocks whole if less than
    1 MiB of them would be left. cuBLAS allocates a workspace at a thread's first product and keeps it, so these go
    first: whoever needs one pays for it.
    """
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch._C._cuda_clearCublasWorkspaces()
    return int(torch.cuda.memory_stats().get("requested_bytes.all.current", 0))


@contextmanager
def no_collection() -> Iterator[None]:
    """Run with Python's collector off, after a last collection: when it frees what is up to what ran before."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def exact_costs(step: Step, batches: Sequence[Batch], device: Device, base_bytes: int) -> dict[str, Any]:
    """Return the costs of one step on the heaviest batch, and of making the batches, which are all that a CPU knows.

    `peak_bytes` is the most that tensors asked for beyond `base_bytes` (`requested_bytes` before the model was made),
    weights and gradients included. `device_busy_ms` is no exact cost: how long the device was at work in that step.
    """
    slots = sum(batch.num_slots for batch in batches)
    costs: dict[str, Any] = {"padded_token_share": 1 - sum(batch.num_tokens for batch in batches) / slots}
    if device != "cuda":
        return costs
    batch = heaviest(batches)
    with no_collection():
        requested_bytes(device)
        torch.cuda.reset_peak_memory_stats()
        seen = profiled(lambda: step(batch))
        peak = torch.cuda.memory_stats()["requested_bytes.all.peak"]
    costs["peak_bytes"] = peak - base_bytes
    launches = kernel_launches(seen)
    if launches == 0:
        return costs | {"unmeasured": "the profiler saw no launch of a kernel"}
    return costs | {
        "kernel_launches": launches,
        "synchronisations": synchronisations(seen),
        "device_busy_ms": None if lost_kernels(seen) else busy_us(seen) / 1e3,
    }
